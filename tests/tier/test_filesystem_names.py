"""What fsspec's suites leave out of names: listing, directories, removing, moving and copying."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage_tier.errors import (
    DirectoryNotEmpty,
    InvalidPath,
    InvalidRequest,
    PathIsDirectory,
    PathNotFound,
    Unsupported,
)
from storage_tier.filesystem import TierFileSystem

from . import filesystem_clients
from .fake_client import Tree

clients = filesystem_clients.clients
cluster = filesystem_clients.cluster
fs = filesystem_clients.fs
other = filesystem_clients.other
pytest_generate_tests = filesystem_clients.pytest_generate_tests
tree = filesystem_clients.tree


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
