"""LAMB (You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 Minutes", ICLR 2020, algorithm 2).

    m <- beta1 * m + (1 - beta1) * g
    v <- beta2 * v + (1 - beta2) * g^2
    u = m / (1 - beta1^t) / (sqrt(v) * root + epsilon) + weight_decay * p
    p <- p - learning_rate * |p| / |u| * u                norms over a tensor; their ratio is 1 where one is 0

with root = 1 / sqrt(1 - beta2^t), t = 1, 2, 3, ... Tensors of one dimension (biases, scales) have ratio 1 and no
decay, as in the training of the paper; `vectors` has them treated as the others.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from coproc.optim.base import (
    Constants,
    Layerwise,
    Row,
    as_constants,
    collect,
    get,
    gradient,
    lines,
    measure,
    put,
    sweep,
)
from coproc.schedules import Schedule


@dataclass(frozen=True)
class LAMB(Layerwise):
    """Adam whose step in each tensor is a fixed part of the tensor's norm: for batches of tens of thousands."""

    name: ClassVar[str] = "lamb"
    decouples_decay: ClassVar[bool] = True

    learning_rate: float | Schedule = 1e-3
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.999
    """Decay of the mean of squared gradients."""
    epsilon: float = 1e-6
    """Keeps the step finite where gradients are 0."""
    vectors: bool = False
    """Whether tensors of one dimension have a ratio and a decay too."""
    weight_decay: float = field(default=0.01, kw_only=True)

    @property
    def state_rows(self) -> tuple[str, ...]:
        return ("first_moment", "second_moment")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("beta1", least=0.0, below=1.0)
        self._number("beta2", least=0.0, below=1.0)
        self._number("epsilon", least=0.0, more_than=True)
        self._flag("vectors")

    def layer_constants(self, step: int, learning_rate: float, norms: tuple[float, float], vector: bool) -> Constants:
        of_params, of_step = norms
        plain = vector and not self.vectors
        ratio = of_params / of_step if of_params > 0 and of_step > 0 and not plain else 1.0
        unbias, root = 1.0 / (1.0 - self.beta1**step), 1.0 / math.sqrt(1.0 - self.beta2**step)
        decay = 0.0 if plain else self.weight_decay
        return (*self._decays, *as_constants(unbias, root, decay, learning_rate * ratio))

    @functools.cached_property
    def _decays(self) -> Constants:
        return as_constants(self.beta1, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, self.epsilon)


@sweep
def sweep_lamb(
    gradients: tuple[tuple[Row, ...], ...],
    weights: tuple[Any, ...],
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
            beta1, rest1, beta2, rest2, epsilon, unbias, root, decay, rate = constants[k]
            g = gradient(gradients[k], weights[k], p, line, how)
            m = beta1 * m + rest1 * g
            v = beta2 * v + rest2 * (g * g)
            p = p - rate * (unbias * m / (np.sqrt(v) * root + epsilon) + decay * p)
        put(next_params, line, p, how)
        put(next_first, line, m, how)
        put(next_second, line, v, how)


@measure
def measure_lamb(
    gradients: tuple[tuple[Row, ...]],
    weights: tuple[Any],
    constants: tuple[Any],
    front: tuple[Row, Row, Row],
    sums: Any,
    how: int | None,
) -> None:
    params, first, second = front
    beta1, rest1, beta2, rest2, epsilon, unbias, root, decay, _ = constants[0]
    for line in range(lines(params, how)):
        p = get(params, line, how)
        g = gradient(gradients[0], weights[0], p, line, how)
        m = beta1 * get(first, line, how) + rest1 * g
        v = beta2 * get(second, line, how) + rest2 * (g * g)
        collect(sums, 0, p)
        collect(sums, 1, unbias * m / (np.sqrt(v) * root + epsilon) + decay * p)
