"""The project's own architecture: the model lives in the memory tier, and a coprocessor in the tier descends.

Workers pull and push through shared memory on the servers' host and by streams elsewhere; nothing of the size
of the model goes through the driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from coproc import parts
from coproc.client import Client, connect
from coproc.compression import Compression, from_config
from coproc.errors import ConfigError, CoprocError, ModelExists, ModelNotFound, Timeout, Unreachable
from coproc.exchange import Exchange, ExchangeSpec, Pulled, Spent
from coproc.layout import Flat
from coproc.model import Model, Snapshot, Worker
from coproc.modes.base import Capabilities, Costs, Mode, ModeSettings, ModeStatus, taken
from coproc.modes.driver import Driver
from coproc.parts import PartedModel
from coproc.pools.base import Pool
from coproc.tasks import WorkerReport, WorkerTask
from storage_tier.wire import trust

if TYPE_CHECKING:
    from coproc.near import Receipt

# How long it waits for an answer each time.
_ANSWER_S = 0.5
# How often a group looks whether its model went back to a checkpoint.
_LOOK_S = 1.0
# How long a group that begins or ends waits for a server that restarts, or restores the model.
_PATIENCE_S = 60.0

CAPABILITIES = Capabilities(
    consistencies=frozenset({"bsp", "quorum", "ssp", "asp"}),
    exactly_once=True,
    whole_versions=True,
    elastic=True,
    checkpoints=True,
    compression=True,
)


IN_PARTS = replace(
    CAPABILITIES, consistencies=frozenset({"bsp", "ssp", "asp"}), whole_versions=False, checkpoints=False
)
"""Of a model in parts: see `coproc.parts`."""


class CoprocMode(Driver):
    """Driver face: one model of one cluster."""

    capabilities = CAPABILITIES
    name = "coproc"

    def __init__(self, settings: ModeSettings) -> None:
        """Create the model, or restore it.

        Raises:
            ModelExists: another run has this name. CorruptCheckpoint: what is to be restored is no whole checkpoint.
            Unreachable, Unauthenticated, OutOfMemory: from the cluster.
        """
        super().__init__()
        self._settings = settings
        self._near = Spent()
        """Of the workers that share memory with the servers."""
        self.model, self._client = self._begin(settings)

    def _begin(self, settings: ModeSettings) -> tuple[Model | PartedModel, Client | PartedModel | None]:
        """(the model, what is closed in the end)."""
        client = connect(settings.address, token=settings.token, tls=trust(settings.tls_authority))
        try:
            return self._model(settings, client), client
        except ModelExists:
            client.close()
            raise taken(settings.model, settings.address, settings.token) from None
        except BaseException:
            client.close()
            raise

    @staticmethod
    def _model(settings: ModeSettings, client: Client) -> Model:
        if settings.restore is not None:
            return client.restore(
                settings.restore, name=settings.model, shards=settings.shards, checkpoint=settings.checkpoints
            )
        return client.create_model(
            settings.model,
            params=settings.params,
            optimizer=settings.optimizer,
            consistency=settings.consistency,
            shards=settings.shards,
            checkpoint=settings.checkpoints,
        )

    def exchange_spec(self) -> ExchangeSpec:
        settings = self._settings
        names = ("address", "token", "tls_authority", "model", "parts")
        plain = {name: getattr(settings, name) for name in names}
        compression = None if settings.compression is None else settings.compression.to_config()
        return ExchangeSpec("coproc", {**plain, "compression": compression})

    def group(self, pool: Pool, tasks: Sequence[WorkerTask], stop: Callable[[], bool]) -> list[WorkerReport]:
        """One job: the workers find the model by themselves.

        Should the model lose its memory meanwhile, it goes back to a checkpoint, and what tasks that were over had
        pushed since is missing: then all tasks run again, each from where the model says.
        """
        life = _Life(self.model)
        reports = self.job(pool, tasks, lambda: stop() or life.is_over())
        if stop() or not life.is_over(for_sure=True):
            return reports
        return [*(replace(report, stopped=False) for report in reports), *self.group(pool, tasks, stop)]

    def take(self, reports: Sequence[WorkerReport]) -> None:
        super().take(reports)
        for report in reports:
            if report.spent.local_bytes:
                self._near.add(report.spent)

    def snapshot(self, *, timeout_s: float) -> Pulled:
        return self.model.snapshot(timeout_s)

    def checkpoint(self, *, timeout_s: float) -> None:
        if not isinstance(self.model, Model):
            raise ConfigError("a model in parts writes no checkpoints")
        self.model.checkpoint(timeout_s=timeout_s)

    def set_learning_rate(self, learning_rate: float) -> None:
        """A record of the model's log: it takes effect at one version on all shards.

        A model that writes checkpoints writes one now. Should it lose its memory, it doesn't go back behind this
        moment, to a rate that nobody would set again.
        """
        self.model.set_learning_rate(learning_rate)
        if self._settings.checkpoints is not None:
            with suppress(CoprocError):  # no room there, say: as when it cannot write one by itself, training goes on
                self.checkpoint(timeout_s=_PATIENCE_S)

    def status(self) -> ModeStatus:
        """The server's counters. One round trip."""
        now = self.model.status()
        return ModeStatus(
            version=now.version,
            pushes_count=now.pushes_count,
            examples_count=now.examples_count,
            loss_sum=now.loss_sum,
            loss_examples_count=now.loss_examples_count,
            staleness_mean=now.staleness_mean,
            staleness_max=now.staleness_max,
            pushes_per_s=now.pushes_per_s,
        )

    def costs(self) -> Costs:
        """One round trip. What its first server has received and sent counts from that server's start on."""
        now = self.model.status()
        return replace(
            self.counted,
            server_in_bytes=now.received_bytes + self._near.out_bytes,
            server_out_bytes=now.sent_bytes + self._near.in_bytes,
            update_s=now.swept_s,
        )

    def close(self) -> None:
        """Delete the model, where its servers still answer, and let go of the cluster. Idempotent."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            self.model.status()  # a quick question first: to delete, the client would wait long for a server
            self.model.delete()
        except (ModelNotFound, Unreachable, Timeout):
            pass  # deleted by somebody else, or gone with its servers
        finally:
            client.close()


class _Life:
    """The time in which a model does not lose its memory. Thread-safe enough: who asks twice is told the same."""

    def __init__(self, model: Model | PartedModel) -> None:
        self._model = model
        self._epoch = self._ask(_PATIENCE_S)
        self._look_at_s = 0.0
        self._over = False

    def is_over(self, for_sure: bool = False) -> bool:
        """Whether the model went back to a checkpoint, as far as known: looked at once a second.

        Blocks for a second where its server is down.

        Args:
            for_sure: ask now, and again until the server answers.

        Raises:
            ModelNotFound. Unreachable, Timeout: `for_sure`, and it did not answer for a minute.
        """
        now = time.monotonic()
        if not self._over and (for_sure or now >= self._look_at_s):
            try:
                self._over = self._ask(_PATIENCE_S if for_sure else 0.0) != self._epoch
            except (Unreachable, Timeout):
                if for_sure:
                    raise
            self._look_at_s = time.monotonic() + _LOOK_S
        return self._over

    def _ask(self, patience_s: float) -> int:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return self._model.status(_ANSWER_S).epoch
            except (Unreachable, Timeout):
                if time.monotonic() >= deadline:
                    raise


@dataclass
class CoprocExchange:
    """Worker face: one attempt that has joined the model."""

    client: Client
    worker: Worker
    _near: Spent = field(default_factory=Spent)
    _open: bool = True

    @property
    def next_step(self) -> int:
        return self.worker.next_step

    @property
    def version(self) -> int:
        """Far it is 0, unknown: not worth a round trip at every push, for the server counts staleness too."""
        return self.worker.model.version if self.client.near else 0

    @property
    def spent(self) -> Spent:
        return self._near if self.client.near else Spent(*self.worker.travelled_bytes)

    def pull(self, *, timeout_s: float) -> Snapshot:
        snapshot = self.worker.pull(timeout_s=timeout_s)
        self._near.came(snapshot.flat.nbytes, local=True)
        return snapshot

    def gradient(self, *, timeout_s: float) -> Flat:
        return self.worker.gradient(timeout_s)

    def push(self, *, step: int, examples: int, loss: float, timeout_s: float, last: bool) -> Receipt:
        receipt = self.worker.push(
            step=step, examples=examples, loss=loss, timeout_s=timeout_s, finite=True, flush=last
        )
        self._near.went(self.worker.model.layout.size * 4, local=True)
        return receipt

    def skip(self, *, step: int, timeout_s: float) -> None:
        self.worker.skip(step, timeout_s)

    def leave(self) -> None:
        self.worker.leave()

    def close(self) -> None:
        """Give the slots back and close the connection. Idempotent."""
        if self._open:
            self._open = False
            try:
                self.worker.close()
            finally:
                self.client.close()

    def abort(self) -> None:
        """As `close`; that the cluster is gone is no news then."""
        try:
            self.close()
        except CoprocError:
            self.client.close()


class PartedMode(CoprocMode):
    """Driver face of a model in parts."""

    capabilities = IN_PARTS
    model: PartedModel

    def _begin(self, settings: ModeSettings) -> tuple[PartedModel, PartedModel]:
        """Raises ConfigError: what a model in parts has not. Else as `CoprocMode`."""
        if settings.restore is not None or settings.checkpoints is not None:
            raise ConfigError("a model in parts has no checkpoints: leave them out, or the parts")
        if settings.shards is not None:
            raise ConfigError("a model in parts has one on each server: leave out the number of shards, or the parts")
        model = parts.create(
            settings.address,
            settings.model,
            params=settings.params,
            optimizer=settings.optimizer,
            consistency=settings.consistency,
            token=settings.token,
            tls=trust(settings.tls_authority),
        )
        return model, model

    def costs(self) -> Costs:
        """Of all servers: whatever workers send and get is theirs. A round trip to each."""
        mine = self.counted
        return replace(
            mine,
            server_in_bytes=mine.worker_out_bytes,
            server_out_bytes=mine.worker_in_bytes,
            update_s=self.model.swept_s,
        )


def _join_parts(
    given: Mapping[str, Any], worker: int, compression: Compression | None, timeout_s: float
) -> parts.PartedWorker:
    model = parts.find(given["address"], given["model"], token=given["token"], tls=trust(given["tls_authority"]))
    try:
        return model.join(worker, compression=compression, timeout_s=timeout_s, to_its_end=True)
    except BaseException:
        model.close()
        raise


def start(settings: ModeSettings) -> Mode:
    """Create the run's model."""
    return PartedMode(settings) if settings.parts else CoprocMode(settings)


def open_exchange(spec: ExchangeSpec, worker: int, *, timeout_s: float) -> Exchange:
    """Join the run's model. A few round trips; the connection belongs to this process only."""
    given = spec.settings
    compression = None if given["compression"] is None else from_config(given["compression"])
    if given["parts"]:
        return _join_parts(given, worker, compression, timeout_s)
    client = connect(given["address"], token=given["token"], tls=trust(given["tls_authority"]))
    try:
        model = client.model(given["model"])
        return CoprocExchange(client, model.join(worker, compression=compression, timeout_s=timeout_s))
    except BaseException:
        client.close()
        raise
