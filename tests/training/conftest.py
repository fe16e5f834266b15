"""A model in this process's memory, with the faces of a real one: what worker-loop tests compare against.

Simple on purpose, and slower than anything real: one lock, copies everywhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict, deque
from dataclasses import dataclass

import numpy as np
import pytest

from coproc.errors import LeaseExpired, PushRejected, Timeout
from coproc.exchange import Spent
from coproc.ingest import Destination
from coproc.pools.session import LocalSpark
from coproc.pools.spark import SparkPool


@dataclass(frozen=True)
class FakeSnapshot:
    version: int
    flat: np.ndarray


@dataclass(frozen=True)
class FakeReceipt:
    step: int
    duplicate: bool
    version_read: int


class FakeModel:
    """Plain SGD; `bsp_workers` > 0 closes rounds weighted by examples, else every push is descended."""

    def __init__(self, params: np.ndarray, learning_rate: float = 0.1, bsp_workers: int = 0) -> None:
        self.params = params.astype(np.float32).copy()
        self.learning_rate = learning_rate
        self.bsp_workers = bsp_workers
        self.version = 0
        self.next_step: dict[int, int] = {}
        self.left: set[int] = set()
        self.joins: list[int] = []
        self.calls: list[tuple] = []
        self.lasts: list[bool] = []
        """Of each push, whether it was said to be the last."""
        self.changed = threading.Condition()
        # Of each worker what it has given and no round has taken yet: several, where it skips.
        self._given: dict[int, deque[tuple[int, np.ndarray | None]]] = defaultdict(deque)

    def join(self, worker: int) -> FakeExchange:
        with self.changed:
            self.joins.append(worker)
            self.left.discard(worker)
            return FakeExchange(self, worker)

    def commit(self, worker: int, step: int, examples: int, gradient: np.ndarray | None) -> bool:
        with self.changed:
            expected = self.next_step.get(worker, 0)
            if step < expected:
                return False
            assert step == expected, f"worker {worker} pushed {step}, {expected} was due"
            self.next_step[worker] = step + 1
            self.calls.append((worker, step, examples))
            if not self.bsp_workers:
                if gradient is not None:
                    self.params -= np.float32(self.learning_rate) * gradient
                    self.version += 1
            else:
                self._given[worker].append((examples, gradient))
                self.close_rounds()
            self.changed.notify_all()
            return True

    def close_rounds(self) -> None:
        while any(self._given.values()) and all(
            self._given[worker] or worker in self.left for worker in range(self.bsp_workers)
        ):
            taken = [self._given[w].popleft() for w in range(self.bsp_workers) if self._given[w]]
            given = [(examples, gradient) for examples, gradient in taken if gradient is not None]
            total = sum(examples for examples, _ in given)
            if total:
                mean = sum(np.float64(examples) / total * g for examples, g in given)
                self.params -= (self.learning_rate * mean).astype(np.float32)
            self.version += 1
            self.changed.notify_all()


class FakeExchange:
    """The worker face. A pulled view is poisoned by the next push, as a recycled buffer would be."""

    def __init__(self, model: FakeModel, worker: int) -> None:
        self.model = model
        self.worker = worker
        self.closed = self.aborted = False
        self.spent = Spent()
        self.expire_at: int | None = None
        self._slot = np.full(model.params.shape, np.nan, np.float32)
        self._view: np.ndarray | None = None
        self._read = 0

    @property
    def next_step(self) -> int:
        return self.model.next_step.get(self.worker, 0)

    @property
    def version(self) -> int:
        return self.model.version

    def pull(self, *, timeout_s: float) -> FakeSnapshot:
        model = self.model
        deadline = time.monotonic() + timeout_s
        with model.changed:
            while model.bsp_workers and model.version < self.next_step:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise Timeout(f"version {self.next_step} is not there")
                model.changed.wait(left_s)
            self._view = model.params.copy()
            self._read = model.version
            self.model.calls.append((self.worker, "pull", self._read))
            self.spent.came(self._view.nbytes, local=True)
            return FakeSnapshot(self._read, self._view)

    def gradient(self, *, timeout_s: float) -> np.ndarray:
        return self._slot

    def push(self, *, step: int, examples: int, loss: float, timeout_s: float, last: bool) -> FakeReceipt:
        if self.expire_at == step:
            raise LeaseExpired("taken back")
        if not np.isfinite(self._slot).all():
            raise PushRejected("not finite")
        taken = self.model.commit(self.worker, step, examples, self._slot.copy())
        self.model.lasts.append(last)
        self.spent.went(self._slot.nbytes)
        self._slot.fill(np.nan)
        if self._view is not None:
            self._view.fill(np.nan)
        return FakeReceipt(step, not taken, self._read)

    def skip(self, *, step: int, timeout_s: float) -> None:
        self.model.commit(self.worker, step, 0, None)

    def leave(self) -> None:
        with self.model.changed:
            self.model.left.add(self.worker)
            self.model.close_rounds()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def fake_model():
    """The class of a model in memory: `fake_model(params, bsp_workers=2)`."""
    return FakeModel


# In a process of its own: a server's threads come and go with its calls.
SERVE_TIER = """
import sys
from pathlib import Path
from storage_tier.server import TierServer
from storage_tier.tier import Tier

with Tier(Path(sys.argv[1]), memory_bytes=256 << 20) as tier, TierServer(tier) as server:
    print(server.start(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def tier_address():
    """Address of a tier in a process and a directory of its own."""
    directory = tempfile.mkdtemp(prefix=f"coproc-test-{os.getpid()}-", dir="/dev/shm")
    with subprocess.Popen(
        [sys.executable, "-c", SERVE_TIER, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield f"coproc://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()
        assert process.wait(30) == 0
    shutil.rmtree(directory)


@pytest.fixture
def destination(tier_address):
    """Where a test's run puts its partitions."""
    return Destination(tier_address, f"test-{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def spark():
    """One embedded Spark with 2 task slots."""
    local = LocalSpark(2, memory="1g")
    # The first job opens connections that the session keeps: they are the fixture's, not the first test's.
    SparkPool(local.session).map_in_arrow(local.session.range(2), lambda batches: batches, "id long")
    yield local.session
    local.close()
