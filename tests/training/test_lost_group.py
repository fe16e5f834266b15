"""A model that loses its memory in the middle of a group: tasks that were over run again."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import coproc
from coproc.modes.base import ModeSettings, load
from coproc.worker import WorkerReport

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
        groups = 0

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
