"""Named points before and after each durable act, where a test may kill the process and a measurement look on.

Otherwise nothing is armed and `hit` costs one look. A test arms a point through the environment of
the process it starts: ``COPROC_FAILPOINT="log.append.after:3"`` kills with SIGKILL at the third hit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

POINTS = frozenset(
    {
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
    }
)


def _die_at_hit(count: int) -> Callable[[], None]:
    left = count

    def die() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return die


def _read(text: str | None) -> dict[str, Callable[[], None]]:
    if not text:
        return {}
    name, _, count = text.partition(":")
    if name not in POINTS:
        raise ValueError(f"COPROC_FAILPOINT names {name!r}; the points are {sorted(POINTS)}")
    return {name: _die_at_hit(int(count or 1))}


_watched = _read(os.environ.get("COPROC_FAILPOINT"))


def hit(name: str) -> None:
    """Do here what a test or a measurement has asked for; else nothing."""
    if _watched and name in _watched:
        _watched[name]()


def watch(name: str, act: Callable[[], None]) -> None:
    """Have `act` called at each hit of a point, in the thread that hits it."""
    if name not in POINTS:
        raise ValueError(f"there is no point {name!r}; the points are {sorted(POINTS)}")
    _watched[name] = act


def armed(name: str) -> bool:
    """Whether anything is to be done at a point."""
    return name in _watched
