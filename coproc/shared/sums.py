"""Sums that all shards of a model need of each other before they sweep: squares of its gradient, of its layers.

One region a model. Each shard has two banks in it, for updates of even and of odd number:

    sums (values,) float64, then the number of the update that they are of

A shard stores its sums, then, after a fence, the number; it sweeps when all numbers are there. It cannot be two
updates ahead of another, so two banks are enough; and what it stores again after a restart is what was there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage_tier.regions import Region, align
from storage_tier.words import fence

_LINE_BYTES = 64


class Sums:
    """The mapped region."""

    def __init__(self, region: Region, shards: int, values: int) -> None:
        self.region = region
        self._shards = shards
        self._values = values
        stride = _stride_bytes(values)
        self._numbers = [[region.words((2 * n + b) * stride, 1) for b in range(2)] for n in range(shards)]
        self._sums = [
            [region.array((2 * n + b) * stride + _LINE_BYTES, np.float64, values) for b in range(2)]
            for n in range(shards)
        ]

    @staticmethod
    def size_bytes(shards: int, values: int) -> int:
        """Bytes of the region."""
        return align(2 * shards * _stride_bytes(values), 4096)

    @classmethod
    def create(cls, path: Path, shards: int, values: int) -> Sums:
        """Raises OutOfMemory. No update has number 0, so nothing is there yet."""
        return cls(Region.create(path, cls.size_bytes(shards, values), "sums"), shards, values)

    @classmethod
    def open(cls, path: Path, shards: int, values: int) -> Sums:
        """Map an existing region."""
        return cls(Region.open(path), shards, values)

    def tell(self, shard: int, update: int, sums: NDArray[np.float64]) -> None:
        """Store the sums (values,) of a shard for an update, counted from 1; then others may look."""
        self._sums[shard][update % 2][:] = sums
        fence()
        self._numbers[shard][update % 2].store(0, update)

    def total(self, update: int) -> NDArray[np.float64] | None:
        """The sums (values,) over all shards, added in their order; None until all have told theirs."""
        bank = update % 2
        if any(numbers[bank].load(0) != update for numbers in self._numbers):
            return None
        fence()
        total = np.zeros(self._values)
        for sums in self._sums:
            total += sums[bank]
        return total

    def close(self) -> None:
        """Unmap. Idempotent."""
        self._numbers.clear()
        self._sums.clear()
        self.region.close()


def _stride_bytes(values: int) -> int:
    return _LINE_BYTES + align(values * 8, _LINE_BYTES)
