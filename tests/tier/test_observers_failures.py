"""Observers that fail, hang, crash and are killed: others go on, nothing is missed, nothing is left behind."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage_tier.errors import DeadlineExceeded
from storage_tier.observers import FileInfo, ObserverFailed, ObserverOptions, PendingFile, Vetoed
from storage_tier.testing.memory import MemoryTier

from . import observer_probes
from .observer_probes import NEVER, TIMEOUT_S, Journal, is_gone, quarantined, stat_of, state_of, until

examples = observer_probes.examples
fifo = observer_probes.fifo
journal = observer_probes.journal
tier = observer_probes.tier


AT_ONCE = ObserverOptions(restart_delays_s=(0.0, 0.0))


def children_of(pid: int) -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(stat_of(int(name))[1]) == pid]


# ---- failures


FAILURES = [
    ("raise of mine", "failed: ValueError: of mine", "in act\n"),
    ("answer nonsense", "failed: TypeError: pre_commit answered 17", "TypeError"),
    ("endless", "took longer than 0.5 s and was killed", "in endless\n"),
    ("endless_in_c", "took longer than 0.5 s and was killed", "in endless_in_c\n"),
    ("exit 3", "ended with exit code 3 during pre_commit", ""),
    ("crash", "was killed by SIGSEGV during pre_commit", "in act\n"),
    ("recurse", "failed: RecursionError", "in act\n"),
    ("memory", "failed: MemoryError", "in act\n"),
    ("closed", "closed its connection during pre_commit", ""),
    # Half a message; none; a length of 4 GiB; another kind of JSON; no JSON; of another call; no answer; two at once.
    ("garbage 47455420", "took longer", ""),
    ("garbage 474554202f20485454502f312e310d0a", "gave a bad answer: bytes that begin no message", ""),
    ("garbage 544f4231ffffffff", "gave a bad answer: bytes that begin no message", ""),
    ("garbage 544f4231020000005b5d", "gave a bad answer: a message that is a list", ""),
    ("garbage 544f4231020000007b7b", "gave a bad answer: a message that is not JSON", ""),
    ("garbage 544f4231020000007b7d", "gave a bad answer: it is to call None", ""),
    ("garbage 544f42310a0000007b2263616c6c223a317d", "gave a bad answer: a veto that is False", ""),
    ("garbage 544f4231020000007b7d544f4231", "gave a bad answer: more than one message", ""),
]


@pytest.mark.parametrize(("content", "sentence", "traceback"), FAILURES, ids=[content for content, _, _ in FAILURES])
def test_a_failing_pre_commit_is_quarantined_and_others_go_on(
    tier: MemoryTier, content: str, sentence: str, traceback: str
) -> None:
    limit_s = 20.0 if "failed" in sentence else 0.5
    options = ObserverOptions(restart_delays_s=(), pre_commit_limit_s=limit_s, memory_bytes=256 << 20)
    failing = tier.host.attach("/a", "probe", options=options)
    other = tier.host.attach("/", "quiet", options=NEVER)
    pid = state_of(tier, failing).pid
    tier.put("/a/x", content.encode())
    assert tier.get("/a/x") == content.encode(), "a broken addition must not stop a writer"
    state = quarantined(tier, failing)
    assert sentence in state.failure
    assert traceback in state.traceback
    assert state.failure_count == 1
    assert state.pid is None
    until(lambda: is_gone(pid or 0), "its process goes on")
    tier.put("/a/x", content.encode())
    assert state_of(tier, failing).failure_count == 1, "it was asked again"
    assert state_of(tier, other).checked_count == 2
    assert state_of(tier, other).failure == ""


def test_others_commit_while_a_pre_commit_is_endless(tier: MemoryTier) -> None:
    failing = tier.host.attach("/a", "probe", options=ObserverOptions(restart_delays_s=(), pre_commit_limit_s=1.5))
    other = tier.host.attach("/b", "probe")
    stuck = threading.Thread(target=tier.put, args=("/a/x", b"endless"))
    start_s = time.monotonic()
    stuck.start()
    count = 0
    while stuck.is_alive():
        tier.put("/b/x", b"fine")
        tier.put("/c/x", b"fine")
        count += 2
    assert 1.4 < time.monotonic() - start_s < 15
    assert count > 20
    assert state_of(tier, other).checked_count == count // 2
    assert "took longer than 1.5 s" in quarantined(tier, failing).failure
    assert tier.get("/a/x") == b"endless"


def test_writers_in_line_behind_an_endless_one_go_on_when_it_is_killed(tier: MemoryTier) -> None:
    tier.host.attach("/a", "probe", options=ObserverOptions(restart_delays_s=(), pre_commit_limit_s=0.7))
    threads = [threading.Thread(target=tier.put, args=(f"/a/{number}", b"endless")) for number in range(8)]
    start_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert time.monotonic() - start_s < 5, "each of them waited for its own limit"
    assert len(tier.stored) == 8


def test_a_busy_observer_is_not_waited_for_longer_than_asked(
    tier: MemoryTier, fifo: Callable[[], None], tmp_path: Path
) -> None:
    attached = tier.host.attach("/a", "probe")
    holding = threading.Thread(target=tier.put, args=("/a/x", f"wait {tmp_path / 'fifo'}".encode()))
    holding.start()
    until(lambda: any(lane.lock.locked() for lane in tier.host._find(attached)._child._lanes.values()))
    fd = os.memfd_create("y")
    with pytest.raises(DeadlineExceeded, match="busy with the files of others"):
        tier.host.before_commit(PendingFile(FileInfo("/a/y", 0, 0), fd), timeout_s=0.1)
    os.close(fd)
    fifo()
    holding.join(TIMEOUT_S)
    assert state_of(tier, attached).failure == ""


def test_one_that_is_stopped_is_killed(tier: MemoryTier) -> None:
    attached = tier.host.attach("/a", "quiet", options=ObserverOptions(restart_delays_s=(), pre_commit_limit_s=0.3))
    os.kill(state_of(tier, attached).pid or 0, signal.SIGSTOP)
    tier.put("/a/x", b"")
    assert "took longer than 0.3 s" in quarantined(tier, attached).failure


def test_failures_leave_no_descriptor(tier: MemoryTier) -> None:
    attached = tier.host.attach("/a", "probe", options=ObserverOptions(restart_delays_s=()))
    counts = []
    for content in ["raise", "garbage 474554202f20485454502f312e310d0a", "exit 1", "raise", "crash", "raise"]:
        tier.put("/a/x", content.encode())
        quarantined(tier, attached)
        until(lambda: not threading.active_count() > 2)
        until(lambda: tier.host._find(attached)._process._reaped)
        counts.append(until(lambda: len(os.listdir("/proc/self/fd"))))
        tier.host.resume(attached)
        tier.put("/b/x", b"")
        until(lambda: state_of(tier, attached).state == "running")
    assert max(counts) - min(counts) <= 1, counts


def test_detached_while_it_starts(tier: MemoryTier) -> None:
    attached = tier.host.attach("/a", "probe", {"start": "endless"}, wait=False)
    pid = until(lambda: tier.host._find(attached)._process).pid
    start_s = time.monotonic()
    tier.host.detach(attached, timeout_s=0.3)
    assert time.monotonic() - start_s < 3
    until(lambda: is_gone(pid))


def test_it_does_not_end_with_the_thread_that_attached_it(tier: MemoryTier) -> None:
    thread = threading.Thread(target=tier.host.attach, args=("/a", "probe"))
    thread.start()
    thread.join(TIMEOUT_S)
    for _ in range(10):
        with pytest.raises(Vetoed):
            tier.put("/a/x", b"veto it is there")


@pytest.mark.parametrize("name", ["probe", "closed"])
def test_closed_lets_nothing_pass_and_says_so(tier: MemoryTier, name: str) -> None:
    options = ObserverOptions(restart_delays_s=(), on_failure="closed" if name == "probe" else None)
    attached = tier.host.attach("/a", name, options=options)
    assert state_of(tier, attached).on_failure == "closed"
    for _ in range(2):
        with pytest.raises(ObserverFailed, match=r"/a/x is refused.*failed: ValueError: mine.*[Rr]esume or detach"):
            tier.put("/a/x", b"raise mine")
    assert tier.stored == {}
    tier.put("/b/x", b"raise mine")
    tier.host.resume(attached)
    tier.put("/a/x", b"fine")
    tier.host.detach(attached)
    tier.put("/a/x", b"raise mine")


def test_an_endless_post_commit_is_killed_and_delivered_again(tier: MemoryTier, journal: Journal) -> None:
    options = ObserverOptions(restart_delays_s=(0.0,), post_commit_limit_s=0.5)
    attached = tier.host.attach("/a", "probe", {"log": journal.path}, options)
    other = tier.host.attach("/", "probe", {"log": journal.path, "tag": "other"}, options)
    start_s = time.monotonic()
    tier.put("/a/1", b"")
    tier.put("/a/2", b"", {"post": "endless"})
    assert time.monotonic() - start_s < 0.4, "a writer waited"
    state = quarantined(tier, attached)
    assert state.failure_count == 2
    assert "post_commit of probe of /a took longer than 0.5 s" in state.failure
    assert "in endless\n" in state.traceback
    mine = [note for note in journal.notes("post") if note["tag"] is None]
    assert sum("/a/2" in [path for path, _, _ in note["post"]] for note in mine) == 2
    assert mine[-1]["again"] is True
    # The other one fails at the same file, in a process of its own, and writers go on.
    assert quarantined(tier, other).pid != state.pid or state.pid is None
    tier.put("/a/3", b"")
    assert "/a/3" in tier.stored


def test_what_was_committed_meanwhile_is_delivered_after_a_resume(tier: MemoryTier, journal: Journal) -> None:
    attached = tier.host.attach("/a", "probe", {"log": journal.path}, NEVER)
    tier.put("/a/0", b"", {"post": "exit 1"})
    quarantined(tier, attached)
    for number in range(1, 700):
        tier.put(f"/a/{number}", b"")
    tier.put("/a/0", b"")  # over the one that it fails at
    assert not tier.host.flush(TIMEOUT_S)
    tier.host.resume(attached)
    until(lambda: tier.host.flush(TIMEOUT_S))
    seen = journal.delivered()
    assert seen[0] == "/a/0"
    assert seen[-1] == "/a/0"
    assert [path for path in seen if path != "/a/0"] == [f"/a/{number}" for number in range(1, 700)]
    assert state_of(tier, attached).cursor == 701


def test_killed_from_outside_it_comes_back_and_misses_nothing(tier: MemoryTier, journal: Journal) -> None:
    attached = tier.host.attach("/a", "probe", {"log": journal.path}, ObserverOptions(restart_delays_s=(0.0,) * 8))
    writer_ended = threading.Event()

    def write() -> None:
        for number in range(400):
            tier.put(f"/a/{number:03}", b"")
        writer_ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(3):
        pid = until(lambda: state_of(tier, attached).pid)
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: state_of(tier, attached).pid not in (None, pid))
    writer.join(TIMEOUT_S)
    assert tier.host.flush(TIMEOUT_S)
    assert "was killed by SIGKILL" in state_of(tier, attached).failure
    assert state_of(tier, attached).failure_count == 3
    assert set(journal.delivered()) == {f"/a/{number:03}" for number in range(400)}


def test_killed_while_nothing_happens_it_is_seen(tier: MemoryTier) -> None:
    attached = tier.host.attach("/a", "quiet", options=NEVER)
    os.kill(state_of(tier, attached).pid or 0, signal.SIGKILL)
    assert quarantined(tier, attached).failure == "the process of quiet of /a was killed by SIGKILL"


def test_restarts_are_few(tier: MemoryTier, journal: Journal) -> None:
    attached = tier.host.attach("/a", "probe", {"log": journal.path}, AT_ONCE)
    for failures in (1, 2, 3):
        until(lambda: state_of(tier, attached).state == "running")
        tier.put("/a/x", b"raise")
        until(lambda failures=failures: state_of(tier, attached).failure_count == failures)
    assert quarantined(tier, attached).failure_count == 3
    assert len(journal.notes("started")) == 3
    tier.host.resume(attached)
    until(lambda: state_of(tier, attached).state == "running")


def test_more_than_the_queue_holds_comes_from_the_replay(
    tier: MemoryTier, journal: Journal, fifo: Callable[[], None], tmp_path: Path
) -> None:
    options = ObserverOptions(queue_count=10, batch_count=7)
    attached = tier.host.attach("/a", "probe", {"log": journal.path}, options)
    tier.put("/a/first", b"", {"post": f"wait {tmp_path / 'fifo'}"})
    paths = [f"/a/{number:03}" for number in range(200)]
    for path in paths:
        tier.put(path, b"")
    state = state_of(tier, attached)
    assert state.queued_count <= 10
    assert state.behind
    fifo()
    assert tier.host.flush(TIMEOUT_S)
    assert journal.delivered() == ["/a/first", *paths]
    assert state_of(tier, attached).missed_count == 0


def test_without_a_replay_what_is_missed_is_counted(journal: Journal, fifo: Callable[[], None], tmp_path: Path) -> None:
    with MemoryTier(replays=False) as tier:
        attached = tier.host.attach("/a", "probe", {"log": journal.path}, ObserverOptions(queue_count=10))
        tier.put("/a/first", b"", {"post": f"wait {tmp_path / 'fifo'}"})
        for number in range(50):
            tier.put(f"/a/{number}", b"")
        fifo()
        assert tier.host.flush(TIMEOUT_S)
        assert state_of(tier, attached).missed_count == 41
        assert len(journal.delivered()) == 10


def test_a_replay_that_fails_is_tried_again(journal: Journal) -> None:
    with MemoryTier() as tier:
        for number in range(5):
            tier.put(f"/a/{number}", b"")
        failed = threading.Event()
        replay = tier.replay

        def failing(*arguments: Any) -> Any:
            if not failed.is_set():
                failed.set()
                raise OSError("the catalog is away")
            return replay(*arguments)

        tier.host._replay = failing
        tier.host.attach("/a", "probe", {"log": journal.path}, since=0)
        assert tier.host.flush(TIMEOUT_S)
        assert failed.is_set()
        assert journal.delivered() == [f"/a/{number}" for number in range(5)]


def test_what_it_prints_does_not_stop_it_and_its_end_is_kept(tier: MemoryTier) -> None:
    attached = tier.host.attach("/a", "probe", options=NEVER)
    tier.put("/a/x", b"print here")
    until(lambda: state_of(tier, attached).output.endswith("the end here\n"))
    assert len(state_of(tier, attached).output) <= 16_000
    tier.put("/a/x", b"", {"post": "print there"})
    assert tier.host.flush(TIMEOUT_S)
    assert state_of(tier, attached).failure == ""


@pytest.mark.parametrize("kind", ["raise", "endless", "nonsense", "exit-1"])
def test_a_failing_resolve_is_an_error_and_then_nothing(tier: MemoryTier, kind: str) -> None:
    attached = tier.host.attach("/a", "probe", options=ObserverOptions(restart_delays_s=(), resolve_limit_s=0.5))
    with pytest.raises(ObserverFailed, match=f"/a/{kind} cannot be made: "):
        tier.host.resolve(f"/a/{kind}")
    quarantined(tier, attached)
    assert tier.host.resolve("/a/bytes") is None


# ---- the server's own end


SERVER = """
import sys, time
from storage_tier.testing.memory import MemoryTier
tier = MemoryTier()
for content in sys.argv[1:]:
    attached = tier.host.attach("/" + content, "probe")
    print(tier.host.attachments()[-1].pid, flush=True)
