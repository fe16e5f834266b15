"""Which observers are attached to which directories: names and parameters, never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from storage_tier.catalog.checks import check_id
from storage_tier.catalog.database import Database
from storage_tier.catalog.entries import Found, find, paths_of
from storage_tier.catalog.errors import PathExists, PathNotDirectory, PathNotFound
from storage_tier.catalog.execute import run
from storage_tier.catalog.mounts import json_text
from storage_tier.catalog.paths import split
from storage_tier.catalog.schema import cursor, observer

MAX_FAILURE_CHARACTERS = 16 << 10


@dataclass(frozen=True, slots=True)
class Attached:
    """An observer on a directory."""

    directory: str
    """Where it is attached; when the directory is renamed it goes along."""
    name: str
    """What it is called there."""
    observer: str
    """Which one it is, in the registry of entry points."""
    parameters: Mapping[str, Any] = field(hash=False)
    attached_ns: int
    failure: str | None
    """Why it is quarantined: the traceback. None while it works."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """How it is run."""
    sequence: int = 0
    """It is told of the commits after this one."""

    @property
    def id(self) -> str:
        """The same for life, also when the directory is renamed; never given twice."""
        return f"{self.name}@{self.sequence}"


# Inside of `Observers` the name `list` is its method.
Attachments = list[Attached]


class Observers:
    """The attachments. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def attach(
        self,
        directory: str,
        name: str,
        observer: str,
        parameters: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Attached:
        """Attach an observer to a directory or mount point. Atomic.

        Args:
            directory: must exist.
            name: what it is called there.
            observer: its name in the registry; whether it is registered is for the caller to look up.
            parameters: anything that JSON can hold.
            options: how it is run; anything that JSON can hold.

        Raises:
            PathExists: the name is taken on this directory.
            PathNotFound, PathNotDirectory, InvalidPath, InvalidRequest.
        """
        names = split(directory)
        check_id(name, "attachment")
        check_id(observer, "registered observer")
        text = json_text(parameters, "parameters of an observer")
        options_text = json_text(options, "options of an observer")
        with self._database.write() as write:
            found = _directory(write.connection, names, directory)
            key = {"of": found.id, "called": name}
            if write.connection.execute(_ONE, key).first() is not None:
                raise PathExists(f"{directory} has an observer {name} already: detach it first")
            values = {"entry_id": found.id, "name": name, "observer": observer, "parameters": text}
            when = {"attached_ns": write.now_ns, "attached_sequence": write.revision}
            write.connection.execute(_INSERT, {**values, **when, "options": options_text, "failure": None})
            write.settings += 1
            sequence = write.revision
        parsed, parsed_options = json.loads(text), json.loads(options_text)
        return Attached(directory, name, observer, parsed, write.now_ns, None, parsed_options, sequence)

    def detach(self, directory: str, name: str) -> None:
        """Take an observer off a directory.

        Raises:
            PathNotFound: no observer of this name there. PathNotDirectory, InvalidPath.
        """
        self._change(directory, name, _DELETE, {})

    def quarantine(self, directory: str, name: str, failure: str | None) -> None:
        """Note that an observer failed and is not called any more; with None, that it is called again.

        Args:
            directory, name: which.
            failure: the traceback; only its end is kept if it is long.

        Raises:
            PathNotFound: no observer of this name there. PathNotDirectory, InvalidPath.
        """
        if failure is not None:
            # What a program printed may hold anything, and PostgreSQL keeps neither NUL nor half a character.
            failure = failure[-MAX_FAILURE_CHARACTERS:].replace("\0", "\N{REPLACEMENT CHARACTER}")
            failure = failure.encode(errors="replace").decode()
        self._change(directory, name, _QUARANTINE, {"failure": failure})

    def list(self) -> list[Attached]:
        """All attachments, by directory and name."""
        with self._database.read() as connection:
            rows = connection.execute(_ALL).all()
            paths = paths_of(connection, {row.entry_id for row in rows})
        return sorted((_attached(paths[row.entry_id], row) for row in rows), key=lambda one: (one.directory, one.name))

    def cursors(self) -> dict[str, int]:
        """How far this server has told each attachment of its commits: attachment id -> sequence."""
        with self._database.read() as connection:
            rows = connection.execute(_CURSORS, {"server": self._database.server_id}).all()
        return {row.attachment_id: row.sequence for row in rows}

    def set_cursors(self, cursors: Mapping[str, int | None]) -> None:
        """Note how far this server has told attachments of its commits; with None, that there is none any more."""
        server_id = self._database.server_id
        with self._database.write(changes=False) as write:
            for attachment_id, sequence in cursors.items():
                key = {"of": attachment_id, "server": server_id}
                run(write.connection, _DELETE_CURSOR, key)
                if sequence is not None:
                    values = {"attachment_id": attachment_id, "server_id": server_id, "sequence": sequence}
                    run(write.connection, _INSERT_CURSOR, values)

    def above(self, path: str) -> Attachments:
        """The attachments on all directories above a path, outermost first; the path itself need not exist.

        Raises:
            InvalidPath.
        """
        names = split(path)
        with self._database.read() as connection:
            ids = [above.id for above in find(connection, names).above]
            rows = connection.execute(_ON, {"ids": ids}).all()
            if not rows:
                return []
            paths = paths_of(connection, {row.entry_id for row in rows})
        return [
            _attached(paths[row.entry_id], row)
            for row in sorted(rows, key=lambda row: (ids.index(row.entry_id), row.name))
        ]

    def _change(self, directory: str, name: str, statement: Any, values: Mapping[str, Any]) -> None:
        names = split(directory)
        with self._database.write() as write:
            found = _directory(write.connection, names, directory)
            key = {"of": found.id, "called": name}
            if write.connection.execute(statement, {**key, **values}).rowcount == 0:
                raise PathNotFound(f"{directory} has no observer {name!r:.80}")
            write.settings += 1


def _directory(connection: Connection, names: tuple[str, ...], path: str) -> Found:
    found = find(connection, names).existing()
    if found.kind == "file":
        raise PathNotDirectory(f"{path} is a file, and observers are attached to directories")
    return found


def _attached(directory: str, row: Row[Any]) -> Attached:
    return Attached(
        directory,
        row.name,
        row.observer,
        json.loads(row.parameters),
        row.attached_ns,
        row.failure,
        json.loads(row.options),
        row.attached_sequence,
    )


_KEY = (observer.c.entry_id == bindparam("of")) & (observer.c.name == bindparam("called"))
_ALL = select(observer)
_ON = select(observer).where(observer.c.entry_id.in_(bindparam("ids", expanding=True)))
_ONE = select(observer.c.name).where(_KEY)
_INSERT = insert(observer)
_DELETE = delete(observer).where(_KEY)
_CURSORS = select(cursor.c.attachment_id, cursor.c.sequence).where(cursor.c.server_id == bindparam("server"))
_DELETE_CURSOR = delete(cursor).where(
    cursor.c.attachment_id == bindparam("of"), cursor.c.server_id == bindparam("server")
)
_INSERT_CURSOR = insert(cursor)
_QUARANTINE = update(observer).where(_KEY)
