"""Gradients whose delay is compensated, against float64: staleness is made on purpose, near, far, and over restarts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import coproc
from coproc.shared.seats import Seat
from coproc.tasks import WorkerTask
from coproc.testing.formulas import exact_compensated, exact_update
from coproc.worker import Loop
from storage_tier.regions import file_bytes

SIZE = 5003
# A shard that is stored past the caches, with a short line at its end.
LARGE = (1 << 19) + 7
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def values(seed: int, size: int = SIZE) -> Any:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def create(client: Any, name: str, optimizer: Any, size: int = SIZE, **more: Any) -> Any:
    return client.create_model(name, params={"w": values(0, size)}, optimizer=optimizer, **more)


class Exact:
    """The model in float64, one update after the other."""

    def __init__(self, optimizer: Any, size: int = SIZE) -> None:
        self.optimizer = optimizer
        self.rows: Any = (values(0, size).astype(np.float64), *(np.zeros(size) for _ in optimizer.state_rows))
        self.updates = 0

    @property
    def params(self) -> Any:
        return self.rows[0]

    def update(self, *members: tuple[Any, Any, float]) -> None:
        """By gradients with the parameters that they were computed on (None: unknown), and their shares."""
        g: Any = 0.0
        for member, base, share in members:
            g += share * exact_compensated(self.optimizer, member, self.params, self.params if base is None else base)
        if self.optimizer.clip_norm is not None:
            g *= min(1.0, self.optimizer.clip_norm / np.linalg.norm(g))
        settings = {**self.optimizer.to_config(), "clip_norm": None}
        self.updates += 1
        self.rows = exact_update(coproc.optim.from_config(settings), self.rows, g, self.updates)


class Attempt:
    """A worker, and what it has pulled last."""

    def __init__(self, worker: Any, exact: Exact) -> None:
        self.worker, self.exact = worker, exact
        self.base: Any = None

    def pull(self, version: int = 0) -> Any:
        found = self.worker.pull(min_version=version, timeout_s=30)
        self.base = np.array(found.flat)
        return self.base

    def push(self, seed: int, **more: Any) -> None:
        g = values(seed, self.exact.params.size)
        self.worker.push({"w": g}, **more)
        self.exact.update((g, self.base, 1.0))


def stale(slow: Attempt, quick: Attempt) -> None:
    """Six pushes, each descended before the next: the slow one's are 3, 4 and 2 versions old."""
    slow.pull()
    for version in range(3):
        quick.pull(version)
        quick.push(10 + version)
    quick.pull(3)
    slow.push(20)
    quick.pull(4)
    slow.push(21)  # without having pulled
    slow.pull(5)
    quick.push(13)
    quick.pull(6)
    quick.push(14)
    quick.pull(7)
    slow.push(22)
    quick.pull(8)


OPTIMIZERS = [
    coproc.optim.SGD(0.3, delay_compensation=0.5),
    coproc.optim.Adam(0.05, delay_compensation=0.5, clip_value=0.5, weight_decay=0.1),
    coproc.optim.Momentum(0.1, delay_compensation=0.5, clip_norm=20.0),
]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)
def test_a_stale_gradient_is_compensated(client: Any, name: str, optimizer: Any, shards: int) -> None:
    model, exact = create(client, name, optimizer, shards=shards), Exact(optimizer)
    with model.join(worker=0) as one, model.join(worker=1) as other:
        slow, quick = Attempt(one, exact), Attempt(other, exact)
        stale(slow, quick)
        np.testing.assert_allclose(quick.base, exact.params, **TOLERANCE)
    model.delete()


def test_a_large_shard(client: Any, name: str) -> None:
    optimizer = OPTIMIZERS[0]
    model, exact = create(client, name, optimizer, LARGE, shards=1), Exact(optimizer, LARGE)
    with model.join(worker=0) as one, model.join(worker=1) as other:
        slow, quick = Attempt(one, exact), Attempt(other, exact)
        stale(slow, quick)
        np.testing.assert_allclose(quick.base, exact.params, **TOLERANCE)
    model.delete()


def test_who_is_not_stale_is_descended_as_without(client: Any, name: str) -> None:
    """To the last bit; and so is who has pulled nothing, whatever the others did meanwhile."""
    found = []
    for number, settings in enumerate(({}, {"delay_compensation": 0.5})):
        model = create(client, f"{name}-{number}", coproc.optim.Adam(0.05, **settings))
        with model.join(worker=0) as silent, model.join(worker=1) as reading:
            for step in range(4):
                reading.pull(min_version=2 * step)
                reading.push({"w": values(10 + step)})
                reading.pull(min_version=2 * step + 1)
                silent.push({"w": values(20 + step)})
            found.append(np.array(reading.pull(min_version=8).flat))
        model.delete()
    assert found[0].tobytes() == found[1].tobytes()


