"""A driver is killed, and its run is resumed on the cluster that it used: where its model still stands."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import coproc
from coproc.errors import ConfigError, ModelExists
from coproc.training import TrainConfig, resume, train
from coproc.training.resume import config_of

SETTINGS = {"hidden": [16], "epochs": 4, "batch_size": 2, "optimizer": "adam", "pool": "inline"}

RUN = """
import json, sys
from coproc.training import TrainConfig, train
settings = json.loads(sys.argv[1])
settings["hidden"] = tuple(settings["hidden"])
train(TrainConfig(**settings), sys.argv[2], output=sys.argv[3])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 2001)
    features = (rng.normal(size=(2001, 6)) + np.eye(3, 6)[labels]).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    pq.write_table(pa.table({"features": pa.array(list(features), pa.list_(pa.float32())), "label": labels}), path)
    return str(path)


@pytest.fixture(scope="module")
def went_through(data, tmp_path_factory):
    settings = {**SETTINGS, "hidden": tuple(SETTINGS["hidden"])}
    return train(TrainConfig(**settings), data, output=tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def cluster():
    with coproc.LocalCluster(servers=2) as cluster, coproc.connect(cluster.address) as client:
        client.models()
        yield cluster


@pytest.fixture
def client(cluster):
    with coproc.connect(cluster.address) as client:
        yield client


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        select.select([], [], [], 0.01)
    return found


def killed_run(cluster, client, data, output, **settings):
    """A run whose driver is killed on its way, after its first checkpoint; the name of the model that it leaves."""
    (output.parent / "checkpoints").mkdir()
    given = json.dumps({**SETTINGS, "address": cluster.address, **settings})
    process = subprocess.Popen([sys.executable, "-c", RUN, given, data, str(output)], start_new_session=True)
    try:
        [name] = until(client.models)
        until(lambda: client.model(name).version > 150)
        until(lambda: settings.get("checkpoint_every", 1000) > 150 or list(output.parent.glob("checkpoints/0*")))
        until(lambda: json.loads((output / "run.json").read_text())["identity"])
    finally:
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
    return name


def check(result, expected, cluster, client, output):
    assert result.version == expected.version
    for name, tensor in expected.params.items():
        np.testing.assert_array_equal(result.params[name], tensor, err_msg=name)
    rows = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert client.models() == []
    assert client.tier.mounts() == []


@pytest.mark.parametrize("model", [None, "mine"])
def test_it_goes_on_from_what_the_model_is(cluster, client, data, went_through, tmp_path, model):
    """Which is newer than any checkpoint, and here there was none."""
    output, url = tmp_path / "run", f"file://{tmp_path}/checkpoints"
    name = killed_run(cluster, client, data, output, model=model, checkpoints=url, checkpoint_every=100_000)
    assert name == (model or resume.own_name(json.loads((output / "run.json").read_text())["run"]))
    stood_at = client.model(name).snapshot().version
    result = train(config_of(output, {"address": cluster.address, "shards": 1}), data, output=output, resume=True)
    check(result, went_through, cluster, client, output)
    taken = [int(path.name.partition(".")[0]) for path in (tmp_path / "checkpoints").glob("0*")]
    assert min(taken) >= stood_at  # of what stood, and where the learning rate changed since


def test_a_run_without_checkpoints_needs_a_place_for_one(cluster, client, data, went_through, tmp_path):
    output = tmp_path / "run"
    killed_run(cluster, client, data, output)
    with pytest.raises(ConfigError, match="--checkpoints URL"):
        train(config_of(output, {"address": cluster.address}), data, output=output, resume=True)
    config = config_of(output, {"address": cluster.address, "checkpoints": f"file://{tmp_path}/checkpoints"})
    check(train(config, data, output=output, resume=True), went_through, cluster, client, output)


def test_a_run_that_goes_on_is_left_alone(cluster, client, data, tmp_path, monkeypatch):
    output = tmp_path / "run"
    name = killed_run(cluster, client, data, output, checkpoints=f"file://{tmp_path}/checkpoints")
    config, model = config_of(output, {"address": cluster.address}), client.model(name)
    monkeypatch.setattr(resume, "GONE_WITHIN_S", 1.0)
    stop = threading.Event()

    def push():
        with model.join(worker=0) as one, model.join(worker=1) as other:
            while not stop.wait(0.01):
                one.skip()
                other.skip()

    pushing = threading.Thread(target=push)
    pushing.start()
    try:
        with pytest.raises(ModelExists, match=r"its workers push: the run .* still goes on somewhere"):
            train(config, data, output=output, resume=True)
    finally:
        stop.set()
        pushing.join(30)
    client.tier.unmount(f"/models/{name}/checkpoints")
    model.delete()


def test_what_is_another_runs_is_left_alone(cluster, client, data, went_through, tmp_path):
    output = tmp_path / "run"
    settings = {"model": "ours", "checkpoints": f"file://{tmp_path}/checkpoints", "checkpoint_every": 10}
    name = killed_run(cluster, client, data, output, **settings)
    config, model = config_of(output, {"address": cluster.address}), client.model(name)
    spec = model.spec
    model.delete()
    parameters = spec.layout.views(np.zeros(spec.layout.size, np.float32))
    same = client.create_model(name, params=parameters, optimizer=spec.optimizer, consistency=spec.consistency)
    with pytest.raises(ModelExists, match=r"already, and .* created by another run, or anew.* delete it.*python -c"):
        train(config, data, output=output, resume=True)
    same.delete()
    client.create_model(name, params={"w": np.zeros(20)}, optimizer=coproc.optim.SGD(0.5))
    with pytest.raises(ModelExists, match=r"20 parameters, .*; its optimizer is .*sgd.* is .*adam.*; its consistency"):
        train(config, data, output=output, resume=True)
    assert client.models() == [name], "it is its user's"
    client.model(name).delete()
    # Then from the newest checkpoint.
    check(train(config, data, output=output, resume=True), went_through, cluster, client, output)
