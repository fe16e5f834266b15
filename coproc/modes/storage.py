"""Through file storage: the model is a file, and so is each gradient. What a shared filesystem does alone.

Each step is a job: a task reads the model's file, writes the gradient of its batch as another, and the driver reads
those, descends, and writes the model's next version (Adatao's "model in Tachyon", before their coprocessor: 2015). The
driver reads up to eight gradients in one pass with the descent; of more, a second job makes means of eight of them at a
time, and so on. In the tier, on its host, reading copies nothing and writing once; `storage_url` puts a disk or an
object store in its place.

Bytes a step of a model of K parameters and N workers: 4K in and out a worker; 4K out of the driver, and 4K in for each
gradient, or mean of eight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from coproc.errors import ConfigError
from coproc.exchange import Exchange, ExchangeSpec, Spent, Version
from coproc.layout import Flat, ParamLayout
from coproc.local import Descent
from coproc.modes.base import Capabilities, Costs, Mode, ModeSettings
from coproc.modes.lockstep import FromStep, Lockstep, Share, shares
from coproc.modes.vectors import Vectors, place_of, weighted_mean
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
)

AT_ONCE = 8
"""Gradients of one pass: as many as the kernels take at once."""


class StorageMode(Lockstep):
    """Driver face: a model's file, and the optimizer's state in this process."""

    capabilities = CAPABILITIES
    name = "storage"

    def __init__(self, settings: ModeSettings) -> None:
        """
        Raises:
            ConfigError: not synchronous; a rule of combining that needs each gradient, of more than eight workers.
            ModelExists: another run has this name. As the tier.
        """
        super().__init__(settings)
        optimizer: Optimizer = settings.optimizer
        workers = settings.consistency.workers
        if workers > AT_ONCE and type(optimizer).combined is not Optimizer.combined:
            raise ConfigError(
                f"the mode 'storage' takes means of the gradients of more than {AT_ONCE} workers, and "
                f"{optimizer.name} needs each: use {AT_ONCE} at the most"
            )
        self._place = place_of(settings, settings.storage_url)
        self._vectors = Vectors(self._place)
        self._descent = Descent(optimizer, self.layout, self.initial())
        self._closed = False
        try:
            _warm(optimizer, min(workers, AT_ONCE))
            self._vectors.make()
            self._vectors.write(_model(0), self._descent.params)
        except BaseException:
            self._descent.close()
            self._vectors.close()
            raise

    @property
    def version(self) -> int:
        return self._descent.updates

    def task_settings(self, worker: int) -> dict[str, Any]:
        return {"place": self._place, "version": self.version, "size": self.layout.size}

    def round(
        self, pool: Pool, tasks: Sequence[WorkerTask], stop: Callable[[], bool]
    ) -> tuple[list[WorkerReport], Callable[[], None]]:
        reports = self.job(pool, tasks, stop)
        return reports, lambda: self._advance(pool, shares(reports))

    def _advance(self, pool: Pool, given: Sequence[Share]) -> None:
        counted, size_bytes = self.counted, self._descent.params.nbytes
        if not given:
            return
        files = [_gradient(self.version, each.worker) for each in given]
        counts, losses = [each.examples for each in given], [each.loss for each in given]
        while len(files) > AT_ONCE:
            groups = [slice(at, at + AT_ONCE) for at in range(0, len(files), AT_ONCE)]
            means = [f"{self.version}/mean-{len(files)}-{n}" for n in range(len(groups))]
            arguments = [
                {"place": self._place, "files": files[group], "weights": counts[group], "out": mean}
                for group, mean in zip(groups, means, strict=True)
            ]
            counted.jobs_count += 1
            for spent in pool.call("coproc.modes.storage:reduce", arguments):
                counted.add(Spent(**spent))
            files, counts, losses = means, [sum(counts[group]) for group in groups], []
        self._descent.step([self._vectors.read(file) for file in files], counts, losses)
        counted.driver_in_bytes += len(files) * size_bytes
        self._vectors.write(_model(self.version), self._descent.params)
        counted.driver_out_bytes += size_bytes
        self._vectors.remove_folder(str(self.version - 1))

    def snapshot(self, *, timeout_s: float) -> Version:
        return Version(self.version, self._descent.params.copy())

    def set_learning_rate(self, learning_rate: float) -> None:
        self._descent.learning_rate = learning_rate

    def costs(self) -> Costs:
        counted = replace(self.counted, update_s=self._descent.busy_s)
        return counted if self.settings.storage_url is not None else counted.through_files()

    def close(self) -> None:
        """Remove all files. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._descent.close()
        try:
            self._vectors.remove_folder()
        finally:
            self._vectors.close()


class FileExchange(FromStep):
    """Worker face: the model's file to read, the gradient's to write. Who has no rows left reads nothing."""

    def __init__(self, settings: Mapping[str, Any], worker: int) -> None:
        super().__init__(settings["from_step"], settings["size"])
        self._vectors = Vectors(settings["place"])
        self._params: Flat | None = None
        self.version = settings["version"]
        self._worker = worker

    def pull(self, *, timeout_s: float) -> Version:
        if self._params is None:
            self._params = self._vectors.read(_model(self.version))
            self.spent.came(self._params.nbytes, self._vectors.near)
        return Version(self.version, self._params)

    def given(self, step: int, gradient: Flat, examples: int, loss: float, last: bool) -> None:
        # Of a task that is run again the same bytes, in the place of those that are there.
        self._vectors.write(_gradient(self.version, self._worker), gradient)
        self.spent.went(gradient.nbytes, self._vectors.near)

    def close(self) -> None:
        self._vectors.close()


def reduce(place: Mapping[str, Any], files: Sequence[str], weights: Sequence[int], out: str) -> dict[str, Any]:
    """The mean of some gradients, as one file; in a task. What it has spent, as `Spent`."""
    spent = Spent()
    with Vectors(place) as vectors:
        mean = weighted_mean([vectors.read(file) for file in files], weights)
        vectors.write(out, mean)
        spent.came(len(files) * mean.nbytes, vectors.near)
        spent.went(mean.nbytes, vectors.near)
    return asdict(spent)


def _model(version: int) -> str:
    """In the folder of all that is computed on this version."""
    return f"{version}/model"


def _gradient(version: int, worker: int) -> str:
    return f"{version}/gradient-{worker}"


def _warm(optimizer: Optimizer, most: int) -> None:
    """Compile ahead what descends onto gradients that cannot be written to, which are another type to the compiler."""
    layout = ParamLayout.of({"w": (5, 5), "b": (5,)})
    gradient = np.zeros(layout.size, np.float32)
    gradient.flags.writeable = False
    with Descent(optimizer, layout, gradient) as tiny:
        for members in range(1, most + 1):
            tiny.step([gradient] * members, [1] * members)


def start(settings: ModeSettings) -> Mode:
    """Write the model's first version."""
    return StorageMode(settings)


def open_exchange(spec: ExchangeSpec, worker: int, *, timeout_s: float) -> Exchange:
    """Open the model's file."""
    return FileExchange(spec.settings, worker)
