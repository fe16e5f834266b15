"""From a row of results to its numbers. Pure, so that what is measured can be read in another way afterwards.

A *step* is one mini-batch gradient of each worker: pushes of several batches count as many. The *window* of a rate
leaves out the first group of tasks, which pays what is paid once; of a run with a single group, the first tenth of its
gradients. *Training seconds* leave out what lies between the last group of an epoch and the first of the next: the
validation.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

# Contestants that train in one process, whatever number of workers a point has.
ALONE = frozenset({"single"})
# Contestants whose driver descends, in turns with its workers: those seconds are no scheduling.
DESCENDS_ON_DRIVER = frozenset({"broadcast", "storage"})
CPU_BOUND_BELOW = 0.2


class Gradient(NamedTuple):
    """One of a row's samples."""

    worker: int
    step: int
    began_s: float
    pull_s: float
    compute_s: float
    push_s: float
    examples: int
    loss: float
    staleness: int

    @property
    def ended_s(self) -> float:
        return self.began_s + self.busy_s

    @property
    def busy_s(self) -> float:
        return self.pull_s + self.compute_s + self.push_s


class Group(NamedTuple):
    """One of a row's groups of tasks."""

    epoch: int
    group: int
    began_s: float
    ended_s: float


def metrics_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a run by name; what was not measured is not there. Units are in the names; bytes and means a step
    are of one worker, or of one server."""
    point = row["point"]
    gradients = sorted((Gradient(*each) for each in row["samples"]), key=lambda each: each.ended_s)
    groups = [Group(*each) for each in row["groups"]]
    found: dict[str, Any] = {}
    if gradients and groups:
        workers, batch = 1 if point["contestant"] in ALONE else point["workers"], point["batch_size"]
        found |= _rates(gradients, groups, workers, batch)
        found |= _split(row, gradients, groups, workers, batch)
        found |= _traffic(row, steps_in(gradients, batch) / workers)
        staleness = sorted(each.staleness for each in gradients)
        found["staleness_p50"] = percentile(staleness, 0.5)
        found["staleness_p99"] = percentile(staleness, 0.99)
    found |= _targets(row)
    found |= {f"memory_{role}_bytes": peak for role, peak in row["memory"].items()}
    if row["epochs"]:
        last = row["epochs"][-1]
        found |= {f"final_{name}": last[name] for name in ("loss", "accuracy", "auc") if last.get(name) is not None}
    if row["cpu_idle"] is not None:
        found["cpu_bound"] = row["cpu_idle"] < CPU_BOUND_BELOW
    found["checksum"] = row["checksum"]
    return found


def steps_in(gradients: Sequence[Gradient], batch_size: int) -> int:
    """Mini-batches behind them: a push may be of several."""
    return sum(-(-each.examples // batch_size) for each in gradients)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of them that at least `share` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Clock:
    """Moments of the monotonic clock as training seconds."""

    def __init__(self, groups: Sequence[Group]) -> None:
        epochs = [list(each) for _, each in groupby(groups, key=lambda group: group.epoch)]
        self._began = [each[0].began_s for each in epochs]
        self._ended = [each[-1].ended_s for each in epochs]

    def at(self, moment_s: float) -> float:
        """Training seconds from the first group's begin to a moment."""
        index = bisect_right(self._began, moment_s) - 1
        before = sum(end - begin for begin, end in zip(self._began[:index], self._ended[:index], strict=True))
        return 0.0 if index < 0 else before + min(moment_s, self._ended[index]) - self._began[index]


def window(gradients: Sequence[Gradient], groups: Sequence[Group]) -> tuple[list[Gradient], float]:
    """(the gradients that count, the training seconds in which they came). `gradients` by their ends."""
    clock = Clock(groups)
    if len(groups) > 1:
        began_s = groups[1].began_s
        counted = [each for each in gradients if each.began_s >= began_s]
    else:
        left_out = len(gradients) // 10
        began_s = gradients[left_out - 1].ended_s if left_out else groups[0].began_s
        counted = list(gradients[left_out:])
    return counted, clock.at(groups[-1].ended_s) - clock.at(began_s)


