"""Virtual files: what an observer gives for a path where no file is, kept as a block for who reads it now."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from storage_tier.catalog import Entry
from storage_tier.files.base import block_path_of, new_block_id
from storage_tier.files.held import Held
from storage_tier.observers.base import FileInfo
from storage_tier.observers.files import OpenedFile
from storage_tier.tier import Tier

# Between `locate` and the map of a reader; one that is far reads as long as it holds the block open.
KEPT_S = 60.0
# A look at a file and opening it are one question to the observer.
FRESH_S = 0.5


@dataclass(frozen=True)
class _Made:
    entry: Entry
    made_s: float


class VirtualFiles:
    """Blocks that no entry names and nobody has noted: gone when nobody reads them, and with a restart. Thread-safe."""

    def __init__(
        self,
        tier: Tier,
        held: Held,
        resolve: Callable[[str, float], OpenedFile | None],
        listed: Callable[[str], list[FileInfo]],
    ) -> None:
        self._tier = tier
        self._held = held
        self._resolve = resolve
        self._listed = listed
        self._lock = threading.Lock()
        self._newest: dict[str, _Made] = {}
        self._all: dict[str, float] = {}

    def find(self, path: str, timeout_s: float, fresh_s: float = 0.0) -> Entry | None:
        """The file as an observer gives it now, whole, as a block of this server; None when none knows it.

        Args:
            fresh_s: one that was made so lately will do.

        Raises:
            ObserverFailed, DeadlineExceeded, OutOfMemory.
        """
        with self._lock:
            made = self._newest.get(path)
        if made is not None and time.monotonic() - made.made_s < fresh_s and self._present(made.entry):
            return made.entry
        found = self._resolve(path, timeout_s)
        if found is None:
            return None
        try:
            if made is not None and self._same(made.entry, found):
                self._remember(path, made.entry)
                return made.entry
            entry = self._keep(path, found)
        finally:
            os.close(found.fd)
        self._remember(path, entry)
        return entry

    def list(self, directory: str) -> list[Entry]:
        """The virtual files in a directory that observers tell of, without their bytes."""
        return [_entry(info, None) for info in self._listed(directory)]

    def drop_idle(self, older_than_s: float = KEPT_S) -> int:
        """Delete those that nobody has open, not the newest ones; returns how many."""
        now_s = time.monotonic()
        with self._lock:
            old = [block_id for block_id, used_s in self._all.items() if now_s - used_s >= older_than_s]
            idle = [block_id for block_id in old if not self._tier.is_open(block_path_of(block_id))]
            for block_id in idle:
                del self._all[block_id]
            self._newest = {path: made for path, made in self._newest.items() if made.entry.block_id not in idle}
        return self._held.drop(idle)

    def has(self, block_id: str) -> bool:
        """Whether a block is one of these."""
        return block_id in self._all

    def _same(self, entry: Entry, found: OpenedFile) -> bool:
        """Whether it is a version that is here; 0 is none."""
        told = (found.info.version, found.info.size_bytes, dict(found.info.metadata))
        return entry.version > 0 and (entry.version, entry.size_bytes, entry.metadata) == told and self._present(entry)

    def _present(self, entry: Entry) -> bool:
        return entry.block_id is not None and self._held.find(entry.block_id, remember=False) is not None

    def _remember(self, path: str, entry: Entry) -> None:
        with self._lock:
            self._newest[path] = _Made(entry, time.monotonic())
            if entry.block_id is not None:
                self._all[entry.block_id] = time.monotonic()

    def _keep(self, path: str, found: OpenedFile) -> Entry:
        block_id = new_block_id()

        def fill(fd: int, offset_bytes: int) -> None:
            copy_range(found.fd, found.offset_bytes, fd, offset_bytes, found.info.size_bytes)

        with self._lock:
            self._all[block_id] = time.monotonic()
        self._tier.fill(block_path_of(block_id), found.info.size_bytes, fill)
        return _entry(found.info, block_id)


def _entry(info: FileInfo, block_id: str | None) -> Entry:
    now_ns = time.time_ns()
    return Entry(
        path=info.path,
        kind="file",
        version=info.version,
        size_bytes=info.size_bytes,
        block_id=block_id,
        metadata=dict(info.metadata),
        created_ns=now_ns,
        modified_ns=now_ns,
        pinned=False,
        persisted="not_needed",
        expires_ns=None,
    )


def copy_range(source_fd: int, source_bytes: int, target_fd: int, target_bytes: int, size_bytes: int) -> None:
    """Copy bytes from file to file, inside the kernel. Ends early where the source does."""
    os.lseek(target_fd, target_bytes, os.SEEK_SET)
    while size_bytes > 0:
        done = os.sendfile(target_fd, source_fd, source_bytes, size_bytes)
        if done == 0:
            return
        source_bytes += done
        size_bytes -= done
