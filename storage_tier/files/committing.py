"""Writing a file: a reservation or a buffer becomes a sealed block, which `publishing` then commits.

Killed anywhere before the catalog's transaction, the block is an orphan that the next start removes, and what the
under-store has got is a whole object. Killed after it, the file is there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from storage_tier.catalog import Entry
from storage_tier.errors import InvalidRequest, OutOfMemory, ReservationLost, VersionConflict
from storage_tier.files.base import CommitOptions, Reservation, block_path_of, new_block_id
from storage_tier.files.eviction import Evictor
from storage_tier.files.held import Held
from storage_tier.files.loading import Loader, check_file
from storage_tier.files.observing import Observing
from storage_tier.files.publishing import TRIES, Again, Publisher, Sealed
from storage_tier.files.under import UnderStores
from storage_tier.files.virtual import VirtualFiles, copy_range
from storage_tier.probe import hit
from storage_tier.tier import Tier


class Commits:
    """Creates, writes and commits files. Thread-safe."""

    def __init__(
        self,
        tier: Tier,
        held: Held,
        evictor: Evictor,
        loader: Loader,
        under: UnderStores,
        observing: Observing,
        virtual: VirtualFiles,
        publisher: Publisher,
        early_check_bytes: int,
        reservation_ttl_s: float,
    ) -> None:
        self._tier = tier
        self._held = held
        self._evictor = evictor
        self._loader = loader
        self._under = under
        self._observing = observing
        self._virtual = virtual
        self._publisher = publisher
        self._early_check_bytes = early_check_bytes
        self._reservation_ttl_s = reservation_ttl_s
        self._lock = threading.Lock()
        self._reservations: dict[str, tuple[Reservation, float]] = {}

    def create(self, path: str, file_bytes: int, options: CommitOptions) -> Reservation:
        """As `Files.create`."""
        if file_bytes >= self._early_check_bytes:
            self._publisher.refuse(path, options)
        block_id = new_block_id()
        block_path = block_path_of(block_id)
        try:
            reserved = self._tier.reserve(block_path, file_bytes, self._reservation_ttl_s)
        except OutOfMemory as error:
            raise OutOfMemory(f"{path}: {error}{self._evictor.why()}") from None
        made = Reservation(
            reserved.id, path, block_id, block_path, reserved.directory, file_bytes, self._reservation_ttl_s
        )
        with self._lock:
            self._reservations[made.id] = made, reserved.expires_s
        return made

    def commit_all(self, commits: Sequence[tuple[str, CommitOptions]]) -> list[Entry]:
        """As `Files.commit_all`."""
        if not commits:
            return []
        sealed: list[Sealed] = []
        try:
            for number, (reservation_id, options) in enumerate(commits):
                try:
                    sealed.append(self._seal(reservation_id, options))
                except BaseException:
                    for other_id, _ in commits[number + 1 :]:
                        self.abort(other_id)
                    raise
        except BaseException:
            self._held.drop([one.block_id for one in sealed if one.block_id is not None])
            raise
        hit("commit.seal.after")
        return self._publisher.publish(sealed)

    def _seal(self, reservation_id: str, options: CommitOptions) -> Sealed:
        with self._lock:
            made, _ = self._reservations.pop(reservation_id, (None, 0.0))
        if made is None:
            raise ReservationLost(
                f"there is no reservation {reservation_id!r:.60}: it was committed or aborted before, its time ran "
                "out, or the server was started anew. Write the file again"
            )
        hit("commit.seal.before")
        try:
            info = self._tier.commit(reservation_id)
        except BaseException:
            self._held.drop([made.block_id])
            raise
        self._held.use(made.block_id)
        return Sealed(made.path, made.block_id, info.size_bytes, options)

    def abort(self, reservation_id: str) -> None:
        """As `Files.abort`."""
        with self._lock:
            made, _ = self._reservations.pop(reservation_id, (None, 0.0))
        self._tier.abort(reservation_id)
        if made is not None:
            self._held.drop([made.block_id])

    def put(self, path: str, size_bytes: int, buffers: Iterable[Any], options: CommitOptions) -> Entry:
        """As `Files.put`."""
        if size_bytes >= self._early_check_bytes:
            self._publisher.refuse(path, options)
        block_id = new_block_id()
        block_path = block_path_of(block_id)
        try:
            self._tier.put(block_path, size_bytes, buffers)
        except OutOfMemory as error:
            raise OutOfMemory(f"{path}: {error}{self._evictor.why()}") from None
        except InvalidRequest as error:  # other bytes than were announced
            raise InvalidRequest(str(error).replace(block_path, path)) from None
        return self._publish(path, block_id, size_bytes, options)

    def put_file(self, path: str, fd: int, size_bytes: int, options: CommitOptions) -> Entry:
        """`put` the first bytes of a file, which stays the caller's. One copy, inside the kernel."""
        block_id = new_block_id()
        self._tier.fill(
            block_path_of(block_id), size_bytes, lambda to_fd, offset: copy_range(fd, 0, to_fd, offset, size_bytes)
        )
        return self._publish(path, block_id, size_bytes, options)

    def _publish(self, path: str, block_id: str, size_bytes: int, options: CommitOptions) -> Entry:
        self._held.use(block_id)
        hit("commit.seal.after")
        return self._publisher.publish([Sealed(path, block_id, size_bytes, options)])[0]

    def copy(self, source: str, target: str, overwrite: bool, options: CommitOptions, timeout_s: float) -> Entry:
        """As `Files.copy`."""
        deadline_s = time.monotonic() + timeout_s
        for _ in range(TRIES):
            left_s = max(deadline_s - time.monotonic(), 0.001)
            entry = self._loader.stat(source, left_s)
            check_file(entry, None)
            if source == target:
                return entry
            if self._under.of(target) is not None or self._observing.asks(target) or entry.version == 0:
                # Somebody wants to see the bytes. What only the under-store has is in the catalog then.
                self._loader.ensure(source, None, left_s)
                entry = self._loader.stat(source, left_s)
            copied = CommitOptions(
                exclusive=not overwrite,
                metadata=entry.metadata,
                write_type=options.write_type,
                origin=options.origin,
            )
            if entry.block_id is not None and self._virtual.has(entry.block_id):
                # Its block is nobody's.
                with self._tier.open(block_path_of(entry.block_id)) as block:
                    return self.put(target, entry.size_bytes, [block.data], copied)
            try:
                return self._publisher.publish([Sealed(target, entry.block_id, entry.size_bytes, copied, entry)])[0]
            except Again:
                continue
        raise VersionConflict(f"{source} was replaced {TRIES} times while it was copied: try again")

    def clean(self) -> None:
        """Delete what was linked under reservations whose time is over, and what turned out not to be committed.

        Raises:
            as the catalog.
        """
        now_s = time.monotonic()
        with self._lock:
            late = [made for made, expires_s in self._reservations.values() if expires_s <= now_s]
            for made in late:
                del self._reservations[made.id]
        for made in late:
            self._tier.abort(made.id)
        self._held.drop([made.block_id for made in late])
        self._publisher.clean()
