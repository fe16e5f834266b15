"""One run of one point: what its row says, and how its process talks."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coproc.compare import child
from coproc.compare.child import trial
from coproc.compare.grid import train_config
from coproc.compare.runner import run_child
from coproc.errors import ConfigError, CoprocError
from coproc.pools.base import python_path
from coproc.training import train
from coproc.training.output import checksum
from coproc.trials.base import Point, Run, silent
from coproc.trials.metrics import metrics_of
from coproc.trials.workloads import prepare

NOWHERE = Path("/nowhere")
POINT = Point("coproc", workload="digits", pool="inline", epochs=3, rows=512, hidden=(8,))
TIMEOUT_S = 90


def test_a_row_of_a_mode(tmp_path):
    told = []

    def tell(phase, *, epoch=0, steps=0.0, loss=None):
        told.append((phase, epoch, steps))

    began_s = time.monotonic()
    row = trial(replace(POINT, group_size=1), NOWHERE, 4, began_s, tell)
    assert (row["id"], row["repeat"], row["status"]) == (replace(POINT, group_size=1).id, 4, "ok")
    # 512 rows of 2 workers in batches of 128: 2 steps an epoch, each a group of its own.
    assert [group[:2] for group in row["groups"]] == [[epoch, step] for epoch in range(3) for step in range(2)]
    assert sorted(sample[:2] for sample in row["samples"]) == [[worker, step] for worker in (0, 1) for step in range(6)]
    assert all(began_s < sample[2] and sample[6] == 128 for sample in row["samples"])
    assert row["startup_s"] == pytest.approx(row["groups"][0][2] - began_s, abs=1e-3)
    trained = [each["train_s"] for each in row["epochs"]]
    spans = [row["groups"][2 * n + 1][3] - row["groups"][2 * n][2] for n in range(3)]
    assert trained == pytest.approx([sum(spans[: n + 1]) for n in range(3)], abs=1e-3)
    assert {"epoch", "train_s", "train_loss", "loss", "accuracy"} <= set(row["epochs"][0])
    parameters = 64 * 8 + 8 + 8 * 10 + 10
    assert row["parameters"] == parameters
    assert row["version"] == 6
    assert row["costs"]["jobs_count"] == 6
    assert row["costs"]["worker_out_bytes"] == 12 * 4 * parameters
    assert len(row["checksum"]) == 32
    assert row["origin"].startswith("scikit-learn")
    assert told[0] == ("reading the data", 0, 0.0)
    assert ("training", 3, 6.0) in told
    assert metrics_of(json.loads(json.dumps(row)))["jobs_per_step"] == 1


def test_the_checksum_is_that_of_the_training():
    """Of all synchronous modes; as `coprocessor train` writes it: tensors in the order of the layout."""
    row = trial(POINT, NOWHERE, 0, 0.0, silent)
    prepared = prepare(POINT, NOWHERE)
    result = train(train_config(replace(POINT, contestant="allreduce")), prepared.train, validation=prepared.test)
    assert row["checksum"] == checksum(np.concatenate([tensor.reshape(-1) for tensor in result.params.values()]))
    assert row["epochs"][-1]["loss"] == result.history[-1]["validation_loss"]


def test_a_target_that_is_reached_ends_the_training():
    row = trial(replace(POINT, epochs=50, target_accuracy=0.0), NOWHERE, 0, 0.0, silent)
    assert len(row["epochs"]) == 1
    assert row["notes"] == ["ended after epoch 1 of 50: its target was reached"]


@pytest.mark.parametrize(
    ("loss", "accuracy", "measured", "enough"),
    [
        (None, None, {"loss": 0.0, "accuracy": 1.0}, False),
        (0.5, None, {"loss": 0.5, "accuracy": 0.0}, True),
        (0.5, None, {"loss": 0.6, "accuracy": 1.0}, False),
        (None, 0.9, {"loss": 9.0, "accuracy": 0.9}, True),
        (0.5, 0.9, {"loss": 0.4, "accuracy": 0.8}, False),
        (0.5, 0.9, {"loss": 0.4, "accuracy": 0.9}, True),
        (0.5, 0.9, {}, False),
    ],
)
def test_all_targets_have_to_be_reached(loss, accuracy, measured, enough):
    assert child._enough(replace(POINT, target_loss=loss, target_accuracy=accuracy), measured) is enough


def test_emulated_compute_learns_nothing_and_says_so():
    row = trial(replace(POINT, emulate_compute=True), NOWHERE, 0, 0.0, silent)
    assert [sorted(each) for each in row["epochs"]] == [["epoch", "train_s"]] * 3
    assert any("Compute is emulated" in note for note in row["notes"])


def test_other_contestants_tell_their_own_run(monkeypatch):
    class Module:
        @staticmethod
        def run(point, prepared, tell):
            assert (len(prepared.train), prepared.hidden) == (512, (8,))
            tell("playing")
            return Run(
                groups=[(0, 0, 100.0, 110.0)],
                samples=[(0, 0, 100.0, 0.0, 1.0, 0.0, 128, 0.5, 0)],
                epochs=[{"epoch": 1, "train_s": 10.0, "loss": 0.4}],
                memory={"worker": 7},
                versions={"chess": "1"},
                notes=["it plays"],
            )

    monkeypatch.setattr(child.contestants, "load", lambda name: Module)
    row = trial(replace(POINT, contestant="single"), NOWHERE, 0, 90.0, silent)
    assert row["startup_s"] == 10.0
    assert (row["groups"], row["memory"], row["notes"]) == ([[0, 0, 100.0, 110.0]], {"worker": 7}, ["it plays"])
    assert row["versions"] == {"chess": "1"}


def test_what_fails_is_a_sentence():
    with pytest.raises(ConfigError, match="no workload 'chess'"):
        trial(replace(POINT, workload="chess"), NOWHERE, 0, 0.0, silent)
    assert child.sentence_of(CoprocError("it is\nbroken")) == "it is broken"
    assert child.sentence_of(ZeroDivisionError("division by zero")) == "ZeroDivisionError: division by zero"


def test_the_process_tells_lines_and_nothing_else():
    code = (
        "import sys\nfrom coproc.compare import child\n"
        "def trial(point, data, repeat, began_s, tell):\n"
        "    print('a library talks')\n"
        "    tell('working', epoch=2, steps=3.5)\n"
        "    1 / 0\n"
        "child.trial = trial\nchild.main()\n"
    )
    request = {"point": POINT.to_json_values(), "data": "/nowhere", "repeat": 0, "began_s": 0.0}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": python_path()},
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        progress, error = (json.loads(line) for line in process.stdout)
        assert process.wait(TIMEOUT_S) == 1
        said = process.stderr.read()
    assert math.isclose(progress["progress"].pop("moment_s"), time.monotonic(), abs_tol=TIMEOUT_S)
    assert progress == {"progress": {"phase": "working", "epoch": 2, "steps": 3.5, "loss": None}}
    assert error == {"error": "ZeroDivisionError: division by zero"}
    assert b"a library talks" in said
    assert b"Traceback" in said


def test_a_run_on_spark():
    """One whole run, in a process of its own, as most are."""
    phases = []
    row = run_child(
        Point("coproc", workload="digits", rows=512, epochs=12, hidden=(8,)),  # so long that each role is seen at work
        0,
        NOWHERE,
        TIMEOUT_S,
        lambda event: phases.append(event.progress["phase"]),
    )
    assert (row["status"], row["error"]) == ("ok", None)
    assert "starting Spark" in phases
    assert set(row["memory"]) >= {"driver", "jvm", "server", "worker"}
    assert all(peak > 1 << 20 for peak in row["memory"].values())
    assert row["costs"]["jobs_count"] == 12
    assert 0 <= row["cpu_idle"] <= 1


@pytest.mark.slow
def test_a_run_on_a_spark_of_several_executors_leaves_nothing_where_spark_is_installed():
    import pyspark

    point = Point("coproc", workload="digits", rows=512, hidden=(8,), master="local-cluster[2,1,1024]", group_size=1)
    row = run_child(point, 0, NOWHERE, TIMEOUT_S)
    assert (row["status"], row["error"]) == ("ok", None)
    assert row["costs"]["jobs_count"] == 2
    assert not Path(pyspark.__path__[0], "work").exists()
