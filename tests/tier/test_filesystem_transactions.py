"""Transactions of a filesystem: all of their files are seen, or none."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage_tier.errors import InvalidRequest
from storage_tier.filesystem import TierFileSystem

from . import filesystem_clients
from .fake_client import Tree
from .filesystem_clients import Broken, raise_in_text

clients = filesystem_clients.clients
cluster = filesystem_clients.cluster
fs = filesystem_clients.fs
other = filesystem_clients.other
pytest_generate_tests = filesystem_clients.pytest_generate_tests
tree = filesystem_clients.tree


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
