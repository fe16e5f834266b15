"""What servers agree on: who they are, who holds which block, what is mounted and attached; and broken databases."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from storage_tier.catalog import Catalog, Member, Use
from storage_tier.catalog.errors import (
    CatalogRefused,
    DirectoryNotEmpty,
    Fenced,
    MountConflict,
    PathExists,
    PathNotFound,
    VersionConflict,
)
from storage_tier.errors import BlockNotFound, DeadlineExceeded, InvalidRequest, Unreachable

pytest_plugins = ["tests.tier.postgres"]


def opened(url: str, server_id: str, **how: object) -> Catalog:
    """The catalog, open in the name of a server."""
    catalog = Catalog(url, **how)
    catalog.members.register(server_id, f"coproc://{server_id}")
    return catalog


# ------------------------------------------------------------------ members


def test_members_and_their_heartbeats_by_one_clock(catalog_url: str) -> None:
    now_ns = 5_000_000_000
    with (
        opened(catalog_url, "s1", clock_ns=lambda: now_ns) as one,
        opened(catalog_url, "s2", clock_ns=lambda: now_ns) as two,
    ):
        now_ns += 3_000_000_000
        one.members.heartbeat()
        now_ns += 1_000_000_000
        assert two.members.list() == [
            Member("s1", 1, "coproc://s1", "", 5_000_000_000, 1.0),
            Member("s2", 1, "coproc://s2", "", 5_000_000_000, 4.0),
        ]
        assert [found.server_id for found in two.members.list(alive_within_s=3.9)] == ["s1"]


def test_the_clock_is_the_databases(catalog: Catalog) -> None:
    (found,) = catalog.members.list()
    assert abs(found.started_ns / 1e9 - time.time()) < 60
    assert 0 <= found.silent_s < 60


def test_a_newer_start_fences_the_older_one(catalog_url: str) -> None:
    with opened(catalog_url, "s1") as old, opened(catalog_url, "s2") as peer:
        old.namespace.commit("/a", "b1", 1, persisted="done")
        with Catalog(catalog_url) as new:
            assert new.members.register("s1", "coproc://elsewhere").epoch == 2
            revision = new.revision()
            writes = [
                lambda: old.namespace.commit("/b", "b2", 1),
                lambda: old.namespace.make_directory("/d"),
                lambda: old.namespace.make_directory("/", exist_ok=True),
                lambda: old.namespace.remove("/a"),
                lambda: old.namespace.rename("/a", "/b"),
                lambda: old.namespace.copy("/a", "/b"),
                lambda: old.namespace.change("/a", pinned=True),
                lambda: old.replicas.add("b1"),
                lambda: old.replicas.drop(["b1"]),
                lambda: old.replicas.evict(["b1"]),
                lambda: old.replicas.reconcile([]),
                lambda: old.mounts.mount("/m", "memory://"),
                lambda: old.observers.attach("/", "x", "validate"),
                old.members.heartbeat,
                lambda: old.members.retire("s2", 1),
                lambda: old.together().__enter__(),
            ]
            for _ in range(2):
                for write in writes:
                    with pytest.raises(Fenced, match=r"server s1 has epoch 2 .* process has epoch 1"):
                        write()
            assert new.revision() == revision
            new.namespace.commit("/b", "b3", 1)
            peer.namespace.commit("/c", "b4", 1)
            assert old.namespace.stat("/c").block_id == "b4", "reading is not writing"
            assert [(found.server_id, found.epoch) for found in new.members.list()] == [("s1", 2), ("s2", 1)]


def test_a_retired_server_is_fenced_and_holds_nothing(catalog_url: str) -> None:
    with opened(catalog_url, "s1") as one, opened(catalog_url, "s2") as two:
        two.namespace.commit("/lost", "b1", 1)
        two.namespace.commit("/shared", "b2", 1)
        one.replicas.add("b2")
        two.namespace.commit("/gone", "b3", 1)
        two.namespace.remove("/gone")
        with pytest.raises(VersionConflict, match="has epoch 1, and epoch 7"):
            one.members.retire("s2", 7)
        with pytest.raises(InvalidRequest, match="itself"):
            one.members.retire("s1", 1)
        assert one.members.retire("s2", 1) == ("b1",)
        assert one.replicas.locations(["b1", "b2", "b3"]) == {"b1": (), "b2": ("s1",), "b3": ()}
        assert [found.server_id for found in one.members.list()] == ["s1"]
        with pytest.raises(Fenced, match="no epoch"):
            two.members.heartbeat()
        with pytest.raises(InvalidRequest, match="no server s2"):
            one.members.retire("s2", 1)
        assert two.members.register("s2", "").epoch == 2
        two.members.heartbeat()


def test_nobody_writes_without_a_name(catalog_url: str) -> None:
    with Catalog(catalog_url) as catalog:
        for write in (lambda: catalog.namespace.commit("/a", "b", 1), catalog.members.heartbeat):
            with pytest.raises(InvalidRequest, match="register first"):
                write()
        assert catalog.namespace.list("/") == []
        for server_id in ("", "é", "a\0", None, "x" * 256):
            with pytest.raises(InvalidRequest, match="id of a server"):
                catalog.members.register(server_id, "")
        assert catalog.members.list() == []


# ------------------------------------------------------------------ replicas


def test_where_a_block_is(catalog_url: str) -> None:
    with opened(catalog_url, "s1") as one, opened(catalog_url, "s2") as two:
        one.namespace.commit("/a", "b1", 1)
        two.replicas.add("b1")
        two.replicas.add("b1")
        assert one.replicas.locations(["b1"]) == {"b1": ("s1", "s2")}
        assert one.namespace.remove("/a") == (("b1", ("s1", "s2")),)
        with pytest.raises(BlockNotFound, match="no file has the block b1"):
            two.replicas.add("b1")
        assert one.replicas.orphans() == two.replicas.orphans() == ("b1",)
        one.replicas.drop(["b1", "unknown"])
        assert one.replicas.orphans() == ()
        assert two.replicas.orphans() == ("b1",)
        two.replicas.drop(["b1"])
        assert two.replicas.locations(["b1"]) == {"b1": ()}


def test_only_what_is_safe_is_evicted(catalog_url: str) -> None:
    with opened(catalog_url, "s1") as one, opened(catalog_url, "s2") as two:
        for name, how in {
            "done": {"persisted": "done"},
            "waiting": {"persisted": "waiting"},
            "memory": {},
            "pinned": {"persisted": "done", "pinned": True},
            "twice": {"persisted": "done"},
        }.items():
            one.namespace.commit(f"/{name}", name, 1, **how)
        one.namespace.copy("/twice", "/twice2")  # this name of it is not persisted
        one.namespace.commit("/gone", "gone", 1)
        one.namespace.remove("/gone")
        blocks = ["done", "waiting", "memory", "pinned", "twice", "gone", "unknown"]
        assert one.replicas.uses(blocks) == {
            "done": Use(True, False, True, ("s1",)),
            "waiting": Use(True, False, False, ("s1",)),
            "memory": Use(True, False, False, ("s1",)),
            "pinned": Use(True, True, True, ("s1",)),
            "twice": Use(True, False, False, ("s1",)),
            "gone": Use(False, False, False, ("s1",)),
            "unknown": Use(False, False, False, ()),
        }
        assert one.replicas.evict(blocks) == ("done", "gone")
        assert one.namespace.stat("/done").block_id == "done", "the entry still says which bytes it has"
        two.replicas.add("memory")
        two.replicas.add("pinned")
        assert one.replicas.evict(blocks) == ("memory",)
        assert two.replicas.evict(blocks) == (), "the last copy was given up"
        assert two.replicas.locations(["memory", "pinned"]) == {"memory": ("s2",), "pinned": ("s1", "s2")}


def test_a_start_reconciles_what_is_held_with_what_is_named(catalog: Catalog) -> None:
    for name in ("kept", "lost", "removed", "removed and deleted"):
        catalog.namespace.commit(f"/{name}", name, 1)
    catalog.namespace.remove("/removed")
    catalog.namespace.remove("/removed and deleted")
    with catalog.together():
        for number in range(600):
            catalog.namespace.commit(f"/{number}", f"many{number}", 1, server_ids=())
    held = ["kept", "removed", "never committed", *(f"many{number}" for number in range(600))]
    found = catalog.replicas.reconcile(held)
    assert found == (("never committed", "removed"), ("lost",))
    assert catalog.replicas.orphans() == ()
    assert catalog.replicas.locations(["kept", "lost", "removed", "many7"]) == {
        "kept": ("s1",),
        "lost": (),
        "removed": (),
        "many7": ("s1",),
    }
    assert catalog.replicas.reconcile(held).lost == ()


def test_a_path_is_claimed_with_all_below_it_by_one_server_until_it_is_gone(catalog_url: str) -> None:
    now = [10**18]
    one, two = (opened(catalog_url, name, clock_ns=lambda: now[0]) for name in ("one", "two"))
    with one, two:
        take, other = one.claims.take, two.claims.take
        assert take("a", ["/m/d", "/m/f"], 10.0) is None
        for path in ("/", "/m", "/m/d", "/m/d/x/y", "/m/f"):
            assert other("b", ["/z", path], 10.0) in ("/m/d", "/m/f"), path
            assert take("c", [path], 10.0) is not None, "its own, too"
        assert other("b", ["/m/dd", "/m/e", "/z"], 10.0) is None, "and nothing was claimed by those that were refused"
        one.claims.give_back("a")
        assert other("d", ["/m/d"], 10.0) is None
        two.members.register("two", "coproc://two:2")
        assert take("e", ["/"], 10.0) is None, "claims end with the next start"
        now[0] += round(10.1e9)
        two.members.heartbeat()
        assert other("f", ["/m"], 10.0) is None, "and when their server is silent"
        one.claims.give_back("e")
        assert take("g", ["/m"], 100.0) == "/m", "nobody gives back what is another's"


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


# ------------------------------------------------------------------ the database


def test_what_is_committed_is_there_after_reopening(catalog_url: str) -> None:
    with opened(catalog_url, "s1") as catalog:
        catalog.namespace.commit("/a/b", "b1", 1, parents=True)
        revision = catalog.revision()
    with Catalog(catalog_url) as again:
        assert again.namespace.stat("/a/b").block_id == "b1"
        assert again.revision() == revision
        again.close()
        for call in (lambda: again.namespace.stat("/a"), lambda: again.members.register("s1", "")):
            with pytest.raises(InvalidRequest, match="is closed"):
                call()


def test_a_catalog_of_another_program_is_refused(catalog_url: str) -> None:
    Catalog(catalog_url).close()
    engine = create_engine(catalog_url)
    for found, sentence in [(99, "schema 99, .* knows schema 3: update this program"), (0, "schema 0, .* start with")]:
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE tier_catalog SET schema_version = {found}"))
        with pytest.raises(CatalogRefused, match=sentence):
            Catalog(catalog_url)
    engine.dispose()


def test_many_open_a_new_database_at_once(catalog_url: str) -> None:
    catalogs: list[Catalog] = []
    threads = [threading.Thread(target=lambda: catalogs.append(Catalog(catalog_url))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(catalogs) == 6
    for number, catalog in enumerate(catalogs):
        assert catalog.members.register("s1", "").epoch == number + 1
    for catalog in catalogs:
        catalog.close()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:///x?mode=ro", "nothing else"),
        ("mysql://root:hunter2@h/d", "'mysql' is no catalog's URL"),
        ("nonsense", "'nonsense' is no catalog's URL"),
        ("", "is no catalog's URL"),
    ],
)
def test_urls_that_are_none(url: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as caught:
        Catalog(url)
    assert "hunter2" not in str(caught.value)


def test_files_that_are_no_catalog(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is not a database, and it is longer than a header\n" * 100)
    with pytest.raises(CatalogRefused, match="not a whole SQLite database"):
        Catalog(tmp_path / "text")
    with pytest.raises(Unreachable, match="unable to open"):
        Catalog(tmp_path / "no" / "such" / "directory" / "catalog.sqlite")


def test_no_postgresql_there() -> None:
    with pytest.raises(Unreachable) as caught:
        Catalog("postgresql+psycopg://me:hunter2@127.0.0.1:1/tier", timeout_s=5.0)
    assert "hunter2" not in str(caught.value)
    assert "me:***@127.0.0.1:1/tier" in str(caught.value)


def test_a_postgresql_that_was_restarted(own_postgres: Any) -> None:
    postgres = own_postgres
    with opened(postgres.url(), "s1") as catalog:
        catalog.namespace.commit("/a", "b1", 1)
        postgres.stop()
        for call in (catalog.members.heartbeat, lambda: catalog.namespace.stat("/a")):
            with pytest.raises(Unreachable, match="Check that it runs"):
                call()
        postgres.start()
        assert catalog.namespace.commit("/a", "b2", 1).entry.version == 2
        assert catalog.namespace.stat("/a").version == 2
        postgres.stop()
        postgres.start()
        assert catalog.namespace.stat("/a").version == 2
        catalog.members.heartbeat()


def test_a_writer_that_does_not_end(catalog_url: str) -> None:
    with opened(catalog_url, "s1") as one, opened(catalog_url, "s2", timeout_s=0.3) as two:
        with one.together():
            with pytest.raises(DeadlineExceeded, match=r"busy for 0\.3 s"):
                two.namespace.make_directory("/d")
            assert two.namespace.list("/") == [], "readers do not wait for writers"
        two.namespace.make_directory("/d")
        entered, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with two.together():
                entered.set()
                leave.wait(30)

        holder = threading.Thread(target=hold)
        holder.start()
        entered.wait(30)
        with pytest.raises(DeadlineExceeded, match=r"busy for 0\.3 s"):
            two.namespace.make_directory("/e")
        leave.set()
        holder.join()
        two.namespace.make_directory("/e")


def test_a_write_without_parts_fails_as_a_whole(catalog: Catalog) -> None:
    def go_on() -> None:
        with catalog.together(parts=False):
            catalog.namespace.make_directory("/d")
            with pytest.raises(PathExists):
                catalog.namespace.make_directory("/d")

    with pytest.raises(AssertionError, match="went on all the same"):
        go_on()
    assert catalog.namespace.list("/") == []
    revision = catalog.revision()
    with catalog.together(parts=False):
        catalog.namespace.make_directory("/d")
        catalog.namespace.commit("/d/a", "b1", 1)
    assert catalog.revision() == revision + 2


def test_a_full_disk_is_a_sentence_and_changes_nothing(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/catalog.sqlite", "s1") as catalog:
        driver: sqlite3.Connection = catalog.namespace._database._writer.connection.driver_connection
        driver.execute("PRAGMA max_page_count=1")  # cannot be below what it has: no page more

        def fill() -> None:
            for number in range(1000):
                catalog.namespace.commit(f"/{number}", f"b{number}", 1, metadata={"x": "y" * 1000})

        with pytest.raises(Unreachable, match="full"):
            fill()
        found = catalog.namespace.list("/")
        assert all(catalog.replicas.locations([one.block_id])[one.block_id] for one in found)
        driver.execute("PRAGMA max_page_count=100000")
        catalog.namespace.commit("/after", "after", 1)


def test_changes_that_sqlite_undid_by_itself_are_not_reported_as_made(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/catalog.sqlite", "s1") as catalog:

        def undone() -> None:
            with catalog.together():
                catalog.namespace.make_directory("/d")
                # As a full disk does it, and the caller caught the error.
                catalog.namespace._database._writer.connection.driver_connection.execute("ROLLBACK")

        with pytest.raises(Unreachable, match="undone the changes"):
            undone()
        assert catalog.namespace.list("/") == []
        catalog.namespace.make_directory("/d")
