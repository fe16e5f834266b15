"""Which points are compared: from a file, or the default ones; and every impossible one refused before anything starts.

    repeats = 3
    [defaults]
    workload = "mnist"
    [[grid]]
    contestant = ["coproc", "http"]
    workers = [1, 2]

Any setting of a point may be a list: the products of a `[[grid]]` are its points.
"""

from __future__ import annotations

import functools
import itertools
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coproc.contestants import base as contestants
from coproc.errors import ConfigError, CoprocError, Unsupported
from coproc.hosts.links import require_tools
from coproc.hosts.trial import require as require_hosts
from coproc.modes import base as modes
from coproc.pools.base import require_slots
from coproc.pools.inline import InlinePool
from coproc.training.config import PRESETS, TrainConfig
from coproc.training.plan import require_memory, require_mode, waits_for_all
from coproc.trials.base import Point, labels
from coproc.trials.workloads import require_rows, workload

# Enough to see a spread, few enough for a coffee.
REPEATS = 2
# Of one run: nobody waits longer for a contestant that hangs.
TIMEOUT_S = 600.0

# Two epochs of 50 rounds: the first pays what is paid once, the second is measured.
DEFAULTS: Mapping[str, Any] = {"workload": "mnist", "workers": 2, "rows": 12_800, "epochs": 2}

COUNTS = ("workers", "servers", "batch_size", "n_send", "epochs", "tau", "hosts", "rows", "rows_per_worker")
LOCAL = re.compile(r"local\[(\d+)(?:,\d+)?\]|local-cluster\[(\d+),(\d+),\d+\]")

TYPES: Mapping[str, Any] = typing.get_type_hints(Point)
WORDS: Mapping[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Grid:
    """What is to be run, and how often."""

    points: tuple[Point, ...]
    title: str
    repeats: int = REPEATS
    timeout_s: float = TIMEOUT_S
    data: str | None = None
    """The folder with the files of real data, where the grid's file names one."""


@dataclass(frozen=True)
class Checked:
    """What can be run, and what cannot."""

    impossible: tuple[str, ...]
    """A sentence for each impossible point."""
    skipped: Mapping[str, str]
    """By the point's id: the sentence, with the install line, of what is not installed here."""


def default_grid(several_hosts: bool = False) -> Grid:
    """Every mode and every other contestant on MNIST, 2 workers; about 5 minutes on 2 cores.

    Args:
        several_hosts: only those that run on emulated hosts.
    """
    names = sorted(modes.names(), key=lambda name: (name != "coproc", name))
    points = [Point(name, consistency=plain_consistency(name), **DEFAULTS) for name in names]
    if several_hosts:
        points = [point for point in points if _has_hosts(point)]
    else:
        points += [Point(name, **DEFAULTS) for name in contestants.names()]
    return Grid(tuple(points), "every architecture, at its defaults")


def _has_hosts(point: Point) -> bool:
    try:
        require_hosts(replace(point, hosts=2, link="1gbit"))
    except ConfigError:
        return False
    return True


def plain_consistency(mode: str) -> str:
    """Synchronous, where the mode can be."""
    able = modes.load(mode).CAPABILITIES.consistencies
    return "bsp" if "bsp" in able else min(able)


def read_grid(path: Path) -> Grid:
    """The grid in a TOML file.

    Raises:
        ConfigError: it cannot be read, or has a key or a value that cannot be; all of them are named.
    """
    try:
        told = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"the grid {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the grid {path} is not TOML: {error}") from None
    problems: list[str] = []
    known = ("defaults", "grid", "title", "repeats", "timeout_s", "data")
    problems += [f"there is no {name!r}; a grid has {', '.join(known)}" for name in told if name not in known]
    repeats, timeout_s = told.get("repeats", REPEATS), told.get("timeout_s", TIMEOUT_S)
    if type(repeats) is not int or repeats < 1:
        problems.append(f"repeats is a whole number of at least 1, not {repeats!r}")
    if type(timeout_s) not in (int, float) or not 0 < timeout_s < float("inf"):
        problems.append(f"timeout_s is a number of seconds above 0, not {timeout_s!r}")
    problems += [
        f"{name} is text, not {told[name]!r}"
        for name in ("title", "data")
        if name in told and not isinstance(told[name], str)
    ]
    defaults, tables = told.get("defaults", {}), told.get("grid", [])
    points: list[Point] = []
    if not isinstance(defaults, dict) or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        problems.append("[defaults] is one table, and [[grid]] several")
    elif not tables:
        problems.append("it has no [[grid]], so there is nothing to run")
    else:
        for number, table in enumerate(tables, 1):
            own, wrong = _products({**defaults, **table})
            points += own
            problems += [f"[[grid]] {number}: {sentence}" for sentence in wrong]
    if problems:
        raise ConfigError(f"the grid {path} cannot be run: {'; '.join(problems)}")
    unique = {point.id: point for point in points}
    return Grid(tuple(unique.values()), told.get("title", path.stem), repeats, float(timeout_s), told.get("data"))


