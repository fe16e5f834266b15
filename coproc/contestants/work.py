"""The work of a point as plain values: the same rows, batches, rates and measures as the modes have.

The rows are cut by the ingest itself, into files in this host's memory that the processes of a contestant map.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from coproc import grads, optim
from coproc.cluster import own, remove_abandoned
from coproc.data.batches import Batches
from coproc.data.partition import Partition, encode
from coproc.data.rows import plan_columns, read
from coproc.errors import CoprocError, OutOfMemory
from coproc.grads.base import GradientBackend
from coproc.ingest import Destination, Ingested, ingest_table
from coproc.layout import Flat
from coproc.pools.base import failure_in, failure_text
from coproc.training.config import TrainConfig
from coproc.training.measuring import SAMPLE_ROWS
from coproc.training.plan import make_plan
from coproc.trials.base import Point

if TYPE_CHECKING:
    from coproc.trials.workloads import Prepared

# Where the tier of a training has them, too.
_PARENT = Path("/dev/shm")
_PREFIX = "coproc-contestant-"


@dataclass(frozen=True)
class Work:
    """A training as plain values, which travel as JSON to the processes that do it."""

    folder: str
    """Has the rows; on this host."""

    backend: Mapping[str, Any]
    """Spec of the gradient backend."""

    rows: Sequence[int]
    """Of each worker."""

    batch_size: int
    seed: int
    scale: float
    optimizer: Mapping[str, Any]
    rates: Sequence[float]
    """The learning rate of each epoch."""

    target_loss: float | None
    target_accuracy: float | None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))

    @property
    def workers(self) -> int:
        return len(self.rows)

    @property
    def steps_per_epoch(self) -> int:
        """Of the worker with the most rows."""
        return -(-max(self.rows) // self.batch_size)

    def examples(self, step: int) -> list[int]:
        """Rows of each worker's batch at this step of an epoch; 0 for one that is through."""
        first = step * self.batch_size
        return [max(0, min(rows - first, self.batch_size)) for rows in self.rows]

    def backend_made(self) -> GradientBackend:
        return grads.create(self.backend)

    def optimizer_made(self) -> optim.Optimizer:
        return optim.from_config(self.optimizer)

    def batches(self, worker: int) -> Batches:
        """The batches that this worker has in every mode, over mapped rows."""
        return Batches(_Files(self.folder).partition(str(worker)), self.batch_size, self.seed, worker, self.scale)

    def evaluator(self, backend: GradientBackend) -> Callable[[Flat], dict[str, float]]:
        """What a training measures of a version, on the rows that it measures it on."""
        rows = _Files(self.folder).partition("test")
        return lambda flat: backend.evaluate(flat, rows.features, rows.labels, scale=self.scale)

    def progress(self) -> NDArray[np.float64]:
        """[epoch (1 the first), steps done, loss of the last batch], shared with whoever asked for the work."""
        return np.memmap(Path(self.folder) / "progress", np.float64, "r+", shape=(3,))

    def fail(self, error: BaseException) -> None:
        """Leave word of what ends this process; of several the first is kept."""
        with contextlib.suppress(FileExistsError), open(Path(self.folder) / "failure", "x") as file:
            file.write(failure_text(error))

    def failure(self) -> CoprocError | None:
        """What a process has left, if one has."""
        path = Path(self.folder) / "failure"
        return failure_in(path.read_text()) if path.exists() else None

    def enough(self, measured: Mapping[str, float]) -> bool:
        """Whether what was measured reaches all targets, of which there is one."""
        loss, accuracy = self.target_loss, self.target_accuracy
        return not (loss is None and accuracy is None) and (
            (loss is None or measured.get("loss", math.inf) <= loss)
            and (accuracy is None or measured.get("accuracy", 0.0) >= accuracy)
        )


