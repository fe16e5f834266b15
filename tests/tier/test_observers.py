"""Observers in their processes: hooks, order, loops, failures of every kind, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from storage_tier.errors import DeadlineExceeded, InvalidRequest
from storage_tier.observers import (
    AttachmentState,
    CommittedFile,
    Context,
    FileInfo,
    Observer,
    ObserverFailed,
    ObserverNotFound,
    ObserverOptions,
    OpenFile,
    PendingFile,
    ResolvedFile,
    Veto,
    Vetoed,
)
from storage_tier.testing.memory import MemoryTier

TIMEOUT_S = 60.0

# Registered as another package would. What a probe does is said by the files: the content of a file for pre_commit,
# its metadata for post_commit, the path for resolve.
EXAMPLES = '''
import ctypes, fcntl, json, os, re, signal, sys, threading, time
from storage_tier.errors import InvalidRequest
from storage_tier.observers import Observer, ResolvedFile, Veto

def endless():
    while True:
        pass

def endless_in_c():
    re.match(r"(a+)+$", "a" * 64 + "b")  # does not give the interpreter lock back

def lanes():
    import socket
    return [socket.socket(fileno=os.dup(int(number))) for number in sys.argv[1:]]

def act(what):
    name, _, rest = what.partition(" ")
    if name == "raise":
        raise ValueError(rest or "it said so")
    if name == "endless":
        endless()
    if name == "endless_in_c":
        endless_in_c()
    if name == "memory":
        kept = []
        while True:
            kept.append(bytearray(8 << 20))
    if name == "child":
        import subprocess
        child = subprocess.Popen(["sleep", "1000"])
        print("child", child.pid, flush=True)
        endless()
    if name == "exit":
        os._exit(int(rest))
    if name == "crash":
        ctypes.string_at(1)
    if name == "recurse":
        act(what)
    if name == "print":
        for _ in range(100_000):
            print("x" * 80)
        print("the end", rest, flush=True)
    if name == "garbage":
        for lane in lanes():
            lane.send(bytes.fromhex(rest))
        endless()
    if name == "closed":
        lanes()
        for number in sys.argv[1:]:
            os.close(int(number))
        time.sleep(1000)
    if name == "wait":
        os.read(os.open(rest, os.O_RDONLY), 1)

class Probe(Observer):
    @classmethod
    def from_parameters(cls, parameters):
        unknown = set(parameters) - {"log", "start", "tag", "writes", "stop"}
        if unknown:
            raise InvalidRequest(f"a probe does not know {sorted(unknown)[0]!r}")
        if parameters.get("start") == "bad":
            raise InvalidRequest("a probe cannot start badly: give something else")
        if parameters.get("start") == "raise":
            raise RuntimeError("in from_parameters")
        return cls(parameters)

    def __init__(self, parameters):
        self.parameters = parameters

    def note(self, **what):
        if "log" in self.parameters:
            line = json.dumps({"tag": self.parameters.get("tag"), **what}) + "\\n"
            with open(self.parameters["log"], "a") as log:
                log.write(line)

    def start(self, env):
        self.env = env
        act(self.parameters.get("start", ""))
        env.log.info("a probe on %s with %s", env.directory, dict(env.facts))
        self.note(started=os.getpid())

    def stop(self):
        self.note(stopped=os.getpid())
        act(self.parameters.get("stop", ""))

    def pre_commit(self, context, file):
        access = fcntl.fcntl(file._fd, fcntl.F_GETFL) & os.O_ACCMODE
        assert access == os.O_RDONLY, "it could change what is being committed"
        what = bytes(file.data[:200]).decode(errors="replace")
        self.note(pre=file.path, size=file.size_bytes, metadata=dict(file.metadata))
        if what.startswith("veto"):
            return Veto(what[5:])
        if what == "answer nonsense":
            return 17
        if what == "write":
            context.env.write("/anywhere", b"")
        if what.startswith("read "):
            with context.env.open(what[5:]) as other:
                return Veto(bytes(other.data).decode())
        act(what)

    def post_commit(self, context, batch):
        self.note(
            post=[(file.path, file.version, file.sequence) for file in batch],
            origin=context.origin, again=context.redelivered,
        )
        for file in batch:
            act(file.metadata.get("post", ""))
        for target in self.parameters.get("writes", []):
            context.env.write(target, b"written", {"by": self.parameters.get("tag", "")})

    def resolve(self, context, path):
        kind = path.rpartition("/")[2]
        if kind == "bytes":
            return ResolvedFile(b"seven", 7, {"a": 1})
        if kind == "large":
            return ResolvedFile(bytes(range(256)) * 40_000, 8)
        if kind == "memfd":
            fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
            os.write(fd, b"nine")
            return ResolvedFile(fd, 9)
        if kind == "file":
            return ResolvedFile(os.open("/proc/self/exe", os.O_RDONLY), 10)
        if kind == "nonsense":
            return "nonsense"
        act(kind.replace("-", " "))
        return None

class Closed(Probe):
    on_failure = "closed"

class Quiet(Observer):
    """Only looks, and says nothing."""
    @classmethod
    def from_parameters(cls, parameters):
        return cls()

    def pre_commit(self, context, file):
        return None

class Background(Probe):
    """Writes from a thread of its own, which it must not."""
    def start(self, env):
        def run():
            try:
                env.write("/x", b"")
            except InvalidRequest as error:
                env.log.info("refused: %s", error)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

not_an_observer = {"a": 1}
'''

ENTRY_POINTS = """
[storage_tier.observers]
probe = observer_examples:Probe
closed = observer_examples:Closed
quiet = observer_examples:Quiet
background = observer_examples:Background
thing = observer_examples:not_an_observer
lost = observer_examples:NotThere
twice = observer_examples:Probe
"""

NEVER = ObserverOptions(restart_delays_s=())
AT_ONCE = ObserverOptions(restart_delays_s=(0.0, 0.0))


@pytest.fixture(scope="module", autouse=True)
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package with observers, installed for this process and its children."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "observer_examples.py").write_text(EXAMPLES)
    for name, points in (("observer_examples", ENTRY_POINTS), ("other", "[storage_tier.observers]\ntwice = a:B\n")):
        info = folder / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        yield folder


@pytest.fixture
def tier() -> Iterator[MemoryTier]:
    with MemoryTier(facts={"address": "here"}) as made:
        yield made


class Journal:
    """What the probes have noted."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def notes(self, key: str, tag: str | None = None) -> list[dict[str, Any]]:
        try:
            lines = Path(self.path).read_text().splitlines()
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in lines]
        return [note for note in found if key in note and tag in (None, note["tag"])]

    def batches(self, tag: str | None = None) -> list[list[str]]:
        return [[path for path, _, _ in note["post"]] for note in self.notes("post", tag)]

    def delivered(self, tag: str | None = None) -> list[str]:
        return [path for batch in self.batches(tag) for path in batch]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A FIFO that a probe waits on; calling the fixture lets one wait end."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)  # opening it waits for nobody, and what is written stays in it
    yield lambda: (os.write(fd, b"."), None)[1]
    os.close(fd)


