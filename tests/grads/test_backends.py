"""What is particular to one backend, and the sentences for settings that cannot work."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from coproc.errors import ConfigError, DataError
from coproc.grads import Batch, backend_names, create
from coproc.grads.base import LOSSES, area_under_roc

MLP = {"backend": "mlp", "inputs": 4, "hidden": [8], "outputs": 3}


def test_the_folder_lists_the_backends() -> None:
    assert {"linear", "logistic", "mlp"} <= set(backend_names())
    assert "base" not in backend_names()


def test_the_network_of_the_talk_has_its_number_of_parameters_and_names() -> None:
    layout = create({"backend": "mlp", "inputs": 784, "hidden": [1024, 1024], "outputs": 10}).layout
    assert layout.size == 1_863_690
    assert list(layout.shapes)[:2] == ["layers.0.weight", "layers.0.bias"]
    assert layout.shapes["layers.0.weight"] == (784, 1024)
    assert layout.shapes["layers.2.bias"] == (10,)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"inputs": 4}, "names it under 'backend'"),
        ({"backend": "os"}, "no gradient backend 'os'; there are: .*mlp"),
        ({"backend": "base"}, "no gradient backend 'base'"),
        ({**MLP, "depth": 3}, "no setting 'depth'; it has inputs, hidden"),
        ({"backend": "mlp", "inputs": 4, "outputs": 3}, "needs inputs, hidden, outputs; hidden is missing"),
        ({**MLP, "hidden": [8, 0]}, "hidden layer 2's size must be a whole number of at least 1, not 0"),
        ({**MLP, "hidden": "8"}, "hidden must be a list"),
        ({**MLP, "inputs": 0}, "inputs .* at least 1, not 0"),
        ({**MLP, "inputs": 2.5}, "inputs .* not 2.5"),
        ({**MLP, "outputs": 1}, "at least 2 outputs"),
        ({**MLP, "activation": "gelu"}, "no activation 'gelu'; there are: relu, tanh"),
        ({**MLP, "loss": "hinge"}, "no loss 'hinge'; there are: softmax"),
        ({**MLP, "dropout": 1.0}, "dropout .* not 1.0"),
        ({**MLP, "dropout": -0.1}, "dropout .* not -0.1"),
        ({"backend": "logistic", "inputs": 4, "classes": 1}, "at least 2"),
        ({"backend": "linear"}, "inputs is missing"),
        ({"backend": "logistic"}, "inputs is missing"),
    ],
)
def test_a_setting_that_cannot_work_is_a_sentence(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        create(spec)


@pytest.mark.parametrize(
    ("loss", "outputs", "labels", "sentence"),
    [
        ("softmax", 3, [0, 3], "class ids 0 to 2; these are 0 to 3"),
        ("softmax", 3, [-1, 2], "class ids 0 to 2; these are -1 to 2"),
        ("logistic", 1, [0, 2], "must be 0 or 1; these are 0 to 2"),
    ],
)
def test_a_label_out_of_range_is_a_sentence(loss: str, outputs: int, labels: list[int], sentence: str) -> None:
    backend = create({**MLP, "outputs": outputs, "loss": loss})
    batch = Batch(np.ones((2, 4), np.float32), np.array(labels, np.int32))
    out = np.zeros(backend.layout.size, np.float32)
    with pytest.raises(DataError, match=sentence):
        backend.value_and_grad(backend.init(0), batch, out=out)


def test_shapes_that_do_not_fit_are_sentences() -> None:
    backend = create(MLP)
    params, out = backend.init(0), np.zeros(backend.layout.size, np.float32)
    batch = Batch(np.ones((2, 4), np.float32), np.zeros(2, np.int32))
    with pytest.raises(ConfigError, match=r"out must be float32 of shape \(67,\), not float64"):
        backend.value_and_grad(params, batch, out=out.astype(np.float64))
    with pytest.raises(ConfigError, match=r"params must be float32 of shape \(67,\)"):
        backend.value_and_grad(params[1:], batch, out=out)
    with pytest.raises(ConfigError, match="another number of features"):
        backend.value_and_grad(params, Batch(np.ones((2, 5), np.float32), batch.labels), out=out)
    with pytest.raises(ConfigError, match="2 rows came with 3 labels"):
        backend.value_and_grad(params, Batch(batch.features, np.zeros(3, np.int32)), out=out)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_leaves_out_its_share_and_keeps_the_mean(share: float) -> None:
    # One layer of weight 1 without bias: the raw output is the mean of what dropout left of 20,000 ones.
    width = 20_000
    backend = create(
        {"backend": "mlp", "inputs": 1, "hidden": [width], "outputs": 1, "loss": "squared", "dropout": share}
    )
    params = np.zeros(backend.layout.size, np.float32)
    views = backend.layout.views(params)
    views["layers.0.weight"][:] = 1
    views["layers.1.weight"][:] = 1 / width
    out = np.zeros_like(params)
    ones, target = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    values = [backend.value_and_grad(params, Batch(ones, target, key=(1, 2, 3, k)), out=out) for k in range(20)]
    means = np.sqrt(2 * np.array(values))
    deviation = math.sqrt(share / (1 - share) / width)
    assert abs(means.mean() - 1) < 5 * deviation / math.sqrt(20)
    assert 0.4 * deviation < means.std() < 1.8 * deviation
    # The gradient of the second layer's weights is 0 exactly where a unit was left out.
    left_out = float(np.mean(backend.layout.views(out)["layers.1.weight"] == 0))
    assert abs(left_out - share) < 5 * math.sqrt(share * (1 - share) / width)
    assert backend.predict(params, ones)[0, 0] == pytest.approx(1, rel=1e-4)


def test_dropout_depends_on_the_key_and_on_nothing_else() -> None:
    backend = create({**MLP, "hidden": [64], "dropout": 0.5})
    params, features = backend.init(0), np.ones((4, 4), np.float32)
    labels, out = np.array([0, 1, 2, 0], np.int32), np.zeros(backend.layout.size, np.float32)
    values = [
        backend.value_and_grad(params, Batch(features, labels, key=key), out=out)
        for key in ((1, 0, 0, 0), (1, 0, 0, 1), (1, 0, 1, 0), (1, 1, 0, 0), (2, 0, 0, 0), (1, 0, 0, 0))
    ]
    assert values[0] == values[-1]
    assert len(set(values)) == 5


def test_metrics_of_a_known_case() -> None:
    raw = np.array([[2.0], [-1.0], [0.5], [-3.0]], np.float32)
    labels = np.array([1, 1, 0, 0], np.int32)
    # Of the four pairs (positive, negative) one is in the wrong order.
    assert LOSSES["logistic"].metrics(raw, labels) == {"accuracy": 0.5, "auc": 0.75}
    squared = LOSSES["squared"].metrics(raw, np.array([1, -1, 0.5, -3], np.float32))
    assert squared["rmse"] == pytest.approx(0.5)
    assert area_under_roc(np.array([1, 1]), np.array([True, False])) == 0.5
    assert math.isnan(area_under_roc(np.array([1, 2]), np.array([True, True])))


@pytest.mark.parametrize("name", ["softmax", "logistic", "squared"])
def test_evaluating_no_rows_is_not_a_number(name: str) -> None:
    backend = create({**MLP, "loss": name})
    measured = backend.evaluate(backend.init(0), np.empty((0, 4), np.uint8), np.empty(0, np.int32))
    assert measured
    assert all(math.isnan(value) for value in measured.values())
