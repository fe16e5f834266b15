"""A model in the tier, and the workers that pull and push: through shared memory where they can, else by streams."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from coproc.checkpoint import Value
from coproc.compression import Compression, as_compression
from coproc.errors import (
    ConfigError,
    CoprocError,
    LeaseExpired,
    ModelNotFound,
    PushRejected,
    Unreachable,
    whole,
)
from coproc.far import FarWorker, pull
from coproc.layout import Flat, ParamLayout, as_tensors
from coproc.mapped import Mapped
from coproc.near import NearModel, NearWorker, Receipt
from coproc.shared.control import MAX_WORKERS
from coproc.shared.seats import Seat
from coproc.spec import MOST_EXAMPLES, MOST_STEPS, ModelSpec
from coproc.status import ModelStatus, model_status
from coproc.v1 import coproc_pb2 as pb
from coproc.wire import ERRORS, as_coproc
from storage_tier.errors import TierError

if TYPE_CHECKING:
    from storage_tier.client import TierClient
    from storage_tier.line import Lines

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Snapshot:
    """One whole version of a model."""

    version: int
    flat: Flat
    """(P,) read-only. From `Worker.pull` it may be a view, valid until that worker's next push or pull."""
    layout: ParamLayout

    @cached_property
    def params(self) -> dict[str, Flat]:
        """The tensors by name: read-only views of `flat`."""
        return self.layout.views(self.flat)


class Connection(Protocol):
    """What a model needs of the client it belongs to."""

    near: bool
    """Whether this process shares memory with the servers."""

    @property
    def tier(self) -> TierClient: ...

    def new_lines(self, server: str) -> Lines | None:
        """Lines to one of the servers, that the caller closes; None where there are none."""
        ...

    def check_open(self) -> None:
        """Raises ConfigError if it was closed."""
        ...

    def forget(self, model: Model) -> None:
        """The model is deleted."""
        ...


