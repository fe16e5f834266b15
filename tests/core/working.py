"""Two workers that push small integers and outlive servers, and what a model is after any number of their pushes."""

from __future__ import annotations

import contextlib
import signal
import threading

import grpc
import numpy as np
import pytest

import coproc
from coproc.v1 import coproc_pb2 as pb

COUNT = 2
# Steps that each worker gives at least once it is told to finish: more than lie in its slots.
MORE = 10


class Workers:
    """Workers 0 and 1 in threads, each pushing its number + 1 until it is told to finish."""

    def __init__(self, model):
        self.failures = []
        self._lock = threading.Lock()
        self._begun, self._ends = [0] * COUNT, None
        # Where one may be far behind it ends where it is: else it would do more alone than the next failpoint bears.
        rule = model.spec.consistency
        self._together = not isinstance(rule, coproc.Asp) and not (isinstance(rule, coproc.Quorum) and rule.count == 1)
        self._threads = [threading.Thread(target=self._work, args=(model, n)) for n in range(COUNT)]
        for thread in self._threads:
            thread.start()

    def _work(self, model, number):
        try:
            with model.join(worker=number) as worker:
                while self._begins(number, worker.next_step):
                    worker.pull(timeout_s=60)
                    worker.gradient(timeout_s=60)[:] = number + 1
                    worker.push(timeout_s=60)
                worker.leave()  # or in `Ssp` the other one would wait for more
        except BaseException as error:
            self.failures.append(error)

    def _begins(self, number, step):
        with self._lock:
            self._begun[number] = step + 1
            return self._ends is None or step < self._ends[number]

    def end(self):
        """Have both end soon, at the same step where they wait for each other; the number of each."""
        with self._lock:
            begun = [max(self._begun)] * COUNT if self._together else self._begun
            self._ends = [step + MORE for step in begun]
        return self._ends

    def join(self):
        """Wait until they have."""
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive()
        assert not self.failures, self.failures


def create(client, name, consistency=None, *, size=300, **settings):
    """At rate 1, with a row of state that is there for the checkpoints' sake."""
    return client.create_model(
        name,
        params={"w": np.zeros(size, np.float32)},
        optimizer=coproc.optim.Momentum(1.0, momentum=0.0),
        consistency=consistency,
        **settings,
    )


def value_at(consistency, version, steps):
    """The one value of all parameters at a version that has so many steps of each of the two workers.

    A round of both takes 1.5 away, one of a single worker its number + 1: with both = steps[0] + steps[1] - version,
    that is (steps[0] - both) + 2 (steps[1] - both) + 1.5 both.
    """
    if isinstance(consistency, coproc.Quorum):
        assert max(steps) <= version <= sum(steps)
    elif isinstance(consistency, coproc.Bsp):
        assert [version, version] == list(steps)
    else:
        assert version == sum(steps)
    return -(1.5 * version + (steps[1] - steps[0]) / 2)


def steps_of(facts):
    """Of each worker, at the cut of a checkpoint."""
    known = {worker: step for worker, _, step, _ in facts.ledger}
    return [known.get(worker, 0) for worker in range(COUNT)]


def checkpoint_until_it_dies(model, server):
    """One after the other. A client's call would ask again when the server is back, and its cut lift the one before."""
    request = pb.CheckpointRequest(name=model.name, timeout_ms=500)
    with contextlib.suppress(grpc.RpcError):
        while True:
            model._stub.Checkpoint(request, timeout=30)


def assert_killed(server, point):
    """Wait until it is."""
    try:
        assert server.wait(timeout_s=60) == -signal.SIGKILL
    except coproc.Timeout:
        pytest.fail(f"{point} is never hit")
