"""The epochs: groups of tasks on a pool, a snapshot and a measure after each, and what to keep in the end."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from coproc.errors import CoprocError, DataLost, Diverged, Unreachable
from coproc.exchange import Pulled
from coproc.modes.base import Mode, ModeStatus
from coproc.pools.base import Pool
from coproc.tasks import EpochReport, WorkerReport, WorkerTask
from coproc.training.base import EpochRow, Flat, Group, Plan, Progress
from coproc.training.groups import GroupSize

# Often enough to look alive; one small call each.
POLL_S = 0.25
SNAPSHOT_TIMEOUT_S = 60.0
LOST_AFTER_S = 60.0
# Whoever loses the memory of a host this often in one group has another problem.
BRING_BACK_LIMIT = 3


@dataclass
class Outcome:
    """Where a run has got to. Always holds a model: at first the initial one."""

    flat: Flat
    """The last good version."""
    version: int = 0
    epochs_done: int = 0
    history: list[EpochRow] = field(default_factory=list)
    interrupted: bool = False
    diverged: Diverged | None = None

    def keep(self, snapshot: Pulled) -> bool:
        """Take a snapshot as the last good version, if it is good."""
        if not np.isfinite(snapshot.flat).all():
            return False
        self.flat, self.version = snapshot.flat, snapshot.version
        return True


@dataclass(frozen=True)
class Fit:
    """One training on given parts; owns none of them."""

    plan: Plan
    mode: Mode
    pool: Pool
    tasks_of: Callable[[int, int, int], list[WorkerTask]]
    """(epoch, begin, end) -> tasks that do the pushes from begin to end of each worker's epoch."""
    evaluate: Callable[[Flat], Mapping[str, float]]
    measured_on: str
    on_progress: Callable[[Progress], None]
    on_row: Callable[[EpochRow], None]
    stop: Callable[[], bool]
    bring_back: Callable[[], None] | None = None
    """Called when the rows went with the memory of a host: puts the same ones there again."""
    on_group: Callable[[Group], None] | None = None
    """Told of each group that is over."""
    first_epoch: int = 0
    """Where a run that is resumed goes on; its workers know their steps."""

    @functools.cached_property
    def group_size(self) -> GroupSize:
        """Of all epochs."""
        return GroupSize(self.plan.config.group_size, self.plan.most_pushes)

    def run(self, outcome: Outcome) -> None:
        """Train all epochs; `outcome` is right at any moment, whatever ends the training.

        Divergence and Ctrl-C end it without an exception: they are in `outcome`.

        Raises:
            CoprocError: a failure of workers or servers.
        """
        try:
            for epoch in range(self.first_epoch, self.plan.config.epochs):
                if self.stop() or not self._epoch(epoch, outcome):
                    outcome.interrupted = True
                    break
        except Diverged as error:
            outcome.diverged = error
        except KeyboardInterrupt:
            outcome.interrupted = True
        if outcome.interrupted:
            # What was descended since the last epoch's end is worth keeping, if it can still be read.
            try:
                outcome.keep(self.mode.snapshot(timeout_s=SNAPSHOT_TIMEOUT_S))
            except CoprocError:
                return

    def _epoch(self, epoch: int, outcome: Outcome) -> bool:
        """Train and measure one epoch; False if it was stopped on the way."""
        plan, size = self.plan, self.group_size
        began = time.monotonic()
        most, done, group, largest = max(1, plan.most_pushes), 0, 0, 0
        total = EpochReport(epoch)
        rate = plan.config.rate_of(epoch)
        if epoch and rate != plan.config.rate_of(epoch - 1):
            self.mode.set_learning_rate(rate)
        with Watch(self.mode, plan, epoch, self.on_progress) as watch:
            while done < most:
                end = min(done + size.steps, most)
                tasks = self.tasks_of(epoch, done, end)
                group_began = time.monotonic()
                reports = self._group(tasks, lambda: self.stop() or watch.lost is not None)
                group_ended = time.monotonic()
                if self.on_group is not None:
                    self.on_group(Group(epoch, group, group_began, group_ended, tuple(reports), end - done))
                largest = max(largest, end - done)
                size.ended(group_ended - group_began, reports)
                done, group = end, group + 1
                add_up(total, reports)
                if watch.lost is not None:
                    raise watch.lost
                if len(reports) < len(tasks) or any(report.stopped for report in reports):
                    return False
        trained = time.monotonic()
        self.on_progress(Progress("measuring", epoch + 1, plan.config.epochs, 1.0))
        snapshot = self.mode.snapshot(timeout_s=SNAPSHOT_TIMEOUT_S)
        loss = total.loss_sum / total.examples if total.examples else float("nan")
        good = outcome.keep(snapshot)
        metrics = dict(self.evaluate(snapshot.flat)) if good else {}
        if not good or not np.isfinite(metrics.get("loss", 0.0)):
            raise Diverged(
                f"training diverged: the model at the end of epoch {epoch + 1} (version {snapshot.version}) "
                "is not finite; try a learning rate ten times smaller, or check the scale of the features"
            )
        row = EpochRow(
            epoch=epoch + 1,
            learning_rate=rate,
            version=snapshot.version,
            loss=loss,
            metrics=metrics,
            measured_on=self.measured_on,
            examples=total.examples,
            examples_per_s=total.examples / max(1e-9, trained - began),
            pushes=total.pushes,
            duplicates=total.duplicates,
            staleness_mean=total.staleness_sum / max(1, total.pushes),
            staleness_max=total.staleness_max,
            train_s=trained - began,
            validate_s=time.monotonic() - trained,
            pull_s=total.pull_s,
            compute_s=total.compute_s,
            push_s=total.push_s,
            group_size=largest,
        )
        outcome.epochs_done = epoch + 1
        outcome.history.append(row)
        self.on_row(row)
        self.on_progress(
            Progress(
                "training", epoch + 1, plan.config.epochs, 1.0, loss, row.examples_per_s,
                row.staleness_mean, row.version, row,
            )
        )  # fmt: skip
        return True

    def _group(self, tasks: list[WorkerTask], stop: Callable[[], bool]) -> list[WorkerReport]:
        """Train one group. Rows that are lost come back from where they were read, and tasks go on by their steps."""
        for _ in range(BRING_BACK_LIMIT):
            try:
                return self.mode.run(self.pool, tasks, stop=stop)
            except DataLost:
                if self.bring_back is None:
                    raise
                self.bring_back()
        return self.mode.run(self.pool, tasks, stop=stop)


