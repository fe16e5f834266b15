"""A client in another language needs proto/ only: this one has stubs made from it, and not a line of the project."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

import coproc

ROOT = Path(__file__).resolve().parents[2]

CLIENT = r"""
import json, sys
from array import array

import grpc

address, stubs, token = sys.argv[1:]
sys.path.insert(0, stubs)
from coproc.v1 import coproc_pb2 as pb, coproc_pb2_grpc as rpc

assert not [name for name in sys.modules if name.startswith("storage_tier")]
assert sys.modules["coproc"].__path__[0].startswith(stubs)
assert sys.byteorder == "little"
CHUNK = 1 << 20
PARAMETERS = 600_001  # three chunks
as_who = (("authorization", f"Bearer {token}"),)


def chunks(values):
    data = values.tobytes()
    return [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]


def pull(lease="", least=0):
    answers = stub.Pull(pb.PullRequest(name="foreign", lease_id=lease, min_version=least, timeout_ms=20_000),
                        timeout=60, metadata=as_who)
    first = next(answers)
    values = array("f")
    values.frombytes(b"".join(answer.chunk for answer in answers))
    return first.header.version, values


def push(lease, step, value, examples):
    def requests():
        yield pb.PushRequest(begin=pb.PushBegin(name="foreign", lease_id=lease, step=step, examples=examples,
                                                loss=float(value), timeout_ms=20_000))
        for chunk in chunks(array("f", [value]) * PARAMETERS):
            yield pb.PushRequest(chunk=chunk)
    return stub.Push(requests(), timeout=60, metadata=as_who)


def push_pull(lease, step, value, examples, timeout_ms=20_000, first_chunk=False):
    data = chunks(array("f", [value]) * PARAMETERS)

    def requests():
        begin = pb.PushBegin(name="foreign", lease_id=lease, step=step, examples=examples, timeout_ms=timeout_ms)
        first = pb.PushPullRequest(begin=pb.PushPullBegin(push=begin))
        if first_chunk:
            first.chunk = data.pop(0)
        yield first
        for chunk in data:
            yield pb.PushPullRequest(chunk=chunk)
    answers = stub.PushPull(requests(), timeout=60, metadata=as_who)
    return next(answers).receipt, answers


def version_of(answers):
    first = next(answers)
    values = array("f")
    values.frombytes(first.chunk + b"".join(answer.chunk for answer in answers))
    return first.header.version, len(values), set(values)


def refused(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), dict(error.trailing_metadata()).get("error-class"), error.details()
    raise AssertionError("it was not refused")


