"""Whole trainings on an embedded cluster: the right model, the files, and what happens when it goes wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading

import numpy as np
import pyarrow as pa
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import coproc
from coproc import grads
from coproc.data.batches import Batches
from coproc.errors import ConfigError, DataError, Diverged, ModelExists, OutOfMemory, Unauthenticated, Unreachable
from coproc.ingest import Destination, ingest_table, open_partition
from coproc.pools.inline import InlinePool
from coproc.pools.processes import ProcessPool
from coproc.training import TrainConfig, plan, train
from storage_tier import TierClient


def blobs(count=90, seed=0):
    """Three classes that a small network tells apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    features = (rng.normal(size=(count, 4)) + 3 * np.eye(3, 4)[labels]).astype(np.float32)
    return pa.table({"features": pa.array(list(features), pa.list_(pa.float32())), "label": labels})


@pytest.fixture(scope="module")
def cluster():
    with coproc.LocalCluster(token="secret", memory_bytes=256 << 20) as cluster:
        yield cluster


@pytest.fixture
def settings(cluster):
    return {
        "address": cluster.address,
        "token": "secret",
        "hidden": (8,),
        "epochs": 3,
        "batch_size": 8,
        "optimizer": "sgd",
        "pool": "inline",
    }


@pytest.fixture(autouse=True)
def _nothing_stays(cluster):
    yield
    with coproc.connect(cluster.address, token="secret") as client:
        assert client.models() == []
        assert [info for info in client.tier.find() if info.kind == "file"] == []


def by_hand(cluster, table, config):
    """The parameters that one process gets from the same batches, without worker, pool or cluster."""
    destination = Destination(cluster.address, "by-hand", "secret")
    ingested = ingest_table(table, destination, partitions_count=config.workers, features="features", label="label")
    parts = [open_partition(destination, number) for number in range(config.workers)]
    net = grads.create({"backend": "mlp", "inputs": 4, "hidden": list(config.hidden), "outputs": 3})
    params = net.init(config.seed)
    size = config.batch_size * config.n_send
    for epoch in range(config.epochs):
        orders = [
            Batches(part, config.batch_size, config.seed, number).order(epoch) for number, part in enumerate(parts)
        ]
        for place in range(max(-(-len(part) // size) for part in parts)):
            chosen = [order[place * size : (place + 1) * size] for order in orders]
            batch = grads.Batch(
                np.concatenate([part.features[rows] for part, rows in zip(parts, chosen, strict=True)]),
                np.concatenate([part.labels[rows] for part, rows in zip(parts, chosen, strict=True)]),
            )
            gradient = np.empty_like(params)
            net.value_and_grad(params, batch, out=gradient)
            params -= np.float32(config.rate_of(epoch)) * gradient
    ingested.remove()
    return net.layout.views(params)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"workers": 1},
        {"workers": 3, "shards": 2},
        {"group_size": 2},
        {"n_send": 2, "schedule": "constant"},
        {"pool": "processes"},
    ],
    ids=str,
)
def test_synchronous_training_equals_one_process(cluster, settings, changes):
    config = TrainConfig(**{**settings, **changes})
    table = blobs(85)  # partitions of unequal length, the last batches short
    result = train(config, table)
    for name, expected in by_hand(cluster, table, config).items():
        np.testing.assert_allclose(result.params[name], expected, rtol=1e-4, atol=1e-5)
    assert [row["examples"] for row in result.history] == [85, 85, 85]


def test_synchronous_training_repeats_bit_for_bit(settings):
    one, two = (
        train(TrainConfig(**{**settings, "optimizer": "adam", **changes}), blobs())
        for changes in ({}, {"pool": "processes", "group_size": 2})
    )
    for name, tensor in one.params.items():
        np.testing.assert_array_equal(tensor, two.params[name])


