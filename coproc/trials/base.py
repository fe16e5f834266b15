"""What is tried, and what a trial leaves: plain values that travel as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Point:
    """One contestant on one piece of work. A field that is None is the contestant's or the workload's own default."""

    contestant: str
    """A mode, or the name of a file of `coproc.contestants`."""

    workload: str = "mnist"

    workers: int = 2

    servers: int = 1

    batch_size: int = 128

    consistency: str = "bsp"

    bound: int | None = None

    quorum: int | None = None

    n_send: int = 1

    group_size: int | Literal["auto"] | None = None

    tau: int | None = None

    combine: str | None = None

    preset: str | None = None

    compression: str | None = None

    storage_url: str | None = None

    optimizer: str = "adam"

    learning_rate: float | None = None

    schedule: str = "constant"

    hidden: tuple[int, ...] | None = None

    epochs: int = 1

    rows: int | None = None
    """Of the training data, the first ones; None: all."""

    rows_per_worker: int | None = None
    """Instead of `rows`: the data grow with the workers."""

    pool: str = "spark"

    seed: int = 0

    target_loss: float | None = None

    target_accuracy: float | None = None

    label: str | None = None
    """What a report calls it; None: the contestant and what sets it apart."""

    hosts: int | None = None
    """Emulated hosts; None: this one."""

    link: str | None = None
    """Of each of these hosts, as tc writes rates: 1gbit."""

    delay: str | None = None

    emulate_compute: bool = False
    """Gradients are a calibrated wait: what is measured is the exchange."""

    slow_host: float | None = None
    """So many times slower the first host computes."""

    def __post_init__(self) -> None:
        if self.hidden is not None:
            object.__setattr__(self, "hidden", tuple(self.hidden))

    @property
    def id(self) -> str:
        """12 hex digits that are the same for the same settings."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json_values(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Run:
    """What a contestant has measured of itself. Times are of the machine's monotonic clock."""

    groups: list[tuple[int, int, float, float]] = field(default_factory=list)
    """(epoch, group, began_s, ended_s): trainings without a pause for validation."""

    samples: list[tuple[Any, ...]] = field(default_factory=list)
    """(worker, step, began_s, pull_s, compute_s, push_s, examples, loss, staleness) of each gradient."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    """epoch (1 the first), train_s since the first group began without the validations, loss, and what was measured on
    the test data: accuracy, auc, …"""

    costs: dict[str, float] = field(default_factory=dict)
    """As `coproc.modes.base.Costs`; what is not there nobody has counted."""

    parameters: int = 0

    version: int = 0

    checksum: str = ""

    memory: dict[str, int] = field(default_factory=dict)
    """Peak bytes by role, where the contestant knows its processes better than whoever started it."""

    notes: list[str] = field(default_factory=list)
    """What a reader has to know."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the libraries at work."""
