"""What cannot be right gets a typed error that says what was expected and found, and the server goes on.

Of gradients that are not finite see `test_not_finite`, of damaged checkpoints `test_checkpoint`, of what comes over the
wire `test_wire`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import coproc
from coproc import optim
from coproc.near import NearWorker
from coproc.spec import ModelSpec

SIZE = 300


def make(client, name, size=SIZE, **settings):
    settings.setdefault("optimizer", optim.SGD(learning_rate=1.0))
    return client.create_model(name, params={"w": np.zeros(size, np.float32)}, **settings)


def goes_on(client, name):
    """Another model of the same server takes a gradient."""
    model = make(client, f"{name}-other")
    with model.join(0) as worker:
        worker.push({"w": np.ones(SIZE)})
        assert set(worker.pull(1).flat) == {-1.0}
    model.delete()


@pytest.mark.parametrize("where", ["near", "far"])
def test_a_model_that_was_made_again_is_another_one(client, far, name, where):
    ours = {"near": client, "far": far}[where]
    with make(ours, name).join(0) as worker:
        assert isinstance(worker._attempt, NearWorker) is (where == "near")
        old = worker.model
        worker.push({"w": np.ones(SIZE)})
        (far if where == "near" else client).model(name).delete()
        again = make(far if where == "near" else client, name, SIZE + 1)
        for call in (lambda: worker.push({"w": np.ones(SIZE)}), lambda: worker.pull(2), old.snapshot):
            with pytest.raises((coproc.ModelNotFound, coproc.LeaseExpired), match=r"deleted|taken back|has ended"):
                call()
        with pytest.raises(coproc.ModelNotFound, match="another one has its name"):
            old.join(0)
        with again.join(0) as other:
            other.push({"w": np.ones(SIZE + 1)})
            assert other.pull(1).version == again.snapshot().version == 1
    again.delete()


@pytest.mark.parametrize("where", ["near", "far"])
@pytest.mark.parametrize(
    ("grads", "settings", "kind", "sentence"),
    [
        ({"w": np.ones(SIZE - 1)}, {}, coproc.PushRejected, r"w.*\(300,\).*\(299,\)|\(299,\).*\(300,\)"),
        ({"v": np.ones(SIZE)}, {}, coproc.PushRejected, "v"),
        ({"w": np.ones(SIZE)}, {"step": 2}, coproc.PushRejected, "step 2, but its next step is 1"),
        ({"w": np.ones(SIZE)}, {"step": 1 << 50}, coproc.CoprocError, "step"),
        ({"w": np.ones(SIZE)}, {"step": -1}, coproc.ConfigError, "-1"),
        ({"w": np.ones(SIZE)}, {"examples": 0}, coproc.ConfigError, "examples .* 0"),
        ({"w": np.ones(SIZE)}, {"examples": -5}, coproc.ConfigError, "examples .* -5"),
    ],
)
def test_a_push_that_cannot_be(client, far, name, where, grads, settings, kind, sentence):
    ours = {"near": client, "far": far}[where]
    model = make(ours, name[-100:])
    with model.join(0) as worker:
        worker.push({"w": np.ones(SIZE)})
        with pytest.raises(kind, match=sentence):
            worker.push(grads, **settings)
        assert worker.push({"w": np.ones(SIZE)}, step=0).duplicate
        worker.push({"w": np.ones(SIZE)})
        assert set(worker.pull(2).flat) == {-2.0}
    model.delete()


def test_settings_that_cannot_be(client, name):
    for build in (lambda: coproc.Ssp(bound=-1), lambda: optim.SGD(learning_rate=-1.0), lambda: coproc.Bsp(workers=0)):
        with pytest.raises(coproc.ConfigError, match=r"-1|0"):
            build()
    with pytest.raises(AttributeError, match="SDG"):
        optim.SDG  # noqa: B018
    spec = make(client, name).spec.to_json()
    for wrong, sentence in [('"name": "sgdd"', "no optimizer is called 'sgdd'"), ('"nam": "sgd"', "called None")]:
        with pytest.raises(coproc.ConfigError, match=sentence):
            ModelSpec.from_json(spec.replace('"name": "sgd"', wrong))
    with pytest.raises(coproc.ConfigError, match="no setting momentum"):
        optim.from_config({"name": "sgd", "learning_rate": 0.1, "momentum": 0.9})
    goes_on(client, name)
    client.model(name).delete()


def test_the_token_of_another_cluster(name):
    with coproc.LocalCluster(token="a" * 16) as ours, coproc.LocalCluster(token="b" * 16) as other:
        with pytest.raises(coproc.Unauthenticated, match="not the one"):
            coproc.connect(ours.address, token=other.token)
        with coproc.connect(ours.address, token=ours.token) as client:
            goes_on(client, name)


@pytest.mark.parametrize("part", ["control", "shard-0", "seats"])
@pytest.mark.parametrize("damage", ["header", "cut", "empty"])
def test_a_region_that_was_damaged_while_its_server_was_down(name, part, damage):
    """The model is left as it is and said to be damaged; the others are served."""
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address, near=False) as client:
        [server] = cluster.servers
        model, other = make(client, "hurt"), make(client, "whole")
        worker = model.join(0)
        worker.push({"w": np.ones(SIZE)})
        model.snapshot()
        server.kill()
        home = Path(model.spec.home)
        path = next((home / "seats").iterdir()) if part == "seats" else home / part
        content = bytearray(path.read_bytes())
        if damage == "header":
            content[:64] = bytes(64)
        path.write_bytes(content if damage == "header" else content[: 100 if damage == "cut" else 0])
        server.restart()
        with pytest.raises(coproc.CoprocError, match=r"hurt.* cannot be served: .*"):
            client.model("hurt", timeout_s=5)
        with other.join(0) as fine:
            fine.push({"w": np.ones(SIZE)})
            assert set(fine.pull(1).flat) == {-1.0}
        worker.close()
        assert home.exists(), "somebody may want to look"


def test_a_second_server_of_the_same_directory(name):
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        [server] = cluster.servers
        second = subprocess.run(
            [sys.executable, "-m", "coproc.server.main", "--dir", str(server._directory)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert second.returncode == 1
        assert f"in use by the server with process id {server.pid}" in second.stderr
        goes_on(client, name)
