"""The namespace: directories, and renaming them with all below."""

from __future__ import annotations

import pytest

from storage_tier.catalog import Catalog
from storage_tier.catalog.errors import DirectoryNotEmpty, PathExists, PathIsDirectory, PathNotDirectory, PathNotFound
from storage_tier.errors import InvalidRequest

from .catalog_files import paths, put

pytest_plugins = ["tests.tier.postgres"]


# ------------------------------------------------------------------ directories


def test_make_list_and_remove_directories(catalog: Catalog) -> None:
    namespace = catalog.namespace
    made = namespace.make_directory("/a/b/c", parents=True)
    assert made == namespace.stat("/a/b/c")
    assert made.is_directory
    assert namespace.make_directory("/a/b/c", exist_ok=True) == made
    for wrong in ({}, {"parents": True}):
        with pytest.raises(PathExists, match="directory at /a/b/c"):
            namespace.make_directory("/a/b/c", **wrong)
    with pytest.raises(PathNotFound, match="no directory /x, so /x/y cannot exist"):
        namespace.make_directory("/x/y")
    assert paths(namespace.list("/a")) == ["/a/b"]
    with pytest.raises(DirectoryNotEmpty, match="'c'"):
        namespace.remove_directory("/a/b")
    namespace.remove_directory("/a/b/c")
    namespace.remove_directory("/a/b")
    assert namespace.list("/a") == []
    assert namespace.make_directory("/", exist_ok=True).path == "/"


def test_a_listing_is_in_byte_order_and_comes_in_pages(catalog: Catalog) -> None:
    names = sorted(["a", "B", "_", "~", "é", "z", "a b", "a.b", "日", "%", "a_", "\U0001f600"], key=str.encode)
    for name in reversed(names):
        put(catalog, f"/d/{name}")
    assert paths(catalog.namespace.list("/d")) == [f"/d/{name}" for name in names]
    page = catalog.namespace.list("/d", count=5)
    assert paths(page) == [f"/d/{name}" for name in names[:5]]
    assert paths(catalog.namespace.list("/d", after=names[4])) == [f"/d/{name}" for name in names[5:]]
    assert paths(catalog.namespace.list("/")) == ["/d"]


def test_names_are_bytes_not_letters(catalog: Catalog) -> None:
    for path in ("/é", "/e\u0301", "/E", "/e", "/a%", "/a_"):
        put(catalog, path)
    assert {catalog.namespace.stat(path).version for path in ("/é", "/e\u0301", "/E", "/e", "/a%", "/a_")} == {1}
    assert len(catalog.namespace.list("/")) == 6


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_find_pages_through_everything_below(catalog: Catalog, count: int) -> None:
    namespace = catalog.namespace
    files = ["/t/a", "/t/a.b/x", "/t/a/x"[:4] + "c/d/e/f", "/t/b/1", "/t/b/2", "/t/b/3", "/t/z", "/other/x"]
    for path in files:
        put(catalog, path)
    namespace.make_directory("/t/empty")
    expected = ["/t/a", "/t/a.b", "/t/a.b/x", "/t/ac", "/t/ac/d", "/t/ac/d/e", "/t/ac/d/e/f", "/t/b", "/t/b/1"]
    expected += ["/t/b/2", "/t/b/3", "/t/empty", "/t/z"]
    found: list[str] = []
    while page := namespace.find("/t", after=found[-1] if found else None, count=count):
        assert len(page) <= count
        found += paths(page)
    assert found == expected
    assert [namespace.stat(path) for path in found] == namespace.find("/t")
    assert paths(namespace.find("/"))[:2] == ["/other", "/other/x"]


