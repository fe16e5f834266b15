"""What every architecture has to hold, as tests to inherit; run as a program, a worker process that dies when told to.

    class TestEveryMode(ModeTests):
        @pytest.fixture(params=names())
        def mode(self, request): return request.param

        @pytest.fixture
        def ground(self, cluster, request):
            return Ground(cluster.address, spark=lambda: request.getfixturevalue("spark"))

What a mode says that it cannot, its capabilities, is skipped. Two references: one process with the same batches
(`coproc.local.Descent`), and a network whose gradient is a constant, another one for each worker, so that what was
counted twice, or not at all, shows in the sum.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from coproc import grads, optim
from coproc.consistency import Asp, Bsp, Consistency, Quorum, Ssp
from coproc.data.base import Rows
from coproc.data.batches import Batches
from coproc.errors import CoprocError, DataError
from coproc.exchange import Exchange, Pushed, open_exchange
from coproc.ingest import Destination, put_partition
from coproc.layout import Flat
from coproc.local import Descent
from coproc.modes.base import Capabilities, Mode, ModeSettings, load
from coproc.pools import processes
from coproc.pools.base import Pool
from coproc.pools.inline import InlinePool
from coproc.pools.processes import ProcessPool
from coproc.worker import DataSpec, WorkerReport, WorkerTask, never, run_worker

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
    def pool(self, name: str, deaths: Deaths | None = None, run_task: RunTask = run_worker) -> Iterator[Pool]:
        """A pool, in which workers die where `deaths` says; or an inline one, whose tasks are done by `run_task`."""
        made: Any
        if name == "inline":
            made = InlinePool(run_task=run_task if deaths is None else deaths.run_task)
        elif name == "processes":
            made = ProcessPool(3) if deaths is None else ProcessPool(3, deaths.command)
        else:
            from coproc.pools.spark import SparkPool

            assert deaths is None, "nobody can be told to die in there"
            made = SparkPool(self.spark())
        with contextlib.closing(made):
            yield made


# ---- workers that die


@dataclass(frozen=True)
class Deaths:
    """Steps of workers at which the task dies, once each."""

    folder: Path
    """Empty; says later who has died, to all processes."""

    at: Sequence[tuple[int, int, str]]
    """(worker, step, "before" or "after" its push; or "refuse", which is no death but an error of the task)."""

    @property
    def command(self) -> list[str]:
        """Of a worker process for `ProcessPool`: it is killed."""
        return [sys.executable, "-m", "coproc.testing.modes", str(self.folder), json.dumps(self.at)]

    @property
    def died(self) -> int:
        """How many so far."""
        return len(list(self.folder.iterdir()))

    def run_task(self, task: WorkerTask, *, stop: Callable[[], bool] = never) -> WorkerReport:
        """A task in this thread: an exception that nobody expects, and another attempt."""

        def die() -> None:
            raise SystemExit

        while True:
            try:
                return run_worker(task, stop=stop, open_exchange=lambda task: Mortal(task, self, die))
            except SystemExit:
                continue

    def run_killed(self, task: WorkerTask, *, stop: Callable[[], bool] = never) -> WorkerReport:
        """A task in a process of its own."""

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        return run_worker(task, stop=stop, open_exchange=lambda task: Mortal(task, self, die))

    def come(self, worker: int, step: int, when: str) -> bool:
        """Whether it is this one's turn to die; True once."""
        if (worker, step, when) not in [tuple(each) for each in self.at]:
            return False
        try:
            (self.folder / f"{worker}-{step}-{when}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Mortal:
    """A task's exchange, with the deaths that are to come."""

    def __init__(self, task: WorkerTask, deaths: Deaths, die: Callable[[], None]) -> None:
        self._exchange: Exchange = open_exchange(task.exchange, task.worker, timeout_s=task.timeout_s)
        self._worker = task.worker
        self._deaths = deaths
        self._die = die

    def push(self, *, step: int, **told: Any) -> Pushed:
        if self._deaths.come(self._worker, step, "refuse"):
            raise DataError(f"worker {self._worker} refuses step {step}")
        if self._deaths.come(self._worker, step, "before"):
            self._die()
        receipt = self._exchange.push(step=step, **told)
        if self._deaths.come(self._worker, step, "after"):
            self._die()
        return receipt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exchange, name)


