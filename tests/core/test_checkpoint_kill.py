"""A server that is killed within a checkpoint: nothing waits for it, nothing is lost, doubled or left behind.

Gradients are constant vectors of integers and the rate is 1, as in `test_exactly_once`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest

import coproc
from coproc import checkpoint, probe
from coproc.v1 import coproc_pb2 as pb

from .waiting import until

POINTS = [point for point in probe.POINTS if point.startswith("checkpoint.")]
# Of the tier, whose commit it is.
TIER_POINTS = ["commit.seal.after", "commit.catalog.before", "commit.catalog.after"]


class Workers:
    """Workers 0 .. count-1, each pushing its number + 1 until it is told to stop; they outlive servers."""

    def __init__(self, model, count):
        self.failures, self.stop = [], threading.Event()
        self.steps = [0] * count
        self.threads = [threading.Thread(target=self._work, args=(model, n)) for n in range(count)]
        for thread in self.threads:
            thread.start()

    def _work(self, model, number):
        try:
            with model.join(worker=number) as worker:
                while not self.stop.is_set():
                    worker.gradient(timeout_s=60)[:] = number + 1
                    worker.push(timeout_s=60)
                    self.steps[number] += 1
        except BaseException as error:
            self.failures.append(error)

    def finish(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(90)
            assert not thread.is_alive()
        assert not self.failures, self.failures
        return sum((n + 1) * steps for n, steps in enumerate(self.steps)), sum(self.steps)


def create(client, name, size=300, **settings):
    optimizer = coproc.optim.Momentum(1.0, momentum=0.0)
    return client.create_model(name, params={"w": np.zeros(size, np.float32)}, optimizer=optimizer, **settings)


def checkpoints_of(client, name):
    return [info.path for info in client.tier.list(f"/models/{name}/checkpoints")]


def check_all_whole(client, name):
    """Each file is one cut, and is restored."""
    found = checkpoints_of(client, name)
    for path in found:
        with client.tier.open(path) as file:
            facts = checkpoint.read_facts(file.data, path)
        restored = client.restore(path, name="again")
        assert (restored.snapshot().flat == -sum((w + 1) * step for w, _, step, _ in facts.ledger)).all()
        restored.delete()
        client.tier.remove(path)
    return found


def leftovers(model):
    """Files of blocks and of models on the model's first server."""
    root = Path(model.spec.home).parent.parent
    return [f for folder in ("blocks", "models") for f in (root / folder).rglob("*") if f.is_file()]


def checkpoint_until_it_dies(model, server):
    """One after the other. A client's call would ask again when the server is back, and its cut lift the one before."""
    request = pb.CheckpointRequest(name=model.name, timeout_ms=500)
    with contextlib.suppress(grpc.RpcError):
        while True:
            model._stub.Checkpoint(request, timeout=30)
    assert server.wait(timeout_s=60) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("variable", "point", "size"),
    [
        *(("COPROC_FAILPOINT", point, 300) for point in POINTS),
        ("COPROC_FAILPOINT", "checkpoint.cut.after", 50_000),  # whose passes are made in Python
        *(("TIER_FAILPOINT", point, 300) for point in TIER_POINTS),
    ],
)
def test_its_server_killed_at(name, variable, point, size):
    # Creating a model commits its description: the tier's points are hit there once before.
    with coproc.LocalCluster(environment={variable: f"{point}:3"}) as cluster:
        [server] = cluster.servers
        with coproc.connect(cluster.address) as client:
            model = create(client, name, size, shards=2)
            workers = Workers(model, 2)
            checkpoint_until_it_dies(model, server)
            del server.environment[variable]
            server.restart()
            # Further than the cut that was being made, and without the next one, which would lift it.
            goal = model.version + 100
            until(lambda: model.version > goal or workers.failures)
            last = model.checkpoint()
            total, steps = workers.finish()
            snapshot = model.snapshot()
            assert snapshot.version == steps
            assert (snapshot.flat == -total).all()
            assert last in check_all_whole(client, name)
            model.delete()
            until(lambda: not leftovers(model))
            until(lambda: client.status().servers[0].memory_used_bytes == 0)


@pytest.mark.parametrize("point", ["publish.before", "sweep.before"])
def test_the_server_of_another_shard_killed_meanwhile(name, point):
    """The cut waits for it, or gives up: both end, and the shards go on."""
    with coproc.LocalCluster(servers=2) as cluster:
        server = cluster.servers[1]
        server.environment["COPROC_FAILPOINT"] = f"{point}:40"
        server.restart()
        with coproc.connect(cluster.address) as client:
            model = create(client, name, shards=2)
            workers = Workers(model, 2)
            checkpoint_until_it_dies(model, server)
            with pytest.raises(coproc.Timeout, match="one of its servers down"):
                model.checkpoint(timeout_s=0.5)
            del server.environment["COPROC_FAILPOINT"]
            server.restart()
            last = model.checkpoint()
            total, steps = workers.finish()
            snapshot = model.snapshot()
            assert (snapshot.version, set(snapshot.flat.tolist())) == (steps, {-float(total)})
            assert last in check_all_whole(client, name)
