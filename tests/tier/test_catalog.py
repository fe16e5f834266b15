"""The namespace: files and their versions, and several changes at once."""

from __future__ import annotations

import math

import pytest

from storage_tier.catalog import KEEP, Catalog, NewFile, SettingsChanged, lookup
from storage_tier.catalog.entries import find
from storage_tier.catalog.errors import MountConflict, PathExists, PathNotFound, VersionConflict
from storage_tier.errors import InvalidRequest

from .catalog_files import paths, put

pytest_plugins = ["tests.tier.postgres"]


# ------------------------------------------------------------------ files


def test_a_file_is_what_was_committed(catalog: Catalog) -> None:
    metadata = {"step": 3, "loss": 0.1, "name": "é\0\ud800", "done": True, "none": None, "nan": math.inf, "big": 2**62}
    catalog.namespace.make_directory("/runs")
    changed = catalog.namespace.commit("/runs/a", "b1", 57, metadata=metadata, expires_ns=2**62, pinned=True)
    assert changed.released == ()
    found = catalog.namespace.stat("/runs/a")
    assert found == changed.entry
    assert (found.kind, found.version, found.size_bytes, found.block_id) == ("file", 1, 57, "b1")
    assert found.metadata == metadata
    assert (found.pinned, found.expires_ns, found.persisted) == (True, 2**62, "not_needed")
    assert found.created_ns == found.modified_ns > 1_600_000_000 * 10**9
    assert catalog.replicas.locations(["b1", "b0"]) == {"b1": ("s1",), "b0": ()}


def test_a_commit_replaces_the_version_before_and_releases_its_block(catalog: Catalog) -> None:
    first = catalog.namespace.commit(
        "/a", "b1", 1, metadata={"x": 1}, pinned=True, expires_ns=9, persisted="done"
    ).entry
    second = catalog.namespace.commit("/a", "b2", 2)
    assert second.released == (("b1", ("s1",)),)
    assert second.entry == catalog.namespace.stat("/a")
    assert second.entry.version == 2
    assert second.entry.metadata == {}
    assert second.entry.pinned, "a pin is the path's"
    assert second.entry.expires_ns is None, "a time to live is the version's"
    assert second.entry.persisted == "not_needed"
    assert second.entry.created_ns == first.created_ns <= second.entry.modified_ns
    assert not catalog.namespace.commit("/a", "b3", 2, pinned=False).entry.pinned


def test_exclusive_and_compare_and_swap(catalog: Catalog) -> None:
    commit = catalog.namespace.commit
    with pytest.raises(VersionConflict, match=r"no file at /a.*version 4 was expected"):
        commit("/a", "b1", 1, expected_version=4)
    assert commit("/a", "b1", 1, expected_version=0).entry.version == 1
    with pytest.raises(VersionConflict, match="/a has version 1, and version 0 was expected"):
        commit("/a", "b2", 1, expected_version=0)
    with pytest.raises(PathExists, match=r"file at /a already \(version 1\)"):
        commit("/a", "b2", 1, exclusive=True)
    assert commit("/a", "b2", 1, expected_version=1).entry.version == 2
    with pytest.raises(VersionConflict, match="has version 2, and version 1"):
        commit("/a", "b3", 1, expected_version=1)
    assert catalog.namespace.stat("/a").block_id == "b2"
    assert catalog.replicas.locations(["b3"]) == {"b3": ()}, "a refused commit left its replica behind"


def test_a_file_without_bytes_needs_no_block(catalog: Catalog) -> None:
    assert catalog.namespace.commit("/empty", None, 0).entry.block_id is None
    assert catalog.namespace.commit("/empty", "b1", 3).released == ()
    assert catalog.namespace.commit("/empty", None, 0).released == (("b1", ("s1",)),)
    assert catalog.namespace.remove("/empty") == ()


