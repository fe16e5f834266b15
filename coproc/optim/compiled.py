"""Sweeps as machine code: compile them (or find them in the cache), check the buffers, run them.

Needs numba, the `server` extra; it is imported when the first sweep is compiled, not before. A sweep is
compiled once for each shape of its gradients (how many updates, of how many members) and each way of storing,
about 0.2 s each, and kept (see `coproc.jit`). `warm` does that ahead, so that it never happens inside a round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from coproc import jit
from coproc.optim import base
from coproc.optim.base import Constants, Optimizer, Row, Weights

STREAM_FROM = 1 << 19
"""Floats of a shard from which its sweep stores past the caches.

A plain store first reads the line it overwrites, a streamed one does not: less traffic, once the rows
outgrow the caches. Below, the next sweep would have found the rows in the cache. Measured with Adam, each
sweep reading what the one before wrote, streamed takes 1.8 times as long as plain at 2^14 floats, 1.1 at
2^18, 0.98 at 2^19, 0.78 from 2^20 on.
"""

GRADIENTS_AT_ONCE = 8
"""Gradients of one pass: more streams than this at once and memory slows down; also what is compiled for."""

SCRATCH_FLOATS = 1 << 18
"""Size of the scratch for larger rounds: its two halves of 512 KiB stay in a core's cache."""

CompiledSweep = Callable[..., None]
Gradients = tuple[tuple[Row, ...], ...]

_FLOAT32 = np.dtype(np.float32)
_STREAMED = 1
_ALIGN_BYTES = 64
_ZERO, _ONE = np.float32(0), np.float32(1)


def compile_sweep(optimizer: Optimizer) -> CompiledSweep:
    """The sweep of an optimizer as a function that runs without the interpreter lock.

    Compiles nothing yet: that happens at the first call with each shape, see `warm`. The function checks
    nothing; `apply` does.
    """
    return compile_function(optimizer.kernel())


def compile_function(function: Callable[..., None]) -> CompiledSweep:
    """A function in the words of a sweep, compiled; lazily, the same for whoever asks, from any thread."""
    _teach_numba()
    return jit.compiled(function, sources)


def apply(
    sweep: CompiledSweep,
    gradients: Gradients,
    weights: tuple[Weights, ...],
    constants: tuple[Constants, ...],
    front: tuple[Row, ...],
    back: tuple[Row, ...],
    scratch: Row,
    streamed: bool,
) -> None:
    """One pass over memory: descend all updates from the front into the back.

    Blocks until done, without the interpreter lock. Copies nothing and keeps nothing. The result is the same
    bits however a range is cut into passes, however updates are grouped, and streamed or not. Not atomic: the
    back is undefined until this returns; the front is never touched. When it returns, a streamed back too is
    visible to whoever sees a later store of this thread.

    Args:
        gradients: tuple over updates of tuple over members of float32 (n,), with their bases where delays are
            compensated; at most 8 updates. A round (one update) may have any number of members, several updates at
            most 8 rows together.
        weights: `Optimizer.weights` of each update.
        constants: `Optimizer.constants` of each update.
        front: (params, *state) as they are, float32 (n,) each.
        back: as they will be; other memory than the front (or exactly the front: in place, not crash-safe).
        scratch: float32, `SCRATCH_FLOATS` long; used for rounds of more than 8 rows.
        streamed: store past the caches, worth it from `STREAM_FROM` on. Each row of the back must start at a
            multiple of 64 bytes.

    Raises:
        ValueError: buffers that do not fit together, or a streamed back that is not aligned.
    """
    _check(gradients, weights, constants, front, back)
    if streamed:
        for row in back:
            if beyond := row.ctypes.data % _ALIGN_BYTES:
                raise ValueError(
                    f"a streamed sweep needs rows that start at a multiple of {_ALIGN_BYTES} bytes, and one "
                    f"starts {beyond} bytes after one: allocate it aligned, or do not stream"
                )
    if sum(map(len, gradients)) <= GRADIENTS_AT_ONCE:
        _pass(sweep, gradients, weights, constants, front, back, streamed)
    else:
        _large_round(sweep, gradients[0], weights[0], constants, front, back, scratch, streamed)
    if streamed:
        compile_function(_finish_streaming)()


