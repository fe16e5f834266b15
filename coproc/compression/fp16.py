"""fp16: half precision, with one power of two for each 4,096 values.

    scale = 2^(e - 15) where 2^(e - 1) <= max|x| < 2^e;  code = half(x / scale)

The power of two is exact and keeps the values in the middle of the range of halves, which ends at 65,504 and loses
bits below 6e-5: gradients and the differences of parameters are often smaller. Its job is that of loss scaling
(Micikevicius et al., "Mixed Precision Training", ICLR 2018), done block by block.

Times 2^-112 a float32 has a half's exponent, and the half is made of its bits; numpy's own conversion, a value at a
time, takes four times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from coproc.compression.base import Compression, block_maxima, read_scales, scaled
from coproc.errors import ConfigError
from coproc.layout import Flat

BLOCK_FLOATS = 4096
_LEAST_EXPONENT = -126  # the smallest power of two with an inverse
_MOST_SCALE = 2.0**113
_MOST_HALF = 32_752  # the last below 2^15, which times that scale is more than float32 has
_INFINITE_CODE = 0x7C00
_TO_HALF = np.float32(2.0**-112)
_TO_FLOAT = np.float32(2.0**112)


@dataclass(frozen=True)
class FP16(Compression):
    """Half of the bytes and 4 for each 4,096 values: 11 significant bits."""

    name: ClassVar[str] = "fp16"

    def encoded_bytes(self, count: int) -> int:
        return 4 * -(-count // BLOCK_FLOATS) + 2 * count

    def encode(self, values: Flat, decoded: Flat) -> bytes:
        scales = self._scales(values)
        scaled(values, np.reciprocal(scales), BLOCK_FLOATS, decoded)
        if scales.max() == _MOST_SCALE:
            np.clip(decoded, -_MOST_HALF, _MOST_HALF, out=decoded)
        codes = _to_half(decoded)
        _to_float(codes, decoded)
        scaled(decoded, scales, BLOCK_FLOATS, decoded)
        return scales.tobytes() + codes.tobytes()

    @staticmethod
    def _scales(values: Flat) -> Flat:
        _, exponents = np.frexp(block_maxima(values, BLOCK_FLOATS))
        scales: Flat = np.ldexp(np.float32(1), np.maximum(exponents - 15, _LEAST_EXPONENT)).astype("<f4")
        return scales

    def _decode(self, data: memoryview, out: Flat) -> None:
        count = -(-out.size // BLOCK_FLOATS)
        scales = read_scales(data, count, _MOST_SCALE, self.name)
        codes = np.frombuffer(data[4 * count :], "<u2")
        if (codes & 0x7FFF).max() >= _INFINITE_CODE:
            raise ConfigError(f"a value in {self.name} is not finite")
        _to_float(codes, out)
        scaled(out, scales, BLOCK_FLOATS, out)

    def most_lost(self, values: Flat) -> NDArray[np.float64]:
        size = np.abs(values.astype(np.float64))
        scales = np.repeat(self._scales(values).astype(np.float64), BLOCK_FLOATS)[: values.size]
        # Half of the last of 11 bits, or half of the smallest half (2^-24), rounded twice; float32 ends at 2^-149.
        smallest = scales * 2.0**-25 * (1 + 2.0**-11)
        return np.minimum(np.maximum(np.maximum(size * 2.0**-11, smallest), 2.0**-150), size)


def _to_half(values: Flat) -> NDArray[np.uint16]:
    """The nearest halves of values of less than 65,520, ties to even; `values` is used up."""
    np.multiply(values, _TO_HALF, out=values)
    bits = values.view(np.uint32)
    codes = bits >> 13
    codes &= 1
    codes += 0xFFF
    codes += bits & 0x7FFFFFFF
    codes >>= 13
    bits >>= 16
    bits &= 0x8000
    codes |= bits
    return codes.astype("<u2")


def _to_float(codes: NDArray[np.uint16], out: Flat) -> None:
    bits = out.view(np.uint32)
    np.copyto(bits, codes)
    signs = bits & 0x8000
    signs <<= 16
    bits &= 0x7FFF
    bits <<= 13
    bits |= signs
    np.multiply(out, _TO_FLOAT, out=out)
