"""Under-stores: one suite for a directory, memory, S3 over HTTP, and for any other filesystem of fsspec."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage_tier.errors import (
    DirectoryNotEmpty,
    InvalidPath,
    InvalidRequest,
    UnderChanged,
    UnderError,
    UnderFailed,
    UnderNotFound,
)
from storage_tier.under import objects, transfers
from storage_tier.under.base import STEP_BYTES, TEMPORARY_NAME, FileRange, below, clean_relative
from storage_tier.under.store import UnderStore
from storage_tier.under.write_type import WriteType

from .s3_endpoint import S3Endpoint, s3, s3_server  # noqa: F401

ODD_NAMES = [
    *("a b", " leading", "trailing ", "grün ☃", "100%", "a%20b", "a+b", "a#b", "a?b", "a&b=c", "a*", "a[1]", "{a,b}"),
    *("a::b", "a;b", "a'b", 'a"b', "a\\b", "~", "-rf", "..a", "...", "a.", "x" * 200, "$HOME", "`a`", "a|b", "<a>"),
]

BUCKET = "of-the-module"


@dataclass
class Under:
    """A store, and a way to its objects that bypasses it."""

    store: UnderStore
    put: Callable[[str, bytes], None]
    get: Callable[[str], bytes | None]


class OneByOne(MemoryFileSystem):
    """An fsspec filesystem like any: not asynchronous, no upload that is atomic, no move, real directories."""

    protocol = "onebyone"
    cachable = False
    store: dict[str, object] = {}  # noqa: RUF012 - as fsspec has it
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix(f"{cls.protocol}://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        raise NotImplementedError


class Mover(OneByOne):
    """The same with a move, but only to a free name, as SFTP has it."""

    protocol = "mover"
    store: dict[str, object] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def mv(self, path1: str, path2: str, **kwargs: object) -> None:
        old, new = self._strip_protocol(path1), self._strip_protocol(path2)
        if new in self.store:
            raise FileExistsError(new)
        for name in [name for name in self.store if name == old or name.startswith(old + "/")]:
            self.store[new + name[len(old) :]] = self.store.pop(name)
        for name in [name for name in self.pseudo_dirs if name == old or name.startswith(old + "/")]:
            self.pseudo_dirs.remove(name)
            self.pseudo_dirs.append(new + name[len(old) :])


class Flat(OneByOne):
    """What gs: and abfs: are: objects that appear whole, and directories that are only parts of their names."""

    protocol = "gs"
    store: dict[str, object] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        MemoryFileSystem.pipe_file(self, path, value, mode)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise AssertionError("there are none to be made")

    mkdir = rmdir = makedirs


for kind in (OneByOne, Mover, Flat):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)


def under_file(root: Path) -> Under:
    def put(path: str, content: bytes) -> None:
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / path[1:]).write_bytes(content)

    def get(path: str) -> bytes | None:
        file = root / path[1:]
        return file.read_bytes() if file.is_file() else None

    return Under(UnderStore(f"file://{root}"), put, get)


def under_fsspec(protocol: str) -> Under:
    fs = fsspec.filesystem(protocol)
    fs.store.clear()
    fs.pseudo_dirs[:] = [""] if protocol == "gs" else ["", "/root"]

    def put(path: str, content: bytes) -> None:
        MemoryFileSystem.pipe_file(fs, "/root" + path, content)

    def get(path: str) -> bytes | None:
        found = fs.store.get("/root" + path)
        return None if found is None else found.getvalue()

    return Under(UnderStore(f"{protocol}://root"), put, get)


@pytest.fixture(scope="module")
def s3_store(s3_server: S3Endpoint) -> Iterator[UnderStore]:  # noqa: F811
    """One for all tests, for its library takes long to begin; each test has the bucket anew."""
    s3_server.make_bucket(BUCKET)
    made = UnderStore(f"s3://{BUCKET}/pre fix/x", s3_server.options)
    made.check()
    yield made
    made.close()
    s3_server.forget()


def under_s3(endpoint: S3Endpoint, store: UnderStore) -> Under:
    endpoint.forget()
    bucket = endpoint.make_bucket(BUCKET)
    return Under(
        store,
        lambda path, content: endpoint.put(bucket, "pre fix/x" + path, content),
        lambda path: endpoint.get(bucket, "pre fix/x" + path),
    )


@pytest.fixture(params=["file", "memory", "s3", "onebyone", "mover", "gs"])
def under(request: pytest.FixtureRequest, directory: Path) -> Iterator[Under]:
    if request.param == "file":
        made = under_file(directory)
    elif request.param == "s3":
        made = under_s3(request.getfixturevalue("s3"), request.getfixturevalue("s3_store"))
    else:
        made = under_fsspec(request.param)
    made.store.check(writable=True)
    yield made
    if request.param != "s3":
        made.store.close()


@pytest.fixture
def store(under: Under) -> UnderStore:
    return under.store


@pytest.fixture
def file() -> Iterator[Path]:
    with tempfile.NamedTemporaryFile() as made:
        yield Path(made.name)


# ---- publish and read


@pytest.mark.parametrize("size_bytes", [0, 1, 4097, STEP_BYTES, 2 * STEP_BYTES + 1])
def test_what_is_published_is_read_back(under: Under, file: Path, size_bytes: int) -> None:
    content = os.urandom(size_bytes)
    file.write_bytes(b"head" + content + b"tail")
    for path, source in [
        ("/a/bytes", content),
        ("/a/view", memoryview(bytearray(content))),
        ("/a/file", FileRange(file, 4, size_bytes)),
    ]:
        made = under.store.publish(path, source)
        assert (made.path, made.size_bytes, made.is_directory) == (path, size_bytes, False)
        assert under.get(path) == content
        found = under.store.info(path)
        # S3 does not tell the time of an upload with it.
        assert replace(found, modified_ns=made.modified_ns) == made
        back = bytearray(size_bytes)
        assert under.store.read_into(path, memoryview(back), stamp=made.stamp) == found
        assert back == content


def test_into_a_file_from_an_offset(under: Under, file: Path) -> None:
    content = os.urandom(STEP_BYTES + 5)
    under.put("/a", content)
    with file.open("r+b") as target:
        target.write(b"header")
        target.flush()
        under.store.read_into("/a", target.fileno(), offset_bytes=6)
        under.store.read_into("/a", target.fileno(), start=3, stop=5, offset_bytes=1)
    assert file.read_bytes() == b"h" + content[3:5] + b"der" + content


def test_ranges(under: Under) -> None:
    under.put("/a", b"0123456789")
    for start, stop in [(0, 4), (3, 3), (5, 10), (8, 20), (10, 20), (30, 40)]:
        assert under.store.read_range("/a", start, stop) == b"0123456789"[start:stop]
    for start, stop in [(-1, 4), (4, 2)]:
        with pytest.raises(InvalidRequest):
            under.store.read_range("/a", start, stop)


def test_a_target_that_cannot_be(store: UnderStore, file: Path) -> None:
    store.publish("/a", b"12345")
    for target in [memoryview(bytearray(4)), memoryview(b"12345"), memoryview(bytearray(10))[::2]]:
        with pytest.raises(InvalidRequest):
            store.read_into("/a", target)
    with file.open("rb") as read_only, file.open("ab") as append, pytest.raises(InvalidRequest):
        store.read_into("/a", append.fileno())
    with file.open("rb") as read_only, pytest.raises(InvalidRequest):
        store.read_into("/a", read_only.fileno())
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "wb") as pipe, pytest.raises(InvalidRequest):
        store.read_into("/a", pipe.fileno())


def test_a_source_that_cannot_be(under: Under, file: Path) -> None:
    under.put("/a", b"before")
    file.write_bytes(b"12345")
    with pytest.raises(UnderFailed, match="ends 2 bytes early"):
        under.store.publish("/a", FileRange(file, 0, 7))
    with pytest.raises(InvalidRequest, match="can't be read"):
        under.store.publish("/a", FileRange(Path("/nowhere/at all"), 0, 7))
    with pytest.raises(InvalidRequest, match="contiguous"):
        under.store.publish("/a", memoryview(b"123456")[::2])
    assert under.get("/a") == b"before"
    assert [info.path for info in under.store.list()] == ["/a"]


def test_a_stamp_tells_one_object_from_the_next(under: Under) -> None:
    first = under.store.publish("/a", b"one")
    assert under.store.info("/a").stamp == under.store.list()[0].stamp == first.stamp
    second = under.store.publish("/a", b"two")
    assert second.stamp != first.stamp
    with pytest.raises(UnderChanged) as caught:
        under.store.read_range("/a", 0, 3, stamp=first.stamp)
    assert caught.value.retryable
    assert under.store.read_range("/a", 0, 3, stamp=second.stamp) == b"two"


def test_somebody_else_changes_an_object(under: Under) -> None:
    made = under.store.publish("/a", b"one")
    under.put("/a", b"other")
    assert under.store.info("/a").stamp != made.stamp
    assert under.store.read_range("/a", 0, 10) == b"other"


def test_nothing_is_remembered(under: Under) -> None:
    assert under.store.list() == []
    under.put("/d/a", b"1")
    assert [info.path for info in under.store.list("/d")] == ["/d/a"]
    under.put("/d/b", b"2")
    assert [info.path for info in under.store.list("/d")] == ["/d/a", "/d/b"]
    assert under.store.info("/d/b").size_bytes == 1


def test_readers_see_one_whole_version(under: Under) -> None:
    """Publishers and readers at once; a whole version is one letter, at any length."""
    store = under.store
    versions = [bytes([65 + number]) * (1000 + number) for number in range(8)]
    store.publish("/a", versions[0])
    stop = threading.Event()

    def read() -> int:
        count = 0
        while not stop.is_set():
            back = bytearray(2000)
            try:
                size_bytes = store.read_into("/a", memoryview(back)).size_bytes
            except UnderError as error:
                assert error.retryable or (isinstance(error, UnderNotFound) and store.protocol == "mover")  # noqa: PT017
                continue
            assert bytes(back[:size_bytes]) in versions
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for _ in range(3):
                list(pool.map(lambda content: store.publish("/a", content), versions))
        finally:
            stop.set()
        assert all(reader.result() >= 0 for reader in readers)
    assert store.read_range("/a", 0, 2000) in versions
    assert store.status().running_count == 0


# ---- names


def test_odd_names_round_trip(under: Under) -> None:
    for name in ODD_NAMES:
        under.store.publish(f"/d {name}/{name}", name.encode())
    assert [info.path for info in under.store.list()] == sorted(f"/d {name}" for name in ODD_NAMES)
    for name in ODD_NAMES:
        path = f"/d {name}/{name}"
        assert under.get(path) == name.encode()
        assert [(info.path, info.is_directory) for info in under.store.list(f"/d {name}")] == [(path, False)]
        assert under.store.read_range(path, 0, 999) == name.encode()
        under.store.rename(path, f"/to {name}")
        under.store.remove(f"/to {name}")
        assert under.get(f"/to {name}") is None
        assert under.get(path) is None
    assert under.store.status().left_out_count == 0


def test_a_name_is_no_pattern(under: Under) -> None:
    for path in ["/a*", "/ab", "/a?", "/[ab]", "/d/a", "/d*/a"]:
        under.put(path, path.encode())
    under.store.remove("/a*")
    under.store.rename("/a?", "/c*")
    under.store.remove("/[ab]")
    under.store.rename("/d*", "/e")
    assert under.get("/ab") == b"/ab"
    assert under.get("/c*") == b"/a?"
    assert under.get("/d/a") == b"/d/a"
    assert under.get("/e/a") == b"/d*/a"
    assert sorted(info.path for info in under.store.list() if not info.is_directory) == ["/ab", "/c*"]


@pytest.mark.parametrize(
    "path", ["/..", "/a/../b", "/./a", "//a", "/a//b", "/a/", "/a\0b", "/a\nb", "/\udc80", "/" + "x" * 300]
)
def test_escapes_are_refused(directory: Path, path: str) -> None:
    under = under_file(directory)
    under.put("/b", b"")
    for verb in [
        lambda: under.store.info(path),
        lambda: under.store.list(path),
        lambda: under.store.publish(path, b""),
        lambda: under.store.remove(path),
        lambda: under.store.rename("/b", path),
        lambda: under.store.read_range(path, 0, 1),
        lambda: under.store.make_directory(path),
    ]:
        with pytest.raises(InvalidPath):
            verb()


def test_the_root_is_only_listed(store: UnderStore) -> None:
    for path in ["", "/"]:
        assert store.info(path).is_directory
        with pytest.raises(InvalidRequest):
            store.remove(path)
        with pytest.raises(InvalidRequest):
            store.publish(path, b"")
    with pytest.raises(InvalidPath, match="kept"):
        store.publish(f"/{TEMPORARY_NAME}/a", b"")


def test_a_version_of_s3_is_no_name(s3: S3Endpoint, s3_store: UnderStore) -> None:  # noqa: F811
    under = under_s3(s3, s3_store)
    with pytest.raises(InvalidPath, match="versionId"):
        under.store.publish("/a?versionId=3", b"")
    under.put("/a?versionId=3", b"another program's")
    assert under.store.list() == []
    assert under.store.status().left_out_count == 1


def test_paths_below_a_mount() -> None:
    assert below("/lake", "/lake/a/b") == "/a/b"
    assert below("/lake", "/lake") == ""
    assert clean_relative("") == clean_relative("/") == ""
    for path in ["/lakes", "/", "/lake/../a", "/other"]:
        with pytest.raises(InvalidPath):
            below("/lake", path)


# ---- the other verbs


def test_what_is_not_there(store: UnderStore) -> None:
    store.publish("/a", b"")
    for verb in [
        lambda: store.info("/none"),
        lambda: store.info("/a/b"),
        lambda: store.list("/none"),
        lambda: store.read_range("/none", 0, 1),
        lambda: store.rename("/none", "/b"),
    ]:
        with pytest.raises(UnderNotFound) as caught:
            verb()
        assert isinstance(caught.value, FileNotFoundError)
        assert store.url in str(caught.value)
    with pytest.raises(UnderFailed):
        store.list("/a")
    store.remove("/none")
    store.remove("/none/at/all")


def test_rename_replaces(under: Under) -> None:
    under.put("/a", b"new")
    under.put("/d/b", b"old")
    under.store.rename("/a", "/d/b")
    assert (under.get("/a"), under.get("/d/b")) == (None, b"new")
    under.store.rename("/d/b", "/d/b")
    assert under.get("/d/b") == b"new"


def test_rename_a_directory(under: Under) -> None:
    for path in ["/d/a", "/d/e/b", "/dd/a"]:
        under.put(path, path.encode())
    with pytest.raises(InvalidRequest, match="lies in it"):
        under.store.rename("/d", "/d/f")
    under.store.rename("/d", "/new/place")
    assert under.get("/new/place/a") == b"/d/a"
    assert under.get("/new/place/e/b") == b"/d/e/b"
    assert [info.path for info in under.store.list()] == ["/dd", "/new"]


def test_directories(under: Under) -> None:
    store = under.store
    store.make_directory("/d/e")
    store.make_directory("/d/e")
    if store.traits.directories:
        assert [info.path for info in store.list("/d")] == ["/d/e"]
        assert store.list("/d/e") == []
    store.publish("/d/e/a", b"")
    with pytest.raises(UnderFailed):
        store.remove_directory("/d/e")
    assert under.get("/d/e/a") == b""
    store.remove("/d/e/a")
    for path in ["/d/e", "/d", "/d"]:
        store.remove_directory(path)
    assert store.list() == []


def test_a_whole_tree_is_removed(under: Under) -> None:
    for path in ("/d/a", "/d/e/b", "/d/e/f/c", "/d*", "/e", "/dd/a"):
        under.put(path, b"x")
    under.store.make_directory("/d/empty/deep")
    under.store.remove_tree("/d")
    assert [info.path for info in under.store.list()] == ["/d*", "/dd", "/e"]
    under.store.remove_tree("/d")
    with pytest.raises(InvalidRequest):
        under.store.remove_tree("/")


def test_a_link_is_removed_and_what_it_leads_to_stays(directory: Path) -> None:
    (directory / "kept").mkdir()
    (directory / "kept" / "a").write_bytes(b"a")
    (directory / "root" / "d").mkdir(parents=True)
    (directory / "root" / "d" / "link").symlink_to(directory / "kept")
    (directory / "root" / "top").symlink_to(directory / "kept")
    store = UnderStore(f"file://{directory}/root")
    for path in ("/d", "/top"):
        store.remove_tree(path)
    assert store.list() == []
    assert (directory / "kept" / "a").read_bytes() == b"a"
    store.close()


def test_a_whole_tree_in_one_request(s3: S3Endpoint) -> None:  # noqa: F811
    bucket = s3.make_bucket()
    store = UnderStore(f"s3://{bucket}/p", s3.options)
    keys = (
        "a",
        "d-e",
        "d/b",
        "d/e/c",
        "d/e/",
        "x/",
        "f",
        "f/under a file",
        "bad/" + "x" * 300,
        f"{TEMPORARY_NAME}/1",
        "ä/ß",
    )
    for key in keys:
        s3.put(bucket, f"p/{key}", b"12")
    assert store.find("/nothing") == []
    s3.requests.clear()
    found = store.find()
    assert len(s3.requests) == 1
    # A directory before what is in it, names in byte order: not the order of S3.
    paths = ["/a", "/bad", "/d", "/d/b", "/d/e", "/d/e/c", "/d-e", "/f", "/x", "/ä", "/ä/ß"]
    assert [info.path for info in found] == paths
    assert [info.path for info in found if info.is_directory] == ["/bad", "/d", "/d/e", "/x", "/ä"]
    assert found[0] == store.list()[0]
    assert [info.path for info in store.find("/d")] == ["/d/b", "/d/e", "/d/e/c"]
    assert store.find(limit=3) is None
    s3.requests.clear()
    store.remove_tree("/d")
    assert len(s3.requests) == 2
    assert s3.keys(bucket) == sorted(f"p/{key}" for key in keys if not key.startswith("d/"))
    # One that knows no removal of many.
    s3.fault = lambda environ: (
        ("501 Not Implemented", "NotImplemented") if environ["REQUEST_METHOD"] == "POST" else None
    )
    store.remove_tree("/f")
    store.remove_tree("/bad")
    assert s3.keys(bucket) == ["p/.tier-tmp/1", "p/a", "p/d-e", "p/f", "p/x/", "p/ä/ß"]
    store.close()


def test_more_than_one_request_removes(s3: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("storage_tier.under.s3.PAGE_COUNT", 2)
    monkeypatch.setattr("storage_tier.under.s3.pages.__defaults__", (2,))
    bucket = s3.make_bucket()
    store = UnderStore(f"s3://{bucket}", s3.options)
    for number in range(5):
        s3.put(bucket, f"d/{number}", b"x")
    store.rename("/d", "/e")
    assert s3.keys(bucket) == [f"e/{number}" for number in range(5)]
    store.remove_tree("/e")
    assert s3.keys(bucket) == []
    store.close()


def test_a_directory_is_no_object(under: Under) -> None:
    under.put("/d/a", b"1")
    assert under.store.info("/d").is_directory
    with pytest.raises(UnderFailed):
        under.store.read_range("/d", 0, 1)
    if under.store.protocol != "s3":  # where "d" and "d/a" are just two names
        with pytest.raises(UnderFailed):
            under.store.publish("/d", b"")
    if under.store.protocol in ("file", "memory"):  # the others here are careless
        with pytest.raises(UnderError):
            under.store.publish("/d/a/b", b"")
    assert under.get("/d/a") == b"1"


def test_s3_has_an_object_and_a_directory_of_one_name(s3: S3Endpoint, s3_store: UnderStore) -> None:  # noqa: F811
    under = under_s3(s3, s3_store)
    for path in ["/a", "/a/b", "/marked/", "/marked//x"]:
        under.put(path, path.encode())
    assert [(info.path, info.is_directory) for info in under.store.list()] == [("/a", False), ("/marked", True)]
    assert not under.store.info("/a").is_directory
    assert under.store.list("/marked") == []
    under.put("/empty/", b"")
    under.store.remove_directory("/empty")
    assert under.get("/empty/") is None


def test_what_a_directory_may_also_hold(directory: Path) -> None:
    under = under_file(directory)
    os.mkfifo(directory / "pipe")
    (directory / "link").symlink_to(directory / "a")
    (directory / "dangling").symlink_to(directory / "nothing")
    (directory / "bad\nname").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(directory) + b"/\xff")).write_bytes(b"")
    under.put("/a", b"1")
    assert [info.path for info in under.store.list()] == ["/a", "/link"]
    assert under.store.status().left_out_count == 4
    for verb in (lambda: under.store.info("/pipe"), lambda: under.store.read_range("/pipe", 0, 1)):
        with pytest.raises(UnderFailed, match="neither a file nor"):
            verb()
    under.store.close()


def test_no_link_leads_out_or_in_circles(directory: Path) -> None:
    root = directory / "root"
    (root / "d").mkdir(parents=True)
    (directory / "out").mkdir()
    for file in (root / "a", directory / "secret", directory / "out" / "x"):
        file.write_bytes(b"bytes")
    links = {"self": "self", "up": "..", "here": ".", "out": "../../out", "secret": "../../secret", "file": "../a"}
    for name, leads_to in links.items():
        (root / "d" / name).symlink_to(leads_to)
    (directory / "mount").symlink_to(root)
    store = UnderStore(f"file://{directory}/mount")
    assert [info.path for info in store.list("/d")] == ["/d/file"]
    assert store.status().left_out_count == 5
    assert store.read_range("/d/file", 0, 9) == b"bytes"
    for path in ("/d/self", "/d/up", "/d/out", "/d/secret", "/d/out/x", "/d/here/file", "/d/self/x"):
        for verb in (store.info, store.list, lambda path: store.read_range(path, 0, 9)):
            with pytest.raises(UnderNotFound):
                verb(path)
    for path in ("/d/out/x", "/d/out/y", "/d/up/y"):
        store.remove(path)
        with pytest.raises(UnderError):
            store.publish(path, b"other")
        with pytest.raises(UnderError):
            store.rename("/a", path)
    store.publish("/d/secret", b"mine")
    assert store.read_range("/d/secret", 0, 9) == b"mine"
    assert {file.read_bytes() for file in (directory / "secret", directory / "out" / "x", root / "a")} == {b"bytes"}
    assert os.listdir(directory / "out") == ["x"]
    store.close()


def test_a_directory_that_fills_is_not_replaced(directory: Path) -> None:
    under = under_file(directory)
    for path in ("/a/1", "/b/1"):
        under.put(path, b"x")
    with pytest.raises(DirectoryNotEmpty, match="/a cannot become /b"):
        under.store.rename("/a", "/b")
    under.store.close()


def test_parts_of_a_big_object(
    s3: S3Endpoint,  # noqa: F811
    s3_store: UnderStore,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects, "ONE_REQUEST_BYTES", 1 << 20)
    monkeypatch.setattr(transfers, "_PART_BYTES", 5 << 20)
    under = under_s3(s3, s3_store)
    content = os.urandom((12 << 20) + 7)
    file.write_bytes(content)
    made = under.store.publish("/big", FileRange(file, 0, len(content)))
    assert made.size_bytes == len(content)
    assert under.get("/big") == content
    assert sum("partNumber" in request for request in s3.requests) == 3


def test_write_types() -> None:
    told = {kind: (kind.caches, kind.persists, kind.persists_before_return) for kind in WriteType}
    assert told == {
        WriteType.MUST_CACHE: (True, False, False),
        WriteType.CACHE_THROUGH: (True, True, True),
        WriteType.ASYNC_THROUGH: (True, True, False),
        WriteType.THROUGH: (False, True, True),
    }
    assert WriteType("async_through") is WriteType.ASYNC_THROUGH
