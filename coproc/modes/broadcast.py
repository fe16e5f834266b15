"""Spark's own way, as MLlib trains: the driver holds the model, a broadcast a step, the gradients by `treeAggregate`.

Each step is a job: the parameters go out as a broadcast, which executors pass on to each other; each task computes the
gradient of its batch; sums of them go up a tree of depth 2 to the driver, which descends (MLlib's `GradientDescent`;
Meng et al., "MLlib: Machine Learning in Apache Spark", JMLR 2016).

Bytes a step of a model of K parameters: 4K in and out a worker; 4K out of the driver, and 4K in for each part that the
last level of the tree leaves: one a task up to four tasks, then about the square root of their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np

from coproc.errors import ConfigError
from coproc.exchange import Exchange, ExchangeSpec, Version
from coproc.layout import Flat
from coproc.local import Descent
from coproc.modes.base import Capabilities, Costs, Mode, ModeSettings
from coproc.modes.lockstep import FromStep, Lockstep, shares
from coproc.optim import Optimizer
from coproc.pools.base import Pool
from coproc.tasks import WorkerReport, WorkerTask

CAPABILITIES = Capabilities(
    consistencies=frozenset({"bsp"}),
    exactly_once=True,
    whole_versions=True,
    elastic=True,
    waits_for_all="never",
    survives_server=False,
    pools=frozenset({"inline", "spark"}),
)

RunTask = Callable[[WorkerTask], WorkerReport]


class Aggregating(Protocol):
    """What this mode needs of a pool."""

    def aggregate(
        self,
        vector: Flat,
        function: Callable[[Flat, str, RunTask], tuple[Flat | None, str]],
        arguments: Sequence[str],
        *,
        stop: Callable[[], bool],
    ) -> tuple[Flat | None, list[str], int]:
        """One job of a task an argument, `function(vector, argument, run_task)`.

        Returns:
            The sum of the vectors that they gave; their texts, in order, [] when it was stopped; the bytes of vectors
            that came here.
        """
        ...


class BroadcastMode(Lockstep):
    """Driver face: a model in this process."""

    capabilities = CAPABILITIES
    name = "broadcast"

    def __init__(self, settings: ModeSettings) -> None:
        """
        Raises:
            ConfigError: not synchronous; a rule of combining that needs more than a sum.
        """
        super().__init__(settings)
        optimizer: Optimizer = settings.optimizer
        if type(optimizer).combined is not Optimizer.combined:
            raise ConfigError(f"the mode 'broadcast' knows sums of gradients only, and {optimizer.name} needs each")
        self._descent = Descent(optimizer, self.layout, self.initial())
        self._descent.warm(1)

    @property
    def version(self) -> int:
        return self._descent.updates

    def task_settings(self, worker: int) -> dict[str, Any]:
        return {"version": self.version}

    def round(
        self, pool: Pool, tasks: Sequence[WorkerTask], stop: Callable[[], bool]
    ) -> tuple[list[WorkerReport], Callable[[], None]]:
        there = cast(Aggregating, pool)
        descent, counted = self._descent, self.counted
        total, texts, came_bytes = there.aggregate(
            descent.params, gradient, [task.to_json() for task in tasks], stop=stop
        )
        reports = [WorkerReport.from_json(text) for text in texts]
        counted.jobs_count += 1
        counted.driver_out_bytes += descent.params.nbytes
        counted.driver_in_bytes += came_bytes
        self.take(reports)

        def advance() -> None:
            given = shares(reports)
            if total is not None:
                examples = sum(each.examples for each in given)
                np.multiply(total, np.float32(1 / examples), out=total)
                loss = sum(each.loss * each.examples for each in given) / examples
                descent.step([total], [examples], [loss])

        return reports, advance

    def snapshot(self, *, timeout_s: float) -> Version:
        return Version(self.version, self._descent.params.copy())

    def set_learning_rate(self, learning_rate: float) -> None:
        self._descent.learning_rate = learning_rate

    def costs(self) -> Costs:
        return replace(self.counted, update_s=self._descent.busy_s)

    def close(self) -> None:
        """The model is this process's: it goes with it."""
        self._descent.close()


@dataclass
class Given:
    """What came with a task, and what comes of it."""

    params: Flat
    total: Flat | None = None
    """Its gradient, times its examples; None if it has no rows."""


# Of the task in this thread.
_given: ContextVar[Given] = ContextVar("given")


class Captured(FromStep):
    """Worker face: the parameters that came with the task."""

    def __init__(self, given: Given, settings: Mapping[str, Any]) -> None:
        super().__init__(settings["from_step"], given.params.size)
        self.version = settings["version"]
        self._given = given

    def pull(self, *, timeout_s: float) -> Version:
        self.spent.came(self._given.params.nbytes)
        return Version(self.version, self._given.params)

    def given(self, step: int, gradient: Flat, examples: int, loss: float, last: bool) -> None:
        self.spent.went(gradient.nbytes)
        self._given.total = np.multiply(gradient, np.float32(examples), out=gradient)


def gradient(params: Flat, text: str, run_task: RunTask) -> tuple[Flat | None, str]:
    """Do a task against `params` (P,): (its gradient times its examples, or None if it has no rows; its report)."""
    given = Given(params)
    held = _given.set(given)
    try:
        report = run_task(WorkerTask.from_json(text))
    finally:
        _given.reset(held)  # the process goes on to other tasks
    return given.total, report.to_json()


def start(settings: ModeSettings) -> Mode:
    """The run's model, here."""
    return BroadcastMode(settings)


def open_exchange(spec: ExchangeSpec, worker: int, *, timeout_s: float) -> Exchange:
    """An exchange with the parameters that came with the task."""
    return Captured(_given.get(), spec.settings)