def test_what_changes_without_a_new_version(catalog: Catalog) -> None:
    namespace = catalog.namespace
    before = namespace.commit("/a", "b1", 1, persisted="waiting").entry
    assert paths(namespace.waiting()) == ["/a"]
    after = namespace.change("/a", pinned=True, expires_ns=5, persisted="done")
    assert after == namespace.stat("/a")
    assert (after.pinned, after.expires_ns, after.persisted) == (True, 5, "done")
    assert (after.version, after.modified_ns) == (before.version, before.modified_ns)
    assert namespace.waiting() == []
    assert namespace.change("/a", pinned=KEEP) == after
    assert namespace.change("/a", expires_ns=None).expires_ns is None
    namespace.commit("/a", "b2", 1, persisted="waiting")
    with pytest.raises(VersionConflict):
        namespace.change("/a", version=1, persisted="done")
    assert namespace.stat("/a").persisted == "waiting", "the old version was persisted, not this one"


def test_versions_are_not_given_twice(catalog: Catalog) -> None:
    namespace = catalog.namespace
    assert [put(catalog, "/d/a") for _ in range(3)] == [1, 2, 3]
    namespace.remove("/d/a")
    assert put(catalog, "/d/a") == 4, "after a removal"
    namespace.rename("/d/a", "/d/b")
    assert put(catalog, "/d/a") == 5, "after a rename away"
    assert put(catalog, "/d/b") == 5, "of the path it was renamed to"
    namespace.remove_directory("/d", recursive=True)
    assert put(catalog, "/d/a") == 6, "after its directory was removed"
    assert put(catalog, "/e/a") > 6 - 1
    last = put(catalog, "/e/a")
    namespace.rename("/e", "/f")
    assert put(catalog, "/e/a") > last, "after its directory was renamed"
    namespace.remove("/f/a")
    namespace.remove_directory("/f")
    assert put(catalog, "/f/a") > last, "after its directory was emptied and removed"


def test_a_directory_that_comes_knows_which_versions_its_new_place_has_seen(catalog: Catalog) -> None:
    assert [put(catalog, "/t/d/x") for _ in range(3)] == [1, 2, 3]
    catalog.namespace.remove_directory("/t/d", recursive=True)
    catalog.namespace.make_directory("/s/d", parents=True)
    catalog.namespace.rename("/s/d", "/t/d")
    assert put(catalog, "/t/d/x") == 4


def test_a_file_renamed_onto_another_is_its_next_version(catalog: Catalog) -> None:
    namespace = catalog.namespace
    for _ in range(3):
        put(catalog, "/a")
    put(catalog, "/new", "block")
    changed = namespace.rename("/new", "/a", overwrite=True)
    assert changed.entry.version == 4
    assert changed.entry.block_id == "block"
    assert [released.server_ids for released in changed.released] == [("s1",)]
    assert namespace.stat("/a") == changed.entry
    assert not namespace.exists("/new")


def test_copy_shares_the_block_until_the_last_name_is_gone(catalog: Catalog) -> None:
    namespace = catalog.namespace
    namespace.commit("/a", "b1", 7, metadata={"x": 1}, pinned=True, expires_ns=9)
    copied = namespace.copy("/a", "/b").entry
    assert (copied.block_id, copied.size_bytes, copied.metadata, copied.version) == ("b1", 7, {"x": 1}, 1)
    assert (copied.pinned, copied.expires_ns) == (False, None)
    with pytest.raises(PathExists):
        namespace.copy("/a", "/b")
    assert namespace.copy("/a", "/b", overwrite=True).entry.version == 2
    assert namespace.copy("/a", "/a", overwrite=True).entry == namespace.stat("/a")
    assert namespace.remove("/a") == ()
    assert namespace.commit("/b", "b2", 1).released == (("b1", ("s1",)),)
    with pytest.raises(PathNotFound):
        namespace.copy("/a", "/c")


