"""FTRL-Proximal (McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, algorithm 1).

    n <- n + g^2
    d  = beta + sqrt(n)
    x  = d * p + r - learning_rate * g
    p <- (x - clip(x, a * l1)) / (d + a * l2)        a: the learning rate the model was created with
    r <- x - d * p

The paper keeps z instead of r, and p = -(z - sign(z) * l1) / (d / learning_rate + l2) where |z| > l1, else 0. For
models that start at 0, as the paper's do, this is the same: z is -(d * p + r) / learning_rate. What l1 and l2 have
not yet taken from d * p is r, which starts at 0 whatever p is: so other models start from where they are, and with z
they would be thrown near 0 by the first step. And a schedule may change the learning rate: it weighs the gradients to
come. z does not know at which rates it was summed; half the rate would halve all parameters.
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
    clip,
    get,
    gradient,
    lines,
    put,
    sweep,
)


@dataclass(frozen=True)
class FTRL(Optimizer):
    """Follow the regularised leader: Adagrad's steps, and parameters that l1 holds at 0 exactly."""

    name: ClassVar[str] = "ftrl"
    counts_updates: ClassVar[bool] = False
    state_rows: ClassVar[tuple[str, ...]] = ("sum_of_squares", "pull")

    beta: float = 1.0
    """Keeps the first steps small; 1 is the paper's. (The learning rate, its alpha, depends on the data.)"""
    l1: float = 0.0
    """Strength of the sum of absolute values: what it outweighs is 0."""
    l2: float = 0.0
    """Strength of half the sum of squares."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("beta", least=0.0, more_than=True)
        self._number("l1", least=0.0)
        self._number("l2", least=0.0)

    def constants(self, step: int, learning_rate: float) -> Constants:
        created = self.base_rate
        return as_constants(learning_rate, self.beta, created * self.l1, created * self.l2)


@sweep
def sweep_ftrl(
    gradients: tuple[tuple[Row, ...], ...],
    weights: tuple[Constants, ...],
    constants: tuple[Any, ...],
    front: tuple[Row, Row, Row],
    back: tuple[Row, Row, Row],
    how: int | None,
) -> None:
    params, squares, pull = front
    next_params, next_squares, next_pull = back
    for line in range(lines(params, how)):
        p, n, r = get(params, line, how), get(squares, line, how), get(pull, line, how)
        for k in range(len(gradients)):
            rate, beta, l1, l2 = constants[k]
            g = gradient(gradients[k], weights[k], p, line, how)
            n = n + g * g
            d = beta + np.sqrt(n)
            x = d * p + r - rate * g
            p = (x - clip(x, l1)) / (d + l2)
            r = x - d * p
        put(next_params, line, p, how)
        put(next_squares, line, n, how)
        put(next_pull, line, r, how)
