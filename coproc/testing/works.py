"""Small trainings to try a mode with, and what has to come of them.

Two references: one process with the same batches (`coproc.local.Descent`), and a network whose gradient is a constant,
another one for each worker, so that what was counted twice, or not at all, shows in the sum.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coproc import grads, optim
from coproc.consistency import Asp, Bsp, Consistency, Quorum, Ssp
from coproc.data.base import Rows
from coproc.data.batches import Batches
from coproc.ingest import Destination, put_partition
from coproc.layout import Flat
from coproc.local import Descent
from coproc.modes.base import Mode, ModeSettings, load
from coproc.pools.base import Pool
from coproc.pools.inline import InlinePool
from coproc.pools.processes import ProcessPool
from coproc.tasks import DataSpec, WorkerReport, WorkerTask
from coproc.testing.deaths import Deaths
from coproc.worker import run_worker

RunTask = Callable[..., WorkerReport]

SEED = 5
TIMEOUT_S = 60.0

# A rule of each kind for so many workers.
RULES: Mapping[str, Callable[[int], Consistency]] = {
    "bsp": lambda count: Bsp(workers=count),
    "quorum": lambda count: Quorum(workers=count, count=count, late="carry"),
    "ssp": lambda count: Ssp(bound=1),
    "asp": lambda count: Asp(),
}


@dataclass(frozen=True)
class Ground:
    """Where the modes are tried."""

    address: str
    """Of a cluster that has nothing in it."""

    spark: Callable[[], Any]
    """The session of a Spark with three slots at the least; asked for where a mode runs on nothing else."""

    token: str | None = None

    @contextlib.contextmanager
    def pool(
        self, name: str, deaths: Deaths | None = None, run_task: RunTask = run_worker, slots: int = 3
    ) -> Iterator[Pool]:
        """A pool, in which workers die where `deaths` says; or an inline one, whose tasks are done by `run_task`.

        On Spark there are as many slots as it has.
        """
        made: Any
        if name == "inline":
            made = InlinePool(slots, run_task if deaths is None else deaths.run_task)
        elif name == "processes":
            made = ProcessPool(slots) if deaths is None else ProcessPool(slots, deaths.command)
        else:
            from coproc.pools.spark import SparkPool

            assert deaths is None, "nobody can be told to die in there"
            made = SparkPool(self.spark())
        with contextlib.closing(made):
            yield made


@dataclass(frozen=True)
class Work:
    """A small training."""

    rows: tuple[int, ...]
    """Of each worker."""

    epochs: int = 3
    batch_size: int = 4
    n_send: int = 1
    group: int | None = None
    """Pushes a task; None: an epoch."""

    optimizer: optim.Optimizer = field(default_factory=lambda: optim.Momentum(0.1))
    rates: tuple[float, ...] = (0.1, 0.1, 0.05)
    """Of each epoch."""

    consistency: str = "bsp"

    prefetch: bool = False

    constant: bool = False
    """The gradient of each worker is a constant: see `moved`."""

    @property
    def workers(self) -> int:
        return len(self.rows)

    @property
    def rule(self) -> Consistency:
        return RULES[self.consistency](self.workers)

    @property
    def spec(self) -> Mapping[str, Any]:
        """Of the backend."""
        return {"backend": "mlp", "inputs": 5, "hidden": [] if self.constant else [8], "outputs": 2}

    @property
    def pushes_per_epoch(self) -> list[int]:
        """Of each worker; in rounds those of the longest."""
        own = [-(-count // (self.batch_size * self.n_send)) for count in self.rows]
        return [max(own)] * len(own) if isinstance(self.rule, Bsp) else own

    @property
    def given(self) -> list[int]:
        """Gradients of each step."""
        size = self.batch_size * self.n_send
        steps = range(max(self.pushes_per_epoch))
        return self.epochs * [sum(1 for rows in self.rows if rows > step * size) for step in steps]

    @property
    def groups(self) -> list[int]:
        """Workers who give something in each group of tasks: those of its first step."""
        pushes = max(self.pushes_per_epoch)
        return self.epochs * self.given[: pushes : self.group or pushes]

    def initial(self) -> Flat:
        backend = grads.create(self.spec)
        if not self.constant:
            return backend.init(SEED)
        flat = np.zeros(backend.layout.size, np.float32)
        # Where class 0 is this certain, float32 knows no other, whatever a few steps do.
        backend.layout.views(flat)["layers.0.bias"][0] = 16384
        return flat

    def partition(self, worker: int) -> Rows:
        count = self.rows[worker]
        if self.constant:
            return Rows(np.full((count, 5), worker + 1, np.float32), np.ones(count, np.int32))
        random = np.random.default_rng((SEED, worker))
        features = random.standard_normal((count, 5)).astype(np.float32)
        return Rows(features, (features.sum(axis=1) > 0).astype(np.int32))


def one_process(work: Work) -> Flat:
    """The parameters that one process gets from the same batches, by the kernels and the backend alone."""
    backend = grads.create(work.spec)
    sources = [Batches(work.partition(worker), work.batch_size, SEED, worker) for worker in range(work.workers)]
    with Descent(work.optimizer, backend.layout, work.initial()) as descent:
        for epoch, rate in enumerate(work.rates):
            descent.learning_rate = rate
            for place in range(max(work.pushes_per_epoch)):
                gradients, counts = [], []
                for source in sources:
                    first = place * work.n_send
                    stop = min(first + work.n_send, source.steps_per_epoch)
                    if first >= stop:
                        continue
                    counts.append(source.examples(first, stop))
                    gradients.append(np.zeros_like(descent.params))
                    for k in range(first, stop):
                        features, labels, key = source.batch(epoch, k)
                        batch = grads.Batch(features, labels, counts[-1], key)
                        backend.value_and_grad(descent.params, batch, out=gradients[-1], accumulate=True)
                if gradients:
                    descent.step(gradients, counts)
        return descent.params.copy()


def moved(work: Work, flat: Flat) -> NDArray[np.float32]:
    """How far the weights (5,) of class 1 have gone, of a `constant` work, in learning rates.

    A push of worker w moves them by w + 1; in rounds, all pushes of a round by their mean over its examples.
    """
    weight = grads.create(work.spec).layout.views(flat)["layers.0.weight"]
    return np.asarray(weight[:, 1] / work.rates[0])


def expected_move(work: Work) -> float:
    """What `moved` has to be, from the numbers of rows alone."""
    total = 0.0
    for place in range(max(work.pushes_per_epoch)):
        size = work.batch_size * work.n_send
        counts = [max(0, min(rows - place * size, size)) for rows in work.rows]
        if isinstance(work.rule, Bsp):
            total += sum((w + 1) * count for w, count in enumerate(counts)) / sum(counts)
        else:
            total += sum(w + 1 for w, count in enumerate(counts) if count)
    return total * work.epochs


class Training:
    """One work in one mode: its rows in the tier, its model, until it is closed."""

    def __init__(self, mode: str, ground: Ground, work: Work, **settings: Any) -> None:
        """`settings`: of this mode only, as fields of `ModeSettings`."""
        self.work = work
        self._ground = ground
        self._destination = Destination(ground.address, f"modes-{uuid.uuid4().hex[:8]}", ground.token)
        self.reports: list[WorkerReport] = []
        with self._destination.open() as tier:
            for worker in range(work.workers):
                put_partition(tier, self._destination.path(worker), work.partition(worker), "the test")
        backend = grads.create(work.spec)
        self.mode: Mode = load(mode).start(
            ModeSettings(
                address=ground.address,
                token=ground.token,
                model=self._destination.run,
                params=backend.layout.views(work.initial()),
                optimizer=work.optimizer,
                consistency=work.rule,
                **settings,
            )
        )

    def run(self, pool: Pool) -> Flat:
        """All of it; the parameters at the end."""
        work, before = self.work, self.work.rates[0]
        for epoch in range(work.epochs):
            if work.rates[epoch] != before:
                before = work.rates[epoch]
                self.mode.set_learning_rate(before)
            pushes = max(work.pushes_per_epoch)
            for last in range(work.group or pushes, pushes + (work.group or pushes), work.group or pushes):
                self.reports += self.mode.run(pool, self.tasks(epoch, last))
        return self.mode.snapshot(timeout_s=TIMEOUT_S).flat

    def tasks(self, epoch: int, last: int) -> list[WorkerTask]:
        """The tasks that go on to push `last` of an epoch; of those who have something to do in it."""
        work = self.work
        before = last - (work.group or last)
        return [
            WorkerTask(
                run=self._destination.run,
                worker=worker,
                exchange=self.mode.exchange_spec(),
                backend=work.spec,
                data=DataSpec(
                    self._ground.address,
                    self._destination.path(worker),
                    self._ground.token,
                    batch_size=work.batch_size,
                    seed=SEED,
                ),
                pushes_per_epoch=pushes,
                until_step=epoch * pushes + min(last, pushes),
                end_step=work.epochs * pushes,
                n_fetch=work.n_send,
                n_send=work.n_send,
                prefetch=work.prefetch,
                leave_after_task=isinstance(work.rule, Ssp),
                timeout_s=TIMEOUT_S,
            )
            for worker, pushes in enumerate(work.pushes_per_epoch)
            if pushes > before
        ]

    def files(self) -> list[str]:
        """What lies in the tier, but the rows."""
        with self._destination.open() as tier:
            return [each.path for each in tier.find("/") if each.kind == "file" and "/data/" not in each.path]

    def close(self) -> None:
        """Remove the model, and the rows."""
        try:
            self.mode.close()
        finally:
            with self._destination.open() as tier:
                tier.delete_prefix(f"/runs/{self._destination.run}")

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
