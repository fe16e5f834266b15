"""A model that loses its memory in the middle of a group: tasks that were over run again."""

from __future__ import annotations

import select
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import coproc
from coproc.modes.base import ModeSettings, load
from coproc.tasks import WorkerReport
from coproc.training import TrainConfig, train

SIZE, STEPS = 100, 6


def report(worker, step, stopped):
    return WorkerReport(worker=worker, first_step=0, next_step=step, epochs=(), stopped=stopped, wall_s=0.0)


class Pool:
    """Tasks are numbers of workers, who push from where the model says; the first group is hit by `lose`."""

    name, slots = "inline", None

    def __init__(self, address, lose):
        self.address = address
        self.lose = lose
        self.groups = 0

    def run(self, tasks, *, stop):
        self.groups += 1
        reports = []
        with coproc.connect(self.address, near=False) as client:
            for worker in tasks:
                # The second of the first group is killed on its way, and everything that it and the first had pushed.
                until = STEPS // 2 if self.groups == 1 and worker else STEPS
                with client.model("m").join(worker) as attempt:
                    while attempt.next_step < until:
                        attempt.gradient()[:] = 1 + worker
                        attempt.push()
                reports.append(report(worker, until, False))
        if self.groups == 1:
            self.lose()
            deadline = time.monotonic() + 60
            while not stop():
                assert time.monotonic() < deadline, "the group is told that its model went back"
            reports[-1] = report(1, STEPS // 2, True)
        return reports


@pytest.mark.parametrize("checkpoint_after", [0, 2])
def test_what_ended_before_is_done_again(tmp_path, checkpoint_after):
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        client.tier.mount("/models/m/checkpoints", f"file://{tmp_path}", write_type="cache_through")
        settings = ModeSettings(
            address=cluster.address,
            token=None,
            model="m",
            params={"w": np.zeros(SIZE, np.float32)},
            optimizer=coproc.optim.SGD(1.0),
            consistency=coproc.Asp(),
        )
        mode = load("coproc").start(settings)
        [server] = cluster.servers
        with client.model("m").join(0) as worker:
            for _ in range(checkpoint_after):
                worker.gradient()[:] = 1
                worker.push()
        mode.checkpoint(timeout_s=30)

        def lose():
            server.kill()
            shutil.rmtree(Path(mode.model.spec.home).parents[1])
            server.restart()

        pool = Pool(cluster.address, lose)
        reports = mode.run(pool, [0, 1])
        assert pool.groups == 2
        assert not any(each.stopped for each in reports)
        assert set(mode.snapshot(timeout_s=30).flat) == {-float(STEPS + 2 * STEPS)}
        mode.close()


def test_a_stop_is_not_taken_for_a_loss():
    class Asked:
        name, groups = "inline", 0

        def run(self, tasks, *, stop):
            self.groups += 1
            assert stop()
            return [report(0, 0, True)]

    with coproc.LocalCluster() as cluster:
        settings = ModeSettings(
            cluster.address, None, "m", {"w": np.zeros(4, np.float32)}, coproc.optim.SGD(1.0), coproc.Asp()
        )
        mode, pool = load("coproc").start(settings), Asked()
        assert mode.run(pool, [0], stop=lambda: True) == [report(0, 0, True)]
        assert pool.groups == 1
        mode.close()


# The second one is a few rounds into the second epoch of 501, before the checkpoint of version 550.
@pytest.mark.parametrize(("pool", "after"), [("inline", 600), ("processes", 505)])
def test_a_training_goes_on_when_its_host_loses_its_memory(tmp_path, pool, after):
    """Model, rows, slots: all of it is gone. The model is as of a checkpoint, the rows are read once more."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 2001)
    features = (rng.normal(size=(2001, 6)) + np.eye(3, 6)[labels]).astype(np.float32)
    data = tmp_path / "train.parquet"
    pq.write_table(pa.table({"features": pa.array(list(features), pa.list_(pa.float32())), "label": labels}), data)
    (tmp_path / "checkpoints").mkdir()
    config = TrainConfig(
        hidden=(16,), epochs=8, batch_size=2, optimizer="adam", pool=pool, workers=2, consistency="bsp",
        checkpoints=f"file://{tmp_path}/checkpoints", checkpoint_every=50,
    )  # fmt: skip
    expected = train(replace(config, checkpoints=None, checkpoint_every=None), data)
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        [server] = cluster.servers
        lost = []

        def lose():
            name = until(client.models)[0]
            model = client.model(name)
            until(lambda: model.version > after and list(tmp_path.glob("checkpoints/0*")))
            home = Path(model.spec.home).parents[1]
            model.release()
            server.kill()
            shutil.rmtree(home)
            lost.append(name)
            server.restart()

        loser = threading.Thread(target=lose)
        loser.start()
        result = train(replace(config, address=cluster.address), data)
        loser.join(60)
        assert lost
        assert client.models() == []
    assert result.version == expected.version
    for name, tensor in expected.params.items():
        np.testing.assert_array_equal(result.params[name], tensor, err_msg=name)


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        select.select([], [], [], 0.005)
    return found