def test_what_was_pulled_stays_until_the_next_pull(client: Any, name: str) -> None:
    model = create(client, name, OPTIMIZERS[0], shards=1)
    with model.join(worker=0) as worker:
        pulled = worker.pull().flat
        assert not pulled.flags.writeable
        worker.push({"w": values(1)})
        worker.push({"w": values(2)})
        model.snapshot()
        assert pulled.tobytes() == values(0).tobytes()
    model.delete()


@pytest.mark.parametrize("workers", [2, 9])
@pytest.mark.parametrize("settings", [{}, {"clip_norm": 10.0}], ids=["plain", "clip_norm"])
def test_each_member_of_a_round_is_compensated(client: Any, name: str, workers: int, settings: Any) -> None:
    """The first pushes its second and third gradient on what it has pulled for its first; the others pull."""
    optimizer = coproc.optim.SGD(0.3, delay_compensation=0.5, **settings)
    model = create(client, name, optimizer, consistency=coproc.Bsp(workers=workers), shards=2)
    exact = Exact(optimizer)
    joined = [model.join(worker=number) for number in range(workers)]
    attempts = [Attempt(worker, exact) for worker in joined]
    total = sum(range(1, workers + 1))
    for step in range(3):
        for number, attempt in enumerate(attempts):
            if number or not step:
                attempt.pull(step)
            attempt.worker.push({"w": values(100 * step + number)}, examples=number + 1)
        exact.update(*((values(100 * step + n), attempt.base, (n + 1) / total) for n, attempt in enumerate(attempts)))
    np.testing.assert_allclose(attempts[0].pull(3), exact.params, **TOLERANCE)
    for worker in joined:
        worker.close()
    model.delete()


def test_a_gradient_that_is_carried_is_compensated_for_the_round_it_comes_into(client: Any, name: str) -> None:
    optimizer = coproc.optim.SGD(0.3, delay_compensation=0.5)
    rule = coproc.Quorum(workers=2, count=1, grace_s=0.0, late="carry")
    model, exact = create(client, name, optimizer, consistency=rule), Exact(optimizer)
    with model.join(worker=0) as one, model.join(worker=1) as other:
        late, quick = Attempt(one, exact), Attempt(other, exact)
        late.pull()
        quick.pull()
        quick.push(1)
        quick.pull(1)
        late.push(2)  # of round 0, into round 1, which it closes
        quick.worker.leave()
        np.testing.assert_allclose(late.pull(2), exact.params, **TOLERANCE)
    model.delete()


def test_layers_are_measured_with_what_is_compensated(client: Any, name: str) -> None:
    optimizer = coproc.optim.LARS(0.5, trust=0.5, delay_compensation=0.5, vectors=True)
    model = create(client, name, optimizer, shards=2)
    with model.join(worker=0) as slow, model.join(worker=1) as quick:
        slow.pull()
        quick.pull()
        quick.push({"w": values(1)})
        before = np.array(quick.pull(min_version=1).flat, np.float64)
        slow.push({"w": values(2)})
        found = np.array(quick.pull(min_version=2).flat, np.float64)
    model.delete()

    def step(params: Any, g: Any) -> Any:
        return 0.5 * np.linalg.norm(params) / np.linalg.norm(g) * g

    first = values(0).astype(np.float64)
    velocity = step(first, values(1).astype(np.float64))
    np.testing.assert_allclose(before, first - 0.5 * velocity, **TOLERANCE)
    velocity = 0.9 * velocity + step(before, exact_compensated(optimizer, values(2), before, first))
    np.testing.assert_allclose(found, before - 0.5 * velocity, **TOLERANCE)


# ---- from elsewhere


def test_from_another_host(client: Any, far: Any, name: str) -> None:
    optimizer = OPTIMIZERS[1]
    model, exact = create(client, name, optimizer, shards=2), Exact(optimizer)
    with far.model(name).join(worker=0) as one, model.join(worker=1) as other:
        slow, quick = Attempt(one, exact), Attempt(other, exact)
        stale(slow, quick)
        np.testing.assert_allclose(quick.base, exact.params, **TOLERANCE)
        # Both in one call: the push is of what was pulled before it.
        _, snapshot = one.push_pull({"w": values(23)}, min_version=9)
        exact.update((values(23), slow.base, 1.0))
        np.testing.assert_allclose(snapshot.flat, exact.params, **TOLERANCE)
    model.delete()


