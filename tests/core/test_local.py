"""Descent in one process is what a server does with the same gradients."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import coproc
from coproc import optim
from coproc.layout import ParamLayout
from coproc.local import Descent

SHAPES = {"a": (700, 500), "b": (500,), "c": (37, 3)}
LAYOUT = ParamLayout.of(SHAPES)
ROUNDS = 5


def start():
    return np.random.default_rng(0).standard_normal(LAYOUT.size).astype(np.float32)


def gradient(step, worker):
    return np.random.default_rng((step, worker)).standard_normal(LAYOUT.size).astype(np.float32)


def optimizers():
    made = [kind(learning_rate=0.01) if "learning_rate" in kind.__dataclass_fields__ and kind is not optim.Average
            else kind() for kind in optim.registered().values()]  # fmt: skip
    schedule = coproc.schedules.Step(0.1, every=2, gamma=0.5)
    return [
        *made,
        optim.SGD(0.1, clip_norm=1.0),
        optim.Adam(schedule, clip_value=0.5, weight_decay=0.01),
        optim.Momentum(0.1, delay_compensation=0.5),
    ]


@pytest.mark.parametrize("optimizer", optimizers(), ids=lambda each: each.name)
def test_it_is_what_a_server_does(client, name, optimizer):
    params = LAYOUT.views(start())
    model = client.create_model(name, params=params, optimizer=optimizer, consistency=coproc.Bsp(workers=2))
    with Descent(optimizer, LAYOUT, start(), threads=2) as descent, model.join(0) as one, model.join(1) as two:
        for step in range(ROUNDS):
            if step == 3:
                model.set_learning_rate(0.005)
                descent.learning_rate = 0.005
            for number, worker in enumerate((one, two)):
                worker.gradient()[:] = gradient(step, number)
                worker.push(examples=1 + 2 * number, loss=float(number))
            descent.step([gradient(step, 0), gradient(step, 1)], [1, 3], [0.0, 1.0])
        assert model.snapshot().version == descent.updates == ROUNDS
        exact = optimizer.clip_norm is None and not isinstance(optimizer, optim.Layerwise)
        np.testing.assert_allclose(
            model.snapshot().flat, descent.params, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-7
        )
        assert not np.array_equal(descent.params, start())
    model.delete()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads):
    size = 1_000_003
    layout = ParamLayout.of({"w": (size,)})
    gradients = [np.random.default_rng(n).standard_normal(size).astype(np.float32) for n in range(11)]
    with Descent(optim.Adam(0.1), layout, gradients[0], threads=threads) as descent:
        for _ in range(2):
            descent.step(gradients, [1] * 11)
        with Descent(optim.Adam(0.1), layout, gradients[0], threads=1) as alone:
            for _ in range(2):
                alone.step(gradients, [1] * 11)
            assert descent.params.tobytes() == alone.params.tobytes()


@pytest.mark.parametrize("begin", [1e-9, 0.25, 0.618, 0.999])
def test_where_a_thread_begins_changes_nothing(begin):
    size = 10_003
    layout = ParamLayout.of({"w": (size,)})
    gradients = [np.random.default_rng(n).standard_normal(size).astype(np.float32) for n in range(3)]
    with (
        Descent(optim.Adam(0.1), layout, gradients[0], threads=1, begin=begin) as late,
        Descent(optim.Adam(0.1), layout, gradients[0], threads=1) as plain,
    ):
        for descent in (late, plain):
            for _ in range(2):
                descent.step(gradients, [1] * 3)
        assert late.params.tobytes() == plain.params.tobytes()


def test_slices_are_the_whole():
    bounds = [0, 100_003, 220_000, LAYOUT.size]
    with Descent(optim.Momentum(0.1), LAYOUT, start()) as whole:
        whole.step([gradient(0, 0)], [1])
        parts = []
        for lo, hi in pairwise(bounds):
            with Descent(optim.Momentum(0.1), LAYOUT, start()[lo:hi], whole=slice(lo, hi)) as part:
                part.step([gradient(0, 0)[lo:hi]], [1])
                parts.append(part.params.copy())
        assert np.concatenate(parts).tobytes() == whole.params.tobytes()


@pytest.mark.parametrize("optimizer", [optim.LAMB(0.1), optim.SGD(0.1, clip_norm=1.0)], ids=repr)
def test_a_slice_knows_no_norm_of_the_whole(optimizer):
    with pytest.raises(coproc.ConfigError, match="goes by norms over the whole model"):
        Descent(optimizer, LAYOUT, start()[:100], whole=slice(0, 100))
