"""Getting a file's bytes to this host: from a peer, from the under-store, from an observer. One at a time a block."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from storage_tier.catalog import Catalog, Entry
from storage_tier.errors import (
    BlockExists,
    BlockNotFound,
    BytesLost,
    DeadlineExceeded,
    OutOfMemory,
    PathExists,
    PathIsDirectory,
    PathNotFound,
    ServerFailed,
    TierError,
    UnderChanged,
    UnderNotFound,
    Unreachable,
    VersionConflict,
)
from storage_tier.files.alone import Alone
from storage_tier.files.base import (
    LocalBlock,
    Located,
    block_path_of,
    new_block_id,
)
from storage_tier.files.held import Held
from storage_tier.files.neighbours import Neighbours
from storage_tier.files.peers import Peers
from storage_tier.files.settings import Settings
from storage_tier.files.under import Below, UnderStores
from storage_tier.files.virtual import VirtualFiles
from storage_tier.probe import hit

# A block that was evicted, or a path that was replaced, between finding and opening: each time anew.
TRIES = 16


class _Flight:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: BaseException | None = None


class Loader:
    """Thread-safe. Calls block, with a deadline."""

    def __init__(
        self,
        catalog: Catalog,
        held: Held,
        neighbours: Neighbours,
        peers: Peers,
        settings: Settings,
        under: UnderStores,
        virtual: VirtualFiles,
        alone: Alone,
        why_full: Callable[[], str],
    ) -> None:
        self._catalog = catalog
        self._held = held
        self._neighbours = neighbours
        self._peers = peers
        self._settings = settings
        self._under = under
        self._virtual = virtual
        self._alone = alone
        self._why_full = why_full
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight] = {}
        self.fetched_count = 0
        self.loaded_count = 0

    def stat(self, path: str, timeout_s: float) -> Entry:
        """As the catalog has it, else the under-store, else an observer.

        Raises:
            PathNotFound, PathNotDirectory, InvalidPath; those of the under-store and of observers.
        """
        try:
            return self._catalog.namespace.stat(path)
        except PathNotFound:
            # Another server may have mounted something above it a moment ago.
            self._settings.look()
            found = self._under.stat(path) or self._virtual.find(path, timeout_s, fresh_s=0.5)
            if found is None:
                raise
            return found

    def locate(self, path: str, version: int | None, remember: bool = True) -> Located:
        """As `Files.locate`."""
        try:
            entry = self._catalog.namespace.stat(path)
        except PathNotFound:
            self._settings.look()
            found = self._under.stat(path)
            if found is None:
                raise
            entry = found
        check_file(entry, version)
        return self._located(entry, remember, others=True)

    def ensure(self, path: str, version: int | None, timeout_s: float, remember: bool = True) -> Located:
        """As `Files.ensure_local`."""
        deadline_s = time.monotonic() + timeout_s
        tries, before = 0, None
        while tries < TRIES and (not tries or time.monotonic() < deadline_s):
            tries += 1
            try:
                entry = self._catalog.namespace.stat(path)
            except PathNotFound:
                located = self._unknown(path, version, deadline_s)
                if located is not None:
                    return located
                continue
            check_file(entry, version)
            if entry.version != before:
                # Others write there, and only the time is short; what is brought in vain has no room.
                tries, before = 1, entry.version
            located = self._located(entry, remember, others=False)
            if located.file is not None or entry.block_id is None:
                return located
            try:
                self._once(entry.block_id, deadline_s, partial(self._bring, entry, version, deadline_s))
            except UnderChanged:
                # Somebody writes there right now, perhaps through another server, whose commit then follows.
                if version is not None:
                    raise
        raise DeadlineExceeded(
            f"{path} was replaced or evicted again and again while it was brought here: the memory is too small for "
            "all that is read at once, or it is written too often"
        )

    def ensure_entry(self, entry: Entry, timeout_s: float) -> LocalBlock | None:
        """The block of exactly this entry, here; None when the file was changed or removed meanwhile, or has none."""
        try:
            self.ensure(entry.path, entry.version, timeout_s, remember=False)
        except (PathNotFound, VersionConflict):
            return None
        return None if entry.block_id is None else self._held.find(entry.block_id, remember=False)

    # ---------------------------------------------------------------- inside

    def _located(self, entry: Entry, remember: bool, others: bool) -> Located:
        if entry.block_id is None:
            return Located(entry, None, None, 0, ())
        path = block_path_of(entry.block_id)
        local = self._held.find(entry.block_id, remember)
        if local is not None:
            return Located(entry, path, local.file, local.info.offset_bytes, ())
        addresses: tuple[str, ...] = ()
        if others:
            holders = self._catalog.replicas.locations([entry.block_id])[entry.block_id]
            addresses = tuple(self._neighbours.address(one) for one in self._neighbours.others(holders))
        return Located(entry, path, None, 0, addresses)

    def _once(self, key: str, deadline_s: float, work: Callable[[], None]) -> None:
        """Do it, or wait for who does, and fail as that one fails."""
        with self._lock:
            flight = self._flights.get(key)
            first = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight()
        if not first:
            if not flight.done.wait(max(deadline_s - time.monotonic(), 0)):
                raise DeadlineExceeded("another call brings the same bytes here, and has not ended in time")
            if flight.error is not None:
                raise flight.error
            return
        try:
            work()
        except BaseException as error:
            # What ends this thread alone (an interrupt) is nobody else's failure.
            flight.error = error if isinstance(error, TierError) else ServerFailed(f"{type(error).__name__}: {error}")
            raise
        finally:
            with self._lock:
                del self._flights[key]
            flight.done.set()

    def _unknown(self, path: str, version: int | None, deadline_s: float) -> Located | None:
        """A path that the catalog does not have. None: look again."""
        self._settings.look()
        place = self._under.of(path)
        if place is not None:
            found = self._under.stat(path)
            if found is not None:
                check_file(found, version or None)
                with suppress(UnderChanged):
                    self._once(f"path {path}", deadline_s, partial(self._load_new, path, place, None))
                return None
        entry = self._virtual.find(path, max(deadline_s - time.monotonic(), 0.001))
        if entry is None or entry.block_id is None:
            raise PathNotFound(f"there is nothing at {path}")
        check_file(entry, version)
        return self._located(entry, remember=False, others=False)

    def _bring(self, entry: Entry, version: int | None, deadline_s: float) -> None:
        assert entry.block_id is not None
        block_id = entry.block_id
        reasons: list[str] = []
        if not (
            self._from_peers(entry, block_id, deadline_s, reasons)
            or self._from_under(entry, block_id, version, reasons)
        ):
            if not self._unchanged(entry):
                return  # it was replaced or removed meanwhile: nothing is lost
            raise BytesLost(f"the bytes of {entry.path} (version {entry.version}) cannot be had: {'; '.join(reasons)}")

    def _from_peers(self, entry: Entry, block_id: str, deadline_s: float, reasons: list[str]) -> bool:
        holders = self._catalog.replicas.locations([block_id])[block_id]
        for server_id in self._neighbours.others(holders, alive=False):
            if not self._neighbours.alive(server_id):
                silent_s = self._neighbours.silent_s(server_id)
                reasons.append(f"the server {server_id} has them and was not heard of for {silent_s:.0f} s")
                continue
            address = self._neighbours.address(server_id)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(f"{entry.path} was not here in time: {'; '.join(reasons) or 'nobody was asked'}")

            def fill(fd: int, offset_bytes: int, address: str = address, left_s: float = left_s) -> None:
                self._peers.fetch(address, block_path_of(block_id), fd, offset_bytes, left_s)

            try:
                self._fill(block_id, entry.size_bytes, fill)
            except (BlockNotFound, Unreachable, DeadlineExceeded) as error:
                reasons.append(f"the server {server_id} at {address} did not give them: {error}")
                continue
            except ServerFailed as error:
                raise ServerFailed(f"{entry.path}: {error}") from None
            self.fetched_count += 1
            self._note(block_id)
            return True
        if not holders:
            reasons.append("no server has them in memory: the one that had them is gone, or was given up as silent")
        return False

    def _from_under(self, entry: Entry, block_id: str, version: int | None, reasons: list[str]) -> bool:
        place = self._under.of(entry.path)
        if place is None:
            reasons.append("it is below no mount")
            return False
        if entry.persisted != "done":
            reasons.append("the under-store does not have them yet")
            return False
        try:
            info = place.store.info(place.relative)
            if info.size_bytes != entry.size_bytes or entry.stamp not in (None, info.stamp):
                raise UnderChanged(
                    f"{entry.path}: the object below the mount is not the one of version {entry.version} any more: "
                    "somebody else wrote it. Read the newest version"
                )

            def fill(fd: int, offset_bytes: int) -> None:
                place.store.read_into(place.relative, fd, offset_bytes=offset_bytes, stamp=info.stamp)

            self._fill(block_id, entry.size_bytes, fill)
        except UnderNotFound as error:
            # Removed below, or by a removal or rename that was killed between the under-store and the catalog.
            reasons.append(f"the under-store has it no more ({error})")
            if not self._catalog.replicas.locations([block_id])[block_id]:
                self._forget(entry)
                raise PathNotFound(
                    f"there is nothing at {entry.path} any more: it was removed below the mount"
                ) from None
            return False
        except UnderChanged:
            if version is not None:
                raise
            self._load_new(entry.path, place, entry)
            return True
        self.loaded_count += 1
        self._note(block_id)
        return True

    def _load_new(self, path: str, place: Below, before: Entry | None) -> None:
        """What the under-store has becomes a version: the first, or the one after `before`."""
        # What is on its way there may be of a file that was removed meanwhile, or has a commit that follows.
        with self._alone.at([path]):
            self._load_alone(path, place, before)

    def _load_alone(self, path: str, place: Below, before: Entry | None) -> None:
        block_id = new_block_id()
        try:
            info = place.store.info(place.relative)

            def fill(fd: int, offset_bytes: int) -> None:
                place.store.read_into(place.relative, fd, offset_bytes=offset_bytes, stamp=info.stamp)

            self._fill(block_id, info.size_bytes, fill)
        except UnderNotFound:
            raise PathNotFound(f"there is nothing at {path}") from None
        hit("fetch.link.after")
        try:
            with self._settings.turn():
                self._catalog.namespace.commit(
                    path,
                    block_id,
                    info.size_bytes,
                    exclusive=before is None,
                    parents=True,
                    expected_version=None if before is None else before.version,
                    persisted="done",
                    stamp=info.stamp,
                    loaded=True,
                )
        except (PathExists, VersionConflict):
            # Somebody else was first: look again.
            self._held.drop([block_id])
            return
        except BaseException:
            self._held.drop([block_id])
            raise
        hit("fetch.catalog.after")
        self._held.use(block_id)
        self.loaded_count += 1

    def _fill(self, block_id: str, size_bytes: int, fill: Callable[[int, int], None]) -> None:
        try:
            self._held.tier.fill(block_path_of(block_id), size_bytes, fill)
        except BlockExists:
            return  # brought before, and not noted
        except OutOfMemory as error:
            raise OutOfMemory(f"{error}{self._why_full()}") from None

    def _note(self, block_id: str) -> None:
        hit("fetch.link.after")
        try:
            self._catalog.replicas.add(block_id)
        except BlockNotFound:
            self._held.drop([block_id])
            return  # removed meanwhile: the next look says so
        except BaseException:
            self._held.drop([block_id])
            raise
        hit("fetch.catalog.after")

    def _forget(self, entry: Entry) -> None:
        """Remove an entry whose bytes are gone, unless it has others by now."""
        with self._settings.turn(), self._catalog.together():
            if self._unchanged(entry):
                self._catalog.namespace.remove(entry.path)

    def _unchanged(self, entry: Entry) -> bool:
        try:
            return self._catalog.namespace.stat(entry.path).block_id == entry.block_id
        except PathNotFound:
            return False


def check_file(entry: Entry, version: int | None) -> None:
    """Refuse what is no file, or of another version.

    Raises:
        PathIsDirectory, VersionConflict.
    """
    if entry.kind != "file":
        raise PathIsDirectory(f"{entry.path} is a {entry.kind}, and only files have bytes")
    if version is not None and entry.version != version:
        raise VersionConflict(
            f"{entry.path} has version {entry.version}, and version {version} was asked for: only the newest is kept"
        )
