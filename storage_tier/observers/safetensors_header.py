"""The header of a safetensors file, believed in nothing. Pure; reads the header and no tensor.

8 bytes     length of the header, little-endian
header      JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {string: string}}
rest        the tensors, one after the other, without holes
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# As the format's own reader has it.
MAX_HEADER_BYTES = 100_000_000
# A header is JSON and is taken apart in Python: some ten times its size. A model of 10,000 tensors has 1 MB.
DEFAULT_HEADER_LIMIT_BYTES = 16 << 20

ALIGN_BYTES = 64

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class NotSafetensors(ValueError):
    """Not a whole safetensors file; the message says why, and goes after 'it'."""


@dataclass(frozen=True)
class Tensor:
    """One entry of a header."""

    dtype: str
    shape: tuple[int, ...]
    begin_bytes: int = field(default=0, compare=False)
    """Where its bytes begin, in the whole file."""
    end_bytes: int = field(default=0, compare=False)


def read_header(
    data: memoryview, limit_bytes: int = DEFAULT_HEADER_LIMIT_BYTES
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file of exactly these bytes.

    Raises:
        NotSafetensors: cut, too long, not JSON, a dtype that is not known, sizes that are not those of the
            shapes, holes, overlaps, a name twice.
    """
    if len(data) < 8:
        raise NotSafetensors(f"has {len(data)} bytes, and a safetensors file begins with 8")
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > len(data) - 8:
        raise NotSafetensors(f"says its header has {header_bytes:,} bytes, and {len(data) - 8:,} follow")
    if header_bytes > limit_bytes:
        raise NotSafetensors(f"has a header of {header_bytes:,} bytes, and {limit_bytes:,} are read")
    try:
        header = json.loads(bytes(data[8 : 8 + header_bytes]).decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise NotSafetensors("has a header that is nested too deep") from None
    except NotSafetensors:
        raise
    except ValueError as error:
        raise NotSafetensors(f"has a header that is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise NotSafetensors(f"has a header that is a {type(header).__name__} and not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise NotSafetensors("has metadata that are not strings by name")
    tensors: dict[str, Tensor] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        tensors[name], begin, end = _entry(name, entry, 8 + header_bytes)
        ranges.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(ranges):
        if begin != at:
            raise NotSafetensors(f"has tensor {name!r:.80} at {begin:,}, and the one before it ends at {at:,}")
        at = end
    payload_bytes = len(data) - 8 - header_bytes
    if at != payload_bytes:
        raise NotSafetensors(f"has tensors of {at:,} bytes by its header, and {payload_bytes:,} follow it")
    return tensors, metadata


def _entry(name: str, entry: Any, start_bytes: int) -> tuple[Tensor, int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise NotSafetensors(f"has an entry {name!r:.80} without exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise NotSafetensors(f"has tensor {name!r:.80} of dtype {dtype!r:.40}, which is not known")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise NotSafetensors(f"has tensor {name!r:.80} with a shape or offsets that are not lists of sizes")
    bits = BITS[dtype]
    for size in shape:
        bits *= size
        if bits > 8 * (1 << 50) and 0 not in shape:
            raise NotSafetensors(f"has tensor {name!r:.80} of an impossible size")
    begin, end = offsets
    if bits != 8 * (end - begin):
        raise NotSafetensors(
            f"has tensor {name!r:.80} of dtype {dtype} and shape {_show(shape)}: {bits // 8:,} bytes, and its "
            f"data_offsets say {end - begin:,}"
        )
    return Tensor(dtype, tuple(shape), start_bytes + begin, start_bytes + end), begin, end


def _counts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 63 for size in value)
    )


def _show(shape: list[int]) -> str:
    return f"{shape}"[:80]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotSafetensors("has a header that says the same name twice")
    return found


def make_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str], spare_bytes: int = 0
) -> bytes:
    """The beginning of a file of these (name, dtype, shape), whose bytes follow in this order without holes.

    They begin at a cache line, so that a mapped file can be read in place. With `spare_bytes` it is as long as if its
    text had so many more.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, dtype, shape in tensors:
        end = at + BITS[dtype] * math.prod(shape) // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = len(text) + spare_bytes
    length += -(8 + length) % ALIGN_BYTES
    return length.to_bytes(8, "little") + text.ljust(length)
