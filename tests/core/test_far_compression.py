"""Compression between hosts: the model gets what was pushed, the client what is there, whatever breaks on the way."""

from __future__ import annotations

import json
import random
import time

import grpc
import numpy as np
import pytest

import coproc
from coproc.compression import TopK, as_compression, registered
from coproc.compression.base import PIECE_FLOATS
from coproc.far import no_lines
from coproc.v1 import coproc_pb2 as pb
from coproc.v1 import coproc_pb2_grpc
from storage_tier.wire import channel, parse_address

EVERY = [*registered(), TopK(fraction=0.2)]
SIZE = PIECE_FLOATS + 1001


def make(client, name, size=SIZE, **settings):
    settings.setdefault("optimizer", coproc.optim.SGD(learning_rate=1.0))
    return client.create_model(name, params={"w": np.zeros(size, np.float32)}, **settings)


def gradient(step, size=SIZE):
    return np.random.default_rng(step).standard_normal(size).astype(np.float32)


def left_out(worker):
    return worker._attempt._residual.kept


def assert_is_there(model, worker, gradients):
    """With SGD at rate 1, parameters + residual = the sum of the gradients, but for the rounding of float32 sums."""
    wanted = np.sum([g.astype(np.float64) for g in gradients], axis=0)
    found = -model.snapshot().flat.astype(np.float64) + left_out(worker)
    rounding = (
        2.0**-22 * np.sum([np.abs(g) for g in gradients], axis=0) + 2.0**-22 * len(gradients) * np.abs(wanted).max()
    )
    assert (np.abs(found - wanted) <= rounding).all()


class Stub:
    """The service, with answers that get lost."""

    def __init__(self, stub):
        self.stub = stub
        self.lost = []
        """Called instead of answering, in order; None answers."""
        self.pushed = []
        self.pulled = []

    def __getattr__(self, method):
        return getattr(self.stub, method)

    def Push(self, requests, timeout):
        sent = []
        self.pushed.append(sent)

        def noted():
            for request in requests:
                sent.append(request)
                yield request

        answer = self.stub.Push(noted(), timeout=timeout)
        lose = self.lost.pop(0) if self.lost else None
        if lose is not None:
            lose()
        return answer

    def Pull(self, request, timeout):
        lose = self.lost.pop(0) if self.lost else None
        kinds = []
        self.pulled.append(kinds)
        first, *parts = self.stub.Pull(request, timeout=timeout)
        yield first
        for part in parts:
            if lose is not None and kinds:
                lose()
            kinds.append(part.coded)
            yield part

    def coded(self, push):
        return [part.coded for part in self.pushed[push][1:]]

    def sent(self, push):
        return b"".join(part.data for part in self.pushed[push][1:])


def unreachable():
    raise coproc.Unreachable("the answer got lost")


def join(model, worker=0, compression="int8"):
    """A worker and the stub it speaks by: gRPC alone."""
    model._new_lines = no_lines
    attempt = model.join(worker, compression=compression)
    attempt._attempt._stub = stub = Stub(attempt._attempt._stub)
    return attempt, stub


@pytest.mark.parametrize("compression", EVERY, ids=str)
@pytest.mark.parametrize("shards", [1, 2])
def test_pushes_and_pulls(far, client, name, compression, shards):
    model = make(far, name, shards=shards)
    near = client.model(name)
    worker, stub = join(model, compression=compression)
    with worker:
        assert worker.pull().version == 0
        pushed = [gradient(step) for step in range(6)]
        for step, g in enumerate(pushed):
            assert not worker.push({"w": g}).duplicate
            assert all(stub.coded(step))
            snapshot = worker.pull(min_version=step + 1)
            assert snapshot.version == step + 1
            with pytest.raises(ValueError, match="read-only"):
                snapshot.flat[0] = 1
        assert_is_there(near, worker, pushed)
        # The first pull of a lease is whole; then differences, that end at no difference at all.
        assert stub.pulled[0] == [False, False]
        assert all(all(kinds) for kinds in stub.pulled[1:])
        there = near.snapshot().flat
        before = np.inf
        for _ in range(400):
            different = np.abs(worker.pull().flat.astype(np.float64) - there).max()
            if different == 0:
                break
            assert different <= before
            before = different
        assert different == 0
        worker.push({"w": gradient(6)}, flush=True)
        assert not any(stub.coded(6))
        assert not left_out(worker).any()
        assert_is_there(near, worker, [*pushed, gradient(6)])
    model.delete()