def test_several_commits_at_once_or_none(catalog: Catalog) -> None:
    put(catalog, "/b")
    revision = catalog.revision()
    changes = catalog.namespace.commit_all(
        [NewFile("/d/a", "n1", 1, parents=True), NewFile("/b", "n2", 2, expected_version=1), NewFile("/c", None, 0)]
    )
    assert [changed.entry for changed in changes] == [catalog.namespace.stat(path) for path in ("/d/a", "/b", "/c")]
    assert [changed.entry.sequence for changed in changes] == [revision + 1, revision + 2, revision + 3]
    assert catalog.revision() == revision + 3
    before = catalog.namespace.find("/")
    with pytest.raises(VersionConflict):
        catalog.namespace.commit_all([NewFile("/e", "n3", 1), NewFile("/b", "n4", 2, expected_version=1)])
    with pytest.raises(InvalidRequest, match="in the catalog already"):
        catalog.namespace.commit_all([NewFile("/e", "n3", 1), NewFile("/b", "n2", 2)])
    with pytest.raises(SettingsChanged):
        catalog.namespace.commit_all([NewFile("/e", "n3", 1)], known_settings=catalog.settings() + 1)
    assert catalog.namespace.find("/") == before
    assert catalog.replicas.locations(["n3"])["n3"] == ()


def test_commits_in_their_order(catalog: Catalog) -> None:
    namespace = catalog.namespace
    namespace.commit("/a", "b1", 1, origin=("x@/",))
    since = namespace.stat("/a").sequence
    namespace.commit("/b", "b2", 1)
    namespace.commit("/loaded", "b3", 1, loaded=True, stamp="s", persisted="done")
    namespace.commit("/c", "b4", 1)
    namespace.commit("/b", "b5", 1)
    namespace.rename("/a", "/z")
    assert [(one.path, one.version) for one in namespace.committed(since)] == [("/c", 1), ("/b", 2), ("/z", 1)]
    assert namespace.committed(since) == [namespace.stat(path) for path in ("/c", "/b", "/z")]
    assert paths(namespace.committed(since, 1)) == ["/c"]
    assert namespace.stat("/z").origin == ("x@/",)
    loaded = namespace.stat("/loaded")
    assert (loaded.sequence, loaded.stamp) == (0, "s")
    assert namespace.change("/loaded", stamp="t").stamp == namespace.stat("/loaded").stamp == "t"
    catalog.members.register("s2", "")
    assert namespace.committed(0) == [], "another server has committed none"


def test_settings_are_counted_when_mounts_or_observers_may_have_changed(catalog: Catalog) -> None:
    namespace = catalog.namespace
    seen = [catalog.settings()]

    def changed() -> bool:
        seen.append(catalog.settings())
        return seen[-1] > seen[-2]

    put(catalog, "/d/a")
    namespace.make_directory("/e/f", parents=True)
    namespace.rename("/e/f", "/e/g")
    assert not changed(), "there are none"
    catalog.mounts.mount("/m/lake", "file:///x", parents=True)
    assert changed()
    attached = catalog.observers.attach("/d", "guard", "guard", options={"queue_count": 3})
    assert changed()
    assert catalog.observers.list() == [attached]
    assert (dict(attached.options), attached.sequence) == ({"queue_count": 3}, catalog.revision())
    put(catalog, "/d/b")
    namespace.rename("/d/b", "/d/c")
    namespace.remove("/d/c")
    assert not changed(), "files are none of it"
    namespace.rename("/d", "/dd")
    assert changed()
    namespace.remove_directory("/dd", recursive=True)
    assert changed()
    catalog.mounts.unmount("/m/lake")
    assert changed()


def test_cursors_are_kept_for_each_server(catalog: Catalog) -> None:
    catalog.observers.set_cursors({"a@1": 3, "b@2": 4})
    catalog.observers.set_cursors({"a@1": 5, "b@2": None})
    assert catalog.observers.cursors() == {"a@1": 5}
    catalog.members.register("s2", "")
    assert catalog.observers.cursors() == {}