def test_with_a_compression_the_base_is_what_came_out_at_the_worker(client: Any, far: Any, name: str) -> None:
    optimizer = coproc.optim.SGD(0.3, delay_compensation=50.0)
    model, exact = create(client, name, optimizer), Exact(optimizer)
    with far.model(name).join(worker=0, compression="bf16") as one, model.join(worker=1) as other:
        slow, quick = Attempt(one, exact), Attempt(other, exact)
        slow.pull()
        quick.pull()
        quick.push(1)
        true = quick.pull(1)
        came = slow.pull(1)
        assert np.abs(came - true).max() > 1e-3
        quick.push(2)
        quick.pull(2)
        # Few bits, so that the gradient itself comes out as it is.
        g = np.random.default_rng(3).choice(np.array([-1.5, -0.5, 0.25, 1.0], np.float32), SIZE)
        one.push({"w": g})
        before = exact.params
        exact.update((g, came, 1.0))
        found = quick.pull(3)
        np.testing.assert_allclose(found, exact.params, rtol=2e-4, atol=2e-4)
        as_if = before - 0.3 * exact_compensated(optimizer, g, before, true)
        assert np.abs(found - as_if).max() > 1e-2
    model.delete()


def test_a_lease_that_was_lost_has_no_base(name: str) -> None:
    optimizer = coproc.optim.SGD(0.3, delay_compensation=0.5)
    exact = Exact(optimizer)
    with coproc.LocalCluster(memory_bytes=256 << 20) as cluster, coproc.connect(cluster.address) as client:
        model = create(client, name, optimizer)
        far = coproc.connect(cluster.address, near=False)
        with far, far.model(name).join(worker=0) as one, model.join(worker=1) as other:
            slow, quick = Attempt(one, exact), Attempt(other, exact)
            slow.pull()
            quick.pull()
            quick.push(1)
            quick.pull(1)
            cluster.servers[0].kill()
            cluster.servers[0].restart()
            slow.base = None
            slow.push(2)
            slow.pull(2)
            quick.push(3)  # its seat is as it was
            quick.pull(3)
            slow.push(4)
            np.testing.assert_allclose(quick.pull(4), exact.params, **TOLERANCE)


# ---- what must not be lost


def test_what_waits_is_swept_as_if_it_came_one_by_one(name: str) -> None:
    """Pushes that no server has seen when it is killed; at its start several of them are swept in one pass."""
    found = []
    optimizer = coproc.optim.Adam(0.05, delay_compensation=0.5)
    with coproc.LocalCluster(servers=2, memory_bytes=256 << 20) as cluster, coproc.connect(cluster.address) as client:
        for killed in (False, True):
            exact = Exact(optimizer)
            model = create(client, f"{name}-{killed}", optimizer, shards=2)
            with model.join(worker=0) as one, model.join(worker=1) as other:
                slow, quick = Attempt(one, exact), Attempt(other, exact)
                slow.pull()
                quick.pull()
                quick.push(1)
                quick.pull(1)
                quick.push(2)
                quick.pull(2)
                if killed:
                    for server in cluster.servers:
                        server.kill()
                for step in range(5):  # of version 0
                    slow.push(10 + step)
                    if not killed:
                        quick.worker.model.snapshot()
                quick.push(3)  # of version 2
                if killed:
                    for server in cluster.servers:
                        server.restart()
                found.append(quick.pull(8))
            np.testing.assert_allclose(found[-1], exact.params, **TOLERANCE)
    assert found[0].tobytes() == found[1].tobytes()


def test_what_is_pulled_while_all_slots_are_taken(name: str) -> None:
    optimizer = coproc.optim.SGD(0.3, delay_compensation=0.5)
    exact = Exact(optimizer)
    with coproc.LocalCluster(memory_bytes=256 << 20) as cluster, coproc.connect(cluster.address) as client:
        model = create(client, name, optimizer, slots=1)
        with model.join(worker=0) as one, model.join(worker=1) as other:
            slow, quick = Attempt(one, exact), Attempt(other, exact)
            slow.pull()
            quick.pull()
            quick.push(1)
            quick.pull(1)
            cluster.servers[0].kill()
            slow.push(2)  # of version 0, in its only slot
            slow.pull()  # of version 1: nobody descends
            cluster.servers[0].restart()
            slow.push(3)
            slow.push(4)
            np.testing.assert_allclose(quick.pull(4), exact.params, **TOLERANCE)


