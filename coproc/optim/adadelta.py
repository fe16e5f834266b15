"""Adadelta (Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, 2012, algorithm 1).

    v <- rho * v + (1 - rho) * g^2
    d  = sqrt((u + epsilon) / (v + epsilon)) * g
    u <- rho * u + (1 - rho) * d^2
    p <- p - learning_rate * d

The paper has no learning rate; as in PyTorch it multiplies the step and is 1 by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

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
from coproc.schedules import Schedule


@dataclass(frozen=True)
class Adadelta(Optimizer):
    """Descent by steps in the unit of the parameters: as large as steps were, where gradients are as they were."""

    name: ClassVar[str] = "adadelta"
    counts_updates: ClassVar[bool] = False
    state_rows: ClassVar[tuple[str, ...]] = ("mean_square", "mean_square_step")

    # PyTorch's defaults.
    learning_rate: float | Schedule = 1.0
    rho: float = 0.9
    """Decay of both means of squares."""
    epsilon: float = 1e-6
    """Lets the first step be more than 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("rho", least=0.0, below=1.0)
        self._number("epsilon", least=0.0, more_than=True)

    def constants(self, step: int, learning_rate: float) -> Constants:
        return as_constants(learning_rate, self.rho, 1.0 - self.rho, self.epsilon)


@sweep
def sweep_adadelta(
    gradients: tuple[tuple[Row, ...], ...],
    weights: tuple[Constants, ...],
    constants: tuple[Any, ...],
    front: tuple[Row, Row, Row],
    back: tuple[Row, Row, Row],
    how: int | None,
) -> None:
    params, squares, steps = front
    next_params, next_squares, next_steps = back
    for line in range(lines(params, how)):
        p, v, u = get(params, line, how), get(squares, line, how), get(steps, line, how)
        for k in range(len(gradients)):
            rate, rho, rest, epsilon = constants[k]
            g = gradient(gradients[k], weights[k], p, line, how)
            v = rho * v + rest * (g * g)
            d = np.sqrt((u + epsilon) / (v + epsilon)) * g
            u = rho * u + rest * (d * d)
            p = p - rate * d
        put(next_params, line, p, how)
        put(next_squares, line, v, how)
        put(next_steps, line, u, how)