def _products(table: Mapping[str, Any]) -> tuple[list[Point], list[str]]:
    """(points, what is wrong) of a table whose values may be lists."""
    wrong: list[str] = []
    choices: dict[str, list[Any]] = {}
    if "contestant" not in table:
        wrong.append("it names no contestant")
    for name, told in table.items():
        if name not in TYPES:
            wrong.append(f"a point has no {name!r}; it has {', '.join(TYPES)}")
            continue
        values = told if isinstance(told, list) and not (name == "hidden" and _fits(told, TYPES[name])) else [told]
        if not values:
            wrong.append(f"{name} is an empty list: the products of it are no points")
        wrong += [f"{name} is {_kind(TYPES[name])}, not {value!r}" for value in values if not _fits(value, TYPES[name])]
        choices[name] = [_as(value, TYPES[name]) for value in values]
    if wrong:
        return [], wrong
    names = [name for name in TYPES if name in choices]
    return [
        Point(**dict(zip(names, each, strict=True))) for each in itertools.product(*(choices[name] for name in names))
    ], []


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, without None, which TOML cannot say."""
    united = (
        typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else ()
    )
    return tuple(each for each in united or (hint,) if each is not type(None))


def _fits(value: Any, hint: Any) -> bool:
    for each in _alternatives(hint):
        if typing.get_origin(each) is typing.Literal:
            if value in typing.get_args(each):
                return True
        elif typing.get_origin(each) is tuple:
            if isinstance(value, list) and all(type(size) is int for size in value):
                return True
        elif type(value) is each or (each is float and type(value) is int):
            return True
    return False


def _as(value: Any, hint: Any) -> Any:
    """A fitting value in the type of its field, so that 1 and 1.0 are one point."""
    return float(value) if type(value) is int and float in _alternatives(hint) else value


def _kind(hint: Any) -> str:
    words = [
        " or ".join(repr(value) for value in typing.get_args(each))
        if typing.get_origin(each) is typing.Literal
        else WORDS.get(each, "a list of sizes")
        for each in _alternatives(hint)
    ]
    return " or ".join(words)


def changed(grid: Grid, *, only: Iterable[str] = (), repeats: int | None = None, **settings: Any) -> Grid:
    """The grid with some settings at each of its points, those that are not None; and of `only` these contestants.

    Raises:
        ConfigError: a name that no point of the grid has, as its contestant or label.
    """
    points, names = list(grid.points), list(only)
    there = dict.fromkeys(name for point in points for name in (point.contestant, point.label) if name)
    for name in names:
        if name not in there:
            raise ConfigError(f"no contestant of this comparison is called {name!r}; there are {', '.join(there)}")
    if names:
        points = [point for point in points if point.contestant in names or point.label in names]
    given = {name: value for name, value in settings.items() if value is not None}
    unique = {point.id: point for point in (replace(point, **given) for point in points)}
    return replace(grid, points=tuple(unique.values()), repeats=repeats or grid.repeats)


def check(points: Iterable[Point], data: Path) -> Checked:
    """Look at all points before anything starts. Reads headers of data files, and asks Java for its version."""
    told = list(points)
    called = labels(told)
    impossible: list[str] = []
    skipped: dict[str, str] = {}
    for point in told:
        try:
            _require_known(point)
            lacking = _lacking(point)
            if lacking is not None:
                skipped[point.id] = lacking
                continue
            _require_possible(point, data)
        except CoprocError as error:
            impossible.append(f"{called[point.id]}: {error}")
    return Checked(tuple(dict.fromkeys(impossible)), skipped)


def is_mode(point: Point) -> bool:
    """Whether the contestant is an architecture of the project, and no contestant of the comparison alone."""
    return point.contestant in modes.names()


def train_config(point: Point) -> TrainConfig:
    """The settings of a training that a point with a mode asks for.

    Raises:
        ConfigError: settings that cannot work, whatever the rows are.
    """
    work = workload(point.workload)
    own = (
        *("bound", "quorum", "prefetch", "group_size", "tau", "combine", "preset", "learning_rate", "compression"),
        "storage_url",
    )
    given = {name: getattr(point, name) for name in own if getattr(point, name) is not None}
    mode = PRESETS.get(point.preset or "", {}).get("mode", point.contestant)
    if mode != point.contestant:
        raise ConfigError(f"the preset {point.preset!r} is another architecture: give contestant = {mode!r}")
    plain = {"consistency": "bsp", "n_send": 1}
    asked = {"consistency": point.consistency, "n_send": point.n_send}
    # What a preset sets is left to it, unless the point says something else than points do by default.
    given |= {name: value for name, value in asked.items() if point.preset is None or value != plain[name]}
    # On emulated hosts each worker is a process of its own.
    pool: Any = point.pool if point.hosts is None else "processes"
    return TrainConfig(
        features="features",
        label="label",
        hidden=work.hidden if point.hidden is None else point.hidden,
        loss=work.loss,
        scale=work.scale,
        **{name: getattr(point, name) for name in ("epochs", "batch_size", "workers", "servers", "optimizer")},
        **{name: getattr(point, name) for name in ("schedule", "seed")},
        pool=pool,
        mode=mode,
        **given,
    )


def slots(point: Point) -> int | None:
    """Tasks that run at the same time on the pool of a point; None: as many as there are.

    Raises:
        ConfigError: a Spark that is not on this host.
    """
    if point.master is None:
        return None
    found = LOCAL.fullmatch(point.master)
    if found is None or point.pool != "spark" or point.hosts is not None:
        raise ConfigError(
            f"master is local[SLOTS] or local-cluster[EXECUTORS,SLOTS,MEGABYTES] of the pool 'spark', not "
            f"{point.master!r} of {point.pool!r}{' on emulated hosts' if point.hosts is not None else ''}"
        )
    return int(found[1]) if found[1] else int(found[2]) * int(found[3])


def _require_known(point: Point) -> None:
    names = [*modes.names(), *contestants.names()]
    if point.contestant not in names:
        raise ConfigError(f"there is no contestant {point.contestant!r}; the contestants are {', '.join(names)}")
    workload(point.workload)
    for name in COUNTS:
        value = getattr(point, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")


def _lacking(point: Point) -> str | None:
    """The sentence of what is not installed here; None: all of it is."""
    try:
        if point.hosts is not None:
            require_tools()
        if is_mode(point):
            modes.require_packages(point.contestant, modes.load(point.contestant).CAPABILITIES)
            if point.pool == "spark" and point.hosts is None:
                _require_spark()
        else:
            contestants.require_packages(point.contestant)
    except (ConfigError, Unsupported) as error:
        return str(error)
    return None


@functools.cache
def _require_spark() -> None:
    from coproc.pools.session import require_java, require_pyspark

    require_pyspark()
    require_java()


class _Slots(InlinePool):
    """So many slots, to ask whether they suffice."""

    def __init__(self, name: str, count: int) -> None:
        super().__init__(count)
        self.name = name


def _require_possible(point: Point, data: Path) -> None:
    require_rows(point, data)
    if not is_mode(point):
        if point.hosts is not None or point.emulate_compute:
            raise ConfigError(f"{point.contestant} has no emulated hosts and no emulated compute: modes have")
        contestants.load(point.contestant).check(point)
        return
    require_hosts(point)
    config = train_config(point)
    capabilities = modes.load(config.mode).CAPABILITIES
    require_mode(config, capabilities)
    count = slots(point)
    name = config.pool
    pool = InlinePool() if name == "inline" else _Slots(name, point.workers if count is None else count)
    if waits_for_all(config, capabilities):
        in_groups = capabilities.waits_for_all == "in groups"
        require_slots(pool, point.workers, "group_size 1" if in_groups else "consistency asp")
    require_memory(config, workload(point.workload).parameters(point.hidden))
