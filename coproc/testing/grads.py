"""What every gradient backend has to hold, as tests to inherit.

    class TestEveryBackend(GradientBackendTests):
        @pytest.fixture(params=example_specs(), ids=str)
        def spec(self, request): return request.param

The reference is written here in float64 and shares nothing with the backends: a dense network read from the
tensors' names. A backend that is none overrides `reference_loss`.
"""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coproc.grads import Batch, GradientBackend, backend_class, backend_names, create

Array = NDArray[np.float32]
Exact = NDArray[np.float64]

# Written around a slot; a write outside is seen.
GUARD = np.float32(-77.25)


def example_specs() -> list[dict[str, Any]]:
    """The examples of every backend there is, found by listing the folder."""
    return [dict(spec) for name in backend_names() for spec in backend_class(name).examples()]


def random_batch(backend: GradientBackend, count: int, seed: int = 0) -> Batch:
    """`count` random rows with labels that the backend's loss takes."""
    random = np.random.default_rng([seed, count])
    features = random.standard_normal((count, backend.inputs), dtype=np.float32)
    shape = (count,) if backend.outputs == 1 else (count, backend.outputs)
    labels: NDArray[Any]
    if backend.loss.name == "softmax":
        labels = random.integers(0, backend.outputs, count, dtype=np.int32)
    elif backend.loss.name == "logistic":
        labels = random.integers(0, 2, shape, dtype=np.int32)
    else:
        labels = random.standard_normal(shape, dtype=np.float32)
    return Batch(features, labels, key=(seed, 0, 1, 2))


def random_params(backend: GradientBackend, seed: int = 0) -> Array:
    """Parameters (P,) away from 0, biases too, and read-only as a pulled version is."""
    random = np.random.default_rng(seed)
    params = backend.init(seed) + 0.3 * random.standard_normal(backend.layout.size, dtype=np.float32)
    params.flags.writeable = False
    return params


def gradient(backend: GradientBackend, params: Array, batch: Batch) -> tuple[float, Array]:
    """Loss and gradient in a new array that held NaN before."""
    out = np.full(backend.layout.size, np.nan, np.float32)
    return backend.value_and_grad(params, batch, out=out), out