def run_twice(task: WorkerTask, *, stop: Callable[[], bool] = never) -> WorkerReport:
    """Two attempts of a task at once, as with Spark's speculation; the report of one, when both are over."""
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as other:
        twin = other.submit(context.run, run_worker, task, stop=stop)
        report = run_worker(task, stop=stop)
    twin.result()
    return report


# ---- trainings


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


def capabilities(mode: str) -> Capabilities:
    found: Capabilities = load(mode).CAPABILITIES
    return found


def quickest_pool(mode: str) -> str:
    """The name of the pool that starts soonest of those the mode runs on."""
    return next(name for name in ("inline", "processes", "spark") if name in capabilities(mode).pools)


def require(mode: str, *, consistency: str = "bsp", pool: str | None = None, same_answer: bool = True) -> None:
    """Skip the test where the mode does not know this rule, or does not run there, or has an answer of its own."""
    able = capabilities(mode)
    if same_answer and not able.same_answer:
        pytest.skip(f"the mode {mode} does not give what one process gives")
    if consistency not in able.consistencies:
        pytest.skip(f"the mode {mode} is never {consistency}")
    if pool is not None and pool not in able.pools:
        pytest.skip(f"the mode {mode} does not run on the pool {pool}")


def trained(
    mode: str, ground: Ground, work: Work, pool: str | None = None, deaths: Deaths | None = None
) -> tuple[Flat, list[WorkerReport]]:
    """(parameters, reports) of a whole training, after which nothing of it is in the tier."""
    with ground.pool(pool or quickest_pool(mode), deaths) as there:
        with Training(mode, ground, work) as training:
            flat = training.run(there)
        assert training.files() == []
    return flat, training.reports


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Two ways to add the same float32 numbers differ by less, and a gradient left out by much more."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def assert_moved(work: Work, flat: Flat) -> None:
    """That each gradient of a `constant` work is in the model once."""
    np.testing.assert_allclose(moved(work, flat), np.full(5, expected_move(work)), rtol=1e-5)


SYNCHRONOUS = {
    "one": Work((10,)),
    "two": Work((10, 10)),
    "three": Work((12, 12, 12)),
    "unequal": Work((17, 2, 9)),
    "empty": Work((6, 0, 5)),
    "first-empty": Work((0, 9)),
    "sends-of-two": Work((18, 7), n_send=2),
    "groups": Work((22, 11), group=2),
    "adam": Work((10, 10), optimizer=optim.Adam(0.01), rates=(0.01, 0.005, 0.0025)),
}
CONSTANT = Work((7, 5), constant=True, optimizer=optim.SGD(0.25), rates=(0.25, 0.25, 0.25))
DEATHS = ((0, 1, "before"), (1, 2, "after"), (0, 5, "after"))


