"""The memory of a host is lost: its models come back from their checkpoints, and who works on them goes on."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import coproc

from .waiting import until

STEPS = 400


class Workers:
    """Far workers, as on other hosts: on a lost lease they join again, as `coproc.worker.run_worker` does."""

    def __init__(self, model, count, steps):
        self.failures, self.rejoined = [], 0
        self.threads = [threading.Thread(target=self._work, args=(model, n, steps)) for n in range(count)]
        for thread in self.threads:
            thread.start()

    def _work(self, model, number, steps):
        try:
            done = False
            while not done:
                with model.join(worker=number) as worker:
                    try:
                        while worker.next_step < steps:
                            step = worker.next_step
                            worker.pull(timeout_s=60)
                            worker.gradient()[:] = (number + 1) * (step % 7)
                            worker.push(step=step, timeout_s=60)
                        done = True
                    except coproc.LeaseExpired:
                        self.rejoined += 1
        except BaseException as error:
            self.failures.append(error)

    def finish(self):
        for thread in self.threads:
            thread.join(120)
            assert not thread.is_alive()
        assert not self.failures, self.failures


def lose_memory(cluster, model):
    """All servers at once, and what they had; they come back at their addresses."""
    roots = [Path(place.path).parents[2] for place in model.spec.shards]
    for server in cluster.servers:
        server.kill()
    for root in roots:
        shutil.rmtree(root, ignore_errors=True)
    for server in cluster.servers:
        server.restart()


@pytest.mark.parametrize(
    ("servers", "consistency", "gain"), [(1, coproc.Asp(), 3), (2, coproc.Bsp(workers=2), 1.5)], ids=["asp", "bsp"]
)
def test_a_host_is_lost_twice(tmp_path, servers, consistency, gain):
    with (
        coproc.LocalCluster(servers=servers) as cluster,
        coproc.connect(cluster.address) as near,
        coproc.connect(cluster.address, near=False) as client,
    ):
        near.tier.mount("/models/m/checkpoints", f"file://{tmp_path}", write_type="cache_through")
        model = client.create_model(
            "m",
            params={"w": np.zeros(300, np.float32)},
            optimizer=coproc.optim.Momentum(1.0, momentum=0.0),
            consistency=consistency,
            shards=servers,
        )
        epoch = model.status().epoch
        workers = Workers(model, 2, STEPS)
        until(lambda: model.version > 10 or workers.failures)
        model.checkpoint()
        for _ in range(2):  # both times back to the same cut
            lose_memory(cluster, model)
            assert until(lambda: status_unless_awaited(model), 90).epoch > epoch, "one that nobody has joined before"
            now = model.status()
            epoch = now.epoch
            until(lambda goal=now.version + 20: model.version > goal or workers.failures, 60)
        workers.finish()
        assert workers.rejoined >= 2
        snapshot = model.snapshot()
        total = gain * sum(step % 7 for step in range(STEPS))
        assert (snapshot.flat == -total).all(), "each step counts once, whatever was lost in between"
        again = client.model("m")
        assert again.spec.identity == model.spec.identity
        model.delete()
        with pytest.raises(coproc.ModelNotFound):
            client.model("m")
        assert list(tmp_path.glob("0*")), "they are their user's"


def test_a_model_without_a_checkpoint_is_lost_for_good(tmp_path):
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address, near=False) as client:
        model = client.create_model("m", params={"w": np.zeros(3, np.float32)}, optimizer=coproc.optim.SGD(1.0))
        lose_memory(cluster, model)
        with pytest.raises(coproc.ModelNotFound):
            until(lambda: status_unless_awaited(model))


def status_unless_awaited(model):
    try:
        return model.status()
    except (coproc.Unreachable, coproc.Timeout):
        return None
