"""Mount points: directories whose files are those of an under-store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sqlalchemy import Row, bindparam, delete, insert, select

from storage_tier.catalog.database import Database
from storage_tier.catalog.entries import Released, find, paths_of
from storage_tier.catalog.errors import DirectoryNotEmpty, MountConflict, PathExists
from storage_tier.catalog.paths import split
from storage_tier.catalog.rows import (
    delete_below,
    delete_directory,
    make_directory,
    parent_of,
    refuse_nonempty,
    touch,
    unsafe_below,
    update_entry,
)
from storage_tier.catalog.schema import mount
from storage_tier.errors import InvalidRequest

WriteType = Literal["must_cache", "cache_through", "async_through", "through"]

MAX_OPTIONS_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Mount:
    """An under-store at a path."""

    path: str
    url: str
    options: Mapping[str, Any] = field(hash=False, repr=False)
    """For the under-store's filesystem; may hold secrets, so it is never shown."""
    write_type: WriteType


class Mounts:
    """The mount points. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def mount(
        self,
        path: str,
        url: str,
        options: Mapping[str, Any] | None = None,
        write_type: WriteType = "async_through",
        parents: bool = False,
    ) -> Mount:
        """Make a path a mount point. Nothing, or an empty directory, must be there. Atomic.

        Whether the under-store can be reached is for the caller to try before.

        Args:
            path: where; it may lie below another mount point.
            url: of the under-store, as fsspec knows it.
            options: for its filesystem: anything that JSON can hold.
            write_type: how files written below it get there.
            parents: make directories that are missing above it.

        Raises:
            MountConflict: it is a mount point already, or the root.
            PathExists: a file is there. DirectoryNotEmpty: a directory with something in it is.
            PathNotFound, PathNotDirectory, InvalidPath, InvalidRequest.
        """
        names = split(path)
        if not names:
            raise MountConflict("the root cannot be a mount point: mount at a path like /data")
        if not isinstance(url, str) or not url or not url.isprintable():
            raise InvalidRequest(f"an under-store's URL is text like 's3://bucket/folder', and {url!r:.80} was given")
        if write_type not in get_args(WriteType):
            raise InvalidRequest(
                f"a write type is one of {', '.join(get_args(WriteType))}, and {write_type!r:.40} was given"
            )
        text = json_text(options, "options of a mount")
        with self._database.write() as write:
            place = find(write.connection, names)
            if place.found is None:
                parent = parent_of(write, place, parents)
                entry_id = make_directory(write, parent, names[-1], "mount").id
                touch(write, parent.id)
            else:
                entry_id = place.found.id
                if place.found.kind == "mount":
                    there = write.connection.execute(_OF, {"of": entry_id}).one()
                    raise MountConflict(f"{path} is a mount point of {there.url} already: unmount it first")
                if place.found.kind == "file":
                    raise PathExists(f"there is a file at {path} already: mount at a path where nothing is")
                refuse_nonempty(write, entry_id, path)
                update_entry(write, entry_id, kind="mount")
            values = {"entry_id": entry_id, "url": url, "options": text, "write_type": write_type}
            write.connection.execute(insert(mount), values)
            write.settings += 1
        return Mount(path, url, json.loads(text), write_type)

    def unmount(self, path: str, discard: bool = False) -> tuple[Released, ...]:
        """Take a mount point away, with all entries below it; the under-store keeps what it has. Atomic.

        Args:
            path: the mount point.
            discard: lose what the under-store does not have.

        Raises:
            MountConflict: it is none, or another one lies below it.
            DirectoryNotEmpty: files below it are only in memory, and `discard` is not given.
            PathNotFound, PathNotDirectory, InvalidPath.
        """
        names = split(path)
        with self._database.write() as write:
            place = find(write.connection, names)
            found = place.existing()
            if found.kind != "mount":
                raise MountConflict(f"{path} is no mount point but a {found.kind}")
            if not discard and (count := unsafe_below(write, found.id)):
                raise DirectoryNotEmpty(
                    f"files below {path} would be lost ({count:,}), for the under-store does not have them: persist or "
                    "remove them, or say that they may be discarded"
                )
            gone, lost_version = delete_below(write, found.id, path)
            delete_directory(write, found.id)
            write.connection.execute(_DELETE, {"of": found.id})
            write.settings += 1
            touch(write, place.parent().id, max(lost_version, found.version_floor))
            return gone

    def list(self) -> list[Mount]:
        """All mount points, by path."""
        with self._database.read() as connection:
            rows = connection.execute(_ALL).all()
            paths = paths_of(connection, [row.entry_id for row in rows])
        return sorted((_mount(paths[row.entry_id], row) for row in rows), key=lambda found: found.path)

    def of(self, path: str) -> Mount | None:
        """The mount point that a path is or lies below, the innermost; the path itself need not exist.

        Raises:
            InvalidPath.
        """
        names = split(path)
        with self._database.read() as connection:
            place = find(connection, names)
            here = place.found is not None and place.found.kind == "mount"
            entry_id = place.found.id if here and place.found is not None else place.mount_id()
            if entry_id is None:
                return None
            row = connection.execute(_OF, {"of": entry_id}).one()
            return _mount(paths_of(connection, [entry_id])[entry_id], row)


def json_text(values: Mapping[str, Any] | None, of: str) -> str:
    """A mapping as JSON text, or `InvalidRequest`."""
    if values is not None and (not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values)):
        raise InvalidRequest(f"{of} must be a mapping with names that are strings")
    try:
        text = json.dumps(dict(values or {}), separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{of} must be what JSON can hold: {error}") from None
    if len(text) > MAX_OPTIONS_BYTES:
        raise InvalidRequest(f"{of} have {len(text):,} bytes, and at most {MAX_OPTIONS_BYTES:,} are kept")
    return text


def _mount(path: str, row: Row[Any]) -> Mount:
    return Mount(path, row.url, json.loads(row.options), row.write_type)


_ALL = select(mount)
_OF = select(mount).where(mount.c.entry_id == bindparam("of"))
_DELETE = delete(mount).where(mount.c.entry_id == bindparam("of"))