@pytest.mark.parametrize("consistency", ["asp", "ssp"])
@pytest.mark.parametrize("rhythm", [{}, {"group_size": 2}, {"n_send": 2, "n_fetch": 3}], ids=str)
def test_asynchronous_training_uses_every_row_in_every_epoch(settings, consistency, rhythm):
    # 31 rows and 3 workers: one has a batch more than the others, and nobody may wait for those for ever.
    config = TrainConfig(
        **{**settings, "consistency": consistency, "workers": 3, "batch_size": 2, **rhythm},
        bound=1 if consistency == "ssp" else None,
    )
    result = train(config, blobs(31))
    assert [row["examples"] for row in result.history] == [31, 31, 31]
    per_push = 2 * config.n_send
    pushes = sum(-(-count // per_push) for count in (11, 10, 10))
    assert [row["pushes"] for row in result.history] == [pushes] * 3
    assert result.version == 3 * pushes


@pytest.mark.parametrize("rhythm", [{}, {"group_size": 2}], ids=str)
@pytest.mark.parametrize("late", ["drop", "carry"])
def test_rounds_without_the_slowest_end_whatever_comes_late(settings, late, rhythm):
    # In processes, where somebody is late indeed; the last worker has fewer rows and skips.
    quorum = {"consistency": "quorum", "quorum": 1, "late": late, "workers": 2, "pool": "processes", "batch_size": 2}
    result = train(TrainConfig(**{**settings, **quorum, **rhythm}), blobs(31))
    assert len(result.history) == settings["epochs"]
    # Each round has one gradient at the least, and two at the most.
    pushes = 3 * (8 + 8)
    assert pushes / 2 <= result.version <= pushes
    if late == "carry":
        assert sum(row["examples"] for row in result.history) == 3 * 31


def test_a_whole_quorum_without_anybody_late_is_synchronous(settings):
    whole = {"consistency": "quorum", "quorum": 3, "workers": 3, "grace_s": 1.0}
    rounds = train(TrainConfig(**{**settings, "workers": 3}), blobs(31))
    quorum = train(TrainConfig(**{**settings, **whole}), blobs(31))
    assert quorum.version == rounds.version
    for name, value in rounds.params.items():
        assert (quorum.params[name] == value).all()


def test_learns_and_leaves_its_files(settings, tmp_path):
    config = TrainConfig(**{**settings, "optimizer": "adam", "learning_rate": 0.02, "epochs": 8})
    heard = []
    result = train(config, blobs(300), validation=blobs(100, seed=1), output=tmp_path / "run", on_progress=heard.append)
    assert result.history[-1]["accuracy"] > 0.9
    assert result.history[-1]["loss"] < result.history[0]["loss"]

    tensors = load_file(tmp_path / "run" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "layers.0.weight": (4, 8),
        "layers.0.bias": (8,),
        "layers.1.weight": (8, 3),
        "layers.1.bias": (3,),
    }
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, result.params[name])
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert [row["epoch"] for row in result.history] == list(range(1, 9))
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["data"]["rows"] == 300
    assert run["parameters"] == 4 * 8 + 8 + 8 * 3 + 3
    assert run["config"]["optimizer"] == "adam"
    assert "secret" not in json.dumps(run)

    rows = [each.row for each in heard if each.row is not None]
    assert [row.epoch for row in rows] == list(range(1, 9))
    test = blobs(100, seed=1)
    features = np.array(test["features"].to_pylist(), np.float32)
    right = result.predict(features).argmax(axis=1) == test["label"].to_numpy()
    assert right.mean() == pytest.approx(result.history[-1]["accuracy"])


def test_bytes_are_scaled_unless_told_otherwise(settings):
    images = np.random.default_rng(0).integers(0, 256, (40, 4)).astype(np.uint8)
    features = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 4)
    table = pa.table({"features": features, "label": np.arange(40) % 2})
    assert train(TrainConfig(**settings), table).scale == 255
    assert train(TrainConfig(**{**settings, "scale": 16.0}), table).scale == 16


@pytest.mark.parametrize(("loss", "metric"), [("squared", "sample_rmse"), ("logistic", "accuracy")])
def test_other_losses(settings, loss, metric):
    values = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    target = values.sum(axis=1) if loss == "squared" else (values.sum(axis=1) > 0).astype(np.int64)
    table = pa.table({**{f"x{i}": values[:, i] for i in range(3)}, "y": target})
    config = TrainConfig(
        **{
            **settings,
            "loss": loss,
            "features": ("x0", "x1", "x2"),
            "label": "y",
            "epochs": 20,
            "learning_rate": 0.3,
        }
    )
    result = train(config, table)
    assert result.params["layers.1.weight"].shape == (8, 1)
    final = result.history[-1][metric]
    assert final < 0.5 if loss == "squared" else final > 0.9


def test_says_where_it_diverged_and_keeps_the_last_good_version(settings, tmp_path):
    values = (1e3 * np.random.default_rng(0).normal(size=(64, 2))).astype(np.float32)
    table = pa.table({"a": values[:, 0], "b": values[:, 1], "label": values.sum(axis=1)})
    config = TrainConfig(**{**settings, "features": ("a", "b"), "loss": "squared", "learning_rate": 10.0})
    with pytest.raises(Diverged) as caught:
        train(config, table, output=tmp_path)
    message = str(caught.value)
    assert "at step " in message
    assert "learning rate" in message
    assert "model.safetensors" in message
    assert all(np.isfinite(tensor).all() for tensor in load_file(tmp_path / "model.safetensors").values())
    run = json.loads((tmp_path / "run.json").read_text())
    assert "diverged" in run["error"]
    assert (run["epochs_done"], run["version"], run["final"]) == (0, 0, None)


