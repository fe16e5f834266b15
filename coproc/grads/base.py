"""What a gradient backend is, and what the dense ones share: losses and one layer.

A backend is plain numbers (its `spec()`) and arithmetic. Parameters come in as one flat float32 vector (P,),
which may be a read-only view of shared memory; the gradient is written where the caller says, which is a
slot of shared memory. So nothing of the size of the model is allocated or copied in a step. Everything in a
step is float32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from coproc.errors import ConfigError, DataError
from coproc.layout import ParamLayout, all_finite

Array = NDArray[np.float32]
Labels = NDArray[Any]
Spec = dict[str, Any]

# Rows a chunk in predict and evaluate: activations of 512 x 1024 float32 are 2 MB, which stays in the cache.
CHUNK_ROWS = 512

# (1e38)^2: products below its root leave room in float32 for the rounding of their sums.
_SAFE_SQUARE = 1e76

# A weight gradient that is added to the slot is born in blocks of this size, which stay in the cache.
BLOCK_FLOATS = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The rows of one gradient. Owns nothing: the arrays may be views that the next batch overwrites."""

    features: Array
    """(b, d)"""
    labels: Labels
    """(b,) int32 class ids, or float32 targets (b,) or (b, outputs)."""
    denominator: int | None = None
    """The gradient is the sum over the rows divided by this; None: by b. With one total given for each of
    several unequal batches, their accumulated gradient is the mean over all their rows."""
    key: tuple[int, ...] = ()
    """Numbers that name this batch, (seed, epoch, partition, k), none negative: all randomness of the
    gradient (dropout) comes from them, so any attempt computes the same."""


class GradientBackend(ABC):
    """Computes loss and gradient of one kind of model. One file in this folder, named like the backend.

    Cheap to make and to pickle (only `spec()` travels). Not thread-safe: work buffers are reused.
    """

    name: ClassVar[str]
    """The name of its file, and how a spec asks for it."""
    layout: ParamLayout
    """Tensors named `layers.0.weight` of shape (in, out), `layers.0.bias`, ..."""
    inputs: int
    """Features a row."""
    outputs: int
    """Columns of what `predict` gives."""
    loss: Loss

    @classmethod
    @abstractmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """The backend that `spec` describes.

        Raises:
            ConfigError: an unknown key, or a value that cannot work.
        """

    @abstractmethod
    def spec(self) -> Spec:
        """JSON values from which `create` makes an equal backend; `backend` is its name."""

    @classmethod
    @abstractmethod
    def examples(cls) -> Sequence[Spec]:
        """Small specs that together use every feature: what the conformance suite runs."""

    @abstractmethod
    def init(self, seed: int) -> Array:
        """New parameters (P,), a function of the seed."""

    @abstractmethod
    def value_and_grad(self, params: Array, batch: Batch, *, out: Array, accumulate: bool = False) -> float:
        """Write the gradient (P,) into `out`, or add it there; return the mean loss over the batch's rows.

        `params` (P,) is only read. No temporary of the size of the model. A batch without rows has gradient 0
        and loss 0. A diverged model, and a gradient that is not finite (all of `out` is, otherwise), gives a loss
        that is not finite, and no warning: the caller looks at the loss only.

        Raises:
            ConfigError: `params`, `out` or the features have another shape than the model.
            DataError: a label that the loss cannot use.
        """

    @abstractmethod
    def raw_outputs(self, params: Array, features: Array) -> Array:
        """What the last layer gives (b, outputs) before the loss makes probabilities of it, without dropout.

        The array is the caller's to change until the next call of any method.
        """

    def predict(self, params: Array, features: NDArray[Any], *, scale: float = 1.0) -> Array:
        """Class probabilities or values (n, outputs), a new array; `features` as for `evaluate`."""
        predictions = np.empty((len(features), self.outputs), np.float32)
        for start, rows in chunks(features, scale):
            raw = self.raw_outputs(params, rows)
            self.loss.activate(raw)
            predictions[start : start + len(rows)] = raw
        return predictions

    def evaluate(
        self, params: Array, features: NDArray[Any], labels: Labels, *, scale: float = 1.0
    ) -> dict[str, float]:
        """The loss over all rows, and what it measures besides: {"loss", "accuracy", "auc" or "rmse", "r2"}.

        `features` (n, d) uint8 or float32 are divided by `scale` as in training, a chunk at a time. Without
        rows every number is NaN.
        """
        total = 0.0
        raw = np.empty((len(features), self.outputs), np.float32)
        for start, rows in chunks(features, scale):
            part = self.raw_outputs(params, rows)
            stop = start + len(rows)
            raw[start:stop] = part
            with np.errstate(all="ignore"):
                total += len(rows) * self.loss.value_and_delta(part, labels[start:stop], len(rows))
        count = len(features)
        return {"loss": total / count if count else float("nan"), **self.loss.metrics(raw, labels)}

    def __reduce__(self) -> tuple[Callable[[Spec], GradientBackend], tuple[Spec]]:
        return type(self).from_spec, (self.spec(),)

    def check_shapes(self, params: Array, batch: Batch, out: Array) -> None:
        """Raises ConfigError if `params`, `out` or the batch do not fit the model."""
        for what, flat in (("params", params), ("out", out)):
            if flat.shape != (self.layout.size,) or flat.dtype != np.float32:
                raise ConfigError(
                    f"{what} must be float32 of shape ({self.layout.size},), not {flat.dtype} of {flat.shape}"
                )
        if batch.features.ndim != 2 or batch.features.shape[1] != self.inputs:
            raise ConfigError(
                f"a batch of shape (rows, {self.inputs}) is needed, not {batch.features.shape}: "
                "the model was made for another number of features"
            )
        if len(batch.labels) != len(batch.features):
            raise ConfigError(f"{len(batch.features)} rows came with {len(batch.labels)} labels")


