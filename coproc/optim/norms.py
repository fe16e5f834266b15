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
    lines,
    split,
    weighted_sum,
)
from coproc.optim.compiled import GRADIENTS_AT_ONCE, compile_function, few_rows


def squares_of_gradient(members: tuple[Row, ...], weights: Weights, scratch: Row) -> NDArray[np.float64]:
    """The sum of squares (1,) of an update's gradient, before it is scaled or clipped. Without the interpreter lock.

    Args:
        members: their gradients, float32 (n,).
        weights: `Optimizer.weights` of the update, unscaled.
        scratch: as of `apply`.
    """
    sums = np.zeros((1, LINE_FLOATS))
    for _, rows, shares in few_rows(members, split(weights)[0], scratch):
        compile_function(_collect_gradient)(rows, shares, sums)
    total: NDArray[np.float64] = sums.sum(axis=1)
    return total


def _collect_gradient(rows: tuple[Row, ...], shares: Constants, sums: NDArray[np.float64]) -> None:
    for line in range(lines(rows[0], None)):
        collect(sums, 0, weighted_sum(rows, shares, line, None))


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
        members: their gradients, float32 (n,).
        weights, constants, scratch: as for its sweep.
        front: (params, *state), float32 (n,) each.
    """
    sums = np.zeros((2, LINE_FLOATS))
    all_shares, shape = split(weights)
    for part, rows, shares in few_rows(members, all_shares, scratch):
        rest = shares if shape is None else (shares, *shape)
        cut = tuple([row[part] for row in front])
        compile_function(optimizer.measures())((rows,), (rest,), (constants,), cut, sums, None)
    total: NDArray[np.float64] = sums.sum(axis=1)
    return total


def warm(optimizer: Optimizer, members: int) -> None:
    """Compile ahead, or load from the cache, what is measured of updates of one to `members` members."""
    row = np.zeros(LINE_FLOATS, np.float32)
    scratch = np.zeros(2 * LINE_FLOATS, np.float32)
    # Beyond, the shapes repeat.
    for count in range(1, min(members, 2 * GRADIENTS_AT_ONCE) + 1):
        rows, weights = (row,) * count, optimizer.weights((1.0,) * count)
        if isinstance(optimizer, Layerwise):
            constants = optimizer.constants(1, optimizer.base_rate)
            squares_of_layer(optimizer, rows, weights, constants, (row,) * (1 + len(optimizer.state_rows)), scratch)
        else:
            squares_of_gradient(rows, weights, scratch)
