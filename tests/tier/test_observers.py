"""Observers in their processes: hooks, order, loops, and one that is built into the server."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from storage_tier.observers import (
    CommittedFile,
    Context,
    FileInfo,
    Observer,
    ObserverFailed,
    ObserverOptions,
    OpenFile,
    PendingFile,
    ResolvedFile,
    Veto,
    Vetoed,
)
from storage_tier.testing.memory import MemoryTier

from . import observer_probes
from .observer_probes import NEVER, TIMEOUT_S, Journal, quarantined, state_of, until

examples = observer_probes.examples
fifo = observer_probes.fifo
journal = observer_probes.journal
tier = observer_probes.tier


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


def test_commits_come_in_order_and_in_batches(
    tier: MemoryTier, journal: Journal, fifo: Callable[[], None], tmp_path: Path
) -> None:
    tier.host.attach("/a", "probe", {"log": journal.path}, ObserverOptions(batch_count=100))
    paths = [f"/a/{number % 7}" for number in range(500)]
    tier.put(paths[0], b"", {"post": f"wait {tmp_path / 'fifo'}"})
    for path in paths[1:50]:
        tier.put(path, b"")
    fifo()
    for path in paths[50:]:
        tier.put(path, b"")
    assert tier.host.flush(TIMEOUT_S)
    assert journal.delivered() == paths
    assert max(len(batch) for batch in journal.batches()) <= 100
    assert len(journal.batches()) <= 500 - 48, "what had waited did not come in a batch"
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