def state_of(tier: MemoryTier, attached: str) -> AttachmentState:
    (found,) = [state for state in tier.host.attachments() if state.id == attached]
    return found


def until(condition: Callable[[], Any], what: str = "it did not happen") -> Any:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, what
        time.sleep(0.005)
    return found


def quarantined(tier: MemoryTier, attached: str) -> AttachmentState:
    until(lambda: state_of(tier, attached).state == "quarantined", "it was not quarantined")
    return state_of(tier, attached)


def stat_of(pid: int) -> list[str]:
    """The state, the parent and more of a process; the state 'X' when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X", "0"]


def children_of(pid: int) -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(stat_of(int(name))[1]) == pid]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped has ended too."""
    return stat_of(pid)[0] in "XZ"


# ---- the hooks


def test_a_veto_reaches_the_writer_and_is_no_failure(tier: MemoryTier, journal: Journal) -> None:
    attached = tier.host.attach("/a", "probe", {"log": journal.path})
    with pytest.raises(Vetoed, match=r"^not on a Sunday$"):
        tier.put("/a/x", b"veto not on a Sunday")
    assert tier.stored == {}
    tier.put("/a/x", b"fine", {"worker": 3, "note": "é"})
    state = state_of(tier, attached)
    assert (state.checked_count, state.vetoed_count, state.failure_count) == (2, 1, 0)
    assert state.state == "running"
    assert journal.notes("pre")[1] == {
        "tag": None, "pre": "/a/x", "size": 4, "metadata": {"worker": 3, "note": "é"}
    }  # fmt: skip


