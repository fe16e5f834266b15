"""Each acknowledged push is in the model once, whole: with twins alive, and when anybody is killed at any point.

Gradients are constant vectors of integers and the rate is 1, so that sums are exact: a push that is lost, counted
twice or half there cannot hide.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import coproc
from coproc import probe

# A worker process: pushes `value(step)` for all steps up to `stop`, wherever an earlier attempt has stopped.
PUSHER = """
import sys
import numpy as np
import coproc
address, name, worker, stop, base, shape = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
with coproc.connect(address) as client, client.model(name).join(worker) as attempt:
    print("joined", attempt.next_step, flush=True)
    sys.stdin.readline()
    while attempt.next_step < stop:
        step = attempt.next_step
        attempt.pull(timeout_s=60)
        attempt.gradient(timeout_s=60)[:] = base + step % 3
        attempt.push(step=step, timeout_s=60)
"""


class Pusher:
    """One worker process; it waits for `go` before its first push."""

    def __init__(self, address, name, worker, stop, base, failpoint=None):
        environment = {**os.environ, **({"COPROC_FAILPOINT": failpoint} if failpoint else {})}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PUSHER, address, name, str(worker), str(stop), str(base), "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.joined_at = int(self.process.stdout.readline().split()[1])

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self

    def wait(self, timeout_s=60):
        status = self.process.wait(timeout=timeout_s)
        self.process.stdin.close()
        self.process.stdout.close()
        return status


def total(base, steps):
    return sum(base + step % 3 for step in range(steps))


def create(client, name, size=1000, **settings):
    settings.setdefault("optimizer", coproc.optim.SGD(learning_rate=1.0))
    return client.create_model(name, params={"w": np.zeros(size, np.float32)}, **settings)


def whole(snapshot):
    """The one value of all elements."""
    assert (snapshot.flat == snapshot.flat[0]).all(), "parts of different gradients"
    return -float(snapshot.flat[0])


@pytest.mark.parametrize("shards", [1, 3])
def test_two_live_twins(client, cluster, name, shards):
    model = create(client, name, shards=shards)
    steps = 300
    twins = [Pusher(cluster.address, name, 7, steps, base=base) for base in (1, 1000)]
    for twin in twins:
        twin.go()
    assert [twin.wait() for twin in twins] == [0, 0]
    snapshot = model.snapshot()
    assert snapshot.version == steps
    thousands, ones = divmod(whole(snapshot), 1000)
    # Each step is one twin's or the other's: `thousands` of them the second's, the rest the first's.
    assert ones == total(0, steps) + (steps - thousands)
    assert model.status().duplicates_count + steps <= 2 * steps
    model.delete()


WORKER_POINTS = sorted(point for point in probe.POINTS if point.startswith("push."))
# Those of checkpoints have tests of their own.
SERVER_POINTS = sorted(p for p in probe.POINTS if not p.startswith(("push.", "checkpoint.")))


@pytest.mark.parametrize("point", WORKER_POINTS)
@pytest.mark.parametrize("consistency", [coproc.Asp(), coproc.Bsp(workers=1)], ids=["asp", "bsp"])
def test_a_worker_killed_at(client, cluster, name, point, consistency):
    model = create(client, name, consistency=consistency)
    first = Pusher(cluster.address, name, 0, 40, base=2, failpoint=f"{point}:17").go()
    assert first.wait() == -signal.SIGKILL
    second = Pusher(cluster.address, name, 0, 40, base=2)
    assert second.joined_at == (16 if point == "push.commit.before" else 17)
    assert second.go().wait() == 0
    snapshot = model.snapshot()
    assert (snapshot.version, whole(snapshot)) == (40, total(2, 40))
    model.delete()


class Threads:
    """Workers 0 .. count-1 in threads of this process; they outlive servers."""

    def __init__(self, model, count, steps):
        self.failures = []
        self.threads = [threading.Thread(target=self._work, args=(model, n, steps)) for n in range(count)]
        for thread in self.threads:
            thread.start()

    def _work(self, model, number, steps):
        try:
            with model.join(worker=number) as worker:
                while worker.next_step < steps:
                    worker.pull(timeout_s=60)
                    worker.gradient(timeout_s=60)[:] = number + 1
                    worker.push(examples=1, timeout_s=60)
        except BaseException as error:
            self.failures.append(error)

    def finish(self):
        for thread in self.threads:
            thread.join(90)
            assert not thread.is_alive()
        assert not self.failures, self.failures


@pytest.mark.parametrize("point", SERVER_POINTS)
@pytest.mark.parametrize(
    "consistency",
    [coproc.Asp(), coproc.Bsp(workers=2), coproc.Quorum(workers=2, count=1, late="carry")],
    ids=["asp", "bsp", "quorum"],
)
def test_a_server_killed_at(name, point, consistency):
    with (
        coproc.LocalCluster(environment={"COPROC_FAILPOINT": f"{point}:5"}) as cluster,
        coproc.connect(cluster.address) as client,
    ):
        model = create(client, name, consistency=consistency)
        steps = 60
        threads = Threads(model, 2, steps)
        [server] = cluster.servers
        assert server.wait(timeout_s=60) == -signal.SIGKILL
        del server.environment["COPROC_FAILPOINT"]
        server.restart()
        threads.finish()
        snapshot = model.snapshot()
        if consistency == coproc.Asp():
            assert (snapshot.version, whole(snapshot)) == (2 * steps, steps * (1 + 2))
        else:
            # Of rounds with both the mean is 1.5, and of rounds with one of them each worker has as many.
            assert whole(snapshot) == snapshot.version * 1.5
            assert steps <= snapshot.version <= (2 * steps if consistency.needed == 1 else steps)


@pytest.mark.parametrize(
    ("victim", "point"),
    [
        *((0, point) for point in ("log.append.after", "publish.before", "publish.after", "release.before")),
        *((1, point) for point in ("sweep.middle", "publish.before", "publish.after")),
    ],
)
def test_one_of_two_servers_killed_at(name, point, victim):
    with coproc.LocalCluster(servers=2) as cluster:
        server = cluster.servers[victim]
        server.environment["COPROC_FAILPOINT"] = f"{point}:5"
        server.restart()
        with coproc.connect(cluster.address) as client:
            model = create(client, name, shards=2)
            threads = Threads(model, 2, 60)
            assert server.wait(timeout_s=60) == -signal.SIGKILL
            del server.environment["COPROC_FAILPOINT"]
            server.restart()
            threads.finish()
            snapshot = model.snapshot()
            assert (snapshot.version, whole(snapshot)) == (120, 60 * 3)


def adam_run(kills, seed, steps, size):
    """Final parameters of a synchronous run of two workers, with the server killed at random moments."""
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        rng = np.random.default_rng(1)
        model = client.create_model(
            "adam",
            params={"w": rng.standard_normal(size).astype(np.float32)},
            optimizer=coproc.optim.Adam(learning_rate=0.01),
            consistency=coproc.Bsp(workers=2),
        )
        gradients = rng.standard_normal((2, 3, size)).astype(np.float32)
        failures = []

        def work(number):
            try:
                with model.join(worker=number) as worker:
                    while worker.next_step < steps:
                        worker.pull(timeout_s=60)
                        worker.gradient(timeout_s=60)[:] = gradients[number, worker.next_step % 3]
                        worker.push(examples=number + 1, timeout_s=60)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        dice = random.Random(seed)
        [server] = cluster.servers
        for kill in range(1, kills + 1):
            # A moment of the run, not of the clock: somewhere within the sweeps after this version.
            target = kill * steps // (kills + 1)
            while model.version < target and not failures:
                threads[0].join(1e-4)
            threads[0].join(dice.uniform(0, 3e-3))
            server.kill()
            server.restart()
        for thread in threads:
            thread.join(90)
        assert not failures, failures
        snapshot = model.snapshot()
        assert snapshot.version == steps
        return snapshot.flat


def test_random_kills_within_sweeps_change_not_one_bit():
    np.testing.assert_array_equal(adam_run(4, 5, 60, 600_000), adam_run(0, 0, 60, 600_000))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_many_random_kills_within_sweeps_change_not_one_bit(seed):
    np.testing.assert_array_equal(adam_run(40, seed, 400, 600_000), adam_run(0, 0, 400, 600_000))
