"""Under-stores that fail, hang, fill up and die in the middle: nothing half is seen, nothing late undoes anything."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from storage_tier.errors import (
    InvalidRequest,
    OutOfMemory,
    TierError,
    UnderChanged,
    UnderFailed,
    UnderFull,
    UnderNotFound,
    UnderRefused,
    UnderUnreachable,
    Unsupported,
)
from storage_tier.under import files, objects, transfers
from storage_tier.under.base import STEP_BYTES, TEMPORARY_NAME, FileRange
from storage_tier.under.calls import Call, Calls
from storage_tier.under.store import UnderStore

from .s3_endpoint import S3Endpoint, s3, s3_server  # noqa: F401

# What a test waits for at most; none of them gets there.
LONG_S = 30.0
SHORT_S = 0.15
NO_RETRIES = {"config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 2}}


class Faulty(MemoryFileSystem):
    """Not atomic in anything: what is written is seen at once. `fault(verb, path)` may raise, or wait."""

    protocol = "faulty"
    cachable = False
    store: dict[str, object] = {}  # noqa: RUF012 - as fsspec has it
    pseudo_dirs = ["", "/root"]  # noqa: RUF012
    fault: Callable[[str, str], None] = staticmethod(lambda verb, path: None)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("faulty://"))

    def _open(self, path: str, mode: str = "rb", **kwargs: object) -> object:
        self.fault(f"open {mode}", path)
        if mode == "rb":
            return super()._open(path, mode)
        file = FaultyFile(self, path)
        file.commit()
        return file

    def info(self, path: str, **kwargs: object) -> dict[str, object]:
        Faulty.fault("info", path)
        return super().info(path)

    def cp_file(self, path1: str, path2: str, **kwargs: object) -> None:
        Faulty.fault("cp", path2)
        super().cp_file(path1, path2)

    def rm_file(self, path: str) -> None:
        Faulty.fault("rm", path)
        super().rm_file(path)


class FaultyFile(MemoryFile):
    def write(self, content: bytes) -> int:
        super().write(content[: len(content) // 2])
        Faulty.fault("write", self.path)
        return super().write(content[len(content) // 2 :])


fsspec.register_implementation("faulty", Faulty, clobber=True)


@pytest.fixture
def faulty() -> Iterator[UnderStore]:
    Faulty.store.clear()
    Faulty.pseudo_dirs[:] = ["", "/root"]
    store = UnderStore("faulty://root", timeout_s=LONG_S)
    yield store
    Faulty.fault = staticmethod(lambda verb, path: None)
    store.close()


def raising(verb: str, error: Exception) -> Callable[[str, str], None]:
    def fault(found: str, path: str) -> None:
        if found == verb:
            raise error

    return staticmethod(fault)


class Gate:
    """Whoever passes tells `reached` and waits for `opened`."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(LONG_S)


def wait_until_idle(store: UnderStore) -> None:
    calls = store._calls
    with calls._changed:
        assert calls._changed.wait_for(lambda: not calls._running, LONG_S)


def visible() -> dict[str, bytes]:
    return {path: file.getvalue() for path, file in Faulty.store.items()}


# ---- calls that hang


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


# ---- S3 over HTTP


@pytest.fixture
def bucket(s3: S3Endpoint) -> str:  # noqa: F811
    return s3.make_bucket()


@pytest.fixture
def store(s3: S3Endpoint, bucket: str) -> Iterator[UnderStore]:  # noqa: F811
    made = UnderStore(f"s3://{bucket}/p", {**s3.options, **NO_RETRIES}, timeout_s=LONG_S)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (("500 Internal Server Error", "InternalError"), UnderUnreachable),
        (("503 Service Unavailable", "ServiceUnavailable"), UnderUnreachable),
        (("507 Insufficient Storage", "XMinioStorageFull"), UnderFull),
        (("403 Forbidden", "QuotaExceeded"), UnderFull),
        (("403 Forbidden", "AccessDenied"), UnderRefused),
        (("403 Forbidden", "SignatureDoesNotMatch"), UnderRefused),
        (("405 Method Not Allowed", "MethodNotAllowed"), UnderRefused),
        (("400 Bad Request", "InvalidRequest"), UnderFailed),
    ],
)
def test_s3_answers_with_an_error(
    s3: S3Endpoint,  # noqa: F811
    bucket: str,
    store: UnderStore,
    answer: tuple[str, str],
    expected: type[TierError],
) -> None:
    s3.put(bucket, "p/a", b"before")
    s3.fault = lambda environ: answer if environ["REQUEST_METHOD"] == "PUT" else None
    with pytest.raises(expected, match="publishing /a") as caught:
        store.publish("/a", b"after")
    assert "answered by a test" in str(caught.value)
    assert s3.get(bucket, "p/a") == b"before"
    s3.fault = None
    store.publish("/a", b"after")
    assert s3.get(bucket, "p/a") == b"after"


@pytest.mark.parametrize("fails", ["partNumber=2", "uploadId"])
def test_s3_fails_in_the_middle_of_parts(
    s3: S3Endpoint,  # noqa: F811
    bucket: str,
    store: UnderStore,
    fails: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects, "ONE_REQUEST_BYTES", 1 << 20)
    monkeypatch.setattr(transfers, "_PART_BYTES", 5 << 20)
    s3.put(bucket, "p/a", b"before")
    verb = "PUT" if fails.startswith("part") else "POST"  # the POST completes
    s3.fault = lambda environ: (
        ("500 Internal Server Error", "InternalError")
        if environ["REQUEST_METHOD"] == verb and fails in environ["QUERY_STRING"]
        else None
    )
    with pytest.raises(UnderUnreachable):
        store.publish("/a", b"x" * (11 << 20))
    assert s3.get(bucket, "p/a") == b"before"
    assert s3.uploads(bucket) == [], "it was aborted"
    s3.fault = None
    assert store.publish("/a", b"x" * (11 << 20)).size_bytes == 11 << 20


