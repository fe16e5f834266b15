"""The two databases behind one face: URLs, connections, how a transaction begins, and what their failures mean."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from storage_tier.catalog.errors import CatalogRefused
from storage_tier.errors import DeadlineExceeded, InvalidRequest, TierError, Unreachable, Unsupported

# One for each thread of a server that may ask at once; more wait for one to be free.
POOL_SIZE = 16
# A writer on PostgreSQL that is stopped, not dead, keeps all others waiting no longer than this.
IDLE_WRITER_S = 30.0


def parse_url(url: str | Path) -> URL:
    """A catalog's URL; a path is an SQLite file.

    Raises:
        InvalidRequest: neither an SQLite file nor PostgreSQL.
    """
    if isinstance(url, Path):
        return URL.create("sqlite", database=str(url))
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError):
        backend = ""
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        # Only the scheme is shown: a password may be in the rest.
        raise InvalidRequest(
            f"{str(url).split(':', 1)[0][:40]!r} is no catalog's URL: give sqlite:////dir/catalog.sqlite or "
            "postgresql+psycopg://user@host/database"
        )
    if parsed.database in (None, "", ":memory:") or parsed.query:
        raise InvalidRequest("a catalog in SQLite needs a file and nothing else: sqlite:////dir/catalog.sqlite")
    return parsed.set(drivername="sqlite")


def open_engine(url: URL, timeout_s: float) -> Engine:
    """Connections to a database. An SQLite file is made if it is missing; PostgreSQL is not connected to yet.

    Raises:
        Unsupported: an SQLite that is too old.
        sqlite3.Error: as SQLite says, to be translated.
    """
    pool: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_timeout": timeout_s}
    if url.get_backend_name() == "sqlite":
        if sqlite3.sqlite_version_info < (3, 35):
            raise Unsupported(f"a catalog needs SQLite 3.35 or later, and this Python has {sqlite3.sqlite_version}")
        _switch_to_log(str(url.database), timeout_s)
        # `begin` decides when a transaction begins, not the driver; and a connection may go from thread to thread.
        options: dict[str, Any] = {"isolation_level": None, "check_same_thread": False, "timeout": timeout_s}
        engine = create_engine(url, connect_args=options, poolclass=sqlalchemy.QueuePool, **pool)
        event.listen(engine, "connect", _set_up_sqlite)
        return engine
    milliseconds = round(timeout_s * 1000)
    settings = (
        f"-c lock_timeout={milliseconds} -c statement_timeout={milliseconds} "
        f"-c idle_in_transaction_session_timeout={round(IDLE_WRITER_S * 1000)}"
    )
    options = {"connect_timeout": max(2, round(timeout_s)), "options": settings}
    # Asking first is a round trip; without it each pooled connection would fail once after a restart of PostgreSQL.
    return create_engine(url, connect_args=options, pool_pre_ping=True, **pool)


def begin(connection: Connection, how: str) -> None:
    """Begin a transaction, on SQLite by 'BEGIN' or 'BEGIN IMMEDIATE'. `end` ends it.

    On SQLite past SQLAlchemy, where these few letters would cost as much as a query.
    """
    if connection.dialect.name == "sqlite":
        driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
        driver.execute(how)
    else:
        connection.begin()


def end(connection: Connection, commit: bool) -> None:
    """Commit the transaction under way, or undo it. Without one, nothing."""
    if connection.in_transaction() or connection.dialect.name != "sqlite":
        # SQLAlchemy has begun one beside the driver's, or the connection is lost.
        if commit:
            connection.commit()
        else:
            connection.rollback()
        return
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    if driver.in_transaction:
        driver.execute("COMMIT" if commit else "ROLLBACK")


def check_open(connection: Connection) -> None:
    """Refuse to commit what is not there any more: a full disk makes SQLite undo a transaction by itself.

    Raises:
        sqlite3.OperationalError: it did.
    """
    if connection.dialect.name == "sqlite" and not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        raise sqlite3.OperationalError("the database has undone the changes under way by itself")


def translate(error: DBAPIError | sqlite3.Error, name: str, timeout_s: float) -> TierError | None:
    """What a failure of the database means for a caller; None for a mistake of this program.

    Args:
        error: of SQLAlchemy or of SQLite itself.
        name: of the catalog, without a password.
        timeout_s: the one that may have run out.
    """
    cause = error.orig if isinstance(error, DBAPIError) else error
    said = " ".join(str(cause).split())
    code = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or ""
    # lock_not_available and query_canceled are PostgreSQL's.
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or code in ("55P03", "57014"):
        return busy(name, timeout_s)
    if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return CatalogRefused(f"{name} is not a whole SQLite database ({said}): give another file")
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if isinstance(error, OperationalError | sqlite3.OperationalError) or lost:
        return Unreachable(
            f"the catalog {name} failed ({said}); whether a change under way was made is not known. Check that it "
            "runs, has room, and can be reached from here"
        )
    return None


def busy(name: str, timeout_s: float) -> DeadlineExceeded:
    """Somebody else writes, and does not end."""
    return DeadlineExceeded(
        f"the catalog {name} was busy for {timeout_s:g} s: another process writes to it, perhaps one that was stopped. "
        "Nothing was changed"
    )


def _switch_to_log(path: str, timeout_s: float) -> None:
    """Give an SQLite file its write-ahead log, for good. SQLite does not wait for another who does the same."""
    deadline_s = time.monotonic() + timeout_s
    connection = sqlite3.connect(path, timeout=timeout_s, isolation_level=None)
    try:
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline_s:
                    raise
            time.sleep(0.005)
    finally:
        connection.close()


def _set_up_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA temp_store=MEMORY")
