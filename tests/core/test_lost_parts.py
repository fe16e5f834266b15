"""Memory is lost under workers that live: of all servers, or of one; near workers have it mapped still.

Workers are processes, which join again when they are told to, as `coproc.worker.run_worker` does. Each pushes
(worker + 1) * (step % 7), and pauses at two steps until the test lets it go on.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import coproc

from .waiting import until

CUT, LOST = 50, 100

WORKER = """
import sys, coproc
address, number, steps, near = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "near"
pauses, rejoined = [int(step) for step in sys.argv[5].split(",")], 0
with coproc.connect(address, near=None if near else False) as client:
    assert client.near == near
    model = client.model("m")
    while True:
        attempt = model.join(number)
        try:
            while attempt.next_step < steps:
                step = attempt.next_step
                if pauses and step == pauses[0]:
                    pauses.pop(0)
                    print("at", step, flush=True)
                    sys.stdin.readline()
                attempt.pull(timeout_s=90)
                attempt.gradient(timeout_s=90)[:] = (number + 1) * (step % 7)
                attempt.push(step=step, timeout_s=90)
            attempt.leave()
            break
        except coproc.LeaseExpired:
            rejoined += 1
            print("again", flush=True)
        finally:
            attempt.close()
print("rejoined", rejoined, flush=True)
"""


class Worker:
    """One worker process."""

    def __init__(self, address, number, steps, plane, pauses=(CUT, LOST)):
        arguments = [address, str(number), str(steps), plane, ",".join(map(str, pauses))]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def await_said(self, what):
        line = ""
        while not line.startswith(what):
            line = self.process.stdout.readline()
            assert line, f"it never said {what}"
        return line.split()[-1]

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self):
        """How often it has joined again."""
        rejoined = int(self.await_said("rejoined"))
        assert self.process.wait(60) == 0
        self.close()
        return rejoined

    def close(self):
        self.process.kill()
        self.process.wait(30)
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def working():
    """Starts workers, and ends what is left of them."""
    workers = []

    def start(*arguments, **settings):
        workers.append(Worker(*arguments, **settings))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def create(client, **settings):
    return client.create_model(
        "m",
        params={"w": np.zeros(300, np.float32)},
        optimizer=coproc.optim.Momentum(1.0, momentum=0.0),
        shards=2,
        **settings,
    )


def lose(servers, model):
    """Kill servers, and remove what they have in memory."""
    roots = {place.server: Path(place.path).parents[2] for place in model.spec.shards}
    for server in servers:
        server.kill()
        shutil.rmtree(roots[server.address])


def push_until_it_waits(worker, timeout_s):
    while True:
        worker.gradient(timeout_s=timeout_s)[:] = 1
        worker.push(timeout_s=timeout_s)


def total(steps, gain):
    return gain * sum(step % 7 for step in range(steps))


def to_the_cut(client, workers):
    """Workers at step `LOST`, and a checkpoint of step `CUT`."""
    for worker in workers:
        assert worker.await_said("at") == str(CUT)
    path = client.model("m").checkpoint()
    for worker in workers:
        worker.go()
    for worker in workers:
        assert worker.await_said("at") == str(LOST)
    return path


def status_unless_awaited(client):
    try:
        return client.model("m").status()
    except (coproc.Unreachable, coproc.Timeout):
        return None


ASP, BSP = (coproc.Asp(), 3), (coproc.Bsp(workers=2), 1.5)


@pytest.mark.parametrize(
    ("plane", "lost", "rule", "steps"),
    [
        pytest.param("near", (0, 1), ASP, 200, id="near-all-asp"),
        pytest.param("near", (0, 1), ASP, LOST + 1, id="near-all-last-step"),
        pytest.param("near", (0, 1), BSP, 200, id="near-all-bsp", marks=pytest.mark.slow),
        pytest.param("near", (0,), BSP, 200, id="near-first-bsp"),
        pytest.param("near", (1,), ASP, 200, id="near-second-asp", marks=pytest.mark.slow),
        pytest.param("near", (1,), BSP, 200, id="near-second-bsp"),
        pytest.param("far", (0,), ASP, 200, id="far-first-asp"),
        pytest.param("far", (1,), BSP, 200, id="far-second-bsp"),
        pytest.param("far", (1,), ASP, 200, id="far-second-asp", marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_from_the_cut(tmp_path, working, plane, lost, rule, steps):
    consistency, gain = rule
    with coproc.LocalCluster(servers=2) as cluster, coproc.connect(cluster.address) as client:
        if 0 in lost:  # else it may lie in the memory of the server that lives
            client.tier.mount("/models/m/checkpoints", f"file://{tmp_path}", write_type="cache_through")
        model = create(client, consistency=consistency)
        before = model.status().epoch
        workers = [working(cluster.address, n, steps, plane) for n in range(2)]
        to_the_cut(client, workers)
        gone = [cluster.servers[n] for n in lost]
        lose(gone, model)
        for worker in workers:
            worker.go()  # into memory that is gone
        for server in gone:
            server.restart()
        for worker in workers:
            assert worker.finish() == 1
        snapshot = model.snapshot()
        assert (snapshot.flat == -total(steps, gain)).all(), "each step counts once, whatever was lost in between"
        assert snapshot.version == model.version == (steps if isinstance(consistency, coproc.Bsp) else 2 * steps)
        assert model.status().epoch > before
        model.delete()
        until(lambda: all(server.memory_used_bytes == 0 for server in client.status().servers) or lost)


@pytest.mark.parametrize("plane", ["near", "far"])
def test_shards_without_a_checkpoint_are_lost_for_good(plane):
    with (
        coproc.LocalCluster(servers=2) as cluster,
        coproc.connect(cluster.address, near=None if plane == "near" else False) as client,
    ):
        model = create(client)
        first, second = cluster.servers
        with model.join(worker=0) as worker:
            worker.gradient()[:] = 1
            worker.push()
            worker.pull(min_version=1)
            lose([second], model)
            second.restart()
            until(lambda: "no checkpoint" in model.status().failure)
            assert second.address in model.status().failure
            with pytest.raises(coproc.ServerError, match="lost its part of it"):
                push_until_it_waits(worker, 30)
            with pytest.raises(coproc.ServerError, match="lost its part of it"):
                model.snapshot()
        first.restart()
        with pytest.raises(coproc.ModelNotFound, match="no checkpoint"):
            client.model("m")


@pytest.mark.parametrize(
    ("variable", "point"),
    [
        ("COPROC_FAILPOINT", "restore.announce.after:1"),
        ("COPROC_FAILPOINT", "restore.drop.after:1"),
        pytest.param("TIER_FAILPOINT", "commit.catalog.before:1", marks=pytest.mark.slow),  # says that it is lost
        pytest.param("TIER_FAILPOINT", "commit.catalog.before:2", marks=pytest.mark.slow),  # that it is back
        ("TIER_FAILPOINT", "commit.catalog.after:2"),
    ],
)
def test_killed_while_it_brings_a_model_back(tmp_path, working, variable, point):
    with coproc.LocalCluster(servers=2) as cluster, coproc.connect(cluster.address) as client:
        client.tier.mount("/models/m/checkpoints", f"file://{tmp_path}", write_type="cache_through")
        model = create(client)
        first, second = cluster.servers
        worker = working(cluster.address, 0, 200, "near")
        to_the_cut(client, [worker])
        first.environment[variable] = point
        first.restart()
        lose([second], model)
        worker.go()
        second.restart()
        assert first.wait(timeout_s=60) == -signal.SIGKILL
        del first.environment[variable]
        first.restart()
        assert worker.finish() >= 1
        snapshot = model.snapshot()
        assert (snapshot.version, set(snapshot.flat.tolist())) == (200, {-total(200, 1)})


def test_a_server_that_lives_keeps_what_was_removed_beneath_it():
    """Somebody removes its files: nothing goes back, for all that use them have them mapped."""
    with coproc.LocalCluster(servers=2) as cluster, coproc.connect(cluster.address) as client:
        model = create(client)
        before = model.status().epoch
        with model.join(worker=0) as worker:
            worker.gradient()[:] = 1
            worker.push()
            model.checkpoint()
            shutil.rmtree(Path(model.spec.shards[1].path).parent)
            looked_after_s = time.monotonic() + 3  # it looks once a second
            while time.monotonic() < looked_after_s:
                worker.gradient()[:] = 1
                worker.push()
                pushed = worker.next_step
                assert worker.pull(min_version=pushed).params["w"][299] == -pushed
            assert model.status().epoch == before


@pytest.mark.parametrize(
    ("plane", "lost"), [("near", (0, 1)), ("near", (1,)), ("far", (0, 1))], ids=["near-all", "near-second", "far-all"]
)
def test_who_only_reads_or_leaves_is_told_too(tmp_path, plane, lost):
    """Neither pulls nor snapshots of a small model wait, and they could read for ever what is gone."""
    with (
        coproc.LocalCluster(servers=2) as cluster,
        coproc.connect(cluster.address, near=None if plane == "near" else False) as client,
    ):
        client.tier.mount("/models/m/checkpoints", f"file://{tmp_path}", write_type="cache_through")
        model = create(client)
        with model.join(worker=0) as worker, model.join(worker=1) as reader:
            worker.gradient()[:] = 1
            worker.push()
            worker.pull(min_version=1)
            model.checkpoint()
            worker.gradient()[:] = 1
            worker.push()
            assert reader.pull(min_version=2).params["w"][0] == -2
            assert model.snapshot().version == 2
            gone = [cluster.servers[n] for n in lost]
            lose(gone, model)
            if plane == "near":
                assert reader.pull().version == 2, "as long as nobody knows better"
            for server in gone:
                server.restart()
            with pytest.raises(coproc.LeaseExpired, match=r"joins? again"):
                until(lambda: reader.pull().version < 2)
            with pytest.raises(coproc.LeaseExpired, match="restored from a checkpoint"):
                worker.leave()
            assert model.status().workers_count == 2, "it has a step to get again"
        # The model itself is the same one.
        assert model.version == model.snapshot().version == 1
        with model.join(worker=0) as worker:
            assert worker.next_step == 1
            worker.gradient()[:] = 5
            worker.push()
            assert worker.pull(min_version=2).params["w"][299] == -6


def test_a_snapshot_does_not_wait_for_another_model(tmp_path):
    """Whose gradients cannot be descended, for the server of a shard is down."""
    with coproc.LocalCluster(servers=2) as cluster, coproc.connect(cluster.address) as client:
        behind = create(client)
        zeros, rate = {"w": np.zeros(300, np.float32)}, coproc.optim.SGD(1.0)
        other = client.create_model("other", params=zeros, optimizer=rate, shards=1)
        cluster.servers[1].kill()
        with behind.join(worker=0) as worker, pytest.raises(coproc.Timeout):
            push_until_it_waits(worker, 0.2)
        with other.join(worker=0) as worker:
            worker.gradient()[:] = 1
            worker.push()
            with coproc.connect(cluster.address, near=False) as far:
                for each in (client, far):
                    assert each.model("other").snapshot(timeout_s=20).params["w"][0] == -1
                    with pytest.raises(coproc.Timeout):
                        each.model("m").snapshot(timeout_s=0.2)


def test_a_far_worker_that_slept_through_a_restore(tmp_path):
    """What a server that starts answers early is of another life of the model than the worker's."""
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address, near=False) as client:
        client.tier.mount("/models/m/checkpoints", f"file://{tmp_path}", write_type="cache_through")
        model = client.create_model("m", params={"w": np.zeros(300, np.float32)}, optimizer=coproc.optim.SGD(1.0))
        [server] = cluster.servers
        with model.join(0) as worker:
            for step in range(2):
                worker.gradient()[:] = 1
                worker.push()
                worker.pull(step + 1)
                if not step:
                    model.checkpoint()
            server.kill()
            shutil.rmtree(Path(model.spec.home).parents[1])
            server.restart()
            until(lambda: client.model("m").status().version == 1, 60)
            server.kill()
            restart = threading.Thread(target=server.restart)
            restart.start()
            try:
                with pytest.raises(coproc.LeaseExpired, match="restored from a checkpoint"):
                    worker.pull(timeout_s=60)
            finally:
                restart.join(60)
        with model.join(0) as worker:
            assert worker.next_step == 1
        model.delete()