# Two workers join: each a record.
@pytest.mark.parametrize("point", ["log.append.after:5", "sweep.middle:3", "publish.before:3", "publish.after:3"])
def test_killed_between_commit_and_publication(point: str, name: str) -> None:
    """A slot is only read: what is swept again is compensated once."""
    found = []
    optimizer = coproc.optim.Momentum(0.1, delay_compensation=0.5)
    with coproc.LocalCluster(memory_bytes=256 << 20) as cluster, coproc.connect(cluster.address) as client:
        [server] = cluster.servers
        for killed in (False, True):
            exact = Exact(optimizer)
            if killed:
                server.environment["COPROC_FAILPOINT"] = point
                server.restart()
            model = create(client, f"{name[-20:]}-{killed}", optimizer)
            with model.join(worker=0) as one, model.join(worker=1) as other:
                slow, quick = Attempt(one, exact), Attempt(other, exact)
                slow.pull()
                quick.push(1)
                quick.pull(1)
                quick.push(2)
                quick.pull(2)
                slow.push(3)
                if killed:
                    server.wait(30)
                    del server.environment["COPROC_FAILPOINT"]
                    server.restart()
                slow.push(4)
                found.append(quick.pull(4))
            np.testing.assert_allclose(found[-1], exact.params, **TOLERANCE)
    assert found[0].tobytes() == found[1].tobytes()


# ---- in training


class Ones:
    """Four batches an epoch of one row each."""

    steps_per_epoch = 4

    def examples(self, first: int, stop: int) -> int:
        return stop - first

    def batch(self, epoch: int, k: int) -> Any:
        return np.ones((1, 1), np.float32), np.zeros(1, np.int64), None


@pytest.mark.parametrize(("n_send", "n_fetch"), [(1, 1), (1, 2), (2, 1), (2, 4)])
def test_a_training_worker_that_pulls_and_pushes_in_other_rhythms(
    client: Any, name: str, n_send: int, n_fetch: int
) -> None:
    """The base is what the last batch of a push was computed on, however long ago that was pulled."""
    optimizer = coproc.optim.SGD(0.3, delay_compensation=0.5)
    model, exact = create(client, name, optimizer), Exact(optimizer)
    with model.join(worker=0) as training, model.join(worker=1) as other:
        quick = Attempt(other, exact)

        class Backend:
            """Another worker pushes while it computes."""

            gradient = np.zeros(SIZE, np.float32)
            base: Any = None

            def value_and_grad(self, params: Any, batch: Any, *, out: Any, accumulate: bool = False) -> float:
                self.base = np.array(params)
                g = values(100 + exact.updates)
                out[:] = out + g if accumulate else g
                self.gradient = np.array(out)
                quick.push(200 + exact.updates)
                quick.pull(exact.updates)
                return 1.0

        class Exchange:
            """A worker as it is, whose pushes are waited for."""

            def __getattr__(self, name: str) -> Any:
                return getattr(training, name)

            @property
            def version(self) -> int:
                return int(model.version)

            def push(self, *, last: bool = False, **more: Any) -> Any:
                receipt = training.push(**more, finite=True)
                exact.update((backend.gradient, backend.base, 1.0))
                quick.pull(exact.updates)
                return receipt

        nothing: Any = None
        backend, exchange = Backend(), Exchange()
        steps = 8 // n_send
        task = WorkerTask("run", 0, nothing, {}, nothing, 4 // n_send, steps, steps, n_fetch, n_send)
        Loop(task, exchange, backend, Ones()).run()
        assert exact.updates == 8 + steps
        np.testing.assert_allclose(quick.base, exact.params, **TOLERANCE)
    model.delete()


# ---- memory


def test_the_second_half_of_a_slot_is_counted(client: Any, far: Any, name: str) -> None:
    taken = {}
    for number, settings in enumerate(({}, {"delay_compensation": 0.5})):
        model = create(client, f"{name}-{number}", coproc.optim.SGD(0.1, **settings), slots=4)
        before = model.status().memory_bytes
        with model.join(worker=0):
            near = model.status().memory_bytes - before
            with far.model(model.name).join(worker=1):
                taken[number] = near, model.status().memory_bytes - before - near
        model.delete()
    assert taken[0] == (file_bytes(Seat.size_bytes(4, SIZE)),) * 2
    floats = model.spec.slot_floats
    assert 2 * SIZE <= floats < 2 * SIZE + 16
    slots = file_bytes(Seat.size_bytes(4, floats))
    assert taken[1] == (slots, slots)
