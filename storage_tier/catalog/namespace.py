"""Changing the namespace. Each call is one atomic write: all of it happened, or nothing and an error says why.

Versions. A commit of a path gives it the version after the one it has. A path that lost its file starts above what it
had, so a version is not given twice: a directory remembers the highest version that was lost in it. Where a whole
directory got another path, that is the catalog's revision, which no version is above; the files in it keep the versions
they have. The identity of bytes is the block id; a version orders the commits of one path.

Blocks. A block is named by the entries that have its id. What no entry names any more after a call is in its answer
with the servers that hold it, and `Replicas.orphans` finds it until each of them has dropped it. The id of a block that
was released is never used again, for it may be deleted at any moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from storage_tier.catalog.changes import KEEP, Changed, Keep, NewFile
from storage_tier.catalog.checks import (
    check_block,
    check_kinds,
    check_mounts,
    check_persisted,
    check_time,
    check_version,
)
from storage_tier.catalog.entries import (
    Entry,
    Found,
    Metadata,
    Persisted,
    Released,
    find,
    metadata_text,
    paths_of,
)
from storage_tier.catalog.errors import (
    MountConflict,
    PathExists,
    PathIsDirectory,
    PathNotDirectory,
)
from storage_tier.catalog.lookup import Lookup
from storage_tier.catalog.paths import split
from storage_tier.catalog.rows import (
    CHUNK_COUNT,
    EXPIRED,
    add_replicas,
    count_settings,
    delete_below,
    delete_directory,
    delete_file,
    insert_entry,
    make_directory,
    parent_of,
    refuse_nonempty,
    release,
    touch,
    update_entry,
)
from storage_tier.errors import InvalidRequest


class Namespace(Lookup):
    """The namespace for readers and writers. Thread-safe. Whoever changes something must be a member."""

    def make_directory(self, path: str, parents: bool = False, exist_ok: bool = False) -> Entry:
        """Make a directory.

        Args:
            path: where.
            parents: make what is missing above it too.
            exist_ok: a directory or mount point that is there already is no error.

        Raises:
            PathExists, PathNotFound (no parent), PathNotDirectory (a file above it), InvalidPath.
        """
        names = split(path)
        with self._database.write() as write:
            place = find(write.connection, names)
            if place.found is not None:
                if place.found.kind == "file" or not exist_ok:
                    raise PathExists(f"there is a {place.found.kind} at {path} already")
                return place.found.entry(path)
            parent = parent_of(write, place, parents)
            made = make_directory(write, parent, names[-1])
            touch(write, parent.id)
            return made.entry(path)

    def commit(
        self,
        path: str,
        block_id: str | None,
        size_bytes: int,
        *,
        metadata: Metadata | None = None,
        exclusive: bool = False,
        expected_version: int | None = None,
        parents: bool = False,
        persisted: Persisted = "not_needed",
        pinned: bool | Keep = KEEP,
        expires_ns: int | None = None,
        server_ids: Iterable[str] | None = None,
        origin: tuple[str, ...] = (),
        stamp: str | None = None,
        loaded: bool = False,
        known_settings: int | None = None,
    ) -> Changed:
        """Publish a version of a file: create it, or replace what is there. The commit point of a write.

        When an answer was lost (`Unreachable`), `stat` tells whether it was done: the block id is the caller's.

        Args:
            path: where.
            block_id: the sealed block with the bytes, a new one; None for an empty file without a block.
            size_bytes: of the file.
            metadata: names to strings, numbers, bools and None.
            exclusive: only where nothing is.
            expected_version: only where the file has this version: compare and swap. 0: only where there is none.
            parents: make directories that are missing above it.
            persisted: whether the under-store has these bytes, shall have them, or has nothing to do with them.
            pinned: KEEP means as the version before, and not for a new file.
            expires_ns: when it shall be removed; None for never, whatever the version before had.
            server_ids: who holds the block; None for this server alone.
            origin: the observers by whose work it came to be.
            stamp: what the under-store called these bytes.
            loaded: it comes from the under-store, and is nobody's commit: its sequence is 0.
            known_settings: what `Catalog.settings` has to be.

        Raises:
            SettingsChanged: `known_settings` is not.
            PathExists: `exclusive`, and something is there.
            VersionConflict: the version is not the expected one; it tells both.
            PathIsDirectory, PathNotFound (no parent), PathNotDirectory (a file above it), InvalidPath,
            InvalidRequest.
        """
        names = split(path)
        text = metadata_text(metadata)
        check_block(path, block_id, size_bytes)
        check_persisted(persisted)
        check_time(expires_ns)
        server_id = self._database.server_id
        with self._database.write(known_settings=known_settings) as write:
            place = find(write.connection, names)
            found = place.found
            if found is not None and found.kind != "file":
                raise PathIsDirectory(f"{path} is a {found.kind}, and a file cannot take its place")
            if found is not None and exclusive:
                raise PathExists(f"there is a file at {path} already (version {found.version})")
            check_version(path, found, expected_version)
            parent = parent_of(write, place, parents)
            new = Found(
                id=0 if found is None else found.id,
                kind="file",
                version_floor=0,
                version=(parent.version_floor if found is None else found.version) + 1,
                size_bytes=size_bytes,
                block_id=block_id,
                metadata=text,
                created_ns=write.now_ns if found is None else found.created_ns,
                modified_ns=write.now_ns,
                pinned=(found is not None and found.pinned) if isinstance(pinned, Keep) else pinned,
                persisted=persisted,
                expires_ns=expires_ns,
                sequence=0 if loaded else write.revision,
                origin=json.dumps(list(origin)) if origin else None,
                stamp=stamp,
            )
            if found is None:
                insert_entry(write, parent.id, names[-1], new, server_id)
                touch(write, parent.id)
            else:
                update_entry(write, found.id, **new._asdict(), server_id=server_id)
            if block_id is not None:
                add_replicas(write, block_id, (server_id,) if server_ids is None else server_ids)
            old = () if found is None else (found.block_id,)
            return Changed(new.entry(path), release(write.connection, old))

    def commit_all(self, files: Sequence[NewFile], known_settings: int | None = None) -> list[Changed]:
        """`commit` several files in one transaction, in their order: all of them, or none when one is refused.

        Args:
            files: each has a sequence of its own.
            known_settings: what `Catalog.settings` has to be.

        Raises:
            as `commit`.
        """
        with self._database.write(changes=False, parts=False, known_settings=known_settings):
            return [self.commit(**vars(file)) for file in files]

    def copy(self, source: str, target: str, overwrite: bool = False, persisted: Persisted = "not_needed") -> Changed:
        """Publish the bytes of a file at another path too. Nothing is copied: both name the same block.

        Metadata comes along, a pin and a time to live don't.

        Args:
            source: a file.
            target: where; a file there is replaced if `overwrite`.
            overwrite: the target may exist.
            persisted: whether the under-store has the *target*, shall have it, or has nothing to do with it.

        Raises:
            PathExists: the target is there, and `overwrite` is not given.
            PathNotFound, PathNotDirectory, PathIsDirectory, InvalidPath, InvalidRequest.
        """
        names = split(source)
        split(target)
        with self._database.write(changes=False) as write:
            found = find(write.connection, names).existing()
            if found.kind != "file":
                raise PathIsDirectory(f"{source} is a {found.kind}, and only files are copied")
            if source == target:
                return Changed(found.entry(source), ())
            return self.commit(
                target,
                found.block_id,
                found.size_bytes,
                metadata=found.entry(source).metadata,
                exclusive=not overwrite,
                persisted=persisted,
                # Who holds the block is known already.
                server_ids=(),
                stamp=found.stamp,
            )

    def change(
        self,
        path: str,
        *,
        version: int | None = None,
        pinned: bool | Keep = KEEP,
        expires_ns: int | Keep | None = KEEP,
        persisted: Persisted | Keep = KEEP,
        stamp: str | Keep | None = KEEP,
    ) -> Entry:
        """Pin a file or not, give it a time to live or none, note how far it is persisted. Its version stays.

        Args:
            path: the file.
            version: only while it has this version: what was persisted may not be what is there now.
            pinned, expires_ns, persisted: KEEP leaves it as it is.
            stamp: what the under-store calls its bytes; KEEP too.

        Raises:
            VersionConflict, PathNotFound, PathIsDirectory, PathNotDirectory, InvalidPath, InvalidRequest.
        """
        names = split(path)
        values: dict[str, Any] = {}
        if not isinstance(pinned, Keep):
            values["pinned"] = pinned
        if not isinstance(expires_ns, Keep):
            check_time(expires_ns)
            values["expires_ns"] = expires_ns
        if not isinstance(persisted, Keep):
            check_persisted(persisted)
            values["persisted"] = persisted
        if not isinstance(stamp, Keep):
            values["stamp"] = stamp
        with self._database.write() as write:
            found = find(write.connection, names).existing()
            if found.kind != "file":
                raise PathIsDirectory(f"{path} is a {found.kind}: only files are pinned, persisted and expire")
            check_version(path, found, version)
            if values:
                update_entry(write, found.id, **values)
            return found._replace(**values).entry(path)

    def remove(self, path: str, version: int | None = None) -> tuple[Released, ...]:
        """Remove a file.

        Args:
            path: which.
            version: only while it has this version.

        Raises:
            VersionConflict, PathNotFound, PathIsDirectory, PathNotDirectory, InvalidPath.
        """
        names = split(path)
        with self._database.write() as write:
            place = find(write.connection, names)
            found = place.existing()
            if found.kind != "file":
                raise PathIsDirectory(f"{path} is a {found.kind}, and only a file was to be removed")
            check_version(path, found, version)
            delete_file(write, found.id)
            touch(write, place.parent().id, found.version)
            return release(write.connection, (found.block_id,))

    def remove_directory(self, path: str, recursive: bool = False) -> tuple[Released, ...]:
        """Remove a directory, with `recursive` and all that lies below it. Observers attached to it go with it.

        Raises:
            DirectoryNotEmpty: it is not, and `recursive` is not given.
            MountConflict: it is a mount point, or one lies below it.
            PathNotFound, PathNotDirectory, InvalidPath, InvalidRequest (the root).
        """
        names = split(path)
        if not names:
            raise InvalidRequest("the root cannot be removed")
        with self._database.write() as write:
            place = find(write.connection, names)
            found = place.existing()
            if found.kind == "file":
                raise PathNotDirectory(f"{path} is a file, and only a directory was to be removed")
            if found.kind == "mount":
                raise MountConflict(f"{path} is a mount point: unmount it")
            if not recursive:
                refuse_nonempty(write, found.id, path)
            count_settings(write)
            gone, lost_version = delete_below(write, found.id, path)
            delete_directory(write, found.id)
            touch(write, place.parent().id, max(lost_version, found.version_floor))
            return gone

    def rename(self, source: str, target: str, overwrite: bool = False) -> Changed:
        """Give a file or a whole directory another path. One row moves, whatever lies below it.

        A file renamed onto a path is a commit of that path: its version there is above all that were there.

        Args:
            source: what is moved.
            target: its new path. Renaming something to itself changes nothing.
            overwrite: a file may take the place of a file, a directory that of an empty directory.

        Raises:
            PathExists: the target is there, and `overwrite` is not given.
            DirectoryNotEmpty: the target is a directory with something in it.
            PathIsDirectory, PathNotDirectory: one is a file and the other is not; or a file is above the target.
            MountConflict: a mount point is to be moved or replaced, or the two are below different ones.
            InvalidRequest: the root, or a directory into itself.
            PathNotFound, InvalidPath.
        """
        source_names, target_names = split(source), split(target)
        if not source_names or not target_names:
            raise InvalidRequest("the root cannot be renamed, and nothing can take its place")
        with self._database.write() as write:
            source_place = find(write.connection, source_names)
            moved = source_place.existing()
            if source_names == target_names:
                return Changed(moved.entry(source), ())
            if target_names[: len(source_names)] == source_names and moved.kind != "file":
                raise InvalidRequest(f"{source} cannot be moved into itself, to {target}")
            target_place = find(write.connection, target_names)
            source_parent, target_parent = source_place.parent(), target_place.parent()
            check_mounts(source_place, target_place)
            replaced = target_place.found
            if moved.kind != "file":
                count_settings(write)
            if replaced is not None:
                check_kinds(moved, replaced, source, target, overwrite)
                if replaced.kind == "file":
                    delete_file(write, replaced.id)
                else:
                    refuse_nonempty(write, replaced.id, target)
                    delete_directory(write, replaced.id)
            if moved.kind == "file":
                before = target_parent.version_floor if replaced is None else replaced.version
                landed = moved._replace(
                    version=max(moved.version, before + 1), modified_ns=write.now_ns, sequence=write.revision
                )
                lost_version = moved.version
            else:
                below = target_parent.version_floor if replaced is None else replaced.version_floor
                landed = moved._replace(version_floor=max(moved.version_floor, below))
                lost_version = write.revision
            moved_to = {"parent_id": target_parent.id, "name": target_names[-1], "server_id": self._database.server_id}
            changes = ("version", "version_floor", "modified_ns", "sequence")
            update_entry(write, moved.id, **moved_to, **{name: getattr(landed, name) for name in changes})
            touch(write, source_parent.id, lost_version)
            if target_parent.id != source_parent.id:
                touch(write, target_parent.id)
            old = () if replaced is None else (replaced.block_id,)
            return Changed(landed.entry(target), release(write.connection, old))

    def expire(self, count: int = CHUNK_COUNT) -> tuple[list[str], tuple[Released, ...]]:
        """Remove files whose time to live is over: their paths, and the released blocks.

        When nothing is due it only reads.

        Args:
            count: at most so many; call again while it removes that many.
        """
        with self._database.read() as connection:
            due = {"now_ns": self._database.now_ns(connection), "count": count}
            if connection.execute(EXPIRED, {**due, "count": 1}).first() is None:
                return [], ()
        with self._database.write() as write:
            rows = write.connection.execute(EXPIRED, due).all()
            paths = paths_of(write.connection, [row.id for row in rows])
            for parent_id, *row in rows:
                found = Found(*row)
                delete_file(write, found.id)
                touch(write, parent_id, found.version)
            return [paths[row.id] for row in rows], release(write.connection, (row.block_id for row in rows))
