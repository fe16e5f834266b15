"""What is tried, and what a trial leaves: plain values that travel as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Protocol


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

    prefetch: bool | None = None

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

    master: str | None = None
    """The Spark of this pool: local[2], or local-cluster[2,1,1024]; None: local, with a slot for each worker."""

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
    """epoch (1 the first), train_s since the first group began without the validations, train_loss (mean over the
    epoch's examples, each at the parameters of its step), and what was measured on the test data: loss, accuracy, …"""

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

    link: dict[str, dict[str, int]] | None = None
    """in_bytes and out_bytes of each emulated host's link, by the host's number, from the first group on."""


def labels(points: Iterable[Point]) -> dict[str, str]:
    """What to call each point, by its id: its label, or the contestant and what tells it from others."""
    told = list({point.id: point for point in points}.values())
    values = [asdict(point) for point in told]
    varied = [
        name
        for name in (each.name for each in fields(Point))
        if name not in ("contestant", "label") and len({repr(each[name]) for each in values}) > 1
    ]
    found: dict[str, str] = {}
    for point, each in zip(told, values, strict=True):
        peers = [other for other in values if other["contestant"] == point.contestant]
        own = [
            f"{name}={_word(each[name])}"
            for name in varied
            if each[name] is not None and (name == "workload" or len({repr(other[name]) for other in peers}) > 1)
        ]
        found[point.id] = point.label or " ".join([point.contestant, *own])
    return found


def _word(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Tell(Protocol):
    """What a contestant calls while it runs, as often as it likes; cheap, from any thread."""

    def __call__(self, phase: str, *, epoch: int = 0, steps: float = 0.0, loss: float | None = None) -> None:
        """`phase` in words ("starting Spark", "training", …); `epoch` 1 is the first; `steps` are done, of all
        workers by their number; `loss` of the last moments."""
        ...


def silent(phase: str, *, epoch: int = 0, steps: float = 0.0, loss: float | None = None) -> None:
    """Tells nobody."""