def add_up(total: EpochReport, reports: Sequence[WorkerReport]) -> None:
    """Add what the tasks of a group did to the epoch's sums."""
    for report in reports:
        for part in report.epochs:
            # A task that continues a killed one may begin in the epoch before: that counts here too.
            total.add(replace(part, epoch=total.epoch))


class Watch:
    """Tells the progress of an epoch while the driver's thread waits for its tasks."""

    def __init__(self, mode: Mode, plan: Plan, epoch: int, on_progress: Callable[[Progress], None]) -> None:
        self._mode = mode
        self._plan = plan
        self._epoch = epoch
        self._on_progress = on_progress
        self._ended = threading.Event()
        self.lost: Unreachable | None = None
        """The servers have not answered for so long that nobody need wait for them any more."""
        self._thread = threading.Thread(target=self._look, name="progress", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(10.0)

    def _look(self) -> None:
        before: tuple[float, ModeStatus] | None = None
        first = 0
        answered_s = time.monotonic()
        while not self._ended.wait(POLL_S):
            try:
                now = self._mode.status()
                answered_s = time.monotonic()
            except Unreachable as error:
                # A restart takes seconds; the workers would wait much longer.
                if time.monotonic() - answered_s > LOST_AFTER_S:
                    self.lost = error
                    return
                continue
            except CoprocError:
                continue  # whether it matters, the workers find out
            if now is None:
                return
            if before is None:
                first = self._epoch * self._plan.rows_count
                before = (time.monotonic(), now)
                continue
            then, earlier = before
            told = now.loss_examples_count - earlier.loss_examples_count
            if not told:
                continue
            moment = time.monotonic()
            self._on_progress(
                Progress(
                    phase="training",
                    epoch=self._epoch + 1,
                    epochs=self._plan.config.epochs,
                    done=min(1.0, max(0.0, (now.examples_count - first) / self._plan.rows_count)),
                    loss=(now.loss_sum - earlier.loss_sum) / told,
                    examples_per_s=(now.examples_count - earlier.examples_count) / max(1e-9, moment - then),
                    staleness_mean=now.staleness_mean,
                    version=now.version,
                )
            )
            before = (moment, now)