@pytest.mark.parametrize("given", [None, "none"])
def test_without_compression_everything_is_as_it_was(far, client, name, given):
    model = make(far, name)
    worker, stub = join(model, compression=given)
    with worker:
        expected = np.zeros(SIZE, np.float32)
        for step in range(3):
            worker.push({"w": gradient(step)})
            expected = expected - np.float32(1) * gradient(step)
            assert worker.pull(min_version=step + 1).flat.tobytes() == expected.tobytes()
        assert not any(any(stub.coded(push)) for push in range(3))
        assert not any(any(kinds) for kinds in stub.pulled)
        assert stub.sent(2) == gradient(2).tobytes()
    assert client.model(name).snapshot().flat.tobytes() == expected.tobytes()
    model.delete()


def test_shared_memory_ignores_it(client, name):
    model = make(client, name)
    with model.join(0, compression="topk") as worker:
        worker.push({"w": gradient(0)}, flush=True)
        assert worker.pull(min_version=1).flat.tobytes() == (-gradient(0)).tobytes()
    with pytest.raises(coproc.ConfigError, match="no compression is called 'gzip'"):
        model.join(0, compression="gzip")
    model.delete()


# ---- what breaks


@pytest.mark.parametrize("compression", EVERY, ids=str)
def test_a_push_whose_answer_is_lost_is_sent_again_and_counts_once(far, client, name, compression):
    model = make(far, name)
    worker, stub = join(model, compression=compression)
    dice = random.Random(name)
    pushed = [gradient(step) for step in range(10)]
    with worker:
        for g in pushed:
            stub.lost = [unreachable] * dice.randrange(3)
            tries = len(stub.pushed)
            receipt = worker.push({"w": g})
            assert receipt.duplicate == (len(stub.pushed) - tries > 1)
            assert len({stub.sent(number) for number in range(tries, len(stub.pushed))}) == 1
        assert len(stub.pushed) > len(pushed)
        assert_is_there(client.model(name), worker, pushed)
    model.delete()


def test_a_push_that_is_given_up_after_it_was_sent_counts_once(far, client, name):
    model = make(far, name)
    worker, stub = join(model)
    pushed = [gradient(step) for step in range(4)]
    with worker:
        worker.push({"w": pushed[0]})
        stub.lost = [unreachable] * 1000
        with pytest.raises(coproc.Unreachable):
            worker.push({"w": pushed[1]}, timeout_s=0.05)
        stub.lost.clear()
        # Once it is asked for again, and once it is taken for granted.
        assert worker.push({"w": pushed[1]}, step=1).duplicate
        worker.push({"w": pushed[2]})
        stub.lost = [unreachable] * 1000
        with pytest.raises(coproc.Unreachable):
            worker.push({"w": pushed[3]}, timeout_s=0.05)
        stub.lost.clear()
        worker.skip(step=4)
        assert_is_there(client.model(name), worker, pushed)
    model.delete()


def test_a_gradient_that_is_dropped_for_a_twins_leaves_the_residual_as_it_was(far, client, name):
    model = make(far, name)
    worker, stub = join(model)
    with worker, client.model(name).join(0) as twin:
        worker.push({"w": gradient(0)})
        kept = left_out(worker).copy()
        twin.push({"w": gradient(1)}, step=1)
        stub.lost = [unreachable]
        assert worker.push({"w": gradient(99)}, step=1).duplicate
        np.testing.assert_array_equal(left_out(worker), kept)
        worker.push({"w": gradient(2)})
        assert_is_there(model, worker, [gradient(step) for step in range(3)])
    model.delete()


def test_a_gradient_that_is_refused_leaves_the_residual_as_it_was(far, client, name):
    model = make(far, name)
    worker, _ = join(model)
    with worker:
        worker.push({"w": gradient(0)})
        kept = left_out(worker).copy()
        bad = gradient(1)
        bad[SIZE - 1] = np.nan
        with pytest.raises(coproc.PushRejected, match=rf"w\[{SIZE - 1}\] is nan"):
            worker.push({"w": bad})
        with pytest.raises(coproc.PushRejected, match="next step is 1"):
            worker.push({"w": gradient(1)}, step=5)
        np.testing.assert_array_equal(left_out(worker), kept)
        worker.push({"w": gradient(1)})
        assert_is_there(client.model(name), worker, [gradient(0), gradient(1)])
    model.delete()


