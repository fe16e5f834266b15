"""What fsspec's suites leave out of writing: nothing is seen before the end, and each version stays what it was."""

from __future__ import annotations

import contextlib
import gc
import gzip
import io
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from fsspec.core import OpenFile

from storage_tier.errors import InvalidRequest, PathExists, TierError, Unsupported, VersionConflict
from storage_tier.filesystem import TierFileSystem

from . import filesystem_clients
from .filesystem_clients import Broken, raise_in_text

clients = filesystem_clients.clients
cluster = filesystem_clients.cluster
fs = filesystem_clients.fs
other = filesystem_clients.other
pytest_generate_tests = filesystem_clients.pytest_generate_tests
tree = filesystem_clients.tree


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