class Model:
    """A model in the tier. Made by `Client.create_model` and `Client.model`."""

    def __init__(self, client: Connection, spec: ModelSpec, stub: Any) -> None:
        self.name = spec.name
        self.layout = spec.layout
        self._client = client
        self._stub = stub
        self._peer = spec.shards[0].server
        self._memory = Mapped(spec, self._get_model)

    @property
    def spec(self) -> ModelSpec:
        """What it is, and where."""
        return self._memory.spec

    @property
    def _near(self) -> NearModel | None:
        return self._memory.near if self._client.near else None

    def _get_model(self, timeout_s: float, again: bool) -> Any:
        request = pb.GetModelRequest(name=self.name)
        if again:
            return self._call("GetModel", request, timeout_s)
        with ERRORS.translated(self._peer):
            return self._stub.GetModel(request, timeout=timeout_s)

    def _call(self, method: str, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Ask the model's sequencer; while it restarts, again and again until the time is over."""
        self._client.check_open()
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with ERRORS.translated(self._peer):
                    return getattr(self._stub, method)(request, timeout=max(0.001, deadline - time.monotonic()))
            except Unreachable:
                if time.monotonic() + 0.1 > deadline:
                    raise
                time.sleep(0.1)

    def _new_lines(self) -> Lines | None:
        try:
            return self._client.new_lines(self._peer)
        except TierError as error:
            raise as_coproc(error) from None

    @property
    def version(self) -> int:
        """The newest version that all shards have published. No wait; no round trip on the servers' host."""
        near = self._near
        if near is not None:
            near.check()
            return near.version()
        header = self._call("GetModel", pb.GetModelRequest(name=self.name)).header
        return int(header.version)

    def join(
        self,
        worker: int,
        *,
        slots: int | None = None,
        compression: Compression | str | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Worker:
        """Become a live attempt of `worker`; continue at its `next_step`. One round trip.

        Another live attempt of the same worker goes on as well: the first commit of each step counts.

        Args:
            worker: which part of the data: 0, 1, 2, ... Never a task's attempt.
            slots: gradients in flight; by default the model's.
            compression: of gradients and parameters between hosts, by name ("fp16", "bf16", "int8", "topk") or one of
                `coproc.compression`. What it leaves out is sent later. Shared memory needs none and ignores it.

        Raises:
            ModelNotFound, ConfigError, OutOfMemory, Unreachable, Timeout.
        """
        self._client.check_open()
        worker = whole("a worker's number", worker, 0, MAX_WORKERS - 1)
        slots = whole("slots", slots, 1, 64) if slots is not None else 0
        chosen = as_compression(compression)
        near = self._near
        if near is None:
            far = FarWorker(self.spec, self._stub, self._peer, worker, slots, timeout_s, chosen, self._new_lines)
            return Worker(self, far, None)
        request = pb.JoinRequest(
            name=self.name,
            kind=pb.SEAT_KIND_NEAR_WORKER,
            worker=worker,
            slots_count=slots,
            identity=self.spec.identity,
        )
        answer = self._call("Join", request, timeout_s)
        near = self._memory.at(answer.header.epoch)
        path = self.spec.seat_path(answer.seat, answer.generation)
        try:
            seat = Seat.take(path, answer.slots_count, self.spec.slot_floats)
        except TierError as error:
            raise as_coproc(error) from None
        return Worker(self, NearWorker(near, worker, seat, answer.next_step), (answer.seat, answer.generation))

    def snapshot(self, timeout_s: float = 30.0) -> Snapshot:
        """One whole version, copied: with all that was acknowledged before the call and can be admitted now."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._snapshot(deadline)
            except LeaseExpired:  # the model went back to a checkpoint meanwhile
                if time.monotonic() >= deadline:
                    raise

    def _snapshot(self, deadline: float) -> Snapshot:
        settle = pb.SettleRequest(name=self.name, identity=self.spec.identity)
        answer = self._call("Settle", settle, max(0.0, deadline - time.monotonic()))
        version = answer.version
        left_s = max(0.0, deadline - time.monotonic())
        out = np.empty(self.layout.size, np.float32)
        if not self._client.near:
            request = pb.PullRequest(
                name=self.name, min_version=version, timeout_ms=int(left_s * 1000), identity=self.spec.identity
            )
            version = pull(self._stub, self._peer, request, out, left_s)
        else:
            near = self._memory.at(answer.header.epoch)
            near.wait_version(version, left_s)
            reader = pb.JoinRequest(name=self.name, kind=pb.SEAT_KIND_NEAR_READER, identity=self.spec.identity)
            version = self._memory.read_into(near, out, lambda: self._call("Join", reader), deadline)
        out.flags.writeable = False
        return Snapshot(version, out, self.layout)

    def checkpoint(self, metadata: Mapping[str, Value] | None = None, timeout_s: float = 60.0) -> str:
        """Write the newest version, with all that is needed to go on from it, as a file of the tier; its path.

        Whole or not at all. All that was acknowledged before the call, and can be admitted, is in it. Pushes go on;
        descent stops for one copy of parameters and state. The file is a safetensors file, and goes to the under-store
        if its directory is below a mount. `Client.restore` makes a model of it.

        Args:
            metadata: strings, numbers, bools and None by name, kept in the file and with it.

        Raises:
            Timeout, OutOfMemory, ModelNotFound, Unreachable, ServerError; ConfigError: not such metadata.
        """
        try:
            text = json.dumps(dict(metadata or {}), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"metadata of a checkpoint are strings, numbers, bools and None: {error}") from None
        request = pb.CheckpointRequest(
            name=self.name, metadata_json=text, timeout_ms=int(timeout_s * 1000), identity=self.spec.identity
        )
        return str(self._call("Checkpoint", request, timeout_s + 5).path)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Descend with another learning rate from the next admitted gradient on, on every shard alike."""
        self.spec.optimizer.with_learning_rate(learning_rate)
        request = pb.SetLearningRateRequest(name=self.name, learning_rate=learning_rate, identity=self.spec.identity)
        self._call("SetLearningRate", request)

    def status(self, timeout_s: float = 5.0) -> ModelStatus:
        """Counters of this model. One round trip.

        Raises:
            ModelNotFound; Unreachable: also while it is being restored.
        """
        for _ in range(2):
            answer = self._call("GetStatus", pb.GetStatusRequest(), timeout_s)
            for status in answer.models:
                if status.name == self.name:
                    return model_status(status)
            # Deleted; or its memory was lost, and it is there in a moment.
            self._call("GetModel", pb.GetModelRequest(name=self.name), timeout_s)
        raise ModelNotFound(f"model {self.name!r} was deleted")

    def delete(self) -> None:
        """End the model on all its servers and give its memory back. Who still uses it gets ModelNotFound."""
        request = pb.DeleteModelRequest(name=self.name, identity=self.spec.identity)
        self._call("DeleteModel", request, 60.0)
        self._client.forget(self)
        self.release()

    def release(self) -> None:
        """Unmap, and give the reader's seat back. Idempotent."""
        self._memory.release()


class Worker:
    """One live attempt of a worker. Made by `Model.join`; used by one thread; a context manager that closes."""

    def __init__(self, model: Model, attempt: NearWorker | FarWorker, seat: tuple[int, int] | None) -> None:
        self.model = model
        self.worker = attempt.worker
        self._attempt = attempt
        self._seat = seat
        self._open = True

    @property
    def next_step(self) -> int:
        """The step to push next: 0, 1, 2, ... without holes, whatever attempts there were."""
        return self._attempt.next_step

    def use_memory(self, pulled: Flat, gradient: Flat) -> None:
        """On another host than the servers: receive into `pulled`, and send from `gradient`, (P,) each.

        On theirs nothing: there a pull is a view, and a gradient is born in shared memory.
        """
        if isinstance(self._attempt, FarWorker):
            self._attempt.use_memory(pulled, gradient)

    @property
    def travelled_bytes(self) -> tuple[int, int]:
        """(of parameters that came, of gradients that went) by the wire so far; without headers. Near nothing does."""
        attempt = self._attempt
        return (attempt.received_bytes, attempt.sent_bytes) if isinstance(attempt, FarWorker) else (0, 0)

    def pull(self, min_version: int = 0, timeout_s: float = 30.0, *, copy: bool = False) -> Snapshot:
        """The newest whole version that this worker may read; waits as the consistency says.

        `Bsp`, `Quorum`: for the round of its last push. `Ssp`: while the slowest is too far behind. On the servers'
        host and with one shard it is a view of shared memory, valid until this worker's next push or pull.

        Args:
            min_version: wait for this version.
            timeout_s: how long.
            copy: get memory of one's own, valid until the next pull.

        Raises:
            Timeout, WorkerLost, LeaseExpired, ModelNotFound.
        """
        self._check_open()
        version, flat = self._attempt.pull(min_version, timeout_s, copy)
        return Snapshot(version, flat, self.model.layout)

    def gradient(self, timeout_s: float = 30.0) -> Flat:
        """The next slot as one flat (P,) float32 array; waits for a free one. Fill all of it, then `push(step=…)`."""
        self._check_open()
        return self._attempt.slot(timeout_s)

    def gradients(self, timeout_s: float = 30.0) -> dict[str, Flat]:
        """The next slot as tensors by name: writable views. Fill them all, then `push(step=…)`."""
        self._check_open()
        return self.model.layout.views(self._attempt.slot(timeout_s))

    def push(
        self,
        grads: Mapping[str, NDArray[np.floating]] | None = None,
        *,
        step: int | None = None,
        examples: int = 1,
        loss: float = math.nan,
        timeout_s: float = 30.0,
        finite: bool = False,
        flush: bool = False,
    ) -> Receipt:
        """Commit a gradient. When it returns, the gradient survives SIGKILL of worker and server and counts once.

        Doesn't wait for the descent; waits for a free slot if all are in flight.

        Args:
            grads: tensors by name, copied into the next slot; None if the slot was filled already.
            step: the step it belongs to; by default `next_step`. One that is there already is dropped, with a
                receipt that says `duplicate`.
            examples: the number of examples that the gradient is the mean of; weights the mean of a round.
            loss: mean loss over them, for the progress display.
            finite: the slot was filled with numbers that are known to be finite (a backend of `coproc.grads` gives a
                finite loss only then), and is not looked at again.
            flush: where the worker has a compression, send this gradient without, and with all that was left out so
                far: before the attempt ends, for what it has left out ends with it.

        Raises:
            PushRejected: not finite, other shapes, or a step later than `next_step`. Nothing was pushed.
            LeaseExpired, Timeout, ModelNotFound: not acknowledged.
        """
        attempt = self._attempt
        step, finite = self._prepare(grads, step, examples, timeout_s, finite)
        if isinstance(attempt, FarWorker):
            return attempt.commit(step, examples, loss, timeout_s, flush=flush)
        return attempt.commit(step, examples, loss, timeout_s, finite=finite)

    def push_pull(
        self,
        grads: Mapping[str, NDArray[np.floating]] | None = None,
        *,
        step: int | None = None,
        examples: int = 1,
        loss: float = math.nan,
        min_version: int = 0,
        timeout_s: float = 30.0,
        finite: bool = False,
        flush: bool = False,
        copy: bool = False,
    ) -> tuple[Receipt, Snapshot]:
        """`push`, then `pull`, with what both promise; by gRPC one call and one round trip for both.

        Arguments and errors are theirs; `timeout_s` is for both together. Once the gradient is committed, `next_step`
        is beyond its step and an error of the pull says so: don't push it again (it would be dropped), but `pull`.
        """
        deadline = time.monotonic() + timeout_s
        attempt = self._attempt
        step, finite = self._prepare(grads, step, examples, timeout_s, finite)
        left_s = max(0.0, deadline - time.monotonic())
        try:
            if isinstance(attempt, FarWorker):
                receipt, version, flat = attempt.push_pull(step, examples, loss, min_version, left_s, flush=flush)
            else:
                receipt = attempt.commit(step, examples, loss, left_s, finite=finite)
                version, flat = attempt.pull(min_version, max(0.0, deadline - time.monotonic()), copy)
        except CoprocError as error:
            if attempt.next_step <= step:
                raise
            raise type(error)(f"step {step} is committed, and could not be followed by a pull: {error}") from error
        return receipt, Snapshot(version, flat, self.model.layout)

    def _prepare(
        self,
        grads: Mapping[str, NDArray[np.floating]] | None,
        step: int | None,
        examples: int,
        timeout_s: float,
        finite: bool,
    ) -> tuple[int, bool]:
        """The step to push, and whether the gradient in the slot is known to be finite."""
        self._check_open()
        step = self._attempt.next_step if step is None else whole("a step", step, 0, MOST_STEPS)
        whole("examples (skip() commits a step without a gradient)", examples, 1, MOST_EXAMPLES)
        return step, finite if grads is None else self._fill(grads, timeout_s)

    def _fill(self, grads: Mapping[str, NDArray[np.floating]], timeout_s: float) -> bool:
        try:
            return self.model.layout.fill(self._attempt.slot(timeout_s), as_tensors(grads))
        except ConfigError as error:
            raise PushRejected(f"worker {self.worker} pushes what is no gradient of its model: {error}") from None

    def _check_open(self) -> None:
        if not self._open:
            raise LeaseExpired(f"worker {self.worker} of model {self.model.name!r} was closed; join again")

    def skip(self, step: int | None = None, timeout_s: float = 30.0) -> Receipt:
        """Commit a step without a gradient, so that rounds go on: for shorter and empty partitions."""
        self._check_open()
        step = self.next_step if step is None else whole("a step", step, 0, MOST_STEPS)
        return self._attempt.skip(step, timeout_s)

    def leave(self) -> None:
        """This worker has no more data: nobody waits for it any more. Joining again makes it a member again.

        What it has pushed goes into the rounds that are open then. Gives the view of the last pull back.

        Raises:
            LeaseExpired: the model went back to a checkpoint, and may have steps of this worker to get again.
        """
        self._attempt.release_view()
        model, attempt = self.model, self._attempt
        life = attempt.model.control.epoch if isinstance(attempt, NearWorker) else attempt.epoch
        # Before and after: its last pushes may have gone with memory that was lost before, or is lost meanwhile.
        model._memory.check(life, model._get_model(CALL_TIMEOUT_S, True))
        request = pb.LeaveRequest(name=model.name, worker=self.worker, identity=model.spec.identity)
        model._memory.check(life, model._call("Leave", request))

    def close(self) -> None:
        """Give view and slots back; what was pushed stays, the worker stays a member. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._attempt.close()
        attempt = self._attempt
        if isinstance(attempt, NearWorker) and attempt.model.is_lost():
            return  # its seat went with the model's memory, and its number may be another attempt's by now
        if self._seat is not None:
            request = pb.CloseRequest(
                name=self.model.name,
                seat=self._seat[0],
                generation=self._seat[1],
                identity=self.model.spec.identity,
            )
            try:
                with ERRORS.translated(self.model._peer):
                    self.model._stub.Close(request, timeout=5)
            except (CoprocError, ValueError) as error:  # no server, no model, or the client was closed before
                log.debug("worker %d lets its server see by the lock that it is closed: %s", self.worker, error)

    abort = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
