"""The field's own experiments, each sized to end in about ten minutes on two cores.

A run takes some 10 to 15 s to start and end whatever it does, so that an experiment is about thirty of them. Where
workers are more than cores, computing is a calibrated wait: else they would only wait for each other's cores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from coproc.compare import costing, growing, learning
from coproc.compare.grid import plain_consistency
from coproc.contestants import base as contestants
from coproc.modes import base as modes
from coproc.report.contest import Trial
from coproc.report.tables import Figure
from coproc.training.config import PRESETS
from coproc.trials.base import Point

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A question, the points that answer it, and how their numbers are read."""

    name: str
    title: str
    question: str
    points: tuple[Point, ...]
    repeats: int
    figures: Callable[[Sequence[Trial]], list[Figure]]
    """Of whatever rows there are; the first figure is the answer."""
    reading: Callable[[Sequence[Trial]], list[str]]
    """Sentences of whatever rows there are: what was found, what the papers say, what cannot be said."""


def _scaling() -> tuple[Point, ...]:
    # 46 steps an epoch; of eight workers just what MNIST has.
    load: Settings = {"rows_per_worker": 6_000, "epochs": 2}
    real = [Point(name, workers=workers, **load) for name in ("coproc",) for workers in (1, 2)]
    waits = [
        Point(name, workers=workers, emulate_compute=True, **load)
        for name, counts in (("coproc", (1, 2, 4, 8)), ("allreduce", (1, 2, 4, 8)), ("broadcast", (1, 2, 4)))
        for workers in counts
    ]
    return (Point("single", workers=1, **load), *real, *waits)


def _speedup() -> tuple[Point, ...]:
    work: Settings = {"rows": 12_000, "epochs": 3}
    real = [Point("coproc", workers=workers, target_loss=0.2, **work) for workers in (1, 2)]
    waits = [
        Point(name, workers=workers, emulate_compute=True, **work)
        for name, counts in (("coproc", (1, 2, 4, 8)), ("allreduce", (1, 2, 4, 8)), ("broadcast", (1, 4)))
        for workers in counts
    ]
    return (*real, *waits)


def _convergence() -> tuple[Point, ...]:
    work: Settings = {"epochs": 4, "schedule": "linear", "target_accuracy": 0.975}
    # "bsp" is what coproc is anyway, and what has a mode of its own is among them.
    presets = [
        Point("coproc", preset=name, **work) for name in PRESETS if name != "bsp" and "mode" not in PRESETS[name]
    ]
    architectures = [Point(name, consistency=plain_consistency(name), **work) for name in modes.names()]
    asynchronous = Point("coproc", consistency="asp", **work)
    return (*architectures, asynchronous, *presets, *(Point(name, **work) for name in contestants.names()))


def _partitions() -> tuple[Point, ...]:
    work: Settings = {"rows": 20_000, "epochs": 2, "consistency": "asp", "master": "local[2]"}
    return tuple(Point("coproc", workers=count, **work) for count in (2, 4, 8, 16, 32, 64))


def _tau() -> tuple[Point, ...]:
    # 100 steps an epoch for each of two workers, 50 for four.
    work: Settings = {"rows": 25_600, "epochs": 2}
    averaged = [Point("localsgd", tau=tau, workers=workers, **work) for workers, tau in product((2, 4), (1, 5, 10, 50))]
    return (*averaged, *(Point("coproc", workers=workers, **work) for workers in (2, 4)))


def _scheduling() -> tuple[Point, ...]:
    # Two executors with half of the tasks each; 24 steps an epoch, and as much as MNIST has for 16 tasks.
    return tuple(
        Point(
            "coproc",
            workers=tasks,
            group_size=size,
            master=f"local-cluster[2,{tasks // 2},1024]",
            rows_per_worker=3_072,
            epochs=2,
            emulate_compute=True,
        )
        for tasks, size in product((2, 4, 8, 16), (1, 6, None))
    )


