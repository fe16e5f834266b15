"""On which servers the bytes of a file are, and having them on more of them, or not on this one."""

from __future__ import annotations

import time
from collections.abc import Iterable

from storage_tier.catalog import Catalog
from storage_tier.errors import InvalidRequest
from storage_tier.files.eviction import Evictor
from storage_tier.files.loading import Loader
from storage_tier.files.neighbours import Neighbours
from storage_tier.files.peers import Peers


class Copies:
    """Asks the catalog where copies are, makes and drops them. Thread-safe."""

    def __init__(
        self, catalog: Catalog, neighbours: Neighbours, peers: Peers, loader: Loader, evictor: Evictor
    ) -> None:
        self._catalog = catalog
        self._neighbours = neighbours
        self._peers = peers
        self._loader = loader
        self._evictor = evictor

    def locations(self, block_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """As `Files.locations`."""
        found = self._catalog.replicas.locations(block_ids)
        return {
            block_id: tuple(address for one in server_ids if (address := self._neighbours.address(one)))
            for block_id, server_ids in found.items()
        }

    def free(self, path: str) -> bool:
        """As `Files.free`."""
        located = self._loader.locate(path, None, remember=False)
        block_id = located.entry.block_id
        if located.file is None or block_id is None:
            return False
        for _ in range(2):
            reason = self._evictor.reason(block_id, self._catalog.replicas.uses([block_id])[block_id])
            if reason is not None:
                raise InvalidRequest(f"{path} cannot be freed: it is {reason}")
            if self._evictor.give_up([block_id]):
                return True
        return False

    def replicate(self, path: str, count: int, timeout_s: float) -> tuple[str, ...]:
        """As `Files.replicate`."""
        deadline_s = time.monotonic() + timeout_s
        located = self._loader.ensure(path, None, timeout_s, remember=True)
        block_id = located.entry.block_id
        if block_id is None:
            return ()
        self._neighbours.refresh()
        live = [self._neighbours.server_id, *self._neighbours.all_others()]
        if count > len(live):
            raise InvalidRequest(f"{path} cannot be on {count} servers: {len(live)} live")
        holders = set(self._catalog.replicas.locations([block_id])[block_id])
        for server_id in live:
            if sum(one in holders for one in live) >= count:
                break
            if server_id not in holders:
                left_s = max(deadline_s - time.monotonic(), 0.001)
                self._peers.load(self._neighbours.address(server_id), path, located.entry.version, left_s)
                holders.add(server_id)
        return tuple(sorted(self._catalog.replicas.locations([block_id])[block_id]))