def test_uploads_that_died(s3: S3Endpoint, bucket: str, store: UnderStore) -> None:  # noqa: F811
    for key in ("p/a", "p/b/c", "pp/a", "q"):
        s3.begin_upload(bucket, key)
    s3.put(bucket, f"p/{TEMPORARY_NAME}/1-{'0' * 32}", b"a probe of one that died")
    assert store.list() == []
    assert store.clean(older_than_s=1e12) == 0
    assert store.clean() == 3  # the endpoint says of all of them that they began in 2010
    assert s3.uploads(bucket) == ["pp/a", "q"]
    assert s3.keys(bucket) == []


def test_s3_hangs(s3: S3Endpoint, bucket: str, store: UnderStore) -> None:  # noqa: F811
    gate = Gate()
    s3.fault = lambda environ: gate() if environ["REQUEST_METHOD"] == "PUT" else None
    with pytest.raises(UnderUnreachable, match="made no progress"):
        store.publish("/a", b"first", timeout_s=SHORT_S)
    assert gate.reached.wait(LONG_S)
    with pytest.raises(UnderUnreachable, match="publishing /a hangs"):
        store.publish("/a", b"second")
    gate.opened.set()
    wait_until_idle(store)
    s3.fault = None
    store.publish("/a", b"second")
    assert s3.get(bucket, "p/a") == b"second"


# ---- mounting what cannot be


def refused(url: str, expected: type[TierError], says: str, options: dict[str, object] | None = None) -> str:
    with pytest.raises(expected, match=says) as caught, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(UnderStore(url, options))).check(writable=True, timeout_s=LONG_S)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected", "says"),
    [
        ("/data", InvalidRequest, "needs a URL"),
        ("", InvalidRequest, "needs a URL"),
        ("file://data", InvalidRequest, "three slashes"),
        ("file:///a/../b", InvalidRequest, "write where it leads"),
        ("file:///nowhere/at/all", UnderNotFound, "no such directory"),
        ("file:///dev/null", UnderNotFound, "not a directory"),
        ("nosuch://a/b", InvalidRequest, "no filesystem is known for nosuch"),
        ("s3://", InvalidRequest, "names no bucket"),
        ("simplecache::s3://bucket/p", InvalidRequest, "the tier is a cache itself"),
        ("faulty://nowhere", UnderNotFound, "no such directory"),
    ],
)
def test_a_root_that_cannot_be(url: str, expected: type[TierError], says: str) -> None:
    refused(url, expected, says)


def test_options_that_cannot_be(directory: Path) -> None:
    assert "hunter2" not in refused(f"file://{directory}", InvalidRequest, "takes no options", {"password": "hunter2"})
    options = {"key": "k" * 8, "secret": "hunter2", "asynchronous": "hunter2", "max_concurrency": 0}
    assert "hunter2" not in refused("s3://bucket", InvalidRequest, "max_concurrency", options)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    missing = {"class": "no_such_package.FileSystem", "err": "Install rarefs"}
    monkeypatch.setitem(registry.known_implementations, "s3", missing)
    monkeypatch.setitem(registry.known_implementations, "rare", missing)
    refused("s3://bucket", Unsupported, r"pip install 'coproc\[s3\]'")
    refused("rare://bucket", Unsupported, "Install rarefs")


def test_s3_that_cannot_be(s3: S3Endpoint, bucket: str) -> None:  # noqa: F811
    refused("s3://no-such-bucket/p", UnderNotFound, "no bucket 'no-such-bucket'", s3.options)
    refused("s3://no-such-bucket", UnderNotFound, "no bucket", s3.options)
    wrong = {**s3.options, "key": "AKIDOFNOBODY"}
    assert "AKIDOFNOBODY" not in refused(f"s3://{bucket}", UnderRefused, "check the credentials", wrong)
    nobody = {**s3.options, **NO_RETRIES, "endpoint_url": "http://127.0.0.1:1"}
    refused(f"s3://{bucket}", UnderUnreachable, "may be down", nobody)
    s3.put(bucket, "an/object", b"")
    refused(f"s3://{bucket}/an/object", UnderNotFound, "not a directory", s3.options)
    s3.fault = lambda environ: ("403 Forbidden", "AccessDenied") if environ["REQUEST_METHOD"] == "PUT" else None
    refused(f"s3://{bucket}", UnderRefused, "check the credentials", s3.options)


def test_a_root_that_vanishes_is_not_made_anew(directory: Path) -> None:
    root = directory / "mounted"
    root.mkdir()
    store = UnderStore(f"file://{root}")
    store.check(writable=True)
    (root / TEMPORARY_NAME).rmdir()
    root.rmdir()
    with pytest.raises(UnderNotFound):
        store.publish("/d/a", b"1")
    with pytest.raises(UnderNotFound):
        store.make_directory("/d")
    assert not root.exists()
    store.close()


def test_a_closed_store(directory: Path) -> None:
    store = UnderStore(f"file://{directory}")
    store.close()
    store.close()
    with pytest.raises(UnderFailed, match="closed"):
        store.list()
