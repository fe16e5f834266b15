"""A wait in place of a gradient: what a network's exchange costs, without the processors that its compute would need.

It has the layout, the first parameters and the predictions of the network that it stands for. A batch takes as long as
was measured for that network, and its gradient is the same small number everywhere: so training with it learns nothing,
and whatever is measured with it has to say so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from coproc.errors import ConfigError
from coproc.grads.base import Array, Batch, GradientBackend, Spec, positive, take_keys
from coproc.grads.mlp import Mlp

GRADIENT = np.float32(1e-3)
LOSS = 1.0

# Elements that are looked at to see whether all of a slot was filled before.
_LOOKS = 64


class Emulated(GradientBackend):
    """An `mlp` that waits.

    Its spec: `of`, the network's; `seconds`, which a batch of `rows` rows takes, others in proportion; and, where some
    are slower, `slow`, the partitions that take `factor` times as long.
    """

    name: ClassVar[str] = "emulated"

    def __init__(self, of: Mlp, seconds: float, rows: int, slow: frozenset[int] = frozenset(), factor: float = 1.0):
        self.of = of
        self.seconds = seconds
        self.rows = rows
        self.slow = slow
        self.factor = factor
        self.layout, self.inputs, self.outputs, self.loss = of.layout, of.inputs, of.outputs, of.loss

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        given = take_keys(spec, ("of", "seconds", "rows", "slow", "factor"), ("of", "seconds", "rows"))
        seconds, factor = given["seconds"], given.get("factor", 1.0)
        if not isinstance(given["of"], Mapping) or given["of"].get("backend") != Mlp.name:
            raise ConfigError(f"an emulated backend stands for one called {Mlp.name!r}, not for {given['of']!r:.100}")
        for what, value in (("seconds", seconds), ("factor", factor)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigError(f"{what} of an emulated backend is a number of at least 0, not {value!r}")
        slow = frozenset(int(each) for each in given.get("slow", ()))
        return cls(Mlp.from_spec(given["of"]), float(seconds), positive("rows", given["rows"]), slow, float(factor))

    def spec(self) -> Spec:
        told: Spec = {"backend": self.name, "of": self.of.spec(), "seconds": self.seconds, "rows": self.rows}
        return told | ({"slow": sorted(self.slow), "factor": self.factor} if self.slow else {})

    @classmethod
    def examples(cls) -> Sequence[Spec]:
        """None: its gradient is no gradient of anything, and the conformance suite asks for one."""
        return ()

    def init(self, seed: int) -> Array:
        return self.of.init(seed)

    def value_and_grad(self, params: Array, batch: Batch, *, out: Array, accumulate: bool = False) -> float:
        """Wait as long as a gradient would take; the loss is always 1."""
        began = time.perf_counter()
        self.check_shapes(params, batch, out)
        count = len(batch.features)
        if not count:
            if not accumulate:
                out.fill(0)
            return 0.0
        if accumulate:
            out += GRADIENT
        elif not (out[:: max(1, out.size // _LOOKS)] == GRADIENT).all() or out[-1] != GRADIENT:
            # Slots come again, and to write all of one would be most of what is left of the compute.
            out.fill(GRADIENT)
        wait_s = self.seconds * count / self.rows
        if self.slow and len(batch.key) > 2 and batch.key[2] in self.slow:
            wait_s *= self.factor
        time.sleep(max(0.0, began + wait_s - time.perf_counter()))
        return LOSS

    def raw_outputs(self, params: Array, features: Array) -> Array:
        return self.of.raw_outputs(params, features)
