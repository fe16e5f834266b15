"""Writes below a mount that race, fail, or come late: the under-store never has what the catalog has not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_tier import probe
from storage_tier.errors import InvalidRequest, PathExists, UnderError, UnderFull, Unreachable, VersionConflict
from storage_tier.files import CommitOptions, Files
from storage_tier.under.store import UnderStore
from storage_tier.under.write_type import WriteType
from storage_tier.writer import BlockWriter

from . import files_servers, mounted_files
from .files_servers import LONG_S, Cluster, block_files, eventually, put, read
from .mounted_files import objects

cluster = files_servers.cluster
files = files_servers.files
lake = mounted_files.lake
mounted = mounted_files.mounted


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
            mounted._parts.tier.put(f"/ab/{block_id}", len(content), [content])
            mounted._parts.catalog.namespace.commit("/lake/a", block_id, len(content), persisted="done")
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

        broken.setattr(type(mounted._parts.catalog.namespace), "commit", fail)
        with pytest.raises(Unreachable):
            put(mounted, "/lake/a")
    assert len(block_files(mounted)) == 1, "it may have been committed"
    mounted._parts.chores.clean()
    assert block_files(mounted) == []
    assert read(mounted, "/lake/a") == b"content", "whole, from the under-store"


def test_an_upload_of_the_version_before_does_not_replace_what_is_written_through(mounted: Files, lake: Path) -> None:
    put(mounted, "/lake/a", b"before")
    uploaded = threading.Event()
    writer = threading.get_ident()

    def between() -> None:
        # The new object is there, and the catalog does not know it yet: the version before counts as waiting.
        mounted._parts.persisting.submit_waiting()
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
        files._parts.persisting.submit_waiting()
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
