"""What compiled loops need and numba lacks: words shared with other processes, and lines of sixteen floats.

Imports numba, so only servers import this module. All functions here exist in compiled code only.

*Words* are named by address. A plain load may be hoisted out of its loop and a plain store may sink out of
it; these may not. Each is one machine operation on an aligned 8-byte word.

*Lines* are the 64-byte lines of a float32 row: line i is ``row[16 * i : 16 * i + 16]``, the last may be
short. In compiled code a line is one vector value. Loops over lines are vector code by construction: the
compiler has nothing to prove, so rows may alias (in place is the same row given twice) and nothing
silently runs scalar. And a streamed store is sound: its address must be a multiple of 64, which whole
lines of an aligned row have. (A scalar store that claims this alignment vectorises too, until the
compiler peels the first iteration off its loop; then it is a SIGSEGV.)
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, overload, register_jitable, register_model

from storage_tier.words import FUTEX_WAIT, FUTEX_WAKE, SYS_FUTEX

LINE_FLOATS = 16

# What numba hands to an intrinsic is untyped; these names say which is which.
Context = Any
"""The target: knows how types lie in memory."""
Code = Any
"""The builder that instructions are appended to."""
Value = Any
"""One value of the code being built."""
Emit = Callable[[Context, Code, Any, tuple[Value, ...]], Value]

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), LINE_FLOATS)
_LANES = ir.VectorType(_I32, LINE_FLOATS)
_MASK = ir.VectorType(ir.IntType(1), LINE_FLOATS)


# ---- words


@intrinsic
def _pointer(_typing: Any, address: types.Type) -> tuple[Any, Emit]:
    def emit(context: Context, code: Code, sig: Any, args: tuple[Value, ...]) -> Value:
        return code.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), emit


@intrinsic
def load_acquire(_typing: Any, address: types.Type) -> tuple[Any, Emit]:
    """The word; what its writer did before storing it is visible to everything after this."""

    def emit(context: Context, code: Code, sig: Any, args: tuple[Value, ...]) -> Value:
        return code.load_atomic(code.inttoptr(args[0], _I64.as_pointer()), "acquire", 8)

    return types.int64(types.intp), emit


@intrinsic
def store_release(_typing: Any, address: types.Type, value: types.Type) -> tuple[Any, Emit]:
    """Store the word; whoever loads it sees what this thread did before. A later load may overtake it."""

    def emit(context: Context, code: Code, sig: Any, args: tuple[Value, ...]) -> Value:
        code.store_atomic(args[1], code.inttoptr(args[0], _I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), emit


@intrinsic
def fence(_typing: Any) -> tuple[Any, Emit]:
    """Full barrier, for "store mine, then look at theirs" and after streamed stores."""

    def emit(context: Context, code: Code, sig: Any, args: tuple[Value, ...]) -> Value:
        code.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit


# What calls of intrinsics look like to those who don't compile them.
_at: Any = _pointer
_load_word: Any = load_acquire
_store_word: Any = store_release
_numba: Any = numba
_array = _numba.carray


@intrinsic
def load_float(_typing: Any, address: types.Type) -> tuple[Any, Emit]:
    """The float64 that lies at an address: for what became visible by a word that was loaded before."""

    def emit(context: Context, code: Code, sig: Any, args: tuple[Value, ...]) -> Value:
        return code.load(code.inttoptr(args[0], ir.DoubleType().as_pointer()), align=8)

    return types.float64(types.intp), emit


@register_jitable
def row_at(address: int, size: int) -> Any:
    """The float32 row (size,) that lies at an address. Copies nothing; it must stay mapped."""
    return _array(_at(address), (size,), np.float32)


# ---- the kernel, without the interpreter

_syscall: Any = types.ExternalFunction("syscall", types.int64(*[types.int64] * 7))
_clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))
_raise: Any = types.ExternalFunction("raise", types.int32(types.int32))
_sched_yield: Any = types.ExternalFunction("sched_yield", types.int32())

_CLOCK_MONOTONIC, _SIGKILL = 1, 9


@register_jitable
def monotonic_ns(pair: Any) -> int:
    """As `time.monotonic_ns`. `pair` is room for two words."""
    _clock_gettime(_CLOCK_MONOTONIC, pair.ctypes.data)
    return pair[0] * 1_000_000_000 + pair[1]  # type: ignore[no-any-return]


@register_jitable
def ring(bell: int) -> None:
    """As `Words.ring`, by address: change the bell, wake all who wait on it. Also a full barrier."""
    _store_word(bell, (_load_word(bell) + 1) & 0x7FFFFFFF)
    _syscall(SYS_FUTEX, bell, FUTEX_WAKE, 0x7FFFFFFF, 0, 0, 0)


@register_jitable
def wait(bell: int, seen: int, timeout_ns: int, pair: Any) -> None:
    """As `Words.wait`, by address: sleep until the bell no longer shows `seen`, is rung, or the time is over."""
    pair[0], pair[1] = timeout_ns // 1_000_000_000, timeout_ns % 1_000_000_000
    _syscall(SYS_FUTEX, bell, FUTEX_WAIT, seen & 0xFFFFFFFF, pair.ctypes.data, 0, 0)


@register_jitable
def give_way() -> None:
    """Let another thread have the processor, if one wants it."""
    _sched_yield()


@register_jitable
def die() -> None:
    """End this process as SIGKILL does."""
    _raise(_SIGKILL)


# ---- lines


class LineType(types.Type):
    """Numba's type of sixteen float32 lanes. A float32 number in its arithmetic counts for each lane."""

    def __init__(self) -> None:
        super().__init__("line_float32")