with grpc.insecure_channel(address) as channel:
    stub = rpc.CoprocessorStub(channel)
    spec = {"name": "foreign", "tensors": {"w": [600_000], "b": [1]},
            "optimizer": {"name": "sgd", "learning_rate": 1.0}, "consistency": {"name": "bsp", "workers": 2}}

    def create():
        yield pb.CreateModelRequest(begin=pb.CreateModelBegin(spec_json=json.dumps(spec), servers=[address]))
        for chunk in chunks(array("f", [8.0]) * PARAMETERS):
            yield pb.CreateModelRequest(chunk=chunk)

    made = stub.CreateModel(create(), timeout=60, metadata=as_who)
    assert json.loads(made.spec_json)["parameters"] == PARAMETERS

    workers = [
        stub.Join(pb.JoinRequest(name="foreign", kind=pb.SEAT_KIND_FAR_WORKER, worker=n), timeout=60, metadata=as_who)
        for n in range(2)
    ]
    leases = [worker.lease_id for worker in workers]
    for step in range(2):
        version, before = pull(leases[0], step)
        assert version == step, version
        push(leases[0], step, 1.0, 30)
        push(leases[1], step, 5.0, 10)
        again = push(leases[1], step, 5.0, 10)  # its answer was lost, say
        assert again.duplicate and again.next_step == step + 1
        _, after = pull(leases[0], step + 1)
        # The mean of 30 ones and 10 fives is 2, exactly.
        assert set(after) == {before[0] - 2.0} and len(after) == PARAMETERS, set(after)
        stub.Renew(pb.RenewRequest(name="foreign", lease_id=leases[0]), timeout=60, metadata=as_who)

    push(leases[0], 2, 1.0, 1)
    nothing = pb.PushBegin(name="foreign", lease_id=leases[1], step=2, examples=0, timeout_ms=20_000)
    stub.Push(iter([pb.PushRequest(begin=nothing)]), timeout=60, metadata=as_who)
    version, values = pull(least=3)  # as a reader, without a lease
    assert (version, set(values)) == (3, {3.0})

    # The receipt is there while the other is missing, and stands though the version is not there in time.
    receipt, answers = push_pull(leases[0], 3, 4.0, 1, timeout_ms=200)
    assert (receipt.step, receipt.duplicate, receipt.next_step) == (3, False, 4)
    code, kind, sentence = refused(lambda: next(answers))
    assert (code, kind) == (grpc.StatusCode.DEADLINE_EXCEEDED, "Timeout") and "workers [1]" in sentence, sentence
    receipt, answers = push_pull(leases[1], 3, 2.0, 1, first_chunk=True)
    assert (receipt.duplicate, version_of(answers)) == (False, (4, PARAMETERS, {0.0}))
    receipt, answers = push_pull(leases[0], 3, 4.0, 1)  # again
    assert receipt.duplicate and receipt.own and version_of(answers) == (4, PARAMETERS, {0.0})

    code, kind, sentence = refused(lambda: push(leases[0], 4, float("nan"), 1))
    assert (code, kind) == (grpc.StatusCode.INVALID_ARGUMENT, "PushRejected") and "worker 0" in sentence, sentence
    code, kind, _ = refused(lambda: push("no such lease", 4, 1.0, 1))
    assert (code, kind) == (grpc.StatusCode.FAILED_PRECONDITION, "LeaseExpired")
    code, kind, _ = refused(lambda: stub.GetModel(pb.GetModelRequest(name="nobody"), timeout=60, metadata=as_who))
    assert (code, kind) == (grpc.StatusCode.NOT_FOUND, "ModelNotFound")
    code, kind, _ = refused(lambda: stub.GetModel(pb.GetModelRequest(name="foreign"), timeout=60))
    assert (code, kind) == (grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated")

    for worker, lease in enumerate(leases):
        stub.Leave(pb.LeaveRequest(name="foreign", worker=worker), timeout=60, metadata=as_who)
        stub.Close(pb.CloseRequest(name="foreign", lease_id=lease), timeout=60, metadata=as_who)
    status = stub.GetStatus(pb.GetStatusRequest(), timeout=60, metadata=as_who)
    (model,) = status.models
    assert (model.version, model.pushes_count, model.workers_count) == (4, 8, 0), model
    stub.DeleteModel(pb.DeleteModelRequest(name="foreign"), timeout=60, metadata=as_who)
    assert not stub.ListModels(pb.ListModelsRequest(), timeout=60, metadata=as_who).names
print("all of it")
"""


def test_a_client_that_has_the_protos_only(tmp_path: Path) -> None:
    stubs, common = tmp_path / "stubs", str(files("grpc_tools") / "_proto")
    stubs.mkdir()
    flags = [f"-I{ROOT / 'proto'}", f"-I{common}", f"--python_out={stubs}", f"--grpc_python_out={stubs}"]
    assert protoc.main(["protoc", *flags, str(ROOT / "proto/coproc/v1/coproc.proto")]) == 0
    for package in ("coproc", "coproc/v1"):  # or the project, where it is installed, would come before them
        (stubs / package / "__init__.py").touch()
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    with coproc.LocalCluster(memory_bytes=256 << 20, token="a-foreign-secret") as cluster:
        address = cluster.address.removeprefix("coproc://")
        ran = subprocess.run(
            [sys.executable, "-P", str(script), address, str(stubs), "a-foreign-secret"],
            cwd=tmp_path,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "all of it\n"
