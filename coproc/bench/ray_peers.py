"""The synchronous parameter server of Ray's documentation, for who measures beside it; Ray is loaded only if used.

An actor has the parameters and descends, two more are workers. Ours is kinder to Ray than the example: gradients are
ready, the sum and the descent are numpy in place, nothing is stacked, and all calls of a round are sent at once.
https://docs.ray.io/en/latest/ray-core/examples/plot_parameter_server.html
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Two gradients and the weights of a round, and those of the rounds before it, which Ray frees a moment later.
_ROUNDS_OF_ROOM = 6
_LEAST_ROOM_BYTES = 128 << 20
_TIMEOUT_S = 120.0
# It would tell its makers of this run.
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0"}


def is_installed() -> bool:
    """Whether Ray can be imported."""
    return importlib.util.find_spec("ray") is not None


@contextlib.contextmanager
def started(
    processors: int, room_bytes: int, directory: str, variables: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """The module, with Ray's processes below `directory`; all of them are gone afterwards.

    Args:
        processors: actors of one processor each.
        room_bytes: of the object store.
        variables: of the processes' environment, besides.
    """
    import ray

    settings = {**_SETTINGS, **(variables or {})}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        ray.init(
            num_cpus=processors,
            object_store_memory=max(_LEAST_ROOM_BYTES, room_bytes),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=directory,
        )
        yield ray
    finally:
        ray.shutdown()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def parameter_server(size: int, workers: int = 2) -> Iterator[RayRounds]:
    """A server of `size` parameters and its workers; all of it is gone afterwards."""
    room_bytes = _ROUNDS_OF_ROOM * (workers + 1) * 4 * size
    with (
        tempfile.TemporaryDirectory(prefix="coproc-ray-") as directory,
        started(workers + 1, room_bytes, directory) as ray,
    ):
        yield RayRounds(ray, size, workers)


class RayRounds:
    """Rounds of one server and its workers, with the learning rate and the gradients of `coproc.bench.peers`."""

    def __init__(self, ray: Any, size: int, workers: int) -> None:
        self._get = ray.get
        self._server = ray.remote(_Server).remote(size)
        self._workers = [ray.remote(_Worker).remote(size) for _ in range(workers)]
        self._weights = self._server.get_weights.remote()

    def round(self) -> list[list[int]]:
        """All workers give their gradient and get the new weights: (gradient exists, weights there) in ns, of each."""
        gradients = [worker.compute_gradients.remote(self._weights) for worker in self._workers]
        self._weights = self._server.apply_gradients.remote(*gradients)
        stamps: list[list[int]] = self._get(
            [worker.receive.remote(self._weights) for worker in self._workers], timeout=_TIMEOUT_S
        )
        return stamps

    def weights(self) -> NDArray[np.float32]:
        """The newest weights (size,)."""
        weights: NDArray[np.float32] = self._get(self._weights, timeout=_TIMEOUT_S)
        return weights


class _Server:
    def __init__(self, size: int) -> None:
        self.weights = np.zeros(size, np.float32)
        self.summed = np.empty(size, np.float32)

    def get_weights(self) -> NDArray[np.float32]:
        return self.weights

    def apply_gradients(self, *gradients: NDArray[np.float32]) -> NDArray[np.float32]:
        """weights -= learning rate * mean of the gradients."""
        np.add(gradients[0], gradients[1], out=self.summed)
        for gradient in gradients[2:]:
            self.summed += gradient
        self.summed *= np.float32(1e-3 / len(gradients))
        self.weights -= self.summed
        return self.weights


class _Worker:
    def __init__(self, size: int) -> None:
        self.gradient = np.full(size, 1e-3, np.float32)
        self.begun_ns = 0

    def compute_gradients(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        self.begun_ns = time.monotonic_ns()
        return self.gradient

    def receive(self, weights: NDArray[np.float32]) -> list[int]:
        return [self.begun_ns, time.monotonic_ns()]
