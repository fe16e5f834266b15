"""What fsspec's suites leave out: publishing, transactions, versions, seeking, listing, moving, refusals."""

from __future__ import annotations

import contextlib
import gc
import gzip
import io
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.core import OpenFile

from coproc import LocalCluster
from storage_tier.errors import (
    DirectoryNotEmpty,
    InvalidPath,
    InvalidRequest,
    PathExists,
    PathIsDirectory,
    PathNotFound,
    TierError,
    Unreachable,
    Unsupported,
    VersionConflict,
)
from storage_tier.filesystem import TierFileSystem
from storage_tier.filesystem.reader import TierReader

from .fake_client import TREES, FakeTierClient, Tree


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Everything is tested on servers and in a dictionary; what looks or reaches into the tier, in the dictionary."""
    if "where" in metafunc.fixturenames:
        inside = "tree" in metafunc.function.__code__.co_varnames[: metafunc.function.__code__.co_argcount]
        metafunc.parametrize("where", ["fake"] if inside else ["fake", "servers"])


@pytest.fixture
def tree() -> Iterator[Tree]:
    """The tier in a dictionary."""
    yield TREES["coproc://fake:1"]
    TREES.clear()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2, memory_bytes=256 << 20) as made:
        yield made


@pytest.fixture
def clients(where: str, request: pytest.FixtureRequest) -> Iterator[tuple[TierFileSystem, TierFileSystem]]:
    """Two of the same tier: one near, one of another server and far. The tier is empty."""
    if where == "fake":
        request.getfixturevalue("tree")
        request.getfixturevalue("monkeypatch").setattr("storage_tier.client.TierClient", FakeTierClient)
        yield tuple(TierFileSystem("fake", 1, near=near, skip_instance_cache=True) for near in (None, False))
        return
    one, two = (int(server.address.rpartition(":")[2]) for server in request.getfixturevalue("cluster").servers)
    near = TierFileSystem("127.0.0.1", one, skip_instance_cache=True)
    far = TierFileSystem("127.0.0.1", two, near=False, skip_instance_cache=True)
    near.rm("/", recursive=True)
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def fs(clients: tuple[TierFileSystem, TierFileSystem]) -> TierFileSystem:
    return clients[0]


@pytest.fixture
def other(clients: tuple[TierFileSystem, TierFileSystem]) -> TierFileSystem:
    """Another client of the same tier."""
    return clients[1]


class Broken(Exception):
    """What goes wrong in a block."""


# ---- publishing


def test_nothing_is_there_before_the_end(fs: TierFileSystem, other: TierFileSystem) -> None:
    with fs.open("/d/a", "wb") as file:
        file.write(b"one")
        file.flush()
        assert file.tell() == file.size == 3
        assert not other.exists("/d/a")
        with pytest.raises(ValueError, match="not published"):
            file.info()
    assert other.cat("/d/a") == b"one"
    assert file.info()["version"] == fs.info("/d/a")["version"]
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.write(b"more")


@pytest.mark.parametrize("size_bytes", [0, 1, 5_000_000])
def test_pieces_of_any_kind_are_one_file(fs: TierFileSystem, size_bytes: int) -> None:
    values = np.arange(size_bytes, dtype=np.uint8)
    with fs.open("/a", "wb") as file:
        assert file.write(values) == size_bytes
        assert file.write(np.ones((2, 3), np.float32)) == 24
        assert file.write(memoryview(b"tail")) == 4
    assert fs.cat("/a") == values.tobytes() + np.ones(6, np.float32).tobytes() + b"tail"
    with pytest.raises(InvalidRequest, match="contiguous"), fs.open("/b", "wb") as file:
        file.write(np.ones((4, 4))[:, 1])
    assert not fs.exists("/b")


def raise_in_binary(fs: TierFileSystem) -> None:
    with fs.open("/a", "wb") as file:
        file.write(b"half")
        raise Broken


def raise_in_text(fs: TierFileSystem) -> None:
    with fs.open("/a", "w") as file:
        file.write("half")
        raise Broken


def raise_in_compressed(fs: TierFileSystem) -> None:
    with fs.open("/a", "wb", compression="gzip") as file:
        file.write(b"half")
        raise Broken


def raise_in_compressed_text(fs: TierFileSystem) -> None:
    with fs.open("/a", "wt", compression="bz2") as file:
        file.write("half")
        raise Broken


def raise_in_open_file(fs: TierFileSystem) -> None:
    with OpenFile(fs, "/a", "w", compression="gzip") as file:
        file.write("half")
        raise Broken


def raise_in_a_wrapper(fs: TierFileSystem) -> None:
    with contextlib.closing(fs.open("/a", "wb")) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("half", b"half")
        raise Broken


def raise_before_a_finally(fs: TierFileSystem) -> None:
    file = fs.open("/a", "wb")
    try:
        file.write(b"half")
        raise Broken
    finally:
        file.close()


def raise_while_another_is_handled(fs: TierFileSystem) -> None:
    try:
        raise KeyError
    except KeyError:
        with fs.open("/a", "w") as file:
            file.write("half")
            raise Broken from None


@pytest.mark.parametrize(
    "act",
    [
        raise_in_binary,
        raise_in_text,
        raise_in_compressed,
        raise_in_compressed_text,
        raise_in_open_file,
        raise_in_a_wrapper,
        raise_before_a_finally,
        raise_while_another_is_handled,
    ],
)
def test_a_block_that_raises_publishes_nothing(fs: TierFileSystem, act: Callable[[TierFileSystem], None]) -> None:
    fs.pipe("/old", b"old")
    with pytest.raises(Broken):
        act(fs)
    gc.collect()
    assert fs.find("/") == ["/old"]


def test_a_new_version_is_as_safe_as_the_first(fs: TierFileSystem) -> None:
    fs.pipe("/a", b"first")
    with pytest.raises(Broken):
        raise_in_text(fs)
    assert fs.cat("/a") == b"first"


def test_an_error_that_is_handled_is_no_reason(fs: TierFileSystem) -> None:
    try:
        raise KeyError
    except KeyError:
        with fs.open("/a", "w") as file:
            file.write("in a handler")
    file = fs.open("/b", "w")
    try:
        raise KeyError
    except KeyError:
        file.write("over")
    file.close()
    assert (fs.cat("/a"), fs.cat("/b")) == (b"in a handler", b"over")


def test_a_file_that_is_never_closed_is_not_published(fs: TierFileSystem) -> None:
    file = fs.open("/a", "wb")
    file.write(b"half")
    with pytest.warns(ResourceWarning, match="/a was never closed"):
        del file
    # Wrappers end it themselves, and take what it holds with them.
    text = fs.open("/b", "w")
    text.write("half")
    del text
    packed = fs.open("/c", "w", compression="gzip")
    packed.write("half")
    del packed
    gc.collect()
    assert fs.find("/") == []


def test_text_and_compression(fs: TierFileSystem, tmp_path: Path) -> None:
    with fs.open("/a.gz", "w", compression="infer", encoding="utf-8", newline="\n") as file:
        file.write("größe\n")
    assert gzip.decompress(fs.cat("/a.gz")).decode() == "größe\n"
    with fs.open("/a.gz", "r", compression="infer", encoding="utf-8") as file:
        assert file.read() == "größe\n"
    with fs.open("/b.xz", "wb", compression="xz") as file:
        assert file.write(memoryview(b"x" * 1000)) == 1000
    assert fs.size("/b.xz") < 200
    with fs.open("/b.xz", compression="infer") as file:
        assert file.read() == b"x" * 1000
    fs.write_text("/c", "zwei\nZeilen", encoding="utf-8")
    assert fs.read_text("/c", encoding="utf-8") == "zwei\nZeilen"


def test_exclusive_is_told_at_once_and_decided_at_the_end(fs: TierFileSystem, other: TierFileSystem) -> None:
    fs.pipe("/a", b"first")
    with pytest.raises(FileExistsError, match="/a"):
        fs.open("/a", "xb")
    with pytest.raises(FileExistsError):
        fs.open("/a", "x")
    mine = fs.open("/b", "xb")
    mine.write(b"mine")
    other.pipe_file("/b", b"theirs", mode="create")
    with pytest.raises(PathExists):
        mine.close()
    assert mine.closed
    assert fs.cat("/b") == b"theirs"
    with pytest.raises(FileExistsError):
        fs.pipe_file("/b", b"", mode="create")
    with pytest.raises(InvalidRequest, match="'append' was given"):
        fs.pipe_file("/b", b"", mode="append")


@pytest.mark.parametrize("mode", ["ab", "a", "r+b", "w+", "wb+", "q"])
def test_modes_that_cannot_be(fs: TierFileSystem, mode: str) -> None:
    fs.pipe("/a", b"first")
    with pytest.raises(Unsupported, match="never changes") as caught:
        fs.open("/a", mode)
    # The standard library's word for it, so that tools which can do without will.
    assert isinstance(caught.value, io.UnsupportedOperation)
    assert isinstance(caught.value, TierError)
    assert fs.cat("/a") == b"first"


def test_metadata_travels(fs: TierFileSystem) -> None:
    with fs.open("/a", "wb", metadata={"step": 3, "worker": "w1"}) as file:
        file.write(b"x")
    assert fs.info("/a")["metadata"] == {"step": 3, "worker": "w1"}
    fs.pipe_file("/b", b"x", metadata={"step": 4})
    assert fs.info("/b")["metadata"] == {"step": 4}
    fs.cp_file("/b", "/c")
    assert fs.info("/c")["metadata"] == {"step": 4}


# ---- versions


def test_a_version_stays_what_it_was(fs: TierFileSystem, other: TierFileSystem) -> None:
    fs.pipe("/a", b"first")
    first = fs.info("/a")["version"]
    with fs.open("/a") as file:
        other.pipe("/a", b"second, longer")
        assert file.read() == b"first"
        assert file.info()["version"] == file.version == first
    second = fs.info("/a")["version"]
    assert second > first
    assert fs.cat_file("/a", version=second) == b"second, longer"
    with fs.open("/a", version=second) as file:
        assert file.read() == b"second, longer"
    for act in (fs.open, fs.cat_file, fs.info):
        with pytest.raises(VersionConflict, match=f"version {second}"):
            act("/a", version=first)
    assert not fs.exists("/a", version=first)
    assert fs.exists("/a", version=second)
    with pytest.raises(InvalidRequest, match="expected_version"):
        fs.open("/a", "wb", version=second)


def test_compare_and_swap(fs: TierFileSystem, other: TierFileSystem) -> None:
    with fs.open("/a", "wb", expected_version=0) as file:
        file.write(b"first")
    version = file.info()["version"]
    mine = fs.open("/a", "wb", expected_version=version)
    mine.write(b"mine")
    other.pipe_file("/a", b"theirs", expected_version=version)
    with pytest.raises(VersionConflict):
        mine.close()
    assert fs.cat("/a") == b"theirs"


def test_what_info_tells(fs: TierFileSystem) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    fs.pipe("/d/a", b"12345")
    info = fs.info("tier://fake:1/d/a")
    assert info["name"] == "/d/a"
    assert (info["size"], info["type"], info["pinned"], info["persisted"]) == (5, "file", False, "not_needed")
    assert info["version"] > 0
    assert len(info["location"]) == 1
    created = fs.created("/d/a")
    assert before < created < datetime.now(UTC) + timedelta(seconds=2)
    assert created == fs.modified("/d/a")
    assert info["mtime"] == pytest.approx(created.timestamp())
    fs.pipe("/d/a", b"6")
    assert fs.created("/d/a") == created < fs.modified("/d/a")
    assert (fs.info("/d")["type"], fs.info("/d")["size"], fs.info("")["name"]) == ("directory", 0, "/")
    assert (fs.size("/d/a"), fs.sizes(["/d/a", "/d"])) == (1, [1, 0])
    assert fs.isfile("/d/a")
    assert fs.isdir("/d")
    assert fs.isdir("/")


def test_keys_change_with_the_version(fs: TierFileSystem) -> None:
    fs.pipe("/a", b"same")
    key, checksum = fs.ukey("/a"), fs.checksum("/a")
    assert (fs.ukey("/a"), fs.checksum("/a")) == (key, checksum)
    fs.pipe("/a", b"same")
    assert fs.ukey("/a") != key
    assert fs.checksum("/a") != checksum


# ---- reading


def test_reading_is_that_of_a_builtin_file(fs: TierFileSystem) -> None:
    content = b"first\n\nthird, without end" + b"x" * 20_000 + b"\nlast"
    fs.pipe("/a", content)
    for act in (
        lambda file: file.read(),
        lambda file: [file.read(3), file.read(0), file.read(4), file.tell(), file.read(None)],
        lambda file: file.readlines(),
        lambda file: list(file),
        lambda file: [file.readline(), file.readline(2), file.readline(-1), file.readline(), file.readline()],
        lambda file: [file.seek(-4, 2), file.read(), file.read(), file.read(1)],
        lambda file: [file.seek(2), file.seek(3, 1), file.tell(), file.read(2)],
        lambda file: [file.seek(len(content) + 9), file.read(), file.readline(), file.tell(), file.seek(0, 1)],
        lambda file: [file.readinto(memoryview(bytearray(4))), file.tell(), file.read1(5), file.read1()],
        lambda file: [file.readable(), file.seekable(), file.closed],
    ):
        with fs.open("/a") as ours, io.BytesIO(content) as theirs:
            assert act(ours) == act(theirs)
    with fs.open("/a") as file:
        target = np.zeros(3, np.uint16)
        assert file.readinto(target) == 6
        assert target.tobytes() == b"first\n"
        for offset, whence in ((-1, 0), (-len(content) - 1, 2), (0, 7)):
            with pytest.raises(ValueError):  # noqa: PT011
                file.seek(offset, whence)
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
        assert file.full_name == fs.unstrip_protocol("/a")
    for act in (file.read, file.tell, file.readline, file.read_buffer, file.getbuffer, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            act()
    with fs.open("/w", "wb") as writer:
        for act in (writer.read, writer.readline, lambda: writer.seek(0)):
            with pytest.raises(io.UnsupportedOperation):
                act()


def test_buffers_are_slices_that_outlive_the_file(fs: TierFileSystem) -> None:
    fs.pipe("/a", b"0123456789")
    with fs.open("/a") as file:
        file.seek(2)
        middle, rest, none = file.read_buffer(3), file.read_buffer(), file.read_buffer(1)
        whole = file.getbuffer()
    assert (middle, rest, none, whole) == (b"234", b"56789", b"", b"0123456789")
    assert all(view.readonly for view in (middle, rest, whole))


def test_slices(fs: TierFileSystem, other: TierFileSystem) -> None:
    content = bytes(range(100))
    fs.pipe("/a", content)
    bounds = [(None, None), (0, 10), (90, 200), (-5, None), (None, -5), (-10, -5), (50, 40), (100, 101), (300, None)]
    for start, end in bounds:
        assert fs.cat_file("/a", start, end) == content[start:end]
        assert other.cat_file("/a", start, end) == content[start:end]
    assert fs.cat_ranges(["/a", "/a", "/none"], 0, [1, 2, 3], on_error="return")[:2] == [b"\0", b"\0\1"]
    assert (fs.head("/a", 3), fs.tail("/a", 2)) == (content[:3], content[-2:])
    assert fs.read_block("/a", 10, 5) == content[10:15]


def test_of_a_large_file_of_another_host_comes_what_is_read(
    fs: TierFileSystem, other: TierFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = np.random.default_rng(0).integers(0, 255, (20 << 20) + 5, np.uint8).tobytes()
    fs.pipe("/a", content)
    fetched: list[int] = []
    read = type(other.client).read

    def counted(client: object, path: str, offset: int, limit: int, **how: object) -> memoryview:
        fetched.append(limit)
        return read(client, path, offset, limit, **how)

    monkeypatch.setattr(type(other.client), "read", counted)
    with other.open("/a") as file:
        assert (file.size, fetched) == (len(content), [])
        file.seek(-4, 2)
        assert file.read() == content[-4:]
        assert fetched == [5]
        file.seek((4 << 20) - 3)
        middle = file.read_buffer(6)
        assert middle == content[(4 << 20) - 3 : (4 << 20) + 3]
        assert fetched == [5, 8 << 20]
        assert file.readline() == content[(4 << 20) + 3 :].partition(b"\n")[0] + b"\n"
        with pickle.loads(pickle.dumps(file)) as again:
            assert again.tell() == file.tell()
            again.fs.close()
        assert fetched == [5, 8 << 20]
        assert file.getbuffer() == content
        assert sum(fetched) == len(content), "nothing comes twice"
        whole = file.getbuffer()
    assert whole == content
    assert whole.readonly
    assert middle == content[(4 << 20) - 3 : (4 << 20) + 3]
    with other.open("/a") as file:
        assert file.read(1) == content[:1]
        fs.pipe("/a", b"x" * len(content))
        assert file.read(1) == content[1:2], "it is here"
        with pytest.raises(VersionConflict):
            file.read()
    TierFileSystem.clear_instance_cache()


def test_a_reader_travels(fs: TierFileSystem) -> None:
    fs.pipe("/a", b"0123456789")
    with fs.open("/a") as file:
        file.seek(4)
        with pickle.loads(pickle.dumps(file)) as again:
            assert isinstance(again, TierReader)
            assert again.read() == b"456789"
        fs.pipe("/a", b"new")
        with pytest.raises(VersionConflict):
            pickle.loads(pickle.dumps(file))
        # Unpickled, a filesystem is one for all in this thread, as fsspec has it.
        again.fs.close()
        TierFileSystem.clear_instance_cache()
    with fs.open("/b", "wb") as writer, pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(writer)


# ---- names


def fill(fs: TierFileSystem) -> None:
    for path in ("/r/a", "/r/b.txt", "/r/d/c.txt", "/r/d/e/f.txt", "/r/ä [1]/g*h"):
        fs.pipe(path, path.encode())
    fs.makedirs("/r/empty")


def test_listings(fs: TierFileSystem) -> None:
    fill(fs)
    assert fs.ls("/r", detail=False) == ["/r/a", "/r/b.txt", "/r/d", "/r/empty", "/r/ä [1]"]
    assert fs.ls("/", detail=False) == fs.ls("", detail=False) == ["/r"]
    assert [one["type"] for one in fs.ls("/r")] == ["file", "file", "directory", "directory", "directory"]
    assert fs.ls("/r/a", detail=False) == ["/r/a"]
    assert fs.ls("/r/empty") == []
    for path in ("/none", "/r/a/below"):
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            fs.ls(path)
    everything = ["/r/a", "/r/b.txt", "/r/d/c.txt", "/r/d/e/f.txt", "/r/ä [1]/g*h"]
    directories = ["/r/d", "/r/d/e", "/r/empty", "/r/ä [1]"]
    assert fs.find("/r") == fs.find("/") == everything
    assert fs.find("/r", withdirs=True) == sorted([*everything, *directories, "/r"])
    assert fs.find("/r", maxdepth=1) == ["/r/a", "/r/b.txt"]
    assert fs.find("/r/d/e", detail=True).keys() == {"/r/d/e/f.txt"}
    assert fs.find("/r/d/e", detail=True)["/r/d/e/f.txt"]["size"] == 12
    assert fs.find("/r/a") == ["/r/a"]
    assert fs.find("/none") == fs.find("/none", withdirs=True) == fs.find("/r/a/below") == []
    assert [(top, sorted(dirs), sorted(files)) for top, dirs, files in fs.walk("/r")] == [
        ("/r", ["d", "empty", "ä [1]"], ["a", "b.txt"]),
        ("/r/d", ["e"], ["c.txt"]),
        ("/r/d/e", [], ["f.txt"]),
        ("/r/empty", [], []),
        ("/r/ä [1]", [], ["g*h"]),
    ]
    assert next(fs.walk("/r", topdown=False))[0] == "/r/d/e"
    assert list(fs.walk("/none")) == []
    assert fs.glob("/r/*.txt") == ["/r/b.txt"]
    assert fs.glob("/r/**/*.txt") == ["/r/b.txt", "/r/d/c.txt", "/r/d/e/f.txt"]
    assert fs.glob("/r/*/") == ["/r/d", "/r/empty", "/r/ä [1]"]
    assert fs.glob("/*") == ["/r"]
    assert fs.glob("/r/a") == ["/r/a"]
    assert fs.glob("/none/*") == fs.glob("/none") == []
    assert fs.du("/r") == sum(len(path.encode()) for path in everything)
    assert fs.du("/r/d", total=False) == {"/r/d/c.txt": 10, "/r/d/e/f.txt": 12}
    assert fs.expand_path("/r/d", recursive=True) == ["/r/d", "/r/d/c.txt", "/r/d/e", "/r/d/e/f.txt"]


def test_two_clients_see_each_other_at_once(fs: TierFileSystem, other: TierFileSystem) -> None:
    assert fs.ls("/") == other.ls("/") == []
    fs.pipe("/d/a", b"1")
    assert other.ls("/d", detail=False) == ["/d/a"]
    other.pipe("/d/a", b"22")
    assert fs.info("/d/a")["size"] == fs.ls("/d")[0]["size"] == 2
    assert fs.cat("/d/a") == b"22"
    other.mv("/d/a", "/d/b")
    assert fs.find("/") == ["/d/b"]
    assert not fs.exists("/d/a")
    other.rm("/d", recursive=True)
    assert not fs.isdir("/d")
    assert fs.glob("/*") == fs.find("/") == []


def test_directories(fs: TierFileSystem) -> None:
    fs.mkdir("/a/b")
    assert fs.isdir("/a")
    with pytest.raises(FileNotFoundError):
        fs.mkdir("/c/d", create_parents=False)
    for act in (lambda: fs.mkdir("/a"), lambda: fs.makedirs("/a")):
        with pytest.raises(FileExistsError):
            act()
    fs.makedirs("/a", exist_ok=True)
    fs.makedirs("/", exist_ok=True)
    with pytest.raises(DirectoryNotEmpty):
        fs.rmdir("/a")
    fs.rmdir("/a/b")
    assert fs.ls("/a") == []
    fs.pipe("/f", b"")
    for act in (lambda: fs.makedirs("/f", exist_ok=True), lambda: fs.mkdir("/f")):
        with pytest.raises(FileExistsError):
            act()
    with pytest.raises(NotADirectoryError):
        fs.rmdir("/f")
    for act in (lambda: fs.open("/a"), lambda: fs.cat_file("/a"), lambda: fs.pipe("/a", b"")):
        with pytest.raises(PathIsDirectory):
            act()
    with pytest.raises(PathIsDirectory), fs.open("/a", "wb") as file:
        file.write(b"x")
    for act in (lambda: fs.open("/f/x"), lambda: fs.pipe("/f/x", b"")):
        with pytest.raises(NotADirectoryError):
            act()
    with pytest.raises(PathNotFound):
        fs.open("/none")


@pytest.mark.parametrize("path", ["/a/../b", "/./a", "/a\0b", "/" + "x" * 300, "/\ud800", "/a\nb"])
def test_paths_that_cannot_be(fs: TierFileSystem, path: str) -> None:
    for act in (fs.info, fs.open, fs.cat_file, fs.mkdir, fs.rmdir, fs.rm_file, fs.ls, fs.find):
        with pytest.raises(InvalidPath):
            act(path)
    with pytest.raises(InvalidPath), fs.open(path, "wb") as file:
        file.write(b"x")
    assert not fs.exists(path)
    assert not fs.isdir(path)
    assert fs.ls("/") == []


def test_removing(fs: TierFileSystem) -> None:
    fill(fs)
    fs.rm("/r/a")
    fs.rm_file("/r/b.txt")
    for path in ("/r/a", "/r/none", "/none"):
        for recursive in (False, True):
            with pytest.raises(FileNotFoundError):
                fs.rm(path, recursive=recursive)
    with pytest.raises(IsADirectoryError):
        fs.rm("/r/d")
    fs.rm("/r/*", recursive=True, maxdepth=None)
    assert fs.find("/r", withdirs=True) == ["/r"]
    fill(fs)
    fs.rm(["/r/a", "/r/d"], recursive=True)
    assert fs.ls("/r", detail=False) == ["/r/b.txt", "/r/empty", "/r/ä [1]"]
    fs.rm("/", recursive=True)
    assert fs.ls("/") == []


def test_a_whole_directory_is_removed_in_one_act(fs: TierFileSystem, tree: Tree) -> None:
    fill(fs)
    tree.calls.clear()
    fs.rm("/r", recursive=True)
    assert len(tree.calls) <= 3


def test_touch(fs: TierFileSystem) -> None:
    fs.touch("/d/a")
    assert fs.info("/d/a")["size"] == 0
    fs.pipe("/d/a", b"full")
    with pytest.raises(Unsupported, match="commit"):
        fs.touch("/d/a", truncate=False)
    assert fs.cat("/d/a") == b"full"
    fs.touch("/d/a")
    assert fs.cat("/d/a") == b""
    fs.touch("/d/b", truncate=False)
    assert fs.exists("/d/b")


# ---- moving and copying


def test_a_move_is_one_rename_and_a_copy_moves_no_bytes(fs: TierFileSystem, tree: Tree) -> None:
    fill(fs)
    tree.calls.clear()
    fs.mv("/r/d", "/r/moved")
    assert tree.calls.count("rename") == 1
    assert "copy" not in tree.calls
    fs.cp_file("/r/a", "/r/b.txt")
    fs.copy("/r/moved", "/r2", recursive=True)
    assert not {"put", "create", "read"} & set(tree.calls)


def test_moving(fs: TierFileSystem) -> None:
    fill(fs)
    fs.mv("/r/d", "/r/moved")
    assert fs.find("/r/moved") == ["/r/moved/c.txt", "/r/moved/e/f.txt"]
    assert not fs.exists("/r/d")
    fs.mv("/r/a", "/r/b.txt")
    assert fs.cat("/r/b.txt") == b"/r/a"
    fs.mv("/r/b.txt", "/r/empty")
    assert fs.cat("/r/empty/b.txt") == b"/r/a"
    fs.mv("/r/empty/b.txt", "/new/dir/")
    assert fs.cat("/new/dir/b.txt") == b"/r/a"
    fs.mv("tier://fake:1/new/dir/b.txt", "/new/x", recursive=True)
    fs.mv("/new/x", "/new/x")
    assert fs.cat("/new/x") == b"/r/a"
    fs.mv("/r/moved/*", "/new/dir", recursive=True)
    assert fs.find("/new/dir") == ["/new/dir/c.txt", "/new/dir/e/f.txt"]
    fs.mv(["/new/dir/c.txt", "/new/x"], ["/c", "/x"])
    assert (fs.exists("/c"), fs.exists("/x")) == (True, True)
    for source, target in (("/none", "/y"), ("/none", "/none"), ("/none/x", "/deep/y")):
        with pytest.raises(FileNotFoundError):
            fs.mv(source, target)
    assert not fs.exists("/deep"), "nothing is made for what cannot be moved"
    with pytest.raises(InvalidRequest):
        fs.mv("/new", "/new/dir/below")


def test_copying(fs: TierFileSystem) -> None:
    fill(fs)
    fs.cp_file("/r/a", "/r/b.txt")
    fs.copy("/r/a", "/far/away/a")
    fs.copy("/r/d", "/r2", recursive=True)
    assert fs.cat("/r/b.txt") == fs.cat("/far/away/a") == b"/r/a"
    assert fs.find("/r2") == ["/r2/c.txt", "/r2/e/f.txt"]
    with pytest.raises(FileNotFoundError):
        fs.cp_file("/none", "/deep/x")
    assert not fs.exists("/deep")
    with pytest.raises(IsADirectoryError):
        fs.cp_file("/r/a", "/r/d")


def test_moves_race_and_nothing_is_lost(fs: TierFileSystem, other: TierFileSystem) -> None:
    for number in range(40):
        fs.pipe(f"/from/{number}", str(number).encode())
    barrier = threading.Barrier(4)

    def move(me: int) -> int:
        mine = (fs, other)[me % 2]
        barrier.wait(30)
        moved = 0
        for number in range(40):
            try:
                mine.mv(f"/from/{number}", f"/to/{number}-{me}")
            except FileNotFoundError:
                continue
            moved += 1
        return moved

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(move, range(4))) == 40
    found = fs.find("/to")
    assert sorted(int(path.split("/")[-1].split("-")[0]) for path in found) == list(range(40))
    assert all(fs.cat(path).decode() == path.split("/")[-1].split("-")[0] for path in found)
    assert fs.find("/from") == []


def test_of_many_exclusive_writers_one_wins(fs: TierFileSystem, other: TierFileSystem) -> None:
    barrier = threading.Barrier(4)

    def write(me: int) -> int:
        barrier.wait(30)
        try:
            with (fs, other)[me % 2].open("/a", "xb") as file:
                file.write(bytes([me]) * 1000)
        except FileExistsError:
            return 0
        return 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(write, range(4))) == 1
    assert len(set(fs.cat("/a"))) == 1


# ---- transactions


def write_together(fs: TierFileSystem, *paths: str) -> None:
    with fs.transaction:
        for path in paths:
            fs.pipe(path, b"mine")


def test_a_transaction_publishes_at_its_end(fs: TierFileSystem, other: TierFileSystem) -> None:
    fs.pipe("/a", b"old")
    with fs.transaction:
        with fs.open("/a", "wb") as file:
            file.write(b"new")
        with fs.open("/d/b.gz", "w", compression="gzip") as text:
            text.write("text")
        fs.pipe("/d/c", b"piped")
        fs.touch("/d/e")
        assert other.cat("/a") == fs.cat("/a") == b"old"
        assert not other.exists("/d/c")
    assert other.find("/") == ["/a", "/d/b.gz", "/d/c", "/d/e"]
    assert (other.cat("/a"), other.cat("/d/c"), gzip.decompress(other.cat("/d/b.gz"))) == (b"new", b"piped", b"text")
    assert file.info()["version"] == fs.info("/a")["version"]
    fs.pipe("/f", b"after")
    assert other.cat("/f") == b"after"


def test_a_transaction_that_raises_publishes_nothing(fs: TierFileSystem) -> None:
    fs.pipe("/a", b"old")

    def act() -> None:
        with fs.transaction:
            fs.pipe("/a", b"new")
            with fs.open("/b", "wb") as file:
                file.write(b"new")
            raise Broken

    with pytest.raises(Broken):
        act()
    assert (fs.find("/"), fs.cat("/a")) == (["/a"], b"old")
    fs.pipe("/b", b"after")
    assert fs.cat("/b") == b"after"


def test_a_file_that_raised_is_no_part_of_its_transaction(fs: TierFileSystem) -> None:
    with fs.transaction:
        with pytest.raises(Broken):
            raise_in_text(fs)
        with fs.open("/b", "wb") as file:
            file.write(b"b")
    assert (fs.find("/"), fs.cat("/b")) == (["/b"], b"b")


def test_one_refused_file_stops_all(fs: TierFileSystem, other: TierFileSystem) -> None:
    fs.pipe("/a", b"old a", metadata={"step": 1})
    version = fs.info("/a")["version"]

    def act() -> None:
        with fs.transaction:
            fs.pipe("/a", b"new a")
            fs.pipe("/b", b"new b" * 100_000)
            fs.pipe_file("/taken", b"mine", mode="create")
            fs.pipe("/c", b"new c")
            other.pipe("/taken", b"theirs")

    with pytest.raises(FileExistsError, match="/taken"):
        act()
    assert fs.find("/") == ["/a", "/taken"]
    assert (fs.cat("/a"), fs.cat("/taken"), fs.info("/a")["metadata"]) == (b"old a", b"theirs", {"step": 1})
    assert fs.info("/a")["version"] == version, "not even for a moment"
    assert not fs._intrans


def test_a_transaction_is_one_act(fs: TierFileSystem, tree: Tree) -> None:
    tree.calls.clear()
    write_together(fs, "/a", "/b", "/c")
    assert tree.calls.count("commit_all") == 1


def test_a_path_twice_in_one_transaction(fs: TierFileSystem) -> None:
    with fs.transaction:
        fs.pipe("/a", b"first")
        fs.pipe("/b", b"b")
        fs.pipe("/a", b"second")
    assert fs.cat(["/a", "/b"]) == {"/a": b"second", "/b": b"b"}

    def act() -> None:
        with fs.transaction:
            fs.pipe_file("/c", b"first", mode="create")
            fs.pipe("/c", b"second")

    with pytest.raises(InvalidRequest, match="/c was written twice"):
        act()
    assert fs.find("/") == ["/a", "/b"]


def test_readers_see_all_of_a_transaction_or_nothing(fs: TierFileSystem, other: TierFileSystem) -> None:
    paths = [f"/d/{number}" for number in range(5)]
    done = threading.Event()

    def look() -> set[tuple[str, ...]]:
        seen = set()
        while not done.is_set():
            seen.add(tuple(other.find("/d")))
        return seen

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        for _ in range(10):
            write_together(fs, *paths)
            fs.rm("/d", recursive=True)
        done.set()
        assert looking.result(60) <= {(), tuple(paths)}


def test_a_file_left_open_in_a_transaction(fs: TierFileSystem) -> None:
    file = None

    def act() -> None:
        nonlocal file
        with fs.transaction:
            fs.pipe("/a", b"a")
            file = fs.open("/b", "wb")
            file.write(b"b")

    with pytest.raises(InvalidRequest, match="/b is still open"):
        act()
    assert file.closed
    assert fs.find("/") == []


def test_a_transaction_by_calls(fs: TierFileSystem) -> None:
    fs.start_transaction()
    fs.pipe("/a", b"a")
    assert not fs.exists("/a")
    fs.end_transaction()
    assert fs.cat("/a") == b"a"
    file = fs.open("/b", "wb", autocommit=False)
    file.write(b"b")
    with pytest.raises(InvalidRequest, match="still open"):
        file.commit()
    file.close()
    assert not fs.exists("/b")
    file.commit()
    file.commit()
    file.discard()
    assert fs.cat("/b") == b"b"


# ---- trouble


def test_an_unreachable_server_is_no_empty_directory(
    fs: TierFileSystem, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.pipe("/d/a", b"x")

    def gone(*_: object, **__: object) -> None:
        raise Unreachable("no server answers")

    for name in ("stat", "list", "find", "remove"):
        monkeypatch.setattr(FakeTierClient, name, gone)
    for act in (
        lambda: fs.exists("/d/a"),
        lambda: fs.isfile("/d/a"),
        lambda: fs.isdir("/d"),
        lambda: fs.find("/d"),
        lambda: fs.find("/d", maxdepth=1),
        lambda: list(fs.walk("/d")),
        lambda: fs.glob("/d/*"),
        lambda: fs.du("/d"),
        lambda: fs.rm("/d", recursive=True),
        lambda: fs.copy("/d", "/e", recursive=True),
        lambda: fs.get("/d", "/nowhere", recursive=True),
    ):
        with pytest.raises(Unreachable):
            act()
    told: list[OSError] = []
    assert list(fs.walk("/d", on_error=told.append)) == []
    assert len(told) == 1


# ---- other faces


def test_a_mapping(fs: TierFileSystem) -> None:
    for root in ("/m", "tier://fake:1/m/", ""):
        mapping = fs.get_mapper(root)
        mapping["a"] = b"1"
        mapping["d/b"] = b"2"
        assert sorted(mapping) == ["a", "d/b"]
        assert mapping["d/b"] == b"2"
        assert mapping.getitems(["a", "d/b"]) == {"a": b"1", "d/b": b"2"}
        assert "a" in mapping
        assert "none" not in mapping
        assert "d" not in mapping
        with pytest.raises(KeyError):
            mapping["none"]
        del mapping["a"]
        assert list(mapping) == ["d/b"]
        mapping.clear()
        assert list(mapping) == []
        fs.rm("/", recursive=True)


def test_up_and_down(fs: TierFileSystem, tmp_path: Path) -> None:
    content = np.arange(20_000_000 // 4, dtype=np.uint32).tobytes()
    (tmp_path / "a").write_bytes(content)
    moved: list[int] = []

    class Progress(fsspec.Callback):
        def relative_update(self, inc: int = 1) -> None:
            moved.append(inc)

    fs.put_file(str(tmp_path / "a"), "/deep/a", callback=Progress())
    assert fs.cat("/deep/a") == content
    assert sum(moved) == len(content)
    with pytest.raises(FileExistsError):
        fs.put_file(str(tmp_path / "a"), "/deep/a", mode="create")
    moved.clear()
    fs.get_file("/deep/a", str(tmp_path / "new" / "b"), callback=Progress())
    assert (tmp_path / "new" / "b").read_bytes() == content
    assert sum(moved) == len(content)
    out = io.BytesIO()
    fs.get_file("/deep/a", out)
    assert out.getvalue() == content
    fs.get_file("/deep", str(tmp_path / "dir"))
    assert (tmp_path / "dir").is_dir()
    with pytest.raises(FileNotFoundError):
        fs.get_file("/none", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