def test_an_empty_veto_is_a_veto(tier: MemoryTier) -> None:
    tier.host.attach("/a", "probe")
    with pytest.raises(Vetoed, match="does not say why"):
        tier.put("/a/x", b"veto")


def test_observers_of_all_directories_above_are_asked_in_the_order_they_came(
    tier: MemoryTier, journal: Journal
) -> None:
    for directory in ("/a/b", "/", "/a", "/ab", "/a/b/x"):
        tier.host.attach(directory, "probe", {"log": journal.path, "tag": directory})
    tier.put("/a/b/c", b"")
    assert [note["tag"] for note in journal.notes("pre")] == ["/a/b", "/", "/a"]
    assert tier.host.flush(TIMEOUT_S)
    assert {note["tag"] for note in journal.notes("post")} == {"/a/b", "/", "/a"}


def test_the_first_veto_ends_the_asking(tier: MemoryTier, journal: Journal) -> None:
    for tag in "12":
        tier.host.attach("/a", "probe", {"log": journal.path, "tag": tag})
    with pytest.raises(Vetoed):
        tier.put("/a/x", b"veto no, no")
    assert [note["tag"] for note in journal.notes("pre")] == ["1"]


def test_the_bytes_are_those_of_the_temporary_and_read_only(tier: MemoryTier, tmp_path: Path) -> None:
    tier.host.attach("/a", "probe")
    fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    try:
        os.write(fd, bytes(5000) + b"veto it began at 5000" + b"after")
        info = FileInfo("/a/x", 0, len("veto it began at 5000"))
        with pytest.raises(Vetoed, match=r"^it began at 5000$"):
            tier.host.before_commit(PendingFile(info, fd, offset_bytes=5000))
        # The writer's position is its own.
        assert os.lseek(fd, 0, os.SEEK_CUR) == 5026
    finally:
        os.close(fd)


def test_commits_come_in_order_and_in_batches(tier: MemoryTier, journal: Journal) -> None:
    tier.host.attach("/a", "probe", {"log": journal.path}, ObserverOptions(batch_count=100))
    paths = [f"/a/{number % 7}" for number in range(500)]
    for path in paths:
        tier.put(path, b"")
    assert tier.host.flush(TIMEOUT_S)
    assert journal.delivered() == paths
    assert max(len(batch) for batch in journal.batches()) <= 100
    assert len(journal.batches()) < 500, "nothing came in a batch"
    sequences = [sequence for note in journal.notes("post") for _, _, sequence in note["post"]]
    assert sequences == list(range(1, 501))
    assert next(iter(tier.cursors.values())) == 500


def test_resolve_gives_bytes_that_nobody_can_change(tier: MemoryTier) -> None:
    attached = tier.host.attach("/a", "probe")
    for kind, content, version in (
        ("bytes", b"seven", 7),
        ("memfd", b"nine", 9),
        ("large", bytes(range(256)) * 40_000, 8),
    ):
        found = tier.host.resolve(f"/a/{kind}")
        assert found is not None
        try:
            assert os.pread(found.fd, 1 << 24, found.offset_bytes) == content
            assert (found.info.version, found.info.size_bytes) == (version, len(content))
            with pytest.raises(PermissionError):
                os.ftruncate(found.fd, 1)
        finally:
            os.close(found.fd)
    assert tier.host.resolve("/a/nothing") is None
    assert tier.host.resolve("/b/bytes") is None
    assert state_of(tier, attached).resolved_count == 3


