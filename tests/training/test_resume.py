"""A run that was killed or stopped goes on from its newest checkpoint, to the bits of one that went through."""

from __future__ import annotations

import dataclasses
import json
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coproc.errors import ConfigError, DataError
from coproc.training import TrainConfig, train
from coproc.training.base import EpochRow
from coproc.training.resume import config_of

SETTINGS = {
    "hidden": (16,),
    "epochs": 4,
    "batch_size": 2,
    "optimizer": "adam",
    "pool": "inline",
    "checkpoint_every": 7,
}

RUN = """
import json, sys
from coproc.training import TrainConfig, train
from coproc.training.base import EpochRow
settings = json.loads(sys.argv[1])
settings["hidden"] = tuple(settings["hidden"])
train(TrainConfig(**settings), sys.argv[2], output=sys.argv[3])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of 2,000 rows of three classes, in partitions of unequal length."""
    return write(tmp_path_factory.mktemp("data") / "train.parquet", 2001, seed=1)


def write(path, count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    features = (rng.normal(size=(count, 6)) + np.eye(3, 6)[labels]).astype(np.float32)
    pq.write_table(pa.table({"features": pa.array(list(features), pa.list_(pa.float32())), "label": labels}), path)
    return str(path)


@pytest.fixture(scope="module")
def went_through(data, tmp_path_factory):
    return train(TrainConfig(**SETTINGS), data, output=tmp_path_factory.mktemp("whole"))


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        select.select([], [], [], 0.01)
    return found


def checkpoints(output):
    return sorted(output.glob("checkpoints/0*.safetensors"))


def stopped_run(data, output, after, **changes):
    """A run that was asked to stop after so many checkpoints."""
    result = train(
        TrainConfig(**{**SETTINGS, **changes}), data, output=output, stop=lambda: len(checkpoints(output)) >= after
    )
    assert result.interrupted
    return result


def equal(result, expected):
    for name, tensor in expected.params.items():
        np.testing.assert_array_equal(result.params[name], tensor, err_msg=name)


def check_history(output, expected):
    rows = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    for row, other in zip(rows, expected.history, strict=True):
        assert (row["version"], row["learning_rate"]) == (other["version"], other["learning_rate"])
        assert row["accuracy"] == other["accuracy"]


@pytest.mark.parametrize("torn", ["", '{"epoch": 2, "los'])
def test_an_epoch_that_was_over_and_has_no_row_is_measured_again(data, went_through, tmp_path, torn):
    """Killed between the last push of an epoch and its row, or within it; the checkpoint has the push."""
    whole = train(TrainConfig(**SETTINGS), data, output=tmp_path)
    history = tmp_path / "history.jsonl"
    rows = history.read_text().splitlines()
    history.write_text("\n".join([*rows[:-1], torn]))
    result = train(config_of(tmp_path, {}), data, output=tmp_path, resume=True)
    equal(result, went_through)
    assert result.version == whole.version
    check_history(tmp_path, went_through)
    last, before = json.loads(history.read_text().splitlines()[-1]), json.loads(rows[-1])
    assert last["examples"] < before["examples"], "only what came after the checkpoint"


def test_a_loss_that_nobody_knows_is_null_in_json():
    row = EpochRow(1, 0.1, 7, float("nan"), {}, "validation", *[0] * 11)
    assert row.to_json_values()["loss"] is None


@pytest.mark.parametrize("pool", ["inline", "processes"])
def test_killed_with_all_its_memory(data, went_through, tmp_path, pool):
    settings = json.dumps({**SETTINGS, "pool": pool})
    process = subprocess.Popen([sys.executable, "-c", RUN, settings, data, str(tmp_path)], start_new_session=True)
    until(
        lambda: (
            (checkpoints(tmp_path) and checkpoints(tmp_path)[-1].name >= "000000000150") or process.poll() is not None
        )
    )
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    assert 1 <= len(checkpoints(tmp_path)) <= 3, "two are kept, and one may have been new"
    config = config_of(tmp_path, {"shards": 2})
    result = train(config, data, output=tmp_path, resume=True)
    assert not result.interrupted
    assert result.version == went_through.version
    equal(result, went_through)
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4]
    check_history(tmp_path, went_through)
    assert json.loads((tmp_path / "run.json").read_text())["epochs_done"] == 4
    # A run that is over has nothing left to do.
    again = train(config, data, output=tmp_path, resume=True)
    assert again.version == result.version
    equal(again, went_through)


def test_stopped_and_gone_on_with_twice(data, went_through, tmp_path):
    first = stopped_run(data, tmp_path, 1)
    newest = checkpoints(tmp_path)[-1]
    assert int(newest.name[:12]) >= first.version > 0, "one was taken when it stopped"
    seen = checkpoints(tmp_path)
    train(
        config_of(tmp_path, {"pool": "processes"}), data, output=tmp_path, resume=True,
        stop=lambda: checkpoints(tmp_path) != seen,
    )  # fmt: skip
    result = train(config_of(tmp_path, {}), data, output=tmp_path, resume=True)
    equal(result, went_through)
    check_history(tmp_path, went_through)


def test_a_damaged_checkpoint_is_passed_over(data, went_through, tmp_path):
    stopped_run(data, tmp_path, 2)
    newest = checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    result = train(config_of(tmp_path, {}), data, output=tmp_path, resume=True)
    equal(result, went_through)


def test_what_cannot_be_resumed(data, tmp_path):
    with pytest.raises(ConfigError, match=r"no run in .*run\.json is missing"):
        config_of(tmp_path / "nothing", {})
    output = tmp_path / "run"
    stopped_run(data, output, 1)
    config = config_of(output, {})
    with pytest.raises(ConfigError, match="epochs was 4, not 5"):
        train(dataclasses.replace(config, epochs=5), data, output=output, resume=True)
    with pytest.raises(DataError, match="other rows"):
        train(config, write(tmp_path / "other.parquet", 2001, seed=2), output=output, resume=True)
    with pytest.raises(ConfigError, match="name the output directory"):
        train(config, data, resume=True)
    for file in checkpoints(output):
        file.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"no whole checkpoint .* cannot be used"):
        train(config, data, output=output, resume=True)
    (output / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="not what a run has written"):
        config_of(output, {})


def test_checkpoints_need_a_place(data):
    with pytest.raises(ConfigError, match="need a place"):
        train(TrainConfig(checkpoint_every=5, pool="inline"), data)
    with pytest.raises(ConfigError, match="--checkpoint-every"):
        TrainConfig(checkpoint_every=0)