@pytest.mark.parametrize("compression", EVERY, ids=str)
def test_a_pull_that_breaks_off_is_made_whole(far, client, name, compression):
    model = make(far, name)
    worker, stub = join(model, compression=compression)
    with worker:
        for step in range(4):
            worker.pull()
            worker.push({"w": gradient(step)})
            stub.lost = [unreachable]
            snapshot = worker.pull(min_version=step + 1)
            assert stub.pulled[-2:] == [[True], [False, False]]
            assert snapshot.flat.tobytes() == client.model(name).snapshot().flat.tobytes()
    model.delete()


@pytest.mark.parametrize("compression", ["int8", "topk"])
def test_a_server_that_is_restarted_in_the_middle(name, compression):
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address, near=False) as far:
        model = make(far, name)
        worker, stub = join(model, compression=compression)
        pushed = [gradient(step) for step in range(6)]

        def restart():
            cluster.servers[0].kill()
            cluster.servers[0].restart()
            unreachable()

        with worker:
            for step, g in enumerate(pushed):
                worker.pull(min_version=step)
                if step in (2, 4):
                    stub.lost = [restart]
                receipt = worker.push({"w": g}, timeout_s=60)
                assert receipt.duplicate == (step in (2, 4))
            assert worker.pull(min_version=6).version == 6
            assert_is_there(model, worker, pushed)
            cluster.servers[0].kill()
            cluster.servers[0].restart()
            there = model.snapshot().flat
            assert worker.pull().flat.tobytes() == there.tobytes()
            assert stub.pulled[-1] == [False, False]


# ---- memory


def no_seats(model, timeout_s=10):
    """Seats are taken back a moment after they were closed."""
    deadline = time.monotonic() + timeout_s
    while model.status().seats_count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_replica_is_memory_of_the_budget_and_of_the_model(far, client, name):
    empty = client.status().servers[0].memory_used_bytes
    model = make(far, name)

    def used():
        return model.status().memory_bytes, client.status().servers[0].memory_used_bytes

    with model.join(0):
        plain = used()
    no_seats(model)
    before = used()
    with model.join(0, compression="bf16") as worker:
        with_replica = used()
        worker.pull()
    no_seats(model)
    assert [a - b for a, b in zip(with_replica, plain, strict=True)] == [4 * SIZE] * 2
    assert used() == before
    worker = model.join(0, compression="bf16")
    model.delete()
    assert client.status().servers[0].memory_used_bytes == empty
    worker.close()


def test_without_room_for_the_replica_joining_is_refused_and_takes_nothing(name):
    size = 1 << 20
    with coproc.LocalCluster(memory_bytes=4 * 4 * size) as cluster, coproc.connect(cluster.address, near=False) as far:
        model = make(far, name, size, slots=1, buffers=2)
        before = far.status().servers[0].memory_used_bytes
        with model.join(0):
            room = far.status().servers[0]
        no_seats(model)
        free = room.memory_limit_bytes - room.memory_used_bytes
        assert 0 < free < 4 * size, "the budget of this test fits no more"
        with pytest.raises(coproc.OutOfMemory, match="replicas"):
            model.join(0, compression="bf16")
        no_seats(model)
        assert far.status().servers[0].memory_used_bytes == before
        with model.join(0) as worker:
            worker.push({"w": np.ones(size)})


# ---- strangers, who know the protocol only


@pytest.fixture
def stub(cluster):
    [(host, port), *_] = parse_address(cluster.address)
    with channel(host, port) as connection:
        yield coproc_pb2_grpc.CoprocessorStub(connection)


def joined(stub, name, description):
    request = pb.JoinRequest(name=name, kind=pb.SEAT_KIND_FAR_WORKER, worker=0, compression_json=description)
    return stub.Join(request, timeout=10).lease_id


def push(stub, name, lease, *parts, step=0):
    begin = pb.PushBegin(name=name, lease_id=lease, step=step, examples=1, timeout_ms=1000)
    requests = [pb.PushRequest(begin=begin), *(pb.PushRequest(**part) for part in parts)]
    return stub.Push(iter(requests), timeout=10)


def refused(call, *arguments):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    return caught.value.details()


@pytest.mark.parametrize(
    "description",
    [
        *("bf16", "{", "[]", "null", "7", "[" * 5000),
        *('{"name": "gzip"}', '{"name": "topk", "fraction": 0}', '{"name": "bf16", "x": 1}'),
    ],
)
def test_what_describes_no_compression_is_refused(stub, client, name, description):
    model = make(client, "described", 100)
    assert "compression" in refused(joined, stub, "described", description) or description.count("topk")
    assert model.status().seats_count == 0
    model.delete()


def code(compression, values):
    return as_compression(compression).encode(values, np.empty_like(values))


