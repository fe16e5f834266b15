"""The wire takes nothing for granted: random bytes, wrong orders, foreign paths get an error; the server lives."""

from __future__ import annotations

import random

import grpc
import pytest

import coproc
from coproc.v1 import coproc_pb2 as pb
from coproc.v1 import coproc_pb2_grpc
from storage_tier.wire import channel, parse_address

METHODS = [
    (method.name, method.client_streaming, method.server_streaming)
    for method in pb.DESCRIPTOR.services_by_name["Coprocessor"].methods
]


@pytest.fixture
def raw(cluster):
    [(host, port), *_] = parse_address(cluster.address)
    with channel(host, port) as connection:
        yield connection


def code_of(call, payload, streams_out):
    try:
        answer = call(payload, timeout=10)
        list(answer) if streams_out else answer
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(("method", "streams_in", "streams_out"), METHODS, ids=[m[0] for m in METHODS])
def test_random_bytes_get_an_error(raw, client, method, streams_in, streams_out):
    dice = random.Random(method)
    kind = ("stream" if streams_in else "unary") + "_" + ("stream" if streams_out else "unary")
    call = getattr(raw, kind)(f"/coproc.v1.Coprocessor/{method}")
    codes = []
    for length in (0, 1, 3, 17, 200, 5000):
        payload = dice.randbytes(length)
        codes.append(code_of(call, iter([payload]) if streams_in else payload, streams_out))
    assert not {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE} & set(codes)
    assert client.status().servers[0].error == ""


@pytest.fixture
def stub(raw):
    return coproc_pb2_grpc.CoprocessorStub(raw)


def refused(call, *arguments):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=10)
    return caught.value


def test_a_stream_must_begin_with_its_beginning(stub):
    error = refused(stub.Push, iter([pb.PushRequest(chunk=b"1234")]))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "begin" in error.details()
    assert refused(stub.Push, iter([])).code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("bytes_sent", [0, 100, 404])
def test_a_gradient_of_another_size_is_refused_and_nothing_is_pushed(stub, client, name, bytes_sent):
    import numpy as np

    model = client.create_model(name, params={"w": np.zeros(100)}, optimizer=coproc.optim.SGD(0.1))
    joined = stub.Join(pb.JoinRequest(name=name, kind=pb.SEAT_KIND_FAR_WORKER, worker=0), timeout=10)

    def push(data):
        begin = pb.PushBegin(name=name, lease_id=joined.lease_id, step=0, examples=1, timeout_ms=1000)
        return iter([pb.PushRequest(begin=begin), pb.PushRequest(chunk=data)])

    assert "400 bytes" in refused(stub.Push, push(bytes(bytes_sent))).details()
    assert stub.Push(push(bytes(400)), timeout=10).next_step == 1
    stub.Close(pb.CloseRequest(name=name, lease_id=joined.lease_id), timeout=10)
    assert "lease has ended" in refused(stub.Push, push(bytes(400))).details()
    assert model.snapshot().version == 1
    model.delete()


@pytest.mark.parametrize("name", ["../..", "/", "a/b", "", ".hidden", "x" * 200])
def test_a_name_is_never_a_path(stub, name):
    assert refused(stub.DropShards, pb.DropShardsRequest(name=name)).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_server_reads_no_foreign_file(stub, client, name, tmp_path):
    import json

    secret = tmp_path / "first"
    secret.write_bytes(bytes(4000))
    spec = {
        "name": "foreign", "identity": "0" * 16, "tensors": {"w": [100]},
        "optimizer": {"name": "sgd", "learning_rate": 0.1}, "consistency": {"name": "asp"},
        "slots": 2, "buffers": 2, "home": str(tmp_path), "shards": [{"lo": 0, "hi": 100, "server": "me", "path": ""}],
    }  # fmt: skip
    request = pb.ServeShardsRequest(spec_json=json.dumps(spec), parameters_path=str(secret), server="me")
    assert "cannot see the memory" in refused(stub.ServeShards, request).details()
    assert "foreign" not in client.models()


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": {"name": "os.system", "learning_rate": 0.1}},
        {"optimizer": {"name": "sgd", "learning_rate": "much"}},
        {"consistency": {"name": "bsp", "workers": -1}},
        {"tensors": {"w": [-5]}},
        {"tensors": {"w": "x"}},
        {"slots": 10**9},
        {"buffers": 1},
        {"shards": [{"lo": 0}]},
    ],
)
def test_a_description_that_cannot_be_is_refused(stub, change):
    import json

    spec = {
        "name": "strange", "tensors": {"w": [100]}, "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "consistency": {"name": "asp"}, "slots": 2, "buffers": 2, "home": "", "shards": [],
    }  # fmt: skip
    begin = pb.CreateModelBegin(spec_json=json.dumps(spec | change), servers=["127.0.0.1:1"])
    error = refused(stub.CreateModel, iter([pb.CreateModelRequest(begin=begin)]))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("worker", [-1, 4096, 2**40])
def test_a_worker_that_cannot_be_does_not_leave(stub, client, name, worker):
    import numpy as np

    model = client.create_model(name, params={"w": np.zeros(4)}, optimizer=coproc.optim.SGD(0.1))
    error = refused(stub.Leave, pb.LeaveRequest(name=name, worker=worker))
    assert "numbered 0 to 4095" in error.details()
    assert model.snapshot().version == 0
    model.delete()