def config_of(point: Point, prepared: Prepared, workers: int | None = None) -> TrainConfig:
    """The settings that a mode would train this point with.

    Args:
        workers: among whom the rows are dealt; None: the point's.

    Raises:
        ConfigError: settings that cannot work.
    """
    return TrainConfig(
        features=prepared.features,
        label=prepared.label,
        hidden=prepared.hidden if point.hidden is None else point.hidden,
        loss=prepared.loss,
        epochs=point.epochs,
        batch_size=point.batch_size,
        workers=point.workers if workers is None else workers,
        optimizer=point.optimizer,
        learning_rate=point.learning_rate,
        schedule=point.schedule,
        scale=prepared.scale,
        seed=point.seed,
        mode=point.contestant,
    )


@contextlib.contextmanager
def opened(config: TrainConfig, point: Point, prepared: Prepared) -> Iterator[Work]:
    """The work of a point, its rows in files of this host's memory until the end.

    Raises:
        ConfigError, DataError: settings or data that cannot work, as `coproc.training.train` says it.
        OutOfMemory: no room for the rows.
    """
    with scratch(_PARENT, _PREFIX) as folder:
        files = _Files(str(folder))
        ingested = ingest_table(
            prepared.train,
            _Cut(str(folder), point.id),
            partitions_count=config.workers,
            features=config.features,
            label=config.label,
            kind=config.kind,
            seed=config.seed,
        )
        files.put("test", *encode(*_measured_rows(config, prepared, ingested, files)))
        plan = make_plan(config, ingested, "contestant")
        (folder / "progress").write_bytes(bytes(24))
        yield Work(
            folder=str(folder),
            backend=plan.backend.spec(),
            rows=list(plan.partition_rows),
            batch_size=config.batch_size,
            seed=config.seed,
            scale=plan.scale,
            optimizer=config.optimizer_rule().to_config(),
            rates=[config.rate_of(epoch) for epoch in range(config.epochs)],
            target_loss=point.target_loss,
            target_accuracy=point.target_accuracy,
        )


@contextlib.contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder, removed at the end; and before it those that killed processes have left."""
    remove_abandoned(parent, prefix)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent))
    owner = own(folder)
    try:
        yield folder
    finally:
        # What a process that is just ending writes in there, the next one removes.
        shutil.rmtree(folder, ignore_errors=True)
        os.close(owner)


def _measured_rows(config: TrainConfig, prepared: Prepared, ingested: Ingested, files: _Files) -> tuple[Any, Any]:
    """(features, labels) as `coproc.training.measuring` takes them."""
    if prepared.test is None:
        fullest = files.partition(str(max(ingested.partitions, key=lambda part: part.rows).partition))
        return fullest.features[:SAMPLE_ROWS], fullest.labels[:SAMPLE_ROWS]
    columns = plan_columns(
        prepared.test.schema, config.features, config.label, config.kind, ingested.classes, "the test data"
    )
    columns = replace(columns, classes=ingested.classes, width=ingested.width)
    rows = read(prepared.test.to_batches(), columns, "the test data")
    return rows.features, rows.labels


class _Files:
    """Partitions as files of a folder; what the ingest needs of a tier."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def put(self, name: str, buffers: Sequence[memoryview], metadata: Mapping[str, Any]) -> None:
        """Write a file. Raises OutOfMemory where it has no room."""
        path = self._folder / name
        try:
            with open(path, "xb") as file:
                file.writelines(buffers)
            path.with_suffix(".json").write_text(json.dumps(dict(metadata)))
        except OSError as error:
            raise OutOfMemory(f"the rows do not fit into {self._folder.parent}: {error.strerror}") from None

    def partition(self, name: str) -> Partition:
        """The rows of a file, mapped: they stay mapped as long as the arrays live."""
        metadata = json.loads((self._folder / f"{name}.json").read_text())
        with open(self._folder / name, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if metadata["size_bytes"] else b""
        return Partition.open(mapped, metadata)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is open."""


class _Cut(Destination):
    """The folder where the ingest would have a tier."""

    def path(self, partition: int) -> str:
        return str(partition)

    def open(self) -> Any:
        return _Files(self.address)
