"""Trainings of a model in parts: the same model, and what it refuses."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from coproc.errors import ConfigError
from coproc.training import TrainConfig, train

ROWS = 40


@pytest.fixture
def table():
    rng = np.random.default_rng(7)
    labels = np.arange(ROWS) % 3
    features = (rng.normal(size=(ROWS, 4)) + 2 * np.eye(3, 4)[labels]).astype(np.float32)
    return pa.table({"features": pa.array(list(features), pa.list_(pa.float32())), "label": labels})


SETTINGS = {"hidden": (8,), "epochs": 2, "batch_size": 5, "pool": "inline", "servers": 2}


def test_a_training_in_parts_ends_with_the_bits_of_one_in_shards(table, tmp_path):
    parted = train(TrainConfig(**SETTINGS, parts=True), table, validation=table, output=tmp_path / "out")
    whole = train(TrainConfig(**SETTINGS), table, validation=table)
    assert parted.version == whole.version == 2 * 4
    for name, tensor in whole.params.items():
        assert parted.params[name].tobytes() == tensor.tobytes()
    assert [row["loss"] for row in parted.history] == [row["loss"] for row in whole.history]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shards": 2}, "without --shards"),
        ({"consistency": "quorum", "quorum": 1}, "not with --consistency quorum"),
        ({"mode": "http"}, "--parts goes with --mode coproc"),
    ],
)
def test_what_does_not_go_with_parts_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        TrainConfig(**{**SETTINGS, **changes}, parts=True)


def test_checkpoints_of_parts_are_refused_before_anything_starts(table, tmp_path):
    with pytest.raises(ConfigError, match="with --parts writes no checkpoints"):
        train(TrainConfig(**SETTINGS, parts=True, checkpoints=str(tmp_path)), table)
