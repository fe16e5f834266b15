"""What a step would take on more hosts than were tried: a cost model, fitted to rows of a few. Pure.

    step = compute + x * (bytes on the busiest link) / (its rate) + update + a + b * (hosts - 1)

Compute is what a worker was measured to take. The bytes are those of the architecture, by the formulas in `FORMULAS`.
Update is what was measured for one gradient, times the gradients that one server or peer descends onto its part. What
is fitted are x >= 1, by which links carry less than they could, and a, b >= 0: what a step costs beyond, and what each
host more costs. Fitted by least squares of the relative errors to the points that the processors did not limit, or to
all if there is no other; x is 1 with a single point, and b is 0 with fewer than three of the first kind. Every curve
tells its assumptions, and its error on each point that was measured.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from coproc.errors import ConfigError
from coproc.trials.base import Point, labels
from coproc.trials.metrics import metrics_of
from coproc.trials.rates import rate_of

# x that are tried: links that are used to less than half say that something else is the limit.
_SLACKS = np.linspace(1.0, 2.0, 101)
# Of 4 bytes, so much travels.
_SHARES = {"fp16": 0.5, "bf16": 0.5, "int8": 0.25}
_PRESETS = {"downpour": "asp", "ssp": "ssp", "bsp": "bsp"}
MOST = 1 << 20


class Flow(NamedTuple):
    """Bytes of a step one way of one link. What gradients and parameters move comes one after the other."""

    gradients: float
    """By the link on which most of them come."""
    parameters: float
    own: float
    """Of both, what one worker's own link has to move if it is alone."""


# Bytes by hosts, servers and bytes of a vector. The only server, or the driver, is on a worker's host.
def _servers(hosts: int, servers: int, vector: float) -> Flow:
    of_server = vector * (hosts - 1) / servers
    of_worker = vector * ((servers - 1) / servers if hosts <= servers else 1.0) if hosts > 1 else 0.0
    most = max(of_server, of_worker)
    return Flow(most, most, 2 * of_worker)


def _driver(hosts: int, servers: int, vector: float) -> Flow:
    return Flow(vector * (hosts - 1), vector * (hosts - 1), 2 * vector if hosts > 1 else 0.0)


def _slices(hosts: int, servers: int, vector: float) -> Flow:
    part = vector * (hosts - 1) / hosts
    return Flow(part, part, 2 * part)


def _tree(hosts: int, servers: int, vector: float) -> Flow:
    if hosts == 1:
        return Flow(0.0, 0.0, 0.0)
    return Flow(2 * math.ceil(math.sqrt(hosts)) * vector, 2 * vector, 2 * vector)


def _nothing(hosts: int, servers: int, vector: float) -> Flow:
    return Flow(0.0, 0.0, 0.0)


FORMULAS: Mapping[str, tuple[Callable[[int, int, float], Flow], str]] = {
    "coproc": (
        _servers,
        "a server gets the gradients of all other hosts for its part of the model, and sends its part to them",
    ),
    "http": (_driver, "the one server gets the gradients of all other hosts, and sends the model to them"),
    "ray": (_driver, "the one server gets the gradients of all other hosts, and sends the model to them"),
    "allreduce": (_slices, "each host sends and gets (N - 1) / N of the gradients, and so of the parameters"),
    "torchdist": (_slices, "each host sends and gets (N - 1) / N of the gradients, and as much of their sum"),
    "storage": (_driver, "the model's file goes to all other hosts, and all their gradients come to the driver"),
    "broadcast": (
        _tree,
        "the driver sends the model twice, to be passed on, and sqrt(N) sums come at each of two levels of a tree",
    ),
    "localsgd": (
        _driver,
        "every tau steps the average goes to all other hosts, and all their parameters to the driver",
    ),
    "single": (_nothing, "one process, whatever number of hosts"),
}


