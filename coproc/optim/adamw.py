"""AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2).

    m <- beta1 * m + (1 - beta1) * g
    v <- beta2 * v + (1 - beta2) * g^2
    p <- (1 - learning_rate * weight_decay) * p - rate * m / (sqrt(v) * root + epsilon)

with rate = learning_rate / (1 - beta1^t) and root = 1 / sqrt(1 - beta2^t), t = 1, 2, 3, ... The decay
does not pass through the moments. As in PyTorch it is multiplied by the learning rate; the paper has a
schedule of its own there.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
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
class AdamW(Optimizer):
    """Adam with a weight decay that the size of the gradients does not change."""

    name: ClassVar[str] = "adamw"
    decouples_decay: ClassVar[bool] = True
    state_rows: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    # Adam's defaults; PyTorch's weight decay.
    learning_rate: float | Schedule = 1e-3
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.999
    """Decay of the mean of squared gradients."""
    epsilon: float = 1e-8
    """Keeps the step finite where gradients are 0."""
    weight_decay: float = field(default=1e-2, kw_only=True)
    """Share of each parameter, times the learning rate, that a step takes away."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("beta1", least=0.0, below=1.0)
        self._number("beta2", least=0.0, below=1.0)
        self._number("epsilon", least=0.0, more_than=True)

    def constants(self, step: int, learning_rate: float) -> Constants:
        keep = 1.0 - learning_rate * self.weight_decay
        rate = learning_rate / (1.0 - self.beta1**step)
        root = 1.0 / math.sqrt(1.0 - self.beta2**step)
        return (*self._decays, *as_constants(keep, rate, root))

    @functools.cached_property
    def _decays(self) -> Constants:
        # Not rounded anew for each push.
        return as_constants(self.beta1, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, self.epsilon)


@sweep
def sweep_adamw(
    gradients: tuple[tuple[Row, ...], ...],
    weights: tuple[Constants, ...],
    constants: tuple[Any, ...],
    front: tuple[Row, Row, Row],
    back: tuple[Row, Row, Row],
    how: int | None,
) -> None:
    params, first, second = front
    next_params, next_first, next_second = back
    for line in range(lines(params, how)):
        p, m, v = get(params, line, how), get(first, line, how), get(second, line, how)
        for k in range(len(gradients)):
            beta1, rest1, beta2, rest2, epsilon, keep, rate, root = constants[k]
            g = gradient(gradients[k], weights[k], p, line, how)
            m = beta1 * m + rest1 * g
            v = beta2 * v + rest2 * (g * g)
            p = keep * p - rate * m / (np.sqrt(v) * root + epsilon)
        put(next_params, line, p, how)
        put(next_first, line, m, how)
        put(next_second, line, v, how)
