"""A tier in a dictionary, with observers: the smallest thing that calls an `ObserverHost` as a server does."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from storage_tier.errors import BlockExists, BlockNotFound, VersionConflict
from storage_tier.headers import Metadata, is_below
from storage_tier.observers.base import CommittedFile, FileInfo, Origin
from storage_tier.observers.files import OpenedFile, PendingFile
from storage_tier.observers.host import ObserverHost
from storage_tier.observers.sealed import sealed_copy

Listing = Sequence[FileInfo]


@dataclass(frozen=True)
class Stored:
    """The newest version of a path."""

    file: CommittedFile
    data: bytes


class MemoryTier:
    """Files by path, their commits by sequence, and a host. Thread-safe. It is the host's `TierFiles` itself."""

    def __init__(self, replays: bool = True, facts: Mapping[str, Any] | None = None) -> None:
        self._lock = threading.Lock()
        self._sequence = 0
        self.stored: dict[str, Stored] = {}
        self.cursors: dict[str, int] = {}
        """What was recorded, by attachment."""
        self.host = ObserverHost(self, self.replay if replays else None, self.cursors.__setitem__, facts)

    def put(self, path: str, data: bytes, metadata: Metadata | None = None, origin: Origin = ()) -> CommittedFile:
        """Commit a file, over what was there, after its observers were asked; then tell them.

        Raises:
            Vetoed, ObserverFailed, DeadlineExceeded.
        """
        fd = os.memfd_create("pending", os.MFD_CLOEXEC)
        try:
            os.pwrite(fd, data, 0)
            self.host.before_commit(PendingFile(FileInfo(path, 0, len(data), metadata or {}), fd, 0, origin))
        finally:
            os.close(fd)
        with self._lock:
            self._sequence += 1
            before = self.stored.get(path)
            version = before.file.version + 1 if before else 1
            file = CommittedFile(path, version, len(data), metadata or {}, self._sequence, origin)
            self.stored[path] = Stored(file, data)
            # Under the lock: commits are told in the order of their sequences.
            self.host.after_commit(file)
        return file

    def get(self, path: str) -> bytes:
        """The newest bytes of a path."""
        return self._find(path).data

    def replay(self, directory: str, since: int, limit_count: int) -> list[CommittedFile]:
        """The commits after a sequence, in order; of a path only the newest."""
        with self._lock:
            files = [stored.file for stored in self.stored.values()]
        found = [file for file in files if file.sequence > since and is_below(file.path, directory)]
        return sorted(found, key=lambda file: file.sequence)[:limit_count]

    # ---- what observers ask for

    def list(self, prefix: str, after_path: str, limit_count: int) -> Listing:
        with self._lock:
            paths = sorted(path for path in self.stored if is_below(path, prefix) and path > after_path)
            return [self.stored[path].file for path in paths[:limit_count]]

    def open(self, path: str, version: int | None) -> OpenedFile:
        stored = self._find(path)
        if version not in (None, stored.file.version):
            raise BlockNotFound(f"{path} has version {stored.file.version}, and {version} was asked for")
        return OpenedFile(stored.file, sealed_copy(stored.data))

    def write(
        self, path: str, fd: int, size_bytes: int, metadata: Metadata, origin: Origin, if_version: int | None
    ) -> FileInfo:
        with self._lock:
            stored = self.stored.get(path)
        version = stored.file.version if stored else 0
        if if_version not in (None, version):
            raise VersionConflict(f"{path} has version {version}, and version {if_version} was expected")
        return self.put(path, os.pread(fd, size_bytes, 0), metadata, origin)

    def copy(self, source: str, target: str, origin: Origin) -> FileInfo:
        stored = self._find(source)
        return self.put(target, stored.data, stored.file.metadata, origin)

    def delete(self, path: str, if_version: int | None, origin: Origin) -> None:
        with self._lock:
            stored = self.stored.get(path)
            if stored is None:
                raise BlockNotFound(f"there is no file {path}")
            if if_version not in (None, stored.file.version):
                raise BlockExists(f"{path} has version {stored.file.version} by now, and not {if_version}")
            del self.stored[path]

    def _find(self, path: str) -> Stored:
        with self._lock, suppress(KeyError):
            return self.stored[path]
        raise BlockNotFound(f"there is no file {path}")

    def close(self) -> None:
        """End the observers."""
        self.host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
