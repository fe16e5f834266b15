"""The public contract: these names, no others, each of them there."""

from __future__ import annotations

import importlib
import inspect

import pytest

import coproc
import storage_tier

CONTRACT = {
    *("connect", "LocalCluster", "LocalServer"),
    *("Client", "Model", "Worker", "Snapshot", "Receipt", "ParamLayout"),
    *("Bsp", "Quorum", "Ssp", "Asp", "Checkpoints", "optim", "schedules", "compression"),
    *(
        "CoprocError",
        "ConfigError",
        "DataError",
        "DataLost",
        "Diverged",
        "LeaseExpired",
        "ModelExists",
        "ModelNotFound",
    ),
    *(
        "OutOfMemory",
        "PushRejected",
        "ServerError",
        "Timeout",
        "Unauthenticated",
        "Unreachable",
        "Unsupported",
    ),
    *("WorkerLost", "CorruptCheckpoint"),
}
OPTIMIZERS = {
    "SGD",
    "Momentum",
    "Adagrad",
    "RMSprop",
    "Adadelta",
    "Adam",
    "AdamW",
    "FTRL",
    "Lion",
    "LARS",
    "LAMB",
    "Average",
}


def test_the_public_names_are_those_of_the_contract() -> None:
    assert set(coproc.__all__) == CONTRACT


@pytest.mark.parametrize("package", ["coproc", "storage_tier", "coproc.optim"])
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__))
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing


def test_every_public_name_says_what_it_is() -> None:
    silent = [
        name
        for module in (coproc, storage_tier)
        for name in module.__all__
        if not inspect.getdoc(getattr(module, name))
    ]
    assert not silent


def test_optimizers_have_the_usual_names_and_a_learning_rate() -> None:
    for name in OPTIMIZERS:
        assert "learning_rate" in inspect.signature(getattr(coproc.optim, name)).parameters


def test_every_error_is_public() -> None:
    errors = {name for name, found in vars(coproc.errors).items() if inspect.isclass(found)}
    assert errors <= set(coproc.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        coproc.nonsense  # noqa: B018
