"""What servers tell about themselves and their models at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ObserverStatus:
    """An observer on a directory, as one server runs it."""

    directory: str
    name: str
    """What it is called there."""
    observer: str
    """Which one it is, in the registry."""
    state: str
    """starting, running, restarting, quarantined or detached."""
    failure: str
    """The last one as a sentence; '' when there was none."""
    traceback: str
    delivered_count: int
    """Commits that it has acknowledged."""
    queued_count: int
    vetoed_count: int


@dataclass(frozen=True)
class TierFacts:
    """What one server does with blocks, files and observers."""

    server_id: str = ""
    block_count: int = 0
    block_bytes: int = 0
    spilled_count: int = 0
    spilled_bytes: int = 0
    evicted_count: int = 0
    """Blocks that were dropped to make room."""
    fetched_count: int = 0
    """Blocks that came from other servers."""
    loaded_count: int = 0
    """Blocks that came from under-stores."""
    waiting_count: int = 0
    """Files that wait to be persisted."""
    mounts: tuple[str, ...] = ()
    """Mount points with their URLs, without secrets."""
    failure: str = ""
    """Why it can change nothing, or what its upkeep failed with; '' when all is well."""
    observers: tuple[ObserverStatus, ...] = ()


@dataclass(frozen=True)
class ModelMemory:
    """What one model takes of one server's budget."""

    name: str
    memory_bytes: int
    shards_bytes: int
    """Of these for parameters and optimizer's state; the rest is for live attempts, and for the log."""


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
    tier: TierFacts = field(default_factory=TierFacts)
    models: tuple[ModelMemory, ...] = ()
    """Of all models that have a part there."""


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
    """On its first server; what it takes on each is told of the servers."""
    gradient_files_count: int = 0
    """Gradients that were committed as files and are not applied yet."""
    gradient_files_note: str = ""
    """Why the first of them waits; '' if none does."""
    checkpoint_version: int = -1
    """Of the last checkpoint since its server started; -1 if there was none."""
    checkpoint_failure: str = ""
    """Why the newest attempt to write one by itself failed; '' if it did not."""
    late_count: int = 0
    """Steps that came after their round was closed without them (`Quorum`)."""
    not_finite_count: int = 0
    """Steps whose gradient was not finite and was left out (``not_finite="skip"``)."""
    pending_count: int = 0
    """Committed steps whose slots are not free again: their descent, or their round, is to come."""
    blocked_count: int = 0
    """Live attempts that wait for a free slot now."""
    behind_server: str = ""
    """The server that these wait for, for its descent is the furthest behind; '' if nobody waits, or for other workers
    only."""
    received_bytes: int = 0
    """Of gradients, from workers on other hosts, as they travelled."""
    sent_bytes: int = 0
    """Of parameters, to these."""
    swept_s: float = 0.0
    """Seconds that its shards have spent in descent, added up, since its memory was made."""


@dataclass(frozen=True)
class ClusterStatus:
    """All servers of an address and their models."""

    servers: list[ServerStatus] = field(default_factory=list)
    models: list[ModelStatus] = field(default_factory=list)


def server_status(address: str, answer: Any) -> ServerStatus:
    """From the wire."""
    return ServerStatus(
        address,
        answer.header.epoch,
        answer.uptime_s,
        answer.memory_used_bytes,
        answer.memory_limit_bytes,
        tier=_tier_facts(answer.tier),
        models=tuple(ModelMemory(each.name, each.memory_bytes, each.shards_bytes) for each in answer.memory),
    )


def _tier_facts(tier: Any) -> TierFacts:
    return TierFacts(
        server_id=tier.server_id,
        block_count=tier.block_count,
        block_bytes=tier.block_bytes,
        spilled_count=tier.spilled_count,
        spilled_bytes=tier.spilled_bytes,
        evicted_count=tier.evicted_count,
        fetched_count=tier.fetched_count,
        loaded_count=tier.loaded_count,
        waiting_count=tier.waiting_count,
        mounts=tuple(tier.mounts),
        failure=tier.failure,
        observers=tuple(
            ObserverStatus(
                directory=one.directory,
                name=one.name,
                observer=one.observer,
                state=one.state,
                failure=one.failure,
                traceback=one.traceback,
                delivered_count=one.delivered_count,
                queued_count=one.queued_count,
                vetoed_count=one.vetoed_count,
            )
            for one in tier.observers
        ),
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
        gradient_files_count=m.gradient_files_count,
        gradient_files_note=m.gradient_files_note,
        checkpoint_version=m.checkpoint_version,
        checkpoint_failure=m.checkpoint_failure,
        late_count=m.late_count,
        not_finite_count=m.not_finite_count,
        pending_count=m.pending_count,
        blocked_count=m.blocked_count,
        behind_server=m.behind_server,
        received_bytes=m.received_bytes,
        sent_bytes=m.sent_bytes,
        swept_s=m.swept_s,
    )
