"""LARS (You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, algorithm 1).

    ratio = trust * |p| / (|g| + weight_decay * |p|)      norms over a tensor; 1 where one is 0
    v <- momentum * v + ratio * (g + weight_decay * p)
    p <- p - learning_rate * v

The rate is outside of v, as in `Momentum`; the paper has it inside, which is the same while it stays. Tensors of one
dimension (biases, scales) have ratio 1 and no decay, as in the training of the paper; `vectors` has them treated as
the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

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


@dataclass(frozen=True)
class LARS(Layerwise):
    """Momentum whose step in each tensor is a fixed part of the tensor's norm: for batches of thousands."""

    name: ClassVar[str] = "lars"
    counts_updates: ClassVar[bool] = False
    decouples_decay: ClassVar[bool] = True

    momentum: float = 0.9
    trust: float = 1e-3
    """What the paper calls the trust coefficient."""
    vectors: bool = False
    """Whether tensors of one dimension have a ratio and a decay too."""
    weight_decay: float = field(default=0.0, kw_only=True)

    @property
    def state_rows(self) -> tuple[str, ...]:
        return ("velocity",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("momentum", least=0.0, below=1.0)
        self._number("trust", least=0.0, more_than=True)
        self._flag("vectors")

    def layer_constants(self, step: int, learning_rate: float, norms: tuple[float, float], vector: bool) -> Constants:
        of_params, of_gradient = norms
        if vector and not self.vectors:
            return as_constants(self.momentum, 1.0, 0.0, learning_rate)
        both = of_params > 0 and of_gradient > 0
        ratio = self.trust * of_params / (of_gradient + self.weight_decay * of_params) if both else 1.0
        return as_constants(self.momentum, ratio, self.weight_decay, learning_rate)


@sweep
def sweep_lars(
    gradients: tuple[tuple[Row, ...], ...],
    weights: tuple[Any, ...],
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
            momentum, ratio, decay, rate = constants[k]
            g = gradient(gradients[k], weights[k], p, line, how)
            v = momentum * v + ratio * (g + decay * p)
            p = p - rate * v
        put(next_params, line, p, how)
        put(next_velocity, line, v, how)


@measure
def measure_lars(
    gradients: tuple[tuple[Row, ...]],
    weights: tuple[Any],
    constants: tuple[Any],
    front: tuple[Row, Row],
    sums: Any,
    how: int | None,
) -> None:
    for line in range(lines(front[0], how)):
        p = get(front[0], line, how)
        collect(sums, 0, p)
        collect(sums, 1, gradient(gradients[0], weights[0], p, line, how))
