"""Who is compared with whom: rows of a comparison as entries of contests, with names, colours, medians and spreads.

An *entry* is one point with its repeats. A *contest* is the entries that did the same work: same data, batches,
workers, hosts. A process that trains alone is in each contest of its data, whatever the number of workers: it is what
one worker could do if exchanging were free. Numbers are medians over the repeats, with the least and the most beside
them; ratios are taken within a repeat first, since what slows one run down slows its neighbours too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from coproc.report.drawing import CPU_BOUND, EMULATED, Kinds
from coproc.report.words import count, number
from coproc.trials.base import Point
from coproc.trials.metrics import Gradient, steps_in

Row = Mapping[str, Any]
MetricsOf = Callable[[Row], Mapping[str, Any]]

# A metric of runs on emulated hosts.
LINK = "link_bytes_per_step"

# Trains alone: a ceiling to compare with, not something to choose.
ALONE = "single"
# What ratios are taken against, where it took part.
REFERENCE = "coproc"

# Known contestants have the same colour on every page: k0, k1, … in this order. Others have those after them.
KNOWN = ("coproc", "broadcast", "allreduce", "http", "storage", "localsgd", "torchdist", "ray", "hogwild")
COLOURS_COUNT = 12

# What a contestant is, and what its work is: the fields of a point that make names, and those that make contests.
_OWN = (
    *("preset", "consistency", "bound", "quorum", "n_send", "prefetch", "group_size", "tau", "combine"),
    "compression",
)
_OWN_TOO = ("storage_url", "servers", "pool")
_NAMES = {*_OWN, *_OWN_TOO, "contestant", "label"}
WORK = tuple(field.name for field in fields(Point) if field.name not in _NAMES)
_WORKERS = WORK.index("workers")


@dataclass(frozen=True)
class Trial:
    """One run and what was computed from it."""

    row: Row
    point: Point
    metrics: Mapping[str, Any]
    """Those of `coproc.trials.metrics`, startup_s and LINK; empty where the run is not ok."""

    @property
    def ok(self) -> bool:
        return self.row.get("status") == "ok"

    @property
    def repeat(self) -> int:
        return int(self.row.get("repeat", 0))

    @property
    def kinds(self) -> Kinds:
        found = [CPU_BOUND] * bool(self.metrics.get("cpu_bound")) + [EMULATED] * self.point.emulate_compute
        return frozenset(found)


@dataclass(frozen=True)
class Entry:
    """One point with all its repeats, under the name and in the colour that it has on the page."""

    name: str
    look: str
    """Class of its colour."""
    shape: int
    point: Point
    trials: tuple[Trial, ...]
    """Those that came to their end, in the order of the repeats."""
    lost: tuple[Trial, ...] = ()
    """Those that did not."""

    @property
    def kinds(self) -> Kinds:
        return frozenset(kind for trial in self.trials for kind in trial.kinds)

    @property
    def alone(self) -> bool:
        return self.point.contestant == ALONE

    def by_repeat(self, metric: str) -> dict[int, float]:
        """What each repeat gave; a repeat that did not measure it is left out."""
        told = {trial.repeat: trial.metrics.get(metric) for trial in self.trials}
        return {repeat: float(value) for repeat, value in told.items() if value is not None}

    def values(self, metric: str) -> list[float]:
        return list(self.by_repeat(metric).values())

    def median(self, metric: str) -> float | None:
        values = self.values(metric)
        return statistics.median(values) if values else None

    def spread(self, metric: str) -> tuple[float | None, float | None]:
        """The least and the most of the repeats; none of one repeat alone."""
        values = self.values(metric)
        return (min(values), max(values)) if len(values) > 1 else (None, None)

    def ratio(self, metric: str, other: Entry) -> float | None:
        """Median over the repeats of this entry's number through the other's in the same repeat."""
        ours, theirs = self.by_repeat(metric), other.by_repeat(metric)
        paired = [ours[repeat] / theirs[repeat] for repeat in sorted(ours.keys() & theirs.keys()) if theirs[repeat]]
        if paired:
            return statistics.median(paired)
        mine, yours = self.median(metric), other.median(metric)
        return mine / yours if mine is not None and yours else None


@dataclass(frozen=True)
class Contest:
    """Entries that did the same work."""

    work: str
    """What is particular about it among the contests of the page: "mnist, 4 workers"."""
    entries: tuple[Entry, ...]

    @property
    def finished(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.trials]

    @property
    def choices(self) -> list[Entry]:
        """Those that one could choose: all but who trains alone."""
        return [entry for entry in self.finished if not entry.alone]

    @property
    def alone(self) -> Entry | None:
        return next((entry for entry in self.finished if entry.alone), None)

    @property
    def reference(self) -> Entry | None:
        """What ratios are taken against: the plain coproc, else any coproc, else the first."""
        ours = [entry for entry in self.choices if entry.point.contestant == REFERENCE]
        plain = [entry for entry in ours if entry.point.preset is None]
        return next(iter([*plain, *ours, *self.choices]), None)


def tied(one: Entry, other: Entry, metric: str) -> bool | None:
    """Whether the repeats of the two overlap; None where one of them ran only once, so that nobody can say."""
    first, second = one.values(metric), other.values(metric)
    if len(first) < 2 or len(second) < 2:
        return None
    return min(first) <= max(second) and min(second) <= max(first)


def trials_of(rows: Iterable[Row], metrics_of: MetricsOf) -> list[Trial]:
    known = {field.name for field in fields(Point)}
    trials = []
    for row in rows:
        point = Point(**{name: value for name, value in row["point"].items() if name in known})
        metrics: dict[str, Any] = {}
        if row.get("status") == "ok":
            metrics = {**metrics_of(row), "startup_s": row.get("startup_s"), LINK: _link_bytes(row, point)}
        trials.append(Trial(row, point, metrics))
    return trials


def contests_of(trials: Sequence[Trial]) -> list[Contest]:
    """The contests, in the order in which their first rows stand, and so their entries."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        if trial.point.contestant != ALONE:
            groups.setdefault(_work(trial.point), []).append(trial)
    alone = [trial for trial in trials if trial.point.contestant == ALONE]
    for key, members in groups.items():
        # With as many workers by its settings, else with any: it is one process in all cases.
        near = [trial for trial in alone if _but_for_workers(_work(trial.point)) == _but_for_workers(key)]
        same = [trial for trial in near if _work(trial.point) == key]
        same = same or [trial for trial in near if _work(trial.point) == _work(near[0].point)]
        members += [_among(trial, key[_WORKERS]) for trial in same]
    met = {_but_for_workers(key) for key in groups}
    for trial in alone:
        if _but_for_workers(_work(trial.point)) not in met:
            groups.setdefault(_work(trial.point), []).append(trial)
    names = names_of([trial.point for trial in trials])
    looks = looks_of(list(names.values()))
    apart = _differing([trial.point for trial in trials if trial.point.contestant != ALONE], WORK)
    contests = []
    for members in groups.values():
        first = next((trial.point for trial in members if trial.point.contestant != ALONE), members[0].point)
        particular = ["workload", *(name for name in apart if name != "workload")]
        work = ", ".join(words for name in particular if (words := field_words(name, getattr(first, name))))
        contests.append(Contest(work, _entries(members, names, looks)))
    return contests