def test_what_cannot_be_sealed_is_no_virtual_file(tier: MemoryTier) -> None:
    attached = tier.host.attach("/a", "probe", options=NEVER)
    with pytest.raises(ObserverFailed, match="cannot be sealed"):
        tier.host.resolve("/a/file")
    assert "cannot be sealed" in quarantined(tier, attached).failure


def test_the_environment_reads_in_pre_commit_and_does_not_write(tier: MemoryTier) -> None:
    tier.put("/b/y", b"what was read")
    attached = tier.host.attach("/a", "probe", options=NEVER)
    with pytest.raises(Vetoed, match=r"^what was read$"):
        tier.put("/a/x", b"read /b/y")
    tier.put("/a/x", b"write")
    assert "InvalidRequest: pre_commit and resolve may only read" in quarantined(tier, attached).traceback
    assert "/anywhere" not in tier.stored


def test_the_environment_is_for_hooks_only(tier: MemoryTier) -> None:
    attached = tier.host.attach("/a", "background")
    until(lambda: "outside of its hooks" in state_of(tier, attached).output)


def test_facts_reach_the_observer_and_its_log_reaches_the_status(tier: MemoryTier) -> None:
    attached = tier.host.attach("/a", "probe")
    until(lambda: "a probe on /a with {'address': 'here'}" in state_of(tier, attached).output)


# ---- loops


def test_its_own_writes_do_not_call_it(tier: MemoryTier, journal: Journal) -> None:
    tier.host.attach("/a", "probe", {"log": journal.path, "writes": ["/a/own"]})
    tier.put("/a/x", b"")
    assert tier.host.flush(TIMEOUT_S)
    assert tier.stored["/a/own"].file.origin == ("probe@/a",)
    assert journal.delivered() == ["/a/x"]
    assert [note["pre"] for note in journal.notes("pre")] == ["/a/x"]


def test_its_own_writes_do_not_call_it_when_they_are_replayed(tier: MemoryTier, journal: Journal) -> None:
    attached = tier.host.attach("/a", "probe", {"log": journal.path, "writes": ["/a/own"]})
    tier.put("/a/x", b"")
    assert tier.host.flush(TIMEOUT_S)
    tier.host.detach(attached)
    tier.host.attach("/a", "probe", {"log": journal.path}, since=0)
    assert tier.host.flush(TIMEOUT_S)
    assert journal.delivered() == ["/a/x", "/a/x"]


def test_a_loop_of_two_ends(tier: MemoryTier, journal: Journal) -> None:
    for tag, directory, target in (("1", "/a", "/b/from1"), ("2", "/b", "/a/from2")):
        tier.host.attach(directory, "probe", {"log": journal.path, "tag": tag, "writes": [target]})
    tier.put("/a/x", b"")
    assert until(lambda: tier.stored.get("/a/from2"))
    assert tier.host.flush(TIMEOUT_S)
    assert journal.delivered("1") == ["/a/x"]
    assert journal.delivered("2") == ["/b/from1"]
    assert tier.stored["/a/from2"].file.origin == ("probe@/a", "probe@/b")


def test_a_batch_has_one_origin(tier: MemoryTier, journal: Journal, fifo: Callable[[], None], tmp_path: Path) -> None:
    tier.host.attach("/a", "probe", {"log": journal.path})
    tier.put("/a/0", b"", {"post": f"wait {tmp_path / 'fifo'}"})
    until(lambda: journal.batches() == [["/a/0"]])
    for path, origin in (("/a/1", ()), ("/a/2", ()), ("/a/3", ("z@/",)), ("/a/4", ())):
        tier.put(path, b"", origin=origin)
    fifo()
    assert tier.host.flush(TIMEOUT_S)
    assert journal.batches() == [["/a/0"], ["/a/1", "/a/2"], ["/a/3"], ["/a/4"]]


