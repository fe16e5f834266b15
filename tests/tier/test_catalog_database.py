"""The database below the catalog: opening, restarts, waiting, and disks that are full."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from storage_tier.catalog import Catalog
from storage_tier.catalog.errors import CatalogRefused, PathExists
from storage_tier.errors import DeadlineExceeded, InvalidRequest, Unreachable

from .catalog_members import opened

pytest_plugins = ["tests.tier.postgres"]


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