class ModeTests:
    """Inherit, and give the fixtures `mode`, a name, and `ground`, a `Ground`."""

    @pytest.mark.parametrize("case", SYNCHRONOUS)
    def test_synchronous_training_is_that_of_one_process(self, mode: str, ground: Ground, case: str) -> None:
        require(mode)
        work = SYNCHRONOUS[case]
        flat, reports = trained(mode, ground, work)
        assert_close(flat, one_process(work))
        assert sum(each.examples for report in reports for each in report.epochs) == sum(work.rows) * work.epochs

    @pytest.mark.parametrize("pool", ["processes", "spark"])
    def test_on_every_pool(self, mode: str, ground: Ground, pool: str) -> None:
        require(mode, pool=pool)
        work = SYNCHRONOUS["unequal"]
        flat, _ = trained(mode, ground, work, pool)
        assert_close(flat, one_process(work))

    @pytest.mark.parametrize(
        "changes", [{"rows": (7, 5), "group": 1}, {"rows": (12, 0, 3), "n_send": 2}], ids=["groups", "sends-of-two"]
    )
    @pytest.mark.parametrize("consistency", RULES)
    def test_each_gradient_counts_once(
        self, mode: str, ground: Ground, consistency: str, changes: Mapping[str, Any]
    ) -> None:
        require(mode, consistency=consistency)
        work = replace(CONSTANT, consistency=consistency, **changes)
        flat, _ = trained(mode, ground, work)
        assert_moved(work, flat)

    @pytest.mark.parametrize("pool", ["inline", "processes"])
    @pytest.mark.parametrize("consistency", ["bsp", "asp"])
    def test_a_task_that_dies_is_tried_again_and_counts_once(
        self, mode: str, ground: Ground, tmp_path: Path, consistency: str, pool: str
    ) -> None:
        require(mode, consistency=consistency, pool=pool)
        deaths = Deaths(tmp_path, DEATHS)
        work = replace(CONSTANT, rows=(16, 12), consistency=consistency)
        if capabilities(mode).exactly_once:
            flat, _ = trained(mode, ground, work, pool, deaths)
            assert_moved(work, flat)
            assert deaths.died == len(DEATHS)
        else:
            with pytest.raises(CoprocError, match=r"\w+ \w+ \w+"):
                trained(mode, ground, work, pool, deaths)
            assert deaths.died

    @pytest.mark.parametrize("consistency", ["bsp", "asp"])
    def test_a_task_that_runs_twice_at_once_counts_once(self, mode: str, ground: Ground, consistency: str) -> None:
        require(mode, consistency=consistency, pool="inline")
        able = capabilities(mode)
        work = replace(CONSTANT, rows=(32, 24), consistency=consistency)
        with ground.pool("inline", run_task=run_twice) as pool, Training(mode, ground, work) as training:
            try:
                flat = training.run(pool)
            except CoprocError:
                assert not (able.exactly_once and able.elastic)  # a gang may refuse it
            else:
                assert_moved(work, flat)

    def test_one_worker_that_fails_ends_all(self, mode: str, ground: Ground, tmp_path: Path) -> None:
        require(mode, pool="inline", same_answer=False)
        with pytest.raises(DataError, match="worker 1 refuses step 2"):
            trained(mode, ground, CONSTANT, deaths=Deaths(tmp_path, [(1, 2, "refuse")]))

    def test_a_stop_leaves_a_model_that_can_be_read(self, mode: str, ground: Ground) -> None:
        require(mode, same_answer=False)
        with ground.pool(quickest_pool(mode)) as pool, Training(mode, ground, CONSTANT) as training:
            tasks = training.tasks(0, 2)
            reports = training.mode.run(pool, tasks, stop=lambda: True)
            assert len(reports) < len(tasks) or any(report.stopped for report in reports)
            assert np.isfinite(training.mode.snapshot(timeout_s=TIMEOUT_S).flat).all()

    def test_what_the_driver_sees(self, mode: str, ground: Ground) -> None:
        require(mode, same_answer=False)
        work = SYNCHRONOUS["unequal"]
        with ground.pool(quickest_pool(mode)) as pool, Training(mode, ground, work) as training:
            driver = training.mode
            assert isinstance(driver, Mode)
            assert driver.capabilities == capabilities(mode)
            before = driver.snapshot(timeout_s=TIMEOUT_S)
            flat = training.run(pool)
            after = driver.snapshot(timeout_s=TIMEOUT_S)
            assert after.version > before.version
            assert after.flat.tobytes() == flat.tobytes()
            assert before.flat.tobytes() == work.initial().tobytes()  # a copy, that nothing changed
            status = driver.status()
            if status is not None:
                epochs = [each for report in training.reports for each in report.epochs]
                assert status.version == after.version
                assert status.examples_count == sum(work.rows) * work.epochs
                assert status.loss_examples_count == status.examples_count
                np.testing.assert_allclose(status.loss_sum, sum(each.loss_sum for each in epochs), rtol=1e-6)
                assert status.staleness_max == 0
            driver.close()
            driver.close()


if __name__ == "__main__":
    # A worker process as the pool's own, but for its deaths.
    told = Deaths(Path(sys.argv[1]), json.loads(sys.argv[2]))
    with mock.patch.object(processes, "run_worker", told.run_killed):
        processes.main()