def test_two_that_write_into_each_other_at_once_do_not_wait_for_each_other(tier: MemoryTier) -> None:
    for directory, target in (("/a", "/b/w"), ("/b", "/a/w")):
        tier.host.attach(directory, "probe", {"writes": [target] * 5})
    threads = [threading.Thread(target=lambda top=top: [tier.put(f"/{top}/x", b"") for _ in range(20)]) for top in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert tier.host.flush(TIMEOUT_S)
    assert [state.failure for state in tier.host.attachments()] == ["", ""]


# ---- attaching


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        ("no_such", {}, "there is no observer 'no_such' on this server: it knows .*probe.*validate"),
        ("twice", {}, "registered more than once"),
        ("../../etc/passwd", {}, "there is no observer"),
        ("probe", {"nonsense": 1}, "a probe does not know 'nonsense'"),
        ("probe", {"start": "bad"}, "a probe cannot start badly"),
        ("probe", [1], "parameters are an object"),
        ("probe", {"start": object()}, "cannot be written as JSON"),
        ("probe", {"start": float("nan")}, "cannot be written as JSON"),
        ("probe", {"start": "x" * 70_000}, "at most 65,536"),
    ],
)
def test_what_cannot_be_attached_is_refused(tier: MemoryTier, name: str, parameters: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        tier.host.attach("/a", name, parameters)
    assert tier.host.attachments() == []


@pytest.mark.parametrize(
    ("name", "start", "sentence"),
    [
        ("probe", "raise", "RuntimeError: in from_parameters"),
        ("probe", "raise in start", "ValueError: in start"),
        ("probe", "exit 3", "ended with exit code 3 during start"),
        ("probe", "crash", "was killed by SIGSEGV during start"),
        ("thing", "", "and no Observer"),
        ("lost", "", "AttributeError"),
    ],
)
def test_what_fails_to_start_is_not_attached(tier: MemoryTier, name: str, start: str, sentence: str) -> None:
    with pytest.raises(ObserverFailed, match=sentence):
        tier.host.attach("/a", name, {"start": start})
    assert tier.host.attachments() == []


def test_an_endless_start_ends(tier: MemoryTier) -> None:
    with pytest.raises(ObserverFailed, match=r"(?s)start of probe of /a took longer than 1 s.*in endless"):
        tier.host.attach("/a", "probe", {"start": "endless"}, ObserverOptions(start_limit_s=1.0))


def test_without_waiting_what_fails_is_shown(tier: MemoryTier) -> None:
    attached = tier.host.attach("/a", "no_such", wait=False, attachment_id="kept")
    assert attached == "kept"
    assert "there is no observer" in quarantined(tier, attached).failure
    tier.put("/a/x", b"")


def test_a_guard_that_does_not_start_lets_nothing_pass(tier: MemoryTier) -> None:
    tier.host.attach("/a", "no_such", options=ObserverOptions(on_failure="closed"), wait=False)
    with pytest.raises(ObserverFailed, match="there is no observer 'no_such'"):
        tier.put("/a/x", b"")
    tier.put("/b/x", b"")


def test_a_guard_that_is_being_started_is_waited_for(tier: MemoryTier) -> None:
    tier.host.attach("/a", "closed", options=ObserverOptions(on_failure="closed"), wait=False)
    with pytest.raises(Vetoed, match=r"^it was asked$"):
        tier.put("/a/x", b"veto it was asked")


def test_ids_are_taken_once_and_asked_for(tier: MemoryTier) -> None:
    tier.host.attach("/a", "quiet", attachment_id="one")
    with pytest.raises(InvalidRequest, match="already"):
        tier.host.attach("/b", "quiet", attachment_id="one")
    for call in (tier.host.detach, tier.host.resume):
        with pytest.raises(ObserverNotFound, match="'other'"):
            call("other")
    tier.host.detach("one")
    with pytest.raises(ObserverNotFound):
        tier.host.detach("one")


def test_detaching_stops_it_in_order(tier: MemoryTier, journal: Journal) -> None:
    attached = tier.host.attach("/a", "probe", {"log": journal.path})
    pid = state_of(tier, attached).pid
    assert pid is not None
    tier.host.detach(attached)
    assert [note["stopped"] for note in journal.notes("stopped")] == [pid]
    assert is_gone(pid)
    tier.put("/a/x", b"veto nobody is asked")


@pytest.mark.parametrize("stop", ["endless", "raise", "exit 1", "endless_in_c"])
def test_one_that_does_not_stop_is_killed(tier: MemoryTier, stop: str) -> None:
    attached = tier.host.attach("/a", "probe", {"stop": stop})
    pid = state_of(tier, attached).pid
    start_s = time.monotonic()
    tier.host.detach(attached, timeout_s=0.5)
    assert time.monotonic() - start_s < 4
    assert pid is not None
    assert is_gone(pid)


def test_nothing_is_attached_after_the_end(tier: MemoryTier) -> None:
    tier.host.close()
    with pytest.raises(InvalidRequest, match="this server ends"):
        tier.host.attach("/a", "quiet")


def test_a_hundred_times_leave_no_descriptor(tier: MemoryTier) -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    def attach_ten() -> None:
        def one() -> None:
            tier.host.detach(tier.host.attach("/a", "quiet"))

        threads = [threading.Thread(target=one) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)

    attach_ten()
    before = count()
    for _ in range(9):
        attach_ten()
    until(lambda: count() == before, "a descriptor or a thread is left")


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


# ---- built into the server


class Inside(Observer):
    """Vetoes by its own rules, knows one virtual file, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pre_commit(self, context: Context, file: OpenFile) -> Veto | None:
        if bytes(file.data) == b"raise":
            raise ValueError("it said so")
        return Veto("not here") if bytes(file.data) == b"veto" else None

    def post_commit(self, context: Context, batch: Sequence[CommittedFile]) -> None:
        self.told += [file.path for file in batch]

    def resolve(self, context: Context, path: str) -> ResolvedFile | None:
        return ResolvedFile(b"inside", 7) if path == "/in/side" else None

    def list_virtual(self, context: Context, directory: str) -> Sequence[FileInfo]:
        if directory != "/in":
            raise ValueError("only of /in")
        return [FileInfo("/in/side", 7, 6)]


def test_one_that_is_built_in_is_asked_first_and_its_failure_is_a_refusal(tier: MemoryTier) -> None:
    inside = Inside()
    tier.host.build_in("/in", "inside", inside)
    tier.put("/in/x", b"fine")
    tier.put("/out/x", b"veto")
    tier.put("/in/own", b"veto", origin=("inside@/in",))
    with pytest.raises(Vetoed, match=r"^not here$"):
        tier.put("/in/y", b"veto")
    with pytest.raises(ObserverFailed, match="pre_commit of /in/y by inside failed: ValueError: it said so"):
        tier.put("/in/y", b"raise")
    assert inside.told == ["/in/x"]
    asked = [tier.host.asks(*file) for file in (("/in/x", ()), ("/out/x", ()), ("/in/x", ("inside@/in",)))]
    assert asked == [True, False, False]
    found = tier.host.resolve("/in/side")
    assert found is not None
    assert (os.pread(found.fd, 100, 0), found.info.version) == (b"inside", 7)
    os.close(found.fd)
    assert [info.path for info in tier.host.list_virtual("/in")] == ["/in/side"]
    assert tier.host.list_virtual("/in/deeper") == []
    assert tier.host.list_virtual("/out") == []
    [state] = tier.host.built_in()
    assert (state.name, state.directory, state.state, state.pid) == ("inside", "/in", "running", os.getpid())
    assert (state.checked_count, state.vetoed_count, state.delivered_count, state.failure_count) == (2, 1, 1, 2)
    assert tier.host.attachments() == []
