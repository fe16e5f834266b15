"""Reading what there is no room to keep: from a peer or the under-store straight to the reader, piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial

from storage_tier.catalog import Catalog, Entry
from storage_tier.errors import (
    BlockNotFound,
    BytesLost,
    CorruptBlock,
    DeadlineExceeded,
    PathNotFound,
    ServerFailed,
    UnderChanged,
    UnderNotFound,
    Unreachable,
)
from storage_tier.files.base import block_path_of
from storage_tier.files.loading import check_file
from storage_tier.files.neighbours import Neighbours
from storage_tier.files.peers import Peers
from storage_tier.files.under import Below, UnderStores, entry_of
from storage_tier.under.base import STEP_BYTES

Piece = bytes | memoryview
# A range of the bytes of a file: (start, stop) -> its pieces, each valid until the next.
Source = Callable[[int, int], Iterator[Piece]]


@dataclass(frozen=True)
class Passing:
    """One version of a file that is read where it is. Keeps nothing."""

    entry: Entry
    sources: tuple[Source, ...]

    def pieces(self, start: int, stop: int) -> Generator[Piece, None, None]:
        """A range of the bytes. The first piece is there when this returns; each is valid until the next.

        Where one source ends in the middle, the next goes on: all have the same bytes.

        Raises:
            BytesLost: no source gave them; those of the under-store.
        """
        pieces = self._pieces(start, stop)
        return _resume(next(pieces, b""), pieces)

    def _pieces(self, at: int, stop: int) -> Iterator[Piece]:
        reasons = []
        for source in self.sources:
            if at == stop:
                return
            try:
                for piece in source(at, stop):
                    if len(piece) > stop - at:
                        raise ServerFailed(f"more than the {stop:,} bytes of {self.entry.path} came")
                    yield piece
                    at += len(piece)
            except (BlockNotFound, CorruptBlock, Unreachable, DeadlineExceeded, ServerFailed) as error:
                reasons.append(str(error))
        if at < stop:
            why = "; ".join(reasons) or "too few came"
            raise BytesLost(f"the bytes of {self.entry.path} (version {self.entry.version}) cannot be had: {why}")


class PassThrough:
    """Finds where a file can be read without being kept here. Thread-safe."""

    def __init__(self, catalog: Catalog, neighbours: Neighbours, peers: Peers, under: UnderStores) -> None:
        self._catalog = catalog
        self._neighbours = neighbours
        self._peers = peers
        self._under = under

    def find(self, path: str, version: int | None, timeout_s: float) -> Passing | None:
        """As `Files.pass_through`."""
        deadline_s = time.monotonic() + timeout_s
        place = self._under.of(path)
        try:
            entry = self._catalog.namespace.stat(path)
        except PathNotFound:
            if place is None:
                return None
            try:
                info = place.store.info(place.relative)
            except UnderNotFound:
                return None
            entry = entry_of(path, info)
            check_file(entry, version or None)
            return Passing(entry, (partial(_from_under, place, entry, info.stamp),))
        check_file(entry, version)
        if entry.block_id is None:
            return None
        holders = self._neighbours.others(self._catalog.replicas.locations([entry.block_id])[entry.block_id])
        sources: list[Source] = [
            partial(self._from_peer, self._neighbours.address(server_id), entry.block_id, deadline_s)
            for server_id in holders
        ]
        if place is not None and entry.persisted == "done":
            sources.append(partial(_from_under, place, entry, entry.stamp))
        return Passing(entry, tuple(sources)) if sources else None

    def _from_peer(self, address: str, block_id: str, deadline_s: float, start: int, stop: int) -> Iterator[Piece]:
        left_s = max(deadline_s - time.monotonic(), 0.001)
        return self._peers.stream(address, block_path_of(block_id), start, stop, left_s)


def _from_under(place: Below, entry: Entry, stamp: str | None, start: int, stop: int) -> Iterator[Piece]:
    buffer = memoryview(bytearray(min(STEP_BYTES, stop - start)))
    while start < stop:
        view = buffer[: stop - start]
        info = place.store.read_into(place.relative, view, start=start, stop=start + len(view), stamp=stamp)
        if info.size_bytes != entry.size_bytes:
            raise UnderChanged(f"{entry.path}: the object below the mount is not the one of version {entry.version}")
        stamp = info.stamp
        yield view
        start += len(view)


def _resume(first: Piece, rest: Iterator[Piece]) -> Generator[Piece, None, None]:
    if first:
        yield first
    yield from rest