def test_find_goes_on_where_its_last_entry_is_gone(catalog: Catalog) -> None:
    for path in ("/t/a/1", "/t/a/2", "/t/b/1"):
        put(catalog, path)
    catalog.namespace.remove("/t/a/1")
    assert paths(catalog.namespace.find("/t", after="/t/a/1")) == ["/t/a/2", "/t/b", "/t/b/1"]
    catalog.namespace.remove_directory("/t/a", recursive=True)
    assert paths(catalog.namespace.find("/t", after="/t/a/1")) == ["/t/b", "/t/b/1"]
    put(catalog, "/t/a")
    assert paths(catalog.namespace.find("/t", after="/t/a/1")) == ["/t/b", "/t/b/1"], "it is a file now"
    with pytest.raises(InvalidRequest, match="not below"):
        catalog.namespace.find("/t", after="/u/a")


def test_a_directory_is_removed_with_all_below_it(catalog: Catalog) -> None:
    namespace = catalog.namespace
    with catalog.together():
        for number in range(603):
            put(catalog, f"/d/{number % 7}/{number}", f"b{number}")
    put(catalog, "/e", "kept")
    namespace.copy("/d/0/0", "/f")
    catalog.observers.attach("/d/3", "watch", "validate")
    released = namespace.remove_directory("/d", recursive=True)
    assert {block.block_id for block in released} == {f"b{number}" for number in range(1, 603)}
    assert paths(namespace.find("/")) == ["/e", "/f"]
    assert catalog.observers.list() == []


# ------------------------------------------------------------------ rename


def test_a_directory_is_renamed_with_all_below_it(catalog: Catalog) -> None:
    namespace = catalog.namespace
    for path in ("/a/b/c/1", "/a/b/2"):
        put(catalog, path)
    namespace.make_directory("/x")
    before = namespace.stat("/a/b/c/1")
    assert namespace.rename("/a/b", "/x/y").entry.path == "/x/y"
    assert paths(namespace.find("/")) == ["/a", "/x", "/x/y", "/x/y/2", "/x/y/c", "/x/y/c/1"]
    assert namespace.stat("/x/y/c/1").block_id == before.block_id
    with pytest.raises(PathNotFound, match="no directory /a/b"):
        namespace.stat("/a/b/2")


def test_a_rename_takes_the_place_of_what_may_be_replaced(catalog: Catalog) -> None:
    namespace = catalog.namespace
    put(catalog, "/file")
    put(catalog, "/full/x")
    namespace.make_directory("/empty")
    namespace.make_directory("/dir")
    cases = [
        ("/dir", "/empty", False, PathExists, "directory at /empty"),
        ("/dir", "/full", True, DirectoryNotEmpty, "/full is not empty"),
        ("/dir", "/file", True, PathNotDirectory, "/file is a file"),
        ("/file", "/dir", True, PathIsDirectory, "/dir is a directory"),
        ("/full/x", "/file", False, PathExists, "file at /file"),
        ("/full/x", "/full", True, PathIsDirectory, "/full is a directory"),
        ("/full", "/full/x/y", False, InvalidRequest, "into itself"),
        ("/full", "/full/y", False, InvalidRequest, "into itself"),
        ("/file", "/file/y", False, PathNotDirectory, "/file is a file, so /file/y"),
        ("/file", "/no/y", False, PathNotFound, "no directory /no"),
        ("/no", "/y", False, PathNotFound, "nothing at /no"),
        ("/", "/y", False, InvalidRequest, "root"),
        ("/dir", "/", True, InvalidRequest, "root"),
    ]
    before = namespace.find("/")
    for source, target, overwrite, error, sentence in cases:
        with pytest.raises(error, match=sentence):
            namespace.rename(source, target, overwrite=overwrite)
    assert namespace.find("/") == before
    assert namespace.rename("/file", "/file").entry == namespace.stat("/file")
    namespace.rename("/full", "/empty", overwrite=True)
    assert paths(namespace.find("/")) == ["/dir", "/empty", "/empty/x", "/file"]
    namespace.rename("/empty/x", "/empty/y")
    assert paths(namespace.list("/empty")) == ["/empty/y"]
