"""What servers tell about themselves and their models at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ServerStatus:
    """One server."""

    address: str
    epoch: int
    """Count of its starts."""
    uptime_s: float
    memory_used_bytes: int
    memory_limit_bytes: int
    error: str = ""
    """Why it can't be asked; then the rest is zero."""


@dataclass(frozen=True)
class ModelStatus:
    """One model. Counters count since its server started."""

    name: str
    epoch: int
    version: int
    parameters_count: int
    optimizer: str
    consistency: str
    shards_count: int
    workers_count: int
    """Workers that have joined and not left."""
    seats_count: int
    """Live attempts and readers."""
    pushes_count: int
    duplicates_count: int
    examples_count: int
    loss_sum: float
    """Sum of loss x examples over the pushes that told their loss."""
    loss_examples_count: int
    """Examples behind `loss_sum`."""
    staleness_mean: float
    """Versions that a gradient was behind when it was descended."""
    staleness_max: int
    pushes_per_s: float
    waiting_for: tuple[int, ...]
    """Workers that a synchronous round waits for."""
    failure: str
    """Why it takes no gradients any more; empty if it does."""
    memory_bytes: int


@dataclass(frozen=True)
class ClusterStatus:
    """All servers of an address and their models."""

    servers: list[ServerStatus] = field(default_factory=list)
    models: list[ModelStatus] = field(default_factory=list)


def server_status(address: str, answer: Any) -> ServerStatus:
    """From the wire."""
    return ServerStatus(
        address, answer.header.epoch, answer.uptime_s, answer.memory_used_bytes, answer.memory_limit_bytes
    )


def model_status(m: Any) -> ModelStatus:
    """From the wire."""
    return ModelStatus(
        name=m.name,
        epoch=m.epoch,
        version=m.version,
        parameters_count=m.parameters_count,
        optimizer=m.optimizer,
        consistency=m.consistency,
        shards_count=m.shards_count,
        workers_count=m.workers_count,
        seats_count=m.seats_count,
        pushes_count=m.pushes_count,
        duplicates_count=m.duplicates_count,
        examples_count=m.examples_count,
        loss_sum=m.loss_sum,
        loss_examples_count=m.loss_examples_count,
        staleness_mean=m.staleness_sum / max(1, m.pushes_count),
        staleness_max=m.staleness_max,
        pushes_per_s=m.pushes_per_s,
        waiting_for=tuple(m.waiting_for),
        failure=m.failure,
        memory_bytes=m.memory_bytes,
    )
