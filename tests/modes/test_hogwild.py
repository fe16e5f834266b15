"""Hogwild: steps that meet, steps that are cut off, who shares the memory, and when it is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from coproc import optim
from coproc.errors import ConfigError, OutOfMemory, Timeout
from coproc.modes import hogwild
from coproc.pools.inline import InlinePool
from coproc.shared import racing
from coproc.shared.racing import Racing
from coproc.testing.modes import CONSTANT, WORKS, assert_close, assert_moved
from coproc.testing.works import Training, expected_move, moved, one_process
from coproc.training import TrainConfig, train
from coproc.worker import run_worker

ONE = replace(CONSTANT, rows=(16,), consistency="asp")


@pytest.mark.parametrize("work", ["one", "adam"])
def test_one_worker_alone_is_one_process(ground, work):
    """With the optimizer's state where the parameters are."""
    alone = replace(WORKS[work], rows=(22,), group=2, consistency="asp")
    with Training("hogwild", ground, alone) as training:
        assert_close(training.run(InlinePool()), one_process(alone))


def test_workers_that_meet_lose_little_and_never_gain(ground):
    work = replace(CONSTANT, rows=(300, 300, 300), consistency="asp")
    with ground.pool("processes") as pool, Training("hogwild", ground, work) as training:
        found = moved(work, training.run(pool))
        assert training.mode.status().pushes_count == 3 * 3 * 75
    assert (found <= expected_move(work) * (1 + 1e-5)).all()
    assert (found >= expected_move(work) * 0.9).all()


def test_a_step_that_was_cut_off_is_taken_once_more(ground, monkeypatch):
    """Killed after the descent, and before the ledger says so."""
    tell, died = Racing.tell, []

    def die(shared, worker, step, *given):
        if step == 2 and not died:
            died.append(worker)
            raise SystemExit
        tell(shared, worker, step, *given)

    def again(task, *, stop):
        try:
            return run_worker(task, stop=stop)
        except SystemExit:
            return run_worker(task, stop=stop)

    monkeypatch.setattr(Racing, "tell", die)
    with Training("hogwild", ground, ONE) as training:
        found = moved(ONE, training.run(InlinePool(run_task=again)))
        assert training.mode.status().pushes_count == 12
    assert died == [0]
    np.testing.assert_allclose(found, expected_move(ONE) + 1, rtol=1e-5)


def test_an_attempt_waits_for_the_one_before_and_goes_on_behind_it(ground):
    with Training("hogwild", ground, ONE) as training:
        training.mode.group(InlinePool(), [], lambda: False)
        spec = training.mode.exchange_spec()
        first, second = (hogwild.open_exchange(spec, 0, timeout_s=1) for _ in range(2))
        assert hogwild.open_exchange(spec, 1, timeout_s=1).gradient(timeout_s=0.0) is not None  # another worker's
        first.gradient(timeout_s=0.0)[:] = 1
        with pytest.raises(Timeout, match="another attempt of worker 0 is at work"):
            second.gradient(timeout_s=0.05)
        step = second.next_step
        first.push(step=0, examples=4, loss=1.0, timeout_s=1, last=True)
        first.close()
        second.gradient(timeout_s=10)[:] = 1
        assert second.push(step=step, examples=4, loss=1.0, timeout_s=1, last=False).duplicate
        assert second.next_step == 1
        second.close()
        second.close()


def test_the_rate_is_that_of_the_moment(ground):
    with Training("hogwild", ground, replace(ONE, epochs=1)) as training:
        training.mode.set_learning_rate(0.5)
        flat = training.run(InlinePool())
    np.testing.assert_allclose(moved(ONE, flat), 2 * 4.0, rtol=1e-5)  # in units of 0.25


def test_who_shares_no_memory_is_refused(ground, monkeypatch, tmp_path):
    with Training("hogwild", ground, ONE) as training:
        place = training.mode.exchange_spec().settings["place"]
        assert Racing.open(place).place["file"] == place["file"]
        refused = pytest.raises(ConfigError, match="does not share memory with the driver")
        for other in ({"path": "/proc/self/fd/1000"}, {"file": [0, 0]}, {"kind": "racing"}):
            with refused:
                Racing.open({**place, **other})
        # As in a container, or where a network namespace has a /dev/shm of its own.
        elsewhere = next(path for path in ("/proc", "/") if os.stat(path).st_dev != place["file"][0])
        monkeypatch.setattr(racing, "SHARED_MEMORY", Path(elsewhere))
        with refused:
            training.run(InlinePool())


DRIVER = """
import json, sys
import numpy as np
from coproc.consistency import Asp
from coproc import optim
from coproc.modes.base import ModeSettings
from coproc.modes.hogwild import start

mode = start(ModeSettings("coproc://127.0.0.1:1", None, "m", {"w": np.ones(9, np.float32)}, optim.SGD(0.1), Asp()))
print(json.dumps(mode.exchange_spec().settings["place"]), flush=True)
sys.stdin.read()
"""


def test_the_memory_goes_with_a_driver_that_is_killed():
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with driver:
        place = json.loads(driver.stdout.readline())
        shared = Racing.open(place)
        assert shared.rows[0].tolist() == [1.0] * 9
        driver.send_signal(signal.SIGKILL)
        driver.wait(30)
    with pytest.raises(ConfigError, match="the driver is gone"):
        Racing.open(place)
    shared.rows[0][:] = 2  # who has it keeps it: nobody crashes
    shared.close()


def test_what_cannot_be_is_refused(ground, monkeypatch):
    with pytest.raises(ConfigError, match="'hogwild' waits for nobody: it goes with Asp, not with Bsp"):
        Training("hogwild", ground, CONSTANT)
    for more in ({"delay_compensation": 0.1}, {"staleness": "inverse"}):
        with pytest.raises(ConfigError, match="knows of no gradient what it was computed on"):
            Training("hogwild", ground, replace(ONE, optimizer=optim.SGD(0.1, **more)))
    monkeypatch.setattr(racing, "MAX_WORKERS", 1 << 50)
    with pytest.raises(OutOfMemory, match="does not fit"):
        Training("hogwild", ground, ONE)


def test_it_trains(cluster):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    features = (rng.normal(size=(900, 4)) + 3 * np.eye(3, 4)[labels]).astype(np.float32)
    table = pa.table({"features": pa.array(list(features), pa.list_(pa.float32())), "label": labels})
    config = TrainConfig(
        address=cluster.address, token=cluster.token, hidden=(16,), epochs=4, batch_size=8, workers=3, preset="hogwild",
        pool="processes", optimizer="adam", learning_rate=0.01, group_size=20,
    )  # fmt: skip
    result = train(config, table, validation=table)
    assert result.history[-1]["accuracy"] > 0.9
    assert result.history[-1]["version"] == result.history[-1]["epoch"] * 3 * 38
    assert [row["examples"] for row in result.history] == [900] * 4


def test_all_gradients_count(ground):
    work = replace(CONSTANT, rows=(7, 0, 5), consistency="asp")
    with Training("hogwild", ground, work) as training:
        assert_moved(work, training.run(InlinePool(slots=1)))
