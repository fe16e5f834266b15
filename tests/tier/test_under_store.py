"""Under-stores of every kind: publishing, reading, names."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from storage_tier.errors import InvalidPath, InvalidRequest, UnderChanged, UnderError, UnderFailed, UnderNotFound
from storage_tier.under.base import STEP_BYTES, TEMPORARY_NAME, FileRange, below, clean_relative
from storage_tier.under.store import UnderStore

from . import s3_endpoint, under_stores
from .s3_endpoint import S3Endpoint
from .under_stores import Under, under_file, under_s3

s3 = s3_endpoint.s3
s3_server = s3_endpoint.s3_server
file = under_stores.file
s3_store = under_stores.s3_store
store = under_stores.store
under = under_stores.under


ODD_NAMES = [
    *("a b", " leading", "trailing ", "grün ☃", "100%", "a%20b", "a+b", "a#b", "a?b", "a&b=c", "a*", "a[1]", "{a,b}"),
    *("a::b", "a;b", "a'b", 'a"b', "a\\b", "~", "-rf", "..a", "...", "a.", "x" * 200, "$HOME", "`a`", "a|b", "<a>"),
]


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


def test_a_version_of_s3_is_no_name(s3: S3Endpoint, s3_store: UnderStore) -> None:
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
