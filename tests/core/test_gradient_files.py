"""A gradient that is committed as a file is a push, once: whoever writes it, in whatever order, whoever is killed.

Gradients are constant vectors of integers and the rate is 1, so that sums are exact: one that is lost, counted twice or
half there cannot hide.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from grpc_tools import protoc
from safetensors.numpy import save

import coproc
from storage_tier.client import TierClient
from storage_tier.errors import BytesLost, ObserverFailed, PathExists, Unreachable, Vetoed
from storage_tier.filesystem import TierFileSystem

ROOT = Path(__file__).resolve().parents[2]
SIZE = 1000


def until(condition, timeout_s=30.0):
    """Look again and again; the condition is somebody else's act."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        select.select([], [], [], 0.01)


def gradient(value, worker, step, examples=1, **more):
    metadata = {"worker": worker, "step": step, "examples": examples, **more}
    tensors = {"b": np.full(3, value, np.float32), "w": np.full((10, SIZE // 10), value, np.float32)}
    return save(tensors, {name: str(text) for name, text in metadata.items()})


def create(client, name, **settings):
    settings.setdefault("optimizer", coproc.optim.SGD(learning_rate=1.0))
    params = {"w": np.zeros((10, SIZE // 10), np.float32), "b": np.zeros(3, np.float32)}
    return client.create_model(name, params=params, **settings)


def applied(client, model, version):
    """The one value of all elements, once the model has this version and no gradient is left."""
    until(lambda: model.version >= version and not client.tier.list(f"/models/{model.name}/gradients"))
    snapshot = model.snapshot()
    assert snapshot.version == version
    assert (snapshot.flat == snapshot.flat[0]).all(), "parts of different gradients"
    return -float(snapshot.flat[0])


def folder(model):
    return f"/models/{model.name}/gradients"


@pytest.mark.parametrize("shards", [1, 2])
def test_files_are_pushes_in_any_order(client, cluster, name, shards):
    """Of two workers, by three ways to write, through both servers, the last step first."""
    model = create(client, name, shards=shards)
    steps = 9
    writers = [TierClient(cluster.address, server_index=n, near=n == 0) for n in range(2)]
    fs = TierFileSystem(address=cluster.address, skip_instance_cache=True)
    try:
        for step in reversed(range(1, steps)):
            writers[step % 2].put(f"{folder(model)}/early-{step}", gradient(step, 3, step, 5, loss=0.5))
        until(lambda: model.status().gradient_files_count == steps - 1)
        waits = "it is step 1 of worker 3, and step 0 is missing"
        until(lambda: model.status().gradient_files_note.endswith(waits))
        assert model.version == 0
        fs.pipe_file(f"{folder(model)}/first", gradient(0, 3, 0))
        for step in range(steps):
            with fs.open(f"tier://{folder(model)}/other-{step}", "wb") as file:
                file.write(gradient(100, 5, step))
        assert applied(client, model, 2 * steps) == sum(range(steps)) + 100 * steps
        status = model.status()
        assert (status.pushes_count, status.duplicates_count, status.workers_count) == (2 * steps, 0, 2)
        assert (status.examples_count, status.loss_examples_count) == (5 * (steps - 1) + 1 + steps, 5 * (steps - 1))
        assert (status.gradient_files_count, status.gradient_files_note) == (0, "")
    finally:
        for writer in (*writers, fs):
            writer.close()
    model.delete()


def test_a_round_of_files_and_of_workers(client, name):
    """Files are as good as pushes: a synchronous round waits for both, and takes the mean by examples."""
    model = create(client, name, consistency=coproc.Bsp(workers=2))
    rounds = 5
    for step in range(rounds):
        client.tier.put(f"{folder(model)}/{step}", gradient(4, 1, step, examples=3))
    with model.join(worker=0) as worker:
        for _ in range(rounds):
            worker.gradient()[:] = 8
            worker.push(examples=1)
            worker.pull()
    assert applied(client, model, rounds) == rounds * (3 * 4 + 8) / 4
    model.delete()


def test_one_step_in_many_files_counts_once(client, name):
    model = create(client, name)
    for number in range(4):
        client.tier.put(f"{folder(model)}/{number}", gradient(1, 0, 1))
    with pytest.raises(Vetoed, match="is step 1 of worker 0 and is not applied yet, so it cannot become step 2"):
        client.tier.put(f"{folder(model)}/0", gradient(1, 0, 2), overwrite=True)
    with pytest.raises(PathExists):
        client.tier.put(f"{folder(model)}/0", gradient(1, 0, 1))
    client.tier.put(f"{folder(model)}/0", gradient(2, 0, 1), overwrite=True)
    client.tier.put(f"{folder(model)}/first", gradient(10, 0, 0))
    total = applied(client, model, 2)
    assert total in (11, 12)
    for path in ("first", "0", "late"):
        client.tier.put(f"{folder(model)}/{path}", gradient(5, 0, 0))
    with model.join(worker=0) as worker:
        assert worker.next_step == 2
    assert applied(client, model, 2) == total
    model.delete()


def header(text, size_bytes=0):
    encoded = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(size_bytes)


def changed(**changes):
    """A gradient whose header is changed: by tensor, or in its metadata."""
    entries = {
        "w": {"dtype": "F32", "shape": [10, SIZE // 10], "data_offsets": [0, 4 * SIZE]},
        "b": {"dtype": "F32", "shape": [3], "data_offsets": [4 * SIZE, 4 * SIZE + 12]},
        "__metadata__": {"worker": "0", "step": "0", "examples": "1"},
    }
    for key, change in changes.items():
        entries[key] = {name: value for name, value in {**entries[key], **change}.items() if value is not None}
    return header(entries, 4 * SIZE + 12)


def metadata(**change):
    return changed(__metadata__=change)


def not_finite(value):
    data = bytearray(gradient(1, 0, 0))
    data[-8:-4] = struct.pack("<f", value)
    return bytes(data)


BAD = {
    "empty": (b"", "has 0 bytes"),
    "cut": (gradient(1, 0, 0)[:-1], "follow it"),
    "a header beyond the file": (b"\xff" * 7 + b"\x00" + b"{}", "says its header has"),
    "a huge header": (header(b"{" + b" " * (1 << 20) + b"}", 4), "has a header of"),
    "no JSON": (header(b"{'w': 1}"), "not JSON"),
    "offsets beyond the file": (changed(b={"data_offsets": [4 * SIZE, 1 << 60]}), "data_offsets say"),
    "overlapping": (changed(b={"data_offsets": [0, 12]}), "the one before it ends at"),
    "sizes that lie": (changed(b={"shape": [1 << 40, 1 << 40]}), "impossible size"),
    "a missing tensor": (save({"b": np.zeros(3, np.float32)}, {"worker": "0"}), "lacks the tensor 'w'"),
    "one too many": (save({n: np.zeros(3, np.float32) for n in "wbx"}), "beyond the model's, the tensor 'x'"),
    "another shape": (changed(w={"shape": [SIZE // 10, 10]}), r"of shape \[100, 10\], and the model's has \[10, 100\]"),
    "another dtype": (changed(w={"dtype": "I32"}), "of dtype I32, and gradients are F32"),
    "no worker": (metadata(worker=None), "lacks 'worker' in its metadata"),
    "no step": (metadata(step=None), "lacks 'step'"),
    "no examples": (metadata(examples=None), "lacks 'examples'"),
    "no metadata": (changed(__metadata__={"worker": None, "step": None, "examples": None}), "lacks 'worker'"),
    "a worker below zero": (metadata(worker="-1"), "has worker '-1'"),
    "a worker beyond all": (metadata(worker="4096"), "whole number from 0 to 4095"),
    "a fraction of a step": (metadata(step="1.0"), "has step '1.0'"),
    "a step in other digits": (metadata(step="\u0661"), "has step"),
    "no example": (metadata(examples="0"), "from 1 to"),
    "an odd loss": (metadata(loss="nan"), "has loss 'nan'"),
    "an odd version": (metadata(version="new"), "has version 'new'"),
    "metadata that are no strings": (metadata(step=0), "metadata that are not strings"),
    "NaN": (not_finite(float("nan")), r"is not finite: w\[9, 98\] is nan"),
    "infinite": (not_finite(float("-inf")), r"is not finite: w\[9, 98\] is -inf"),
}


@pytest.fixture(scope="module")
def strict(cluster):
    with coproc.connect(cluster.address) as client:
        yield client, create(client, "strict", consistency=coproc.Asp())


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_gradient_is_refused_with_a_sentence(strict, what):
    client, model = strict
    data, why = BAD[what]
    with pytest.raises(Vetoed, match=f"is not a gradient of model 'strict': it .*{why}"):
        client.tier.put(f"{folder(model)}/bad", data)
    assert client.tier.list(folder(model)) == []


def test_gradients_have_a_place_of_their_own(strict):
    client, model = strict
    good = gradient(1, 0, 0)
    for path, why in (
        ("/models/nobody/gradients/0", "there is no model 'nobody'"),
        (f"{folder(model)}/deeper/0", "not directly in"),
        (f"/models/{model.name}/model.safetensors", "made by the coprocessor"),
        (f"/models/{model.name}/spec.json", "made by the coprocessor"),
    ):
        with pytest.raises(Vetoed, match=why):
            client.tier.put(path, good, overwrite=True)
    client.tier.put(f"/models/{model.name}/notes/odd", b"not a gradient")
    with pytest.raises(Vetoed, match="is not a gradient"):
        client.tier.rename(f"/models/{model.name}/notes/odd", f"{folder(model)}/odd")
    client.tier.put("/elsewhere", good)
    client.tier.rename("/elsewhere", f"{folder(model)}/moved")
    assert applied(client, model, 1) == 1
    model.release()


# What another language has: the protos, gRPC, and eight lines for the format.
STRANGER = """
import json, struct, sys
import grpc
from storage_tier.v1 import files_pb2 as pb, files_pb2_grpc

target, path, steps, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with grpc.insecure_channel(target) as channel:
    files = files_pb2_grpc.FilesStub(channel)
    for step in range(steps):
        header = json.dumps({
            "__metadata__": {"worker": "7", "step": str(step), "examples": "2"},
            "b": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
            "w": {"dtype": "F32", "shape": [10, size // 10], "data_offsets": [12, 12 + 4 * size]},
        }).encode()
        content = struct.pack("<Q", len(header)) + header + struct.pack("<f", step + 1) * (size + 3)
        files.PutFile(pb.PutFileRequest(path=f"{path}/{step}", content=content), timeout=30)
    try:
        files.PutFile(pb.PutFileRequest(path=f"{path}/odd", content=b"odd"), timeout=30)
    except grpc.RpcError as error:
        print(dict(error.trailing_metadata())["error-class"], error.details())
assert not any(name.split(".")[0] in ("coproc", "numpy", "safetensors") for name in sys.modules)
print(sys.modules["storage_tier"].__file__)
"""


def test_from_any_language(client, cluster, name, tmp_path):
    model = create(client, name)
    protos = [str(path) for path in (ROOT / "proto" / "storage_tier").rglob("*.proto")]
    common = str(files("grpc_tools") / "_proto")
    arguments = [f"-I{ROOT / 'proto'}", f"-I{common}", f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    assert protoc.main(["protoc", *arguments, *protos]) == 0
    for package in ("storage_tier", "storage_tier/v1"):
        (tmp_path / package / "__init__.py").touch()
    ran = subprocess.run(
        [sys.executable, "-c", STRANGER, cluster.servers[1].address, folder(model), "20", str(SIZE)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    refusal, stubs = ran.stdout.splitlines()
    assert refusal.startswith("Vetoed ")
    assert "is not a gradient of model" in refusal
    assert stubs == str(tmp_path / "storage_tier" / "__init__.py")
    assert applied(client, model, 20) == sum(range(1, 21))
    model.delete()


KILLED_AT = {
    "committed, not pushed": ("TIER_FAILPOINT", "commit.catalog.after:5"),
    "before the push": ("COPROC_FAILPOINT", "push.commit.before:4"),
    "after the push": ("COPROC_FAILPOINT", "push.commit.after:4"),
    "pushed, before it is claimed": ("COPROC_FAILPOINT", "push.claim.before:4"),
    "removed": ("TIER_FAILPOINT", "remove.catalog.after:4"),
}


@pytest.mark.parametrize(
    "moment",
    [pytest.param(moment, marks=[pytest.mark.slow] if "before" in moment else []) for moment in KILLED_AT],
)
def test_a_server_that_is_killed_counts_each_gradient_once(moment):
    variable, point = KILLED_AT[moment]
    with coproc.LocalCluster(environment={variable: point}) as cluster, coproc.connect(cluster.address) as client:
        [server] = cluster.servers
        model = create(client, "killed")
        steps, killed = 12, False
        for step in range(steps):
            while True:
                try:
                    client.tier.put(f"{folder(model)}/{step}", gradient(step + 1, 0, step))
                    break
                except PathExists:
                    break  # the answer was lost
                except Unreachable:
                    assert not killed, "it was to be killed once"
                    assert server.wait(timeout_s=60) == -signal.SIGKILL
                    del server.environment[variable]
                    server.restart()
                    killed = True
        if not killed:  # the last files were committed before
            assert server.wait(timeout_s=60) == -signal.SIGKILL
            del server.environment[variable]
            server.restart()
        assert applied(client, model, steps) == steps * (steps + 1) / 2
        assert model.status().failure == ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_kills_count_each_gradient_once(seed):
    """Two servers, each killed at any moment, while three workers write their files in any order."""
    dice = random.Random(seed)
    workers, steps = 3, 40
    with coproc.LocalCluster(servers=2) as cluster, coproc.connect(cluster.address) as client:
        model = create(client, "killed", shards=2)
        failures = []

        def write(worker):
            order = list(range(steps))
            random.Random(seed * 10 + worker).shuffle(order)
            try:
                with TierClient(cluster.address, server_index=worker % 2) as tier:
                    for step in order:
                        again(lambda step=step: tier.put(f"{folder(model)}/{worker}-{step}", gradient(1, worker, step)))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(workers)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            threads[0].join(dice.uniform(0.05, 0.5))
            server = dice.choice(cluster.servers)
            server.kill()
            server.restart()
        for thread in threads:
            thread.join(90)
        assert not failures, failures
        assert applied(client, model, workers * steps) == workers * steps


def again(put, timeout_s=60.0):
    """Write a file until it is known to be there: what failed may have been done."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            return put()
        except PathExists:
            return None
        except (Unreachable, BytesLost, ObserverFailed):  # the description of the model may be on the other server
            select.select([], [], [], 0.05)
    raise AssertionError("it never succeeded")


def test_gradients_wait_for_the_server_that_has_them(name):
    """It is killed at its commit, before anybody else has the bytes: the other one says so, and goes on later."""
    with coproc.LocalCluster(servers=2) as cluster, coproc.connect(cluster.address) as client:
        model = create(client, name, shards=1)
        second = cluster.servers[1]
        second.environment["TIER_FAILPOINT"] = "commit.catalog.after:1"
        second.restart()
        with TierClient(f"coproc://{second.address}") as other, pytest.raises(Unreachable):
            other.put(f"{folder(model)}/1", gradient(2, 0, 1))
        assert second.wait(timeout_s=60) == -signal.SIGKILL
        until(lambda: "cannot be read" in model.status().gradient_files_note)
        client.tier.put(f"{folder(model)}/0", gradient(1, 0, 0))
        until(lambda: model.version == 1)
        del second.environment["TIER_FAILPOINT"]
        second.restart()
        assert applied(client, model, 2) == 3
