"""Adagrad (Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 12, 2011, diagonal form).

    v <- v + g^2
    p <- p - learning_rate * g / (sqrt(v + initial_accumulator_value) + epsilon)

The paper's delta is the epsilon. PyTorch and TensorFlow start v at the initial value; here it is added where v is
used, which is the same, and v starts at 0 as all state does.
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
class Adagrad(Optimizer):
    """Descent with a step size of its own for each parameter, which falls with all gradients it has had."""

    name: ClassVar[str] = "adagrad"
    counts_updates: ClassVar[bool] = False
    state_rows: ClassVar[tuple[str, ...]] = ("sum_of_squares",)

    # PyTorch's defaults.
    learning_rate: float | Schedule = 1e-2
    initial_accumulator_value: float = 0.0
    """As if each parameter had had gradients with this sum of squares: the first steps are smaller."""
    epsilon: float = 1e-10
    """Keeps the step finite where all gradients were 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("initial_accumulator_value", least=0.0)
        self._number("epsilon", least=0.0, more_than=True)

    def constants(self, step: int, learning_rate: float) -> Constants:
        return as_constants(learning_rate, self.initial_accumulator_value, self.epsilon)


@sweep
def sweep_adagrad(
    gradients: tuple[tuple[Row, ...], ...],
    weights: tuple[Constants, ...],
    constants: tuple[Any, ...],
    front: tuple[Row, Row],
    back: tuple[Row, Row],
    how: int | None,
) -> None:
    params, squares = front
    next_params, next_squares = back
    for line in range(lines(params, how)):
        p, v = get(params, line, how), get(squares, line, how)
        for k in range(len(gradients)):
            rate, initial, epsilon = constants[k]
            g = gradient(gradients[k], weights[k], p, line, how)
            v = v + g * g
            p = p - rate * g / (np.sqrt(v + initial) + epsilon)
        put(next_params, line, p, how)
        put(next_squares, line, v, how)