def test_hostile_chunks_are_refused_and_the_server_goes_on(stub, client, name):
    size = 5000
    model = make(client, name, size)
    ones = np.ones(size, np.float32)
    lease = joined(stub, name, '{"name": "int8"}')
    right = code("int8", ones)

    def refusal(*parts):
        return refused(push, stub, name, lease, *parts)

    scales = [np.float32(value).tobytes() for value in (np.nan, np.inf, -1.0, 3e38)]
    assert "5,000 values are 5,008 bytes in int8" in refusal({"coded": right[:-1]})
    assert "5,000 values are 5,008 bytes in int8" in refusal({"coded": right + b"x"})
    assert "5,000 values are 5,008 bytes in int8" in refusal({"coded": b""})
    assert "a coded chunk was sent after 20,000" in refusal({"coded": right}, {"coded": right})
    assert "a coded chunk was sent after 6" in refusal({"chunk": bytes(6)}, {"coded": right})
    assert "only 0 were sent" in refusal()
    for scale in scales[:3]:
        assert "scale of a block" in refusal({"coded": scale + right[4:]})
    assert "not finite" in refusal({"coded": scales[3] + right[4:]})
    dice = random.Random(name)
    for _ in range(30):
        with pytest.raises(grpc.RpcError):
            push(stub, name, lease, {"coded": dice.randbytes(dice.choice([1, 4999, 5007, 6000]))})
    plain = joined(stub, name, "")
    assert "joined without a compression" in refused(push, stub, name, plain, {"coded": right})
    assert model.version == 0
    # Plain and coded chunks may follow each other; after all that, step 0 is still the next.
    assert push(stub, name, lease, {"coded": right}).next_step == 1
    assert push(stub, name, lease, {"chunk": ones.tobytes()}, step=1).next_step == 2
    np.testing.assert_allclose(model.snapshot().flat, -2, rtol=1e-6)
    for each in (lease, plain):
        stub.Close(pb.CloseRequest(name=name, lease_id=each), timeout=10)
    model.delete()


@pytest.mark.parametrize("places", [[5, 5, 6], [6, 5, 7], [0, 1, 100], [0, 1, 65_535]])
def test_places_that_are_none_are_refused(stub, client, name, places):
    model = make(client, "places", 100)
    lease = joined(stub, "places", json.dumps(TopK(0.03).to_config()))
    sent = np.array(places, "<u2").tobytes() + np.ones(3, "<f4").tobytes()
    assert "must ascend" in refused(push, stub, "places", lease, {"coded": sent})
    stub.Close(pb.CloseRequest(name="places", lease_id=lease), timeout=10)
    assert model.version == 0
    model.delete()


def test_a_client_that_has_another_replica_gets_all_parameters(stub, client, name):
    model = make(client, name)
    lease = joined(stub, name, '{"name": "bf16"}')

    def pulled(held):
        request = pb.PullRequest(name=name, lease_id=lease, replica=held, timeout_ms=1000)
        first, *parts = stub.Pull(request, timeout=10)
        assert first.replica != 0
        return first.replica, [bool(part.coded) for part in parts]

    number, kinds = pulled(0)
    assert not any(kinds)
    number, kinds = pulled(number)
    assert kinds == [True, True]
    for held in (0, 99, -1, 1):
        assert not any(pulled(held)[1])
    stub.Close(pb.CloseRequest(name=name, lease_id=lease), timeout=10)
    model.delete()


# ---- learning


def test_a_small_model_learns_with_each_as_without(far, client, name):
    """Logistic regression by full batches: the loss is at most 2 % above that of plain pushes."""
    random_numbers = np.random.default_rng(5)
    features = random_numbers.standard_normal((2000, 50)).astype(np.float32)
    labels = features @ random_numbers.standard_normal(50) + random_numbers.standard_normal(2000) * 5 > 0

    def loss_and_gradient(w):
        p = 1 / (1 + np.exp(-(features @ w)))
        loss = -np.log(np.where(labels, p, 1 - p)).mean()
        return loss, (features.T @ (p - labels) / len(labels)).astype(np.float32)

    losses = {}
    for number, compression in enumerate([None, *EVERY]):
        model = make(far, f"learns-{number}", 50, optimizer=coproc.optim.SGD(learning_rate=0.3))
        with model.join(0, compression=compression) as worker:
            for step in range(120):
                worker.push({"w": loss_and_gradient(worker.pull(min_version=step).flat)[1]})
        losses[compression] = loss_and_gradient(client.model(model.name).snapshot().flat)[0]
        model.delete()
    assert losses[None] < 0.5
    assert all(loss <= 1.02 * losses[None] for loss in losses.values()), losses
