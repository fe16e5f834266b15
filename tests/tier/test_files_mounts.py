"""Mounts: write types, loading, both listings in one, and under-stores that fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage_tier import probe
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
    UnderFull,
    UnderNotFound,
    Unreachable,
    VersionConflict,
)
from storage_tier.files import CommitOptions, Files, FilesOptions
from storage_tier.under.store import UnderStore
from storage_tier.under.write_type import WriteType
from storage_tier.writer import BlockWriter

from . import files_servers, s3_endpoint
from .files_servers import LONG_S, STILL, Cluster, block_files, eventually, put, read
from .s3_endpoint import S3Endpoint

cluster = files_servers.cluster
files = files_servers.files
s3 = s3_endpoint.s3
s3_server = s3_endpoint.s3_server


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    path = tmp_path / "lake"
    path.mkdir()
    return path


@pytest.fixture
def mounted(files: Files, lake: Path) -> Files:
    files.mount("/lake", f"file://{lake}", write_type="cache_through")
    return files


def objects(lake: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(lake)): path.read_bytes()
        for path in lake.rglob("*")
        if path.is_file() and ".tier-tmp" not in path.parts
    }


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
    assert files._tier.budget.used_bytes <= 1 << 20


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


@pytest.mark.parametrize("before", [None, b"before"])
def test_a_through_write_that_fails_leaves_what_was_there(
    mounted: Files, lake: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    if before is not None:
        put(mounted, "/lake/a", before)
    with monkeypatch.context() as broken:
        broken.setattr(UnderStore, "publish", lambda *_, **__: (_ for _ in ()).throw(UnderFull("it is full")))
        with pytest.raises(UnderError, match="it is full"):
            put(mounted, "/lake/a", b"after")
    if before is None:
        assert not mounted.exists("/lake/a")
        assert block_files(mounted) == []
    else:
        assert read(mounted, "/lake/a") == before
        assert mounted.persist("/lake/a", LONG_S).version == 1
    assert objects(lake) == ({} if before is None else {"a": before})


def test_a_through_write_that_loses_a_race_puts_the_winner_back(
    mounted: Files, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = UnderStore.publish
    other = iter([b"winner"])

    def publish(self: UnderStore, path: str, source: object, **arguments: object) -> object:
        found = whole(self, path, source, **arguments)
        for content in other:
            # As another server does: past this one's locks.
            block_id = "ab" * 16
            mounted._tier.put(f"/ab/{block_id}", len(content), [content])
            mounted._catalog.namespace.commit("/lake/a", block_id, len(content), persisted="done")
        return found

    monkeypatch.setattr(UnderStore, "publish", publish)
    with pytest.raises((PathExists, VersionConflict)):
        put(mounted, "/lake/a", b"loser", exclusive=True)
    assert read(mounted, "/lake/a") == b"winner"
    assert mounted.persist("/lake/a", LONG_S).version == 1
    assert objects(lake) == {"a": b"winner"}


def test_the_catalog_failing_after_the_publish(mounted: Files, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:

        def fail(*_: object, **__: object) -> None:
            raise Unreachable("the catalog is gone")

        broken.setattr(type(mounted._catalog.namespace), "commit", fail)
        with pytest.raises(Unreachable):
            put(mounted, "/lake/a")
    assert len(block_files(mounted)) == 1, "it may have been committed"
    mounted._chores.clean()
    assert block_files(mounted) == []
    assert read(mounted, "/lake/a") == b"content", "whole, from the under-store"


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


def test_an_upload_of_the_version_before_does_not_replace_what_is_written_through(mounted: Files, lake: Path) -> None:
    put(mounted, "/lake/a", b"before")
    uploaded = threading.Event()
    writer = threading.get_ident()

    def between() -> None:
        # The new object is there, and the catalog does not know it yet: the version before counts as waiting.
        mounted._persisting.submit_waiting()
        assert mounted.status().persister.pending_count == 1
        uploaded.wait(0.3)

    probe.watch("commit.publish.after", between)
    probe.watch("persist.publish.after", lambda: None if threading.get_ident() == writer else uploaded.set())
    try:
        entry = put(mounted, "/lake/a", b"after")
    finally:
        probe.watch("commit.publish.after", None)
        probe.watch("persist.publish.after", None)
    eventually(lambda: mounted.status().persister.pending_count == 0, "the upload has ended")
    assert objects(lake) == {"a": b"after"}
    assert mounted.free("/lake/a")
    assert read(mounted, "/lake/a") == b"after"
    assert mounted.stat("/lake/a").version == entry.version, "the under-store has just these bytes"


def test_several_through_to_the_under_store_at_once_or_none(mounted: Files, lake: Path) -> None:
    files = mounted
    put(files, "/lake/old", b"old")
    put(files, "/there")

    def commit(names: list[str], last: CommitOptions) -> None:
        made = [files.create(f"/lake/{name}", 4096 + 3) for name in names] + [files.create("/there", 4096 + 3)]
        for one in made:
            with BlockWriter(one.directory, one.block_path) as writer:
                writer.write(b"new")
        options = [CommitOptions()] * len(names) + [last]
        files.commit_all([(one.id, how) for one, how in zip(made, options, strict=True)])

    with pytest.raises(PathExists):
        commit(["old", "new"], CommitOptions(exclusive=True))
    assert [entry.path for entry in files.list("/lake")] == ["/lake/old"], "what was published is taken back"
    eventually(lambda: files.status().persister.pending_count == 0, "the version before is brought back")
    assert objects(lake) == {"old": b"old"}
    assert read(files, "/lake/old") == b"old"
    assert len(block_files(files)) == 2
    commit(["old", "new"], CommitOptions())
    assert objects(lake) == {"old": b"new", "new": b"new"}
    assert [entry.persisted for entry in files.list("/lake")] == ["done", "done"]


def late(cluster: Cluster, lake: Path, act: Callable[[Files], object], path: str = "/lake/a") -> Files:
    """Have another server do something to a file while the upload of its first version is under way."""
    one, two = cluster.start("one"), cluster.start("two")
    one.mount("/lake", f"file://{lake}", write_type="async_through")
    uploading, go = threading.Event(), threading.Event()

    def hold() -> None:
        probe.watch("persist.publish.before", None)
        uploading.set()
        assert go.wait(LONG_S)

    probe.watch("persist.publish.before", hold)
    acting = threading.Thread(target=act, args=(two,))
    try:
        put(one, path, b"before")
        assert uploading.wait(LONG_S)
        acting.start()
        acting.join(0.3)
    finally:
        go.set()
        acting.join()
    for files in (one, two):
        files._persisting.submit_waiting()
        eventually(lambda files=files: files.status().persister.pending_count == 0, "the uploads have ended")
    return two


def test_a_late_upload_of_another_server_does_not_replace_a_newer_version(cluster: Cluster, lake: Path) -> None:
    def replace(two: Files) -> None:
        put(two, "/lake/a", b"after")
        two.persist("/lake/a", LONG_S)

    two = late(cluster, lake, replace)
    assert objects(lake) == {"a": b"after"}
    two.free("/lake/a")
    assert read(two, "/lake/a") == b"after"


def test_a_late_upload_of_another_server_does_not_bring_a_removed_file_back(cluster: Cluster, lake: Path) -> None:
    two = late(cluster, lake, lambda two: two.remove("/lake/a"))
    assert objects(lake) == {}
    assert two.list("/lake") == []


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_late_upload_of_another_server_goes_where_its_file_has_gone(cluster: Cluster, lake: Path, below: str) -> None:
    two = late(cluster, lake, lambda two: two.rename("/lake/a", "/lake/b"), f"/lake/a{below}")
    assert objects(lake) == {f"b{below}": b"before"}
    assert [entry.path for entry in two.list("/lake")] == ["/lake/b"]
    two.free(f"/lake/b{below}")
    assert read(two, f"/lake/b{below}") == b"before"


def test_a_file_that_is_known_is_replaced_while_the_under_store_is_down(
    mounted: Files, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(mounted, "/lake/a", b"before")
    with monkeypatch.context() as broken:
        for name in ("info", "publish"):
            broken.setattr(UnderStore, name, lambda *_, **__: (_ for _ in ()).throw(UnderFull("it is full")))
        put(mounted, "/lake/a", b"after", write_type=WriteType.ASYNC_THROUGH)
        assert read(mounted, "/lake/a") == b"after"
        with pytest.raises(InvalidRequest, match="not persisted"):
            mounted.free("/lake/a")
    mounted.persist("/lake/a", LONG_S)
    assert objects(lake) == {"a": b"after"}


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