@dataclass(frozen=True)
class Expected:
    """A step on so many hosts, as the model has it."""

    hosts: int
    step_s: float
    compute_s: float
    link_s: float
    """Of the step, what the busiest link adds: without what an asynchronous worker computes meanwhile."""
    update_s: float
    other_s: float

    @property
    def efficiency(self) -> float:
        """Of the steps that as many hosts would make if each had only to compute."""
        return self.compute_s / self.step_s if self.step_s else 1.0


@dataclass(frozen=True)
class Measured:
    """A step on so many hosts, as it was: the median of its repeats."""

    hosts: int
    step_s: float
    expected_s: float
    cpu_bound: bool
    """The machine that played the hosts had its processors busy: the point is shown, and not fitted to."""

    @property
    def error(self) -> float:
        """Of the model, relative to what was measured; above 0 it expects more."""
        return self.expected_s / self.step_s - 1


@dataclass(frozen=True)
class Curve:
    """An architecture, with its settings, over numbers of hosts."""

    label: str
    point: Point
    """Of its smallest number of hosts."""
    expected: tuple[Expected, ...]
    """At each number that was asked for."""
    measured: tuple[Measured, ...]
    assumptions: tuple[str, ...]
    """In sentences."""


def hosts_in(text: str) -> tuple[int, ...]:
    """Numbers of hosts: `16..1024` is 16, 32, …, 1024, always doubled; `16,100` are these.

    Raises:
        ConfigError: neither, or numbers beyond sense.
    """
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", text.strip())
    if ends is not None and 0 < int(ends[1]) <= int(ends[2]):
        first, last = int(ends[1]), min(int(ends[2]), MOST + 1)
        found = [first << place for place in range((last // first).bit_length())]
        found += [last] * (found[-1] != last)
    elif re.fullmatch(r"\d+(,\d+)*", text.strip()):
        found = sorted({int(each) for each in text.split(",")})
    else:
        raise ConfigError(f"numbers of hosts are written as 16..1024 or 16,64,256, not {text!r:.50}")
    if found[0] < 1 or found[-1] > MOST:
        raise ConfigError(f"numbers of hosts are 1 to {MOST:,}, not {text!r:.50}")
    return tuple(found)


def project(rows: Sequence[Mapping[str, Any]], hosts: Sequence[int]) -> list[Curve]:
    """A curve of each architecture that was measured on emulated hosts, with its settings; in the order of the rows.

    Raises:
        ConfigError: no row is of such hosts and ended well; nothing can be said then.
    """
    series: dict[Point, list[_Trial]] = {}
    for row in rows:
        point = Point(**row["point"])
        if row["status"] != "ok" or point.hosts is None or point.link is None or point.contestant not in FORMULAS:
            continue
        trial = _trial(row, point)
        if trial is not None:
            series.setdefault(_setting(point), []).append(trial)
    if not series:
        raise ConfigError(
            "a projection starts from measured runs on emulated hosts, one worker each (--hosts 2 --link 1gbit), and "
            "there are none"
        )
    called = labels(series)
    return [
        _curve(called[setting.id].replace("servers=0", "servers=hosts"), trials, hosts, grows=not setting.servers)
        for setting, trials in series.items()
    ]


class _Trial(NamedTuple):
    """One row's numbers, in seconds a step."""

    point: Point
    hosts: int
    vector_bytes: float
    bytes_per_s: float
    step_s: float
    compute_s: float
    gradient_update_s: float
    """Of one gradient onto the whole vector."""
    cpu_bound: bool


def _trial(row: Mapping[str, Any], point: Point) -> _Trial | None:
    found = metrics_of(row)
    if not found.get("steps_per_s") or "compute_s" not in found or point.workers != point.hosts:
        return None
    assert point.link is not None
    share = _SHARES.get(point.compression or "", 1.0)
    return _Trial(
        point=point,
        hosts=point.workers,
        vector_bytes=4 * row["parameters"] * share,
        bytes_per_s=rate_of(point.link),
        step_s=1 / found["steps_per_s"],
        compute_s=found["compute_s"],
        gradient_update_s=found.get("update_s", 0.0) / point.workers,
        cpu_bound=bool(found.get("cpu_bound", False)),
    )


def _setting(point: Point) -> Point:
    """What points of one curve have in common; no servers stand for as many as hosts."""
    servers = 1
    if point.contestant == "coproc":
        servers = 0 if point.servers == point.hosts else point.servers
    return replace(point, workers=0, hosts=0, servers=servers, rows=None, rows_per_worker=None)


class _Model(NamedTuple):
    """What is known of one curve before anything is fitted."""

    point: Point
    compute_s: float
    gradient_update_s: float
    vector_bytes: float
    bytes_per_s: float
    grows: bool
    """There are as many servers as hosts."""

    @property
    def asynchronous(self) -> bool:
        rule = _PRESETS.get(self.point.preset or "", self.point.consistency)
        return rule in ("asp", "ssp") and self.point.contestant in ("coproc", "http", "ray")

    @property
    def every(self) -> int:
        """Steps from one exchange to the next."""
        return (self.point.tau or 10) if self.point.contestant == "localsgd" else self.point.n_send

    def servers(self, hosts: int) -> int:
        return hosts if self.grows else self.point.servers

    def flow(self, hosts: int) -> Flow:
        formula, _ = FORMULAS[self.point.contestant]
        whole = formula(hosts, self.servers(hosts), self.vector_bytes)
        return Flow(*(each / self.every for each in whole))

    def update_s(self, hosts: int) -> float:
        """On the busiest server or peer."""
        if self.point.contestant in ("single", "localsgd", "torchdist"):
            return self.gradient_update_s
        parts = {"coproc": self.servers(hosts), "allreduce": hosts}.get(self.point.contestant, 1)
        return self.gradient_update_s * hosts / parts

    def step(self, hosts: int, slack: float, fixed_s: float, more_s: float) -> Expected:
        """A step, with what is fitted."""
        flow, update_s = self.flow(hosts), self.update_s(hosts)
        a_byte_s = slack / self.bytes_per_s
        if self.asynchronous:
            # A worker goes through its own turns; together they go no faster than the busiest link, or server.
            alone_s = self.compute_s + flow.own * a_byte_s
            busiest_s = max(flow.gradients, flow.parameters) * a_byte_s
            net_s = max(alone_s, busiest_s, update_s)
            link_s, update_s = net_s - self.compute_s, 0.0
        else:
            link_s = (flow.gradients + flow.parameters) * a_byte_s
            net_s = self.compute_s + link_s + update_s
        other_s = fixed_s + more_s * (hosts - 1)
        return Expected(hosts, net_s + other_s, self.compute_s, link_s, update_s, other_s)


def _curve(label: str, trials: Sequence[_Trial], hosts: Sequence[int], *, grows: bool) -> Curve:
    by_hosts: dict[int, list[_Trial]] = {}
    for trial in sorted(trials, key=lambda each: each.hosts):
        by_hosts.setdefault(trial.hosts, []).append(trial)
    first = next(iter(by_hosts.values()))[0]
    model = _Model(
        first.point,
        statistics.median(each.compute_s for each in trials),
        statistics.median(each.gradient_update_s for each in trials),
        first.vector_bytes,
        first.bytes_per_s,
        grows,
    )
    points = [
        (count, statistics.median(each.step_s for each in own), any(each.cpu_bound for each in own))
        for count, own in by_hosts.items()
    ]
    usable = [(count, step_s) for count, step_s, cpu_bound in points if not cpu_bound]
    # What grows with the hosts where processors are the limit is this machine's, which real hosts would not share.
    slope = len(usable) > 2
    slack, fixed_s, more_s = _fit(model, usable or [(count, step_s) for count, step_s, _ in points], slope)
    return Curve(
        label,
        first.point,
        tuple(model.step(count, slack, fixed_s, more_s) for count in hosts),
        tuple(
            Measured(count, step_s, model.step(count, slack, fixed_s, more_s).step_s, cpu_bound)
            for count, step_s, cpu_bound in points
        ),
        _assumptions(model, slack, fixed_s, more_s, points),
    )


def _fit(model: _Model, points: Sequence[tuple[int, float]], slope: bool) -> tuple[float, float, float]:
    """x, a and, with `slope`, b of the model with the least squares of relative errors; the smallest x of equals."""
    counts = np.array([count - 1.0 for count, _ in points])
    steps_s = np.array([step_s for _, step_s in points])
    best, least = (1.0, 0.0, 0.0), math.inf
    for slack in _SLACKS if len(points) > 1 else _SLACKS[:1]:
        rest_s = steps_s - [model.step(count, float(slack), 0.0, 0.0).step_s for count, _ in points]
        for fixed_s, more_s in _lines(counts, rest_s, 1 / steps_s, slope):
            error = float(np.sum(((fixed_s + more_s * counts - rest_s) / steps_s) ** 2))
            if error < least * (1 - 1e-9) - 1e-15:
                best, least = (float(slack), fixed_s, more_s), error
    return best


def _lines(
    counts: np.ndarray[Any, Any], rest_s: np.ndarray[Any, Any], weights: np.ndarray[Any, Any], slope: bool
) -> list[tuple[float, float]]:
    """Candidates for (a, b), none below 0: weighted least squares with both, with each alone, and with none."""
    found = [(0.0, 0.0)]
    columns = np.stack([weights, counts * weights], axis=1)
    for used in ([0], *([[1], [0, 1]] if slope else [])):
        solved = np.linalg.lstsq(columns[:, used], rest_s * weights)[0]
        if (solved >= 0).all():
            values = dict(zip(used, solved.tolist(), strict=True))
            found.append((values.get(0, 0.0), values.get(1, 0.0)))
    return found


def _assumptions(
    model: _Model,
    slack: float,
    fixed_s: float,
    more_s: float,
    points: Sequence[tuple[int, float, bool]],
) -> tuple[str, ...]:
    point = model.point
    counts = ", ".join(str(count) for count, _, _ in points)
    told = [
        f"One worker a host, each batch of {point.batch_size} rows computed in {1e3 * model.compute_s:.1f} ms"
        f"{' (emulated)' if point.emulate_compute else ''}, on however many hosts.",
        f"Each link carries {point.link} both ways at the same time, and the switch between them all of it.",
        f"Bytes on the busiest link: {FORMULAS[point.contestant][1]}; {model.vector_bytes / 1e6:.3g} MB a vector"
        f"{f', every {model.every} steps' if model.every > 1 else ''}.",
    ]
    if point.contestant == "coproc":
        told.append("As many servers as hosts." if model.grows else f"Servers: {point.servers}, however many hosts.")
    if model.asynchronous:
        told.append("A worker waits for no other; all together go no faster than the busiest link.")
    else:
        told.append("All wait for the slowest, and none is slower than the others.")
    told.append(
        f"Fitted to {counts} hosts: links give {100 / slack:.0f} % of their rate; a step costs {1e3 * fixed_s:.1f} ms "
        f"beyond, and {1e3 * more_s:.2f} ms for each host after the first."
    )
    bound = [str(count) for count, _, cpu_bound in points if cpu_bound]
    if len(points) - len(bound) < 3:
        told.append(
            "What grows with the hosts beyond the bytes is taken to be nothing: three points of which this machine's "
            "processors were not the limit would tell."
        )
    if bound and len(bound) < len(points):
        told.append(f"The points of {', '.join(bound)} hosts were bound by this machine's processors: not fitted to.")
    elif bound:
        told.append("All points were bound by this machine's processors: real hosts would be faster.")
    told.append("Nobody fails, and nobody else uses the network.")
    return tuple(told)
