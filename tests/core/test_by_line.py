"""Far pushes and pulls by the line: the same as by gRPC, whatever ends in the middle."""

from __future__ import annotations

import math
import socket
import time

import numpy as np
import pytest

import coproc
from coproc import by_line
from coproc.far import FarWorker, no_lines
from coproc.v1 import coproc_pb2 as pb
from storage_tier.line import MAGIC, REQUEST, WELCOME

# Less than a piece, and more than one with a rest that no piece and no vector of the processor divides.
SMALL, LARGE = 1000, (5 << 18) + 1001
SENT_BEFORE_THE_END = [0, 4, 4096, (1 << 20) + 12, 4 * LARGE - 1]


def make(client, name, size=LARGE, **settings):
    settings.setdefault("optimizer", coproc.optim.SGD(learning_rate=1.0))
    return client.create_model(name, params={"w": np.zeros(size, np.float32)}, **settings)


def gradient(step, size=LARGE):
    return np.random.default_rng(step).standard_normal(size).astype(np.float32)


def lines_of(worker):
    """The lines of a worker, which has some."""
    lines = worker._attempt._lines
    assert lines is not None
    return lines


def in_seconds(seconds):
    return time.monotonic() + seconds


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_it_is_the_same_as_by_grpc(far, name, size, shards):
    one, two = make(far, f"{name}-1", size, shards=shards), make(far, f"{name}-2", size, shards=shards)
    two._new_lines = no_lines
    with one.join(0) as by, two.join(0) as other:
        lines_of(by)
        assert other._attempt._lines is None
        for step in range(4):
            receipts = [each.push({"w": gradient(step, size)}, examples=3, loss=0.5) for each in (by, other)]
            assert receipts[0] == receipts[1]
            pulled = [each.pull(step + 1) for each in (by, other)]
            assert pulled[0].version == pulled[1].version == step + 1
            assert pulled[0].flat.tobytes() == pulled[1].flat.tobytes()
            with pytest.raises(ValueError, match="read-only"):
                pulled[0].flat[0] = 1
        for each in (by, other):
            receipt, snapshot = each.push_pull({"w": gradient(4, size)}, min_version=5)
            assert (receipt.step, receipt.duplicate, snapshot.version) == (4, False, 5)
            each.skip()
            assert each.next_step == 6
        assert [model.status().examples_count for model in (one, two)] == [13, 13]
    one.delete()
    two.delete()


def test_a_compression_goes_by_grpc(far, name):
    model = make(far, name, SMALL)
    with model.join(0, compression="bf16") as worker, model.join(1) as other:
        assert worker._attempt._lines is None
        lease = worker._attempt._lease
        request = pb.PullRequest(name=name, lease_id=lease, timeout_ms=1000)
        with pytest.raises(coproc.ConfigError, match="does not go by the line"):
            by_line.pull(lines_of(other), request, np.zeros(SMALL, np.float32), in_seconds(5))
        worker.push({"w": np.ones(SMALL)})
        assert set(worker.pull(1).flat) == {-1.0}
    model.delete()


def test_a_port_that_is_closed_leaves_grpc(far, name):
    model = make(far, name, SMALL)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed = nobody.getsockname()[:2]

    def new_lines():
        lines = far.new_lines(model.spec.shards[0].server)
        lines._place = closed
        return lines

    model._new_lines = new_lines
    with model.join(0) as worker:
        lines_of(worker)
        worker.push({"w": np.ones(SMALL)})
        assert worker._attempt._lines is None
        assert set(worker.pull(1).flat) == {-1.0}
    model.delete()


# ---- what is refused