def test_time_to_live(catalog_url: str) -> None:
    now_ns = 1000
    with Catalog(catalog_url, clock_ns=lambda: now_ns) as catalog:
        catalog.members.register("s1", "")
        for number in range(4):
            put(catalog, f"/d/{number}", f"b{number}", expires_ns=None if number == 3 else 1000 + number)
        revision = catalog.revision()
        now_ns = 999
        assert catalog.namespace.expire() == ([], ())
        assert catalog.revision() == revision, "nothing was due, and the revision grew"
        now_ns = 1001
        assert catalog.namespace.expire() == (["/d/0", "/d/1"], (("b0", ("s1",)), ("b1", ("s1",))))
        assert paths(catalog.namespace.list("/d")) == ["/d/2", "/d/3"]
        now_ns = 10**9
        assert catalog.namespace.expire(count=1)[0] == ["/d/2"]
        assert catalog.namespace.expire(count=1)[0] == []
        assert put(catalog, "/d/0") == 2


# ------------------------------------------------------------------ several changes at once


def test_changes_together_happen_together(catalog: Catalog, catalog_url: str) -> None:
    namespace = catalog.namespace
    with Catalog(catalog_url) as other:
        with catalog.together():
            put(catalog, "/a")
            put(catalog, "/b")
            assert namespace.exists("/a"), "a write reads what it has written"
            assert not other.namespace.exists("/a")
        assert paths(other.namespace.list("/")) == ["/a", "/b"]

        def half() -> None:
            with catalog.together():
                namespace.remove("/a")
                put(catalog, "/c")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            half()
        assert paths(other.namespace.list("/")) == ["/a", "/b"]


def test_what_is_remembered_is_never_old(catalog: Catalog, catalog_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[tuple[str, ...]] = []

    def counted(connection: object, names: tuple[str, ...]) -> object:
        queries.append(names)
        return find(connection, names)

    monkeypatch.setattr(lookup, "find", counted)
    look = lambda: catalog.namespace.stat("/a/b").block_id  # noqa: E731
    with Catalog(catalog_url) as other:
        other.members.register("s2", "coproc://127.0.0.1:2")
        put(catalog, "/a/b", "b1")
        queries.clear()
        assert [look(), look(), look()] == ["b1"] * 3
        assert len(queries) == (1 if catalog_url.startswith("sqlite") else 3)
        for number in range(2, 30):  # by another process, as far as the database can tell; and by this one
            put(other if number % 2 else catalog, "/a/b", f"b{number}")
            assert look() == f"b{number}"
        other.namespace.rename("/a", "/c")
        with pytest.raises(PathNotFound):
            look()
        put(other, "/a/b", "again")

        def half() -> None:
            with catalog.together():
                assert look() == "again"
                put(catalog, "/a/b", "never")
                assert look() == "never", "a write reads what it has written"
                assert other.namespace.stat("/a/b").block_id == "again"
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            half()
        assert look() == "again"


def test_a_part_of_changes_together_may_fail_alone(catalog: Catalog) -> None:
    with catalog.together():
        put(catalog, "/a")
        with pytest.raises(VersionConflict):
            catalog.namespace.commit("/x/y/z", "b", 1, parents=True, expected_version=3)
        with pytest.raises(InvalidRequest, match="already"):
            catalog.namespace.commit("/x/y/z", catalog.namespace.stat("/a").block_id, 1, parents=True)
        put(catalog, "/b")
    assert paths(catalog.namespace.find("/")) == ["/a", "/b"]


def test_the_revision_grows_with_each_change_and_with_nothing_else(catalog: Catalog) -> None:
    namespace = catalog.namespace
    seen = [catalog.revision()]

    def grown() -> bool:
        seen.append(catalog.revision())
        return seen[-1] > seen[-2]

    namespace.make_directory("/d")
    assert grown()
    put(catalog, "/d/a", "b1")
    assert grown()
    namespace.rename("/d/a", "/d/b")
    assert grown()
    namespace.change("/d/b", pinned=True)
    assert grown()
    catalog.mounts.mount("/m", "memory://")
    assert grown()
    catalog.observers.attach("/d", "x", "validate")
    assert grown()
    namespace.remove("/d/b")
    assert grown()
    namespace.stat("/d")
    namespace.list("/d")
    namespace.find("/")
    catalog.members.heartbeat()
    catalog.replicas.drop(["b1"])
    with pytest.raises(PathNotFound):
        namespace.remove("/d/b")
    with pytest.raises(MountConflict):
        namespace.remove_directory("/m")
    assert not grown()
