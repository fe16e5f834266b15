"""Stochastic gradient descent (Robbins and Monro, "A Stochastic Approximation Method", 1951).

p <- p - learning_rate * g
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coproc.optim.base import (
    Constants,
    Optimizer,
    Row,
    as_constants,
    get,
    gradient,
    lines,
    put,
    sweep,
)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Plain gradient descent on mini-batches."""

    name: ClassVar[str] = "sgd"
    counts_updates: ClassVar[bool] = False

    def constants(self, step: int, learning_rate: float) -> Constants:
        return as_constants(learning_rate)


@sweep
def sweep_sgd(
    gradients: tuple[tuple[Row, ...], ...],
    weights: tuple[Constants, ...],
    constants: tuple[Any, ...],
    front: tuple[Row],
    back: tuple[Row],
    how: int | None,
) -> None:
    (params,) = front
    (next_params,) = back
    for line in range(lines(params, how)):
        p = get(params, line, how)
        for k in range(len(gradients)):
            (rate,) = constants[k]
            p = p - rate * gradient(gradients[k], weights[k], p, line, how)
        put(next_params, line, p, how)