line_type = LineType()


@register_model(LineType)
class _LineModel(models.PrimitiveModel):
    def __init__(self, manager: Any, line: LineType) -> None:
        super().__init__(manager, line, _VECTOR)


def _is_row(array: types.Type) -> bool:
    return isinstance(array, types.Array) and array.dtype == types.float32 and array.ndim == 1 and array.layout == "C"


def _place(context: Context, code: Code, row_type: types.Type, row: Value, line: Value) -> tuple[Value, Value]:
    """(address of a line, floats from there to the row's end)."""
    struct = context.make_array(row_type)(context, code, row)
    first = code.mul(line, ir.Constant(line.type, LINE_FLOATS))
    address = code.bitcast(code.gep(struct.data, [first]), _VECTOR.as_pointer())
    return address, code.sub(struct.nitems, first)


def _is_streamed(how_type: types.Type) -> bool:
    """None: lines may be short, stores are plain. An int: all lines are whole, stores go past the caches.

    Told by the *type*, so that one source gives two kernels, both found in numba's cache. Whether a line is
    whole is a branch for each load and store; large rows are worth a kernel without it.
    """
    return isinstance(how_type, types.Integer)


def _is_whole(code: Code, left: Value) -> Value:
    return code.icmp_signed(">=", left, ir.Constant(left.type, LINE_FLOATS))


def _in_each_lane(code: Code, value: Value, vector: ir.VectorType) -> Value:
    none = ir.Constant(vector, ir.Undefined)
    first = code.insert_element(none, value, ir.Constant(_I32, 0))
    return code.shuffle_vector(first, none, ir.Constant(_LANES, [0] * LINE_FLOATS))


def _present(code: Code, left: Value) -> Value:
    """The mask of the lanes of a short line that exist.

    A copy by way of the stack would need no mask; but it is a call, around which nothing stays in registers,
    and costs a sweep 15 %.
    """
    lanes = ir.Constant(_LANES, list(range(LINE_FLOATS)))
    return code.icmp_signed("<", lanes, _in_each_lane(code, code.trunc(left, _I32), _LANES))


def _call(code: Code, name: str, result: ir.Type, *args: Value) -> Value:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return code.call(cgutils.get_or_insert_function(code.module, kind, name), args)


def _load(context: Context, code: Code, row_type: types.Type, row: Value, line: Value, how_type: types.Type) -> Value:
    address, left = _place(context, code, row_type, row, line)
    if _is_streamed(how_type):
        return code.load(address, align=4)
    with code.if_else(_is_whole(code, left), likely=True) as (then, otherwise):
        with then:
            whole, after_whole = code.load(address, align=4), code.block
        with otherwise:
            zeros, align = ir.Constant(_VECTOR, None), ir.Constant(_I32, 4)
            mask = _present(code, left)
            short = _call(code, "llvm.masked.load.v16f32.p0", _VECTOR, address, align, mask, zeros)
            after_short = code.block
    value = code.phi(_VECTOR)
    value.add_incoming(whole, after_whole)
    value.add_incoming(short, after_short)
    return value


