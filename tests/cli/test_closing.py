"""What a training suggests at its end, and what `status` writes."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from coproc.cli.base import PROGRAM
from coproc.cli.closing import closing_words
from coproc.cli.status import as_text
from coproc.status import ClusterStatus, ModelStatus, ServerStatus
from coproc.training import TrainConfig


def words(*rows, config=None, demo=False, validated=True, interrupted=False, examples=5000):
    history = [{"examples": examples, **row} for row in rows]
    result = SimpleNamespace(
        history=history,
        wall_s=3.0,
        output="out",
        interrupted=interrupted,
        backend=SimpleNamespace(layout=SimpleNamespace(size=1000)),
    )
    return closing_words(result, config or TrainConfig(), demo=demo, validated=validated)


def row(loss, accuracy, validation_loss=None):
    return {"loss": loss, "accuracy": accuracy, "validation_loss": loss if validation_loss is None else validation_loss}


def rmse(loss, error):
    return {"loss": loss, "validation_rmse": error, "validation_loss": loss}


@pytest.mark.parametrize(
    ("rows", "config", "flag"),
    [
        ([row(0.5, 0.9), row(0.3, 0.92, 0.9)], {}, "--epochs 10"),
        ([row(0.5, 0.9), row(0.3, 0.9005, 0.9)], {}, "--dropout 0.3"),
        ([row(0.5, 0.9), row(0.3, 0.9005, 0.9)], {"dropout": 0.2}, "--dropout 0.5"),
        ([row(0.5, 0.9), row(0.3, 0.9005, 0.9)], {"dropout": 0.5}, None),
        ([row(0.5, 0.9), row(0.3, 0.9005, 0.9)], {"hidden": ()}, None),
        ([row(0.5, 0.9), row(0.4, 0.9)], {}, "--hidden 1024,1024"),
        ([row(0.5, 0.9), row(0.4, 0.9)], {"hidden": ()}, "--hidden 256"),
        ([row(0.5, 0.9), row(0.4, 0.9)], {"hidden": (1024, 1024)}, None),
        ([row(0.5, 1.0), row(0.4, 1.0)], {}, None),
        ([row(0.5, 0.9), row(0.6, 0.95)], {}, "--learning-rate 0.0001"),
        ([row(0.5, 0.9)], {}, "--epochs 25"),
        ([rmse(0.5, 2.0), rmse(0.4, 1.9)], {}, "--epochs 10"),
        ([rmse(0.5, 2.0), rmse(0.4, 1.99)], {}, "--hidden 1024,1024"),
    ],
)
def test_suggests_one_setting_by_what_was_measured(rows, config, flag):
    _, _, _, _, *lines = words(*rows, config=TrainConfig(consistency="asp", **config)).splitlines()
    assert [line.split("   ")[0].strip() for line in lines[1:]] == ([flag] if flag else [])
    assert bool(lines) == bool(flag)


def test_without_validation_rows_they_come_first():
    said = words({"loss": 0.5, "accuracy": 0.9}, {"loss": 0.3, "accuracy": 0.95}, validated=False).splitlines()
    assert "--validation FILE" in said[5]
    assert "--epochs 10" in said[6]


def test_few_rows_and_interrupted_runs_get_no_suggestion():
    few = words(row(0.5, 0.3), row(0.4, 0.6), examples=3)
    assert few.endswith("more of them will help more than any setting.")
    assert "--" not in few
    assert "Try next" not in words(row(0.5, 0.3), row(0.4, 0.6), interrupted=True)
    assert "no epoch was finished" in words(interrupted=True)


def test_every_line_fits_80_columns():
    said = [
        words(row(0.5, 0.9), demo=True),
        words(row(0.5, 0.9), row(0.3, 0.9, 0.9)),
        words(row(0.5, 0.9), row(0.6, 0.9), validated=False),
        words(row(0.5, 0.9)),
        words(rmse(0.5, 0.123456)),
    ]
    assert max(len(line) for each in said for line in each.splitlines()) <= 80
    assert f"  {PROGRAM} train YOUR.parquet" in said[0]


# -- status

MODEL = ModelStatus(
    name="a-name-of-a-model-that-is-much-longer-than-any-column-of-a-table-would-be-at-80",
    epoch=1,
    version=1234,
    parameters_count=9610,
    optimizer="adam",
    consistency="bsp",
    shards_count=1,
    workers_count=2,
    seats_count=2,
    pushes_count=2468,
    duplicates_count=0,
    examples_count=1,
    loss_sum=0.0,
    loss_examples_count=0,
    staleness_mean=0.0,
    staleness_max=0,
    pushes_per_s=120.5,
    waiting_for=(0, 1),
    failure="",
    memory_bytes=1000,
)


def text(**changes):
    servers = [ServerStatus("127.0.0.1:1", 2, 7.0, 10, 1000), ServerStatus("127.0.0.1:2", 0, 0, 0, 0, "no answer")]
    return as_text(ClusterStatus(servers, [dataclasses.replace(MODEL, **changes)]))


def test_status_is_a_block_each():
    said = text()
    assert f"\nmodel {MODEL.name}\n" in said
    assert "server 127.0.0.1:1\n  up      7 s, start 2\n" in said
    assert "server 127.0.0.1:2\n  down  no answer\n" in said
    assert "  pushes       2,468, 120.5 a second\n" in said


def test_a_round_waits_for_somebody_only_when_nothing_moves():
    assert "waits" not in text()
    assert "waits for    workers 0, 1" in text(pushes_per_s=0.0)
    assert "waits for    worker 1" in text(pushes_per_s=0.0, waiting_for=(1,))
    failed = text(pushes_per_s=0.0, failure="worker 1 is lost")
    assert "waits" not in failed
    assert "failed       worker 1 is lost" in failed
