"""Norms that an update needs before it is swept: of the whole gradient, or of each tensor's parameters and step.

Sums of squares of a part of the model, in float64; whoever has those of all parts adds them up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coproc.optim.base import (
    LINE_FLOATS,
    Constants,
    Layerwise,
    Optimizer,
    Row,
    Weights,
    collect,
    get,
    lines,
    summed,
)
from coproc.optim.compiled import GRADIENTS_AT_ONCE, compile_function, few_rows


def squares_of_gradient(members: tuple[Row, ...], weights: Weights, params: Row, scratch: Row) -> NDArray[np.float64]:
    """The sum of squares (1,) of an update's gradient, before it is scaled or clipped. Without the interpreter lock.

    Args:
        members: their gradients, float32 (n,), and bases where delays are compensated.
        weights: `Optimizer.weights` of the update, unscaled.
        params: what it is descended onto, float32 (n,).
        scratch: as of `apply`.
    """
    sums = np.zeros((1, LINE_FLOATS))
    for part, rows, left in few_rows(members, weights, params, scratch):
        compile_function(_collect_gradient)(rows, left, params[part], sums)
    total: NDArray[np.float64] = sums.sum(axis=1)
    return total


def _collect_gradient(rows: tuple[Row, ...], weights: Weights, params: Row, sums: NDArray[np.float64]) -> None:
    for line in range(lines(params, None)):
        collect(sums, 0, summed(rows, weights, get(params, line, None), line, None))


def squares_of_layer(
    optimizer: Layerwise,
    members: tuple[Row, ...],
    weights: Weights,
    constants: Constants,
    front: tuple[Row, ...],
    scratch: Row,
) -> NDArray[np.float64]:
    """What `optimizer` measures of a tensor, or of a part of one, for an update: (2,). Without the interpreter lock.

    Args:
        members: their gradients, float32 (n,), and bases where delays are compensated.
        weights, constants, scratch: as for its sweep.
        front: (params, *state), float32 (n,) each.
    """
    sums = np.zeros((2, LINE_FLOATS))
    for part, rows, left in few_rows(members, weights, front[0], scratch):
        cut = tuple([row[part] for row in front])
        compile_function(optimizer.measures())((rows,), (left,), (constants,), cut, sums, None)
    total: NDArray[np.float64] = sums.sum(axis=1)
    return total


def warm(optimizer: Optimizer, members: int) -> None:
    """Compile ahead, or load from the cache, what is measured of updates of one to `members` members."""
    row = np.zeros(LINE_FLOATS, np.float32)
    scratch = np.zeros(2 * LINE_FLOATS, np.float32)
    # Beyond, the shapes repeat.
    for count in range(1, min(members, 2 * GRADIENTS_AT_ONCE) + 1):
        weights = optimizer.weights((1.0,) * count)
        rows = (row,) * (count * (2 if optimizer.compensates else 1))
        if isinstance(optimizer, Layerwise):
            constants = optimizer.constants(1, optimizer.base_rate)
            squares_of_layer(optimizer, rows, weights, constants, (row,) * (1 + len(optimizer.state_rows)), scratch)
        else:
            squares_of_gradient(rows, weights, row, scratch)
