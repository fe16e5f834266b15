"""Each acknowledged push is in the model once, whole: with twins alive, and when anybody is killed at any point.

Gradients are constant vectors of integers and the rate is 1, so that sums are exact: a push that is lost, counted
twice or half there cannot hide.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import coproc
from coproc import probe

from . import working

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


CONSISTENCIES = {
    "bsp": coproc.Bsp(workers=2),
    "ssp": coproc.Ssp(bound=3),
    "asp": coproc.Asp(),
    "quorum": coproc.Quorum(workers=2, count=1, late="carry"),
}
# Points that no push ever comes to, and where one is killed there instead.
ELSEWHERE = {point: "test_lost_parts" for point in probe.POINTS if point.startswith("restore.")}
PUSH_POINTS = [point for point in probe.POINTS if point.startswith("push.")]
# Of near workers these points are in their own process; of far ones in the server's as well.
NEAR_POINTS = [point for point in probe.POINTS if point not in {*PUSH_POINTS, *ELSEWHERE}]
FAR_POINTS = [*PUSH_POINTS, *NEAR_POINTS]
# Each with one rule; the others take turns, and have all of them in the slow matrix.
SOME_FAR_POINTS = {rule: FAR_POINTS[n :: len(CONSISTENCIES)] for n, rule in enumerate(CONSISTENCIES)}
SOME_NEAR_POINTS = {rule: NEAR_POINTS[n % 2 :: 2] for n, rule in enumerate(CONSISTENCIES)}


def test_no_point_is_forgotten():
    package = Path(coproc.__file__).parent
    found = [re.findall(r"(?:hit|number)\(\"([a-z.]+)\"\)", path.read_text()) for path in package.rglob("*.py")]
    assert set(itertools.chain(*found)) == set(probe.POINTS)
    for points in ([*PUSH_POINTS, *NEAR_POINTS], FAR_POINTS, list(itertools.chain(*SOME_FAR_POINTS.values()))):
        assert sorted([*points, *ELSEWHERE]) == sorted(probe.POINTS)
    assert set(itertools.chain(*SOME_NEAR_POINTS.values())) == set(NEAR_POINTS)
    for point, where in ELSEWHERE.items():
        assert point in Path(__file__).with_name(f"{where}.py").read_text()


@pytest.mark.parametrize("point", PUSH_POINTS)
@pytest.mark.parametrize("rule", CONSISTENCIES)
def test_a_worker_killed_at(client, cluster, name, point, rule):
    consistency = coproc.Bsp(workers=1) if rule == "bsp" else CONSISTENCIES[rule]
    model = create(client, name, consistency=consistency)
    first = Pusher(cluster.address, name, 0, 40, base=2, failpoint=f"{point}:17").go()
    assert first.wait() == -signal.SIGKILL
    second = Pusher(cluster.address, name, 0, 40, base=2)
    assert second.joined_at == (16 if point == "push.commit.before" else 17)
    assert second.go().wait() == 0
    snapshot = model.snapshot()
    assert (snapshot.version, whole(snapshot)) == (40, total(2, 40))
    model.delete()


def armed(point):
    """Variables of a server that is to be killed there."""
    # Later than what is left to do for the model that was there when it died at the point before.
    hits = 3 if point.startswith("checkpoint.") else 150
    return {"COPROC_FAILPOINT": f"{point}:{hits}"}


def killed_in_a_row(consistency, points, *, near=True, servers=1, victim=0):
    """A server that is killed at each of the points, and comes back to be killed at the next one: a model for each."""
    with (
        coproc.LocalCluster(servers=servers, environment=armed(points[0]) if servers == 1 else None) as cluster,
        coproc.connect(cluster.address, near=near) as client,
    ):
        server = cluster.servers[victim]
        if servers > 1:
            server.environment |= armed(points[0])
            server.restart()
        for point, following in itertools.zip_longest(points, points[1:]):
            model = working.create(client, point, consistency, shards=servers)
            workers = working.Workers(model)
            if point.startswith("checkpoint."):
                working.checkpoint_until_it_dies(model, server)
            working.assert_killed(server, point)
            steps = workers.end()
            del server.environment["COPROC_FAILPOINT"]
            if following is not None:
                server.environment |= armed(following)
            server.restart()
            workers.join()
            snapshot = model.snapshot()
            assert (snapshot.flat == working.value_at(consistency, snapshot.version, steps)).all(), point
            model.delete()


@pytest.mark.parametrize("rule", CONSISTENCIES)
def test_a_server_killed_at(rule):
    killed_in_a_row(CONSISTENCIES[rule], SOME_NEAR_POINTS[rule])


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("rule", CONSISTENCIES)
def test_a_server_killed_at_each_point(rule):
    killed_in_a_row(CONSISTENCIES[rule], NEAR_POINTS)


@pytest.mark.parametrize("rule", CONSISTENCIES)
def test_a_server_of_far_workers_killed_at(rule):
    killed_in_a_row(CONSISTENCIES[rule], SOME_FAR_POINTS[rule], near=False)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("rule", CONSISTENCIES)
def test_a_server_of_far_workers_killed_at_each_point(rule):
    killed_in_a_row(CONSISTENCIES[rule], FAR_POINTS, near=False)


@pytest.mark.parametrize(
    ("victim", "points"),
    [
        (0, ["log.append.after", "publish.before", "publish.after", "release.before"]),
        (1, ["sweep.middle", "publish.before", "publish.after"]),
    ],
    ids=["sequencer", "other"],
)
def test_one_of_two_servers_killed_at(victim, points):
    killed_in_a_row(coproc.Asp(), points, servers=2, victim=victim)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("near", [True, False], ids=["near", "far"])
@pytest.mark.parametrize("victim", [0, 1], ids=["sequencer", "other"])
@pytest.mark.parametrize("rule", CONSISTENCIES)
def test_one_of_two_servers_killed_at_each_point(rule, victim, near):
    points = NEAR_POINTS if near else FAR_POINTS
    if victim:  # it has no log, gives no slots back, takes no pushes and no checkpoints
        points = [point for point in points if point.startswith(("sweep.", "publish."))]
    killed_in_a_row(CONSISTENCIES[rule], points, near=near, servers=2, victim=victim)


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
