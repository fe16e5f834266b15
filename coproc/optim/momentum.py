"""Gradient descent with momentum (Polyak 1964), and Nesterov's variant (Sutskever et al., ICML 2013).

    v <- momentum * v + g
    p <- p - learning_rate * v                      plain
    p <- p - learning_rate * (g + momentum * v)     nesterov

This is PyTorch's convention, without dampening: the velocity is a sum of gradients and the learning rate
multiplies it when it is used, so a change of the learning rate acts at once. (Sutskever et al. fold the
learning rate into the velocity.)
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
class Momentum(Optimizer):
    """Gradient descent along a decaying sum of gradients."""

    name: ClassVar[str] = "momentum"
    counts_updates: ClassVar[bool] = False
    state_rows: ClassVar[tuple[str, ...]] = ("velocity",)

    momentum: float = 0.9
    """What is left of the velocity after a step; 0.9 averages over about ten steps."""
    nesterov: bool = False
    """Look ahead: step as if the velocity had already been applied once more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("momentum", least=0.0, below=1.0)
        self._flag("nesterov")

    def constants(self, step: int, learning_rate: float) -> Constants:
        # The step is of_g * g + of_v * v. Plain is 0 * g + 1 * v, which is v.
        of_g, of_v = (1.0, self.momentum) if self.nesterov else (0.0, 1.0)
        return as_constants(learning_rate, self.momentum, of_g, of_v)


@sweep
def sweep_momentum(
    gradients: tuple[tuple[Row, ...], ...],
    weights: tuple[Constants, ...],
    constants: tuple[Any, ...],
    front: tuple[Row, Row],
    back: tuple[Row, Row],
    how: int | None,
) -> None:
    params, velocity = front
    next_params, next_velocity = back
    for line in range(lines(params, how)):
        p, v = get(params, line, how), get(velocity, line, how)
        for k in range(len(gradients)):
            rate, momentum, of_g, of_v = constants[k]
            g = gradient(gradients[k], weights[k], p, line, how)
            v = momentum * v + g
            p = p - rate * (of_g * g + of_v * v)
        put(next_params, line, p, how)
        put(next_velocity, line, v, how)
