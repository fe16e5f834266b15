"""Optimizers as values: what they accept, how they are described, what they compute once an update."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from coproc import optim
from coproc.errors import ConfigError
from coproc.optim import base


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (optim.SGD, {"learning_rate": -0.1}, "learning_rate of SGD must be a number of at least 0"),
        (optim.SGD, {"learning_rate": math.nan}, "learning_rate"),
        (optim.SGD, {"learning_rate": math.inf}, "learning_rate"),
        (optim.SGD, {"learning_rate": 1e39}, "that float32 can hold, not 1e\\+39"),
        (optim.SGD, {"learning_rate": "0.1"}, "not '0.1'"),
        (optim.SGD, {"learning_rate": None}, "not None"),
        (optim.SGD, {"learning_rate": True}, "not True"),
        (optim.SGD, {"learning_rate": np.array([0.1])}, "learning_rate"),
        (optim.SGD, {"learning_rate": 0.1, "weight_decay": -1}, "weight_decay of SGD"),
        (optim.SGD, {"learning_rate": 0.1, "delay_compensation": -1}, "delay_compensation of SGD must be"),
        (optim.LAMB, {"delay_compensation": math.inf}, "delay_compensation of LAMB"),
        (optim.Adam, {"delay_compensation": None}, "delay_compensation of Adam .* not None"),
        (optim.Adam, {"delay_compensation": True}, "not True"),
        (optim.Average, {"delay_compensation": 0.04}, "delay_compensation are for gradients"),
        (optim.Momentum, {"learning_rate": 0.1, "momentum": 1.0}, "of at least 0 and less than 1, not 1.0"),
        (optim.Momentum, {"learning_rate": 0.1, "nesterov": 1}, "nesterov of Momentum must be True or False"),
        (optim.Adam, {"beta1": 1.0}, "beta1 of Adam"),
        (optim.Adam, {"beta2": -0.1}, "beta2 of Adam"),
        (optim.Adam, {"epsilon": 0.0}, "epsilon of Adam must be a number greater than 0"),
        (optim.AdamW, {"weight_decay": math.nan}, "weight_decay of AdamW"),
        (optim.Adagrad, {"initial_accumulator_value": -1}, "initial_accumulator_value of Adagrad"),
        (optim.Adagrad, {"epsilon": 0}, "epsilon of Adagrad must be a number greater than 0"),
        (optim.RMSprop, {"alpha": 1.0}, "alpha of RMSprop"),
        (optim.RMSprop, {"epsilon": 0.0}, "epsilon of RMSprop"),
        (optim.RMSprop, {"momentum": 1.0}, "momentum of RMSprop"),
        (optim.Adadelta, {"rho": 1.0}, "rho of Adadelta"),
        (optim.Adadelta, {"epsilon": 0.0}, "epsilon of Adadelta"),
        (optim.FTRL, {"learning_rate": 0.1, "beta": 0.0}, "beta of FTRL must be a number greater than 0"),
        (optim.FTRL, {"learning_rate": 0.1, "l1": -1}, "l1 of FTRL"),
        (optim.FTRL, {"learning_rate": 0.1, "l2": math.inf}, "l2 of FTRL"),
        (optim.Lion, {"beta1": 1.0}, "beta1 of Lion"),
        (optim.Lion, {"beta2": 1.0}, "beta2 of Lion"),
        (optim.Lion, {"weight_decay": -0.1}, "weight_decay of Lion"),
    ],
)
def test_a_wrong_setting_gets_a_sentence(kind: type[optim.Optimizer], settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        kind(**settings)


def test_numbers_become_floats() -> None:
    optimizer = optim.Momentum(np.float32(0.5), momentum=0)
    assert type(optimizer.learning_rate) is float
    assert type(optimizer.momentum) is float
    assert optimizer == optim.Momentum(0.5, 0.0)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "no optimizer is called None; there are adadelta, adagrad, adam, .*, rmsprop, sgd"),
        ({"name": "tiger"}, "no optimizer is called 'tiger'"),
        ({"name": "base"}, "no optimizer is called 'base'"),
        ({"name": ["sgd"]}, r"no optimizer is called \['sgd'\]"),
        (
            {"name": "sgd", "learning_rate": 1.0, "lr": 1.0},
            "sgd has no setting lr; it has learning_rate, wei",
        ),
        ({"name": "sgd", "learning_rate": 1.0, "state_rows": []}, "has no setting state_rows"),
        ({"name": "sgd"}, "sgd needs learning_rate"),
        ({"name": "adam", "beta1": "0.9"}, "not '0.9'"),
    ],
)
def test_a_wrong_description_gets_a_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        optim.from_config(config)


def test_a_description_takes_the_defaults_for_what_it_lacks() -> None:
    assert optim.from_config({"name": "adam", "beta1": 0.8}) == optim.Adam(beta1=0.8)


def test_bias_corrections_are_computed_in_double_precision() -> None:
    # In float32, 1 - 0.999 is 0.00099998713: an error of 1.3e-5 in every step.
    *_, rate, root = optim.Adam(learning_rate=0.1).constants(1, 0.1)
    assert rate == np.float32(1.0)
    assert root == np.float32(1 / math.sqrt(0.001))
    *_, rate, root = optim.Adam().constants(10**6, 0.1)
    assert (rate, root) == (np.float32(0.1), np.float32(1.0))


def test_defaults_are_those_of_torch_and_of_the_papers() -> None:
    configs = [kind().to_config() for kind in (optim.Adagrad, optim.RMSprop, optim.Adadelta, optim.Lion)]
    assert configs == [
        {"name": "adagrad", "learning_rate": 1e-2, "initial_accumulator_value": 0.0, "epsilon": 1e-10},
        {"name": "rmsprop", "learning_rate": 1e-2, "alpha": 0.99, "epsilon": 1e-8, "momentum": 0.0},
        {"name": "adadelta", "learning_rate": 1.0, "rho": 0.9, "epsilon": 1e-6},
        {"name": "lion", "learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.99},
    ]
    assert optim.FTRL(0.1).to_config() == {"name": "ftrl", "learning_rate": 0.1, "beta": 1.0, "l1": 0.0, "l2": 0.0}


def test_a_velocity_is_kept_only_where_there_is_momentum() -> None:
    assert optim.RMSprop().state_rows == ("mean_square",)
    assert optim.RMSprop(momentum=0.9).state_rows == ("mean_square", "velocity")


def test_lion_steps_by_the_sign_however_small_a_gradient_is_and_not_at_0() -> None:
    optimizer = optim.Lion(learning_rate=0.5)
    gradient = np.array([1e-34, -1e-34, 1e-6, -3e38, 3e38, 0.0, -0.0], np.float32)
    params, moment, next_params, next_moment = np.zeros((4, gradient.size), np.float32)
    optim.apply(
        optim.compile_sweep(optimizer),
        ((gradient,),),
        ((np.float32(1),),),
        (optimizer.constants(1, 0.5),),
        (params, moment),
        (next_params, next_moment),
        np.empty(0, np.float32),
        False,
    )
    np.testing.assert_array_equal(next_params, [-0.5, 0.5, -0.5, 0.5, -0.5, 0, 0])


def test_every_constant_is_float32() -> None:
    for kind in optim.registered().values():
        constants = kind(learning_rate=0.1).constants(3, 0.1)
        assert {type(value) for value in constants} == {np.float32}


def test_a_sweep_must_be_a_function_of_its_module() -> None:
    def inner() -> None: ...

    with pytest.raises(TypeError, match="function of its module"):
        base.sweep(inner)


def test_an_added_file_is_an_optimizer_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Added(optim.SGD):
        """As if its file lay in the folder."""

    monkeypatch.setattr(optim, "registered", lambda: {"added": Added})
    assert optim.Added is Added
    with pytest.raises(AttributeError, match="Removed"):
        optim.Removed  # noqa: B018


def test_a_client_names_optimizers_without_numba() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from coproc import optim\n"
        "from coproc.errors import Unsupported\n"
        "optimizer = optim.from_config({'name': 'sgd', 'learning_rate': 1})\n"
        "try: optim.compile_sweep(optimizer)\n"
        "except Unsupported as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "pip install 'coproc[server]'" in run.stdout
