"""Synchronous training equals one process on the same batches, for any shards, servers and unequal partitions."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import coproc

SIZE = 1003  # not a multiple of anything


def gradient(params, worker, step):
    """Any deterministic function of what was read, so that a wrong version shows."""
    rng = np.random.default_rng((worker, step))
    return (0.1 * params + rng.standard_normal(SIZE)).astype(np.float32)


def reference_adam(start, plan, rate=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Plain float64 Adam; plan: one dict worker -> examples a round."""
    p, m, v = start.astype(np.float64), np.zeros(SIZE), np.zeros(SIZE)
    for t, members in enumerate(plan, 1):
        total = sum(members.values())
        g = sum(
            examples / total * gradient(p.astype(np.float32), worker, t - 1).astype(np.float64)
            for worker, examples in members.items()
        )
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p = p - rate * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
    return p


def train(cluster, name, shards, workers, rounds):
    """`rounds[worker]` gradients each; the others skip, as shorter partitions do."""
    start = np.linspace(-1, 1, SIZE, dtype=np.float32)
    longest = max(rounds)
    failures = []
    with coproc.connect(cluster.address) as client:
        model = client.create_model(
            name,
            params={"w": start},
            optimizer=coproc.optim.Adam(learning_rate=0.01),
            consistency=coproc.Bsp(workers=workers),
            shards=shards,
        )

        def work(number):
            try:
                with model.join(worker=number) as worker:
                    for step in range(longest):
                        snapshot = worker.pull(timeout_s=60)
                        assert snapshot.version == step
                        if step < rounds[number]:
                            g = gradient(snapshot.flat, number, step)
                            worker.push({"w": g}, step=step, examples=10 * (number + 1))
                        else:
                            worker.skip(step)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures, failures
        flat = model.snapshot().flat
        model.delete()
    plan = [{w: 10 * (w + 1) for w in range(workers) if step < rounds[w]} for step in range(longest)]
    return flat, reference_adam(start, plan)


@pytest.fixture(scope="module", params=[1, 2], ids=["1-server", "2-servers"])
def some_cluster(request):
    with coproc.LocalCluster(servers=request.param, memory_bytes=1 << 28) as cluster:
        yield cluster


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("rounds", [(20, 20), (20, 13, 0)], ids=["equal", "unequal"])
def test_equals_one_process(some_cluster, name, shards, rounds):
    found, expected = train(some_cluster, name, shards, len(rounds), rounds)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_more_workers_than_a_sweep_takes_at_once(some_cluster, name):
    found, expected = train(some_cluster, name, 2, 11, (4,) * 11)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_repeats_bit_for_bit(some_cluster, name):
    one, _ = train(some_cluster, name, 3, 3, (15, 15, 15))
    other, _ = train(some_cluster, name + "again", 1, 3, (15, 15, 15))
    np.testing.assert_array_equal(one, other)
