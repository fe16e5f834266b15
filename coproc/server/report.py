"""What a server tells of itself: counters of its models, and what its tier does with blocks, files and observers."""

from __future__ import annotations

import time
from collections import deque

from coproc.observers.pushing import Pusher
from coproc.server.checkpoints import Checkpointing
from coproc.server.engine import Engine
from coproc.server.far import FarSessions
from coproc.server.models import Models
from coproc.server.sequencing import SequencerLoop
from coproc.shared.control import Kind, Presence
from coproc.v1 import coproc_pb2 as pb
from storage_tier.errors import TierError
from storage_tier.files import Files
from storage_tier.tier import Tier

# pushes/s is the mean over this many seconds, from samples that `sample` takes.
_RATE_OVER_S = 5.0


class Report:
    """Thread-safe; waits for nothing but the catalog."""

    def __init__(
        self,
        tier: Tier,
        models: Models,
        files: Files,
        pusher: Pusher,
        checkpoints: Checkpointing,
        sessions: FarSessions,
    ) -> None:
        self._tier = tier
        self._models = models
        self._files = files
        self._pusher = pusher
        self._checkpoints = checkpoints
        self._sessions = sessions
        self._rates: dict[str, deque[tuple[float, int]]] = {}
        self._started = time.monotonic()

    def answer(self) -> pb.GetStatusResponse:
        """All of it."""
        answer = pb.GetStatusResponse(
            header=pb.ResponseHeader(epoch=self._tier.epoch),
            uptime_s=time.monotonic() - self._started,
            memory_used_bytes=self._tier.budget.used_bytes,
            memory_limit_bytes=self._tier.budget.limit_bytes,
            tier=self._tier_status(),
        )
        for engine in self._models.all():
            if engine.sequencer is not None:
                answer.models.append(self._model_status(engine, engine.sequencer))
            answer.memory.append(
                pb.ModelMemory(
                    name=engine.spec.name,
                    memory_bytes=self._models.memory_bytes(engine),
                    shards_bytes=sum(self._tier.budget.charged_bytes(place.path) for place in engine.spec.shards),
                )
            )
        return answer

    def sample(self) -> None:
        """Called about once a second: for rates."""
        now = time.monotonic()
        for engine in self._models.all():
            if engine.sequencer is not None:
                samples = self._rates.setdefault(engine.spec.name, deque())
                samples.append((now, engine.sequencer.counters.pushes))
                while len(samples) > 1 and samples[0][0] < now - _RATE_OVER_S:
                    samples.popleft()

    def forget(self, name: str) -> None:
        """A model is deleted."""
        self._rates.pop(name, None)

    def _model_status(self, engine: Engine, sequencer: SequencerLoop) -> pb.ModelStatus:
        spec, c = engine.spec, sequencer.counters
        files_count, files_note = self._pusher.waiting(spec)
        checkpoint_version, checkpoint_failure = self._checkpoints.told(spec)
        pending, blocked = sequencer.waiting
        received_bytes, sent_bytes = self._sessions.moved(spec.identity)
        samples = self._rates.get(spec.name)
        rate = 0.0
        if samples and time.monotonic() > samples[0][0]:
            rate = (c.pushes - samples[0][1]) / (time.monotonic() - samples[0][0])
        return pb.ModelStatus(
            name=spec.name,
            epoch=engine.control.epoch,
            version=min(shard.version for shard in engine.shards),
            parameters_count=spec.layout.size,
            optimizer=spec.optimizer.name,
            consistency=spec.consistency.name,
            shards_count=len(spec.shards),
            workers_count=sum(p is Presence.JOINED for _, p, _, _ in engine.control.ledger()),
            seats_count=sequencer.seats_count,
            pushes_count=c.pushes,
            duplicates_count=c.duplicates,
            examples_count=c.examples,
            loss_sum=c.loss_sum,
            loss_examples_count=c.loss_examples,
            staleness_sum=c.staleness_sum,
            staleness_max=c.staleness_max,
            pushes_per_s=rate,
            waiting_for=sequencer.core.missing(),
            failure=engine.failure or "",
            memory_bytes=self._models.memory_bytes(engine),
            gradient_files_count=files_count,
            gradient_files_note=files_note,
            checkpoint_version=checkpoint_version,
            checkpoint_failure=checkpoint_failure,
            late_count=c.late,
            not_finite_count=c.not_finite,
            pending_count=pending,
            blocked_count=blocked,
            behind_server=_furthest_behind(engine) if blocked else "",
            received_bytes=received_bytes,
            sent_bytes=sent_bytes,
            swept_s=sum(shard.swept_s for shard in engine.shards),
        )

    def _tier_status(self) -> pb.TierStatus:
        blocks = self._tier.status()
        answer = pb.TierStatus(
            server_id=blocks.server_id,
            block_count=blocks.block_count,
            block_bytes=blocks.block_bytes,
            spilled_count=blocks.spilled_count,
            spilled_bytes=blocks.spilled_bytes,
        )
        try:
            files = self._files.status()
        except TierError as error:
            answer.failure = f"its catalog does not answer: {error}"
            return answer
        answer.evicted_count = files.evicted_count
        answer.fetched_count = files.fetched_count
        answer.loaded_count = files.loaded_count
        answer.waiting_count = files.persister.pending_count + files.persister.running_count
        answer.mounts.extend(f"{mount.path} ({mount.write_type.value}): {mount.url}" for mount in files.mounts)
        answer.failure = files.failure
        for one in files.attachments:
            answer.observers.append(
                pb.ObserverStatus(
                    directory=one["directory"],
                    name=one["called"],
                    observer=one["name"],
                    state=one["state"],
                    failure=one["failure"],
                    traceback=one["traceback"] or one["output"] if one["failure"] else "",
                    delivered_count=one["delivered_count"],
                    queued_count=one["queued_count"],
                    vetoed_count=one["vetoed_count"],
                )
            )
        return answer


def _furthest_behind(engine: Engine) -> str:
    """The server of the shard that has applied the least of the log; '' if all have applied all gradients in it."""
    applied = [shard.applied for shard in engine.shards]
    least = min(applied)
    left = engine.control.entries(least, engine.control.head)
    behind = any(entry.kind == Kind.DESCEND for entry in left)
    return engine.spec.shards[applied.index(least)].server if behind else ""