@intrinsic
def get_line(_typing: Any, row: types.Type, line: types.Type, how: types.Type) -> tuple[Any, Emit] | None:
    """Load line `line` of a float32 row. The index is not checked.

    Where `how` is None the line may be short, and lanes beyond the row's end are 0; where it is an int the
    line is whole.
    """
    if not _is_row(row):
        return None

    def emit(context: Context, code: Code, sig: Any, args: tuple[Value, ...]) -> Value:
        return _load(context, code, sig.args[0], args[0], args[1], sig.args[2])

    return line_type(row, types.intp, how), emit


@intrinsic
def put_line(
    _typing: Any, row: types.Type, line: types.Type, value: types.Type, how: types.Type
) -> tuple[Any, Emit] | None:
    """Store line `line` of a float32 row: plainly where `how` is None, past the caches where it is an int.

    The index is not checked. A streamed row must start at a multiple of 64 bytes and have whole lines only,
    which is the caller's to check; it needs a `fence` before others may look.
    """
    if not _is_row(row) or not row.mutable or value != line_type:
        return None

    def emit(context: Context, code: Code, sig: Any, args: tuple[Value, ...]) -> Value:
        address, left = _place(context, code, sig.args[0], args[0], args[1])
        if _is_streamed(sig.args[3]):
            store = code.store(args[2], address, align=64)
            store.set_metadata("nontemporal", code.module.add_metadata([ir.Constant(_I32, 1)]))
            return context.get_dummy_value()
        with code.if_else(_is_whole(code, left), likely=True) as (then, otherwise):
            with then:
                code.store(args[2], address, align=4)
            with otherwise:
                align, mask = ir.Constant(_I32, 4), _present(code, left)
                _call(code, "llvm.masked.store.v16f32.p0", ir.VoidType(), args[2], address, align, mask)
        return context.get_dummy_value()

    return types.void(row, types.intp, line_type, how), emit


@intrinsic
def weighted_sum_line(
    _typing: Any, rows: types.Type, weights: types.Type, line: types.Type, how: types.Type
) -> tuple[Any, Emit] | None:
    """``weights[0] * rows[0] + weights[1] * rows[1] + ...`` of one line, summed from left to right.

    `how` as in `get_line`. Unrolled here: left to the optimiser, a loop over more than a few rows stays a
    jump table an element (200 times slower).
    """
    if not isinstance(rows, types.UniTuple) or not _is_row(rows.dtype):
        return None
    if not isinstance(weights, types.UniTuple) or weights.dtype != types.float32 or len(weights) != len(rows):
        return None

    def emit(context: Context, code: Code, sig: Any, args: tuple[Value, ...]) -> Value:
        total = None
        for i in range(len(sig.args[0])):
            struct = code.extract_value(args[0], i)
            row = _load(context, code, sig.args[0].dtype, struct, args[2], sig.args[3])
            term = code.fmul(_in_each_lane(code, code.extract_value(args[1], i), _VECTOR), row)
            total = term if total is None else code.fadd(total, term)
        return total

    return line_type(rows, weights, types.intp, how), emit


def _teach_operator(operation: Callable[..., Any], instruction: str) -> None:
    """Line with line, line with float32, float32 with line: one vector instruction, rounded lane by lane."""

    @infer_global(operation)
    class _Template(AbstractTemplate):
        def generic(self, args: tuple[types.Type, ...], kws: dict[str, types.Type]) -> Any:
            known = len(args) == 2 and line_type in args and {*args} <= {line_type, types.float32}
            return signature(line_type, *args) if known else None

    def emit(context: Context, code: Code, sig: Any, args: tuple[Value, ...]) -> Value:
        lines = (
            arg if kind == line_type else _in_each_lane(code, arg, _VECTOR)
            for arg, kind in zip(args, sig.args, strict=True)
        )
        return getattr(code, instruction)(*lines)

    for left, right in ((LineType, LineType), (LineType, types.Float), (types.Float, LineType)):
        lower_builtin(operation, left, right)(emit)


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _teach_operator(_operation, _instruction)


@intrinsic
def _square_root(_typing: Any, value: types.Type) -> tuple[Any, Emit]:
    def emit(context: Context, code: Code, sig: Any, args: tuple[Value, ...]) -> Value:
        return _call(code, "llvm.sqrt.v16f32", _VECTOR, *args)

    return line_type(line_type), emit


@overload(np.sqrt, strict=False)  # not strict: annotations differ
def _overload_sqrt(x: types.Type) -> Callable[[Any], Any] | None:
    if x != line_type:
        return None
    return lambda x: _square_root(x)  # type: ignore[call-arg]
