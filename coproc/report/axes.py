"""Axes: from values to places, and the round numbers that stand beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from coproc.report.words import number


@dataclass(frozen=True)
class Axis:
    """What is shown along one direction."""

    label: str
    """With its unit: training time, s."""

    log: bool = False
    """Equal ratios are equal ways. Values of 0 and below have no place then."""

    from_zero: bool = True
    """Begin at 0: where lengths are compared."""

    ticks: tuple[float, ...] | None = None
    """Just these, such as the numbers of workers that were tried; None: round ones."""

    words: Callable[[float], str] = number

    most: float | None = None
    """Values end here at the latest: a share ends at 1."""


@dataclass(frozen=True)
class Scale:
    """Where values lie between two places, in units of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The place of a value; beyond an end it is the end."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def scale(axis: Axis, values: Iterable[float], start: float, end: float, *, about: int = 5) -> Scale:
    """The scale that shows `values`, with `about` ticks if they are not given."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not axis.log)]
    low, high = (min(found), max(found)) if found else (1.0, 10.0)
    if axis.log:
        if high <= low * 1.05:
            low, high = low / 2, high * 2
        room = (high / low) ** 0.03
        low, high = low / room, high * room
        ticks = axis.ticks or _log_ticks(low, high, about)
    else:
        low = min(0.0, low) if axis.from_zero else low
        if high - low <= 1e-6 * max(abs(low), abs(high)) or high - low < 1e-300:
            # One value: the axis is as long as it is large, or around it.
            wide = 0.05 * abs(high) or 0.5
            low, high = (min(0.0, low), max(0.0, high) or 1.0) if axis.from_zero else (low - wide, high + wide)
        room = 0.04 * (high - low)
        high = high + room if axis.most is None else max(high, min(axis.most, high + room))
        low = low if axis.from_zero else low - room
        ticks = axis.ticks or _round_ticks(low, high, about)
    return Scale(low, high, start, end, axis.log, tuple(tick for tick in ticks if low <= tick <= high))


def _round_ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    # Products of whole numbers, not sums: 0.30000000000000004 is no tick.
    return tuple(float(f"{n * step:.12g}") for n in range(first, math.floor(high / step + 1e-9) + 1))


def _log_ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    """Powers of ten, or 1, 2, 5 of each, or round numbers where the ends are close."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        ticks = tuple(
            float(f"{factor * 10.0**power:.12g}")
            for power in powers
            for factor in factors
            if low <= factor * 10.0**power <= high
        )
        if len(ticks) >= min(4, about - 1):
            return ticks[:: -(-len(ticks) // (2 * about))]
    return _round_ticks(low, high, about)
