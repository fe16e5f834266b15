"""The ceiling: one process with one thread, that gives its gradients to nobody.

The gradient backend, the batches and the kernels of the modes, in a plain process as a pool starts them, with one
thread of BLAS as in a Spark task. All rows are one partition, and a step is one batch: N workers that exchanged for
nothing would be N times as fast. It has no use for the settings of an exchange.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from coproc.contestants.base import refuse, require_packages
from coproc.contestants.course import Course, mean_loss, require_finite, run_of, watched
from coproc.contestants.work import Work, config_of, opened
from coproc.grads.base import Batch
from coproc.local import Descent
from coproc.modes.base import Costs
from coproc.pools.processes import ProcessPool
from coproc.training.output import checksum, versions
from coproc.trials.base import Point, Run, Tell

if TYPE_CHECKING:
    from coproc.trials.workloads import Prepared

NEEDS = ("numba",)
EXTRA = "server"
SUMMARY = "one process, one thread, no exchange: the ceiling of a worker"

NOTE = "One process whatever the number of workers. Its push is the descent."


def check(point: Point) -> None:
    """Raises ConfigError for settings that one process has no use for. What workers agree on it fulfils alone."""
    refuse(point, "consistency")


def run(point: Point, prepared: Prepared, tell: Tell) -> Run:
    """Train in a process of its own; blocks.

    Raises:
        CoprocError: settings, rows or a training that cannot work.
    """
    check(point)
    require_packages("single")
    config = config_of(point, prepared, workers=1)
    tell("dealing the rows")
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(opened(config, point, prepared))
        pool = stack.enter_context(contextlib.closing(ProcessPool(1)))
        tell("starting a process")
        stack.enter_context(watched(work, tell))
        (told,) = pool.call(f"{__name__}:train", [{"work": work.to_json()}])
    return run_of({**told, "versions": versions()})


def train(work: str) -> dict[str, Any]:
    """All epochs of a work, in this thread; what `Run` has to know of them, as JSON values."""
    job = Work.from_json(work)
    backend, source = job.backend_made(), job.batches(0)
    progress = job.progress()
    course = Course(job, job.evaluator(backend))
    samples: list[tuple[Any, ...]] = []
    with Descent(job.optimizer_made(), backend.layout, backend.init(job.seed), threads=1) as descent:
        descent.warm(1)
        gradient = np.zeros_like(descent.params)
        for epoch, rate in enumerate(job.rates):
            descent.learning_rate = rate
            first, began_s = len(samples), time.monotonic()
            ended_s = began_s
            for features, labels, key in source.epoch(epoch):
                count = len(features)
                loss = backend.value_and_grad(descent.params, Batch(features, labels, count, key), out=gradient)
                require_finite(loss, epoch)
                computed_s = time.monotonic()
                descent.step([gradient], [count], [loss])
                turned_s, ended_s = ended_s, time.monotonic()
                compute_s, push_s = computed_s - turned_s, ended_s - computed_s
                progress[:] = epoch + 1, len(samples) + 1, loss
                samples.append((0, len(samples), turned_s, 0.0, compute_s, push_s, count, loss, 0))
            if course.over(began_s, ended_s, mean_loss(samples[first:]), descent.params):
                break
        return {
            "groups": course.groups,
            "samples": samples,
            "epochs": course.epochs,
            "costs": asdict(Costs(update_s=descent.busy_s)),
            "parameters": backend.layout.size,
            "version": descent.updates,
            "checksum": checksum(descent.params),
            "notes": [NOTE, *course.notes],
        }