def test_refusals_are_typed(far, name):
    model = make(far, name)
    bad = gradient(0)
    bad[7] = np.nan
    with model.join(0) as worker:
        for grads, step, kind, sentence in [
            ({"w": bad}, 0, coproc.PushRejected, r"w\[7\] is nan"),
            ({"w": gradient(0)}, 5, coproc.PushRejected, "its next step is 0"),
        ]:
            with pytest.raises(kind, match=sentence):
                worker.push(grads, step=step)
        lines, lease = lines_of(worker), worker._attempt._lease
        begin = {"name": name, "lease_id": lease, "step": 0, "examples": 1, "loss": math.nan, "timeout_ms": 1000}
        for change, size, kind, sentence in [
            ({}, SMALL, coproc.ConfigError, f"has {4 * LARGE:,} bytes, and {4 * SMALL:,} were sent"),
            ({}, LARGE + 1, coproc.ConfigError, f"has {4 * LARGE:,} bytes, and {4 * LARGE + 4:,} were sent"),
            ({"examples": -1}, LARGE, coproc.ConfigError, "examples"),
            ({"step": -1}, LARGE, coproc.ConfigError, "step"),
            ({"name": "nobody"}, LARGE, coproc.ModelNotFound, "nobody"),
            ({"lease_id": "none"}, LARGE, coproc.LeaseExpired, "lease has ended"),
        ]:
            with pytest.raises(kind, match=sentence):
                by_line.push(lines, pb.PushBegin(**{**begin, **change}), gradient(0, size), in_seconds(10))
        request = pb.PullRequest(name=name, lease_id=lease, timeout_ms=1000)
        with pytest.raises(coproc.ConfigError, match="were sent"):
            by_line.pull(lines, request, np.zeros(LARGE + 1, np.float32), in_seconds(10))
        with pytest.raises(coproc.ModelNotFound):
            by_line.pull(lines, pb.PullRequest(name="nobody"), np.zeros(1, np.float32), in_seconds(10))
        assert model.version == 0
        worker.push({"w": np.ones(LARGE)})
        assert set(worker.pull(1).flat) == {-1.0}
    model.delete()


def test_a_lease_is_on_one_model_only(far, name):
    small, large = make(far, f"{name}-1", SMALL), make(far, f"{name}-2")
    with small.join(0) as worker, large.join(0) as other:
        lease, lines = worker._attempt._lease, lines_of(other)
        request = pb.PullRequest(name=large.name, lease_id=lease, timeout_ms=1000)
        with pytest.raises(coproc.LeaseExpired):
            by_line.pull(lines, request, np.zeros(LARGE, np.float32), in_seconds(2))
        begin = pb.PushBegin(name=large.name, lease_id=lease, examples=1, loss=math.nan, timeout_ms=1000)
        with pytest.raises(coproc.LeaseExpired):
            by_line.push(lines, begin, gradient(0, SMALL), in_seconds(5))
        assert (small.status().pushes_count, large.status().pushes_count) == (0, 0)
    small.delete()
    large.delete()


def test_a_round_that_is_not_complete_in_time(far, name):
    model = make(far, name, consistency=coproc.Bsp(workers=2))
    with model.join(0) as worker, model.join(1) as other:
        with pytest.raises(coproc.Timeout, match=r"^step 0 is committed, .* waits for workers \[1\]"):
            worker.push_pull({"w": np.full(LARGE, 2)}, timeout_s=0.2)
        assert worker.next_step == 1
        other.push({"w": np.full(LARGE, 4)})
        snapshot = worker.pull()
        assert (snapshot.version, set(snapshot.flat)) == (1, {-3.0})
    model.delete()


# ---- what ends in the middle


def begun(worker, begin, sent_bytes):
    """A connection on which so many bytes of a push were sent."""
    lines = lines_of(worker)
    raw = socket.create_connection(lines._place, 10)
    raw.sendall(MAGIC + lines._ticket)
    assert raw.recv(1) == WELCOME
    message, name = begin.SerializeToString(), by_line.PUSH.encode()
    raw.sendall(REQUEST.pack(len(name), 20_000, len(message), 4 * LARGE) + name + message)
    raw.sendall(np.full(LARGE, 7, np.float32).tobytes()[:sent_bytes])
    return raw


