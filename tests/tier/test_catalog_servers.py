"""The catalog of several servers: members, and who has which block."""

from __future__ import annotations

import time

import pytest

from storage_tier.catalog import Catalog, Member, Use
from storage_tier.catalog.errors import Fenced, VersionConflict
from storage_tier.errors import BlockNotFound, InvalidRequest

from .catalog_members import opened

pytest_plugins = ["tests.tier.postgres"]


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