class GradientBackendTests:
    """Inherit, and give a fixture `spec`."""

    def reference_loss(self, backend: GradientBackend, params: Exact, batch: Batch) -> float:
        """The mean loss in float64, without dropout."""
        spec = backend.spec()
        rows = batch.features.astype(np.float64)
        depth = len(backend.layout.shapes) // 2
        views = _views(backend, params)
        for i in range(depth):
            rows = rows @ views[f"layers.{i}.weight"] + views[f"layers.{i}.bias"]
            if i < depth - 1:
                rows = np.tanh(rows) if spec["activation"] == "tanh" else np.maximum(rows, 0)
        labels = batch.labels
        if backend.loss.name == "softmax":
            shifted = rows - rows.max(axis=1, keepdims=True)
            logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
            return float(-logs[np.arange(len(labels)), labels].mean())
        targets = labels.reshape(rows.shape).astype(np.float64)
        if backend.loss.name == "logistic":
            each = -(targets * np.log(_sigmoid(rows)) + (1 - targets) * np.log(_sigmoid(-rows)))
        else:
            each = (rows - targets) ** 2 / 2
        return float(each.sum(axis=1).mean())

    def test_loss_and_gradient_are_those_of_a_float64_reference(self, spec: Mapping[str, Any]) -> None:
        backend = create({**spec, "dropout": 0.0} if "dropout" in spec else spec)
        params, batch = random_params(backend), random_batch(backend, 7)
        value, found = gradient(backend, params, batch)
        exact = params.astype(np.float64)
        assert abs(value - self.reference_loss(backend, exact, batch)) < 1e-5 * max(1, abs(value))
        expected = np.empty_like(exact)
        for i in range(exact.size):
            ahead, behind = exact.copy(), exact.copy()
            ahead[i] += 1e-6
            behind[i] -= 1e-6
            slope = self.reference_loss(backend, ahead, batch) - self.reference_loss(backend, behind, batch)
            expected[i] = slope / 2e-6
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)

    def test_gradient_is_the_slope_of_its_own_loss_with_dropout_too(self, spec: Mapping[str, Any]) -> None:
        backend = create(spec)
        # A large batch: the sum over many rows is smoother where relu has its kinks.
        params, batch = random_params(backend), random_batch(backend, 400)
        _, found = gradient(backend, params, batch)
        way: Array = found / np.float32(np.linalg.norm(found))
        step = np.float32(4e-3)
        ahead, _ = gradient(backend, params + step * way, batch)
        behind, _ = gradient(backend, params - step * way, batch)
        slope = (ahead - behind) / (2 * float(step))
        assert abs(slope - float(found @ way)) < 0.02 * float(found @ way)

    def test_batches_with_one_denominator_accumulate_to_the_mean_over_all_rows(self, spec: Mapping[str, Any]) -> None:
        backend = create({**spec, "dropout": 0.0} if "dropout" in spec else spec)
        params, whole = random_params(backend), random_batch(backend, 12)
        _, expected = gradient(backend, params, whole)
        out = np.full_like(expected, np.nan)
        for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
            some = Batch(whole.features[part], whole.labels[part], denominator=12)
            backend.value_and_grad(params, some, out=out, accumulate=part.start > 0)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)

    def test_accumulating_adds_to_what_is_there(self, spec: Mapping[str, Any]) -> None:
        backend = create(spec)
        params, batch = random_params(backend), random_batch(backend, 6)
        value, alone = gradient(backend, params, batch)
        out = np.full_like(alone, 3)
        assert backend.value_and_grad(params, batch, out=out, accumulate=True) == value
        np.testing.assert_allclose(out, alone + 3, rtol=1e-6, atol=1e-6)

    def test_a_denominator_changes_the_gradient_and_not_the_loss(self, spec: Mapping[str, Any]) -> None:
        backend = create(spec)
        params, batch = random_params(backend), random_batch(backend, 6)
        value, mean = gradient(backend, params, batch)
        same_value, part = gradient(backend, params, replace(batch, denominator=24))
        assert same_value == value
        np.testing.assert_allclose(part, mean / 4, rtol=1e-5, atol=1e-7)

    def test_only_the_slot_is_written(self, spec: Mapping[str, Any]) -> None:
        backend = create(spec)
        params, batch = random_params(backend), random_batch(backend, 6)
        before = params.copy(), batch.features.copy(), batch.labels.copy()
        memory = np.full(backend.layout.size + 64, GUARD, np.float32)
        for accumulate in (False, True):
            backend.value_and_grad(params, batch, out=memory[32:-32], accumulate=accumulate)
        assert (memory[:32] == GUARD).all()
        assert (memory[-32:] == GUARD).all()
        assert not (memory[32:-32] == GUARD).any()
        for now, then in zip((params, batch.features, batch.labels), before, strict=True):
            np.testing.assert_array_equal(now, then)

    def test_a_batch_without_rows_has_gradient_zero(self, spec: Mapping[str, Any]) -> None:
        backend = create(spec)
        params, batch = random_params(backend), random_batch(backend, 0)
        value, out = gradient(backend, params, batch)
        assert value == 0
        assert not out.any()
        out[:] = 5
        backend.value_and_grad(params, batch, out=out, accumulate=True)
        assert (out == 5).all()

    def test_the_same_batch_gives_the_same_bits_whatever_came_before(self, spec: Mapping[str, Any]) -> None:
        backend = create(spec)
        params, batch = random_params(backend), random_batch(backend, 6)
        value, first = gradient(backend, params, batch)
        gradient(backend, random_params(backend, 1), random_batch(backend, 9, seed=3))
        backend.predict(params, random_batch(backend, 11).features)
        for other in (backend, create(spec)):
            again, second = gradient(other, params, batch)
            assert again == value
            assert second.tobytes() == first.tobytes()

    def test_init_is_a_function_of_the_seed(self, spec: Mapping[str, Any]) -> None:
        first, second = create(spec).init(5), create(spec).init(5)
        assert first.dtype == np.float32
        assert first.shape == (create(spec).layout.size,)
        assert first.tobytes() == second.tobytes()
        assert np.isfinite(first).all()

    def test_spec_and_pickle_come_back_equal(self, spec: Mapping[str, Any]) -> None:
        backend = create(spec)
        params, batch = random_params(backend), random_batch(backend, 6)
        value, expected = gradient(backend, params, batch)
        assert len(pickle.dumps(backend)) < 1000
        for other in (create(json.loads(json.dumps(backend.spec()))), pickle.loads(pickle.dumps(backend))):
            assert other.spec() == backend.spec()
            assert other.layout.fingerprint == backend.layout.fingerprint
            again, found = gradient(other, params, batch)
            assert again == value
            assert found.tobytes() == expected.tobytes()

    def test_predict_and_evaluate_agree_and_take_bytes(self, spec: Mapping[str, Any]) -> None:
        backend = create({**spec, "dropout": 0.0} if "dropout" in spec else spec)
        params = random_params(backend)
        count = 1100  # more than two chunks
        batch = random_batch(backend, count)
        pixels = np.random.default_rng(1).integers(0, 256, batch.features.shape, dtype=np.uint8)
        scaled = pixels * np.float32(1 / 255)
        predictions = backend.predict(params, pixels, scale=255)
        assert predictions.dtype == np.float32
        assert predictions.shape == (count, backend.outputs)
        np.testing.assert_array_equal(predictions, backend.predict(params, scaled))
        measured = backend.evaluate(params, pixels, batch.labels, scale=255)
        value, _ = gradient(backend, params, Batch(scaled, batch.labels))
        assert abs(measured["loss"] - value) < 1e-4 * max(1, abs(value))
        if backend.loss.name == "squared":
            error = predictions - batch.labels.reshape(predictions.shape).astype(np.float64)
            assert abs(measured["rmse"] - np.sqrt(np.mean(error**2))) < 1e-4
        elif backend.loss.name == "softmax":
            np.testing.assert_allclose(predictions.sum(axis=1), 1, rtol=1e-5)
            assert measured["accuracy"] == np.mean(predictions.argmax(axis=1) == batch.labels)
        else:
            chosen = predictions > 0.5
            assert measured["accuracy"] == np.mean(chosen == (batch.labels.reshape(chosen.shape) == 1))

    def test_a_diverged_model_gives_a_loss_that_is_not_finite(self, spec: Mapping[str, Any]) -> None:
        backend = create(spec)
        params = np.full(backend.layout.size, np.nan, np.float32)
        value, _ = gradient(backend, params, random_batch(backend, 6))
        assert not np.isfinite(value)

    def test_a_gradient_that_overflows_makes_the_loss_not_finite(self, spec: Mapping[str, Any]) -> None:
        backend = create(spec)
        batch = random_batch(backend, 60)
        rows = np.minimum(np.abs(batch.features), 3)
        overflowed = 0
        for exponent in range(0, 39, 2):
            # Features as large as the first layer's weights are small: only the gradient sees how large.
            params = random_params(backend).copy()
            first, *_ = backend.layout.views(params).values()
            first *= np.float32(0.01 * 10.0**-exponent)
            large = replace(batch, features=rows * np.float32(10.0**exponent), denominator=1)
            for accumulate in (False, True):
                out = np.zeros_like(params)
                value = backend.value_and_grad(params, large, out=out, accumulate=accumulate)
                finite = bool(np.isfinite(out).all())
                assert finite or not np.isfinite(value)
                overflowed += not finite
        assert overflowed

    def test_large_outputs_overflow_nothing(self, spec: Mapping[str, Any]) -> None:
        backend = create(spec)
        batch = random_batch(backend, 6)
        value, out = gradient(backend, random_params(backend) * np.float32(300), batch)
        assert np.isfinite(value)
        assert np.isfinite(out).all()

    def test_a_step_allocates_nothing_of_the_size_of_the_model(self, spec: Mapping[str, Any]) -> None:
        wide = {**spec, "inputs": 4000}
        if "hidden" in spec:
            wide["hidden"] = [200 for _ in spec["hidden"]]
        backend = create(wide)
        params, batch = random_params(backend), random_batch(backend, 4)
        out = np.zeros(backend.layout.size, np.float32)
        backend.value_and_grad(params, batch, out=out)
        tracemalloc.start()
        try:
            backend.value_and_grad(params, batch, out=out)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < min(out.nbytes / 2 + 4096, 64_000)


def _views(backend: GradientBackend, params: Exact) -> dict[str, Exact]:
    return {name: params[start:stop].reshape(shape) for name, start, stop, shape in backend.layout.ranges()}


def _sigmoid(x: Exact) -> Exact:
    return 1 / (1 + np.exp(-x))
