"""Named points before and after durable acts, where a test may kill the process and a measurement look on.

Otherwise nothing is armed and `hit` costs one look. A test arms a point through the environment of the process it
starts: ``TIER_FAILPOINT="commit.seal.after:3"`` kills with SIGKILL at the third hit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

import numpy as np


class Probe:
    """The points of one package. Those that compiled code hits it looks up in `left` by `number`."""

    def __init__(self, points: Sequence[str], variable: str) -> None:
        """Arm what the variable of the environment says, as ``POINT`` or ``POINT:COUNT``.

        Raises:
            ValueError: there is no such point.
        """
        self.points = tuple(points)
        self.left = np.zeros(len(self.points), np.int64)
        """Hits of each point until the process is killed; 0: it is not armed. Compiled code counts down here too."""
        self.watched: dict[str, Callable[[], None]] = {}
        """What `hit` does; where it is empty the call can be spared."""
        if armed := os.environ.get(variable):
            name, _, count = armed.partition(":")
            self._arm(name, int(count or 1))

    def number(self, name: str) -> int:
        """Where a point stands in `left`.

        Raises:
            ValueError: there is no such point.
        """
        if name not in self.points:
            raise ValueError(f"there is no point {name!r}; the points are {', '.join(self.points)}")
        return self.points.index(name)

    def hit(self, name: str) -> None:
        """Do here what a test or a measurement has asked for; else nothing."""
        if self.watched and name in self.watched:
            self.watched[name]()

    def watch(self, name: str, act: Callable[[], None] | None) -> None:
        """Have `act` called at each hit of a point, in the thread that hits it; not where compiled code hits it.

        None ends it. Raises ValueError as `number`.
        """
        self.number(name)
        if act is None:
            self.watched.pop(name, None)
        else:
            self.watched[name] = act

    def _arm(self, name: str, count: int) -> None:
        point = self.number(name)
        self.left[point] = count

        def die() -> None:
            self.left[point] -= 1
            if self.left[point] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        self.watched[name] = die


_PROBE = Probe(
    (
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
    ),
    "TIER_FAILPOINT",
)
POINTS = _PROBE.points
hit, watch = _PROBE.hit, _PROBE.watch
