"""How measurements are taken and shown: contestants in turns, raw samples kept, medians with their spread.

A measurement is a module of this folder with ``NAME`` and ``def run(options: Options) -> list[Result]``;
it is found by listing the folder. Times on a shared machine wander, so contestants take turns in one run,
and a ratio is the median of the ratios within each round: what slows one down slows its neighbours down
too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import pkgutil
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from coproc.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """What a measurement may be asked for."""

    quick: bool = False
    """Tiny sizes and few rounds, to see that it runs; its figures mean nothing."""
    rounds: int = 15
    """Turns of the contestants that are kept."""
    seed: int = 1
    """Of all generated numbers."""


@dataclass(frozen=True)
class Contestant:
    """One way to do the work that is measured."""

    name: str
    call: Callable[[], object]
    """What is timed."""
    prepare: Callable[[], object] | None = None
    """Called before each, not timed."""


@dataclass(frozen=True)
class Ratio:
    """How one contestant compares with another, and what is promised."""

    against: str
    """The other contestant."""
    what: str
    """What the number says: "speed" (higher is better) or "time" (lower is better), ours through theirs."""
    samples: tuple[float, ...]
    """A ratio a round."""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.samples))

    @property
    def kept(self) -> bool | None:
        """Whether the promise is kept; None where nothing is promised."""
        if self.at_least is not None:
            return self.median >= self.at_least
        return None if self.at_most is None else self.median <= self.at_most


@dataclass(frozen=True)
class Result:
    """One contestant in one case. Everything shown is computed from its samples."""

    bench: str
    case: str
    """What was done, of which size."""
    contestant: str
    unit: str
    """Of the samples: "s", "1/s", "GB/s", ..."""
    samples: tuple[float, ...]
    """A figure a round, in the order of the rounds."""
    ratios: tuple[Ratio, ...] = ()
    checksum: str | None = None
    """Of what was computed, where it must be the same in each run with the same options."""

    @property
    def median(self) -> float:
        return float(np.median(self.samples))

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.samples, percent))

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, with the figures that are shown."""
        shown = {"median": self.median, "p10": self.percentile(10), "p90": self.percentile(90)}
        ratios = [{**dataclasses.asdict(ratio), "median": ratio.median, "kept": ratio.kept} for ratio in self.ratios]
        return {**dataclasses.asdict(self), **shown, "ratios": ratios}


# ---- taking them


def take_turns(
    contestants: Sequence[Contestant],
    rounds: int,
    *,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Seconds of each call, by contestant: a sample a round, the first `warm_up` rounds thrown away.

    Each round has an order of its own, drawn at random: a neighbour leaves the caches full of what is his,
    and nobody should always run after the same one. The garbage collector rests meanwhile.

    Args:
        contestants: who takes turns.
        rounds: samples of each that are kept.
        warm_up: rounds before, for what happens only once: compiling, first touch of memory.
        clock: seconds; `time.thread_time` where a call is one thread's work and never waits: then who is
            interrupted by another process is not charged for it.
    """
    samples: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    order = random.Random(1)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(warm_up + rounds):
            for contestant in order.sample(contestants, len(contestants)):
                if contestant.prepare is not None:
                    contestant.prepare()
                start = clock()
                contestant.call()
                taken_s = clock() - start
                if number >= warm_up:
                    samples[contestant.name].append(taken_s)
    finally:
        if collecting:
            gc.enable()
    return {name: tuple(taken) for name, taken in samples.items()}


def speed_ratio(
    ours_s: Sequence[float], theirs_s: Sequence[float], against: str, *, at_least: float | None = None
) -> Ratio:
    """Our speed as a share of theirs, from times of the same rounds."""
    pairs = zip(ours_s, theirs_s, strict=True)
    return Ratio(against, "speed", tuple([theirs / ours for ours, theirs in pairs]), at_least=at_least)


def time_ratio(
    ours_s: Sequence[float], theirs_s: Sequence[float], against: str, *, at_most: float | None = None
) -> Ratio:
    """Our time as a multiple of theirs, from times of the same rounds."""
    pairs = zip(ours_s, theirs_s, strict=True)
    return Ratio(against, "time", tuple([ours / theirs for ours, theirs in pairs]), at_most=at_most)


# ---- finding and running them


def benches() -> dict[str, ModuleType]:
    """Name -> module of every measurement in this folder."""
    package = __name__.rpartition(".")[0]
    found = {}
    for entry in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if entry.name == "__main__":
            continue
        module = importlib.import_module(f"{package}.{entry.name}")
        if hasattr(module, "NAME"):
            found[str(module.NAME)] = module
    return found


def run(names: Iterable[str], options: Options) -> list[Result]:
    """Take the named measurements, one after the other; all there are if none is named.

    Raises:
        ConfigError: a name that no measurement has.
    """
    found = benches()
    chosen = list(names) or list(found)
    unknown = [name for name in chosen if name not in found]
    if unknown:
        raise ConfigError(f"no measurement is called {', '.join(unknown)}; there are {', '.join(sorted(found))}")
    return [result for name in chosen for result in found[name].run(options)]


# ---- showing them


def environment() -> dict[str, Any]:
    """Where it was measured: versions, commit, processor, load."""
    packages = ["coproc", "numpy", "numba", "llvmlite", "pyarrow", "grpcio", "pyspark", "torch", "ray"]
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores_count": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_1m": os.getloadavg()[0],
        "command": sys.argv,
    }


def _commit() -> str | None:
    """Of the clone this runs from, with a + if files differ from it; None if it is no clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def as_json(results: Sequence[Result], options: Options) -> str:
    """One document: environment, options, results with their raw samples."""
    document = {
        "environment": environment(),
        "options": dataclasses.asdict(options),
        "results": [result.to_json() for result in results],
    }
    return json.dumps(document, indent=1)


COLUMNS = ("case", "contestant", "median", "p10", "p90", "", "ratio", "", "promised")


def as_rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The table as text, a row a contestant and one more for each further ratio; see `COLUMNS`."""
    rows = []
    case = None
    for result in results:
        scale, unit = _scale(result.median, result.unit)
        figures = [f"{value * scale:.2f}" for value in (result.median, result.percentile(10), result.percentile(90))]
        head = (result.case if result.case != case else "", result.contestant, *figures, unit)
        case = result.case
        for ratio in result.ratios or (None,):
            rows.append((*head, *_ratio_cells(ratio)))
            head = ("",) * len(head)
    return rows


def as_text(results: Sequence[Result]) -> str:
    """The table for a terminal without colours."""
    rows = [COLUMNS, *as_rows(results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {0, 1, 5, 7, 8}
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _scale(value: float, unit: str) -> tuple[float, str]:
    if unit != "s":
        return 1.0, unit
    for factor, name in ((1.0, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return factor, name
    return 1e6, "us"


def _ratio_cells(ratio: Ratio | None) -> tuple[str, str, str]:
    if ratio is None:
        return "", "", ""
    promised = ""
    if ratio.at_least is not None:
        promised = f"at least {ratio.at_least:g}"
    elif ratio.at_most is not None:
        promised = f"at most {ratio.at_most:g}"
    if ratio.kept is not None:
        promised += " kept" if ratio.kept else " MISSED"
    return f"{ratio.median:.2f}", f"of the {ratio.what} of {ratio.against}", promised
