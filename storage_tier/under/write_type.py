"""What is true when a write below a mount returns."""

from __future__ import annotations

from enum import Enum


class WriteType(Enum):
    """How a committed file comes to the under-store. Whichever it is, only whole objects are published there."""

    MUST_CACHE = "must_cache"
    """It is in memory, and nothing more will be done: it is lost with the host, and never evicted before removed."""

    CACHE_THROUGH = "cache_through"
    """It is in memory and whole in the under-store. The write is as slow as that is, and fails with it."""

    ASYNC_THROUGH = "async_through"
    """It is in memory, and that it must be persisted is recorded. It will be tried until it succeeds, over
    restarts too, and the memory is no victim of eviction before. Lost with the host until then."""

    THROUGH = "through"
    """It is whole in the under-store, and not in memory: for what nobody will read soon."""

    @property
    def persists(self) -> bool:
        """Whether the under-store gets it at all."""
        return self is not WriteType.MUST_CACHE

    @property
    def persists_before_return(self) -> bool:
        """Whether the write returns only after the under-store has it."""
        return self in (WriteType.CACHE_THROUGH, WriteType.THROUGH)

    @property
    def caches(self) -> bool:
        """Whether the memory keeps it."""
        return self is not WriteType.THROUGH