import threading
for content in sys.argv[1:]:
    threading.Thread(target=tier.put, args=("/" + content + "/x", content.encode()), daemon=True).start()
print("all", flush=True)
time.sleep(1000)
"""


def test_what_a_failing_one_has_started_goes_with_it(tier: MemoryTier) -> None:
    attached = tier.host.attach("/a", "probe", options=ObserverOptions(restart_delays_s=(), pre_commit_limit_s=0.5))
    tier.put("/a/x", b"child")
    found = re.search(r"child (\d+)", quarantined(tier, attached).traceback)
    assert found is not None
    until(lambda: is_gone(int(found[1])), "a grandchild goes on")


def test_killed_the_server_leaves_no_process() -> None:
    contents = ["fine", "endless", "endless_in_c", "memory", "child"]
    server = subprocess.Popen([sys.executable, "-c", SERVER, *contents], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    watched: list[int] = []
    try:
        pids = [int(server.stdout.readline()) for _ in contents]
        assert server.stdout.readline() == "all\n"
        pids += until(lambda: children_of(pids[-1]))
        watched = [os.pidfd_open(pid) for pid in pids]
    finally:
        server.kill()
        server.communicate(timeout=TIMEOUT_S)
    assert len(watched) == len(contents) + 1
    for fd in watched:
        # Far less than any limit of a call: the kernel does it.
        assert select.select([fd], [], [], 3.0)[0], "an observer outlived its server"
        os.close(fd)
