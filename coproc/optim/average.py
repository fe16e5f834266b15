"""Averaging of parameters: workers push parameters in place of gradients, and the model goes to their mean.

    p <- p - learning_rate * (p - q)

with q the mean of a round's members, weighted by their examples (McDonald, Hall, Mann, "Distributed Training Strategies
for the Structured Perceptron", 2010; Moritz et al., "SparkNet", ICLR 2016), or the member of the smallest loss. At rate
1 the model becomes q; below it keeps a part of itself, which asynchronous workers want (the server's half of Zhang,
Choromanska, LeCun, "Deep learning with Elastic Averaging SGD", 2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from coproc.errors import ConfigError
from coproc.optim.base import Constants, Optimizer, Row, as_constants, get, gradient, lines, put, sweep
from coproc.schedules import Schedule


@dataclass(frozen=True)
class Average(Optimizer):
    """What comes from the workers are parameters, trained by each on its own for a while."""

    name: ClassVar[str] = "average"
    counts_updates: ClassVar[bool] = False

    learning_rate: float | Schedule = 1.0
    """How far the model goes, 0 to 1."""
    combine: Literal["mean", "best"] = "mean"
    """"best": of a round only the member counts whose push tells the smallest loss; without a loss, none does unless
    all are without: then it is the mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_rate > 1:
            raise ConfigError(f"learning_rate of Average must be 0 to 1, not {self.base_rate!r}")
        if self.combine not in ("mean", "best"):
            raise ConfigError(f'combine of Average must be "mean" or "best", not {self.combine!r:.100}')
        if self.weight_decay or self.clip_value is not None or self.clip_norm is not None or self.compensates:
            raise ConfigError(
                "Average is given parameters: clipping, weight_decay and delay_compensation are for gradients"
            )

    @property
    def is_plain(self) -> bool:
        return super().is_plain and self.combine == "mean"

    def combined(self, shares: Sequence[float], losses: Sequence[float]) -> Sequence[float]:
        if self.combine == "mean" or all(math.isnan(loss) for loss in losses):
            return shares
        least = min(loss for loss in losses if not math.isnan(loss))
        best = list(losses).index(least)
        return [float(member == best) for member in range(len(shares))]

    def constants(self, step: int, learning_rate: float) -> Constants:
        return as_constants(learning_rate)


@sweep
def sweep_average(
    gradients: tuple[tuple[Row, ...], ...],
    weights: tuple[Any, ...],
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
            (rate,) = constants[k]
            p = p - rate * (p - gradient(gradients[k], weights[k], p, line, how))
        put(next_params, line, p, how)
