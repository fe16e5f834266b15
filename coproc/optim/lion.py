"""Lion (Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, algorithm 2).

    p <- (1 - learning_rate * weight_decay) * p - learning_rate * sign(beta1 * m + (1 - beta1) * g)
    m <- beta2 * m + (1 - beta2) * g

Each step has the same size in each parameter, so the learning rate is to be 3 to 10 times smaller than Adam's, and
the weight decay as many times larger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

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
from coproc.schedules import Schedule

# Times this, whatever is not as good as 0 (1e-36) is more than 1.
_HUGE = 2.0**120


@dataclass(frozen=True)
class Lion(Optimizer):
    """Descent by the sign of a running mean of gradients: half of Adam's state."""

    name: ClassVar[str] = "lion"
    decouples_decay: ClassVar[bool] = True
    counts_updates: ClassVar[bool] = False
    state_rows: ClassVar[tuple[str, ...]] = ("first_moment",)

    # The paper's defaults.
    learning_rate: float | Schedule = 1e-4
    beta1: float = 0.9
    """Share of the running mean in the direction of a step."""
    beta2: float = 0.99
    """Decay of the running mean."""
    weight_decay: float = field(default=0.0, kw_only=True)
    """Share of each parameter, times the learning rate, that a step takes away."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("beta1", least=0.0, below=1.0)
        self._number("beta2", least=0.0, below=1.0)

    def constants(self, step: int, learning_rate: float) -> Constants:
        keep = 1.0 - learning_rate * self.weight_decay
        return as_constants(learning_rate, keep, self.beta1, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, _HUGE, 1.0)


@sweep
def sweep_lion(
    gradients: tuple[tuple[Row, ...], ...],
    weights: tuple[Constants, ...],
    constants: tuple[Any, ...],
    front: tuple[Row, Row],
    back: tuple[Row, Row],
    how: int | None,
) -> None:
    params, first = front
    next_params, next_first = back
    for line in range(lines(params, how)):
        p, m = get(params, line, how), get(first, line, how)
        for k in range(len(gradients)):
            rate, keep, beta1, rest1, beta2, rest2, huge, one = constants[k]
            g = gradient(gradients[k], weights[k], p, line, how)
            c = beta1 * m + rest1 * g
            # The sign of c. (c - c is 0, but not where c is infinite: such a gradient must not pass for any other.)
            p = keep * p - rate * (clip(huge * c, one) + (c - c))
            m = beta2 * m + rest2 * g
        put(next_params, line, p, how)
        put(next_first, line, m, how)
