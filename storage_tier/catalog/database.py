"""One database, SQLite or PostgreSQL: snapshots to read, and the one queue in which all writers stand.

A write first takes the queue: `BEGIN IMMEDIATE` on SQLite, the lock of the one row of `tier_catalog` on PostgreSQL.
What it then reads nobody changes before it ends, so every write is serializable on both, nothing deadlocks, nothing
has to be tried again, and the revision that it counts up is the order of the commits. The price is that writes to
PostgreSQL do not overlap; what they wait for is its disk. The threads of a process queue among themselves first, for
one connection: SQLite's own waiting is a sleep, and there whoever comes last may win.

Durability. PostgreSQL as it is set up. SQLite with a write-ahead log and `synchronous=NORMAL`: a commit survives the
death of every process, and a power failure can take the last ones, never the consistency. The bytes which those
commits name lie in memory and are gone with the power too.

Time is the database's: the clock of the PostgreSQL server, which all hosts share, or of this host, which all users of
an SQLite file share. So heartbeats of different hosts can be compared. Tests give a clock of their own.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, bindparam, literal_column, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from storage_tier.catalog.engines import POOL_SIZE, begin, busy, check_open, end, open_engine, parse_url, translate
from storage_tier.catalog.errors import Fenced
from storage_tier.catalog.execute import part, run
from storage_tier.catalog.schema import catalog, member, prepare
from storage_tier.errors import DeadlineExceeded, InvalidRequest

# Kept out of the pool, which has more for those that come at once.
KEPT_READER_COUNT = 8
# Answers that each of these remembers; with all that metadata may be that is 16 MiB.
REMEMBERED_COUNT = 256
_SEEN = "PRAGMA data_version"

_DATABASE_NOW = literal_column(
    "CAST(extract(epoch FROM clock_timestamp()) * 1000000000 AS bigint)", sqlalchemy.BigInteger
)
_NOW = select(_DATABASE_NOW)
_REVISION = select(catalog.c.revision)
_SETTINGS = select(catalog.c.settings)
_COUNT = update(catalog).values(revision=bindparam("new_revision"), settings=bindparam("new_settings"))
_EPOCH = select(member.c.epoch).where(member.c.server_id == bindparam("of"), ~member.c.retired)


T = TypeVar("T")


class SettingsChanged(Exception):
    """Mounts or observers are not those that the caller knows: look at them and try again. Nothing was changed."""


@dataclass(slots=True)
class _Reader:
    """A connection to an SQLite file that reads, and what it has read."""

    connection: Connection
    driver: sqlite3.Connection
    seen: int = -1
    """What SQLite counts up before this connection sees what any other has committed; `answers` are of this state."""
    answers: dict[Any, Any] = field(default_factory=dict)


@dataclass
class Write:
    """One write under way."""

    connection: Connection
    revision: int
    """What the catalog's revision will be when it commits; each change in it has one of its own."""
    settings: int
    """+1 whenever mounts, observers or their paths may have changed."""
    now_ns: int
    parts: bool
    """Whether a change in it that fails is undone alone."""
    failed: bool = False
    """Whether one has failed that is not undone alone."""


