"""FTRL-Proximal against the algorithm as it is printed, and where ours is more: other first parameters, schedules."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from coproc import optim
from coproc.optim import FTRL, Row

SIZE, STEPS = 250, 40


def descend(optimizer: FTRL, front: tuple[Row, ...], gradient: Row, rate: float) -> tuple[Row, ...]:
    back = tuple([optim.aligned_row(gradient.size) for _ in front])
    constants = (optimizer.constants(1, rate),)
    sweep = optim.compile_sweep(optimizer)
    optim.apply(sweep, ((gradient,),), ((np.float32(1),),), constants, front, back, np.empty(0, np.float32), False)
    return back


def start(params: Row) -> tuple[Row, ...]:
    return params, optim.aligned_row(params.size), optim.aligned_row(params.size)


def sparse_gradients(seed: int) -> list[Row]:
    """Most elements have a gradient in few steps only, as rare features do."""
    random = np.random.default_rng(seed)
    often = random.random(SIZE) ** 2
    drift = random.standard_normal(SIZE)
    return [
        ((random.standard_normal(SIZE) + drift) * (random.random(SIZE) < often)).astype(np.float32)
        for _ in range(STEPS)
    ]


def as_printed(gradients: list[Row], alpha: float, beta: float, l1: float, l2: float) -> NDArray[np.float64]:
    """Algorithm 1, with its names: w is computed when it is needed, and only for the elements of the example."""
    z, n, w = np.zeros((3, SIZE))
    for gradient in gradients:
        for i in np.flatnonzero(gradient):
            g = float(gradient[i])
            w[i] = weight(z[i], n[i], alpha, beta, l1, l2)
            sigma = (math.sqrt(n[i] + g * g) - math.sqrt(n[i])) / alpha
            z[i] += g - sigma * w[i]
            n[i] += g * g
    return np.array([weight(*pair, alpha, beta, l1, l2) for pair in zip(z, n, strict=True)])


def weight(z: float, n: float, alpha: float, beta: float, l1: float, l2: float) -> float:
    if abs(z) <= l1:
        return 0.0
    return -(z - math.copysign(l1, z)) / ((beta + math.sqrt(n)) / alpha + l2)


def test_from_0_it_is_the_printed_algorithm_and_zero_at_the_same_places() -> None:
    for l1, l2 in ((0.0, 0.0), (3.0, 0.0), (0.0, 2.0), (3.0, 2.0)):
        optimizer, gradients = FTRL(0.5, beta=1.0, l1=l1, l2=l2), sparse_gradients(1)
        rows = start(optim.aligned_row(SIZE))
        for gradient in gradients:
            rows = descend(optimizer, rows, gradient, 0.5)
        expected = as_printed(gradients, 0.5, 1.0, l1, l2)
        np.testing.assert_allclose(rows[0], expected, rtol=1e-5, atol=1e-6)
        assert ((rows[0] == 0) == (expected == 0)).all()
        assert not l1 or SIZE // 5 < np.count_nonzero(expected) < SIZE * 4 // 5


def test_first_parameters_stay_where_nothing_moves_them() -> None:
    params = optim.aligned_row(SIZE)
    params[:] = np.linspace(-1, 1, SIZE)
    front = start(params)
    (still, *_) = descend(FTRL(0.1), front, optim.aligned_row(SIZE), 0.1)
    np.testing.assert_array_equal(still, params)
    gradient = optim.aligned_row(SIZE)
    gradient[:] = 1e-3
    (moved, *_) = descend(FTRL(0.1), front, gradient, 0.1)
    np.testing.assert_allclose(moved - params, -1e-4 / 1.001, rtol=2e-3)


def test_another_rate_weighs_what_comes_and_moves_nothing_by_itself() -> None:
    optimizer, nothing = FTRL(0.5, l1=3.0, l2=2.0), optim.aligned_row(SIZE)
    rows = start(optim.aligned_row(SIZE))
    for gradient in sparse_gradients(2):
        rows = descend(optimizer, rows, gradient, 0.5)
    later = descend(optimizer, rows, nothing, 0.005)
    np.testing.assert_allclose(later[0], rows[0], rtol=2e-7, atol=2e-7)
    assert ((later[0] == 0) == (rows[0] == 0)).all()


def test_held_still_for_long_it_does_not_drift() -> None:
    optimizer, nothing = FTRL(0.5, l1=3.0, l2=2.0), optim.aligned_row(SIZE)
    rows = start(optim.aligned_row(SIZE))
    for gradient in sparse_gradients(3):
        rows = descend(optimizer, rows, gradient, 0.5)
    before = rows[0].copy()
    for _ in range(1000):
        rows = descend(optimizer, rows, nothing, 0.5)
    np.testing.assert_allclose(rows[0], before, rtol=2e-7, atol=2e-7)
