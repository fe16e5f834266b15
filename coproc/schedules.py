"""Schedules: how the learning rate goes with the number of the update. Pure values, sent by name.

    coproc.optim.SGD(learning_rate=coproc.schedules.Cosine(0.1, updates=10_000))
    coproc.optim.SGD(learning_rate=coproc.schedules.WarmUp(coproc.schedules.Cosine(0.1, updates=10_000), updates=500))
    coproc.optim.SGD(learning_rate=coproc.schedules.linear_scaling(0.1, workers=8, warm_up=500))

An update is one descent: a round in Bsp, a push otherwise. Every shard computes the rate from the number of the update
that it is at, so they agree without a word between them, also after a restart. `set_learning_rate` replaces
the `learning_rate` of a schedule and keeps its course.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from coproc.errors import ConfigError, whole

_MOST_UPDATES = 1 << 53
_LARGEST = 3.4e38


@dataclass(frozen=True)
class Schedule(ABC):
    """A learning rate and its course."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def base(self) -> float:
        """The learning rate that the course is relative to; 0 or more."""

    @abstractmethod
    def with_learning_rate(self, learning_rate: float) -> Schedule:
        """The same course of another learning rate."""

    @abstractmethod
    def factor(self, update: int) -> float:
        """What the learning rate is multiplied by at update 1, 2, 3, ...; finite, 0 or more."""

    def to_config(self) -> dict[str, Any]:
        """Its name and settings, as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"name": self.name} | {k: v.to_config() if isinstance(v, Schedule) else v for k, v in values.items()}

    def _number(self, field: str, least: float, most: float) -> None:
        value: Any = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ConfigError(
                f"{field} of {type(self).__name__} must be a number from {least:g} to {most:g}, not {value!r:.100}"
            )
        object.__setattr__(self, field, float(value))

    def _count(self, field: str) -> None:
        whole(f"{field} of {type(self).__name__}", getattr(self, field), 1, _MOST_UPDATES)


@dataclass(frozen=True)
class _Course(Schedule):
    learning_rate: float

    def __post_init__(self) -> None:
        self._number("learning_rate", 0.0, _LARGEST)

    @property
    def base(self) -> float:
        return self.learning_rate

    def with_learning_rate(self, learning_rate: float) -> Self:
        return replace(self, learning_rate=learning_rate)


@dataclass(frozen=True)
class Constant(_Course):
    """The same at every update, as a number alone says too; to be warmed up, say."""

    name: ClassVar[str] = "constant"

    def factor(self, update: int) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class Step(_Course):
    """``gamma ** (whole periods gone by)``: falls at once, every so many updates."""

    name: ClassVar[str] = "step"

    every: int
    """Updates of a period."""
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._count("every")
        self._number("gamma", 0.0, 1.0)

    def factor(self, update: int) -> float:
        """1 in the first period, gamma in the second, gamma^2 in the third."""
        return float(self.gamma ** ((update - 1) // self.every))


@dataclass(frozen=True)
class Polynomial(_Course):
    """``end + (1 - end) * (1 - t) ** power`` with t = the part gone by, from 0 at the first update to 1."""

    name: ClassVar[str] = "polynomial"

    updates: int
    """After so many it stays at the end."""
    power: float = 1.0
    end: float = 0.0
    """A factor, not a rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._count("updates")
        self._number("power", 0.0, 100.0)
        self._number("end", 0.0, 1.0)

    def factor(self, update: int) -> float:
        """1 at the first update, `end` from update `updates` + 1 on."""
        left = 1.0 - min(1.0, (update - 1) / self.updates)
        return float(self.end + (1.0 - self.end) * left**self.power)


