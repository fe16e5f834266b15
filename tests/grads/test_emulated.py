"""The backend that waits in place of a network: how long, for whom, and what it gives."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from coproc import grads
from coproc.errors import ConfigError
from coproc.grads import Batch, create
from coproc.trials import calibration

MLP = {"backend": "mlp", "inputs": 6, "hidden": [9], "outputs": 4}


def emulated(**changes):
    return create({"backend": "emulated", "of": MLP, "seconds": 0.0, "rows": 10, **changes})


def batch(rows, partition=0):
    return Batch(np.zeros((rows, 6), np.float32), np.zeros(rows, np.int32), key=(0, 0, partition, 0))


@pytest.fixture
def waits(monkeypatch):
    """What it slept, with a clock that stands still."""
    slept = []
    monkeypatch.setattr(time, "perf_counter", lambda: 1.0)
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_it_has_the_shape_the_beginning_and_the_predictions_of_its_network():
    of, backend = create(MLP), emulated()
    assert backend.layout.fingerprint == of.layout.fingerprint
    assert backend.init(3).tobytes() == of.init(3).tobytes()
    rows = np.ones((5, 6), np.float32)
    params = of.init(1)
    assert backend.predict(params, rows).tobytes() == of.predict(params, rows).tobytes()
    again = create(json.loads(json.dumps(backend.spec())))
    assert again.spec() == backend.spec()
    assert grads.backend_class("emulated").examples() == ()


def test_it_waits_in_proportion_to_the_rows_and_longer_where_it_is_slow(waits):
    backend = emulated(seconds=0.5, slow=[1], factor=4.0)
    out = np.empty(backend.layout.size, np.float32)
    params = backend.init(0)
    for rows, partition in ((10, 0), (4, 0), (10, 1), (0, 1)):
        backend.value_and_grad(params, batch(rows, partition), out=out)
    assert waits == pytest.approx([0.5, 0.2, 2.0])


def test_what_it_writes_is_finite_and_the_same_every_time():
    backend = emulated()
    out = np.full(backend.layout.size, np.nan, np.float32)
    params = backend.init(0)
    assert backend.value_and_grad(params, batch(3), out=out) == 1.0
    assert (out == out[0]).all()
    assert out[0] != 0
    first = out.copy()
    backend.value_and_grad(params, batch(10), out=out)
    assert out.tobytes() == first.tobytes()
    backend.value_and_grad(params, batch(10), out=out, accumulate=True)
    np.testing.assert_allclose(out, 2 * first)
    backend.value_and_grad(params, batch(10), out=out)
    assert out.tobytes() == first.tobytes()
    assert backend.value_and_grad(params, batch(0), out=out) == 0.0
    assert not out.any()


@pytest.mark.parametrize(
    "changes",
    [
        {"of": {"backend": "linear"}},
        {"of": 3},
        {"seconds": -1.0},
        {"seconds": "soon"},
        {"rows": 0},
        {"factor": float("inf")},
        {"more": 1},
    ],
)
def test_a_spec_that_cannot_be_is_refused(changes):
    with pytest.raises(ConfigError):
        emulated(**changes)


def test_the_seconds_are_measured_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seconds = calibration.seconds_of(MLP, 8)
    assert 0 < seconds < 1
    monkeypatch.setattr(calibration.subprocess, "run", None)
    assert calibration.seconds_of(MLP, 8) == seconds
    told = calibration.emulated(MLP, 8, (0, 2), 3.0)
    assert told == {
        "backend": "emulated", "of": MLP, "seconds": seconds, "rows": 8, "slow": [0, 2], "factor": 3.0,
    }  # fmt: skip
    assert create(told).spec()["slow"] == [0, 2]
    with pytest.raises(TypeError):  # of another batch nothing is known
        calibration.seconds_of(MLP, 9)


@pytest.mark.parametrize("loss", ["softmax", "logistic", "squared"])
def test_what_is_measured_is_the_fastest_of_real_gradients(monkeypatch, loss):
    outputs = 1 if loss == "logistic" else 3
    ticks = iter([0.0, 9.0, 10.0, 11.0, 20.0, 25.0, 30.0, 33.0])  # the first gradient makes the buffers
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: next(ticks))
    assert calibration.measure({**MLP, "outputs": outputs, "loss": loss}, 4, batches=3) == 1.0
