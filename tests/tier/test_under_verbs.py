"""Under-stores of every kind: renaming, directories, removing, and what only some of them have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage_tier.errors import DirectoryNotEmpty, InvalidRequest, UnderError, UnderFailed, UnderNotFound
from storage_tier.under import objects, transfers
from storage_tier.under.base import TEMPORARY_NAME, FileRange
from storage_tier.under.store import UnderStore
from storage_tier.under.write_type import WriteType

from . import s3_endpoint, under_stores
from .s3_endpoint import S3Endpoint
from .under_stores import Under, under_file, under_s3

s3 = s3_endpoint.s3
s3_server = s3_endpoint.s3_server
file = under_stores.file
s3_store = under_stores.s3_store
store = under_stores.store
under = under_stores.under


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
    with pytest.raises(DirectoryNotEmpty):
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


def test_a_whole_tree_in_one_request(s3: S3Endpoint) -> None:
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


def test_more_than_one_request_removes(s3: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_s3_has_an_object_and_a_directory_of_one_name(s3: S3Endpoint, s3_store: UnderStore) -> None:
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
    s3: S3Endpoint,
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
