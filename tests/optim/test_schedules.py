"""Schedules against their formulas, against PyTorch's, and through their descriptions."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace

import pytest

from coproc import schedules
from coproc.errors import ConfigError
from coproc.schedules import Constant, Cosine, OneCycle, Polynomial, Schedule, Step, WarmUp, linear_scaling

ALL = [
    Constant(0.5),
    Step(0.5, every=3, gamma=0.5),
    Polynomial(0.5, updates=10, power=2.0, end=0.1),
    Cosine(0.5, updates=10, end=0.1),
    OneCycle(0.5, updates=10),
    WarmUp(Cosine(0.5, updates=10), updates=4),
]


def course(schedule: Schedule, updates: int) -> list[float]:
    return [schedule.base * schedule.factor(update) for update in range(1, updates + 1)]


def test_formulas() -> None:
    assert course(Constant(0.5), 3) == [0.5, 0.5, 0.5]
    assert course(Step(8, every=2, gamma=0.5), 6) == [8, 8, 4, 4, 2, 2]
    assert course(Polynomial(4, updates=4), 6) == [4, 3, 2, 1, 0, 0]
    assert course(Polynomial(4, updates=2, power=2, end=0.5), 4) == [4, 2.5, 2, 2]
    assert course(Cosine(1, updates=2), 4) == pytest.approx([1, 0.5, 0, 0])
    assert course(Cosine(1, updates=3, end=0.2), 2) == pytest.approx([1, 0.2 + 0.8 * (1 + math.cos(math.pi / 3)) / 2])
    assert course(WarmUp(1.0, updates=3), 5) == [0.25, 0.5, 0.75, 1, 1]
    assert course(WarmUp(Step(1.0, every=2, gamma=0.5), updates=1, start=0.5), 4) == [0.75, 1, 0.5, 0.5]


def test_linear_scaling() -> None:
    assert course(linear_scaling(0.1, workers=8), 2) == pytest.approx([0.8, 0.8])
    ramp = course(linear_scaling(0.1, workers=4, warm_up=3), 5)
    assert ramp == pytest.approx([0.175, 0.25, 0.325, 0.4, 0.4])
    assert linear_scaling(Cosine(0.1, updates=9), workers=4) == Cosine(0.4, updates=9)


@pytest.mark.parametrize("updates", [2, 7, 40])
def test_as_pytorch(updates: int) -> None:
    torch = pytest.importorskip("torch")
    scheduler = torch.optim.lr_scheduler
    pairs = [
        (Step(0.3, every=3), lambda o: scheduler.StepLR(o, 3)),
        (Polynomial(0.3, updates=updates, power=2), lambda o: scheduler.PolynomialLR(o, updates, 2)),
        (Cosine(0.3, updates=updates), lambda o: scheduler.CosineAnnealingLR(o, updates)),
        (OneCycle(0.3, updates=updates), lambda o: scheduler.OneCycleLR(o, 0.3, updates, cycle_momentum=False)),
    ]
    for ours, make in pairs:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        theirs = make(optimizer)
        seen = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no step of the optimizer is made
            for _ in range(updates):
                seen.append(optimizer.param_groups[0]["lr"])
                if len(seen) < updates:
                    theirs.step()
        assert course(ours, updates) == pytest.approx(seen, rel=1e-6, abs=1e-12), ours


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
def test_description(schedule: Schedule) -> None:
    assert {kind.name for kind in map(type, ALL)} == set(schedules._BY_NAME)
    again = schedules.from_config(json.loads(json.dumps(schedule.to_config())))
    assert again == schedule
    assert course(again, 20) == course(schedule, 20)
    assert all(math.isfinite(rate) and rate >= 0 for rate in course(schedule, 200))


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
def test_another_rate_keeps_the_course(schedule: Schedule) -> None:
    other = schedule.with_learning_rate(1.5)
    assert other.base == 1.5
    assert [other.factor(u) for u in range(1, 20)] == [schedule.factor(u) for u in range(1, 20)]
    assert schedule.base == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Constant(-1.0),
        lambda: Constant(float("nan")),
        lambda: Constant("0.1"),  # type: ignore[arg-type]
        lambda: Step(0.1, every=0),
        lambda: Step(0.1, every=2.5),  # type: ignore[arg-type]
        lambda: Step(0.1, every=2, gamma=1.5),
        lambda: Polynomial(0.1, updates=5, power=-1),
        lambda: Cosine(0.1, updates=5, end=float("inf")),
        lambda: OneCycle(0.1, updates=5, divide=0.5),
        lambda: WarmUp("fast", updates=5),  # type: ignore[arg-type]
        lambda: linear_scaling(0.1, workers=0),
        lambda: replace(Cosine(0.1, updates=5), updates=True),
        lambda: schedules.from_config({"name": "nothing"}),
        lambda: schedules.from_config({"name": ["cosine"]}),
        lambda: schedules.from_config({}),
        lambda: schedules.from_config({"name": "cosine", "learning_rate": 0.1}),
        lambda: schedules.from_config({"name": "cosine", "learning_rate": 0.1, "updates": 5, "more": 1}),
        lambda: schedules.from_config({"name": "warm_up", "schedule": {"name": "x"}, "updates": 5}),
    ],
)
def test_what_cannot_be(wrong: object) -> None:
    with pytest.raises(ConfigError):
        wrong()  # type: ignore[operator]
