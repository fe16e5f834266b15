"""int8: whole numbers from -127 to 127 times a scale, one for each 4,096 values, symmetric around 0.

    scale = max|x| / 127;  code = round(x / scale), ties to even

A scale a block instead of one a vector (as in Seide et al. 2014, one a column): a layer with large gradients takes no
bits from the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from coproc.compression.base import Compression, block_maxima, read_scales, scaled
from coproc.layout import Flat

BLOCK_FLOATS = 4096
_MOST = np.finfo(np.float32).max
_LEAST_SCALE = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Int8(Compression):
    """A quarter of the bytes and 4 for each 4,096 values: 254 steps from the least to the largest."""

    name: ClassVar[str] = "int8"

    def encoded_bytes(self, count: int) -> int:
        return 4 * -(-count // BLOCK_FLOATS) + count

    def encode(self, values: Flat, decoded: Flat) -> bytes:
        scales = self._scales(values)
        # A block whose values are as good as 0 (1e-36) has scale 0, and is sent as zeros.
        inverses = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
        scaled(values, inverses, BLOCK_FLOATS, decoded)
        np.rint(decoded, out=decoded)
        codes = decoded.astype(np.int8)
        scaled(codes, scales, BLOCK_FLOATS, decoded)
        return scales.tobytes() + codes.tobytes()

    @staticmethod
    def _scales(values: Flat) -> Flat:
        scales = block_maxima(values, BLOCK_FLOATS) / np.float32(127)
        scales[scales < _LEAST_SCALE] = 0
        # 127 of them must not be more than float32 has.
        most = np.nextafter(_MOST / np.float32(127), np.float32(0))
        least: Flat = np.minimum(scales, most).astype("<f4")
        return least

    def _decode(self, data: memoryview, out: Flat) -> None:
        count = -(-out.size // BLOCK_FLOATS)
        scales = read_scales(data, count, float(_MOST), self.name)
        scaled(np.frombuffer(data[4 * count :], np.int8), scales, BLOCK_FLOATS, out)

    def most_lost(self, values: Flat) -> NDArray[np.float64]:
        size = np.abs(values.astype(np.float64))
        scales = np.repeat(self._scales(values).astype(np.float64), BLOCK_FLOATS)[: values.size]
        # Half a step, and the rounding of three float32 operations; all of it where there is no scale.
        most = np.where(scales > 0, scales / 2 + size * 2.0**-22, size)
        return np.minimum(most, size)