def all_entries(trials: Sequence[Trial]) -> list[Entry]:
    """Every point as an entry, in the order of the rows, whatever contest it is of."""
    names = names_of([trial.point for trial in trials])
    return list(_entries(trials, names, looks_of(list(names.values()))))


def names_of(points: Iterable[Point]) -> dict[Point, str]:
    """A name for each point, that says how it differs from the others of its contestant in what is its own."""
    unique = list(dict.fromkeys(points))
    base = {
        point: point.label or " ".join([point.contestant, *([point.preset] if point.preset else [])])
        for point in unique
    }
    names = {}
    for point in unique:
        rivals = [other for other in unique if base[other] == base[point]]
        apart = _differing(rivals, [*_OWN[1:], *_OWN_TOO])
        more = [words for name in apart if (words := field_words(name, getattr(point, name)))]
        names[point] = ", ".join([base[point], *more])
    return names


def looks_of(names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """(class of the colour, shape) of each name; the same on each page for the contestants that are known."""
    unique = list(dict.fromkeys(names))
    looks = {name: (f"k{KNOWN.index(name)}", KNOWN.index(name) % 4) for name in unique if name in KNOWN}
    looks |= {name: ("alone", 0) for name in unique if name.split(",")[0] == ALONE}
    taken = {look for look, _ in looks.values()}
    free = [n for n in range(COLOURS_COUNT) if f"k{n}" not in taken]
    # New ones first, so that nobody is taken for a known one who is not here.
    free = [n for n in free if n >= len(KNOWN)] + [n for n in free if n < len(KNOWN)] or list(range(COLOURS_COUNT))
    rest = [name for name in unique if name not in looks]
    for n, name in enumerate(rest):
        # Where there are more names than colours, the shape tells those of one colour apart.
        colour = free[n % len(free)]
        looks[name] = (f"k{colour}", (colour + n // len(free)) % 4)
    return looks


def field_words(name: str, value: Any) -> str:
    """What a field of a point says in a name or a heading; nothing where it is as usual."""
    if name == "group_size":
        return "a group an epoch" if value is None else "group auto" if value == "auto" else f"group of {value}"
    if value is None or value is False:
        return ""
    plain: Mapping[str, Callable[[Any], str]] = {
        "workload": str,
        "consistency": str,
        "compression": str,
        "combine": lambda v: f"combine {v}",
        "prefetch": lambda v: "fetched ahead",
        "workers": lambda v: count(v, "worker"),
        "servers": lambda v: count(v, "server"),
        "hosts": lambda v: count(v, "host"),
        "epochs": lambda v: count(v, "epoch"),
        "batch_size": lambda v: f"batch {v}",
        "tau": lambda v: f"tau {v}",
        "rows": lambda v: f"{v:,} rows",
        "rows_per_worker": lambda v: f"{v:,} rows a worker",
        "link": lambda v: f"links of {v}",
        "master": lambda v: f"Spark {v}",
        "delay": lambda v: f"delay {v}",
        "hidden": lambda v: "layers " + "-".join(map(str, v)),
        "emulate_compute": lambda v: "computing emulated",
        "slow_host": lambda v: f"one host {number(v)} times slower",
    }
    return plain.get(name, lambda v: f"{name.replace('_', ' ')} {v}")(value)


def _entries(
    trials: Sequence[Trial], names: Mapping[Point, str], looks: Mapping[str, tuple[str, int]]
) -> tuple[Entry, ...]:
    points = dict.fromkeys(trial.point for trial in trials)
    found = []
    for point in points:
        own = sorted((trial for trial in trials if trial.point == point), key=lambda trial: trial.repeat)
        ok = tuple(trial for trial in own if trial.ok)
        look, shape = looks[names[point]]
        found.append(Entry(names[point], look, shape, point, ok, tuple(trial for trial in own if not trial.ok)))
    return tuple(found)


def _link_bytes(row: Row, point: Point) -> float | None:
    """Bytes a step, in and out, of the emulated host that had most of them, as its link has counted them."""
    steps = steps_in([Gradient(*each) for each in row["samples"]], point.batch_size) / point.workers
    told = [each["in_bytes"] + each["out_bytes"] for each in (row.get("link") or {}).values()]
    return max(told) / steps if told and steps else None


def _work(point: Point) -> tuple[Any, ...]:
    return tuple(getattr(point, name) for name in WORK)


def _but_for_workers(work: tuple[Any, ...]) -> tuple[Any, ...]:
    return work[:_WORKERS] + work[_WORKERS + 1 :]


def _among(trial: Trial, workers: int) -> Trial:
    """A process that trains alone, its steps counted as those of so many workers are: a gradient of each."""
    if "steps_per_s" not in trial.metrics or workers == trial.point.workers:
        return trial
    steps_per_s = trial.metrics["steps_per_s"] * trial.point.workers / workers
    return replace(trial, metrics={**trial.metrics, "steps_per_s": steps_per_s})


def _differing(points: Sequence[Point], names: Iterable[str]) -> list[str]:
    return [name for name in names if len({getattr(point, name) for point in points}) > 1]
