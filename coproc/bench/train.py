"""train: what exchanging costs a Spark training, and what executor time it leaves to others.

*examples/s*: the 784-1024-1024-10 network on handwritten digits, two workers as Spark tasks, synchronous, Adam;
against the same worker loop in the same tasks without any exchange: parameters that never change, gradients that go
nowhere. In turns, a job of one epoch each, as a training's groups are by default.

*freed*: a training with one worker fewer than there are task slots, and a second job of short tasks that only count:
the share of all executor time that the second job got, where a gang of tasks on all slots would leave it none.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import coproc
from coproc import grads, optim
from coproc.bench.base import Options, Result, speed_ratio
from coproc.exchange import ExchangeSpec, Spent
from coproc.ingest import Destination, Ingested, ingest_table
from coproc.modes.base import ModeSettings, load
from coproc.near import Receipt
from coproc.tasks import DataSpec, WorkerReport, WorkerTask
from coproc.worker import run_worker

if TYPE_CHECKING:
    import pyarrow as pa

    from coproc.pools.spark import SparkPool

NAME = "train"

WORKERS = 2
BATCH_SIZES = (128, 512)
OF_GRADIENTS_AT_LEAST = {128: 0.85}
DIGITS = Path("../shared/data/mnist_train.parquet")
COUNT_TASK_S = 0.05

COPROC, ALONE, FREED = "coproc", "gradients only", "second job"

Flat = NDArray[np.float32]


@dataclass
class Alone:
    """An exchange with nobody: one version for ever, gradients into memory of this process."""

    params: Flat
    out: Flat
    next_step: int = 0
    version: int = 0
    spent: Spent = field(default_factory=Spent)

    @property
    def flat(self) -> Flat:
        return self.params

    def pull(self, *, timeout_s: float) -> Alone:
        return self

    def gradient(self, *, timeout_s: float) -> Flat:
        return self.out

    def push(self, *, step: int, examples: int, loss: float, timeout_s: float, last: bool) -> Receipt:
        self.next_step = step + 1
        return Receipt(step, False, 0)

    def skip(self, *, step: int, timeout_s: float) -> None:
        self.next_step = step + 1

    def leave(self) -> None:
        """Nobody to leave."""

    def close(self) -> None:
        """Nothing to close."""

    abort = close


def alone(task: WorkerTask) -> Alone:
    """The exchange of a task that computes gradients only, from the step where its group begins."""
    backend = grads.create(task.backend)
    params = backend.init(0)
    return Alone(params, np.empty_like(params), int(task.exchange.settings["from_step"]))


def run(options: Options) -> list[Result]:
    """All of it; about two minutes with real Spark."""
    from coproc.pools.session import LocalSpark
    from coproc.pools.spark import SparkPool

    hidden = (64,) if options.quick else (1024, 1024)
    rounds = 2 if options.quick else max(5, options.rounds // 2)
    results: list[Result] = []
    with coproc.LocalCluster() as cluster, contextlib.closing(LocalSpark(WORKERS)) as spark:
        pool = SparkPool(spark.session)
        data, origin = _data(options)
        destination = Destination(cluster.address, "bench")
        ingested = ingest_table(
            data, destination, partitions_count=WORKERS, features="features", label="label", seed=options.seed
        )
        backend = grads.create(
            {"backend": "mlp", "inputs": ingested.width, "hidden": list(hidden), "outputs": ingested.classes}
        )
        for batch_size in BATCH_SIZES:
            with _Training(cluster.address, backend, ingested, batch_size, WORKERS) as training:
                taken: dict[str, list[float]] = {COPROC: [], ALONE: []}
                for turn in range(rounds + 1):
                    for name in taken:
                        seconds = training.group(pool, name)
                        if turn:
                            taken[name].append(seconds)
            case = f"{origin}, {backend.layout.size / 1e6:.3g} M, batch {batch_size}"
            limit = None if options.quick else OF_GRADIENTS_AT_LEAST.get(batch_size)
            ratio = speed_ratio(taken[COPROC], taken[ALONE], ALONE, at_least=limit)
            for name, times in taken.items():
                rates = tuple(training.examples / seconds for seconds in times)
                results.append(Result(NAME, case, name, "examples/s", rates, (ratio,) if name == COPROC else ()))
        pushes, turns = (30, 2) if options.quick else (800, 3)
        shares = _freed(cluster.address, backend, ingested, pool, pushes, turns)
        results.append(Result(NAME, f"{WORKERS - 1} worker on {WORKERS} slots", FREED, "of executor time", shares))
    return results


def _data(options: Options) -> tuple[Any, str]:
    """Real digits where they are; else rows of the same shape from a fixed random teacher."""
    if DIGITS.exists() and not options.quick:
        return DIGITS, "MNIST"
    import pyarrow as pa

    rng = np.random.default_rng(options.seed)
    features = rng.integers(0, 256, (4096, 784), np.uint8)
    labels = (features.astype(np.float32) @ rng.standard_normal((784, 10)).astype(np.float32)).argmax(1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), 784)
    return pa.table({"features": column, "label": pa.array(labels)}), "random teacher"


class _Training:
    """A model and the tasks of its groups."""

    def __init__(
        self, address: str, backend: grads.GradientBackend, ingested: Ingested, batch_size: int, workers: int
    ) -> None:
        self._backend = backend
        self._ingested = ingested
        self._batch_size = batch_size
        self._workers = workers
        self._epoch = min(part.rows for part in ingested.partitions) // batch_size
        """Steps of an epoch, which is a group by default: whole batches only, so that every push is the same work."""
        self.examples = self._epoch * batch_size * workers
        self._step = 0
        self._mode = load("coproc").start(
            ModeSettings(
                address=address,
                token=None,
                model=f"bench-{batch_size}-{workers}",
                params=backend.layout.views(backend.init(0)),
                optimizer=optim.Adam(),
                consistency=coproc.Bsp(workers=workers),
            )
        )

    def tasks(self, pushes: int) -> list[WorkerTask]:
        """The next group of every worker."""
        return [
            WorkerTask(
                run="bench",
                worker=worker,
                exchange=self._mode.exchange_spec(),
                backend=self._backend.spec(),
                data=DataSpec(
                    self._ingested.destination.address,
                    self._ingested.destination.path(worker),
                    batch_size=self._batch_size,
                    scale=255.0,
                ),
                pushes_per_epoch=self._epoch,
                until_step=self._step + pushes,
                end_step=1 << 40,
            )
            for worker in range(self._workers)
        ]

    def group(self, pool: SparkPool, contestant: str) -> float:
        """Seconds of the slowest worker's loop for one group."""
        tasks = self.tasks(self._epoch)
        if contestant == ALONE:
            spec = ExchangeSpec("alone", {"from_step": self._step})
            reports = _run_alone(pool, [replace(task, exchange=spec) for task in tasks])
        else:
            reports = pool.run(tasks)
            self._step += self._epoch
        return max(report.wall_s for report in reports)

    def __enter__(self) -> _Training:
        return self

    def __exit__(self, *exception: object) -> None:
        self._mode.close()


