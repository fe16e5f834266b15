"""Making room in memory: which blocks go, and where to.

The least lately used goes first. Never a victim: what is pinned, what a process of this host has mapped (that would
free nothing), and what would be lost: bytes that neither the under-store has nor another server that lives. The
catalog decides, in one transaction, so that two servers cannot give up the last two copies. With a second level, what
may not be dropped is moved there instead; without one, the writer is refused. Nothing is lost in silence.
"""

from __future__ import annotations

import threading
from collections import Counter

from storage_tier.budget import free_shared_memory_bytes
from storage_tier.catalog import Catalog, Use
from storage_tier.errors import BlockNotFound, OutOfMemory
from storage_tier.files.base import block_id_of, block_path_of
from storage_tier.files.held import Held
from storage_tier.files.neighbours import Neighbours
from storage_tier.files.virtual import VirtualFiles
from storage_tier.probe import hit
from storage_tier.tier import Tier

# Each look is a query; a writer that needs more than so many blocks asks again.
CHUNK_COUNT = 256


class Evictor:
    """Frees memory of this server. Thread-safe; one thread at a time, the others wait for it."""

    def __init__(self, tier: Tier, catalog: Catalog, held: Held, neighbours: Neighbours, virtual: VirtualFiles) -> None:
        self._tier = tier
        self._catalog = catalog
        self._held = held
        self._neighbours = neighbours
        self._virtual = virtual
        self._lock = threading.Lock()
        self._why: Counter[str] = Counter()
        self.evicted_count = 0
        self.spilled_count = 0

    def make_room(self, need_bytes: int) -> bool:
        """Free at least so much; whether anything was freed, or is free by now. Blocks for the catalog, and the disk.

        Raises:
            as the catalog.
        """
        with self._lock:
            before_bytes = self._free_bytes()
            if before_bytes >= need_bytes:
                return True
            self._virtual.drop_idle(older_than_s=0.0)
            self._why = Counter()
            order = [block_id for block_id in self._held.oldest() if not self._virtual.has(block_id)]
            for start in range(0, len(order), CHUNK_COUNT):
                if self._free_bytes() >= need_bytes:
                    break
                self._drop(order[start : start + CHUNK_COUNT], need_bytes)
            if self._tier.has_second_level:
                for start in range(0, len(order), CHUNK_COUNT):
                    if self._free_bytes() >= need_bytes:
                        break
                    self._spill(order[start : start + CHUNK_COUNT], need_bytes)
            return self._free_bytes() > before_bytes

    def why(self) -> str:
        """Why the last `make_room` did not free more, as a sentence; '' when there is nothing to say."""
        if not self._why:
            return ""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self._why.most_common())
        return f" Of the blocks in memory could not be evicted: {reasons}."

    def reason(self, block_id: str, use: Use) -> str | None:
        """Why a block of this server may not be dropped from its memory now; None: it may."""
        if self._neighbours.server_id not in use.server_ids:
            return "not committed yet"
        if self._tier.is_open(block_path_of(block_id)):
            return "open"
        if not use.named:
            return None
        if use.pinned:
            return "pinned"
        if not use.persisted and not self._elsewhere(use):
            return "not persisted and on no other server"
        return None

    def give_up(self, block_ids: list[str]) -> int:
        """Drop these, as far as the catalog still agrees; returns how many."""
        if not block_ids:
            return 0
        hit("evict.catalog.before")
        victims = self._catalog.replicas.evict(block_ids)
        hit("evict.catalog.after")
        count = self._held.drop(victims)
        hit("evict.delete.after")
        self.evicted_count += count
        return count

    def _free_bytes(self) -> int:
        return min(self._tier.budget.free_bytes, free_shared_memory_bytes(self._tier.blocks_directory))

    def _drop(self, chunk: list[str], need_bytes: int) -> None:
        uses = self._catalog.replicas.uses(chunk)
        wanted_bytes = need_bytes - self._free_bytes()
        victims = []
        blocks = self._tier.blocks
        for block_id in chunk:
            if wanted_bytes <= 0:
                break
            reason = self.reason(block_id, uses[block_id])
            if reason is not None:
                self._why[reason] += 1
                continue
            victims.append(block_id)
            info = blocks.get(block_path_of(block_id))
            wanted_bytes -= 0 if info is None else info.memory_bytes
        self.give_up(victims)

    def _spill(self, chunk: list[str], need_bytes: int) -> None:
        uses = self._catalog.replicas.uses(chunk)
        for block_id in chunk:
            if self._free_bytes() >= need_bytes:
                return
            if self.reason(block_id, uses[block_id]) != "not persisted and on no other server":
                continue
            try:
                self._tier.spill(block_path_of(block_id))
            except BlockNotFound:
                continue  # removed meanwhile
            except OutOfMemory:
                # What was moved there may be safe elsewhere by now.
                if not self._drop_safe():
                    self._why["not on the second level, which is full"] += 1
                    return
                continue
            hit("spill.delete.after")
            self.spilled_count += 1

    def _drop_safe(self) -> int:
        """Drop blocks of the second level that would not be lost; returns how many."""
        spilled = [block_id for path in self._tier.spilled if (block_id := block_id_of(path))]
        uses = self._catalog.replicas.uses(spilled)
        return self.give_up([block_id for block_id in spilled if self.reason(block_id, uses[block_id]) is None])

    def _elsewhere(self, use: Use) -> bool:
        # A server that is silent may be gone for good, and its memory with it.
        return bool(self._neighbours.others(list(use.server_ids)))
