"""Stochastic gradient descent (Robbins and Monro, "A Stochastic Approximation Method", 1951).

    p <- p - learning_rate * (g + weight_decay * p)

The weight decay is the gradient of ``weight_decay / 2 * |p|^2``, as in PyTorch's SGD.
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
    lines,
    put,
    sweep,
    weighted_sum,
)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Plain gradient descent on mini-batches."""

    name: ClassVar[str] = "sgd"
    counts_updates: ClassVar[bool] = False

    weight_decay: float = 0.0
    """Pulls each parameter towards 0; 0 is none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("weight_decay", least=0.0)

    def constants(self, step: int, learning_rate: float) -> Constants:
        return as_constants(learning_rate, self.weight_decay)


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
            rate, decay = constants[k]
            g = weighted_sum(gradients[k], weights[k], line, how)
            p = p - rate * (g + decay * p)
        put(next_params, line, p, how)
