"""A multilayer perceptron of any depth: dense layers, relu or tanh and inverted dropout between them.

    a[0] = x    z[l] = a[l] @ weight[l] + bias[l]    a[l+1] = mask[l] * f(z[l]) / keep    raw = z[last]
    backwards, from delta[last] = d(loss)/d(raw):
    weight'[l] = a[l].T @ delta[l]    bias'[l] = sum of delta[l] over the rows
    delta[l-1] = (delta[l] @ weight[l].T) * f'(z[l-1]) * mask[l-1] / keep

Started as He et al. (2015) where relu follows, as Glorot and Bengio (2010) elsewhere; biases at 0.
Dropout: Srivastava et al. (2014), scaled in training, so that prediction has nothing to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coproc.errors import ConfigError
from coproc.grads.base import (
    Array,
    Batch,
    GradientBackend,
    Spec,
    affine,
    affine_gradient,
    finite_or_nan,
    gradient_block,
    loss_named,
    positive,
    take_keys,
)
from coproc.layout import ParamLayout

ACTIVATIONS = ("relu", "tanh")

SETTINGS = ("inputs", "hidden", "outputs", "activation", "loss", "dropout")

# Dropout compares 16 random bits an activation: 4 activations from one 64-bit draw.
DROPOUT_STEPS = 1 << 16


class Mlp(GradientBackend):
    """Spec: `{"backend": "mlp", "inputs": d, "hidden": [1024, 1024], "outputs": k, "activation": "relu",
    "loss": "softmax", "dropout": 0.0}`; `hidden` may be empty.
    """

    name = "mlp"

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        activation: str = "relu",
        loss: str = "softmax",
        dropout: float = 0.0,
    ) -> None:
        self.inputs = positive("inputs (features a row)", inputs)
        if isinstance(hidden, str | bytes) or not isinstance(hidden, Sequence):
            raise ConfigError(f"hidden must be a list of layer sizes such as [128, 64], not {hidden!r}")
        self.hidden = [positive(f"hidden layer {i + 1}'s size", size) for i, size in enumerate(hidden)]
        self.outputs = positive("outputs", outputs)
        if activation not in ACTIVATIONS:
            raise ConfigError(f"there is no activation {activation!r}; there are: {', '.join(ACTIVATIONS)}")
        self.activation = activation
        self.loss = loss_named(loss)
        if loss == "softmax" and outputs < 2:
            raise ConfigError("a softmax loss tells classes apart: it needs at least 2 outputs, not 1")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ConfigError(f"dropout is the share left out, at least 0 and below 1, not {dropout!r}")
        self.dropout = float(dropout)
        # Of the values of 16 random bits, how many keep an activation; the scale follows the rounded share.
        self._kept_steps = max(1, round((1 - self.dropout) * DROPOUT_STEPS))
        self._sizes = [self.inputs, *self.hidden, self.outputs]
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(self._sizes)):
            shapes[f"layers.{i}.weight"] = (fan_in, fan_out)
            shapes[f"layers.{i}.bias"] = (fan_out,)
        self.layout = ParamLayout.of(shapes)
        self._work = _Work(self._sizes[1:], 0)
        self._block: Array | None = None

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        return cls(**take_keys(spec, SETTINGS, needed=("inputs", "hidden", "outputs")))

    def spec(self) -> Spec:
        return {
            "backend": self.name,
            "inputs": self.inputs,
            "hidden": list(self.hidden),
            "outputs": self.outputs,
            "activation": self.activation,
            "loss": self.loss.name,
            "dropout": self.dropout,
        }

    @classmethod
    def examples(cls) -> Sequence[Spec]:
        return [
            {"backend": "mlp", **settings}
            for settings in (
                {"inputs": 6, "hidden": [], "outputs": 3},
                {"inputs": 6, "hidden": [9, 7], "outputs": 4},
                {"inputs": 5, "hidden": [8], "outputs": 1, "activation": "tanh", "loss": "logistic"},
                {"inputs": 5, "hidden": [8, 4, 3], "outputs": 2, "loss": "squared"},
                {"inputs": 6, "hidden": [16, 12], "outputs": 3, "activation": "relu", "dropout": 0.25},
                {"inputs": 6, "hidden": [16, 12], "outputs": 3, "activation": "tanh", "dropout": 0.5},
            )
        ]

    def init(self, seed: int) -> Array:
        flat = np.zeros(self.layout.size, np.float32)
        random = np.random.default_rng(seed)
        views = self.layout.views(flat)
        last = len(self._sizes) - 2
        for i, (fan_in, fan_out) in enumerate(pairwise(self._sizes)):
            he = self.activation == "relu" and i != last
            deviation = (2 / fan_in) ** 0.5 if he else (2 / (fan_in + fan_out)) ** 0.5
            weight = views[f"layers.{i}.weight"]
            random.standard_normal(weight.shape, dtype=np.float32, out=weight)
            weight *= np.float32(deviation)
        return flat

    def value_and_grad(self, params: Array, batch: Batch, *, out: Array, accumulate: bool = False) -> float:
        self.check_shapes(params, batch, out)
        count = len(batch.features)
        if not count:
            if not accumulate:
                out.fill(0)
            return 0.0
        weights = _layers(self.layout.views(params))
        gradients = _layers(self.layout.views(out))
        if accumulate and self._block is None:
            self._block = gradient_block(self._sizes)
        block = self._block if accumulate else None
        with np.errstate(all="ignore"):
            # One stream of random numbers for all layers of this batch.
            random = np.random.SFC64(np.random.SeedSequence(batch.key)) if self.dropout else None
            activations, masks = self._forward(weights, batch.features, random)
            delta = activations[-1]
            value = self.loss.value_and_delta(delta, batch.labels, batch.denominator or count)
            known = True
            for i in range(len(weights) - 1, -1, -1):
                rows = activations[i]
                known &= affine_gradient(rows, delta, *gradients[i], block)
                if i:
                    # The gradient of this layer is done, so its rows are free to be used up.
                    below = self._work.deltas[i - 1][:count]
                    np.matmul(delta, weights[i][0].T, out=below)
                    self._through_activation(rows, below, masks[i - 1] if masks else None)
                    delta = below
        return finite_or_nan(value, out, known)

    def raw_outputs(self, params: Array, features: Array) -> Array:
        with np.errstate(all="ignore"):
            activations, _ = self._forward(_layers(self.layout.views(params)), features, None)
        return activations[-1]

    def _forward(
        self, weights: list[tuple[Array, Array]], features: Array, random: np.random.SFC64 | None
    ) -> tuple[list[Array], list[NDArray[np.bool_]]]:
        """The rows that go into each layer, then the raw outputs; and each hidden layer's dropout mask."""
        count = len(features)
        if self._work.rows < count:
            self._work = _Work(self._sizes[1:], count)
        activations = [features]
        masks: list[NDArray[np.bool_]] = []
        for i, (weight, bias) in enumerate(weights):
            z = self._work.outputs[i][:count]
            affine(activations[-1], weight, bias, z)
            if i < len(weights) - 1:
                if self.activation == "relu":
                    np.maximum(z, 0, out=z)
                else:
                    np.tanh(z, out=z)
                if random is not None:
                    masks.append(self._drop(z, random))
            activations.append(z)
        return activations, masks

    def _drop(self, rows: Array, random: np.random.SFC64) -> NDArray[np.bool_]:
        """Set a random share of `rows` to 0 and scale the others in place; gives the mask (True: kept)."""
        bits = random.random_raw(-(-rows.size // 4)).view(np.uint16)[: rows.size].reshape(rows.shape)
        mask: NDArray[np.bool_] = bits < self._kept_steps
        np.multiply(rows, mask, out=rows)
        np.multiply(rows, np.float32(DROPOUT_STEPS / self._kept_steps), out=rows)
        return mask

    def _through_activation(self, rows: Array, delta: Array, mask: NDArray[np.bool_] | None) -> None:
        """Multiply `delta` in place by the slope at `rows`, the layer's outputs; `rows` are used up."""
        scale = DROPOUT_STEPS / self._kept_steps if mask is not None else 1.0
        if self.activation == "relu":
            # What was dropped is 0 in rows, so that one comparison is relu's slope and the mask.
            np.multiply(delta, rows > 0, out=delta)
        else:
            # rows = scale * tanh(z) where kept:  1 - tanh(z)^2 = 1 - (rows / scale)^2
            if mask is not None:
                np.multiply(rows, np.float32(1 / scale), out=rows)
                np.multiply(delta, mask, out=delta)
            np.multiply(rows, rows, out=rows)
            np.subtract(1, rows, out=rows)
            np.multiply(delta, rows, out=delta)
        if mask is not None:
            np.multiply(delta, np.float32(scale), out=delta)


class _Work:
    """Buffers for up to `rows` rows: outputs of each layer, and deltas of each hidden layer."""

    def __init__(self, sizes: Sequence[int], rows: int) -> None:
        self.rows = rows
        self.outputs = [np.empty((rows, size), np.float32) for size in sizes]
        self.deltas = [np.empty((rows, size), np.float32) for size in sizes[:-1]]


def _layers(views: Mapping[str, Array]) -> list[tuple[Array, Array]]:
    """[(weight, bias)] in order."""
    tensors = list(views.values())
    return list(zip(tensors[0::2], tensors[1::2], strict=True))
