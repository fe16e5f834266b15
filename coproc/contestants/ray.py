"""A parameter server of Ray actors, as Ray's own documentation builds it; synchronous, or asynchronous.

An actor has the parameters and descends, the workers are actors with one processor and one thread each. Gradients and
parameters go through Ray's object store, where who reads them maps them. Kinder to Ray than the example: a gradient is
one vector, sums and descent are the compiled kernels of the modes, in place, and the calls of several rounds are sent
ahead, so that nobody waits for the driver.
https://docs.ray.io/en/latest/ray-core/examples/plot_parameter_server.html
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coproc.bench.ray_peers import started
from coproc.contestants.base import refuse, require_packages
from coproc.contestants.course import Course, mean_loss, require_finite
from coproc.contestants.work import Work, config_of, opened, scratch
from coproc.errors import ConfigError, CoprocError, ServerError, Timeout
from coproc.grads.base import Batch
from coproc.layout import Flat
from coproc.local import Descent
from coproc.modes.base import Costs
from coproc.pools.base import ONE_THREAD, python_path
from coproc.training.output import checksum, versions
from coproc.trials.base import Point, Run, Tell
from coproc.trials.memory import pss_bytes

if TYPE_CHECKING:
    from coproc.trials.workloads import Prepared

NEEDS = ("ray", "numba")
EXTRA = "bench"
SUMMARY = "a parameter server of Ray actors, as in Ray's documentation"

TIMEOUT_S = 330.0
# Short: sockets lie below, and a path to one has 107 bytes at the most.
PREFIX = "coproc-raydir-"
# Rounds whose calls are sent before the first of them is over.
AHEAD = 4
# Of the store: the vectors of these rounds, and of those before, which Ray frees a moment later.
ROUNDS_OF_ROOM = AHEAD + 4
# Its workers would give way to every other process, where no other contestant does.
SETTINGS = {"RAY_worker_niceness": "0"}

NOTES = (
    "A worker's pull is all that lies between two gradients: the way of its gradient, the descent, and the way of the "
    "parameters.",
    "Bytes by formula: a gradient and the parameters, through the memory of this host, each step of a worker.",
)


def check(point: Point) -> None:
    """Raises ConfigError for a point that this cannot do."""
    refuse(point, "consistency")
    if point.consistency not in ("bsp", "asp"):
        raise ConfigError(f"the contestant 'ray' can be bsp or asp, not {point.consistency}")


def run(point: Point, prepared: Prepared, tell: Tell) -> Run:
    """Train with Ray's processes, which are started and ended; blocks.

    Raises:
        CoprocError: settings, rows or a training that cannot work, or Ray's failure in a sentence.
    """
    check(point)
    require_packages("ray")
    config = config_of(point, prepared)
    tell("dealing the rows")
    with opened(config, point, prepared) as work:
        tell("starting Ray")
        vectors_bytes = 4 * work.backend_made().layout.size * (work.workers + 1)
        variables = {**SETTINGS, **ONE_THREAD, "PYTHONPATH": python_path()}
        with (
            scratch(Path(tempfile.gettempdir()), PREFIX) as directory,
            started(work.workers + 1, ROUNDS_OF_ROOM * vectors_bytes, str(directory), variables) as ray,
        ):
            try:
                return Driver(ray, work, point.consistency, tell).train()
            except ray.exceptions.GetTimeoutError as error:
                raise Timeout(f"Ray's actors have not answered in {TIMEOUT_S:.0f} s: {error}") from None
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, CoprocError):
                    raise cause from None
                raise ServerError(f"Ray failed: {' '.join(str(error).split())[-500:]}") from None


class Driver:
    """Sends the calls."""

    def __init__(self, ray: Any, work: Work, consistency: str, tell: Tell) -> None:
        self._ray, self._work, self._tell = ray, work, tell
        self._one_round = self._in_rounds if consistency == "bsp" else self._one_by_one
        backend = work.backend_made()
        self._course = Course(work, work.evaluator(backend))
        text = work.to_json()
        # While a round's sum is descended everybody waits; one by one, the others compute.
        self._server = ray.remote(num_cpus=1)(Server).remote(text, None if consistency == "bsp" else 1)
        self._workers = [ray.remote(num_cpus=1)(Worker).remote(text, number) for number in range(work.workers)]
        self._weights = self._server.get_weights.remote()
        self._version = 0
        self._samples: list[tuple[Any, ...]] = []

    def train(self) -> Run:
        """All epochs, or as many as are enough."""
        flat: Flat = self._get(self._weights)
        for epoch, rate in enumerate(self._work.rates):
            self._get(self._server.set_learning_rate.remote(rate))
            began_s = min(self._get([worker.turn.remote() for worker in self._workers]))
            staleness = self._one_round(epoch)
            self._wait(self._weights)
            ended_s = time.monotonic()
            parts = self._get([worker.told.remote() for worker in self._workers])
            samples = [(*each, staleness.get((each[0], each[1]), 0)) for part in parts for each in part]
            self._samples += samples
            flat = self._get(self._weights)
            if self._course.over(began_s, ended_s, mean_loss(samples), flat):
                break
        return self._run(flat)

    def _in_rounds(self, epoch: int) -> dict[tuple[int, int], int]:
        ahead: deque[Any] = deque()
        for k in range(self._work.steps_per_epoch):
            counts = [count for count in self._work.examples(k) if count]
            gradients = [
                worker.compute_gradients.remote(self._weights, epoch, k)
                for worker, count in zip(self._workers, self._work.examples(k), strict=True)
                if count
            ]
            self._weights = self._server.apply_gradients.remote(counts, *gradients)
            self._version += 1
            ahead.append(self._weights)
            if len(ahead) > AHEAD:
                self._wait(ahead.popleft())
            self._told(epoch, k + 1)
        return {}

    def _one_by_one(self, epoch: int) -> dict[tuple[int, int], int]:
        """Each gradient as it comes; the worker goes on with what it made."""
        staleness: dict[tuple[int, int], int] = {}
        under_way: dict[Any, tuple[int, int, int]] = {}

        def send(number: int, k: int) -> None:
            if self._work.examples(k)[number]:
                reference = self._workers[number].compute_gradients.remote(self._weights, epoch, k)
                under_way[reference] = (number, k, self._version)

        for number in range(self._work.workers):
            send(number, 0)
        done = 0
        while under_way:
            ready = self._wait(*under_way)
            number, k, version = under_way.pop(ready)
            staleness[number, epoch * self._work.steps_per_epoch + k] = self._version - version
            self._weights = self._server.apply_gradients.remote([self._work.examples(k)[number]], ready)
            self._version += 1
            send(number, k + 1)
            done += 1
            self._told(epoch, done / self._work.workers)
        return staleness

    def _told(self, epoch: int, steps: float) -> None:
        self._tell("training", epoch=epoch + 1, steps=epoch * self._work.steps_per_epoch + steps)

    def _wait(self, *references: Any) -> Any:
        """The first of them that is there."""
        ready, _ = self._ray.wait(list(references), num_returns=1, timeout=TIMEOUT_S)
        if not ready:
            raise Timeout(f"Ray's actors have not answered in {TIMEOUT_S:.0f} s")
        return ready[0]

    def _get(self, references: Any) -> Any:
        return self._ray.get(references, timeout=TIMEOUT_S)

    def _run(self, flat: Flat) -> Run:
        server_bytes, update_s = self._get(self._server.spent.remote())
        moved = len(self._samples) * flat.nbytes
        return Run(
            groups=self._course.groups,
            samples=self._samples,
            epochs=self._course.epochs,
            costs=asdict(
                Costs(
                    worker_in_bytes=moved,
                    worker_out_bytes=moved,
                    server_in_bytes=moved,
                    server_out_bytes=moved,
                    local_bytes=2 * moved,
                    update_s=update_s,
                )
            ),
            parameters=flat.size,
            version=self._version,
            checksum=checksum(flat),
            memory={
                "worker": sum(self._get([worker.memory_bytes.remote() for worker in self._workers])),
                "server": server_bytes,
            },
            notes=[*NOTES, *self._course.notes],
            versions={**versions(), "ray": str(self._ray.__version__)},
        )


class Server:
    """The actor that has the parameters."""

    def __init__(self, work: str, threads: int | None) -> None:
        job = Work.from_json(work)
        backend = job.backend_made()
        self._descent = Descent(job.optimizer_made(), backend.layout, backend.init(job.seed), threads=threads)
        self._descent.warm(job.workers)

    def get_weights(self) -> Flat:
        return self._descent.params

    def set_learning_rate(self, rate: float) -> None:
        self._descent.learning_rate = rate

    def apply_gradients(self, counts: Sequence[int], *gradients: Flat) -> Flat:
        """One update with the mean of the gradients, weighted by rows."""
        self._descent.step(gradients, counts)
        return self._descent.params

    def spent(self) -> tuple[int, float]:
        """(bytes of memory, seconds in updates)."""
        return pss_bytes(os.getpid()), self._descent.busy_s


class Worker:
    """An actor that computes gradients."""

    def __init__(self, work: str, number: int) -> None:
        self._work, self._number = Work.from_json(work), number
        self._backend = self._work.backend_made()
        self._source = self._work.batches(number)
        self._gradient = np.zeros(self._backend.layout.size, np.float32)
        self._samples: list[tuple[Any, ...]] = []
        self._turned_s = 0.0

    def turn(self) -> float:
        """An epoch begins: when."""
        self._turned_s = time.monotonic()
        return self._turned_s

    def compute_gradients(self, weights: Flat, epoch: int, k: int) -> Flat:
        """The gradient of a batch."""
        began_s = time.monotonic()
        features, labels, key = self._source.batch(epoch, k)
        count = len(features)
        loss = self._backend.value_and_grad(weights, Batch(features, labels, count, key), out=self._gradient)
        require_finite(loss, epoch)
        ended_s, step = time.monotonic(), epoch * self._work.steps_per_epoch + k
        pull_s, compute_s = began_s - self._turned_s, ended_s - began_s
        self._samples.append((self._number, step, self._turned_s, pull_s, compute_s, 0.0, count, loss))
        self._turned_s = ended_s
        return self._gradient

    def told(self) -> list[tuple[Any, ...]]:
        """Samples, without their staleness, since the last call."""
        samples, self._samples = self._samples, []
        return samples

    def memory_bytes(self) -> int:
        return pss_bytes(os.getpid())
