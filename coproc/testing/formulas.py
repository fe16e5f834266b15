"""The formulas of the optimizers in plain float64 numpy: what compiled kernels are compared with.

Written from the papers, one line an equation, and not from the kernels. State and settings are those of the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coproc.optim import Optimizer

Exact = tuple[NDArray[np.float64], ...]
"""(params, *state)."""


def sgd(p: Any, state: Any, g: Any, t: int, learning_rate: float) -> Exact:
    return (p - learning_rate * g,)


def momentum(
    p: Any, state: Any, g: Any, t: int, learning_rate: float, momentum: float = 0.9, nesterov: bool = False
) -> Exact:
    (v,) = state
    v = momentum * v + g
    return p - learning_rate * (g + momentum * v if nesterov else v), v


def adam(
    p: Any,
    state: Any,
    g: Any,
    t: int,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> Exact:
    m, v = state
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return p - learning_rate * (m_hat / (np.sqrt(v_hat) + epsilon) + weight_decay * p), m, v


def adamw(p: Any, state: Any, g: Any, t: int, **settings: float) -> Exact:
    return adam(p, state, g, t, **{"weight_decay": 1e-2, **settings})


def adagrad(
    p: Any,
    state: Any,
    g: Any,
    t: int,
    learning_rate: float = 1e-2,
    initial_accumulator_value: float = 0.0,
    epsilon: float = 1e-10,
) -> Exact:
    (v,) = state
    v = v + g**2
    return p - learning_rate * g / (np.sqrt(v + initial_accumulator_value) + epsilon), v


def rmsprop(
    p: Any,
    state: Any,
    g: Any,
    t: int,
    learning_rate: float = 1e-2,
    alpha: float = 0.99,
    epsilon: float = 1e-8,
    momentum: float = 0.0,
) -> Exact:
    v = alpha * state[0] + (1 - alpha) * g**2
    b = g / (np.sqrt(v) + epsilon)
    if not momentum:
        return p - learning_rate * b, v
    b = momentum * state[1] + b
    return p - learning_rate * b, v, b


def adadelta(
    p: Any, state: Any, g: Any, t: int, learning_rate: float = 1.0, rho: float = 0.9, epsilon: float = 1e-6
) -> Exact:
    v, u = state
    v = rho * v + (1 - rho) * g**2
    d = np.sqrt(u + epsilon) / np.sqrt(v + epsilon) * g
    return p - learning_rate * d, v, rho * u + (1 - rho) * d**2


def ftrl(
    p: Any, state: Any, g: Any, t: int, learning_rate: float, beta: float = 1.0, l1: float = 0.0, l2: float = 0.0
) -> Exact:
    """The paper's, with z. It knows no first parameters but 0: others are z, as long as l1 and l2 are not at work."""
    before, pull = state
    n = before + g**2
    z = -(p * (beta + np.sqrt(before)) + pull) / learning_rate
    z = z + g - (np.sqrt(n) - np.sqrt(before)) / learning_rate * p
    p = np.where(abs(z) > l1, -(z - np.sign(z) * l1) / ((beta + np.sqrt(n)) / learning_rate + l2), 0)
    return p, n, -z * learning_rate - p * (beta + np.sqrt(n))


def lion(
    p: Any,
    state: Any,
    g: Any,
    t: int,
    learning_rate: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
) -> Exact:
    (m,) = state
    step = np.sign(beta1 * m + (1 - beta1) * g) + weight_decay * p
    return p - learning_rate * step, beta2 * m + (1 - beta2) * g


def average(p: Any, state: Any, g: Any, t: int, learning_rate: float = 1.0, combine: str = "mean") -> Exact:
    return (p - learning_rate * (p - g),)


def lars(
    p: Any,
    state: Any,
    g: Any,
    t: int,
    learning_rate: float,
    momentum: float = 0.9,
    trust: float = 1e-3,
    vectors: bool = False,
    weight_decay: float = 0.0,
    norms: tuple[float, float] = (1.0, 1.0),
) -> Exact:
    """Of one tensor, whose norms are given."""
    (v,) = state
    ratio = trust * norms[0] / (norms[1] + weight_decay * norms[0])
    v = momentum * v + ratio * (g + weight_decay * p)
    return p - learning_rate * v, v


def lamb(
    p: Any,
    state: Any,
    g: Any,
    t: int,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    vectors: bool = False,
    weight_decay: float = 0.01,
    norms: tuple[float, float] = (1.0, 1.0),
) -> Exact:
    """Of one tensor, whose norms are given."""
    settings = {"beta1": beta1, "beta2": beta2, "epsilon": epsilon, "weight_decay": weight_decay}
    return adam(p, state, g, t, learning_rate * norms[0] / norms[1], **settings)


FORMULAS: dict[str, Callable[..., Exact]] = {
    each.__name__: each
    for each in (sgd, momentum, adam, adamw, adagrad, rmsprop, adadelta, ftrl, lion, average, lars, lamb)
}


def exact_update(optimizer: Optimizer, exact: Exact, g: NDArray[np.float64], step: int) -> Exact:
    """An update in float64: the gradient clipped and decayed, as all optimizers have it, then the formula.

    Where delays are compensated, `g` is already: see `exact_compensated`.
    """
    settings = {key: value for key, value in optimizer.to_config().items() if key not in ("name", "delay_compensation")}
    limit = settings.pop("clip_value", np.inf)
    g = np.clip(g, -limit, limit)
    if not optimizer.decouples_decay:
        g = g + settings.pop("weight_decay", 0.0) * exact[0]
    return FORMULAS[optimizer.name](exact[0], exact[1:], g, step, **settings)


def exact_compensated(optimizer: Optimizer, g: Any, params: Any, base: Any) -> Any:
    """A gradient that was computed on `base` and is descended onto `params`, in float64."""
    g = np.asarray(g, np.float64)
    return g + optimizer.delay_compensation * (params - np.asarray(base, np.float64)) * g * g
