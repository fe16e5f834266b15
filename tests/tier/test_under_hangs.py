"""Calls of an under-store that hang: they are given up, and nothing late undoes anything."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from storage_tier.errors import UnderUnreachable
from storage_tier.under import files
from storage_tier.under.base import STEP_BYTES, TEMPORARY_NAME
from storage_tier.under.calls import Call, Calls
from storage_tier.under.store import UnderStore

from . import faulty_store
from .faulty_store import LONG_S, SHORT_S, Faulty, Gate, visible, wait_until_idle

faulty = faulty_store.faulty


def test_a_call_that_hangs_is_given_up(faulty: UnderStore) -> None:
    gate = Gate()
    faulty.publish("/a", b"1")
    faulty.publish("/b", b"22")
    Faulty.fault = staticmethod(lambda verb, path: gate() if (verb, path) == ("info", "/root/a") else None)
    begun_s = time.monotonic()
    with pytest.raises(UnderUnreachable, match=r"looking at /a made no progress for 0\.15 s") as caught:
        faulty.info("/a", timeout_s=SHORT_S)
    assert time.monotonic() - begun_s < 5
    assert caught.value.retryable
    assert isinstance(caught.value, ConnectionError)
    assert faulty.status().abandoned_count == faulty.status().running_count == 1
    assert faulty.status().last_error == str(caught.value)
    assert faulty.info("/b").size_bytes == 2, "others go on, on an instance of their own"
    gate.opened.set()
    wait_until_idle(faulty)
    assert faulty.status().abandoned_count == 0
    assert faulty.info("/a").size_bytes == 1


def test_progress_keeps_a_call_alive() -> None:
    calls = Calls(1)

    def work(call: Call) -> int:
        for _ in range(10):
            threading.Event().wait(0.03)  # the work takes this long; nobody is waited for
            call.moved()
        return 7

    assert calls.run("working", work, timeout_s=0.2) == 7


def test_too_many_calls_that_hang(faulty: UnderStore) -> None:
    store = UnderStore("faulty://root", call_count=2)
    gate = Gate()
    Faulty.fault = staticmethod(lambda verb, path: gate())
    for _ in range(2):
        with pytest.raises(UnderUnreachable, match="made no progress"):
            store.info("/a", timeout_s=SHORT_S)
    begun_s = time.monotonic()
    with pytest.raises(UnderUnreachable, match="cannot begin: 2 earlier calls"):
        store.list(timeout_s=LONG_S)
    assert time.monotonic() - begun_s < 5
    gate.opened.set()
    wait_until_idle(store)
    store.close()


def test_a_turn_that_does_not_come() -> None:
    calls, gate = Calls(1), Gate()
    first = threading.Thread(target=calls.run, args=("first", lambda call: gate(), LONG_S))
    first.start()
    assert gate.reached.wait(LONG_S)
    with pytest.raises(UnderUnreachable, match=r"second did not get its turn in 0\.15 s: first is at work"):
        calls.run("second", lambda call: None, SHORT_S)
    gate.opened.set()
    first.join()
    assert calls.running_count == 0


def test_what_hangs_keeps_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first version that is uploaded late must not replace a second one."""
    store, gate, real = UnderStore("memory://under-test"), Gate(), MemoryFileSystem.pipe_file

    def pipe_file(fs: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite") -> None:
        if value == b"first":
            gate()
        real(fs, path, value, mode)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    with pytest.raises(UnderUnreachable, match="made no progress"):
        store.publish("/a", b"first", timeout_s=SHORT_S)
    for verb in (
        lambda: store.publish("/a", b"second"),
        lambda: store.remove("/a"),
        lambda: store.rename("/b", "/a"),
        lambda: store.rename("/a", "/b"),
    ):
        with pytest.raises(UnderUnreachable, match="publishing /a hangs"):
            verb()
    store.publish("/b", b"of another path")
    gate.opened.set()
    wait_until_idle(store)
    store.publish("/a", b"second")
    assert store.read_range("/a", 0, 99) == b"second"
    for path in ("/a", "/b"):
        store.remove(path)
    store.close()


def test_a_given_up_read_writes_no_more(faulty: UnderStore) -> None:
    content = os.urandom(3 * STEP_BYTES)
    faulty.publish("/a", content)
    gate, real = Gate(), MemoryFile.read
    target = bytearray(len(content))

    def read(file: MemoryFile, count: int = -1) -> bytes:
        if file.tell() > 0:
            gate()
        return real(file, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryFile, "read", read)
        with pytest.raises(UnderUnreachable):
            faulty.read_into("/a", memoryview(target), timeout_s=SHORT_S)
        before = bytes(target)
        assert before[:STEP_BYTES] == content[:STEP_BYTES]
        gate.opened.set()
        wait_until_idle(faulty)
    assert target == before


@pytest.mark.parametrize("verb", ["open wb", "write", "info"])
def test_a_given_up_publish_publishes_nothing(faulty: UnderStore, verb: str) -> None:
    gate = Gate()
    faulty.publish("/a", b"before")
    Faulty.fault = staticmethod(lambda found, path: gate() if found == verb else None)
    with pytest.raises(UnderUnreachable):
        faulty.publish("/a", b"after", timeout_s=SHORT_S)
    gate.opened.set()
    wait_until_idle(faulty)
    assert visible() == {"/root/a": b"before"}


def test_the_same_in_a_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, gate = UnderStore(f"file://{directory}"), Gate()
    store.publish("/a", b"before")
    monkeypatch.setattr(files.os, "fsync", lambda fd: gate())
    with pytest.raises(UnderUnreachable):
        store.publish("/a", b"after", timeout_s=SHORT_S)
    gate.opened.set()
    wait_until_idle(store)
    assert (directory / "a").read_bytes() == b"before"
    assert list((directory / TEMPORARY_NAME).iterdir()) == []
    store.close()


def test_a_library_that_hangs_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    monkeypatch.setattr(Faulty, "__init__", lambda self, **options: gate())
    store = UnderStore("faulty://root")
    with pytest.raises(UnderUnreachable):
        store.check(timeout_s=SHORT_S)
    assert store.status().traits is None
    store.close()
    gate.opened.set()
    wait_until_idle(store)