def warm(optimizer: Optimizer, counts: Iterable[tuple[int, int]], streamed: bool) -> None:
    """Compile ahead, or load from the cache, what `apply` will need. Blocks: 0.2 s a count if not cached.

    Args:
        counts: (updates, members) of the passes to come: `synchronous_counts` or `ASYNCHRONOUS_COUNTS`.
        streamed: as `apply` will be called.
    """
    sweep = compile_sweep(optimizer)
    size = base.LINE_FLOATS + 1  # a whole line and a short one: all that a pass can meet
    scratch = aligned_row(4 * base.LINE_FLOATS)
    constants = optimizer.constants(1, optimizer.base_rate)
    front, back = (tuple([aligned_row(size) for _ in range(1 + len(optimizer.state_rows))]) for _ in ("front", "back"))
    for updates, members in counts:
        gradients = ((aligned_row(size),) * (members * (2 if optimizer.compensates else 1)),) * updates
        weights = (optimizer.weights((1.0,) * members),) * updates
        apply(sweep, gradients, weights, (constants,) * updates, front, back, scratch, streamed)


ASYNCHRONOUS_COUNTS = [(updates, 1) for updates in range(1, GRADIENTS_AT_ONCE + 1)]
"""Passes of single pushes, as many as happen to wait."""


def synchronous_counts(workers: int) -> list[tuple[int, int]]:
    """Passes of rounds of one to `workers` members: absent ones are absent, not of weight 0."""
    # Beyond, the shapes repeat: whole groups, and a rest of each size.
    return [(1, members) for members in range(1, min(workers, 2 * GRADIENTS_AT_ONCE) + 1)]


