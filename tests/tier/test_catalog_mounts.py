"""What is hung on directories of the catalog: mounts and observers."""

from __future__ import annotations

import pytest

from storage_tier.catalog import Catalog
from storage_tier.catalog.errors import DirectoryNotEmpty, MountConflict, PathExists, PathNotFound
from storage_tier.errors import InvalidRequest

pytest_plugins = ["tests.tier.postgres"]


# ------------------------------------------------------------------ mounts


def test_mount_and_unmount(catalog: Catalog) -> None:
    mounts, namespace = catalog.mounts, catalog.namespace
    options = {"key": "SECRET", "nested": {"a": [1, None]}}
    mounted = mounts.mount("/data/s3", "s3://bucket/x", options, "cache_through", parents=True)
    assert "SECRET" not in repr(mounted)
    namespace.make_directory("/empty")
    mounts.mount("/empty", "memory://", write_type="through")
    mounts.mount("/data/s3/inner", "file:///tmp")
    assert mounts.list() == [mounts.of("/data/s3"), mounts.of("/data/s3/inner/x"), mounts.of("/empty")]
    assert mounts.of("/data/s3/no/such/file") == mounted
    assert mounts.of("/data/s3").options == options
    assert mounts.of("/data") is mounts.of("/") is mounts.of("/data/s33") is None
    assert namespace.stat("/data/s3").kind == "mount"
    assert namespace.stat("/data/s3").is_directory
    namespace.commit("/data/s3/a", "b1", 1, persisted="done")
    namespace.commit("/data/s3/b", "b2", 1, persisted="waiting")
    with pytest.raises(DirectoryNotEmpty, match=r"below /data/s3 would be lost \(1\)"):
        mounts.unmount("/data/s3")
    with pytest.raises(MountConflict, match="mount point /data/s3/inner below"):
        mounts.unmount("/data/s3", discard=True)
    mounts.unmount("/data/s3/inner")
    assert [released.block_id for released in mounts.unmount("/data/s3", discard=True)] == ["b1", "b2"]
    assert [found.path for found in mounts.list()] == ["/empty"]
    assert not namespace.exists("/data/s3")
    mounts.mount("/data/s3", "memory://")
    assert namespace.commit("/data/s3/a", "b3", 1).entry.version == 2


def test_refused_mounts(catalog: Catalog) -> None:
    mounts, namespace = catalog.mounts, catalog.namespace
    namespace.commit("/file", "b1", 1)
    namespace.make_directory("/full/x", parents=True)
    mounts.mount("/m", "memory://one")
    for path, error, sentence in [
        ("/m", MountConflict, "/m is a mount point of memory://one already"),
        ("/", MountConflict, "root cannot be a mount point"),
        ("/file", PathExists, "file at /file"),
        ("/full", DirectoryNotEmpty, "/full is not empty"),
        ("/no/m", PathNotFound, "no directory /no"),
    ]:
        with pytest.raises(error, match=sentence):
            mounts.mount(path, "memory://two")
    for wrong in (
        {"url": ""},
        {"url": "a\0b"},
        {"write_type": "later"},
        {"options": {"a": object()}},
        {"options": {1: 2}},
    ):
        with pytest.raises(InvalidRequest):
            mounts.mount(**{"path": "/n", "url": "memory://", **wrong})
    for path in ("/full", "/file"):
        with pytest.raises(MountConflict, match="no mount point but a"):
            mounts.unmount(path)
    assert [found.path for found in mounts.list()] == ["/m"]


def test_nothing_is_renamed_across_the_edge_of_a_mount(catalog: Catalog) -> None:
    mounts, namespace = catalog.mounts, catalog.namespace
    mounts.mount("/m", "memory://m")
    mounts.mount("/m/inner", "memory://i")
    mounts.mount("/n", "memory://n")
    for path in ("/m/a", "/m/inner/a", "/n/a", "/a"):
        namespace.commit(path, path, 1)
    namespace.make_directory("/m/d")
    for source, target in [("/a", "/m/b"), ("/m/a", "/b"), ("/m/a", "/n/b"), ("/m/a", "/m/inner/b"), ("/m/d", "/d")]:
        with pytest.raises(MountConflict, match="not below the same mount point"):
            namespace.rename(source, target)
    for source, target in [("/m", "/o"), ("/m/inner", "/m/o"), ("/m/d", "/m/inner")]:
        with pytest.raises(MountConflict, match="is a mount point: it can be neither moved nor replaced"):
            namespace.rename(source, target, overwrite=True)
    for path in ("/m", "/m/inner"):
        with pytest.raises(MountConflict, match="unmount it"):
            namespace.remove_directory(path, recursive=True)
    namespace.make_directory("/top")
    namespace.make_directory("/top/d")
    mounts.mount("/top/d/m", "memory://t")
    with pytest.raises(MountConflict, match="mount point /top/d/m below it"):
        namespace.remove_directory("/top", recursive=True)
    namespace.rename("/m/a", "/m/d/a")
    namespace.rename("/top/d", "/d")
    assert [found.path for found in mounts.list()] == ["/d/m", "/m", "/m/inner", "/n"]


# ------------------------------------------------------------------ observers


def test_observers_are_attached_to_directories(catalog: Catalog) -> None:
    observers, namespace = catalog.observers, catalog.namespace
    namespace.make_directory("/models/demo/gradients", parents=True)
    first = observers.attach("/models/demo", "b", "average", {"decay": 0.9, "names": ["w"]})
    observers.attach("/models/demo", "a", "validate")
    observers.attach("/models/demo/gradients", "push", "coproc")
    observers.attach("/", "all", "validate")
    with pytest.raises(PathExists, match="/models/demo has an observer a already"):
        observers.attach("/models/demo", "a", "validate")
    assert [(one.directory, one.name) for one in observers.above("/models/demo/gradients/7/x")] == [
        ("/", "all"),
        ("/models/demo", "a"),
        ("/models/demo", "b"),
        ("/models/demo/gradients", "push"),
    ]
    assert [one.name for one in observers.above("/models/demo/gradients")] == ["all", "a", "b"]
    assert observers.list()[2] == first
    observers.quarantine("/models/demo", "b", "Traceback…\0\ud800" + "x" * 20000)
    assert observers.list()[2].failure.endswith("x")
    assert len(observers.list()[2].failure) == 16384
    observers.quarantine("/models/demo", "b", None)
    assert observers.list()[2] == first
    namespace.rename("/models/demo", "/models/new")
    assert [one.directory for one in observers.list()] == ["/", "/models/new", "/models/new", "/models/new/gradients"]
    observers.detach("/models/new", "a")
    for call in (lambda: observers.detach("/models/new", "a"), lambda: observers.quarantine("/", "no", "x")):
        with pytest.raises(PathNotFound, match="has no observer"):
            call()
    namespace.remove_directory("/models", recursive=True)
    assert [one.directory for one in observers.list()] == ["/"]
    for wrong in ({"name": ""}, {"observer": "é"}, {"parameters": {"a": {1}}}, {"parameters": {"a": "x" * 70000}}):
        with pytest.raises(InvalidRequest):
            observers.attach(**{"directory": "/", "name": "n", "observer": "o", **wrong})
