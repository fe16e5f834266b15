"""The sweep of any optimizer under one name, for loops that are compiled themselves.

A compiled function that takes another as an argument is never found in numba's cache again. A `Kernel` says by its
*type* which sweep is meant, so that each loop is compiled once an optimizer, and found.
"""

# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numba.core.datamodel import models
from numba.extending import NativeValue, overload, register_model, typeof_impl, unbox
from numba.np.unsafe import ndarray

from coproc import optim
from coproc.optim import Optimizer
from storage_tier import intrinsics

compiled: Any = intrinsics
to_fixed_tuple: Any = ndarray.to_fixed_tuple

_ONE = np.float32(1)


@dataclass(frozen=True)
class Kernel:
    """The sweep of one kind of optimizer, as an argument of compiled functions."""

    name: str
    rows_count: int
    """Parameters and state."""
    constants_count: int


_sweeps: dict[str, Callable[..., None]] = {}


def kernel_of(optimizer: Optimizer) -> Kernel:
    """The kernel of an optimizer. Compiles nothing."""
    _sweeps[optimizer.name] = optim.compile_sweep(optimizer)
    constants = optimizer.constants(1, optimizer.base_rate)
    return Kernel(optimizer.name, 1 + len(optimizer.state_rows), len(constants))


class KernelType(types.Type):
    """Numba's type of one kernel."""

    def __init__(self, name: str, rows_count: int, constants_count: int) -> None:
        self.optimizer = name
        self.rows_count = rows_count
        self.constants_count = constants_count
        super().__init__(name=f"kernel({name}, {rows_count}, {constants_count})")


@typeof_impl.register(Kernel)
def _typeof(kernel: Kernel, context: Any) -> KernelType:
    return KernelType(kernel.name, kernel.rows_count, kernel.constants_count)


register_model(KernelType)(models.OpaqueModel)


@unbox(KernelType)
def _unbox(kind: KernelType, value: Any, context: Any) -> NativeValue:
    return NativeValue(context.context.get_dummy_value())


def descend(kernel: Kernel | None, gradient: int, constants: Any, front: Any, back: Any, size: int) -> None:
    """One update by one gradient, in compiled code only. Checks nothing.

    Args:
        kernel: of the optimizer; None, where it is never called, spares compiling a loop for each optimizer.
        gradient: address of a float32 row (size,).
        constants: float32 (constants,): `Optimizer.constants` of this update.
        front, back: int64 (rows,): addresses of parameters and state as they are and as they will be; may be equal.
        size: parameters of the shard.
    """
    raise NotImplementedError


@overload(descend, strict=False)
def _overload_descend(
    kernel: Any, gradient: Any, constants: Any, front: Any, back: Any, size: Any
) -> Callable[..., None] | None:
    if isinstance(kernel, types.NoneType):
        return lambda kernel, gradient, constants, front, back, size: None
    if not isinstance(kernel, KernelType):
        return None
    sweep, count = _sweeps[kernel.optimizer], kernel.constants_count
    row_at = compiled.row_at

    def one_row(kernel: Any, gradient: Any, constants: Any, front: Any, back: Any, size: Any) -> None:
        sweep(
            ((row_at(gradient, size),),),
            ((_ONE,),),
            (to_fixed_tuple(constants, count),),
            (row_at(front[0], size),),
            (row_at(back[0], size),),
            None,
        )

    def two_rows(kernel: Any, gradient: Any, constants: Any, front: Any, back: Any, size: Any) -> None:
        sweep(
            ((row_at(gradient, size),),),
            ((_ONE,),),
            (to_fixed_tuple(constants, count),),
            (row_at(front[0], size), row_at(front[1], size)),
            (row_at(back[0], size), row_at(back[1], size)),
            None,
        )

    def three_rows(kernel: Any, gradient: Any, constants: Any, front: Any, back: Any, size: Any) -> None:
        sweep(
            ((row_at(gradient, size),),),
            ((_ONE,),),
            (to_fixed_tuple(constants, count),),
            (row_at(front[0], size), row_at(front[1], size), row_at(front[2], size)),
            (row_at(back[0], size), row_at(back[1], size), row_at(back[2], size)),
            None,
        )

    return {1: one_row, 2: two_rows, 3: three_rows}[kernel.rows_count]