def aligned_row(size: int) -> Row:
    """Zeros, float32 (size,), that start at a multiple of 64 bytes."""
    padding = _ALIGN_BYTES // 4
    room = np.zeros(size + padding, np.float32)
    start = -(room.ctypes.data // 4) % padding
    return room[start : start + size]


# ---- buffers


def _check(
    gradients: Gradients,
    weights: tuple[Weights, ...],
    constants: tuple[Constants, ...],
    front: tuple[Row, ...],
    back: tuple[Row, ...],
) -> None:
    """Refuse what does not fit together: compiled code checks nothing, and would write beyond a short row."""
    if not front or not gradients or not all(gradients):
        raise ValueError("a sweep needs a front, and at least one gradient in each update")
    if len(front) != len(back):
        raise ValueError(f"front has {len(front)} rows and back {len(back)}: each must have its counterpart")
    counts = [len(members) for members in gradients]
    parts = [base.split(each) for each in weights]
    rows = [len(shares) + len(delays) for shares, _, delays in parts]
    if any(delays and len(delays) != len(shares) for shares, _, delays in parts):
        raise ValueError("each member of an update has a delay, or none has")
    if rows != counts or len(constants) != len(counts):
        raise ValueError(
            f"gradients of {counts} rows need as many weights and one set of constants an update, not "
            f"{rows} weights and {len(constants)} sets"
        )
    if len(counts) > 1 and sum(counts) > GRADIENTS_AT_ONCE:
        raise ValueError(
            f"several updates may have {GRADIENTS_AT_ONCE} gradients together, not {sum(counts)}: use passes"
        )
    size = front[0].size
    shape = (size,)
    for row in chain(front, back, *gradients):
        if row.dtype != _FLOAT32 or row.shape != shape or not row.flags.c_contiguous:
            raise ValueError(
                f"every buffer of a sweep must be contiguous float32 of shape ({size},) as its parameters, "
                f"and one is {row.dtype} of shape {row.shape}, strides {row.strides}"
            )
    for row in back:
        if not row.flags.writeable:
            raise ValueError("the back of a sweep must be writable")


# ---- passes


def _pass(
    sweep: CompiledSweep,
    gradients: Gradients,
    weights: tuple[Weights, ...],
    constants: tuple[Constants, ...],
    front: tuple[Row, ...],
    back: tuple[Row, ...],
    streamed: bool,
) -> None:
    """All rows once. Streaming takes the whole lines; a short one at the end is stored plainly."""
    if not streamed:
        sweep(gradients, weights, constants, front, back, None)
        return
    sweep(gradients, weights, constants, front, back, _STREAMED)
    size = front[0].size
    if size % base.LINE_FLOATS:
        rest = slice(size // base.LINE_FLOATS * base.LINE_FLOATS, size)
        gradients = tuple([_cut(members, rest) for members in gradients])
        sweep(gradients, weights, constants, _cut(front, rest), _cut(back, rest), None)


def _cut(rows: tuple[Row, ...], part: slice) -> tuple[Row, ...]:
    return tuple([row[part] for row in rows])


def _large_round(
    sweep: CompiledSweep,
    members: tuple[Row, ...],
    weights: Weights,
    constants: tuple[Constants, ...],
    front: tuple[Row, ...],
    back: tuple[Row, ...],
    scratch: Row,
    streamed: bool,
) -> None:
    """A round of more than 8 rows, range by range."""
    for part, rows, left in few_rows(members, weights, front[0], scratch):
        _pass(sweep, (rows,), (left,), constants, _cut(front, part), _cut(back, part), streamed)


def few_rows(
    members: tuple[Row, ...], weights: Weights, params: Row, scratch: Row
) -> Iterator[tuple[slice, tuple[Row, ...], Weights]]:
    """Ranges of a round of any number of members, each as at most 8 rows with their weights; valid until the next.

    Sums of 8 rows go through the scratch, float32 of at least 32, still from left to right. `params`, (n,) as the
    members, is what compensated gradients are descended onto.
    """
    size = members[0].size
    if len(members) <= GRADIENTS_AT_ONCE:
        yield slice(0, size), members, weights
        return
    chunk = scratch.size // 2 // base.LINE_FLOATS * base.LINE_FLOATS
    all_shares, shape, all_delays = base.split(weights)
    if scratch.dtype != _FLOAT32 or not scratch.flags.c_contiguous or chunk == 0:
        raise ValueError(
            f"a round of {len(all_shares)} needs a contiguous float32 scratch of at least "
            f"{2 * base.LINE_FLOATS}, not {scratch.dtype} of shape {scratch.shape}"
        )
    halves = scratch[:chunk], scratch[chunk : 2 * chunk]
    add = compile_function(_sum_members)
    once = GRADIENTS_AT_ONCE // 2 if all_delays else GRADIENTS_AT_ONCE
    for start in range(0, size, chunk):
        part = slice(start, min(start + chunk, size))
        length = part.stop - part.start
        at, shares, delays = params[part], all_shares, all_delays
        rows, bases = _cut(members[: len(shares)], part), _cut(members[len(shares) :], part)
        target, other = halves
        while len(shares) > once:
            first = (shares[:once], *shape, delays[:once]) if delays else shares[:once]
            add((*rows[:once], *bases[:once]), first, at, target[:length])
            rows, shares = (target[:length], *rows[once:]), (_ONE, *shares[once:])
            if delays:  # the sum is compensated already
                bases, delays = (at, *bases[once:]), (_ZERO, *delays[once:])
            target, other = other, target
        if shape:
            yield part, (*rows, *bases), (shares, *shape, delays) if delays else (shares, *shape)
        else:
            yield part, rows, shares


def sources() -> list[Path]:
    """The files whose text decides what a compiled sweep does."""
    from storage_tier import intrinsics

    return [Path(intrinsics.__file__), *base.sources()]


# ---- compiled here


def _sum_members(rows: tuple[Row, ...], weights: Weights, params: Row, out: Row) -> None:
    for line in range(base.lines(out, None)):
        p = base.get(params, line, None)
        base.put(out, line, base.summed(rows, weights, p, line, None), None)


def _finish_streaming() -> None:
    _fence()


def _fence() -> None:
    """Full barrier; streamed stores are ordered by nothing else."""


@functools.cache
def _teach_numba() -> None:
    """Give the words of a sweep their meaning in compiled code."""
    jit.numba()  # says what to install where it is missing
    import numba
    from llvmlite import ir
    from numba.extending import intrinsic, overload

    from storage_tier import intrinsics

    compiled: Any = intrinsics
    line_floats = intrinsics.LINE_FLOATS

    # Not strict: it would want the annotations repeated on what is returned.
    @overload(base.lines, strict=False)
    def lines(row: Any, how: Any) -> Callable[..., Any]:
        if isinstance(how, numba.types.Integer):
            return lambda row, how: row.size // line_floats
        return lambda row, how: (row.size + line_floats - 1) // line_floats

    @overload(base.get, strict=False)
    def get(row: Any, line: Any, how: Any) -> Callable[..., Any]:
        return lambda row, line, how: compiled.get_line(row, line, how)

    @overload(base.put, strict=False)
    def put(row: Any, line: Any, value: Any, how: Any) -> Callable[..., Any]:
        return lambda row, line, value, how: compiled.put_line(row, line, value, how)

    @overload(base.weighted_sum, strict=False)
    def weighted_sum(rows: Any, weights: Any, line: Any, how: Any) -> Callable[..., Any]:
        return lambda rows, weights, line, how: compiled.weighted_sum_line(rows, weights, line, how)

    @intrinsic  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
    def clip_line(_typing: Any, value: Any, limit: Any) -> Any:
        """Two comparisons and two selections a line."""

        def emit(context: Any, code: Any, sig: Any, args: tuple[Any, ...]) -> Any:
            clipped, high = args
            first = ir.Constant(ir.VectorType(ir.IntType(32), line_floats), [0] * line_floats)
            none = ir.Constant(clipped.type, ir.Undefined)
            for bound, outside in ((code.fneg(high), "<"), (high, ">")):
                lane = code.insert_element(none, bound, ir.Constant(ir.IntType(32), 0))
                bounds = code.shuffle_vector(lane, none, first)
                # Ordered: false for what is not a number, which stays.
                clipped = code.select(code.fcmp_ordered(outside, clipped, bounds), bounds, clipped)
            return clipped

        return compiled.line_type(compiled.line_type, numba.types.float32), emit

    clip_any: Any = clip_line

    @overload(base.clip, strict=False)
    def clip(value: Any, limit: Any) -> Callable[..., Any] | None:
        if value != compiled.line_type or limit != numba.types.float32:
            return None
        return lambda value, limit: clip_any(value, limit)

    @intrinsic  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
    def collect_line(_typing: Any, sums: Any, row: Any, value: Any) -> Any:
        """A row of `sums`, float64 (rows, 16), is loaded, added to, and stored."""

        def emit(context: Any, code: Any, sig: Any, args: tuple[Any, ...]) -> Any:
            wide = ir.VectorType(ir.DoubleType(), line_floats)
            first = code.mul(args[1], ir.Constant(args[1].type, line_floats))
            data = context.make_array(sig.args[0])(context, code, args[0]).data
            address = code.bitcast(code.gep(data, [first]), wide.as_pointer())
            lanes = code.fpext(args[2], wide)
            code.store(code.fadd(code.load(address, align=8), code.fmul(lanes, lanes)), address, align=8)
            return context.get_dummy_value()

        return numba.types.void(sums, numba.types.intp, compiled.line_type), emit

    collect_any: Any = collect_line

    @overload(base.collect, strict=False)
    def collect(sums: Any, row: Any, value: Any) -> Callable[..., Any] | None:
        if sums.dtype != numba.types.float64 or sums.ndim != 2 or sums.layout != "C":
            return None
        return lambda sums, row, value: collect_any(sums, row, value)

    @overload(base.compensated_sum, strict=False)
    def compensated_sum(
        rows: Any, bases: Any, shares: Any, delays: Any, params: Any, line: Any, how: Any
    ) -> Callable[..., Any]:
        # One after the other at compile time: a loop over rows would stay one.
        last = len(rows) - 1

        def one(rows: Any, bases: Any, shares: Any, delays: Any, params: Any, line: Any, how: Any) -> Any:
            g = compiled.get_line(rows[last], line, how)
            return shares[last] * (g + delays[last] * (params - compiled.get_line(bases[last], line, how)) * g * g)

        def more(rows: Any, bases: Any, shares: Any, delays: Any, params: Any, line: Any, how: Any) -> Any:
            before = base.compensated_sum(rows[:last], bases[:last], shares[:last], delays[:last], params, line, how)
            g = compiled.get_line(rows[last], line, how)
            b = compiled.get_line(bases[last], line, how)
            return before + shares[last] * (g + delays[last] * (params - b) * g * g)

        return more if last else one

    @overload(base.summed, strict=False)
    def summed(rows: Any, weights: Any, params: Any, line: Any, how: Any) -> Callable[..., Any]:
        if isinstance(weights, numba.types.UniTuple):
            return lambda rows, weights, params, line, how: compiled.weighted_sum_line(rows, weights, line, how)
        if len(weights) == 3:
            return lambda rows, weights, params, line, how: compiled.weighted_sum_line(rows, weights[0], line, how)
        count = len(weights[0])
        return lambda rows, weights, params, line, how: base.compensated_sum(
            rows[:count], rows[count:], weights[0], weights[3], params, line, how
        )

    @overload(base.gradient, strict=False)
    def gradient(rows: Any, weights: Any, params: Any, line: Any, how: Any) -> Callable[..., Any]:
        if isinstance(weights, numba.types.UniTuple):
            return lambda rows, weights, params, line, how: compiled.weighted_sum_line(rows, weights, line, how)

        def shaped(rows: Any, weights: Any, params: Any, line: Any, how: Any) -> Any:
            total = base.summed(rows, weights, params, line, how)
            return clip_any(total, weights[1]) + weights[2] * params

        return shaped

    @overload(_fence, strict=False)
    def fence() -> Callable[..., Any]:
        return lambda: compiled.fence()