# ---------------------------------------- settings of a spec


def take_keys(spec: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]) -> dict[str, Any]:
    """The settings of `spec` without its name.

    Raises:
        ConfigError: a key that is not `known`, or one of `needed` is missing.
    """
    name = spec.get("backend")
    settings = {key: value for key, value in spec.items() if key != "backend"}
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise ConfigError(f"backend {name!r} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    missing = [key for key in needed if key not in settings]
    if missing:
        raise ConfigError(f"backend {name!r} needs {', '.join(needed)}; {missing[0]} is missing")
    return settings


def positive(what: str, value: Any) -> int:
    """`value` as an int of at least 1, or a ConfigError that names `what`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ConfigError(f"{what} must be a whole number of at least 1, not {value!r}")
    return int(value)


# ---------------------------------------- losses


class Loss(ABC):
    """What the raw outputs of the last layer are worth. Stateless."""

    name: ClassVar[str]

    @abstractmethod
    def value_and_delta(self, raw: Array, labels: Labels, denominator: int) -> float:
        """The mean loss of the rows.

        Turns `raw` (b, outputs) in place into its gradient, d(sum of the losses) / d(raw) / denominator.
        """

    @abstractmethod
    def activate(self, raw: Array) -> None:
        """Turn raw outputs (b, outputs) in place into predictions."""

    @abstractmethod
    def metrics(self, raw: Array, labels: Labels) -> dict[str, float]:
        """Measures besides the loss, of the raw outputs of a whole data set."""


class Softmax(Loss):
    """Cross-entropy of class ids: -log(exp(raw[y]) / sum(exp(raw))), the largest output taken off first."""

    name = "softmax"

    def value_and_delta(self, raw: Array, labels: Labels, denominator: int) -> float:
        count, classes = raw.shape
        if labels.ndim != 1 or labels.min() < 0 or labels.max() >= classes:
            raise DataError(f"labels must be class ids 0 to {classes - 1}; these are {labels.min()} to {labels.max()}")
        index = labels if labels.dtype.kind in "iu" else labels.astype(np.int64)
        rows = np.arange(count)
        raw -= raw.max(axis=1, keepdims=True)
        chosen = raw[rows, index]
        np.exp(raw, out=raw)
        sums = raw.sum(axis=1, keepdims=True)
        raw /= sums
        raw[rows, index] -= 1
        raw /= denominator
        return float(np.mean(np.log(sums[:, 0]) - chosen))

    def activate(self, raw: Array) -> None:
        raw -= raw.max(axis=1, keepdims=True)
        np.exp(raw, out=raw)
        raw /= raw.sum(axis=1, keepdims=True)

    def metrics(self, raw: Array, labels: Labels) -> dict[str, float]:
        if not len(raw):
            return {"accuracy": float("nan")}
        return {"accuracy": float(np.mean(raw.argmax(axis=1) == labels))}


class Logistic(Loss):
    """Cross-entropy of labels 0 and 1: max(raw, 0) - raw * y + log(1 + exp(-|raw|)), summed over outputs."""

    name = "logistic"

    def value_and_delta(self, raw: Array, labels: Labels, denominator: int) -> float:
        if labels.min() < 0 or labels.max() > 1:
            raise DataError(f"labels of a logistic loss must be 0 or 1; these are {labels.min()} to {labels.max()}")
        targets = labels.reshape(raw.shape).astype(np.float32)
        small = np.exp(-np.abs(raw))  # never overflows
        value = float(np.sum(np.maximum(raw, 0) - raw * targets + np.log1p(small))) / len(raw)
        # sigmoid(raw) is 1 / (1 + e) for raw >= 0 and e / (1 + e) below, with e = exp(-|raw|)
        np.divide(np.where(raw >= 0, np.float32(1), small), 1 + small, out=raw)
        raw -= targets
        raw /= denominator
        return value

    def activate(self, raw: Array) -> None:
        small = np.exp(-np.abs(raw))
        np.divide(np.where(raw >= 0, np.float32(1), small), 1 + small, out=raw)

    def metrics(self, raw: Array, labels: Labels) -> dict[str, float]:
        if not len(raw):
            return {"accuracy": float("nan")}
        truth = labels.reshape(raw.shape) > 0.5
        measures = {"accuracy": float(np.mean((raw > 0) == truth))}
        if raw.shape[1] == 1:
            measures["auc"] = area_under_roc(raw[:, 0], truth[:, 0])
        return measures


class Squared(Loss):
    """Half the squared error, summed over outputs, so that the gradient is the residual: (raw - y)^2 / 2."""

    name = "squared"

    def value_and_delta(self, raw: Array, labels: Labels, denominator: int) -> float:
        raw -= labels.reshape(raw.shape)
        flat = raw.reshape(-1)
        value = 0.5 * float(flat @ flat) / len(raw)
        raw /= denominator
        return value

    def activate(self, raw: Array) -> None:
        """Raw outputs are the predictions."""

    def metrics(self, raw: Array, labels: Labels) -> dict[str, float]:
        if not len(raw):
            return {"rmse": float("nan"), "r2": float("nan")}
        targets = labels.reshape(raw.shape).astype(np.float64)
        error = float(np.mean((raw - targets) ** 2))
        spread = float(np.mean((targets - targets.mean(axis=0)) ** 2))
        return {"rmse": error**0.5, "r2": 1 - error / spread if spread else float("nan")}


LOSSES: Mapping[str, Loss] = {loss.name: loss for loss in (Softmax(), Squared(), Logistic())}


def loss_named(name: str) -> Loss:
    """The loss of this name, or a ConfigError with the names there are."""
    if name not in LOSSES:
        raise ConfigError(f"there is no loss {name!r}; there are: {', '.join(LOSSES)}")
    return LOSSES[name]


def area_under_roc(scores: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """The probability that a positive row scores above a negative one, ties counted half (Mann-Whitney U)."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse][truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


# ---------------------------------------- one dense layer


def chunks(features: NDArray[Any], scale: float) -> Iterator[tuple[int, Array]]:
    """(first row, float32 rows divided by `scale`) in order: views where nothing is to be done."""
    plain = scale == 1 and features.dtype == np.float32
    buffer = np.empty((0 if plain else min(CHUNK_ROWS, len(features)), features.shape[1]), np.float32)
    for start in range(0, len(features), CHUNK_ROWS):
        part = features[start : start + CHUNK_ROWS]
        if plain:
            yield start, part
        else:
            # The same product as in training: a quotient may differ in the last bit.
            yield start, np.multiply(part, np.float32(1 / scale), out=buffer[: len(part)], dtype=np.float32)


def affine(rows: Array, weight: Array, bias: Array, out: Array) -> None:
    """out (b, m) = rows (b, n) @ weight (n, m) + bias (m,)"""
    np.matmul(rows, weight, out=out)
    np.add(out, bias, out=out)


def affine_gradient(rows: Array, delta: Array, weight: Array, bias: Array, block: Array | None = None) -> bool:
    """weight (n, m) = rows.T (n, b) @ delta (b, m), bias (m,) = sum of delta over the rows, written in place.

    With a `block` (of `gradient_block`) both are added to what is there instead.

    Returns:
        True if both are known to be finite, without a look at them: see `_bounded`.
    """
    if block is None:
        np.matmul(rows.T, delta, out=weight)
        np.add.reduce(delta, axis=0, out=bias)
        return _bounded(rows, delta)
    height = len(block) // weight.shape[1]
    for start in range(0, len(weight), height):
        target = weight[start : start + height]
        part = block[: target.size].reshape(target.shape)
        np.matmul(rows[:, start : start + height].T, delta, out=part)
        np.add(target, part, out=target)
    np.add(bias, np.add.reduce(delta, axis=0), out=bias)
    return False


def _bounded(rows: Array, delta: Array) -> bool:
    """Whether no element of rows.T @ delta, no part of its sum and no sum of delta can overflow.

    By Cauchy and Schwarz none is larger than |rows| |delta|, or sqrt(b) |delta|. The factors are a fraction of the
    product's size where the batch is smaller than the layer.
    """
    squares = float(np.vdot(rows, rows)), float(np.vdot(delta, delta))
    return max(squares[0], len(rows)) * squares[1] < _SAFE_SQUARE


def gradient_block(sizes: Sequence[int]) -> Array:
    """Room for a part of a weight gradient of a network with layers of these sizes."""
    largest = max(fan_in * fan_out for fan_in, fan_out in pairwise(sizes))
    return np.empty(max(min(largest, BLOCK_FLOATS), *sizes[1:]), np.float32)


def finite_or_nan(value: float, out: Array, known: bool) -> float:
    """The loss that `value_and_grad` returns: NaN if `out` is not finite, which is looked at unless it is `known`."""
    return value if known or not math.isfinite(value) or all_finite(out) else math.nan


class OneLayer(GradientBackend):
    """A model of one dense layer and a loss, which is what linear and logistic regression are."""

    def __init__(self, inputs: int, outputs: int, loss: Loss) -> None:
        self.inputs = positive("inputs (features a row)", inputs)
        self.outputs = positive("outputs", outputs)
        self.loss = loss
        self.layout = ParamLayout.of({"layers.0.weight": (self.inputs, self.outputs), "layers.0.bias": (self.outputs,)})

    def init(self, seed: int) -> Array:
        # Convex: every start ends at the same optimum, and 0 has the smallest norm.
        return np.zeros(self.layout.size, np.float32)

    def value_and_grad(self, params: Array, batch: Batch, *, out: Array, accumulate: bool = False) -> float:
        self.check_shapes(params, batch, out)
        count = len(batch.features)
        if not count:
            if not accumulate:
                out.fill(0)
            return 0.0
        weight, bias = self.layout.views(out).values()
        block = gradient_block((self.inputs, self.outputs)) if accumulate else None
        with np.errstate(all="ignore"):
            raw = self.raw_outputs(params, batch.features)
            value = self.loss.value_and_delta(raw, batch.labels, batch.denominator or count)
            known = affine_gradient(batch.features, raw, weight, bias, block)
        return finite_or_nan(value, out, known)

    def raw_outputs(self, params: Array, features: Array) -> Array:
        weight, bias = self.layout.views(params).values()
        raw = np.empty((len(features), self.outputs), np.float32)
        affine(features, weight, bias, raw)
        return raw
