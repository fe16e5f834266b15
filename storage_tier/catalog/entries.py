"""What the catalog tells about a path, and how it is found. Everything here only reads.

A path of n names is found by one query: n joins down the tree, outer ones, so that one answer also tells how far
the path exists and what is above it. Longer paths take one query for each `LEVEL_COUNT` names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Select, bindparam, select

from storage_tier.catalog.errors import PathNotDirectory, PathNotFound
from storage_tier.catalog.execute import run
from storage_tier.catalog.paths import join
from storage_tier.catalog.schema import ROOT_ID, entry
from storage_tier.errors import InvalidRequest

Kind = Literal["directory", "file", "mount"]
Persisted = Literal["not_needed", "waiting", "done"]
Value = str | int | float | bool | None
Metadata = Mapping[str, Value]

MAX_METADATA_BYTES = 64 << 10
# PostgreSQL plans that many joins in the order given, without searching for a better one.
LEVEL_COUNT = 8

_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory, a file or a mount point, as it was at one moment."""

    path: str
    kind: Kind
    """A mount point is a directory whose files are those of an under-store."""
    version: int
    """Of a file: +1 with each commit of the path. It stands for these bytes at this path; 0 for a directory."""
    size_bytes: int
    block_id: str | None
    """The sealed block that holds the bytes; None for a directory, and for an empty file that has none."""
    metadata: Metadata = field(hash=False)
    created_ns: int
    """When the first version was committed, in nanoseconds since 1970."""
    modified_ns: int
    """When this version was committed; of a directory, when something in it came, went or was renamed."""
    pinned: bool
    """Its block is no victim of eviction."""
    persisted: Persisted
    """Whether the under-store has these bytes: 'waiting' when it shall."""
    expires_ns: int | None
    """When it will be removed."""
    sequence: int = 0
    """The place of its commit in the order of all commits of this catalog; 0 of what was loaded from an under-store."""
    origin: tuple[str, ...] = ()
    """The observers by whose work it came to be."""
    stamp: str | None = None
    """What the under-store called these bytes when they were published or loaded."""

    @property
    def is_directory(self) -> bool:
        """Whether it can hold entries: a directory or a mount point."""
        return self.kind != "file"


class Released(NamedTuple):
    """A block that no entry names any more: its bytes may be deleted, then `Replicas.drop` tells so."""

    block_id: str
    server_ids: tuple[str, ...]
    """Who holds it."""


class Above(NamedTuple):
    """A directory on the way to a path."""

    id: int
    kind: str
    version_floor: int


class Found(NamedTuple):
    """A row of the namespace."""

    id: int
    kind: str
    version_floor: int
    version: int
    size_bytes: int
    block_id: str | None
    metadata: str
    created_ns: int
    modified_ns: int
    pinned: bool
    persisted: str
    expires_ns: int | None
    sequence: int = 0
    origin: str | None = None
    stamp: str | None = None

    def entry(self, path: str) -> Entry:
        """The row as callers see it."""
        return Entry(
            path,
            self.kind,  # type: ignore[arg-type]
            self.version,
            self.size_bytes,
            self.block_id,
            {} if self.metadata == "{}" else json.loads(self.metadata),
            self.created_ns,
            self.modified_ns,
            bool(self.pinned),
            self.persisted,  # type: ignore[arg-type]
            self.expires_ns,
            self.sequence,
            () if self.origin is None else tuple(json.loads(self.origin)),
            self.stamp,
        )


COLUMNS = [entry.c[name] for name in Found._fields]


class Place(NamedTuple):
    """Where a path leads."""

    names: tuple[str, ...]
    above: list[Above]
    """What exists of the path, from the root down, without its last name. It ends at a file, if one is in the way."""
    found: Found | None
    """What is at the path."""

    @property
    def path(self) -> str:
        return join(self.names)

    def existing(self) -> Found:
        """What is at the path.

        Raises:
            PathNotFound, PathNotDirectory: nothing; the sentence says how far the path exists.
        """
        if self.found is None:
            self.parent()
            raise PathNotFound(f"there is nothing at {self.path}")
        return self.found

    def parent(self) -> Above:
        """The directory that holds the path, or would hold it. Of the root itself, the root.

        Raises:
            PathNotFound, PathNotDirectory: there is none.
        """
        last = self.above[-1]
        if last.kind == "file":
            raise PathNotDirectory(f"{join(self.names[: len(self.above) - 1])} is a file, so {self.path} cannot exist")
        if len(self.above) < len(self.names):
            missing = join(self.names[: len(self.above)])
            raise PathNotFound(f"there is no directory {missing}, so {self.path} cannot exist: make it first")
        return last

    def mount_id(self) -> int | None:
        """The id of the mount point that the path is below, the innermost; None below none."""
        return next((above.id for above in reversed(self.above) if above.kind == "mount"), None)