def test_a_stop_keeps_what_was_trained(settings, tmp_path):
    epochs = []
    result = train(
        TrainConfig(**{**settings, "epochs": 1000}),
        blobs(),
        output=tmp_path,
        on_progress=lambda progress: epochs.append(progress.row) if progress.row else None,
        stop=lambda: len(epochs) >= 2,
    )
    assert result.interrupted
    assert 2 <= len(result.history) < 1000
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_what_it_has_cost_is_told_at_the_end(settings, stopped):
    told, groups = [], []
    config = TrainConfig(**{**settings, "group_size": 2})
    result = train(
        config, blobs(), on_end=told.append, on_group=groups.append, stop=lambda: stopped and len(groups) >= 2
    )
    (costs,) = told
    size_bytes = sum(tensor.nbytes for tensor in result.params.values())
    pushes = sum(part.pushes for group in groups for report in group.reports for part in report.epochs)
    assert costs.jobs_count == len(groups)
    assert costs.worker_out_bytes == costs.server_in_bytes == pushes * size_bytes
    assert result.interrupted == stopped


def test_of_a_training_that_failed_no_costs_are_told(settings, monkeypatch):
    def fail(task, *, stop):
        raise DataError("no rows")

    monkeypatch.setattr("coproc.training.open_pool", lambda *given: InlinePool(run_task=fail))
    with pytest.raises(DataError, match="no rows"):
        train(TrainConfig(**settings), blobs(), on_end=lambda costs: pytest.fail("it was told"))


def test_killed_workers_change_nothing(settings, monkeypatch):
    """Bit for bit the model of an undisturbed run, though its processes are killed again and again."""
    quiet = train(TrainConfig(**{**settings, "pool": "inline", "epochs": 6}), blobs(400))
    pools, victims = [], []
    start = ProcessPool.__init__
    monkeypatch.setattr(ProcessPool, "__init__", lambda pool, slots: (pools.append(pool), start(pool, slots))[0])
    over = threading.Event()

    def kill():
        while not over.wait(0.15):
            for pid in pools[0].pids[:1] if pools else []:
                if len(victims) < 3:
                    victims.append(pid)
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        disturbed = train(TrainConfig(**{**settings, "pool": "processes", "epochs": 6}), blobs(400))
    finally:
        over.set()
        killer.join()
    assert victims
    assert disturbed.version == quiet.version
    for name, tensor in quiet.params.items():
        np.testing.assert_array_equal(tensor, disturbed.params[name])


def test_two_runs_cannot_have_one_model(cluster, settings, monkeypatch):
    with coproc.connect(cluster.address, token="secret") as client:
        model = client.create_model("mine", params={"w": np.zeros(4)}, optimizer=coproc.optim.SGD(learning_rate=0.1))
        heard = []
        with pytest.raises(ModelExists, match=r"a model 'mine' at coproc://.* another name with --model") as caught:
            train(TrainConfig(**{**settings, "model": "mine"}), blobs(), on_progress=heard.append)
        assert "reading the data" not in [each.phase for each in heard]
        assert model.version == 0

        # Created by somebody else while the data were read: the later look finds it.
        monkeypatch.setattr(coproc.client.Client, "models", lambda client: [])
        with pytest.raises(ModelExists, match="another name with --model"):
            train(TrainConfig(**{**settings, "model": "mine"}), blobs())
        monkeypatch.undo()

        command = str(caught.value).split("python -c ")[1].strip('"')
        monkeypatch.setenv("COPROC_TOKEN", "secret")
        exec(command)
        assert client.models() == []