def _syncfraction() -> tuple[Point, ...]:
    rows = {"mnist": 7_680, "higgs": 3_840, "molecular": 3_840}
    names = ("coproc", "allreduce", "http", "storage", "broadcast")
    return tuple(Point(name, workload, rows=rows[workload], epochs=2) for workload, name in product(rows, names))


def _independence() -> tuple[Point, ...]:
    # 8.45 million parameters: descent is work. 20 steps an epoch.
    load: Settings = {
        "workload": "higgs",
        "consistency": "asp",
        "rows_per_worker": 2_560,
        "epochs": 3,
        "emulate_compute": True,
    }
    return tuple(
        Point("coproc", workers=workers, servers=servers, **load) for servers, workers in product((1, 2), (1, 2, 4, 8))
    )


def _memory() -> tuple[Point, ...]:
    names = ("mnist", "higgs", "molecular")
    return tuple(
        Point("coproc", workload, workers=workers, batch_size=batch, rows=3_840)
        for workload, (workers, batch) in product(names, ((1, 128), (2, 128), (2, 512)))
    )


def _precision() -> tuple[Point, ...]:
    work: Settings = {"rows": 12_800, "epochs": 3}
    # Two hosts, for within one nothing of coproc's travels; what all-reduce sends is counted on one as well.
    far: Settings = {"hosts": 2, "link": "1gbit", **work}
    formats = (None, "bf16", "fp16", "int8", "topk")
    peers = [Point("allreduce", compression=name, **work) for name in (None, "bf16")]
    return (*peers, *(Point("coproc", compression=name, **far) for name in formats))


EXPERIMENTS: Mapping[str, Experiment] = {
    each.name: each
    for each in (
        Experiment(
            "scaling",
            "Scaling: data that grow with the workers",
            "Does each worker stay as fast when there are more of them, each with as many rows as before?",
            _scaling(),
            2,
            growing.scaling_figures,
            growing.scaling_reading,
        ),
        Experiment(
            "speedup",
            "Speed-up: the same data on more workers",
            "How many times faster is the same work with more workers?",
            _speedup(),
            2,
            growing.speedup_figures,
            growing.speedup_reading,
        ),
        Experiment(
            "convergence",
            "Convergence: loss and accuracy over time",
            "Which architecture is first at an accuracy that is worth having, on the same data, by the same kernels?",
            _convergence(),
            1,
            learning.convergence_figures,
            learning.convergence_reading,
        ),
        Experiment(
            "partitions",
            "Partitions: few large or many small ones",
            "What does the size of a partition do to speed and to what is learned?",
            _partitions(),
            2,
            growing.partitions_figures,
            growing.partitions_reading,
        ),
        Experiment(
            "tau",
            "Tau: local steps between averages",
            "What does averaging parameters every tau steps save, and what does it cost?",
            _tau(),
            2,
            learning.tau_figures,
            learning.tau_reading,
        ),
        Experiment(
            "scheduling",
            "Scheduling: a job a step against groups",
            "What share of computing does Spark's scheduling take, with how many tasks, in groups of how many steps?",
            _scheduling(),
            1,
            costing.scheduling_figures,
            costing.scheduling_reading,
        ),
        Experiment(
            "syncfraction",
            "Synchronising as a share of computing",
            "How much does exchanging gradients and parameters add to computing them, for networks of three sizes?",
            _syncfraction(),
            1,
            costing.sync_figures,
            costing.sync_reading,
        ),
        Experiment(
            "independence",
            "Independence: gradient workers and servers",
            "Which side limits: those who compute gradients, or those who descend?",
            _independence(),
            2,
            growing.independence_figures,
            growing.independence_reading,
        ),
        Experiment(
            "memory",
            "Memory: the talk's sizing rule",
            "Is (model + batch * units) * 3 * 4 bytes * 1.5 for each executor what is needed?",
            _memory(),
            2,
            costing.memory_figures,
            costing.memory_reading,
        ),
        Experiment(
            "precision",
            "Precision: fewer bits on the wire",
            "What do formats of fewer bits save in bytes and time, and what do they cost in loss?",
            _precision(),
            2,
            learning.precision_figures,
            learning.precision_reading,
        ),
    )
}
