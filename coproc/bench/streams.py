"""Denominators: the plainest loops that move the same bytes. Imports nothing of the project.

What a sweep can't beat is a loop that reads the same rows, writes the same rows, and does little more
than one addition in between. These are such loops: in place, into other memory with plain stores, and
into other memory with stores past the caches.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import mmap
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Rows = tuple[NDArray[np.float32], ...]

_VECTOR_FLOATS = 16
_compile = numba.njit(nogil=True, error_model="numpy")


def rows(count: int, size: int) -> list[NDArray[np.float32]]:
    """`count` rows of zeros, float32 (size,), in memory like that of a tier: shared, in pages of 4 KiB.

    Each starts at a multiple of 64 bytes, neighbours at different offsets in a page: streams at the same one
    compete for the same lines of the cache. All pages are touched. The memory goes with the last row.
    """
    made = []
    for number in range(count):
        offset_bytes = 320 * number % mmap.PAGESIZE  # five lines further each
        shared = mmap.mmap(-1, offset_bytes + 4 * size)
        row = np.frombuffer(shared, np.float32, size, offset_bytes)
        row[:] = 0
        made.append(row)
    return made


@_compile
def in_place(updated: Rows, read: Rows, scale: np.float32) -> None:
    """Read all rows, write the updated ones: each becomes itself plus `scale` times the sum of the others.

    With a scale of 0 the values stay, and the loop can share its memory with what it is compared with.
    """
    for i in range(updated[0].size):
        total = read[0][i]
        for j in range(1, len(read)):
            total += read[j][i]
        total *= scale
        for j in range(len(updated)):
            updated[j][i] += total


@_compile
def out_of_place(source: Rows, read: Rows, scale: np.float32, target: Rows) -> None:
    """The same into other rows, with plain stores."""
    for i in range(source[0].size):
        total = read[0][i]
        for j in range(1, len(read)):
            total += read[j][i]
        total *= scale
        for j in range(len(source)):
            target[j][i] = source[j][i] + total


@intrinsic
def _add_line_streamed(
    _typing: Any, target: types.Type, source: types.Type, read: types.Type, scale: types.Type, at: types.Type
) -> tuple[Any, Any]:
    """``target[at:at + 16] = source[at:at + 16] + scale * (sum of read)[at:at + 16]``, past the caches."""

    def emit(context: Any, code: Any, sig: Any, args: Any) -> Any:
        vector, lane = ir.VectorType(ir.FloatType(), _VECTOR_FLOATS), ir.IntType(32)

        def place(row_type: types.Type, row: Any) -> Any:
            array = context.make_array(row_type)(context, code, row)
            first = cgutils.get_item_pointer(context, code, row_type, array, [args[4]], wraparound=False)
            return code.bitcast(first, vector.as_pointer())

        def load(row_type: types.Type, row: Any) -> Any:
            return code.load(place(row_type, row), align=4)

        total = load(sig.args[2].dtype, code.extract_value(args[2], 0))
        for number in range(1, len(sig.args[2])):
            total = code.fadd(total, load(sig.args[2].dtype, code.extract_value(args[2], number)))
        none = ir.Constant(vector, ir.Undefined)
        scales = code.insert_element(none, args[3], ir.Constant(lane, 0))
        first_lane = ir.Constant(ir.VectorType(lane, _VECTOR_FLOATS), [0] * _VECTOR_FLOATS)
        total = code.fmul(total, code.shuffle_vector(scales, none, first_lane))
        store = code.store(code.fadd(load(sig.args[1], args[1]), total), place(sig.args[0], args[0]), align=64)
        store.set_metadata("nontemporal", code.module.add_metadata([ir.Constant(lane, 1)]))
        return context.get_dummy_value()

    return types.void(target, source, read, types.float32, types.intp), emit


@_compile
def out_of_place_streamed(source: Rows, read: Rows, scale: np.float32, target: Rows) -> None:
    """The same, stored past the caches; `target` starts at multiples of 64 bytes."""
    whole = source[0].size // _VECTOR_FLOATS * _VECTOR_FLOATS
    for at in range(0, whole, _VECTOR_FLOATS):
        for j in range(len(source)):
            _add_line_streamed(target[j], source[j], read, scale, at)  # type: ignore[call-arg, arg-type]
    for i in range(whole, source[0].size):
        for j in range(len(source)):
            total = read[0][i]
            for k in range(1, len(read)):
                total += read[k][i]
            target[j][i] = source[j][i] + total * scale
