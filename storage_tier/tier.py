"""The local store of one server: its directory, its lock, its blocks and its budget. No sockets.

    DIRECTORY/lock            held (flock) by the one live owner; contains its pid
    DIRECTORY/identity.json   server id for life, epoch of the last start
    DIRECTORY/nonce           random bytes of this start: who can read them is on this host
    DIRECTORY/blocks/...      one sealed file a block; the files are the catalog, a restart reads their
    headers
    SPILL/SERVER/...          the second level, on a disk, when asked for: blocks that were moved out of memory

A near writer links its file into blocks/ by itself and tells the tier afterwards; the link is the commit
point. So the tier looks at the disk before it says that a block is not there.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from storage_tier.blocks import Block, is_open
from storage_tier.budget import Budget, check_shared_memory, default_limit_bytes, larger_shared_memory
from storage_tier.directory import (
    BLOCKS_NAME,
    IDENTITY_NAME,
    LOCK_NAME,
    count_held_bytes,
    make_directory,
    next_epoch,
    refuse_foreign,
    take_lock,
)
from storage_tier.directory import remove_directory as remove_directory
from storage_tier.errors import (
    BlockNotFound,
    InvalidRequest,
    OutOfMemory,
    Unsupported,
)
from storage_tier.first_level import FirstLevel
from storage_tier.first_level import Reservation as Reservation
from storage_tier.headers import (
    BlockInfo,
    Metadata,
    block_file,
    clean_metadata,
    clean_path,
    payload_offset_bytes,
    whole_pages,
)
from storage_tier.host import NONCE_NAME, TEMPORARY_PREFIX, write_nonce
from storage_tier.probe import hit
from storage_tier.second_level import SecondLevel
from storage_tier.writer import BlockWriter

# A near writer has this long from its reservation to its commit: 57 MB take 25 ms, on a busy host a hundred times that.
RESERVATION_TTL_S = 60.0


@dataclass(frozen=True)
class TierStatus:
    """What a server holds at one moment."""

    server_id: str
    epoch: int
    directory: str
    memory_used_bytes: int
    memory_limit_bytes: int
    block_count: int
    block_bytes: int
    reservation_count: int
    started_ns: int
    damaged_count: int
    damaged: tuple[str, ...]
    """Sentences about files below blocks/ that are not served; over the wire only the first of them."""
    spilled_count: int = 0
    """Blocks of the second level, which are in none of the numbers above."""
    spilled_bytes: int = 0


class Tier:
    """The store. Thread-safe. Its directory outlives it: the next `Tier` there has the same blocks."""

    def __init__(
        self,
        directory: Path,
        memory_bytes: int | None = None,
        spill_directory: Path | None = None,
        spill_bytes: int | None = None,
    ) -> None:
        """Take the directory (made if missing, mode 0700), count a new epoch, rebuild the list of blocks.

        Deletes nothing but half-written temporaries and empty directories below blocks/.

        Args:
            directory: on tmpfs, as a rule below /dev/shm; belongs to this tier alone.
            memory_bytes: the budget; None means 0.8 of what is free there now.
            spill_directory: the second level, on a disk; several servers may have the same. Its blocks cost no memory.
            spill_bytes: the most that this server keeps there; None: what the disk has.

        Raises:
            DirectoryInUse: another live server owns it; its pid is in the sentence.
            DirectoryRefused: it belongs to another user, or it holds files that are not a tier's.
            OutOfMemory: the file system has no room for `memory_bytes`.
            Unsupported: not Linux, or a file system without unnamed files.
        """
        if sys.platform != "linux":
            raise Unsupported(f"a tier needs Linux (tmpfs, unnamed files, flock), and this is {sys.platform}")
        self.directory = Path(os.path.abspath(directory))
        make_directory(self.directory)
        refuse_foreign(self.directory)
        self._lock_fd = take_lock(self.directory)
        try:
            os.chmod(self.directory, 0o700)
            for temporary in self.directory.glob(TEMPORARY_PREFIX + "*"):
                temporary.unlink(missing_ok=True)
            self.blocks_directory = self.directory / BLOCKS_NAME
            held_bytes = count_held_bytes(self.directory)
            if memory_bytes is None:
                remedy = larger_shared_memory(self.directory)
                self.budget = Budget(default_limit_bytes(self.directory, held_bytes), remedy)
            else:
                check_shared_memory(self.directory, memory_bytes - held_bytes)
                self.budget = Budget(memory_bytes)
            self._lock = threading.Lock()
            self._first = FirstLevel(self.blocks_directory, self.budget)
            # Both are durable before the first client can see them.
            self.server_id, self.epoch = next_epoch(self.directory)
            self._second: SecondLevel | None = None
            if spill_directory is not None:
                self._second = SecondLevel(spill_directory, self.server_id, spill_bytes)
                for path in [path for path in self._second.blocks if path in self._first.blocks]:
                    self._second.delete(path)
            self.make_room: Callable[[int], bool] | None = None
            """Asked by `reserve` to free so many bytes, as long as it says that it freed some."""
            self.nonce = write_nonce(self.directory)
            self.started_ns = time.time_ns()
        except BaseException:
            os.close(self._lock_fd)
            raise

    @property
    def nonce_path(self) -> Path:
        """The file whose readers are near."""
        return self.directory / NONCE_NAME

    @property
    def blocks(self) -> dict[str, BlockInfo]:
        """A copy of the list of blocks by path."""
        with self._lock:
            return dict(self._first.blocks)

    @property
    def damaged(self) -> tuple[str, ...]:
        """Sentences about files of both levels that are not served."""
        return (*self._first.damaged, *([] if self._second is None else self._second.damaged))

    # ------------------------------------------------------------------ write

    def reserve(self, path: str, file_bytes: int, ttl_s: float = RESERVATION_TTL_S) -> Reservation:
        """Set memory aside for a block that a process of this host will write and link itself.

        Several may write one path: the first link wins.

        Raises:
            BlockExists, InvalidPath, InvalidRequest; OutOfMemory: over the budget or the file system's room.
        """
        path = clean_path(path)
        if not 0 < file_bytes < 1 << 51:
            raise InvalidRequest(f"{path}: a block's file cannot have {file_bytes:,} bytes")
        while True:
            try:
                with self._lock:
                    return self._first.reserve(path, file_bytes, ttl_s)
            except OutOfMemory:
                # More than there can ever be is worth nobody's block.
                if self.make_room is None or whole_pages(file_bytes) > self.budget.limit_bytes:
                    raise
                if not self.make_room(whole_pages(file_bytes)):
                    raise

    def commit(self, reservation_id: str) -> BlockInfo:
        """Take over the block that was linked under a reservation.

        Raises:
            ReservationLost: unknown, or its time ran out. What was linked is served all the same.
            BlockNotFound: nothing was linked; the reservation is gone.
            CorruptBlock: what was linked is not this block; it is not served.
            OutOfMemory: it is larger than reserved, and that does not fit. It was deleted.
        """
        with self._lock:
            return self._first.commit(reservation_id)

    def abort(self, reservation_id: str) -> None:
        """Give a reservation back. An unknown one is no error: aborting twice is fine."""
        with self._lock:
            self._first.abort(reservation_id)

    def put(self, path: str, size_bytes: int, buffers: Iterable[Any], metadata: Metadata | None = None) -> BlockInfo:
        """Write a block from buffers that may come one by one; `size_bytes` is their sum. One copy.

        Published whole or not at all; an exception out of `buffers` publishes nothing.

        Raises:
            BlockExists, InvalidPath, InvalidRequest (the buffers are not `size_bytes` long), OutOfMemory.
        """
        path = clean_path(path)

        def write(writer: BlockWriter) -> None:
            for buffer in buffers:
                writer.write(buffer)
                if writer.size_bytes > size_bytes:
                    raise InvalidRequest(f"{path}: {size_bytes:,} bytes were announced, and more came")
            if writer.size_bytes < size_bytes:
                raise InvalidRequest(f"{path}: {size_bytes:,} bytes were announced, and {writer.size_bytes:,} came")

        return self._put(path, size_bytes, write, metadata)

    def fill(self, path: str, size_bytes: int, fill: Callable[[int, int], None]) -> BlockInfo:
        """Write a block by `fill(fd, offset_bytes)`, which puts exactly `size_bytes` there by itself.

        Published whole or not at all; when `fill` raises, nothing is.

        Raises:
            BlockExists, InvalidPath, InvalidRequest (the file does not end where it should), OutOfMemory.
        """
        path = clean_path(path)

        def write(writer: BlockWriter) -> None:
            try:
                fill(writer.fd, writer.payload_offset_bytes)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OutOfMemory(f"{path}: no room for {size_bytes:,} bytes under {self.directory}") from None
            writer.filled(size_bytes)

        return self._put(path, size_bytes, write, None)

    def _put(
        self, path: str, size_bytes: int, write: Callable[[BlockWriter], None], metadata: Metadata | None
    ) -> BlockInfo:
        metadata = clean_metadata(metadata)
        if size_bytes < 0:
            raise InvalidRequest(f"{path}: a block cannot have {size_bytes:,} bytes")
        # Its end is the end of this call, however long the buffers take.
        file_bytes = payload_offset_bytes(path, metadata) + size_bytes
        reservation = self.reserve(path, file_bytes, ttl_s=math.inf)
        try:
            with BlockWriter(self.blocks_directory, path, metadata) as writer:
                write(writer)
                info = writer.commit()
            with self._lock:
                self._first.take_over(reservation, info)
            return info
        finally:
            self.abort(reservation.id)

    # ------------------------------------------------------------------- read

    def info(self, path: str) -> BlockInfo:
        """What a block is. One that a near writer linked without telling is found on disk and then listed.

        Raises:
            BlockNotFound, InvalidPath; CorruptBlock: there is a file of this name, and it is not this block.
        """
        path = clean_path(path)
        with self._lock:
            return self._first.blocks.get(path) or self._on_second().get(path) or self._first.find(path)

    def local_path(self, path: str) -> Path:
        """The file of a block, whether it exists or not."""
        second = self._second
        root = second.directory if second is not None and self.on_disk(path) else self.blocks_directory
        return block_file(root, path)

    def on_disk(self, path: str) -> bool:
        """Whether a block is on the second level."""
        return path in self._on_second() and path not in self._first.blocks

    def open(self, path: str) -> Block:
        """Map a block. No copy.

        Raises:
            BlockNotFound, CorruptBlock, InvalidPath.
        """
        info = self.info(path)
        try:
            return Block.map(self.local_path(info.path), info.path)
        except BlockNotFound:
            # It went to the second level between the two.
            return Block.map(self.local_path(info.path), info.path)

    # ----------------------------------------------------------------- delete

    def delete_blocks(self, paths: Iterable[str]) -> int:
        """Remove these blocks, of both levels; returns how many there were. Not atomic over the blocks."""
        count = 0
        for path in paths:
            with self._lock:
                count += self._delete(clean_path(path))
        return count

    def _delete(self, path: str) -> bool:
        found = self._first.delete(path)
        if self._second is not None and path in self._second.blocks:
            found = self._second.delete(path) or found
        return found

    # ----------------------------------------------------------- second level

    @property
    def has_second_level(self) -> bool:
        """Whether blocks can be moved to a disk."""
        return self._second is not None

    @property
    def spilled(self) -> dict[str, BlockInfo]:
        """A copy of the list of the second level's blocks by path."""
        with self._lock:
            return dict(self._on_second())

    def is_open(self, path: str) -> bool:
        """Whether a process of this host has the block mapped: deleting it would free no memory now."""
        return is_open(self.local_path(path))

    def spill(self, path: str) -> int:
        """Move a block to the second level; returns the memory that is free then. Blocks for the disk.

        Killed at any moment, it is at one of the two levels, or at both until the next start.

        Raises:
            Unsupported: there is no second level. BlockNotFound; OutOfMemory: the disk is full, or `spill_bytes` are
            used up.
        """
        path, second = clean_path(path), self._second
        if second is None:
            raise Unsupported("this server has no second level: start it with a directory to spill to")
        with Block.map(block_file(self.blocks_directory, path), path) as block:
            info = second.copy(block)
        hit("spill.link.after")
        with self._lock:
            if not self._first.has(path):
                # Deleted meanwhile.
                second.delete(path)
                return 0
            freed_bytes = self._first.charged_bytes(path)
            second.add(info)
            self._first.delete(path)
            return freed_bytes

    def unlisted(self, older_than_s: float) -> list[str]:
        """Block files that were linked so long ago, and neither committed nor looked for since: of dead writers."""
        return self._first.unlisted(older_than_s)

    def _on_second(self) -> dict[str, BlockInfo]:
        return {} if self._second is None else self._second.blocks

    def wipe(self) -> None:
        """Delete all in the directory but lock, identity and nonce; the tier goes on, empty.

        For the start of a server that was asked to begin anew. Whatever else keeps files there must not be
        open.
        """
        with self._lock:
            keep = {LOCK_NAME, IDENTITY_NAME, NONCE_NAME}
            for entry in self.directory.iterdir():
                if entry.name not in keep:
                    _remove(entry)
            self._first.begin_anew()
            if self._second is not None:
                for path in list(self._second.blocks):
                    self._second.delete(path)
                self._second.damaged = []

    # ----------------------------------------------------------------- status

    def status(self) -> TierStatus:
        """Memory, blocks and damage at this moment."""
        with self._lock:
            self._first.expire()
            damaged = self.damaged
            return TierStatus(
                server_id=self.server_id,
                epoch=self.epoch,
                directory=str(self.directory),
                memory_used_bytes=self.budget.used_bytes,
                memory_limit_bytes=self.budget.limit_bytes,
                block_count=len(self._first.blocks),
                block_bytes=sum(info.size_bytes for info in self._first.blocks.values()),
                reservation_count=self._first.reservation_count,
                started_ns=self.started_ns,
                damaged_count=len(damaged),
                damaged=damaged,
                spilled_count=len(self._on_second()),
                spilled_bytes=0 if self._second is None else self._second.used_bytes,
            )

    def close(self) -> None:
        """Give the directory back; its blocks stay. Idempotent."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            # Without the nonce nobody takes a directory without a server for one that is near.
            self.nonce_path.unlink(missing_ok=True)
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
        return
    try:
        entry.unlink()
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
