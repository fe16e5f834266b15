"""A model is a directory: its newest version opens as one whole file, while it changes at full speed."""

from __future__ import annotations

import json
import signal
import threading

import numpy as np
import pytest
from safetensors.numpy import load

import coproc
from coproc.errors import ModelExists, Unreachable
from storage_tier.client import TierClient
from storage_tier.errors import PathNotFound, Vetoed
from storage_tier.filesystem import TierFileSystem


def create(client, name, size=100_000, **settings):
    params = {"b": np.zeros(7, np.float32), "w": np.zeros((size // 100, 100), np.float32)}
    return client.create_model(name, params=params, optimizer=coproc.optim.SGD(1.0), **settings)


def names(tier, path):
    return [info.path.removeprefix(path).lstrip("/") for info in tier.find(path)]


def check_whole(data, version):
    """All elements are the version, below zero; the header says so too."""
    tensors = load(bytes(data))
    values = np.concatenate([tensors["b"], tensors["w"].reshape(-1)])
    assert (values == -version).all(), f"version {version} has parts of {sorted(set(-values))}"
    header_bytes = int.from_bytes(data[:8], "little")
    assert json.loads(bytes(data[8 : 8 + header_bytes]))["__metadata__"]["version"] == str(version)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_newest_version_never_tears(client, cluster, name, shards):
    """Read near and far, through both servers and as a filesystem, while a writer pushes as fast as it can."""
    model = create(client, name, shards=shards)
    path = f"/models/{name}/model.safetensors"
    stop = threading.Event()

    def push():
        with model.join(worker=0) as worker:
            while not stop.is_set():
                worker.gradient()[:] = 1
                worker.push(finite=True)

    writer = threading.Thread(target=push)
    fs = TierFileSystem(address=cluster.address, skip_instance_cache=True)
    tiers = [TierClient(cluster.address, server_index=n, near=near) for n in range(2) for near in (True, False)]
    writer.start()
    try:
        before = 0
        for tier in tiers * 4:
            with tier.open(path) as file:
                check_whole(file.data, file.info.version)
                assert file.info.version >= before
                assert file.info.metadata["version"] == file.info.version
                before = file.info.version
        with fs.open(f"tier://{path}", "rb") as file:
            data = file.read()
        check_whole(data, round(-float(load(data)["b"][0])))
        assert before > len(tiers), "nothing was pushed meanwhile"
    finally:
        stop.set()
        writer.join(30)
        for tier in (*tiers, fs):
            tier.close()
    snapshot = model.snapshot()
    with client.tier.open(path) as file:
        assert file.info.version == snapshot.version
        assert np.frombuffer(file.data[-4 * model.layout.size :], np.float32).base is not None
        np.testing.assert_array_equal(model.layout.views(snapshot.flat)["w"], load(bytes(file.data))["w"])
    model.delete()


def test_a_model_comes_and_goes_as_a_directory(client, cluster, name):
    with TierClient(cluster.address, server_index=1) as other:
        with pytest.raises(PathNotFound):
            other.stat(f"/models/{name}/model.safetensors")
        model = create(client, name)
        listed = {info.path.rpartition("/")[2]: info for info in other.list(f"/models/{name}")}
        assert sorted(listed) == ["checkpoints", "gradients", "model.safetensors", "spec.json"]
        virtual = listed["model.safetensors"]
        with other.open(virtual.path) as file:
            assert (virtual.kind, virtual.version, virtual.size_bytes) == ("file", 0, len(file.data))
        assert other.stat(virtual.path).size_bytes == virtual.size_bytes
        with other.open(f"/models/{name}/spec.json") as file:
            spec = json.loads(bytes(file.data))
        assert (spec["name"], spec["identity"], spec["tensors"]["w"]) == (name, model.spec.identity, [1000, 100])
        with pytest.raises(Vetoed, match="made by the coprocessor"):
            other.put(virtual.path, b"")
        other.copy(virtual.path, "/elsewhere")
        with client.tier.open("/elsewhere") as file:
            check_whole(file.data, 0)
        client.tier.remove("/elsewhere")

        checkpoint = model.checkpoint()
        assert checkpoint in [info.path for info in other.list(f"/models/{name}/checkpoints")]
        model.delete()
        assert names(other, f"/models/{name}") == ["checkpoints", checkpoint.removeprefix(f"/models/{name}/")]
        with pytest.raises(PathNotFound):
            other.open(virtual.path)
        again = create(client, name)
        with other.open(virtual.path) as file:
            assert file.info.metadata["identity"] == again.spec.identity
        again.delete()
        other.remove(checkpoint)
        other.remove_directory(f"/models/{name}", recursive=True)

        create(client, name).delete()
        with pytest.raises(PathNotFound):
            other.stat(f"/models/{name}")


def test_what_is_a_models_stays_as_long_as_it_lives(client, cluster, name):
    """Through its own server and through another one, which knows of it from the catalog."""
    model = create(client, name, shards=1)
    home = f"/models/{name}"
    for index in range(2):
        with TierClient(cluster.address, server_index=index) as tier:
            tier.put(f"{home}/checkpoints/mine-{index}", b"x")
            for path in ("/models", home, f"{home}/gradients"):
                with pytest.raises(Vetoed, match=f"{path} cannot be removed .* model '{name}'"):
                    tier.remove_directory(path, recursive=True)
            with pytest.raises(Vetoed, match="cannot be removed or renamed"):
                tier.rename(home, "/elsewhere")
            tier.remove(f"{home}/checkpoints/mine-{index}")
    with TierClient(cluster.address, server_index=0) as tier:
        with pytest.raises(Vetoed, match=r"spec\.json cannot be removed"):
            tier.remove(f"{home}/spec.json")
        assert names(tier, home) == ["checkpoints", "gradients", "model.safetensors", "spec.json"]
    model.delete()


def test_a_name_is_one_models_in_the_whole_tier(client, cluster, name):
    model = create(client, name, shards=1)
    with (
        coproc.connect(f"coproc://{cluster.servers[1].address}") as other,
        pytest.raises(ModelExists, match=f"{cluster.servers[0].address} of this tier has a model"),
    ):
        create(other, name, shards=1)
    model.delete()


@pytest.mark.parametrize(
    "point", [pytest.param("commit.catalog.before:1", marks=pytest.mark.slow), "commit.catalog.after:1"]
)
def test_a_server_that_is_killed_while_a_model_is_created(point):
    with coproc.LocalCluster(environment={"TIER_FAILPOINT": point}) as cluster:
        [server] = cluster.servers
        with coproc.connect(cluster.address) as client, pytest.raises(Unreachable):
            create(client, "half")
        assert server.wait(timeout_s=60) == -signal.SIGKILL
        del server.environment["TIER_FAILPOINT"]
        server.restart()
        with coproc.connect(cluster.address) as client:
            model = create(client, "half", shards=1)
            listed = [info.path.rpartition("/")[2] for info in client.tier.list("/models/half")]
            assert listed == ["checkpoints", "gradients", "model.safetensors", "spec.json"]
            with model.join(worker=0) as worker:
                worker.gradient()[:] = 1
                worker.push()
                worker.pull(min_version=1)
            server.kill()
            server.restart()
            with client.tier.open("/models/half/model.safetensors") as file:
                check_whole(file.data, 1)
            model.delete()
            with pytest.raises(PathNotFound):
                client.tier.stat("/models/half")
