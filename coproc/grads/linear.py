"""Linear regression: values from one dense layer, half the squared error.

raw = x @ weight + bias        loss = (raw - y)^2 / 2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from coproc.grads.base import LOSSES, OneLayer, Spec, take_keys


class Linear(OneLayer):
    """Spec: `{"backend": "linear", "inputs": d, "outputs": 1}`."""

    name = "linear"

    def __init__(self, inputs: int, outputs: int = 1) -> None:
        super().__init__(inputs, outputs, LOSSES["squared"])

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        return cls(**take_keys(spec, ("inputs", "outputs"), needed=("inputs",)))

    def spec(self) -> Spec:
        return {"backend": self.name, "inputs": self.inputs, "outputs": self.outputs}

    @classmethod
    def examples(cls) -> Sequence[Spec]:
        return [
            {"backend": "linear", "inputs": 5},
            {"backend": "linear", "inputs": 3, "outputs": 2},
        ]