def _run_alone(pool: SparkPool, tasks: list[WorkerTask]) -> list[WorkerReport]:
    texts = [task.to_json() for task in tasks]

    def body(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            for number in batch.column(0).to_pylist():
                report = run_worker(WorkerTask.from_json(texts[number]), open_exchange=alone)
                yield pa.RecordBatch.from_pydict({"report": [report.to_json()]})

    frame = pool.session.range(0, len(texts), 1, numPartitions=len(texts))
    rows = pool.map_in_arrow(frame, body, "report string")
    return [WorkerReport.from_json(row["report"]) for row in rows]


def _freed(
    address: str, backend: grads.GradientBackend, ingested: Ingested, pool: SparkPool, pushes: int, turns: int
) -> tuple[float, ...]:
    """Shares of all executor time that short tasks get beside a training on all slots but one."""
    shares = []
    for _ in range(turns):
        with _Training(address, backend, ingested, BATCH_SIZES[0], WORKERS - 1) as training:
            tasks = training.tasks(pushes)
            ended = threading.Event()
            worked: list[float] = []
            second = threading.Thread(target=_keep_counting, args=(pool, ended, worked), daemon=True)
            begun = time.monotonic()
            second.start()
            try:
                pool.run(tasks)
            finally:
                wall_s = time.monotonic() - begun
                ended.set()
                second.join(60)
            shares.append(sum(worked) / (wall_s * WORKERS))
    return tuple(shares)


def _keep_counting(pool: SparkPool, ended: threading.Event, worked: list[float]) -> None:
    """Jobs of short tasks, one after the other, until `ended`; the seconds that tasks of whole jobs worked."""
    count: Callable[..., Any] = _count
    while not ended.is_set():
        rows = pool.map_in_arrow(pool.session.range(0, 8, 1, numPartitions=8), count, "worked_s double")
        if not ended.is_set():
            worked.extend(row["worked_s"] for row in rows)


def _count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    for _ in batches:
        begun = time.monotonic()
        while time.monotonic() - begun < COUNT_TASK_S:
            pass
        yield pa.RecordBatch.from_pydict({"worked_s": [time.monotonic() - begun]})
