"""Checkpoints in an under-store: they outlive the memory of all servers."""

from __future__ import annotations

import numpy as np
import pytest

import coproc
from coproc.optim import Adam
from tests.tier import s3_endpoint

from .waiting import until

s3_server, s3 = s3_endpoint.s3_server, s3_endpoint.s3

GRADIENTS = np.random.default_rng(9).standard_normal((5, 900)).astype(np.float32)


def push_until(worker, stop):
    while worker.next_step < stop:
        worker.gradient()[:] = GRADIENTS[worker.next_step % 5]
        worker.push()


class Directory:
    """An under-store in a directory, and what lies in it."""

    def __init__(self, path):
        self.path, self.url, self.options = path, f"file://{path}", None

    def names(self):
        return sorted(file.name for file in self.path.iterdir() if not file.name.startswith("."))

    def get(self, name):
        return (self.path / name).read_bytes()

    def put(self, name, data):
        (self.path / name).write_bytes(data)


class Bucket:
    """The same in S3."""

    def __init__(self, s3):
        self.s3, self.bucket, self.options = s3, s3.make_bucket(), s3.options
        self.url = f"s3://{self.bucket}/run"

    def names(self):
        return sorted(key.removeprefix("run/") for key in self.s3.keys(self.bucket) if key.endswith(".safetensors"))

    def get(self, name):
        return self.s3.get(self.bucket, f"run/{name}")

    def put(self, name, data):
        self.s3.put(self.bucket, f"run/{name}", data)


@pytest.fixture(params=["file", "s3"])
def store(request, tmp_path):
    return Bucket(request.getfixturevalue("s3")) if request.param == "s3" else Directory(tmp_path)


def test_they_outlive_all_memory(store):
    kept = ["000000000006.safetensors", "000000000009.safetensors"]
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        client.tier.mount("/models/m/checkpoints", store.url, store.options)
        model = client.create_model(
            "m",
            params={"w": np.zeros((30, 30), np.float32)},
            optimizer=Adam(0.01),
            shards=3,
            checkpoint=coproc.Checkpoints(every_versions=3, keep=2),
        )
        with model.join(worker=0) as worker:
            for version in (3, 6, 9):
                push_until(worker, version)
                until(lambda version=version: model.status().checkpoint_version == version)
            until(lambda: store.names() == kept)
            push_until(worker, 14)
        expected = model.snapshot().flat.copy()
        until(lambda: [info.persisted for info in client.tier.list("/models/m/checkpoints")] == ["done"] * 2)
        assert model.status().checkpoint_failure == ""
        model.delete()
        assert store.names() == kept, "they are their user's"
    with coproc.LocalCluster(servers=2) as cluster, coproc.connect(cluster.address) as client:
        client.tier.mount("/old", store.url, store.options)
        model = client.restore(f"/old/{kept[1]}", name="again")
        assert (model.version, len(model.spec.shards)) == (9, 2)
        with model.join(worker=0) as worker:
            assert worker.next_step == 9
            push_until(worker, 14)
        np.testing.assert_array_equal(model.snapshot().flat, expected)
        whole = store.get(kept[0])
        for name, data in (("cut", whole[:-7]), ("altered", whole[:-7] + b"1234567")):
            store.put(f"{name}.safetensors", data)
            with pytest.raises(coproc.CorruptCheckpoint, match=f"/old/{name}"):
                client.restore(f"/old/{name}.safetensors", name="broken")
        assert client.models() == ["again"]
        model.delete()
