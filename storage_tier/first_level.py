"""The first level of a server: its blocks in memory, and the memory that is set aside for those to come.

DIRECTORY/blocks/...      one sealed file a block; the files are the catalog, a restart reads their headers

A near writer links its file there by itself and tells the tier afterwards; the link is the commit point. So whoever
looks for a block looks at the disk before saying that it is not there.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from storage_tier.blocks import delete_file, prune, read_info, scan, walk_files
from storage_tier.budget import Budget, check_shared_memory
from storage_tier.errors import BlockExists, BlockNotFound, CorruptBlock, OutOfMemory, ReservationLost
from storage_tier.headers import BlockInfo, block_file, block_name, whole_pages
from storage_tier.writer import why_taken


@dataclass(frozen=True)
class Reservation:
    """Memory set aside for a block that somebody else writes into `directory`."""

    id: str
    path: str
    directory: Path
    file_bytes: int
    expires_s: float
    """On the monotonic clock."""


class FirstLevel:
    """The blocks of one server in memory, all charged to its budget. Not thread-safe: the tier holds its lock."""

    def __init__(self, directory: Path, budget: Budget) -> None:
        """Make the directory if it is missing, and list what it holds. Deletes nothing but empty directories."""
        self.directory = directory
        self._budget = budget
        self._reservations: dict[str, Reservation] = {}
        self.blocks: dict[str, BlockInfo] = {}
        prune(directory)
        directory.mkdir(mode=0o700, exist_ok=True)
        found, self.damaged = scan(directory)
        for info in found:
            self._list(info)

    # ----------------------------------------------------------- reservations

    def reserve(self, path: str, file_bytes: int, ttl_s: float) -> Reservation:
        """As `Tier.reserve`, without asking anybody for room."""
        self.expire()
        reason = why_taken(self.directory, path)
        if reason is not None:
            raise BlockExists(reason)
        check_shared_memory(self.directory, file_bytes)
        made = Reservation(os.urandom(16).hex(), path, self.directory, file_bytes, time.monotonic() + ttl_s)
        self._budget.charge(_writing(made), whole_pages(file_bytes))
        self._reservations[made.id] = made
        return made

    def commit(self, reservation_id: str) -> BlockInfo:
        """As `Tier.commit`."""
        self.expire()
        reservation = self._reservations.pop(reservation_id, None)
        if reservation is None:
            raise ReservationLost(
                f"there is no reservation {reservation_id!r:.60}: it was committed or aborted before, "
                "its time ran out, or the server was started anew"
            )
        try:
            info = self._read(reservation.path)
            self._budget.transfer(_writing(reservation), _stored(info.path), info.memory_bytes)
        except OutOfMemory:
            self.delete(reservation.path)
            raise
        finally:
            self._budget.release(_writing(reservation))
        self._list(info)
        return info

    def take_over(self, reservation: Reservation, info: BlockInfo) -> None:
        """List what this process has linked under a reservation, which is to be aborted then."""
        # Else it was deleted again before we got here.
        if self.has(info.path):
            self._budget.release(_writing(reservation))
            self._list(info)

    def abort(self, reservation_id: str) -> None:
        """As `Tier.abort`."""
        reservation = self._reservations.pop(reservation_id, None)
        if reservation is not None:
            self._budget.release(_writing(reservation))

    def expire(self) -> None:
        """Give back what was set aside for writers whose time is over."""
        now_s = time.monotonic()
        for reservation in [r for r in self._reservations.values() if r.expires_s <= now_s]:
            self.abort(reservation.id)
            # Its writer may have died right after the link: then the block is there and counts.
            self._adopt(reservation.path)

    @property
    def reservation_count(self) -> int:
        """How many blocks are being written, or were to be a short while ago."""
        return len(self._reservations)

    # ----------------------------------------------------------------- blocks

    def find(self, path: str) -> BlockInfo:
        """A block that is not listed, but may be on disk: then it is listed.

        Raises:
            BlockNotFound; CorruptBlock: there is a file of this name, and it is not this block.
        """
        info = self._read(path)
        self._list(info)
        return info

    def has(self, path: str) -> bool:
        """Whether there is a file of this block's name, now."""
        return os.path.exists(block_name(self.directory, path))

    def charged_bytes(self, path: str) -> int:
        """The memory of a listed block."""
        return self._budget.charged_bytes(_stored(path))

    def delete(self, path: str) -> bool:
        """Remove a block's file and take it off the list; whether there was one."""
        found = delete_file(self.directory, path)
        self._forget(path)
        return found

    def unlisted(self, older_than_s: float) -> list[str]:
        """As `Tier.unlisted`. Needs no lock."""
        now_s = time.time()
        found = []
        for file in walk_files(self.directory):
            path = "/" + str(file.relative_to(self.directory))
            if path in self.blocks:
                continue
            try:
                age_s = now_s - file.lstat().st_ctime
            except FileNotFoundError:
                continue
            if age_s >= older_than_s:
                found.append(path)
        return found

    def begin_anew(self) -> None:
        """Forget all blocks, reservations and damage, after their files were deleted, and make the directory again."""
        self.directory.mkdir(mode=0o700)
        for path in list(self.blocks):
            self._forget(path)
        for reservation_id in list(self._reservations):
            self.abort(reservation_id)
        self.damaged = []

    # ----------------------------------------------------------------- inside

    def _read(self, path: str) -> BlockInfo:
        try:
            info = read_info(block_file(self.directory, path))
        except BlockNotFound:
            raise BlockNotFound(f"there is no block {path} in the tier at {self.directory.parent}") from None
        if info.path != path:
            raise CorruptBlock(f"the file of {path} says it is {info.path}: it was renamed or copied")
        return info

    def _list(self, info: BlockInfo) -> None:
        # What is on disk is in use, whatever the budget says.
        self._budget.adopt(_stored(info.path), info.memory_bytes)
        self.blocks[info.path] = info

    def _forget(self, path: str) -> None:
        self._budget.release(_stored(path))
        self.blocks.pop(path, None)

    def _adopt(self, path: str) -> None:
        """List the block if it is on disk."""
        if path in self.blocks or not os.path.isfile(block_name(self.directory, path)):
            return
        try:
            self.find(path)
        except BlockNotFound:
            return
        except CorruptBlock as error:
            if str(error) not in self.damaged:
                self.damaged.append(str(error))


def _writing(reservation: Reservation) -> str:
    return f"the new block {reservation.path} ({reservation.id})"


def _stored(path: str) -> str:
    return f"the block {path}"
