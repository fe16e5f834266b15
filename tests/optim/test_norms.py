"""What is measured of a model before it is swept, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coproc import optim
from coproc.errors import ConfigError
from coproc.optim import norms
from coproc.testing.formulas import adam, exact_compensated
from coproc.testing.optim import SIZE, gradients, shares

SCRATCH = np.empty(64, np.float32)


def summed(members: Any, weights: Any) -> Any:
    return np.sum([float(w) * g.astype(np.float64) for w, g in zip(weights, members, strict=True)], axis=0)


@pytest.mark.parametrize("count", [1, 3, 8, 11, 30])
@pytest.mark.parametrize("size", [1, 16, 17, SIZE])
def test_the_squares_of_a_gradient(count: int, size: int) -> None:
    members = tuple(gradients(count, size))
    weights = optim.SGD(0.1, clip_norm=1.0).weights(shares(count))
    found = norms.squares_of_gradient(members, weights, gradients(1, size, 7)[0], SCRATCH)
    np.testing.assert_allclose(found, [(summed(members, weights) ** 2).sum()], rtol=1e-5)


@pytest.mark.parametrize("count", [2, 11])
def test_the_parts_of_a_gradient_add_up_to_the_whole(count: int) -> None:
    members = tuple(gradients(count))
    weights = optim.SGD(0.1, clip_norm=1.0).weights(shares(count))
    params = gradients(1)[0]
    whole = norms.squares_of_gradient(members, weights, params, SCRATCH)
    cuts = [slice(0, 333), slice(333, 334), slice(334, SIZE)]
    parts = [norms.squares_of_gradient(tuple([g[cut] for g in members]), weights, params[cut], SCRATCH) for cut in cuts]
    # The sums of members differ in no bit; those of their squares only in order.
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-14)


@pytest.mark.parametrize("count", [1, 4, 11])
def test_norms_are_of_compensated_gradients(count: int) -> None:
    members, bases, (params, velocity) = gradients(count), gradients(count, seed=4), gradients(2, seed=5)
    optimizer = optim.SGD(0.1, clip_norm=1.0, clip_value=0.2, delay_compensation=0.25)
    pairs = zip(members, bases, strict=True)
    g = summed([exact_compensated(optimizer, g, params, base) for g, base in pairs], shares(count))
    rows = (*members, *bases)
    found = norms.squares_of_gradient(rows, optimizer.weights(shares(count)), params, SCRATCH)
    np.testing.assert_allclose(found, [(g**2).sum()], rtol=1e-5)
    layers = optim.LARS(0.1, delay_compensation=0.25)
    found = norms.squares_of_layer(
        layers, rows, layers.weights(shares(count)), layers.constants(1, 0.1), (params, velocity), SCRATCH
    )
    np.testing.assert_allclose(found[1], (g**2).sum(), rtol=1e-5)


@pytest.mark.parametrize("count", [2, 11])
def test_what_lars_measures(count: int) -> None:
    (params, velocity), members = gradients(2, seed=5), tuple(gradients(count))
    optimizer = optim.LARS(0.1, clip_value=0.2)
    weights = optimizer.weights(shares(count))
    found = norms.squares_of_layer(
        optimizer, members, weights, optimizer.constants(1, 0.1), (params, velocity), SCRATCH
    )
    g = np.clip(summed(members, shares(count)), -0.2, 0.2)
    np.testing.assert_allclose(found, [(params.astype(np.float64) ** 2).sum(), (g**2).sum()], rtol=1e-5)


def test_what_lamb_measures_is_the_step_that_it_makes() -> None:
    params, m, v = gradients(3, seed=5)
    v[:] = v**2
    members, optimizer = tuple(gradients(2)), optim.LAMB(weight_decay=0.1)
    found = norms.squares_of_layer(
        optimizer, members, optimizer.weights(shares(2)), optimizer.constants(4, 1e-3), (params, m, v), SCRATCH
    )
    p = params.astype(np.float64)
    g = summed(members, shares(2))
    after, *_ = adam(p, (m.astype(np.float64), v.astype(np.float64)), g, 4, 1.0, 0.9, 0.999, 1e-6, 0.1)
    np.testing.assert_allclose(found, [(p**2).sum(), ((p - after) ** 2).sum()], rtol=1e-4)


def test_ratios() -> None:
    lars = optim.LARS(1.0, trust=0.5, weight_decay=0.25)
    ratio = np.float32(0.5 * 8 / (2 + 0.25 * 8))
    assert lars.layer_constants(1, 2.0, (8.0, 2.0), False) == (np.float32(0.9), ratio, 0.25, 2.0)
    assert lars.layer_constants(1, 2.0, (0.0, 2.0), False)[1] == 1.0
    assert lars.layer_constants(1, 2.0, (8.0, 0.0), False)[1] == 1.0
    assert lars.layer_constants(1, 2.0, (8.0, 2.0), True)[1:] == (1.0, 0.0, 2.0)
    lamb = optim.LAMB(weight_decay=0.25)
    assert lamb.layer_constants(1, 2.0, (8.0, 2.0), False)[-2:] == (0.25, 8.0)
    assert lamb.layer_constants(1, 2.0, (8.0, 2.0), True)[-2:] == (0.0, 2.0)
    assert optim.LAMB(vectors=True).layer_constants(1, 2.0, (8.0, 2.0), True)[-1] == 8.0
    assert lamb.layer_constants(1, 2.0, (0.0, 2.0), False)[-1] == 2.0


@pytest.mark.parametrize("kind", [optim.LARS, optim.LAMB])
def test_norms_of_layers_and_of_the_whole_do_not_go_together(kind: Any) -> None:
    with pytest.raises(ConfigError, match="clip_norm is for the others"):
        kind(learning_rate=0.1, clip_norm=1.0)
