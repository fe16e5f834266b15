"""Under-stores that fail, fill up and die in the middle: nothing half is seen."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from storage_tier.errors import (
    OutOfMemory,
    TierError,
    UnderChanged,
    UnderFailed,
    UnderFull,
    UnderRefused,
    UnderUnreachable,
)
from storage_tier.under import files
from storage_tier.under.base import STEP_BYTES, TEMPORARY_NAME, FileRange
from storage_tier.under.store import UnderStore

from . import faulty_store
from .faulty_store import LONG_S, Faulty, visible

faulty = faulty_store.faulty


def raising(verb: str, error: Exception) -> Callable[[str, str], None]:
    def fault(found: str, path: str) -> None:
        if found == verb:
            raise error

    return staticmethod(fault)


# ---- errors in the middle


@pytest.mark.parametrize("verb", ["open wb", "write", "cp", "info"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UnderFull),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), UnderFull),
        (OSError(errno.EIO, "Input/output error"), UnderUnreachable),
        (PermissionError("Access Denied"), UnderRefused),
        (TimeoutError("timed out"), UnderUnreachable),
        (ValueError("a bug"), UnderFailed),
    ],
)
def test_a_publish_that_fails(faulty: UnderStore, verb: str, error: Exception, expected: type[TierError]) -> None:
    faulty.publish("/a", b"before")
    Faulty.fault = raising(verb, error)
    with pytest.raises(expected, match="publishing /a") as caught:
        faulty.publish("/a", b"after")
    assert caught.value.retryable == (expected in (UnderFull, UnderUnreachable))
    Faulty.fault = staticmethod(lambda verb, path: None)
    assert visible() == {"/root/a": b"before"}
    faulty.publish("/a", b"after")
    assert visible() == {"/root/a": b"after"}


def test_a_crash_in_the_middle_and_the_next_start(faulty: UnderStore) -> None:
    """As if the process had died: nothing of what follows the fault happens, the tidying neither."""
    faulty.publish("/a", b"before")
    dead = OSError(errno.EIO, "dead")
    Faulty.fault = staticmethod(lambda verb, path: [].pop() if verb in ("write", "rm") else None)
    with pytest.raises(UnderFailed):
        faulty.publish("/a", b"after", timeout_s=LONG_S)
    Faulty.fault = raising("nothing", dead)
    assert len(visible()) == 2
    assert [info.path for info in faulty.list()] == ["/a"]
    assert faulty.read_range("/a", 0, 99) == b"before"
    assert faulty.clean() == 0, "it may be another server's that is at work"
    assert faulty.clean(older_than_s=0) == 1
    assert visible() == {"/root/a": b"before"}


@pytest.mark.parametrize("source", ["bytes", "file"])
def test_a_full_disk(directory: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    store, big = UnderStore(f"file://{directory}/under"), directory / "big"
    (directory / "under").mkdir()
    store.publish("/a", b"before")
    content = os.urandom(STEP_BYTES + 1)
    big.write_bytes(content)
    for name in ("write", "sendfile"):
        real, calls = getattr(os, name), []

        def full(*arguments: int, real: Callable[..., int] = real, calls: list[int] = calls) -> int:
            calls.append(1)
            if len(calls) > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        monkeypatch.setattr(files.os, name, full)
    with pytest.raises(UnderFull, match="found no room"):
        store.publish("/a", content if source == "bytes" else FileRange(big, 0, len(content)))
    assert (directory / "under/a").read_bytes() == b"before"
    assert list((directory / "under" / TEMPORARY_NAME).iterdir()) == []
    store.close()


def test_no_room_here_is_not_no_room_there(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = UnderStore(f"file://{directory}")
    store.publish("/a", b"1")

    def full(*arguments: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "sendfile", full)
    with (directory / "target").open("wb") as target, pytest.raises(OutOfMemory, match="no room for it in memory"):
        store.read_into("/a", target.fileno())
    store.close()


def test_an_object_that_changes_while_it_is_read(faulty: UnderStore, directory: Path) -> None:
    faulty.publish("/a", b"x" * (2 * STEP_BYTES))
    other = MemoryFileSystem()
    looked = []

    def fault(verb: str, path: str) -> None:
        looked.append(verb)
        if verb == "info" and looked.count("info") == 2:
            Faulty.store[path] = MemoryFile(other, path, b"y" * (2 * STEP_BYTES))

    Faulty.fault = staticmethod(fault)
    with pytest.raises(UnderChanged):
        faulty.read_into("/a", memoryview(bytearray(2 * STEP_BYTES)))

    store, file = UnderStore(f"file://{directory}"), directory / "a"
    file.write_bytes(b"x" * (2 * STEP_BYTES))
    real = os.sendfile

    def cut(*arguments: int) -> int:
        os.truncate(file, STEP_BYTES)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch, (directory / "target").open("wb") as target:
        patch.setattr(files.os, "sendfile", cut)
        with pytest.raises(UnderChanged):
            store.read_into("/a", target.fileno())
    store.close()


# ---- kill -9


DIE = """
import os, sys
from pathlib import Path
from storage_tier.under import files
from storage_tier.under.base import FileRange
from storage_tier.under.store import UnderStore