def test_wrong_addresses_and_tokens_are_said_at_once(settings):
    for token in ("wrong", None):
        with pytest.raises(Unauthenticated, match=r"127\.0\.0\.1:\d+ refuses: .*token.*--token, COPROC_TOKEN"):
            train(TrainConfig(**{**settings, "token": token}), blobs())
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        train(TrainConfig(**{**settings, "address": "coproc://127.0.0.1:1"}), blobs())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": (8, 0)}, "--hidden sizes must be at least 1, not 0"),
        ({"workers": 0}, "--workers must be at least 1, not 0"),
        ({"batch_size": -1}, "--batch-size must be at least 1"),
        ({"learning_rate": 0.0}, "--learning-rate must be a number above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be a number above 0"),
        ({"scale": 0.0}, "--scale"),
        ({"loss": "hinge"}, "--loss must be one of softmax, logistic, squared, not 'hinge'"),
        ({"optimizer": "newton"}, "--optimizer must be one of"),
        ({"consistency": "eventual"}, "--consistency must be one of"),
        ({"pool": "threads"}, "--pool must be one of"),
        ({"n_fetch": 2}, "--n-fetch must equal --n-send, not 2 and 1"),
        ({"dropout": 1.0}, "--dropout is the share .* below 1, not 1.0"),
        ({"dropout": float("nan")}, "--dropout is the share"),
        ({"activation": "sine"}, "--activation must be one of relu, tanh, not 'sine'"),
        ({"consistency": "quorum"}, "--consistency quorum needs --quorum: 1 to 2"),
        ({"consistency": "quorum", "quorum": 9}, "the count of Quorum must be a whole number from 1 to 2"),
        ({"consistency": "quorum", "quorum": 1, "late": "maybe"}, "late must be"),
        ({"quorum": 1}, "--quorum, --grace-s and --late go with --consistency quorum, not with bsp"),
        ({"consistency": "quorum", "quorum": 1, "n_fetch": 3}, "quorum computes every gradient on the newest version"),
        ({"bound": 2}, "--bound 2 goes with --consistency ssp, not with bsp"),
        ({"bound": 2, "consistency": "asp"}, "--bound 2 goes with --consistency ssp, not with asp"),
        ({"bound": -1, "consistency": "ssp"}, "--bound must be at least 0, not -1"),
        ({"workers": 1000}, "--workers can be at most 480 with --consistency bsp, not 1000"),
        ({"learning_rate": 1e300}, "--learning-rate 1e"),
        ({"model": "a/b"}, "--model 'a/b': "),
        ({"mode": "carrier-pigeon"}, "no mode 'carrier-pigeon'; the modes are allreduce, .*coproc"),
    ],
)
def test_settings_that_cannot_work_get_a_sentence(settings, changes, words):
    with pytest.raises(ConfigError, match=words):
        train(TrainConfig(**{**settings, **changes}), blobs(20))


def test_more_shards_than_parameters_name_the_option(settings):
    with pytest.raises(ConfigError, match=r"--shards 100000 is too many: 67 parameters .* 1 to 5 shards"):
        train(TrainConfig(**{**settings, "shards": 100_000}), blobs(20))


def test_a_network_larger_than_the_memory_is_refused_with_its_size(settings, monkeypatch, tmp_path):
    huge = TrainConfig(**{**settings, "hidden": (200_000, 200_000)})
    with pytest.raises(
        OutOfMemory, match=r"--hidden 200000,200000 .* parameters \(160\.0 GB\).* make --hidden smaller"
    ):
        train(huge, blobs(20))
    # One that fits in the driver fits no more where the servers' part is in the same machine.
    monkeypatch.setattr(plan, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    1000 kB\n")
    plan.require_memory(TrainConfig(address="coproc://somewhere:1"), 50_000)
    with pytest.raises(OutOfMemory, match="--address"):
        plan.require_memory(TrainConfig(), 50_000)
    (tmp_path / "meminfo").unlink()
    plan.require_memory(TrainConfig(), 1 << 50)


def test_an_optimizer_more_needs_no_entry_here(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Own(coproc.optim.SGD):
        learning_rate: float = 0.25

    class Rateless(coproc.optim.SGD):
        pass

    kinds = {**coproc.optim.registered(), "own": Own, "rateless": Rateless}
    monkeypatch.setattr("coproc.optim.registered", lambda: kinds)
    monkeypatch.setattr("coproc.optim.base.registered", lambda: kinds)
    assert TrainConfig(optimizer="own").rate == 0.25
    assert TrainConfig(optimizer="rateless", learning_rate=0.5).rate == 0.5
    with pytest.raises(ConfigError, match="--optimizer rateless has no learning rate of its own: give --learning-rate"):
        TrainConfig(optimizer="rateless")
    with pytest.raises(ConfigError, match=r"--optimizer must be one of .*momentum, own, rateless, rmsprop, sgd, not"):
        TrainConfig(optimizer="newton")


def test_the_phases_are_told(settings):
    heard = []
    train(TrainConfig(**{**settings, "epochs": 1}), blobs(), on_progress=heard.append)
    phases = list(dict.fromkeys(each.phase for each in heard))
    assert phases[:3] == [f"connecting to {settings['address']}", "reading the data", "creating the model"]


@pytest.mark.parametrize("images", [True, False])
def test_the_model_file_alone_predicts(settings, tmp_path, images):
    rng = np.random.default_rng(0)
    features = rng.integers(0, 256, (40, 4)).astype(np.uint8) if images else rng.normal(size=(40, 4))
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), 4)
    result = train(TrainConfig(**settings), pa.table({"features": column, "label": np.arange(40) % 3}), output=tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        facts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    backend = json.loads(facts["backend"])
    assert (facts["format"], facts["run"], int(facts["version"])) == ("coproc", result.run, result.version)
    assert (json.loads(facts["classes"]), backend["outputs"], backend["loss"]) == (3, 3, "softmax")
    assert json.loads(facts["scale"]) == result.scale == (255 if images else 1)
    values = features.astype(np.float32) / np.float32(json.loads(facts["scale"]))
    for layer in range(len(backend["hidden"]) + 1):
        values = values @ tensors[f"layers.{layer}.weight"] + tensors[f"layers.{layer}.bias"]
        if layer < len(backend["hidden"]):
            values = np.maximum(values, 0)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), result.predict(features), rtol=1e-5)
    assert len(repr(result)) < 250
    assert "67 parameters" in repr(result)


