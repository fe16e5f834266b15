"""A task, and what it tells when it is over: plain values, which travel as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from coproc.errors import ConfigError
from coproc.exchange import ExchangeSpec, Spent

# Longer than the 300 s a synchronous round waits for a lost worker: the server, who knows which worker is
# missing, is to speak first.
WAIT_TIMEOUT_S = 330.0


@dataclass(frozen=True)
class DataSpec:
    """Where a task finds its partition, and how it cuts it into batches."""

    address: str
    """Address of the tier, as `coproc://HOST:PORT`."""

    path: str
    """Path of the partition's file in the tier."""

    token: str | None = None
    tls_authority: str | None = None
    """A PEM file of whom to trust, on the worker's host, where the servers speak TLS."""
    batch_size: int = 128
    seed: int = 0
    scale: float = 1.0
    """Features are divided by this; 255 brings images of bytes to 0..1."""


@dataclass(frozen=True)
class WorkerTask:
    """What one task is to do. Names and numbers only; travels as JSON, a few hundred bytes."""

    run: str
    """Id of the run."""

    worker: int
    """The worker = the partition, 0-based. Never the attempt."""

    exchange: ExchangeSpec
    backend: Mapping[str, Any]
    """The spec of the gradient backend, as `coproc.grads.create` takes it."""

    data: DataSpec

    pushes_per_epoch: int
    """Pushes an epoch of this worker's count; where rounds are synchronous, the largest of all workers'."""

    until_step: int
    """The task ends when this step has been given: the end of a group."""

    end_step: int
    """Steps of the whole training: at its end the worker leaves."""

    n_fetch: int = 1
    """Batches from one pull to the next."""

    n_send: int = 1
    """Batches whose gradients are accumulated into one push."""

    prefetch: bool = False
    """Parameters are pulled while the gradient before is computed and pushed: see `coproc.prefetch`."""

    trace: bool = False
    """Tell each push in the report, not only sums."""

    leave_after_task: bool = False
    """Leave at the end of every task, not only of the last: for where a worker without a task would hold up
    the others."""

    timeout_s: float = WAIT_TIMEOUT_S

    def __post_init__(self) -> None:
        for name in ("pushes_per_epoch", "n_fetch", "n_send"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.until_step <= self.end_step:
            raise ConfigError(f"a task until step {self.until_step} of {self.end_step} has no sense")

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> WorkerTask:
        """The task written by `to_json`.

        Raises:
            ConfigError: a field is missing or unknown: two versions of coproc are at work.
        """
        parts = json.loads(text)
        known = {each.name for each in fields(cls)}
        if not isinstance(parts, dict) or not set(parts) <= known:
            raise ConfigError(
                "this task was written by another version of coproc; install the same one on the driver and "
                "on all executors"
            )
        try:
            return cls(
                **{
                    **parts,
                    "exchange": ExchangeSpec(**parts["exchange"]),
                    "data": DataSpec(**parts["data"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"this task was written by another version of coproc ({error}); install the same one on the "
                "driver and on all executors"
            ) from None


@dataclass
class EpochReport:
    """What one task did in one epoch. Sums, so that reports of several tasks add up."""

    epoch: int
    """0-based."""
    pushes: int = 0
    examples: int = 0
    loss_sum: float = 0.0
    """Sum of loss x examples of the pushes that are in the model."""
    duplicates: int = 0
    """Pushes of which another attempt's was taken."""
    skips: int = 0
    staleness_sum: int = 0
    """Sum over pushes of (newest version when pushed - version the gradient was computed at)."""
    staleness_max: int = 0
    pull_s: float = 0.0
    """Seconds in pulls and in waiting for a free slot: the waits for others are here."""
    compute_s: float = 0.0
    push_s: float = 0.0

    def add(self, other: EpochReport) -> None:
        """Add what another task did in the same epoch."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if each.name == "staleness_max":
                self.staleness_max = max(mine, theirs)
            elif each.name != "epoch":
                setattr(self, each.name, mine + theirs)


class Sample(NamedTuple):
    """One push, as the worker saw it."""

    step: int
    began_s: float
    """When the worker turned to it; of the monotonic clock of its host."""
    pull_s: float
    compute_s: float
    push_s: float
    examples: int
    loss: float
    """Mean over the examples."""
    staleness: int
    duplicate: bool


@dataclass(frozen=True)
class WorkerReport:
    """What one task did."""

    worker: int
    first_step: int
    next_step: int
    """The step another task would continue from."""
    epochs: tuple[EpochReport, ...]
    stopped: bool
    """It ended early because the driver asked."""
    wall_s: float
    """Seconds of the loop, opening of data and exchange included."""
    samples: tuple[Sample, ...] = ()
    """Of a task that is traced: its pushes, one after the other."""
    spent: Spent = field(default_factory=Spent)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> WorkerReport:
        parts = json.loads(text)
        epochs = tuple(EpochReport(**each) for each in parts["epochs"])
        samples = tuple(Sample(*each) for each in parts.get("samples", ()))
        return cls(**{**parts, "epochs": epochs, "samples": samples, "spent": Spent(**parts.get("spent", {}))})
