"""The public contract: what a user writes, near and far, on one server and two."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import coproc


def make(client, name, size=100, **settings):
    settings.setdefault("optimizer", coproc.optim.SGD(learning_rate=1.0))
    return client.create_model(name, params={"w": np.zeros(size, np.float32)}, **settings)


@pytest.fixture(params=["near", "far"])
def any_client(request, client, far):
    return {"near": client, "far": far}[request.param]


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_pull_and_push(any_client, name, shards):
    w, b = np.arange(60, dtype=np.float32).reshape(20, 3), np.float32(7)
    model = any_client.create_model(
        name,
        params={"w": w, "b": b},
        optimizer=coproc.optim.SGD(learning_rate=0.5),
        consistency=coproc.Asp(),
        shards=shards,
    )
    with model.join(worker=3) as worker:
        assert worker.next_step == 0
        snapshot = worker.pull()
        assert snapshot.version == 0
        np.testing.assert_array_equal(snapshot.params["w"], w)
        assert snapshot.params["b"] == b
        with pytest.raises(ValueError, match="read-only"):
            snapshot.params["w"][0, 0] = 1
        receipt = worker.push({"w": np.ones_like(w), "b": np.float32(2)}, step=worker.next_step, examples=128)
        assert (receipt.step, receipt.duplicate, receipt.version_read) == (0, False, 0)
        snapshot = worker.pull(min_version=1)
        assert snapshot.version == 1
        np.testing.assert_array_equal(snapshot.params["w"], w - 0.5)
        assert snapshot.params["b"] == 6
        gradients = worker.gradients()
        gradients["w"][:] = 2
        gradients["b"][...] = 0
        worker.push(step=1)
        assert worker.next_step == 2
    snapshot = model.snapshot()
    assert snapshot.version == model.version == 2
    np.testing.assert_array_equal(snapshot.params["w"], w - 1.5)
    assert name in any_client.models()
    assert any_client.model(name).version == 2
    model.delete()
    assert name not in any_client.models()


def test_a_client_on_the_host_is_near(client, far):
    assert client.near
    assert not far.near


def test_an_attempt_continues_where_the_last_one_stopped(any_client, name):
    model = make(any_client, name)
    for start in (0, 3, 6):
        with model.join(worker=1) as worker:
            assert worker.next_step == start
            for _ in range(3):
                worker.push({"w": np.ones(100)})
    np.testing.assert_array_equal(model.snapshot().params["w"], -9)
    model.delete()


def test_a_step_that_is_there_is_a_duplicate_and_a_later_one_is_refused(any_client, name):
    model = make(any_client, name)
    with model.join(worker=0) as one, model.join(worker=0) as other:
        assert not one.push({"w": np.full(100, 1.0)}, step=0).duplicate
        assert other.push({"w": np.full(100, 5.0)}, step=0).duplicate
        assert other.next_step == 1
        assert not other.push({"w": np.full(100, 10.0)}, step=1).duplicate
        assert one.push({"w": np.full(100, 50.0)}, step=1).duplicate
        with pytest.raises(coproc.PushRejected, match="next step is 2"):
            one.push({"w": np.ones(100)}, step=3)
    np.testing.assert_array_equal(model.snapshot().params["w"], -11)
    model.delete()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_place(any_client, name, bad):
    model = any_client.create_model(
        name, params={"a": np.zeros((2, 3)), "b": np.zeros(4)}, optimizer=coproc.optim.SGD(0.1)
    )
    with model.join(worker=0) as worker:
        b = np.zeros(4)
        b[2] = bad
        with pytest.raises(coproc.PushRejected, match=r"b\[2\]"):
            worker.push({"a": np.zeros((2, 3)), "b": b})
        assert worker.next_step == 0
        worker.push({"a": np.ones((2, 3)), "b": np.full(4, 1e30)})  # its square is not finite, it is
    assert model.snapshot().version == 1
    model.delete()


def test_bad_arguments_get_a_sentence(client, name):
    model = make(client, name)
    with model.join(worker=0) as worker:
        with pytest.raises(coproc.PushRejected, match=r"shape \(99,\)"):
            worker.push({"w": np.ones(99)})
        with pytest.raises(coproc.PushRejected, match="missing \\['w'\\], unknown \\['v'\\]"):
            worker.push({"v": np.ones(100)})
        with pytest.raises(coproc.ConfigError, match="examples"):
            worker.push({"w": np.ones(100)}, examples=0)
    with pytest.raises(coproc.ModelExists, match="already"):
        make(client, name)
    with pytest.raises(coproc.ModelNotFound, match="no model 'nobody'"):
        client.model("nobody")
    with pytest.raises(coproc.ConfigError, match="name"):
        make(client, "../etc")
    with pytest.raises(coproc.ConfigError, match="not all finite"):
        client.create_model("x", params={"w": np.array([np.nan])}, optimizer=coproc.optim.SGD(0.1))
    with pytest.raises(coproc.ConfigError, match="at least one tensor"):
        client.create_model("x", params={}, optimizer=coproc.optim.SGD(0.1))
    with pytest.raises(coproc.OutOfMemory, match="budget"):
        make(client, "large", size=150_000_000)
    assert "large" not in client.models()
    with pytest.raises(coproc.ConfigError, match="0 to 4095"):
        model.join(worker=5000)
    model.delete()


def test_a_wait_has_an_end(any_client, name):
    model = make(any_client, name)
    with model.join(worker=0) as worker, pytest.raises(coproc.Timeout, match="version 0, not 5"):
        worker.pull(min_version=5, timeout_s=0.2)
    model.delete()


def test_who_is_deleted_says_so(client, name):
    model = make(client, name)
    with model.join(worker=0) as worker:
        worker.push({"w": np.ones(100)})
        client.model(name).delete()
        with pytest.raises(coproc.ModelNotFound, match="deleted"):
            worker.push({"w": np.ones(100)})
        with pytest.raises(coproc.ModelNotFound, match="deleted"):
            worker.pull(min_version=100)


def test_bsp_averages_by_examples_and_waits_for_the_round(any_client, name):
    model = make(any_client, name, consistency=coproc.Bsp(workers=2))
    with model.join(worker=0) as zero, model.join(worker=1) as one:
        zero.push({"w": np.full(100, 4.0)}, examples=30)
        with pytest.raises(coproc.Timeout, match="waits for workers \\[1\\]"):
            zero.pull(timeout_s=0.1)
        assert model.version == 0
        one.push({"w": np.full(100, 8.0)}, examples=10)
        assert zero.pull().version == one.pull().version == 1
        np.testing.assert_allclose(model.snapshot().params["w"], -5.0)
        zero.push({"w": np.full(100, 1.0)})
        one.skip()
        np.testing.assert_allclose(zero.pull().params["w"], -6.0)
        one.leave()
        zero.push({"w": np.full(100, 1.0)})
        np.testing.assert_allclose(zero.pull().params["w"], -7.0)
    with pytest.raises(coproc.ConfigError, match="0 to 1"):
        model.join(worker=2)
    model.delete()


def test_ssp_lets_the_fastest_be_ahead_by_the_bound(any_client, name):
    model = make(any_client, name, consistency=coproc.Ssp(bound=2))
    with model.join(worker=0) as fast, model.join(worker=1) as slow:
        for step in range(3):
            fast.pull(timeout_s=5)
            fast.push({"w": np.ones(100)}, step=step)
        with pytest.raises(coproc.Timeout, match="bound of 2"):
            fast.pull(timeout_s=0.1)
        slow.push({"w": np.full(100, 10.0)})
        # What it reads has the slow worker's push.
        assert fast.pull(timeout_s=5).params["w"][0] == -13
    model.delete()


def test_a_push_waits_for_a_slot_and_says_why(client, name):
    model = make(client, name, consistency=coproc.Bsp(workers=2))
    with model.join(worker=0, slots=2) as worker, model.join(worker=1):
        worker.push({"w": np.ones(100)})
        worker.push({"w": np.ones(100)})
        with pytest.raises(coproc.Timeout, match="no slot"):
            worker.push({"w": np.ones(100)}, timeout_s=0.1)
    model.delete()


def test_a_learning_rate_changes_between_two_pushes(any_client, name):
    model = make(any_client, name, shards=2)
    with model.join(worker=0) as worker:
        worker.push({"w": np.ones(100)})
        model.set_learning_rate(0.5)
        worker.push({"w": np.ones(100)})
    np.testing.assert_array_equal(model.snapshot().params["w"], -1.5)
    with pytest.raises(coproc.ConfigError, match="at least 0"):
        model.set_learning_rate(-1)
    model.delete()


def test_status_counts(client, name):
    model = make(client, name)
    with model.join(worker=0) as worker, model.join(worker=1) as other:
        worker.pull()
        worker.push({"w": np.ones(100)}, examples=10, loss=2.0)
        other.pull(min_version=1)
        worker.push({"w": np.ones(100)}, examples=30, loss=1.0)
        model.snapshot()
        status = model.status()
        assert (status.pushes_count, status.examples_count, status.version) == (2, 40, 2)
        assert status.loss_sum == 50.0
        assert status.staleness_max == 1
        assert status.workers_count == 2
        assert status.memory_bytes > 0
    cluster = client.status()
    assert len(cluster.servers) == 2
    assert all(0 < server.memory_used_bytes < server.memory_limit_bytes for server in cluster.servers)
    used = cluster.servers[0].memory_used_bytes
    model.delete()
    assert client.status().servers[0].memory_used_bytes < used


def test_a_checkpoint_is_a_whole_version(client, name):
    from safetensors.numpy import load

    model = make(client, name)
    with model.join(worker=0) as worker:
        worker.push({"w": np.ones(100)})
    path = model.checkpoint()
    with client.tier.open(path) as block:
        np.testing.assert_array_equal(load(bytes(block.data))["w"], -1)
    model.delete()


def test_a_token_is_asked_for():
    with coproc.LocalCluster(token="s3cret") as cluster:
        with pytest.raises(coproc.Unauthenticated):
            coproc.connect(cluster.address)
        with pytest.raises(coproc.Unauthenticated):
            coproc.connect(cluster.address, token="wrong")
        with coproc.connect(cluster.address, token="s3cret") as client:
            assert client.models() == []


def test_nobody_there():
    with pytest.raises(coproc.Unreachable, match=r"127\.0\.0\.1:1"):
        coproc.connect("coproc://127.0.0.1:1")
    with pytest.raises(coproc.ConfigError, match="coproc://"):
        coproc.connect("127.0.0.1:1")


def test_threads_of_one_process_may_be_different_workers(client, name):
    model = make(client, name, consistency=coproc.Bsp(workers=4), shards=3)
    failures = []

    def work(number):
        try:
            with model.join(worker=number) as worker:
                for step in range(50):
                    snapshot = worker.pull()
                    assert snapshot.version == step
                    assert (snapshot.flat == -step).all()
                    worker.push({"w": np.ones(100)}, step=step)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert model.snapshot().version == 50
    model.delete()


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.push({"w": "text"}),
        lambda w: w.push({"w": [[1, 2], [3]]}),
        lambda w: w.push({"w": None}),
        lambda w: w.push([1, 2]),
        lambda w: w.push({"w": np.ones(100, complex)}),
    ],
    ids=["text", "ragged", "none", "list", "complex"],
)
def test_what_is_no_gradient_is_refused(any_client, name, call):
    model = make(any_client, name)
    with model.join(worker=0) as worker, pytest.raises(coproc.PushRejected, match="no gradient of its model"):
        call(worker)
    assert model.snapshot().version == 0
    model.delete()


@pytest.mark.parametrize(
    "call",
    [
        lambda c, w: w.push({"w": np.ones(100)}, examples=1.5),
        lambda c, w: w.push({"w": np.ones(100)}, examples=2**62),
        lambda c, w: w.push({"w": np.ones(100)}, step=-1),
        lambda c, w: w.skip(-1),
        lambda c, w: w.push({"w": np.ones(100)}, step="a"),
        lambda c, w: w.model.join("a"),
        lambda c, w: w.model.join(-1),
        lambda c, w: w.model.join(1, slots=2.5),
        lambda c, w: c.model(5),
        lambda c, w: make(c, "x", consistency="bsp"),
        lambda c, w: make(c, "x", optimizer="sgd"),
        lambda c, w: make(c, "x", shards=2.5),
        lambda c, w: make(c, "x", slots=100),
        lambda c, w: coproc.Bsp(workers=2.5),
        lambda c, w: coproc.Bsp(workers=10_000),
        lambda c, w: coproc.Ssp(bound="a"),
        lambda c, w: w.model.set_learning_rate(1e39),
    ],
)
def test_arguments_that_cannot_be_get_a_sentence(any_client, name, call):
    model = make(any_client, name)
    with model.join(worker=0) as worker, pytest.raises(coproc.ConfigError):
        call(any_client, worker)
    assert model.snapshot().version == 0
    model.delete()