def _rates(gradients: Sequence[Gradient], groups: Sequence[Group], workers: int, batch: int) -> dict[str, float]:
    counted, seconds = window(gradients, groups)
    if not counted or seconds <= 0:
        return {}
    return {
        "steps_per_s": steps_in(counted, batch) / workers / seconds,
        "examples_per_s": sum(each.examples for each in counted) / seconds,
    }


def _split(
    row: Mapping[str, Any], gradients: Sequence[Gradient], groups: Sequence[Group], workers: int, batch: int
) -> dict[str, float]:
    """Means a step. The worker's parts add up to its time; an update may go on beside them.

    Scheduling is what a group takes beyond its workers, and beyond the updates where the driver makes them between its
    jobs: starts and ends of jobs, and where gradients travel through Spark or the driver, that as well.
    """
    counted, _ = window(gradients, groups)
    steps = steps_in(counted, batch)
    if not steps:
        return {}
    found = {name: sum(getattr(each, name) for each in counted) / steps for name in ("compute_s", "push_s", "pull_s")}
    update_s = row["costs"].get("update_s")
    if update_s is not None:
        update_s /= steps_in(gradients, batch) / workers
        found["update_s"] = update_s
    in_turns = row["point"]["contestant"] in DESCENDS_ON_DRIVER
    ordered = sorted(gradients, key=lambda each: each.began_s)
    moments = [each.began_s for each in ordered]
    over_s, rounds = 0.0, 0.0
    for group in groups[1:] or groups:
        inside = ordered[bisect_left(moments, group.began_s) : bisect_right(moments, group.ended_s)]
        made = steps_in(inside, batch) / workers
        over_s += group.ended_s - group.began_s - _busy(inside, in_turns)
        over_s -= made * (update_s or 0.0) if in_turns else 0.0
        rounds += made
    if rounds:
        found["scheduling_s"] = max(0.0, over_s) / rounds
    return found


def _busy(gradients: Sequence[Gradient], in_turns: bool) -> float:
    """Seconds in which a group's workers kept it busy.

    Workers that meet by themselves wait within a pull or a push: then it is the time of the busiest one. Where the
    driver waits for all of them at each step, it is that of each step's slowest.
    """
    spent: dict[int, float] = {}
    if not in_turns:
        for each in gradients:
            spent[each.worker] = spent.get(each.worker, 0.0) + each.busy_s
        return max(spent.values(), default=0.0)
    for each in gradients:
        spent[each.step] = max(spent.get(each.step, 0.0), each.busy_s)
    return sum(spent.values())


def _traffic(row: Mapping[str, Any], steps: float) -> dict[str, float]:
    """Jobs and bytes by the steps of the whole run."""
    costs, point = row["costs"], row["point"]
    found: dict[str, float] = {}
    if "jobs_count" in costs:
        found |= {"jobs": costs["jobs_count"], "jobs_per_step": costs["jobs_count"] / steps}
    for role, count in (("worker", point["workers"]), ("driver", 1), ("server", point["servers"])):
        ways = [costs[f"{role}_{way}_bytes"] for way in ("in", "out") if f"{role}_{way}_bytes" in costs]
        if ways:
            found[f"{role}_bytes_per_step"] = sum(ways) / count / steps
    return found


def _targets(row: Mapping[str, Any]) -> dict[str, float]:
    """Training seconds at the end of the first epoch whose version is as good, on the test rows, as was asked for.

    The loss on the training rows would not compare: each mode has it at other parameters, of a worker alone, say.
    """
    point, startup_s = row["point"], row["startup_s"]
    found: dict[str, float] = {}
    for name, good in (("loss", operator.le), ("accuracy", operator.ge)):
        target = point[f"target_{name}"]
        measured = [] if target is None else [each for each in row["epochs"] if name in each]
        times = [each["train_s"] for each in measured if good(each[name], target)]
        if times:
            found[f"seconds_to_{name}"] = times[0]
            if startup_s is not None:
                found[f"seconds_to_{name}_with_startup"] = times[0] + startup_s
    return found
