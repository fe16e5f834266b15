"""A model in parts: one vector over servers that share nothing, near and far."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import coproc
from coproc import parts

SIZE = 1000
WAIT_S = 30.0


@pytest.fixture(scope="module")
def cluster():
    with coproc.LocalCluster(servers=3, memory_bytes=1 << 28) as cluster:
        yield cluster


@pytest.fixture
def far(monkeypatch):
    """Of three servers two are on other hosts."""
    own = parts.connect
    near: list[str] = []
    one = threading.Lock()

    def connect(address, **options):
        with one:
            is_near = address in near or len(near) < 1
            if is_near and address not in near:
                near.append(address)
        return own(address, near=None if is_near else False, **options)

    monkeypatch.setattr(parts, "connect", connect)


def created(cluster, name, consistency, optimizer=None, size=SIZE):
    return parts.create(
        cluster.address,
        name,
        params={"a": np.arange(size // 2, dtype=np.float32), "b": np.zeros(size - size // 2, np.float32)},
        optimizer=optimizer or coproc.optim.SGD(learning_rate=1.0),
        consistency=consistency,
    )


def push(worker, value, step=None, examples=1):
    worker.gradient(timeout_s=WAIT_S)[:] = value
    step = worker.next_step if step is None else step
    return worker.push(step=step, examples=examples, loss=0.5, timeout_s=WAIT_S, last=False)


def pull(worker, timeout_s=WAIT_S):
    return worker.pull(timeout_s=timeout_s)


@pytest.fixture
def both(request, cluster, name):
    """What `far` is to be asked for first, and a model that is deleted."""
    made = []

    def make(consistency, **options):
        made.append(created(cluster, name, consistency, **options))
        return made[-1]

    yield make
    for model in made:
        model.delete()
        model.close()


@pytest.mark.parametrize("where", ["near", "far"])
@pytest.mark.parametrize("rule", ["bsp", "asp", "ssp"])
def test_pushes_of_two_workers_are_in_each_element_once(both, request, cluster, name, where, rule):
    if where == "far":
        request.getfixturevalue("far")
    rules = {"bsp": coproc.Bsp(workers=2), "asp": coproc.Asp(), "ssp": coproc.Ssp(bound=2)}
    model = both(rules[rule], optimizer=coproc.optim.Momentum(learning_rate=0.5))
    before = model.snapshot()
    with parts.find(cluster.address, name) as other:
        workers = [model.join(0), other.join(1)]
        steps = 5
        for step in range(steps):
            for worker in workers:
                pull(worker)
                assert not push(worker, 1.0, step=step, examples=2).duplicate
        if rule == "bsp":
            assert pull(workers[0]).version == steps
        after = model.snapshot()
        for worker in workers:
            spent, moved_bytes = worker.spent, 4 * SIZE * steps
            # The last pull of the first worker is one more.
            assert (spent.out_bytes, spent.in_bytes // moved_bytes) == (moved_bytes, 1)
            assert (spent.local_bytes == spent.in_bytes + spent.out_bytes) == (where == "near")
            worker.leave()
            worker.close()
    assert after.version == (steps if rule == "bsp" else 2 * steps)
    moved = before.flat - after.flat
    assert np.ptp(moved) < 1e-3  # every part has made the same descents
    assert moved[0] > 1
    assert model.status().pushes_count == 2 * steps
    assert set(model.layout.shapes) == {"a", "b"}


def test_the_same_as_in_one_part_to_the_bit(both, cluster, name):
    optimizer = coproc.optim.Adam(learning_rate=0.01)
    model = both(coproc.Bsp(workers=1), optimizer=optimizer)
    initial = model.snapshot().flat
    rng = np.random.default_rng(1)
    gradients = rng.standard_normal((4, SIZE)).astype(np.float32)
    with coproc.connect(cluster.address) as client:
        whole = client.create_model(
            name + "-whole", params={"w": initial}, optimizer=optimizer, consistency=coproc.Bsp(workers=1), shards=1
        )
        single, parted = whole.join(0), model.join(0)
        for rate, gradient in zip((None, None, 0.1, None), gradients, strict=True):
            if rate is not None:
                single.pull()  # all that was pushed is descended
                pull(parted)
                whole.set_learning_rate(rate)
                model.set_learning_rate(rate)
            push(parted, gradient)
            single.push({"w": gradient})
        assert pull(parted).flat.tobytes() == single.pull().flat.tobytes()
        single.close()
        parted.close()
        whole.delete()


def test_a_pull_waits_for_the_round_of_every_part(both, far):
    model = both(coproc.Bsp(workers=2))
    one, other = model.join(0), model.join(1)
    push(one, 1.0)
    with pytest.raises(coproc.Timeout):
        pull(one, 0.05)
    push(other, 3.0)
    pulled = pull(one)
    assert pulled.version == 1
    np.testing.assert_allclose(pulled.flat[SIZE // 2 :], -2.0)
    with pytest.raises(ValueError, match="read-only"):
        pulled.flat[0] = 1
    other.skip(step=1, timeout_s=WAIT_S)
    push(one, 1.0)
    assert pull(other).flat[-1] == -3
    for worker in (one, other):
        worker.close()


def test_each_pull_asks_all_parts_anew(both, far):
    model = both(coproc.Asp())
    one, other = model.join(0), model.join(1)
    assert pull(one).version == 0
    push(other, 1.0)
    model.snapshot()  # all that was acknowledged is descended
    pulled = pull(one)
    assert pulled.version == 1
    np.testing.assert_array_equal(pulled.flat[SIZE // 2 :], -1.0)
    for worker in (one, other):
        worker.close()


DIES = """
import os, signal, sys
import coproc
from coproc import parts