@dataclass(frozen=True)
class Cosine(_Course):
    """``end + (1 - end) * (1 + cos(pi * t)) / 2``: half a wave.

    Loshchilov and Hutter, "SGDR: Stochastic gradient descent with warm restarts", 2017, without the restarts.
    """

    name: ClassVar[str] = "cosine"

    updates: int
    """After so many it stays at the end."""
    end: float = 0.0
    """A factor, not a rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._count("updates")
        self._number("end", 0.0, 1.0)

    def factor(self, update: int) -> float:
        """1 at the first update, `end` from update `updates` + 1 on."""
        part = min(1.0, (update - 1) / self.updates)
        return self.end + (1.0 - self.end) * (1.0 + math.cos(math.pi * part)) / 2.0


@dataclass(frozen=True)
class OneCycle(_Course):
    """Rises from 1 / `divide` to 1 along half a cosine in `rise` of all updates, then falls to nearly 0 along another.

    Smith and Topin, "Super-convergence", 2018, as PyTorch's OneCycleLR with two phases.
    """

    name: ClassVar[str] = "one_cycle"

    updates: int
    rise: float = 0.3
    divide: float = 25.0
    """The first rate is the `divide`-th part of `learning_rate`."""
    divide_end: float = 1e4
    """The last is the `divide_end`-th part of the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._count("updates")
        self._number("rise", 0.0, 1.0)
        self._number("divide", 1.0, _LARGEST)
        self._number("divide_end", 1.0, _LARGEST)

    def factor(self, update: int) -> float:
        """From 1 / divide up to 1, then down to 1 / divide / divide_end at the last update and after it."""
        top, last = self.rise * self.updates - 1, self.updates - 1
        at, first, end = min(update - 1, last), 1 / self.divide, 1 / self.divide / self.divide_end
        if at <= top:
            return _along_cosine(first, 1.0, at / top if top > 0 else 1.0)
        return _along_cosine(1.0, end, (at - top) / (last - top) if last > top else 1.0)


def _along_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * part)) / 2.0


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Rises linearly from `start` of another schedule's rate to all of it, then follows that.

    Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2.
    """

    name: ClassVar[str] = "warm_up"

    schedule: Schedule
    """What is warmed up; or a number. Its own course begins at the first update too, under the warm-up."""
    updates: int
    """Of the warm-up: the one after is the first at the full rate."""
    start: float = 0.0
    """A factor, not a rate. At 0 the first update is one step of the ramp, and not nothing."""

    def __post_init__(self) -> None:
        given: Any = self.schedule
        if not isinstance(given, Schedule):
            object.__setattr__(self, "schedule", Constant(given))
        self._count("updates")
        self._number("start", 0.0, 1.0)

    @property
    def base(self) -> float:
        return self.schedule.base

    def with_learning_rate(self, learning_rate: float) -> Self:
        return replace(self, schedule=self.schedule.with_learning_rate(learning_rate))

    def factor(self, update: int) -> float:
        """The other's, less what the ramp still lacks."""
        ramp = self.start + (1.0 - self.start) * min(1.0, update / (self.updates + 1))
        return ramp * self.schedule.factor(update)


def linear_scaling(learning_rate: float | Schedule, workers: int, warm_up: int = 0) -> Schedule:
    """The linear scaling rule: k workers make the batch k times as large, so the rate is k times as large too.

    Of use where gradients are averaged (Bsp). Goyal et al., 2017, section 2.1.

    Args:
        learning_rate: of one worker, or a schedule of it.
        workers: how many take part.
        warm_up: updates in which the rate rises linearly from that of one worker, as the paper advises; 0: none.

    Raises:
        ConfigError: a number that cannot be.
    """
    whole("workers of the linear scaling rule", workers, 1, _MOST_UPDATES)
    course = learning_rate if isinstance(learning_rate, Schedule) else Constant(learning_rate)
    scaled = course.with_learning_rate(course.base * workers)
    return WarmUp(scaled, updates=warm_up, start=1 / workers) if warm_up else scaled


_BY_NAME: dict[str, type[Schedule]] = {
    kind.name: kind for kind in (Constant, Step, Polynomial, Cosine, OneCycle, WarmUp)
}


def from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that `to_config` described. Only looks names up; executes nothing.

    Raises:
        ConfigError: an unknown schedule, an unknown or missing setting, a value that cannot be.
    """
    settings = dict(config)
    name = settings.pop("name", None)
    kind = _BY_NAME.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(f"no schedule is called {name!r:.100}; there are {', '.join(sorted(_BY_NAME))}")
    if isinstance(settings.get("schedule"), Mapping):
        settings["schedule"] = from_config(settings["schedule"])
    try:
        return kind(**settings)
    except TypeError as error:
        raise ConfigError(f"schedule {name}: {error}") from None
