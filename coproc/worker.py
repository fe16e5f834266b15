"""The worker loop: pull, compute gradients, push, until the task's share of the data is done.

One loop for every pool and every mode. A task keeps nothing between steps: the step it continues from is
the exchange's `next_step`, and the position in the data is a function of the step, so any attempt on any
host computes the same gradient for the same step:

    epoch, place = divmod(step, pushes_per_epoch)        the push covers the batches place * n_send ...
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from coproc.data.batches import Batches, Minibatch
from coproc.data.partition import Partition
from coproc.errors import ConfigError, DataLost, Diverged, LeaseExpired, Timeout, Unreachable
from coproc.exchange import Exchange, Spent
from coproc.grads.base import Batch
from coproc.prefetch import join
from coproc.tasks import EpochReport, Sample, WorkerReport, WorkerTask
from coproc.wire import as_coproc
from storage_tier.errors import BytesLost, PathNotFound, TierError
from storage_tier.wire import trust

Flat = NDArray[np.float32]

# A lease is lost when the attempt was silent for too long (a suspended host, a server that was restored).
# Joining again is harmless; an attempt that loses it this often without one push in between never will push.
REJOIN_LIMIT = 5

# How long a task that begins waits for a server that restarts, and how often it tries.
OPEN_WAIT_S = 15.0
OPEN_AGAIN_S = 0.2

# How often a waiting worker looks whether it has been asked to stop.
STOP_LOOK_S = 0.5

T = TypeVar("T")


class Backend(Protocol):
    """The part of a gradient backend that the loop needs."""

    def value_and_grad(self, params: Flat, batch: Batch, *, out: Flat, accumulate: bool = False) -> float: ...


class Source(Protocol):
    """The part of `coproc.data.batches.Batches` that the loop needs."""

    @property
    def steps_per_epoch(self) -> int: ...

    def examples(self, first: int, stop: int) -> int: ...

    def batch(self, epoch: int, k: int) -> Minibatch: ...


def never() -> bool:
    """The default of `stop`: nobody asks."""
    return False


class Stopped(Exception):
    """The driver asked to stop while the loop waited. Stays in this module."""


class Loop:
    """One attempt of one task: the exchange, the backend and the source it was given, and its report."""

    def __init__(
        self,
        task: WorkerTask,
        exchange: Exchange,
        backend: Backend,
        source: Source,
        stop: Callable[[], bool] = never,
    ) -> None:
        if task.n_fetch < 1 or task.n_send < 1:
            raise ConfigError("n_fetch and n_send must be at least 1")
        self.task = task
        self.exchange = exchange
        self.backend = backend
        self.source = source
        self.stop = stop
        self.epochs: dict[int, EpochReport] = {}
        self.samples: list[Sample] = []
        self.stopped = False
        self._asked = False
        # A pull may be a view that the next push takes back; it has to outlive a push exactly where a
        # fetch does not come with (or before) every push.
        self._keep_copy = task.n_send % task.n_fetch != 0
        self._params: Flat | None = None
        self._read_version = 0

    def run(self) -> None:
        """Go on from the exchange's next step until the task's last one.

        Raises:
            Diverged: the loss or a gradient is not finite any more; nothing of that step was pushed.
            LeaseExpired, Timeout, WorkerLost, Unreachable: from the exchange; what was pushed stays.
        """
        self._asked = self.stop()
        while (step := self.exchange.next_step) < self.task.until_step:
            if self._asked:
                self.stopped = True
                return
            try:
                self._one_step(step)
            except Stopped:
                self.stopped = True
                return
        if self.task.until_step >= self.task.end_step or self.task.leave_after_task:
            self.exchange.leave()

    def _one_step(self, step: int) -> None:
        task = self.task
        epoch, place = divmod(step, task.pushes_per_epoch)
        report = self.epochs.setdefault(epoch, EpochReport(epoch))
        first = place * task.n_send
        stop = min(first + task.n_send, self.source.steps_per_epoch)
        if first >= stop:
            began = time.perf_counter()
            self.exchange.skip(step=step, timeout_s=task.timeout_s)
            report.push_s += time.perf_counter() - began
            report.skips += 1
            self._asked = self.stop()
            return

        turned_s, before = time.monotonic(), (report.pull_s, report.compute_s)
        began = time.perf_counter()
        out = self._wait(lambda wait_s: self.exchange.gradient(timeout_s=wait_s), step)
        report.pull_s += time.perf_counter() - began

        loss_sum, examples = 0.0, self.source.examples(first, stop)
        for index in range(first, stop):
            began = time.perf_counter()
            params = self._fetch(index, step)
            pulled = time.perf_counter()
            features, labels, key = self.source.batch(epoch, index)
            # One denominator for all batches of a push: their sum is the mean over all its examples.
            batch = Batch(features, labels, examples, key)
            loss = self.backend.value_and_grad(params, batch, out=out, accumulate=index > first)
            loss_sum += loss * len(features)
            report.pull_s += pulled - began
            report.compute_s += time.perf_counter() - pulled
        loss = loss_sum / examples
        if not math.isfinite(loss):
            raise self._diverged(step, epoch, f"the loss is {loss}, or the gradient has such an element")

        began = time.perf_counter()
        staleness = max(0, self.exchange.version - self._read_version)
        # Asked before each push and not after it: the last push is to know that it is the last.
        self._asked = self.stop()
        last = self._asked or self._next_gradient(step) >= task.until_step
        receipt = self.exchange.push(step=step, examples=examples, loss=loss, timeout_s=task.timeout_s, last=last)
        push_s = time.perf_counter() - began
        report.push_s += push_s
        if task.trace:
            pull_s, compute_s = report.pull_s - before[0], report.compute_s - before[1]
            self.samples.append(
                Sample(step, turned_s, pull_s, compute_s, push_s, examples, loss, staleness, receipt.duplicate)
            )
        if not self._keep_copy:
            self._params = None
        if receipt.duplicate:
            report.duplicates += 1
            return
        report.pushes += 1
        report.examples += examples
        report.loss_sum += loss_sum
        report.staleness_sum += staleness
        report.staleness_max = max(report.staleness_max, staleness)

    def _next_gradient(self, step: int) -> int:
        """The next step after this one that is not skipped for want of batches."""
        epoch, place = divmod(step, self.task.pushes_per_epoch)
        more = (place + 1) * self.task.n_send < self.source.steps_per_epoch
        return step + 1 if more else (epoch + 1) * self.task.pushes_per_epoch

    def _fetch(self, index: int, step: int) -> Flat:
        """The parameters for batch `index` of the epoch: pulled every `n_fetch` batches."""
        params = self._params
        if params is None or index % self.task.n_fetch == 0:
            self._params = None
            pulled = self._wait(lambda wait_s: self.exchange.pull(timeout_s=wait_s), step)
            self._read_version = pulled.version
            params = pulled.flat.copy() if self._keep_copy else pulled.flat
            self._params = params
        return params

    def _wait(self, wait: Callable[[float], T], step: int) -> T:
        """Wait for others in slices, so that a stop is seen while nothing moves."""
        deadline = time.monotonic() + self.task.timeout_s
        while True:
            left_s = deadline - time.monotonic()
            try:
                return wait(max(0.0, min(STOP_LOOK_S, left_s)))
            except Timeout as error:
                if self.stop():
                    raise Stopped from None
                if left_s <= STOP_LOOK_S:
                    raise Timeout(
                        f"worker {self.task.worker} waited {self.task.timeout_s:.0f} s at step {step}: {error}"
                    ) from error

    def _diverged(self, step: int, epoch: int, what: str) -> Diverged:
        return Diverged(
            f"training diverged: worker {self.task.worker} found at step {step} (epoch {epoch + 1}) that "
            f"{what}; try a learning rate ten times smaller, or check the scale of the features"
        )


def run_worker(
    task: WorkerTask,
    *,
    stop: Callable[[], bool] = never,
    open_exchange: Callable[[WorkerTask], Exchange] | None = None,
    open_source: Callable[[WorkerTask], Source] | None = None,
    open_backend: Callable[[WorkerTask], Backend] | None = None,
) -> WorkerReport:
    """Do what `task` says, in this thread, and report.

    Joins again when the attempt's lease was lost. On any error the exchange is aborted: what was pushed
    stays, the worker's membership too, so that another attempt can continue.

    Args:
        stop: asked at first, before every push, and in waits; True ends the task early, after the push that was due,
            with `stopped` in its report.
        open_exchange, open_source, open_backend: how the parts are opened; given by tests.

    Raises:
        As `Loop.run`.
    """
    began = time.perf_counter()
    source = _once_there(open_source or _open_source, task, stop)
    backend = (open_backend or _open_backend)(task)
    epochs: dict[int, EpochReport] = {}
    samples: list[Sample] = []
    spent = Spent()
    first_step: int | None = None
    lost_count = 0
    while True:
        exchange = _once_there(open_exchange or join, task, stop)
        try:
            joined_at = exchange.next_step
            first_step = joined_at if first_step is None else first_step
            loop = Loop(task, exchange, backend, source, stop)
            loop.epochs, loop.samples = epochs, samples
            loop.run()
            next_step = exchange.next_step
            exchange.close()
        except LeaseExpired:
            lost_count = lost_count + 1 if exchange.next_step == joined_at else 0
            exchange.abort()
            spent.add(exchange.spent)
            if lost_count >= REJOIN_LIMIT:
                raise
            continue
        except BaseException:
            exchange.abort()
            raise
        spent.add(exchange.spent)
        return WorkerReport(
            worker=task.worker,
            first_step=first_step,
            next_step=next_step,
            epochs=tuple(epochs[each] for each in sorted(epochs)),
            stopped=loop.stopped,
            wall_s=time.perf_counter() - began,
            samples=tuple(samples),
            spent=spent,
        )


def _once_there(open_: Callable[[WorkerTask], T], task: WorkerTask, stop: Callable[[], bool]) -> T:
    """Open a part of the task; a server that restarts meanwhile, or brings back a model, is waited for."""
    deadline = time.monotonic() + min(OPEN_WAIT_S, task.timeout_s)
    while True:
        try:
            return open_(task)
        except Unreachable:
            if time.monotonic() + OPEN_AGAIN_S > deadline or stop():
                raise
            time.sleep(OPEN_AGAIN_S)


def _open_source(task: WorkerTask) -> Source:
    """The task's partition in the tier: near a view of its memory, far a copy."""
    from storage_tier import TierClient

    data = task.data
    try:
        with TierClient(data.address, token=data.token, tls=trust(data.tls_authority)) as tier:
            file = tier.open(data.path)
    except (PathNotFound, BytesLost) as error:
        raise DataLost(
            f"the rows of worker {task.worker} are not in the tier any more; they went with its memory: {error}"
        ) from None
    except TierError as error:
        raise as_coproc(error) from None
    # Arrays over the file's data keep it mapped as long as they live.
    rows = Partition.open(file.data, file.metadata)
    return Batches(rows, data.batch_size, data.seed, task.worker, data.scale)


def _open_backend(task: WorkerTask) -> Backend:
    """The gradient backend that the task describes."""
    from coproc import grads

    return grads.create(task.backend)
