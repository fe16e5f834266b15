"""How the tensors of a model lie in one flat float32 vector of P elements, and how it is cut into shards."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coproc.errors import ConfigError

Flat = NDArray[np.float32]

# A shard begins on a cache line, so that no two servers write to one line and streamed stores are aligned.
SHARD_ALIGN = 16  # float32 elements = 64 bytes

# 1 MiB: half of a core's second-level cache, and long enough for the copy to go past the caches.
_PIECE = 1 << 18
# A BLAS shares longer products among threads of its own, and waits for them.
_DOT = 8192


@dataclass(frozen=True)
class ParamLayout:
    """Names, shapes and offsets of a model's tensors; they follow each other without holes, in the given order."""

    shapes: Mapping[str, tuple[int, ...]]
    """Tensor name -> shape; () is a scalar."""

    size: int = field(init=False)
    """P, the number of float32 elements of the whole model."""

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ConfigError("a model needs at least one tensor; params is empty")
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self.shapes.items():
            if not isinstance(name, str) or not name or len(name) > 256:
                raise ConfigError(f"a tensor's name must be a text of 1 to 256 characters, not {name!r}")
            if any(int(extent) < 1 for extent in shape):
                raise ConfigError(f"tensor {name!r} has shape {tuple(shape)}: every extent must be at least 1")
            shapes[name] = tuple(int(extent) for extent in shape)
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "size", sum(math.prod(shape) for shape in shapes.values()))

    @classmethod
    def of(cls, tensors: Mapping[str, tuple[int, ...] | NDArray[np.floating]]) -> ParamLayout:
        """The layout of given shapes, or of given arrays."""
        return cls({name: t.shape if isinstance(t, np.ndarray) else tuple(t) for name, t in tensors.items()})

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that are equal only for equal names, shapes and order."""
        text = json.dumps([[name, list(shape)] for name, shape in self.shapes.items()])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def ranges(self) -> Iterator[tuple[str, int, int, tuple[int, ...]]]:
        """(name, first element, one past the last, shape) of each tensor, in order."""
        start = 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            yield name, start, stop, shape
            start = stop

    def views(self, flat: Flat) -> dict[str, Flat]:
        """The tensors as views into `flat` (P,). Never copies; read-only if `flat` is."""
        if flat.shape != (self.size,):
            raise ConfigError(f"a flat vector of shape ({self.size},) is needed, not {flat.shape}")
        return {name: flat[start:stop].reshape(shape) for name, start, stop, shape in self.ranges()}

    def fill(self, flat: Flat, tensors: Mapping[str, NDArray[np.floating]]) -> bool:
        """Copy `tensors` into `flat` (P,), converted to float32; whether all of it is finite.

        Raises:
            ConfigError: a name is missing or unknown, or a shape differs; `flat` is then untouched.
        """
        if tensors.keys() != self.shapes.keys():
            missing = sorted(self.shapes.keys() - tensors.keys())
            unknown = sorted(tensors.keys() - self.shapes.keys())
            raise ConfigError(f"tensors differ from the model's: missing {missing}, unknown {unknown}")
        for name, shape in self.shapes.items():
            if np.shape(tensors[name]) != shape:
                raise ConfigError(f"tensor {name!r} has shape {np.shape(tensors[name])}, the model's has {shape}")
        finite = True
        for name, start, stop, shape in self.ranges():
            finite &= _copy(flat[start:stop].reshape(shape), np.asarray(tensors[name]))
        return finite

    def shards(self, count: int) -> list[tuple[int, int]]:
        """`count` contiguous ranges [lo, hi) that cover the vector, each beginning at a multiple of 64 bytes.

        Sizes differ by at most one cache line.

        Raises:
            ConfigError: fewer cache lines than shards.
        """
        lines = -(-self.size // SHARD_ALIGN)
        if not 1 <= count <= lines:
            raise ConfigError(f"{self.size} parameters can be cut into 1 to {lines} shards, not {count}")
        bounds = [min(self.size, (lines * i // count) * SHARD_ALIGN) for i in range(count)] + [self.size]
        return list(pairwise(bounds))


def all_finite(values: Flat) -> bool:
    """Whether no element of a contiguous float32 vector is NaN or infinite.

    One pass that makes no temporary: a dot product is finite only if all elements are. Where it is not, because the
    squares of finite elements overflowed perhaps, a second look decides. No thread but the caller's is used.
    """
    # Unlike dot, vdot warns of nothing: for a small vector, to hush a warning takes longer than the product.
    if values.size <= _DOT:
        total = np.vdot(values, values)
    else:
        whole = values.size // _DOT * _DOT
        rows, rest = values[:whole].reshape(-1, _DOT), values[whole:]
        with np.errstate(all="ignore"):
            total = np.vecdot(rows, rows).sum() + np.vdot(rest, rest)
    return math.isfinite(total) or bool(np.isfinite(values).all())


def _copy(target: Flat, source: NDArray[np.floating]) -> bool:
    """Copy with conversion; whether all is finite. In pieces that are still in the cache when they are looked at."""
    if source.dtype != np.float32 or not source.flags.c_contiguous or source.size <= _PIECE:
        np.copyto(target, source, casting="unsafe")
        return all_finite(target.reshape(-1))
    flat_source, flat_target, finite = source.reshape(-1), target.reshape(-1), True
    for start in range(0, source.size, _PIECE):
        piece = flat_source[start : start + _PIECE]
        finite &= all_finite(piece)
        flat_target[start : start + _PIECE] = piece
    return finite


def as_tensors(values: Mapping[str, object]) -> dict[str, NDArray[np.floating]]:
    """Numbers by name as arrays; copies only what is not an array yet.

    Raises:
        ConfigError: not a mapping of names, or a value that is not made of real numbers (ragged, text, complex, None).
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"tensors are given by name, as a dict; not as {type(values).__name__}")
    arrays: dict[str, NDArray[np.floating]] = {}
    for name, value in values.items():
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ConfigError(f"tensor {name!r} is not an array of numbers: {error}") from None
        if array.dtype.kind not in "fiub":
            raise ConfigError(f"tensor {name!r} must be made of real numbers, not of {array.dtype}")
        arrays[name] = array
    return arrays
