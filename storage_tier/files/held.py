"""The blocks that this server holds, in the order of their last use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from storage_tier.errors import BlockNotFound, CorruptBlock
from storage_tier.files.base import Level, LocalBlock, block_id_of, block_path_of
from storage_tier.tier import Tier

# Of blocks that are opened again and again, where they are is not put together each time.
REMEMBERED_COUNT = 1024


class Held:
    """Finds, uses and drops blocks by their ids. Thread-safe. The order is in memory: a restart begins with age."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self._lock = threading.Lock()
        self._used: OrderedDict[str, None] = OrderedDict()
        self._found: dict[str, LocalBlock] = {}

    def start(self) -> list[str]:
        """All blocks of files that are here, on either level."""
        found = [*self.tier.blocks.values(), *self.tier.spilled.values()]
        ids = [
            block_id for info in sorted(found, key=lambda info: info.created_ns) if (block_id := block_id_of(info.path))
        ]
        with self._lock:
            self._used = OrderedDict.fromkeys(ids)
        return ids

    def find(self, block_id: str, remember: bool = True) -> LocalBlock | None:
        """The block's file on this host; None when it is not here, or damaged."""
        path = block_path_of(block_id)
        try:
            info = self.tier.info(path)
        except (BlockNotFound, CorruptBlock):
            return None
        if remember:
            self.use(block_id)
        level: Level = "disk" if self.tier.on_disk(path) else "memory"
        found = self._found.get(block_id)
        if found is None or found.info is not info or found.level != level:
            found = LocalBlock(info, self.tier.local_path(path), level)
            if len(self._found) >= REMEMBERED_COUNT:
                self._found.clear()
            self._found[block_id] = found
        return found

    def use(self, block_id: str) -> None:
        """It was used now."""
        with self._lock:
            self._used[block_id] = None
            self._used.move_to_end(block_id)

    def drop(self, block_ids: Iterable[str]) -> int:
        """Delete bytes; who has them open keeps them. Returns how many there were."""
        ids = list(block_ids)
        with self._lock:
            for block_id in ids:
                self._used.pop(block_id, None)
        return self.tier.delete_blocks(block_path_of(block_id) for block_id in ids)

    def oldest(self) -> list[str]:
        """The blocks in memory, the least lately used first."""
        in_memory = self.tier.blocks
        with self._lock:
            return [block_id for block_id in self._used if block_path_of(block_id) in in_memory]