worker = parts.find(sys.argv[1], sys.argv[2]).join(0)
worker.gradient(timeout_s=30)[:] = 1
worker.push(step=0, examples=1, loss=0.5, timeout_s=30, last=False)
worker._attempts[1].gradient()[:] = 1
worker._attempts[1].push(step=1, examples=1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("rule", [coproc.Asp(), coproc.Bsp(workers=1)], ids=["asp", "bsp"])
def test_of_a_worker_that_is_killed_between_the_parts_of_a_push_each_part_has_each_step_once(both, cluster, name, rule):
    model = both(rule)
    before = model.snapshot().flat
    died = subprocess.run([sys.executable, "-c", DIES, cluster.address, name], timeout=60)
    assert died.returncode == -signal.SIGKILL
    worker = model.join(0)
    assert worker.next_step == 1
    pull(worker)
    assert not push(worker, 1.0, step=1).duplicate
    assert worker.next_step == 2
    assert push(worker, 5.0, step=1).duplicate
    worker.close()
    after = model.snapshot()
    assert after.version == 2
    np.testing.assert_array_equal(before - after.flat, 2.0)


def test_a_server_of_a_part_that_is_killed_is_waited_for(far, name):
    with (
        coproc.LocalCluster(servers=2, memory_bytes=1 << 28) as cluster,
        created(cluster, name, coproc.Bsp(workers=1)) as model,
        contextlib.closing(model.join(0)) as worker,
    ):
        push(worker, 1.0)
        for server in cluster.servers:
            server.kill()
            again = threading.Thread(target=server.restart)
            again.start()
            version = pull(worker).version
            push(worker, 1.0)
            assert pull(worker).version == version + 1
            again.join()
        assert model.snapshot().version == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"consistency": coproc.Quorum(workers=2, count=1)}, "quorum"),
        ({"consistency": coproc.Asp(), "optimizer": coproc.optim.SGD(learning_rate=1.0, clip_norm=1.0)}, "norms"),
        ({"consistency": coproc.Asp(), "optimizer": coproc.optim.LAMB(learning_rate=1.0)}, "norms"),
        ({"consistency": coproc.Asp(), "size": 2}, "cut into"),
    ],
)
def test_what_needs_all_parts_at_once_is_refused(cluster, name, options, said):
    with pytest.raises(coproc.ConfigError, match=said):
        created(cluster, name, **options)


def test_a_name_that_is_taken_on_one_server_leaves_nothing_on_the_others(cluster, name):
    last = cluster.servers[-1].address
    with coproc.connect(f"coproc://{last}") as client:
        taken = client.create_model(f"{name}.part-2", params={"w": np.zeros(3)}, optimizer=coproc.optim.SGD(1.0))
        with pytest.raises(coproc.ModelExists):
            created(cluster, name, coproc.Asp())
        taken.delete()
    with coproc.connect(cluster.address) as client:
        assert client.models() == []


def test_a_part_that_is_missing_is_told(both, cluster, name):
    both(coproc.Asp())
    with coproc.connect(cluster.address) as client:
        client.model(f"{name}.part-1").delete()
    with pytest.raises(coproc.ModelNotFound, match="part-1"):
        parts.find(cluster.address, name, timeout_s=1.0)
