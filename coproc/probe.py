"""Named points before and after each durable act, where a test may kill the process and a measurement look on.

Otherwise nothing is armed and `hit` costs one look. A test arms a point through the environment of
the process it starts: ``COPROC_FAILPOINT="log.append.after:3"`` kills with SIGKILL at the third hit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import numpy as np

POINTS = (
    "log.append.before",
    "log.append.after",
    "push.commit.before",
    "push.commit.after",
    "push.claim.before",
    "sweep.before",
    "sweep.middle",
    "publish.before",
    "publish.after",
    "release.before",
    "release.after",
)

left = np.zeros(len(POINTS), np.int64)
"""Hits of each point until the process is killed; 0: it is not armed. Compiled code counts down here too."""

_watched: dict[str, Callable[[], None]] = {}


def number(name: str) -> int:
    """Where a point stands in `left`.

    Raises:
        ValueError: there is no such point.
    """
    if name not in POINTS:
        raise ValueError(f"there is no point {name!r}; the points are {', '.join(POINTS)}")
    return POINTS.index(name)


def _arm(text: str) -> None:
    name, _, count = text.partition(":")
    point = number(name)
    left[point] = int(count or 1)

    def die() -> None:
        left[point] -= 1
        if left[point] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _watched[name] = die


def hit(name: str) -> None:
    """Do here what a test or a measurement has asked for; else nothing."""
    if _watched and name in _watched:
        _watched[name]()


def watch(name: str, act: Callable[[], None]) -> None:
    """Have `act` called at each hit of a point, in the thread that hits it; not where compiled code hits it."""
    number(name)
    _watched[name] = act


if "COPROC_FAILPOINT" in os.environ:
    _arm(os.environ["COPROC_FAILPOINT"])
