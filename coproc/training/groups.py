"""How many steps a job has: a number, an epoch, or by Drizzle's rule, so that its scheduling is a small share of it.

What a job costs besides its steps (the driver, Spark, tasks that open data and model) is paid once a group. Longer
groups pay less; shorter ones let the driver act sooner: learning rate, metrics, other executors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from coproc.tasks import WorkerReport

# The bounds and the average are those of the paper.
UPPER, LOWER = 0.10, 0.05
# What is new counts as much as all that was before: a pause of the machine is forgotten after a few groups.
_NEW = 0.5
_GROW, _SHRINK = 2, 1


class GroupSize:
    """The steps of the next group, of which an epoch has `most`.

    Automatic it is Venkataraman et al., "Drizzle: Fast and Adaptable Stream Processing at Scale" (SOSP 2017), section
    3.4: doubled while the average overhead is above 10 percent, one less below 5. Groups that an epoch's end has cut
    short, or that did not go through in one attempt, say nothing about their size and are not counted.
    """

    def __init__(self, given: int | Literal["auto"] | None, most: int) -> None:
        """`given`: None is an epoch."""
        self._automatic = given == "auto"
        self._most = max(1, most)
        self.overhead: float | None = None
        """The average share of a group's time in which its busiest worker did no step; None: not known."""
        self.steps = 1 if given == "auto" else self._most if given is None else min(given, self._most)

    def ended(self, wall_s: float, reports: Sequence[WorkerReport]) -> None:
        """A group of `steps` is over, after so long as the driver saw it."""
        work = [_work(report) for report in reports]
        if not self._automatic or wall_s <= 0 or max((steps for steps, _ in work), default=0) != self.steps:
            return
        now = max(0.0, 1 - max(busy_s for _, busy_s in work) / wall_s)
        self.overhead = now if self.overhead is None else (1 - _NEW) * self.overhead + _NEW * now
        if self.overhead > UPPER:
            self.steps = min(self._most, _GROW * self.steps)
        elif self.overhead < LOWER:
            self.steps = max(1, self.steps - _SHRINK)


def _work(report: WorkerReport) -> tuple[int, float]:
    """(steps, seconds in them) of a task; waits for others are part of a step."""
    parts = report.epochs
    steps = sum(part.pushes + part.duplicates + part.skips for part in parts)
    return steps, sum(part.pull_s + part.compute_s + part.push_s for part in parts)
