"""The namespace: paths, kinds and arguments that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage_tier.catalog import Catalog
from storage_tier.catalog.errors import PathExists, PathIsDirectory, PathNotDirectory, PathNotFound
from storage_tier.errors import InvalidPath, InvalidRequest

from .catalog_files import paths, put

pytest_plugins = ["tests.tier.postgres"]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "does not begin with a slash"),
        ("a/b", "does not begin with a slash"),
        ("/a/../b", r"the name '\.\.'"),
        ("/./a", r"the name '\.'"),
        ("/a//b", "an empty name"),
        ("/a/", "an empty name"),
        ("//", "an empty name"),
        ("/a\0b", "control character"),
        ("/a\nb", "control character"),
        ("/\udcff", "UTF-8"),
        ("/" + "x" * 300, "name of 300 bytes, and 255"),
        ("/" + "é" * 128, "name of 256 bytes"),
        ("/abc" * 1025, "4,100 bytes, and 4,096"),
        (b"/a", "must be a string"),
        (None, "must be a string"),
    ],
)
def test_bad_paths_are_refused_everywhere(tmp_path: Path, path: str, sentence: str) -> None:
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        catalog.members.register("s1", "")
        namespace = catalog.namespace
        revision = catalog.revision()
        calls = [namespace.stat, namespace.exists, namespace.list, namespace.find, namespace.make_directory]
        calls += [namespace.remove, namespace.remove_directory, namespace.change, catalog.mounts.of]
        calls += [lambda path: namespace.commit(path, "b", 1), lambda path: namespace.rename(path, "/x")]
        calls += [lambda path: namespace.rename("/x", path), lambda path: namespace.copy("/x", path)]
        calls += [lambda path: catalog.mounts.mount(path, "memory://"), catalog.mounts.unmount]
        calls += [lambda path: catalog.observers.attach(path, "a", "b"), catalog.observers.above]
        for call in calls:
            with pytest.raises(InvalidPath, match=sentence):
                call(path)
        assert catalog.revision() == revision


def test_paths_may_be_long_and_deep(catalog: Catalog) -> None:
    namespace = catalog.namespace
    deep = "/" + "/".join("d" * (number % 3 + 1) for number in range(1000))
    put(catalog, f"{deep}/file")
    assert namespace.stat(f"{deep}/file").version == 1
    assert paths(namespace.list(deep)) == [f"{deep}/file"]
    assert namespace.find("/", count=2000)[-1].path == f"{deep}/file"
    with pytest.raises(PathNotFound, match="no directory /d/x, so"):
        namespace.stat("/d/x/" + "e/" * 900 + "f")
    longest = "/" + "x" * 255
    put(catalog, longest)
    assert namespace.exists(longest)
    for depth in range(1, 35):
        part = "/" + "/".join(deep[1:].split("/")[:depth])
        assert namespace.stat(part).path == part
        assert not namespace.exists(part + "/absent")


def test_files_are_no_directories_and_directories_no_files(catalog: Catalog) -> None:
    namespace = catalog.namespace
    put(catalog, "/d/file")
    for call in (
        lambda: namespace.list("/d/file"),
        lambda: namespace.find("/d/file"),
        lambda: namespace.remove_directory("/d/file"),
        lambda: namespace.stat("/d/file/x"),
        lambda: namespace.commit("/d/file/x", "b", 1, parents=True),
        lambda: namespace.make_directory("/d/file/x/y", parents=True),
        lambda: catalog.observers.attach("/d/file", "a", "b"),
        lambda: catalog.mounts.mount("/d/file/x", "memory://"),
    ):
        with pytest.raises(PathNotDirectory, match="/d/file is a file"):
            call()
    for call in (
        lambda: namespace.remove("/d"),
        lambda: namespace.commit("/d", "b", 1),
        lambda: namespace.commit("/", "b", 1),
        lambda: namespace.change("/d", pinned=True),
        lambda: namespace.copy("/d", "/e"),
    ):
        with pytest.raises(PathIsDirectory, match="is a directory"):
            call()
    with pytest.raises(PathExists):
        namespace.make_directory("/d/file", exist_ok=True)
    with pytest.raises(InvalidRequest, match="root"):
        namespace.remove_directory("/", recursive=True)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"size_bytes": -1}, "cannot have -1 bytes"),
        ({"size_bytes": 1 << 63}, "cannot have"),
        ({"block_id": None}, "need a block"),
        ({"block_id": ""}, "id of a block"),
        ({"block_id": "x" * 256}, "id of a block"),
        ({"block_id": "a\0"}, "id of a block"),
        ({"block_id": "é"}, "id of a block"),
        ({"persisted": "perhaps"}, "persisted is one of"),
        ({"expires_ns": -5}, "cannot expire"),
        ({"expires_ns": 1 << 63}, "cannot expire"),
        ({"metadata": {1: 2}}, "names must be strings"),
        ({"metadata": {"a": [1]}}, "is a list"),
        ({"metadata": {"a": 1 << 63}}, "64-bit"),
        ({"metadata": {"a": "x" * 70000}}, "at most 65,536"),
        ({"metadata": [1]}, "must be a mapping"),
    ],
)
def test_bad_arguments_of_a_commit(catalog: Catalog, how: dict, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        catalog.namespace.commit(**{"path": "/a", "block_id": "b", "size_bytes": 1, **how})
    assert catalog.namespace.list("/") == []


def test_a_block_is_committed_once(catalog: Catalog) -> None:
    catalog.namespace.commit("/a", "b1", 1)
    for path in ("/a", "/b"):
        with pytest.raises(InvalidRequest, match="in the catalog already"):
            catalog.namespace.commit(path, "b1", 1)
    assert catalog.namespace.stat("/a").version == 1
    assert not catalog.namespace.exists("/b")
    catalog.namespace.remove("/a")
    with pytest.raises(InvalidRequest, match="in the catalog already"):
        catalog.namespace.commit("/a", "b1", 1)  # it may be deleted at any moment
