"""What the architectures share in which the driver ends each round of steps: their loop, what they count, an exchange.

A round is a job on the pool, in which each worker does one step, or a few, from where the driver says; then the driver
makes the next version. Nothing of a round counts before all of it is there: a task that dies is run again from the
round's beginning, and gives the same once more.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from coproc.errors import ConfigError, Unsupported
from coproc.exchange import ExchangeSpec, Spent, Taken, Version
from coproc.layout import Flat, ParamLayout
from coproc.modes.base import ModeSettings, ModeStatus
from coproc.modes.driver import Driver
from coproc.pools.base import Pool
from coproc.tasks import EpochReport, WorkerReport, WorkerTask
from coproc.worker import never


class Lockstep(Driver):
    """Driver face, but for what a round is. Used by one thread; `status` by another, too."""

    steps_per_round: int = 1

    def __init__(self, settings: ModeSettings) -> None:
        """
        Raises:
            ConfigError: not synchronous.
        """
        if settings.consistency.name not in self.capabilities.consistencies:
            raise ConfigError(
                f"the mode {self.name!r} is synchronous: it goes with Bsp, not with {settings.consistency!r}"
            )
        super().__init__()
        self.settings = settings
        self.layout = ParamLayout.of(dict(settings.params))
        self.step = 0
        """Of the next round, the first one."""
        self._status = ModeStatus(0, 0, 0, 0.0, 0, 0.0, 0, 0.0)
        self._seconds = 0.0

    def initial(self) -> Flat:
        """What the run begins with (P,)."""
        flat = np.empty(self.layout.size, np.float32)
        self.layout.fill(flat, dict(self.settings.params))
        return flat

    @property
    @abstractmethod
    def version(self) -> int:
        """Of the model."""

    @abstractmethod
    def task_settings(self, worker: int) -> dict[str, Any]:
        """What a worker's exchange needs in the next round, as JSON values."""

    @abstractmethod
    def round(
        self, pool: Pool, tasks: Sequence[WorkerTask], stop: Callable[[], bool]
    ) -> tuple[list[WorkerReport], Callable[[], None]]:
        """One job of these tasks: their reports, and what makes the next version of it, if none is missing."""

    @abstractmethod
    def snapshot(self, *, timeout_s: float) -> Version:
        """The newest version. A copy."""

    @abstractmethod
    def set_learning_rate(self, learning_rate: float) -> None:
        """Of the next round on."""

    @abstractmethod
    def close(self) -> None:
        """Remove all that the run has made but its result. Idempotent."""

    def exchange_spec(self) -> ExchangeSpec:
        """Of the mode; what a round needs besides is put in when it begins."""
        return ExchangeSpec(self.name)

    def group(self, pool: Pool, tasks: Sequence[WorkerTask], stop: Callable[[], bool]) -> list[WorkerReport]:
        """Round after round, until all tasks are done. A round that is stopped counts as never begun."""
        done: list[WorkerReport] = []
        until = max((task.until_step for task in tasks), default=0)
        while self.step < until:
            began = time.monotonic()
            upto = min(self.step + self.steps_per_round, until)
            now = [
                replace(
                    task,
                    exchange=ExchangeSpec(self.name, {"from_step": self.step, **self.task_settings(task.worker)}),
                    until_step=max(self.step, min(upto, task.until_step)),
                )
                for task in tasks
            ]
            reports, advance = ([], never) if stop() else self.round(pool, now, stop)
            if len(reports) < len(tasks) or any(report.stopped for report in reports):
                return [replace(report, stopped=True) for report in done]
            advance()
            self.step = upto
            self._count(reports, time.monotonic() - began)
            done = [joined(*pair) for pair in zip(done, reports, strict=True)] if done else reports
        return done

    def checkpoint(self, *, timeout_s: float) -> None:
        """There are none."""
        raise Unsupported(f"the mode {self.name!r} writes no checkpoints")

    def status(self) -> ModeStatus:
        """Counters of the rounds that are over; no round trip."""
        return self._status

    def _count(self, reports: Sequence[WorkerReport], seconds: float) -> None:
        parts = [part for report in reports for part in report.epochs]
        examples, before = sum(part.examples for part in parts), self._status
        pushes = sum(part.pushes for part in parts)
        self._seconds += seconds
        self._status = ModeStatus(
            version=self.version,
            pushes_count=before.pushes_count + pushes,
            examples_count=before.examples_count + examples,
            loss_sum=before.loss_sum + sum(part.loss_sum for part in parts),
            loss_examples_count=before.loss_examples_count + examples,
            staleness_mean=0.0,
            staleness_max=0,
            pushes_per_s=(before.pushes_count + pushes) / max(1e-9, self._seconds),
        )


class FromStep:
    """Worker face, but for what is pulled and what becomes of a push: does what the driver says, from a step on."""

    def __init__(self, from_step: int, size: int) -> None:
        self.spent = Spent()
        self.next_step = from_step
        self.version = 0
        """The one that is read; nobody makes another one before the round is over."""
        self._size = size
        self._out: Flat | None = None

    def pull(self, *, timeout_s: float) -> Version:
        """What the worker may read now."""
        raise NotImplementedError

    def given(self, step: int, gradient: Flat, examples: int, loss: float, last: bool) -> None:
        """A push."""
        raise NotImplementedError

    def gradient(self, *, timeout_s: float) -> Flat:
        if self._out is None:
            self._out = np.empty(self._size, np.float32)
        return self._out

    def push(self, *, step: int, examples: int, loss: float, timeout_s: float, last: bool) -> Taken:
        """It counts when the round is over."""
        self.given(step, self.gradient(timeout_s=timeout_s), examples, loss, last)
        self.next_step = step + 1
        return Taken(step, self.version)

    def skip(self, *, step: int, timeout_s: float) -> None:
        self.next_step = step + 1

    def leave(self) -> None:
        """The driver knows who has data."""

    def close(self) -> None:
        """Nothing is kept."""

    def abort(self) -> None:
        self.close()


class Share(NamedTuple):
    """What a worker gave to a round, as far as its report knows."""

    worker: int
    pushes: int
    examples: int
    loss: float
    """Mean over the examples."""


def shares(reports: Sequence[WorkerReport]) -> list[Share]:
    """Of the workers who gave something, in their order."""
    found = []
    for report in reports:
        total = EpochReport(0)
        for part in report.epochs:
            total.add(part)
        if total.pushes:
            found.append(Share(report.worker, total.pushes, total.examples, total.loss_sum / total.examples))
    return sorted(found)


def joined(before: WorkerReport, after: WorkerReport) -> WorkerReport:
    """The report of one task that did what two have done, one after the other."""
    epochs = {part.epoch: replace(part) for part in before.epochs}
    for part in after.epochs:
        epochs.setdefault(part.epoch, EpochReport(part.epoch)).add(part)
    spent = replace(before.spent)
    spent.add(after.spent)
    return replace(
        after,
        first_step=before.first_step,
        epochs=tuple(epochs[each] for each in sorted(epochs)),
        wall_s=before.wall_s + after.wall_s,
        samples=before.samples + after.samples,
        spent=spent,
    )
