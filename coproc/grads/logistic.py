"""Logistic regression: class probabilities from one dense layer.

Two classes have one output and the logistic loss, more have one output a class and softmax:

    p(1) = 1 / (1 + exp(-(x @ weight + bias)))        p(k) = exp(raw[k]) / sum(exp(raw))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from coproc.errors import ConfigError
from coproc.grads.base import LOSSES, OneLayer, Spec, positive, take_keys


class LogisticRegression(OneLayer):
    """Spec: `{"backend": "logistic", "inputs": d, "classes": 2}`."""

    name = "logistic"

    def __init__(self, inputs: int, classes: int = 2) -> None:
        self.classes = positive("classes", classes)
        if classes < 2:
            raise ConfigError("logistic regression tells classes apart: it needs at least 2, not 1")
        binary = classes == 2
        super().__init__(inputs, 1 if binary else classes, LOSSES["logistic" if binary else "softmax"])

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        return cls(**take_keys(spec, ("inputs", "classes"), needed=("inputs",)))

    def spec(self) -> Spec:
        return {"backend": self.name, "inputs": self.inputs, "classes": self.classes}

    @classmethod
    def examples(cls) -> Sequence[Spec]:
        return [
            {"backend": "logistic", "inputs": 5},
            {"backend": "logistic", "inputs": 4, "classes": 3},
        ]
