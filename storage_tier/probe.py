"""Named points between durable acts, where a test may kill the process.

Otherwise nothing is armed and `hit` costs one look. A test arms a point through the environment of the process it
starts: ``TIER_FAILPOINT="commit.seal.after:3"`` kills with SIGKILL at the third hit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

POINTS = frozenset(
    {
        "commit.seal.before",
        "commit.seal.after",
        "commit.publish.after",
        "commit.catalog.before",
        "commit.catalog.after",
        "release.before",
        "release.after",
        "rename.under.before",
        "rename.under.after",
        "rename.catalog.after",
        "remove.under.before",
        "remove.under.after",
        "remove.catalog.after",
        "persist.publish.before",
        "persist.publish.after",
        "persist.catalog.after",
        "fetch.link.after",
        "fetch.catalog.after",
        "evict.catalog.before",
        "evict.catalog.after",
        "evict.delete.after",
        "spill.link.after",
        "spill.delete.after",
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
        raise ValueError(f"TIER_FAILPOINT names {name!r}; the points are {sorted(POINTS)}")
    return {name: _die_at_hit(int(count or 1))}


_watched = _read(os.environ.get("TIER_FAILPOINT"))


def hit(name: str) -> None:
    """Do here what a test has asked for; else nothing."""
    if _watched and name in _watched:
        _watched[name]()


def watch(name: str, act: Callable[[], None] | None) -> None:
    """Have `act` called at each hit of a point, in the thread that hits it; None ends it."""
    if name not in POINTS:
        raise ValueError(f"there is no point {name!r}; the points are {sorted(POINTS)}")
    if act is None:
        _watched.pop(name, None)
    else:
        _watched[name] = act
