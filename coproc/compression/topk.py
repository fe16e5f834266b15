"""topk: of each 65,536 values those of the largest magnitude, exactly; the others not at all.

    k = ceil(fraction * n);  the k places in ascending order (uint16), then their values (float32)

Aji and Heafield, "Sparse Communication for Distributed Gradient Descent", EMNLP 2017; that it converges with error
feedback: Stich et al., "Sparsified SGD with Memory", NeurIPS 2018. By blocks instead of over the whole vector, so
that the first bytes leave before the last gradient is looked at; and each block, so each layer, gets its turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from coproc.compression.base import Compression, fraction
from coproc.errors import ConfigError
from coproc.layout import Flat

BLOCK_FLOATS = 1 << 16


@dataclass(frozen=True)
class TopK(Compression):
    """6 bytes for each value that is sent: 1.5 times the fraction of the bytes."""

    name: ClassVar[str] = "topk"

    fraction: float = 0.01
    """Share of the values that is sent: more than 0, at most 1. With 0.01 a value is sent every hundredth time on
    average, so the worker's and the server's models are further apart than with the other compressions."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fraction", fraction("fraction of TopK", self.fraction))

    def _kept(self, count: int) -> int:
        return min(count, math.ceil(self.fraction * count))

    def encoded_bytes(self, count: int) -> int:
        whole, rest = divmod(count, BLOCK_FLOATS)
        return 6 * (whole * self._kept(BLOCK_FLOATS) + self._kept(rest))

    def encode(self, values: Flat, decoded: Flat) -> bytes:
        decoded[:] = 0
        parts: list[bytes] = []
        for start in range(0, values.size, BLOCK_FLOATS):
            block = values[start : start + BLOCK_FLOATS]
            places = self._largest(block)
            chosen = block[places].astype("<f4")
            decoded[start : start + BLOCK_FLOATS][places] = chosen
            parts += [places.astype("<u2").tobytes(), chosen.tobytes()]
        return b"".join(parts)

    def _largest(self, block: Flat) -> NDArray[np.intp]:
        """Where they are, ascending; of equal ones the first."""
        kept = self._kept(block.size)
        # Without its sign a float32 orders as the integer of the same bits does, and numpy finds those faster.
        sizes = (block.view(np.uint32) & 0x7FFFFFFF).view(np.int32)
        least = np.partition(sizes, block.size - kept)[block.size - kept]
        places = np.flatnonzero(sizes >= least)
        if len(places) > kept:
            equal = np.flatnonzero(sizes[places] == least)
            places = np.delete(places, equal[kept - len(places) :])
        return places

    def _decode(self, data: memoryview, out: Flat) -> None:
        out[:] = 0
        at = 0
        for start in range(0, out.size, BLOCK_FLOATS):
            block = out[start : start + BLOCK_FLOATS]
            kept = self._kept(block.size)
            places = np.frombuffer(data[at : at + 2 * kept], "<u2")
            chosen = np.frombuffer(data[at + 2 * kept : at + 6 * kept], "<f4")
            at += 6 * kept
            if places[-1] >= block.size or not (places[1:] > places[:-1]).all():
                raise ConfigError(
                    f"the places of the values of a block in {self.name} must ascend from 0 to at most "
                    f"{block.size - 1:,}, and those that were sent do not"
                )
            block[places] = chosen

    def most_lost(self, values: Flat) -> NDArray[np.float64]:
        most = np.abs(values.astype(np.float64))
        for start in range(0, values.size, BLOCK_FLOATS):
            most[start : start + BLOCK_FLOATS][self._largest(values[start : start + BLOCK_FLOATS])] = 0
        return most