@cache
def _descent(count: int) -> Select[Any]:
    """The query down `count` names, below the directory `start`."""
    levels = [entry.alias(f"level{number}") for number in range(count + 1)]
    joined: Any = levels[0]
    for number in range(1, count + 1):
        upper, lower = levels[number - 1], levels[number]
        joined = joined.outerjoin(
            lower, (lower.c.parent_id == upper.c.id) & (lower.c.name == bindparam(f"name{number}"))
        )
    columns = [level.c[name] for level in levels[:-1] for name in Above._fields]
    last = [levels[-1].c[name] for name in Found._fields]
    return select(*columns, *last).select_from(joined).where(levels[0].c.id == bindparam("start"))


_NAMES = [f"name{number}" for number in range(LEVEL_COUNT + 1)]
_WIDTH = len(Above._fields)


def find(connection: Connection, names: tuple[str, ...]) -> Place:
    """Where a path leads. One query for each `LEVEL_COUNT` names."""
    above: list[Above] = []
    start = ROOT_ID
    position = 0
    while True:
        part = names[position : position + LEVEL_COUNT]
        parameters: dict[str, Any] = dict(zip(_NAMES[1:], part, strict=False))
        parameters["start"] = start
        row = run(connection, _descent(len(part)), parameters)[0]
        for number in range(len(part)):
            offset = number * _WIDTH
            if row[offset] is None:
                return Place(names, above, None)
            above.append(Above(*row[offset : offset + _WIDTH]))
        position += len(part)
        found = Found(*row[len(part) * _WIDTH :]) if row[len(part) * _WIDTH] is not None else None
        if position == len(names):
            # The root is the directory that holds itself.
            return Place(names, above or [Above(ROOT_ID, "directory", row[2])], found)
        if found is None:
            return Place(names, above, None)
        start = found.id


_UP = select(entry.c.id, entry.c.parent_id, entry.c.name).where(entry.c.id.in_(bindparam("ids", expanding=True)))


def paths_of(connection: Connection, ids: Iterable[int]) -> dict[int, str]:
    """The paths of entries by id; one query a level. An id that is gone is left out."""
    below: dict[int, tuple[int, str]] = {}
    wanted = set(ids)
    missing = wanted - {ROOT_ID}
    while missing:
        for row in connection.execute(_UP, {"ids": sorted(missing)}):
            below[row.id] = (row.parent_id, row.name)
        missing = {parent for parent, _ in below.values()} - below.keys() - {ROOT_ID}
    paths = {}
    for wanted_id in wanted:
        names: list[str] = []
        current = wanted_id
        while current in below:
            current, name = below[current]
            names.append(name)
        if current == ROOT_ID:
            paths[wanted_id] = join(tuple(reversed(names)))
    return paths


def metadata_text(metadata: Metadata | None) -> str:
    """Metadata as it is stored.

    Raises:
        InvalidRequest: a name that is not a string, a value that is none of string, 64-bit integer, float, bool
            and None, or more than 64 KiB.
    """
    if not metadata:
        return "{}"
    if not isinstance(metadata, Mapping):
        raise InvalidRequest(f"metadata must be a mapping of names to values, and {metadata!r:.80} was given")
    for name, value in metadata.items():
        if not isinstance(name, str):
            raise InvalidRequest(f"metadata has the name {name!r:.80}: names must be strings")
        if not isinstance(value, str | int | float | bool | None):
            raise InvalidRequest(
                f"metadata {name!r:.80} is a {type(value).__name__}: only strings, numbers, bools and None are kept"
            )
        if isinstance(value, int) and value not in _INT64:
            raise InvalidRequest(f"metadata {name!r:.80} does not fit into a 64-bit integer")
    text = json.dumps(dict(metadata), separators=(",", ":"))
    if len(text) > MAX_METADATA_BYTES:
        raise InvalidRequest(f"metadata of {len(text):,} bytes: at most {MAX_METADATA_BYTES:,} are kept")
    return text
