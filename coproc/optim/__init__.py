"""Optimizers: values that clients name and servers compile into sweeps over float32 ranges.

    coproc.optim.SGD(learning_rate=0.1)
    coproc.optim.Momentum(learning_rate=0.1, momentum=0.9, nesterov=True)
    coproc.optim.Adam(learning_rate=1e-3)
    coproc.optim.AdamW(learning_rate=1e-3, weight_decay=0.01)
    coproc.optim.Adagrad(learning_rate=1e-2)
    coproc.optim.RMSprop(learning_rate=1e-2, alpha=0.99, momentum=0.9)
    coproc.optim.Adadelta(learning_rate=1.0, rho=0.9)
    coproc.optim.FTRL(learning_rate=0.1, l1=1.0, l2=0.1)
    coproc.optim.Lion(learning_rate=1e-4, weight_decay=0.1)
    coproc.optim.Average(combine="mean")    workers push parameters
    coproc.optim.LARS(learning_rate=1.0, momentum=0.9, weight_decay=1e-4)
    coproc.optim.LAMB(learning_rate=1e-3, weight_decay=0.01)

Around any of them: ``clip_value=1.0``, ``clip_norm=1.0`` (not the last two), ``weight_decay=1e-4``,
``staleness="inverse"``, ``delay_compensation=0.04``, and a course of `coproc.schedules` for a learning rate.

An optimizer more is one file more in this folder; see `coproc.optim.base`.
"""

from __future__ import annotations

from coproc.optim.adadelta import Adadelta
from coproc.optim.adagrad import Adagrad
from coproc.optim.adam import Adam
from coproc.optim.adamw import AdamW
from coproc.optim.average import Average
from coproc.optim.base import LINE_FLOATS, Layerwise, Optimizer, Row, from_config, registered
from coproc.optim.compiled import (
    ASYNCHRONOUS_COUNTS,
    GRADIENTS_AT_ONCE,
    SCRATCH_FLOATS,
    STREAM_FROM,
    aligned_row,
    apply,
    compile_sweep,
    sources,
    synchronous_counts,
    warm,
)
from coproc.optim.ftrl import FTRL
from coproc.optim.lamb import LAMB
from coproc.optim.lars import LARS
from coproc.optim.lion import Lion
from coproc.optim.momentum import Momentum
from coproc.optim.rmsprop import RMSprop
from coproc.optim.sgd import SGD

__all__ = [
    "ASYNCHRONOUS_COUNTS",
    "FTRL",
    "GRADIENTS_AT_ONCE",
    "LAMB",
    "LARS",
    "LINE_FLOATS",
    "SCRATCH_FLOATS",
    "SGD",
    "STREAM_FROM",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Average",
    "Layerwise",
    "Lion",
    "Momentum",
    "Optimizer",
    "RMSprop",
    "Row",
    "aligned_row",
    "apply",
    "compile_sweep",
    "from_config",
    "registered",
    "sources",
    "synchronous_counts",
    "warm",
]


def __getattr__(name: str) -> type[Optimizer]:
    """An optimizer that somebody added as a file."""
    for kind in registered().values():
        if kind.__name__ == name:
            return kind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
