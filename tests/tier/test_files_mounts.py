"""Mounts: write types, loading, both listings in one, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_tier.errors import (
    DirectoryNotEmpty,
    InvalidRequest,
    MountConflict,
    OutOfMemory,
    PathExists,
    PathIsDirectory,
    PathNotDirectory,
    PathNotFound,
    UnderChanged,
    UnderError,
    UnderNotFound,
    VersionConflict,
)
from storage_tier.files import Files, FilesOptions
from storage_tier.under.store import UnderStore
from storage_tier.under.write_type import WriteType

from . import files_servers, mounted_files, s3_endpoint
from .files_servers import LONG_S, STILL, Cluster, block_files, eventually, put, read
from .mounted_files import objects
from .s3_endpoint import S3Endpoint

cluster = files_servers.cluster
files = files_servers.files
s3 = s3_endpoint.s3
s3_server = s3_endpoint.s3_server
lake = mounted_files.lake
mounted = mounted_files.mounted


@pytest.mark.parametrize("write_type", list(WriteType))
def test_write_types(files: Files, lake: Path, write_type: WriteType) -> None:
    files.mount("/lake", f"file://{lake}", write_type=write_type)
    for content in (b"first", b"second"):
        entry = put(files, "/lake/d/a", content, metadata={"step": 1})
        if write_type is WriteType.ASYNC_THROUGH:
            assert entry.persisted in ("waiting", "done")
            entry = files.persist("/lake/d/a", LONG_S)
        assert entry.persisted == ("not_needed" if write_type is WriteType.MUST_CACHE else "done")
        assert dict(entry.metadata) == {"step": 1}
        assert objects(lake) == ({} if write_type is WriteType.MUST_CACHE else {"d/a": content})
        assert len(block_files(files)) == (0 if write_type is WriteType.THROUGH else 1)
        assert read(files, "/lake/d/a") == content
    assert files.stat("/lake/d/a").version == 2
    if write_type is WriteType.MUST_CACHE:
        assert files.persist("/lake/d/a", LONG_S).persisted == "done"
        assert objects(lake) == {"d/a": b"second"}
    files.remove("/lake/d/a")
    assert objects(lake) == {}
    assert block_files(files) == []
    assert not files.exists("/lake/d/a")


def test_a_write_may_choose_its_own_type(mounted: Files, lake: Path) -> None:
    put(mounted, "/lake/a", write_type=WriteType.MUST_CACHE)
    assert objects(lake) == {}
    put(mounted, "/lake/b", write_type=WriteType.THROUGH)
    assert objects(lake) == {"b": b"content"}


def test_what_is_below_is_read_listed_and_loaded_once(mounted: Files, lake: Path) -> None:
    (lake / "d").mkdir()
    (lake / "d" / "old").write_bytes(b"was there before")
    put(mounted, "/lake/d/new")
    found = mounted.stat("/lake/d/old")
    assert (found.kind, found.version, found.size_bytes, found.persisted) == ("file", 0, 16, "done")
    assert [(entry.path, entry.kind) for entry in mounted.list("/lake")] == [("/lake/d", "directory")]
    assert [entry.path for entry in mounted.list("/lake/d")] == ["/lake/d/new", "/lake/d/old"]
    assert [entry.path for entry in mounted.list("/lake/d", after="new", count=1)] == ["/lake/d/old"]
    assert mounted.explain("/lake/d/old").route == "under-store"
    assert read(mounted, "/lake/d/old") == b"was there before"
    assert read(mounted, "/lake/d/old") == b"was there before"
    assert mounted.status().loaded_count == 1
    assert mounted.stat("/lake/d/old").version == 1
    assert mounted.explain("/lake/d/old").route == "mapped"
    assert mounted.free("/lake/d/old")
    assert mounted.explain("/lake/d/old").route == "under-store"
    assert read(mounted, "/lake/d/old", 1) == b"was there before"
    pages: list[str] = []
    while page := mounted.find("/", pages[-1] if pages else None, 1):
        pages += [entry.path for entry in page]
    assert pages == ["/lake", "/lake/d", "/lake/d/new", "/lake/d/old"]


def test_an_object_that_somebody_else_replaced(mounted: Files, lake: Path) -> None:
    put(mounted, "/lake/a", b"ours")
    assert mounted.free("/lake/a")
    (lake / "a").write_bytes(b"theirs!")
    with pytest.raises(UnderChanged):
        read(mounted, "/lake/a", 1)
    assert read(mounted, "/lake/a") == b"theirs!"
    assert mounted.stat("/lake/a").version == 2
    mounted.free("/lake/a")
    (lake / "a").unlink()
    with pytest.raises(PathNotFound, match="removed below"):
        read(mounted, "/lake/a")
    assert not mounted.exists("/lake/a")


def test_what_only_the_under_store_knows_is_in_the_way(mounted: Files, lake: Path) -> None:
    (lake / "d").mkdir()
    (lake / "f").write_bytes(b"f")
    for options, error in [({"exclusive": True}, PathExists), ({"expected_version": 0}, VersionConflict)]:
        with pytest.raises(error):
            put(mounted, "/lake/f", **options)
    with pytest.raises(PathIsDirectory):
        put(mounted, "/lake/d")
    with pytest.raises(PathIsDirectory):
        read(mounted, "/lake/d")
    with pytest.raises(PathNotDirectory):
        mounted.list("/lake/f")
    with pytest.raises(PathNotFound):
        mounted.list("/lake/none")
    assert objects(lake) == {"f": b"f"}
    assert block_files(mounted) == []
    put(mounted, "/lake/f", b"new")
    assert objects(lake) == {"f": b"new"}


def test_directories_below_a_mount(mounted: Files, lake: Path) -> None:
    mounted.make_directory("/lake/a/b")
    assert (lake / "a" / "b").is_dir()
    with pytest.raises(PathExists):
        mounted.make_directory("/lake/a", exist_ok=False)
    put(mounted, "/lake/a/b/c")
    (lake / "a" / "stranger").write_bytes(b"s")
    with pytest.raises(DirectoryNotEmpty):
        mounted.remove_directory("/lake/a")
    mounted.rename("/lake/a", "/lake/z")
    assert objects(lake) == {"z/b/c": b"content", "z/stranger": b"s"}
    assert [entry.path for entry in mounted.find("/lake")] == [
        "/lake/z",
        "/lake/z/b",
        "/lake/z/b/c",
        "/lake/z/stranger",
    ]
    assert read(mounted, "/lake/z/b/c") == b"content"
    mounted.remove_directory("/lake/z", recursive=True)
    assert objects(lake) == {}
    assert mounted.list("/lake") == []
    assert block_files(mounted) == []


def test_renames_below_a_mount(mounted: Files, lake: Path) -> None:
    put(mounted, "/lake/a", b"a")
    put(mounted, "/lake/b", b"b")
    (lake / "under").write_bytes(b"u")
    with pytest.raises(PathExists):
        mounted.rename("/lake/a", "/lake/b")
    mounted.rename("/lake/a", "/lake/b", overwrite=True)
    mounted.rename("/lake/under", "/lake/over")
    assert objects(lake) == {"b": b"a", "over": b"u"}
    assert {entry.path for entry in mounted.list("/lake")} == {"/lake/b", "/lake/over"}
    assert mounted.free("/lake/b")
    assert read(mounted, "/lake/b") == b"a"
    assert read(mounted, "/lake/over") == b"u"
    put(mounted, "/outside")
    for pair in [("/outside", "/lake/x"), ("/lake/b", "/x"), ("/lake", "/x")]:
        with pytest.raises(MountConflict):
            mounted.rename(*pair)
    mounted.copy("/outside", "/lake/copied")
    assert objects(lake)["copied"] == b"content"
    mounted.copy("/lake/over", "/copied")
    assert read(mounted, "/copied") == b"u"


def test_mounts_are_refused_with_sentences(files: Files, lake: Path) -> None:
    put(files, "/full/x")
    put(files, "/file")
    files.mount("/lake", f"file://{lake}")
    for path, url, error in [
        ("/full", f"file://{lake}", DirectoryNotEmpty),
        ("/file", f"file://{lake}", PathExists),
        ("/lake", f"file://{lake}", MountConflict),
        ("/", f"file://{lake}", MountConflict),
        ("/m", f"file://{lake}/none", UnderNotFound),
        ("/m", "nonsense://x", InvalidRequest),
        ("/m", "no url", InvalidRequest),
    ]:
        with pytest.raises(error, match=r"\w+ \w+ \w+"):
            files.mount(path, url)
    with pytest.raises(InvalidRequest):
        files.mount("/m", f"file://{lake}", write_type="sometimes")
    assert [mount.path for mount in files.mounts()] == ["/lake"]


def test_unmounting_refuses_to_lose(mounted: Files, lake: Path) -> None:
    put(mounted, "/lake/a", write_type=WriteType.MUST_CACHE)
    with pytest.raises(DirectoryNotEmpty):
        mounted.unmount("/lake")
    mounted.persist("/lake/a", LONG_S)
    mounted.unmount("/lake")
    assert not mounted.exists("/lake/a")
    assert objects(lake) == {"a": b"content"}
    assert block_files(mounted) == []


def test_a_mount_made_through_another_server_counts_at_once(cluster: Cluster, lake: Path) -> None:
    one, two = cluster.start("one"), cluster.start("two")
    put(two, "/x")
    one.mount("/lake", f"file://{lake}", write_type="cache_through")
    assert put(two, "/lake/a").persisted == "done"
    (lake / "b").write_bytes(b"b")
    one.mount("/other", f"file://{lake}", write_type="cache_through")
    assert read(two, "/other/b") == b"b"
    one.unmount("/lake")
    with pytest.raises(PathNotFound):
        two.stat("/lake/b")


def test_persisted_blocks_make_room(cluster: Cluster, lake: Path) -> None:
    files = cluster.start(memory_bytes=1 << 20)
    files.mount("/lake", f"file://{lake}", write_type="cache_through")
    for number in range(5):
        put(files, f"/lake/{number}", bytes([number]) * 400_000)
    for number in range(5):
        assert read(files, f"/lake/{number}") == bytes([number]) * 400_000
    assert files._parts.tier.budget.used_bytes <= 1 << 20


def test_what_waits_to_be_persisted_is_no_victim(cluster: Cluster, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: UnderStore, path: str, source: object, **arguments: object) -> None:
        raise UnderError("the disk below is broken")

    files = cluster.start(memory_bytes=1 << 20)
    files.mount("/lake", f"file://{lake}")
    with monkeypatch.context() as broken:
        broken.setattr(UnderStore, "publish", refuse)
        put(files, "/lake/a", b"a" * 600_000)
        eventually(lambda: files.status().persister.failing_count == 1, "it failed once")
        with pytest.raises(OutOfMemory, match="not persisted"):
            put(files, "/lake/b", b"b" * 600_000)
        assert "the disk below is broken" in " ".join(files.explain("/lake/a").sentences)
        with pytest.raises(TimeoutError, match="the disk below is broken"):
            files.persist("/lake/a", 0.05)
    cluster.stop()
    files = cluster.start(memory_bytes=1 << 20)
    eventually(lambda: files.stat("/lake/a").persisted == "done", "the restart persists it")
    put(files, "/lake/b", b"b" * 600_000)
    files.persist("/lake/b", LONG_S)
    assert read(files, "/lake/a") == b"a" * 600_000


def test_a_file_with_a_time_to_live_is_not_persisted(mounted: Files) -> None:
    with pytest.raises(InvalidRequest, match="time to live"):
        put(mounted, "/lake/a", ttl_s=5.0)
    put(mounted, "/lake/a")
    with pytest.raises(InvalidRequest, match="time to live"):
        mounted.change("/lake/a", ttl_s=5.0)


def test_a_pin_loads_what_only_the_under_store_has(mounted: Files, lake: Path) -> None:
    (lake / "a").write_bytes(b"a")
    assert mounted.change("/lake/a", pinned=True).pinned
    with pytest.raises(InvalidRequest, match="pinned"):
        mounted.free("/lake/a")


def test_an_object_larger_than_the_memory(cluster: Cluster, lake: Path) -> None:
    files = cluster.start(memory_bytes=1 << 20)
    files.mount("/lake", f"file://{lake}")
    (lake / "a").write_bytes(b"a" * (2 << 20))
    with pytest.raises(OutOfMemory):
        read(files, "/lake/a")
    assert files.stat("/lake/a").size_bytes == 2 << 20


@pytest.fixture
def s3_files(cluster: Cluster, s3: S3Endpoint) -> Iterator[tuple[Files, S3Endpoint, str]]:
    files = cluster.start(options=FilesOptions(**{**vars(STILL), "under_timeout_s": 20.0}))
    bucket = s3.make_bucket()
    files.mount("/s3", f"s3://{bucket}/prefix", s3.options, "cache_through")
    yield files, s3, bucket
    cluster.stop()


def test_over_s3(s3_files: tuple[Files, S3Endpoint, str], cluster: Cluster) -> None:
    files, s3, bucket = s3_files
    put(files, "/s3/a", b"a" * 100_000)
    assert s3.get(bucket, "prefix/a") == b"a" * 100_000
    s3.put(bucket, "prefix/d/b", b"bb")
    assert [(entry.path, entry.kind) for entry in files.list("/s3")] == [("/s3/a", "file"), ("/s3/d", "directory")]
    assert read(files, "/s3/d/b") == b"bb"
    files.free("/s3/a")
    assert read(files, "/s3/a") == b"a" * 100_000
    files.rename("/s3/a", "/s3/c")
    assert s3.keys(bucket) == ["prefix/c", "prefix/d/b"]
    files.remove("/s3/c")
    put(files, "/s3/later", write_type=WriteType.ASYNC_THROUGH)
    files.persist("/s3/later", LONG_S)
    assert s3.keys(bucket) == ["prefix/d/b", "prefix/later"]
    assert "SECRET" not in repr(files.status()).upper()
    s3.fault = lambda environ: ("403 Forbidden", "AccessDenied")
    with pytest.raises(UnderError):
        put(files, "/s3/refused")
    s3.fault = None
    assert not files.exists("/s3/refused")