def test_data_that_cannot_work_get_a_sentence(settings, tmp_path):
    config = TrainConfig(**settings)
    with pytest.raises(DataError, match="there is no file or folder"):
        train(config, "nowhere.parquet")
    with pytest.raises(DataError, match="there is no file or folder other"):
        train(config, blobs(), validation="other.parquet")
    with pytest.raises(DataError, match="1 row for 2 workers"):
        train(config, blobs(1))
    more = blobs(20).set_column(1, "label", pa.array([3] * 20))
    with pytest.raises(DataError, match=r"\(validation\): label 3 .* below 3"):
        train(config, blobs(), validation=more)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written to"):
        train(config, blobs(), output=tmp_path / "file" / "run")


def test_an_embedded_cluster_is_gone_afterwards():
    def own():  # clusters of other processes come and go meanwhile
        return {name for name in os.listdir("/dev/shm") if f"-{os.getpid()}-" in name}

    before, during = own(), set()
    result = train(
        TrainConfig(hidden=(), epochs=1, pool="inline", batch_size=16),
        blobs(),
        on_progress=lambda progress: during.update(own()),
    )
    assert result.history[0]["examples"] == 90
    assert during - before
    assert own() <= before


def test_a_servers_restart_in_the_middle_is_survived(settings):
    restarted = threading.Event()

    def restart(progress):
        if progress.row is not None and progress.row.epoch == 1 and not restarted.is_set():
            restarted.set()
            cluster.servers[0].kill()
            cluster.servers[0].restart()

    calm = train(TrainConfig(**settings), blobs())
    with coproc.LocalCluster(token="secret", memory_bytes=256 << 20) as cluster:
        result = train(TrainConfig(**{**settings, "address": cluster.address}), blobs(), on_progress=restart)
    assert restarted.is_set()
    for name, tensor in calm.params.items():
        np.testing.assert_array_equal(tensor, result.params[name])


def test_the_tier_keeps_nothing_of_a_run_that_fails_while_reading(settings, cluster):
    table = blobs().set_column(1, "label", pa.array([1] * 90))
    with pytest.raises(DataError, match="at least two classes"):
        train(TrainConfig(**settings), table)
    with TierClient(cluster.address, token="secret") as tier:
        assert [info for info in tier.find() if info.kind == "file"] == []


def test_servers_that_are_gone_end_the_training(settings, monkeypatch):
    monkeypatch.setattr("coproc.training.fit.LOST_AFTER_S", 0.5)
    monkeypatch.setattr("coproc.modes.coproc._PATIENCE_S", 0.5)
    with coproc.LocalCluster(token="secret", memory_bytes=256 << 20) as cluster:

        def kill(progress):
            if progress.row is not None and progress.row.epoch == 1:
                cluster.servers[0].kill()

        config = TrainConfig(**{**settings, "address": cluster.address, "schedule": "constant"})
        with pytest.raises(Unreachable):
            train(config, blobs(), on_progress=kill)


def test_a_run_of_which_nothing_came_leaves_no_directory(settings, tmp_path):
    with pytest.raises(DataError):
        train(TrainConfig(**{**settings, "features": "pixels"}), blobs(), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_embedded_cluster_is_refused_where_executors_cannot_reach_it():
    class Conf:
        def get(self, name, default=None):
            return "yarn"

    class Session:
        conf = Conf()

    with pytest.raises(ConfigError, match="the executors of yarn may be on other hosts"):
        train(TrainConfig(), blobs(), session=Session())