@pytest.mark.parametrize("sent_bytes", SENT_BEFORE_THE_END)
def test_a_push_that_breaks_off_is_none(far, name, sent_bytes):
    model = make(far, f"{name}")
    with model.join(0) as worker:
        begin = pb.PushBegin(name=model.name, lease_id=worker._attempt._lease, step=0, examples=1, timeout_ms=20_000)
        begun(worker, begin, sent_bytes).close()
        # The slot is still the worker's, and holds parts of what did not come.
        receipt = worker.push({"w": np.ones(LARGE)})
        assert (receipt.step, receipt.duplicate) == (0, False)
        assert set(worker.pull(1).flat) == {-1.0}
        assert model.status().pushes_count == 1
    model.delete()


def test_a_server_that_dies_in_a_push_and_in_a_pull():
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address, near=False) as client:
        model = make(client, "model")
        [server] = cluster.servers
        with model.join(0) as worker:
            worker.push({"w": np.full(LARGE, 1)})
            place = lines_of(worker)._place
            begin = pb.PushBegin(name="model", lease_id=worker._attempt._lease, step=1, examples=1, timeout_ms=20_000)
            with begun(worker, begin, 1 << 20):
                server.kill()
            server.restart()
            # Its line is elsewhere, and the lease was of the server before.
            assert worker.push({"w": np.full(LARGE, 2)}).step == 1
            assert lines_of(worker)._place != place
            assert set(worker.pull(2).flat) == {-3.0}
            server.kill()
            server.restart()
            snapshot = worker.pull(2)
            assert (snapshot.version, set(snapshot.flat)) == (2, {-3.0})
            # The published model is read by gRPC while the server is not all there; the next join finds the line.
            assert worker.push({"w": np.full(LARGE, 4)}).step == 2
            lines_of(worker)
            assert set(worker.pull(3).flat) == {-7.0}


def test_an_answer_that_is_lost_is_asked_for_again(far, name, monkeypatch):
    model = make(far, name)
    with model.join(0) as worker:
        push = by_line.push

        def lose(*arguments):
            push(*arguments)
            monkeypatch.setattr(by_line, "push", push)
            raise coproc.Unreachable("the answer got lost")

        for step in range(3):
            monkeypatch.setattr(by_line, "push", lose)
            assert worker.push({"w": np.full(LARGE, step + 1)}).duplicate
        assert set(worker.pull(3).flat) == {-6.0}
        assert model.status().pushes_count == 3
    model.delete()


class Restored:
    """A server whose model goes back to a checkpoint: all leases end, and who joins is told another epoch."""

    def __init__(self):
        self.epoch = 1

    def Join(self, request, timeout):
        header = pb.ResponseHeader(epoch=self.epoch)
        return pb.JoinResponse(header=header, lease_id=str(self.epoch), lease_ttl_ms=60_000)

    def Push(self, requests, timeout):
        if next(requests).begin.lease_id != str(self.epoch):
            raise coproc.LeaseExpired("it has ended")
        return pb.PushResponse(next_step=1)

    def Close(self, request, timeout):
        return pb.CloseResponse()


def test_a_join_that_fails_half_way_does_not_forget_that_the_model_went_back(far, name):
    spec, server = make(far, name, SMALL).spec, Restored()
    lines = iter([None, coproc.Unreachable("not there yet"), None])

    def new_lines():
        found = next(lines)
        if found is not None:
            raise found

    worker = FarWorker(spec, server, "there", 0, 1, 10.0, new_lines=new_lines)
    worker.slot(0)[:] = 1
    server.epoch = 2
    for _ in range(2):
        with pytest.raises(coproc.LeaseExpired, match="restored from a checkpoint"):
            worker.commit(0, 1, math.nan)
    worker.close()
    far.model(name).delete()


def test_no_lines_is_a_way_too(far, name):
    model = make(far, name, SMALL)
    worker = FarWorker(model.spec, model._stub, model._peer, 0, 1, 10.0, new_lines=no_lines)
    worker.slot(0)[:] = 1
    worker.commit(0, 1, math.nan)
    assert set(worker.pull(1, 10.0)[1]) == {-1.0}
    worker.close()
    model.delete()