root, source, point = sys.argv[1:]
real = getattr(os, point.split()[1])

def stop(*arguments):
    if point.startswith("before"):
        print("there", flush=True)
        sys.stdin.read()
    result = real(*arguments)
    print("there", flush=True)
    sys.stdin.read()
    return result

setattr(files.os, point.split()[1], stop)
UnderStore(f"file://{root}").publish("/d/a", FileRange(Path(source), 0, os.path.getsize(source)))
"""


@pytest.mark.parametrize(
    ("point", "published"),
    [
        ("before sendfile", False),
        ("after sendfile", False),
        ("before fsync", False),
        ("after fsync", False),
        ("before replace", False),
        ("after replace", True),
    ],
)
def test_killed_while_publishing(directory: Path, point: str, published: bool) -> None:
    root, source = directory / "root", directory / "source"
    root.mkdir()
    store = UnderStore(f"file://{root}")
    store.publish("/d/a", b"before")
    source.write_bytes(b"after" * (STEP_BYTES // 4))
    process = subprocess.Popen(
        [sys.executable, "-c", DIE, str(root), str(source), point], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"there\n"
    assert store.clean(older_than_s=0) == 0, "the writer lives"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LONG_S)
    assert (root / "d/a").read_bytes() == (source.read_bytes() if published else b"before")
    assert [info.path for info in store.list()] == ["/d"]
    assert [info.path for info in store.list("/d")] == ["/d/a"]
    assert store.clean() == (0 if published else 1)
    assert sorted(path.name for path in root.rglob("*")) == ["a", "d"]
    store.close()


def test_cleaning_leaves_what_is_not_ours(directory: Path) -> None:
    store = UnderStore(f"file://{directory}")
    assert store.clean() == 0
    uploads = directory / TEMPORARY_NAME
    uploads.mkdir()
    (uploads / "notes.txt").write_bytes(b"")
    (uploads / f"1-{'0' * 32}").write_bytes(b"half")
    assert store.clean() == 1
    assert [path.name for path in uploads.iterdir()] == ["notes.txt"]
    store.close()


def test_publishers_and_cleaners_at_once(directory: Path) -> None:
    """Cleaning never takes what a living writer is writing, however they interleave."""
    store, stop, errors = UnderStore(f"file://{directory}"), threading.Event(), []

    def clean() -> None:
        while not stop.is_set():
            try:
                store.clean(older_than_s=0)
            except BaseException as error:
                errors.append(error)
                return

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    for number in range(150):
        store.publish(f"/d{number % 3}/a", b"%d" % number)
        assert (directory / f"d{number % 3}/a").read_bytes() == b"%d" % number
    stop.set()
    cleaner.join()
    assert errors == []
    store.close()
