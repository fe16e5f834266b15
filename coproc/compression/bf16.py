"""bf16: the upper 16 bits of a float32, rounded to the nearest, ties to even.

    bits = x as an integer;  code = (bits + 0x7fff + (bits >> 16 & 1)) >> 16

BigDL truncates (Dai et al., "BigDL: A Distributed Deep Learning Framework for Big Data", SoCC 2019, section 3.3): twice
the error at most, and always towards 0, so that a residual grows in one direction. Rounding costs one pass more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from coproc.compression.base import Compression
from coproc.layout import Flat

_MOST = 0x7F7F  # the largest finite number: what is larger is sent as this, and the rest later
_SMALLEST = 2.0**-133


@dataclass(frozen=True)
class BF16(Compression):
    """Half of the bytes: 8 significant bits over the whole range of float32."""

    name: ClassVar[str] = "bf16"

    def encoded_bytes(self, count: int) -> int:
        return 2 * count

    def encode(self, values: Flat, decoded: Flat) -> bytes:
        bits = values.view(np.uint32)
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        codes = rounded.astype("<u2")
        if (codes & 0x7FFF).max() > _MOST:
            np.copyto(codes, (codes & 0x8000) | _MOST, where=(codes & 0x7FFF) > _MOST)
        self._expand(codes, decoded)
        return codes.tobytes()

    def _decode(self, data: memoryview, out: Flat) -> None:
        self._expand(np.frombuffer(data, "<u2"), out)

    @staticmethod
    def _expand(codes: NDArray[np.uint16], out: Flat) -> None:
        bits = out.view(np.uint32)
        np.copyto(bits, codes)
        np.left_shift(bits, 16, out=bits)

    def most_lost(self, values: Flat) -> NDArray[np.float64]:
        size = np.abs(values.astype(np.float64))
        # Half of the last of 8 bits, and a whole one of the very largest; below 2^-126, half of the smallest there is.
        return np.minimum(np.maximum(size * 2.0**-8, _SMALLEST / 2), size)