class Database:
    """Thread-safe. Not across a fork: open it after."""

    def __init__(self, url: str | Path, timeout_s: float, clock_ns: Callable[[], int] | None = None) -> None:
        """Open, and make the tables in an empty database.

        Args:
            url: 'sqlite:///FILE', 'postgresql://USER@HOST/DATABASE', or a path, which is an SQLite file.
            timeout_s: how long a call waits for the queue, for a connection, for an answer.
            clock_ns: instead of the database's clock.

        Raises:
            InvalidRequest, CatalogRefused, Unreachable, DeadlineExceeded, Unsupported.
        """
        parsed = parse_url(url)
        self.name = parsed.render_as_string(hide_password=True)
        self.timeout_s = timeout_s
        self._clock_ns = clock_ns or (time.time_ns if parsed.get_backend_name() == "sqlite" else None)
        state: list[Any] = [catalog.c.revision, catalog.c.membership, catalog.c.settings]
        # SQLite ignores the lock, for it has taken one already.
        state += [] if self._clock_ns else [_DATABASE_NOW]
        self._take = select(*state).with_for_update()
        self._take_and_count = update(catalog).values(revision=catalog.c.revision + 1).returning(*state)
        self._local = threading.local()
        self._turn = threading.Lock()
        self._closed = False
        self._file = parsed.get_backend_name() == "sqlite"
        self._readers: list[_Reader] = []
        self._writer: Connection | None = None
        self._member: tuple[str, int] | None = None
        self._membership_seen = -1
        with self._translated():
            self._engine = open_engine(parsed, timeout_s)
        # Ignored by SQLite, where a transaction that reads is a snapshot anyway.
        options = {} if parsed.get_backend_name() == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        self._reading = self._engine.execution_options(**options) if options else self._engine
        try:
            with self._translated(), self._engine.connect() as connection:
                begin(connection, "BEGIN IMMEDIATE")
                try:
                    prepare(connection, self.now_ns(connection), self.name)
                except BaseException:
                    end(connection, commit=False)
                    raise
                end(connection, commit=True)
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def server_id(self) -> str:
        """In whose name this process writes.

        Raises:
            InvalidRequest: nobody is registered here.
        """
        return self._registered()[0]

    def become(self, server_id: str, epoch: int) -> None:
        """From now on this process writes in this name, as long as the catalog has this epoch for it."""
        self._member = (server_id, epoch)
        self._membership_seen = -1

    @contextmanager
    def read(self, snapshot: bool = True) -> Iterator[Connection]:
        """One snapshot of the database; inside of a write of this thread, what it has written so far.

        Args:
            snapshot: False for a single query by `run`, which is one by itself: it costs half.
        """
        outer: Write | None = getattr(self._local, "write", None)
        if outer is not None:
            yield outer.connection
            return
        self._refuse_closed()
        with self._translated():
            if not self._file:
                with self._reading.connect() as connection:
                    yield connection
                return
            with self._reader() as reader:
                if snapshot:
                    begin(reader.connection, "BEGIN")
                try:
                    yield reader.connection
                finally:
                    end(reader.connection, commit=False)

    def remembered(self, key: Hashable, query: Callable[[Connection], T]) -> T:
        """What a single query by `run` gives now: from memory, where SQLite says that nothing was committed since.

        By no process; so it is never older than the query's own answer would be. That costs a third of a small query.
        PostgreSQL does not say it, and is asked each time. Who gets the answer must not change it.
        """
        if not self._file or getattr(self._local, "write", None) is not None:
            with self.read(snapshot=False) as connection:
                return query(connection)
        self._refuse_closed()
        with self._translated(), self._reader() as reader:
            seen = reader.driver.execute(_SEEN).fetchone()[0]
            if seen != reader.seen or len(reader.answers) >= REMEMBERED_COUNT:
                reader.answers.clear()
                reader.seen = seen
            answer: T | None = reader.answers.get(key)
            if answer is None:
                # What is committed before this query is remembered too early, and forgotten at the next look.
                answer = reader.answers[key] = query(reader.connection)
            return answer

    @contextmanager
    def write(
        self, changes: bool = True, fenced: bool = True, parts: bool = True, known_settings: int | None = None
    ) -> Iterator[Write]:
        """One atomic write: all of it is there when this returns, or nothing when it raises.

        Inside of another write of this thread it is a part of that one: it happens with it, and can fail alone.

        Args:
            changes: it changes the namespace, so the revision grows.
            fenced: it needs a registered member of the current epoch.
            parts: whether writes inside of this one can fail alone; without, this one has to fail when they do.
            known_settings: what `Write.settings` has to be.

        Raises:
            Fenced; InvalidRequest: nobody is registered here.
            SettingsChanged: they are not the known ones.
            DeadlineExceeded, Unreachable: as they say; after the latter it is not known whether it was committed.
        """
        if fenced:
            self._registered()
        outer: Write | None = getattr(self._local, "write", None)
        if outer is not None:
            outer.revision += changes
            _check_settings(outer, known_settings)
            if outer.parts:
                with self._translated(), part(outer.connection):
                    yield outer
            else:
                try:
                    yield outer
                except BaseException:
                    outer.failed = True
                    raise
            return
        with self._translated(), self._turn_of_this_process() as connection:
            state = self._queue(connection, self._take_and_count if changes else self._take)
            try:
                write = self._checked(connection, state, fenced, parts)
                _check_settings(write, known_settings)
                self._local.write = write
                try:
                    yield write
                finally:
                    self._local.write = None
                if (write.revision, write.settings) != (state[0], state[2]):
                    run(connection, _COUNT, {"new_revision": write.revision, "new_settings": write.settings})
                check_open(connection)
                if write.failed:
                    raise AssertionError("a change failed inside of a write without parts, which went on all the same")
                end(connection, commit=True)
            except BaseException:
                end(connection, commit=False)
                raise

    def revision(self) -> int:
        """The catalog's revision now. One short query."""
        with self.read(snapshot=False) as connection:
            return int(run(connection, _REVISION)[0][0])

    def settings(self) -> int:
        """Grows whenever mounts, observers or their paths may have changed. One short query."""
        with self.read(snapshot=False) as connection:
            return int(run(connection, _SETTINGS)[0][0])

    def now_ns(self, connection: Connection) -> int:
        """The time by the one clock of this catalog, in nanoseconds since 1970."""
        return self._clock_ns() if self._clock_ns else int(run(connection, _NOW)[0][0])

    def close(self) -> None:
        """Close all connections, after the write under way. Idempotent."""
        with self._turn:
            self._closed = True
            if self._writer is not None:
                if not self._writer.invalidated:
                    # Back in a pool that was replaced since, after a loss of the others, nobody would close it.
                    self._writer.detach()
                self._writer.close()
                self._writer = None
        while self._readers:
            self._readers.pop().connection.close()
        self._engine.dispose()

    # ------------------------------------------------------------------

    def _registered(self) -> tuple[str, int]:
        if self._member is None:
            raise InvalidRequest(f"nobody writes to the catalog {self.name} without being a member: register first")
        return self._member

    @contextmanager
    def _turn_of_this_process(self) -> Iterator[Connection]:
        """The one connection that writes, for this thread alone."""
        if not self._turn.acquire(timeout=self.timeout_s):
            raise busy(self.name, self.timeout_s)
        try:
            if self._writer is None:
                self._refuse_closed()
                self._writer = self._engine.connect()
            yield self._writer
        finally:
            self._turn.release()

    @contextmanager
    def _reader(self) -> Iterator[_Reader]:
        """A connection that reads; some are kept open, for the pool's way of lending one costs more than a query."""
        try:
            reader = self._readers.pop()
        except IndexError:
            connection = self._engine.connect()
            reader = _Reader(connection, connection.connection.driver_connection)  # type: ignore[arg-type]
        kept = True
        try:
            yield reader
        except (DBAPIError, sqlite3.Error):
            kept = False
            raise
        finally:
            if kept and len(self._readers) < KEPT_READER_COUNT and not self._closed:
                self._readers.append(reader)
            else:
                reader.connection.close()

    def _queue(self, connection: Connection, take: Any) -> Any:
        """Begin a transaction and wait for the turn; once again when the connection was lost since the last one."""
        for again in (True, False):
            try:
                begin(connection, "BEGIN IMMEDIATE")
                return run(connection, take)[0]
            except BaseException as error:
                end(connection, commit=False)
                # Nothing was done yet, so nothing can be done twice.
                if not (again and isinstance(error, DBAPIError) and error.connection_invalidated):
                    raise
        raise AssertionError("unreachable")

    def _checked(self, connection: Connection, state: Any, fenced: bool, parts: bool) -> Write:
        if fenced and state[1] != self._membership_seen:
            server_id, epoch = self._registered()
            # After the lock and in a statement of its own: PostgreSQL then shows what was committed meanwhile.
            found = next((row[0] for row in run(connection, _EPOCH, {"of": server_id})), None)
            if found != epoch:
                raise Fenced(
                    f"the server {server_id} has {f'epoch {found}' if found else 'no epoch'} in the catalog, and this "
                    f"process has epoch {epoch}: the server was started anew, or retired while it was silent. Stop "
                    "this process"
                )
            self._membership_seen = state[1]
        return Write(connection, state[0], state[2], self._clock_ns() if self._clock_ns else state[3], parts)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise InvalidRequest(f"the catalog {self.name} is closed")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Failures of the database as ours. Mistakes of this program stay what they are."""
        try:
            yield
        except PoolTimeoutError as error:
            raise DeadlineExceeded(
                f"all {POOL_SIZE} connections to the catalog {self.name} were in use for {self.timeout_s:g} s"
            ) from error
        except (DBAPIError, sqlite3.Error) as error:
            translated = translate(error, self.name, self.timeout_s)
            if translated is None:
                raise
            raise translated from error


def _check_settings(write: Write, known: int | None) -> None:
    if known is not None and known != write.settings:
        raise SettingsChanged
