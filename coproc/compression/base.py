"""What a compression is, and the list of all compressions.

One is a file of this folder with one frozen dataclass. It turns a *piece* of a float32 vector, at most `PIECE_FLOATS`
values, into bytes and back. Each piece stands for itself, so that it is encoded while the one before it travels, and
decoded into its place as it arrives. It keeps nothing: what it left out is kept by `coproc.compression.feedback`.

All of it is plain numpy, which lets go of the interpreter lock: a client needs no compiler, and a piece fits the
processor's cache, where numpy takes 5 to 20 ms for 57 MB (topk: 85).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from coproc.errors import ConfigError
from coproc.folder import one_in_each_file
from coproc.layout import Flat

# Both ends know it: how many values a coded chunk of the wire stands for, except the last, which has the rest.
PIECE_FLOATS = 1 << 18

# Files of this folder that hold no compression.
_OTHER_FILES = {"base", "feedback"}


@dataclass(frozen=True)
class Compression(ABC):
    """A way to write float32 values with fewer bytes, with its settings: a value. Thread-safe."""

    name: ClassVar[str]
    """As it travels; the name of its file."""

    @abstractmethod
    def encoded_bytes(self, count: int) -> int:
        """Bytes of so many values, whatever they are."""

    @abstractmethod
    def encode(self, values: Flat, decoded: Flat) -> bytes:
        """The bytes of a piece; the same for the same values.

        Args:
            values: (n,) finite, n from 1 to `PIECE_FLOATS`; left as it is.
            decoded: (n,) receives what `decode` will make of the bytes, bit by bit; finite.
        """

    def decode(self, data: bytes | memoryview, out: Flat) -> None:
        """Write the values that the bytes stand for into `out` (n,). Not finite only if the bytes say so.

        Raises:
            ConfigError: not the bytes of n values. `out` may have been written to.
        """
        expected = self.encoded_bytes(out.size)
        if len(data) != expected:
            raise ConfigError(
                f"{out.size:,} values are {expected:,} bytes in {self.name}, and a chunk of {len(data):,} was sent"
            )
        self._decode(memoryview(data), out)

    @abstractmethod
    def _decode(self, data: memoryview, out: Flat) -> None:
        """As `decode`; the number of bytes is right."""

    @abstractmethod
    def most_lost(self, values: Flat) -> NDArray[np.float64]:
        """(n,): the most by which each decoded value of a piece may differ; never more than the value itself."""

    def to_config(self) -> dict[str, Any]:
        """Its name and settings, as JSON values."""
        return {"name": self.name, **dataclasses.asdict(self)}


def pieces(size: int) -> Iterator[slice]:
    """The pieces of a vector (size,), in order."""
    for start in range(0, size, PIECE_FLOATS):
        yield slice(start, min(start + PIECE_FLOATS, size))


def block_maxima(values: Flat, block: int) -> Flat:
    """(ceil(n / block),): the largest magnitude of each block of `block` values; the last may be short."""
    whole = values.size // block * block
    maxima = np.empty(-(-values.size // block), np.float32)
    blocks = values[:whole].reshape(-1, block)
    maxima[: len(blocks)] = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
    if whole < values.size:
        maxima[-1] = np.abs(values[whole:]).max()
    return maxima


def scaled(values: NDArray[Any], factors: Flat, block: int, out: Flat) -> None:
    """``out = values * factors``, with one factor for each block of `block` values; in float32."""
    whole = values.size // block * block
    count = whole // block
    # What was sent by somebody hostile may overflow: it is then not finite, and refused by whoever looks.
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(
            values[:whole].reshape(-1, block),
            factors[:count, None],
            out=out[:whole].reshape(-1, block),
            dtype=out.dtype,
        )
        if whole < values.size:
            np.multiply(values[whole:], factors[-1], out=out[whole:], dtype=out.dtype)


def read_scales(data: memoryview, count: int, most: float, what: str) -> Flat:
    """The scales of blocks at the head of a chunk, (count,).

    Raises:
        ConfigError: one is not a number from 0 to `most`.
    """
    scales = np.frombuffer(data[: 4 * count], "<f4")
    if not (scales.min() >= 0.0 and scales.max() <= most):  # a NaN is neither
        wrong = scales[~((scales >= 0.0) & (scales <= most))][0]
        raise ConfigError(f"the scale of a block in {what} must be a number from 0 to {most:g}, not {wrong}")
    return scales


@functools.cache
def registered() -> Mapping[str, type[Compression]]:
    """Name -> class of every compression: one in each file of this folder."""
    return one_in_each_file(Compression, _OTHER_FILES)  # type: ignore[type-abstract]  # only its subclasses are made


def from_config(config: object) -> Compression:
    """The compression that `to_config` described. Only looks names up in `registered`; executes nothing.

    Raises:
        ConfigError: an unknown compression, an unknown or missing setting, a value out of range.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"a compression is described by its name and settings, not by {config!r:.100}")
    settings = dict(config)
    name = settings.pop("name", None)
    kinds = registered()
    if not isinstance(name, str) or name not in kinds:
        raise ConfigError(f"no compression is called {name!r:.100}; there are none, {', '.join(sorted(kinds))}")
    known = [field.name for field in dataclasses.fields(kinds[name])]
    unknown = sorted(str(key) for key in settings if key not in known)
    if unknown:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ConfigError(f"compression {name} has no setting {', '.join(unknown)}; {has}")
    return kinds[name](**settings)


def from_json(text: str) -> Compression | None:
    """As `from_config`, of JSON; None for an empty text."""
    if not text:
        return None
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the description of a compression is not JSON: {error}") from None
    return from_config(config)


def as_compression(given: Compression | str | None) -> Compression | None:
    """A compression by value or by name; None for None and "none".

    Raises:
        ConfigError: neither, or an unknown name.
    """
    if given is None or given == "none":
        return None
    if isinstance(given, Compression):
        return given
    if isinstance(given, str):
        return from_config({"name": given})
    raise ConfigError(f"compression must be a name or one of coproc.compression, not {given!r:.100}")


def fraction(what: str, value: object) -> float:
    """`value` as a float, if it is a number greater than 0 and at most 1.

    Raises:
        ConfigError: with what was found.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and 0 < value <= 1):
        raise ConfigError(f"{what} must be a number greater than 0 and at most 1, not {value!r:.100}")
    return float(value)
