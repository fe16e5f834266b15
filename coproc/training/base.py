"""What a training plans, what it tells while it goes on, and what it leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coproc.grads.base import GradientBackend
from coproc.tasks import WorkerReport
from coproc.training.config import TrainConfig

Flat = NDArray[np.float32]


@dataclass(frozen=True)
class EpochRow:
    """A row of the history."""

    epoch: int
    """1 is the first."""
    learning_rate: float
    version: int
    """Of the model at the end of the epoch."""
    loss: float
    """Mean training loss over the epoch's examples, each at the parameters of its step; NaN if unknown."""
    metrics: Mapping[str, float]
    """Of the model at the end of the epoch: accuracy, auc, rmse, …, and its loss."""
    measured_on: str
    """"validation", or "training sample" where no validation data were given."""
    examples: int
    examples_per_s: float
    pushes: int
    duplicates: int
    """Pushes of attempts that were not the first."""
    staleness_mean: float
    staleness_max: int
    train_s: float
    validate_s: float
    pull_s: float
    """Sum over workers of seconds in pulls, waits for others included."""
    compute_s: float
    push_s: float
    group_size: int = 0
    """Pushes of a task, the most of one worker."""

    def to_json_values(self) -> dict[str, Any]:
        """A flat row: the metrics as columns of their own."""
        row = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "metrics"}
        row["loss"] = None if math.isnan(self.loss) else self.loss
        prefix = "validation_" if self.measured_on == "validation" else "sample_"
        measured = {("accuracy" if k == "accuracy" else prefix + k): v for k, v in self.metrics.items()}
        return {**row, **measured}


@dataclass(frozen=True)
class Progress:
    """What a run tells, a few times a second and at each end of an epoch."""

    phase: str
    """What is being done now, in words."""
    epoch: int = 0
    """The epoch at work; 1 is the first."""
    epochs: int = 0
    done: float = 0.0
    """Share of the epoch's examples that are in the model."""
    loss: float = float("nan")
    """Mean training loss of the last moments."""
    examples_per_s: float = 0.0
    staleness_mean: float = 0.0
    version: int = 0
    row: EpochRow | None = None
    """The history's new row, when an epoch has just ended."""


@dataclass(frozen=True)
class Group:
    """What one group of tasks was, as the driver saw it."""

    epoch: int
    """0 is the first, and so of the groups of an epoch."""
    group: int
    began_s: float
    """Of the monotonic clock of the driver's host."""
    ended_s: float
    reports: tuple[WorkerReport, ...]
    steps: int = 0
    """Pushes of a worker, of whoever had the most to do."""


@dataclass(frozen=True)
class Plan:
    """A training that can work: all numbers are fixed, nothing has started."""

    config: TrainConfig
    run: str
    backend: GradientBackend
    scale: float
    partition_rows: tuple[int, ...]
    pushes_per_epoch: tuple[int, ...]
    """Of each worker. Where rounds are synchronous all are equal; 0 for a worker that has nothing to do."""

    @property
    def rows_count(self) -> int:
        return sum(self.partition_rows)

    @property
    def most_pushes(self) -> int:
        """An epoch's, of the worker who has the most."""
        return max(self.pushes_per_epoch)

    def until_step(self, worker: int, epoch: int, end: int) -> int:
        """The step of a worker at which a group ends that goes to push `end` of an epoch, or to the epoch's end."""
        pushes = self.pushes_per_epoch[worker]
        return epoch * pushes + min(end, pushes)


@dataclass(frozen=True, repr=False)
class Result:
    """A trained model."""

    params: dict[str, Flat]
    """Tensors by name: layers.0.weight of shape (in, out), layers.0.bias, …"""
    history: list[dict[str, Any]]
    """A row an epoch."""
    version: int
    backend: GradientBackend
    """Predicts: `result.predict(features)`."""
    scale: float
    output: str | None
    """The directory with model.safetensors, history.jsonl and run.json."""
    run: str
    wall_s: float
    interrupted: bool
    """It was stopped before its last epoch."""

    def __repr__(self) -> str:
        parts = [f"run={self.run!r}", f"{self.backend.layout.size:,} parameters", f"version {self.version}"]
        parts.append(f"{len(self.history)} epoch{'s' if len(self.history) != 1 else ''}")
        last = self.history[-1] if self.history else {}
        parts += [f"{name} {last[name]:.4g}" for name in ("loss", "accuracy") if name in last]
        parts += ["interrupted"] * self.interrupted
        return f"Result({', '.join(parts)}, output={self.output!r})"

    def predict(self, features: NDArray[Any]) -> Flat:
        """Class probabilities or values (n, outputs) of raw features (n, d)."""
        flat = np.concatenate([tensor.reshape(-1) for tensor in self.params.values()])
        return self.backend.predict(flat, features, scale=self.scale)
