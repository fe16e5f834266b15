"""RMSprop (Tieleman and Hinton, "Lecture 6.5", COURSERA: Neural Networks for Machine Learning, 2012).

    v <- alpha * v + (1 - alpha) * g^2
    b <- momentum * b + g / (sqrt(v) + epsilon)
    p <- p - learning_rate * b

This is PyTorch's form, with the epsilon beside the root. Without momentum, which is the default, b is the scaled
gradient itself: no row is kept for it.
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
class RMSprop(Optimizer):
    """Descent by gradients that are divided by the root of their running mean square."""

    name: ClassVar[str] = "rmsprop"
    counts_updates: ClassVar[bool] = False

    # PyTorch's defaults.
    learning_rate: float | Schedule = 1e-2
    alpha: float = 0.99
    """Decay of the mean of squared gradients."""
    epsilon: float = 1e-8
    """Keeps the step finite where gradients are 0."""
    momentum: float = 0.0
    """What is left of the velocity after a step; more than 0 keeps a row more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("alpha", least=0.0, below=1.0)
        self._number("epsilon", least=0.0, more_than=True)
        self._number("momentum", least=0.0, below=1.0)

    @property
    def state_rows(self) -> tuple[str, ...]:
        return ("mean_square", "velocity") if self.momentum else ("mean_square",)

    def constants(self, step: int, learning_rate: float) -> Constants:
        return as_constants(learning_rate, self.alpha, 1.0 - self.alpha, self.epsilon, self.momentum)


@sweep
def sweep_rmsprop(
    gradients: tuple[tuple[Row, ...], ...],
    weights: tuple[Constants, ...],
    constants: tuple[Any, ...],
    front: tuple[Row, ...],
    back: tuple[Row, ...],
    how: int | None,
) -> None:
    for line in range(lines(front[0], how)):
        p, v = get(front[0], line, how), get(front[1], line, how)
        if len(front) == 3:
            b = get(front[2], line, how)
        for k in range(len(gradients)):
            rate, alpha, rest, epsilon, momentum = constants[k]
            g = gradient(gradients[k], weights[k], p, line, how)
            v = alpha * v + rest * (g * g)
            scaled = g / (np.sqrt(v) + epsilon)
            if len(front) == 3:
                b = momentum * b + scaled
                p = p - rate * b
            else:
                p = p - rate * scaled
        put(back[0], line, p, how)
        put(back[1], line, v, how)
        if len(front) == 3:
            put(back[2], line, b, how)
