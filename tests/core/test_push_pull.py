"""push_pull is push, then pull, in one call from another host; whatever breaks between the two."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

import coproc
from coproc.compression import TopK, registered
from coproc.compression.base import PIECE_FLOATS
from coproc.far import no_lines
from coproc.v1 import coproc_pb2 as pb
from coproc.v1 import coproc_pb2_grpc
from storage_tier.wire import channel, parse_address

EVERY = [None, *registered(), TopK(fraction=1.0)]
SMALL, LARGE = 1000, PIECE_FLOATS + 1001
TWO = coproc.Bsp(workers=2)


def make(client, name, size=LARGE, **settings):
    settings.setdefault("optimizer", coproc.optim.SGD(learning_rate=1.0))
    return client.create_model(name, params={"w": np.zeros(size, np.float32)}, **settings)


def gradient(step, size=LARGE):
    return np.random.default_rng(step).standard_normal(size).astype(np.float32)


def descended(count, size=LARGE):
    """What SGD at rate 1 makes of zeros and the first gradients, one after the other."""
    params = np.zeros(size, np.float32)
    for step in range(count):
        params = params - gradient(step, size)
    return params


class Stub:
    """The service, with calls that break."""

    def __init__(self, stub):
        self.stub = stub
        self.breaks = []
        """For each PushPull in turn (after how many answers, what is done then with the others), or None."""
        self.calls = []
        self.kinds = []
        """For each PushPull or Pull whether its parts were coded."""

    def __getattr__(self, method):
        return getattr(self.stub, method)

    def Push(self, requests, timeout):
        self.calls.append("Push")
        return self.stub.Push(requests, timeout=timeout)

    def Pull(self, request, timeout):
        self.calls.append("Pull")
        return self._noted(self.stub.Pull(request, timeout=timeout))

    def PushPull(self, requests, timeout):
        self.calls.append("PushPull")
        answers = self.stub.PushPull(requests, timeout=timeout)
        breaks = self.breaks.pop(0) if self.breaks else None
        return self._noted(answers if breaks is None else self._broken(answers, *breaks))

    def _broken(self, answers, after, act):
        for _ in range(after):
            yield next(answers)
        act(answers)
        yield from answers

    def _noted(self, answers):
        kinds = set()
        self.kinds.append(kinds)
        for answer in answers:
            if getattr(answer, "coded", b"") or getattr(answer, "chunk", b""):
                kinds.add(bool(answer.coded))
            elif hasattr(answer, "data"):
                kinds.add(answer.coded)
            yield answer


def lose(answers):
    """The next answer comes, and gets lost."""
    next(answers)
    raise coproc.Unreachable("the answer got lost")


def lose_all(answers):
    list(answers)
    raise coproc.Unreachable("all answers got lost")


def join(model, worker=0, compression=None):
    """A worker by gRPC alone; by the line a push and a pull are two calls."""
    model._new_lines = no_lines
    attempt = model.join(worker, compression=compression)
    attempt._attempt._stub = stub = Stub(attempt._attempt._stub)
    return attempt, stub


def left_out(worker):
    residual = worker._attempt._residual
    return np.zeros(1) if residual is None else residual.kept


# ---- as push and pull


@pytest.mark.parametrize("compression", EVERY, ids=str)
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_it_is_push_and_pull(far, name, compression, shards, size):
    one, two = make(far, f"{name}-1", size, shards=shards), make(far, f"{name}-2", size, shards=shards)
    (fused, stub), (plain, _) = join(one, compression=compression), join(two, compression=compression)
    with fused, plain:
        for step in range(5):
            settings = {"examples": 3, "loss": 0.5, "flush": step == 3}
            got = fused.push_pull({"w": gradient(step, size)}, min_version=step + 1, **settings)
            receipt = plain.push({"w": gradient(step, size)}, **settings)
            snapshot = plain.pull(step + 1)
            assert got[0] == receipt
            assert got[1].version == snapshot.version == step + 1
            assert got[1].flat.tobytes() == snapshot.flat.tobytes() == got[1].params["w"].tobytes()
            assert fused.next_step == plain.next_step == step + 1
            np.testing.assert_array_equal(left_out(fused), left_out(plain))
            with pytest.raises(ValueError, match="read-only"):
                got[1].flat[0] = 1
        assert stub.calls == ["PushPull"] * 5
        # The first brings all parameters as they are, the others differences.
        assert stub.kinds == [{False}, *[{compression is not None}] * 4]
        assert one.status().examples_count == 15
    one.delete()
    two.delete()


@pytest.mark.parametrize("shards", [1, 2])
def test_near_it_is_push_and_pull(client, name, shards):
    model = make(client, name, shards=shards)
    with model.join(0) as worker:
        for step in range(3):
            worker.gradient()[:] = gradient(step)
            receipt, snapshot = worker.push_pull(min_version=step + 1, copy=True)
            assert receipt == (step, False, step - 1 if step == 0 else step, False)
            assert (snapshot.version, worker.next_step) == (step + 1, step + 1)
            assert snapshot.flat.tobytes() == descended(step + 1).tobytes()
        # A copy outlives pushes, of which each takes a buffer of the model.
        for step in range(3, 9):
            worker.push({"w": gradient(step)})
            assert model.snapshot().version == step + 1
        assert snapshot.flat.tobytes() == descended(3).tobytes()
    model.delete()


@pytest.mark.parametrize("hosts", ["near-near", "near-far", "far-far"])
@pytest.mark.parametrize("compression", [None, "bf16"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_two_workers_see_the_version_of_their_round(client, far, name, hosts, compression, size):
    """Worker w pushes w + step + 1: exact in every compression, and no sum of halves of two rounds."""
    model = make(client, name, size, consistency=TWO)
    of = {"near": model, "far": far.model(name)}
    workers = [of[host].join(w, compression=compression) for w, host in enumerate(hosts.split("-"))]

    def rounds(worker):
        seen = []
        for step in range(6):
            receipt, snapshot = worker.push_pull({"w": np.full(size, worker.worker + step + 1)})
            seen.append((receipt.step, receipt.duplicate, snapshot.version, set(snapshot.flat)))
        return seen

    expected, value = [], 0.0
    for step in range(6):
        value -= step + 1.5
        expected.append((step, False, step + 1, {value}))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(rounds, workers, timeout=60)) == [expected, expected]
    for worker in workers:
        worker.close()
    model.delete()


# ---- what breaks


@pytest.mark.parametrize("compression", EVERY, ids=str)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_receipt_that_is_lost_is_asked_for_again(far, client, name, compression, size):
    model = make(far, name, size)
    (worker, stub), exact = join(model, compression=compression), client.model(name)
    with worker:
        worker.push_pull({"w": gradient(0, size)}, min_version=1)
        for step, act in enumerate([lose, lose_all, lose], 1):
            stub.calls.clear()
            stub.breaks = [(0, act), (0, act)]
            receipt, snapshot = worker.push_pull({"w": gradient(step, size)}, min_version=step + 1)
            assert stub.calls == ["PushPull"] * 3
            assert receipt == (step, True, step, False)
            # A stream that broke off leaves no replica: all came as it is.
            assert snapshot.version == step + 1
            assert snapshot.flat.tobytes() == exact.snapshot().flat.tobytes()
        wanted = descended(4, size).astype(np.float64)
        np.testing.assert_allclose(exact.snapshot().flat - left_out(worker), wanted, atol=1e-5)
        assert model.status().pushes_count == 4
    model.delete()


@pytest.mark.parametrize("compression", EVERY, ids=str)
@pytest.mark.parametrize("after", [1, 2])
def test_a_version_that_breaks_off_is_pulled_and_nothing_is_sent_again(far, client, name, compression, after):
    model = make(far, name)
    (worker, stub), exact = join(model, compression=compression), client.model(name)
    with worker:
        for step in range(3):
            stub.calls.clear()
            stub.breaks = [(after, lose)]
            receipt, snapshot = worker.push_pull({"w": gradient(step)}, min_version=step + 1)
            assert stub.calls == ["PushPull", "Pull"]
            assert stub.kinds[-1] == {False}
            assert receipt == (step, False, step - 1 if step == 0 else step, False)
            assert snapshot.version == step + 1
            assert snapshot.flat.tobytes() == exact.snapshot().flat.tobytes()
    model.delete()


def test_a_new_lease_has_nothing_to_do_with_the_replica_of_the_old_one(far, client, name):
    """Both leases call their first replica 1."""
    model = make(far, name)
    worker, stub = join(model, compression="int8")
    with worker:
        worker.push_pull({"w": gradient(0)}, min_version=1)
        stub.stub.Close(pb.CloseRequest(name=name, lease_id=worker._attempt._lease), timeout=10)
        stub.breaks = [None, (0, lose_all)]
        receipt, snapshot = worker.push_pull({"w": gradient(1)}, min_version=2)
        assert stub.calls == ["PushPull"] * 4
        assert receipt.duplicate
        assert snapshot.flat.tobytes() == client.model(name).snapshot().flat.tobytes()
    model.delete()


@pytest.mark.parametrize(("after", "compression"), [(0, "int8"), (1, "int8"), (1, None)])
def test_a_server_that_is_killed(after, compression):
    """After 0 answers: before its receipt is here; after 1: while the other worker of the round is missing."""
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address, near=False) as far:
        model = make(far, "killed", consistency=TWO)
        (worker, stub), other = join(model, compression=compression), model.join(1)
        with worker, other:

            def kill(answers):
                if after == 0:
                    next(answers)
                cluster.servers[0].kill()
                cluster.servers[0].restart()
                other.push({"w": np.ones(LARGE)}, timeout_s=60)
                if after == 0:
                    raise coproc.Unreachable("the receipt got lost")

            stub.breaks = [(after, kill)]
            receipt, snapshot = worker.push_pull({"w": gradient(5)}, timeout_s=60)
            assert (receipt.step, receipt.duplicate) == (0, after == 0)
            assert snapshot.version == worker.next_step == 1
            np.testing.assert_allclose(snapshot.flat, -(gradient(5) - left_out(worker) + 1) / 2, atol=1e-6)
            assert left_out(worker).any() == (compression is not None)
            # The lease was of the server before: one call more.
            assert stub.calls == ["PushPull", *["PushPull" if after == 0 else "Pull"] * 2]


@pytest.mark.parametrize("compression", [None, "int8"])
def test_a_twin_that_was_first(far, client, name, compression):
    model = make(far, name)
    worker, stub = join(model, compression=compression)
    with worker, client.model(name).join(0) as twin:
        worker.push_pull({"w": gradient(0)}, flush=True)
        kept = left_out(worker).copy()
        for step in (1, 2):
            twin.push({"w": gradient(step)}, step=step)
        stub.breaks = [(0, lose)]
        receipt, snapshot = worker.push_pull({"w": gradient(99)}, min_version=3)
        assert (receipt.step, receipt.duplicate, worker.next_step) == (1, True, 3)
        assert snapshot.version == 3
        assert snapshot.flat.tobytes() == descended(3).tobytes()
        np.testing.assert_array_equal(left_out(worker), kept)
    model.delete()


# ---- what is refused


@pytest.mark.parametrize("where", ["near", "far"])
@pytest.mark.parametrize("compression", [None, "int8"])
def test_what_push_refuses_is_not_pushed(client, far, name, where, compression):
    model = make({"near": client, "far": far}[where], name)
    bad = gradient(0)
    bad[7] = np.nan
    with model.join(0, compression=compression) as worker:
        for grads, settings, kind, sentence in [
            ({"w": bad}, {}, coproc.PushRejected, r"^the gradient .* w\[7\] is nan"),
            ({"w": np.ones(3)}, {}, coproc.PushRejected, "^worker 0 pushes what is no gradient"),
            ({"w": gradient(0)}, {"step": 5}, coproc.PushRejected, "^worker 0 .* its next step is 0"),
            ({"w": gradient(0)}, {"examples": 0}, coproc.ConfigError, "^examples"),
        ]:
            with pytest.raises(kind, match=sentence):
                worker.push_pull(grads, **settings)
        assert (model.version, worker.next_step) == (0, 0)
        worker.push_pull({"w": gradient(0)}, min_version=1)
    with pytest.raises(coproc.LeaseExpired, match="was closed"):
        worker.push_pull({"w": gradient(1)})
    assert model.snapshot().version == 1
    model.delete()


@pytest.mark.parametrize("where", ["near", "far"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_round_that_is_not_complete_in_time(client, far, name, where, size):
    model = make({"near": client, "far": far}[where], name, size, consistency=TWO)
    with model.join(0) as worker, model.join(1) as other:
        with pytest.raises(coproc.Timeout, match=r"^step 0 is committed, .* waits for workers \[1\]"):
            worker.push_pull({"w": np.full(size, 2)}, timeout_s=0.2)
        assert worker.next_step == 1
        other.push({"w": np.full(size, 4)})
        snapshot = worker.pull()
        assert (snapshot.version, set(snapshot.flat)) == (1, {-3.0})
        assert model.status().pushes_count == 2
    model.delete()


# ---- strangers, who know the protocol only


@pytest.fixture
def stub(cluster):
    [(host, port), *_] = parse_address(cluster.address)
    with channel(host, port) as connection:
        yield coproc_pb2_grpc.CoprocessorStub(connection)


def test_streams_that_are_none_are_refused(stub, client, name):
    model = make(client, name, 4)
    lease = stub.Join(pb.JoinRequest(name=name, kind=pb.SEAT_KIND_FAR_WORKER), timeout=10).lease_id
    ones = np.ones(4, np.float32).tobytes()

    def both(**settings):
        push = pb.PushBegin(**{"name": name, "lease_id": lease, "examples": 1, "timeout_ms": 1000, **settings})
        return pb.PushPullBegin(push=push)

    def refused(*messages):
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.PushPull(iter(messages), timeout=10))
        return caught.value.code(), caught.value.details()

    invalid, begin = grpc.StatusCode.INVALID_ARGUMENT, pb.PushPullRequest(begin=both())
    for messages in [(), (pb.PushPullRequest(),), (pb.PushPullRequest(chunk=ones), begin)]:
        assert refused(*messages) == (invalid, "a stream must begin with 'begin'")
    assert "only 0 were sent" in refused(begin)[1]
    assert "only 8 were sent" in refused(pb.PushPullRequest(begin=both(), chunk=ones[:8]))[1]
    assert "more than that" in refused(pb.PushPullRequest(begin=both(), chunk=ones), pb.PushPullRequest(chunk=ones))[1]
    assert "joined without a compression" in refused(pb.PushPullRequest(begin=both(), coded=ones))[1]
    assert "examples" in refused(pb.PushPullRequest(begin=both(examples=-1)))[1]
    assert refused(pb.PushPullRequest(begin=both(name="nobody")))[0] is grpc.StatusCode.NOT_FOUND
    assert refused(pb.PushPullRequest(begin=both(lease_id="none")))[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert model.version == 0
    # One message has it all; a step without a gradient is answered, too.
    for step, messages in enumerate([{"chunk": ones}, {}]):
        request = pb.PushPullRequest(begin=both(step=step, examples=len(messages)), **messages)
        request.begin.min_version = 1
        receipt, *answers = stub.PushPull(iter([request]), timeout=10)
        assert (receipt.receipt.step, receipt.receipt.duplicate, receipt.header.version) == (step, False, 0)
        assert answers[0].header.version == 1
        assert b"".join(answer.chunk for answer in answers) == (-np.ones(4, np.float32)).tobytes()
    stub.Close(pb.CloseRequest(name=name, lease_id=lease), timeout=10)
    model.delete()
