"""Copying a model's rows from memory to memory, past the caches and without the interpreter lock.

A plain store first reads the line that it overwrites, a streamed one does not: a copy of a large row takes 0.6 of the
time of `memcpy`, and descent stands still for it.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coproc import jit
from storage_tier import intrinsics

_PARTS_AT_MOST = 4
_LINE_FLOATS, _LINE_BYTES = 16, 64
# Less is not worth a thread. Also from where on to stream: smaller copies are in the cache, and soon read.
_PIECE = 1 << 18

Row = NDArray[np.float32]

compiled: Any = intrinsics
get_line, put_line, fence = compiled.get_line, compiled.put_line, compiled.fence


def _stream(target: Any, source: Any, lines: int) -> None:
    """`lines` whole lines of 16 floats; the target starts at a multiple of 64 bytes."""
    for line in range(lines):
        put_line(target, line, get_line(source, line, None), 1)
    fence()


@functools.cache
def _compiled_stream() -> Any:
    made = jit.compiled(_stream, lambda: [Path(__file__), Path(str(intrinsics.__file__))])
    row = np.zeros(1, np.float32)
    made(row, row, 0)
    return made


def warm() -> None:
    """Compile, or load what was compiled, before it is urgent."""
    _compiled_stream()


def copy_all(pairs: Iterable[tuple[Row, Row]]) -> None:
    """Copy each second row into the first of its pair, (n,) each, all contiguous; by several threads.

    When it returns, every thread sees the copies.
    """
    pieces = [piece for target, source in pairs for piece in _pieces(target, source)]
    parts = max(1, min(_PARTS_AT_MOST, len(os.sched_getaffinity(0)), len(pieces)))

    def copy_part(number: int) -> None:
        for target, source in pieces[number::parts]:
            _copy(target, source)

    if parts == 1:
        copy_part(0)
        return
    with ThreadPoolExecutor(parts - 1, "copying") as pool:
        others = [pool.submit(copy_part, number) for number in range(1, parts)]
        copy_part(0)
        for other in others:
            other.result()


def _pieces(target: Row, source: Row) -> Iterator[tuple[Row, Row]]:
    for start in range(0, target.size, _PIECE):
        yield target[start : start + _PIECE], source[start : start + _PIECE]


def _copy(target: Row, source: Row) -> None:
    head = -target.ctypes.data % _LINE_BYTES // 4
    lines = (target.size - head) // _LINE_FLOATS
    if target.size < _PIECE:
        np.copyto(target, source)
        return
    end = head + lines * _LINE_FLOATS
    np.copyto(target[:head], source[:head])
    _compiled_stream()(target[head:end], source[head:end], lines)
    np.copyto(target[end:], source[end:])
