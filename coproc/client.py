"""The client: models by name, workers that pull and push. Shared memory on the servers' host, streams elsewhere."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coproc.consistency import Asp, Consistency
from coproc.errors import (
    ConfigError,
    CoprocError,
    LeaseExpired,
    ModelNotFound,
    PushRejected,
    Timeout,
    Unauthenticated,
    Unreachable,
    whole,
)
from coproc.far import FarWorker, pull
from coproc.layout import Flat, ParamLayout, as_tensors
from coproc.near import NearModel, NearWorker, Receipt
from coproc.optim import Optimizer
from coproc.shared.control import MAX_WORKERS
from coproc.shared.seats import Seat
from coproc.spec import MOST_EXAMPLES, MOST_STEPS, ModelSpec, ShardPlace, check_name
from coproc.status import ClusterStatus, ModelStatus, ServerStatus, model_status, server_status
from coproc.v1 import coproc_pb2 as pb
from coproc.v1 import coproc_pb2_grpc
from coproc.wire import ERRORS, as_coproc, chunks
from storage_tier import wire as tier_wire
from storage_tier.client import TierClient
from storage_tier.errors import TierError

log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 30.0


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


def connect(
    address: str,
    *,
    token: str | None = None,
    tls: tier_wire.TlsClient | None = None,
    near: bool | None = None,
    timeout_s: float = 10.0,
) -> Client:
    """A client of the servers at `address`, ``coproc://HOST:PORT[,HOST:PORT...]``. One round trip a server.

    Args:
        address: all servers; the first that is asked to create a model orders its log.
        token: what the servers were started with, if with one.
        tls: whom to trust, if the servers speak TLS.
        near: None finds out whether this process shares memory with the servers; False never uses it.
        timeout_s: how long to look for a server that answers.

    Raises:
        Unreachable: none answers. Unauthenticated: the token is missing or wrong. ConfigError: not an address.
    """
    client = Client(address, token, tls, near)
    try:
        client._find_out(timeout_s)
    except BaseException:
        client.close()
        raise
    return client


class Client:
    """Made by `connect`. Thread-safe; not to be used across a fork."""

    def __init__(self, address: str, token: str | None, tls: tier_wire.TlsClient | None, near: bool | None) -> None:
        try:
            servers = tier_wire.parse_address(address)
            self.address = tier_wire.format_address(servers)
            self._channels = [tier_wire.channel(host, port, token=token, tls=tls) for host, port in servers]
        except TierError as error:
            raise as_coproc(error) from None
        self._servers = [tier_wire.target(host, port) for host, port in servers]
        self._stubs = [coproc_pb2_grpc.CoprocessorStub(c) for c in self._channels]
        self._tiers = [TierClient(c, near=near) for c in self._channels]
        for tier, server in zip(self._tiers, self._servers, strict=True):
            tier.peer = server
        self._models: dict[str, Model] = {}
        self._lock = threading.Lock()
        self._closed = False
        self.near = False

    def _find_out(self, timeout_s: float) -> None:
        problems: list[str] = []
        answered = 0
        for tier in self._tiers:
            try:
                tier.status(timeout_s=timeout_s)
                self.near = tier.near and (self.near or not answered)
                answered += 1
            except TierError as error:
                known = as_coproc(error)
                if isinstance(known, Unauthenticated):
                    raise Unauthenticated(
                        f"{tier.peer} refuses: {error}; give the right one (token=…, --token, COPROC_TOKEN)"
                    ) from None
                if not isinstance(known, Unreachable | Timeout):
                    raise known from None
                problems.append(str(error))
        if not answered:
            raise Unreachable(f"nobody can be reached at {self.address}: {'; '.join(problems)}")

    @property
    def tier(self) -> TierClient:
        """Blocks of the first server's tier."""
        return self._tiers[0]

    def create_model(
        self,
        name: str,
        *,
        params: Mapping[str, NDArray[np.floating]],
        optimizer: Optimizer,
        consistency: Consistency | None = None,
        shards: int | None = None,
        slots: int | None = None,
        buffers: int | None = None,
        timeout_s: float = 60.0,
    ) -> Model:
        """Store a new model in the tier; version 0 is `params`, converted to float32. Atomic.

        Args:
            name: letters, digits, dots, dashes, underscores.
            params: first values by tensor name; their order is the order of the flat vector.
            optimizer: how the servers descend; from `coproc.optim`.
            consistency: `Bsp`, `Ssp` or `Asp` (the default).
            shards: ranges the vector is cut into, dealt to the servers in turn; by default one a server.
            slots: gradients one attempt may have in flight; each takes the size of the model.
            buffers: parameter buffers a shard.

        Raises:
            ModelExists, ConfigError, OutOfMemory, Unreachable.
        """
        self.check_open()
        consistency = Asp() if consistency is None else consistency
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(f"optimizer must be one of coproc.optim, not {type(optimizer).__name__}")
        if not isinstance(consistency, Consistency):
            raise ConfigError(f"consistency must be a Bsp, Ssp or Asp of coproc, not {consistency!r:.100}")
        for what, value, most in (("shards", shards, 1 << 20), ("slots", slots, 64), ("buffers", buffers, 16)):
            if value is not None:
                whole(what, value, 1, most)
        arrays = as_tensors(params)
        layout = ParamLayout.of(arrays)
        flat = np.empty(layout.size, np.float32)
        layout.fill(flat, arrays)
        if not np.isfinite(flat).all():
            raise ConfigError(f"the first parameters of model {name!r} are not all finite")
        # More slots for small models cost nothing and hide the wake-up; large ones are mostly copies of the model.
        default_slots = consistency.slots if layout.size < 1 << 20 else 2
        spec = ModelSpec(name, layout, optimizer, consistency, slots or default_slots, buffers or consistency.buffers)
        count = shards or min(len(self._servers), max(1, layout.size // 16))
        places = tuple(ShardPlace(lo, hi, "", "") for lo, hi in layout.shards(count))
        spec = ModelSpec(**{**vars(spec), "shards": places})

        def requests() -> Any:
            yield pb.CreateModelRequest(begin=pb.CreateModelBegin(spec_json=spec.to_json(), servers=self._servers))
            for chunk in chunks(flat):
                yield pb.CreateModelRequest(chunk=chunk)

        with ERRORS.translated(self._servers[0]):
            answer = self._stubs[0].CreateModel(requests(), timeout=timeout_s)
        return self._model(ModelSpec.from_json(answer.spec_json))

    def model(self, name: str) -> Model:
        """An existing model. One round trip, more if the first server doesn't know it or is down.

        Raises:
            ModelNotFound, Unreachable.
        """
        self.check_open()
        check_name(name)
        problem: CoprocError = ModelNotFound(f"there is no model {name!r}")
        for server, stub in zip(self._servers, self._stubs, strict=True):
            try:
                with ERRORS.translated(server):
                    answer = stub.GetModel(pb.GetModelRequest(name=name), timeout=_CALL_TIMEOUT_S)
                return self._model(ModelSpec.from_json(answer.spec_json))
            except (ModelNotFound, Unreachable) as error:
                problem = error
        raise problem

    def _model(self, spec: ModelSpec) -> Model:
        with self._lock:
            model = self._models.get(spec.identity)
            if model is None:
                model = self._models[spec.identity] = Model(self, spec, self._stub_of(spec.shards[0].server))
            return model

    def _stub_of(self, server: str) -> Any:
        try:
            return self._stubs[self._servers.index(server)]
        except ValueError:
            raise ConfigError(f"the model's first server is {server}; the address {self.address} lacks it") from None

    def models(self) -> list[str]:
        """Names of all models on the servers that answer, sorted.

        Raises:
            Unreachable: none answers.
        """
        self.check_open()
        names: set[str] = set()
        problems: list[Unreachable] = []
        for server, stub in zip(self._servers, self._stubs, strict=True):
            try:
                names.update(_list_models(server, stub))
            except Unreachable as error:
                problems.append(error)
        if len(problems) == len(self._servers):
            raise problems[0]
        return sorted(names)

    def status(self, timeout_s: float = 5.0) -> ClusterStatus:
        """Counters of all servers and models; a server that is down is an entry with its error. No waiting."""
        self.check_open()
        servers: list[ServerStatus] = []
        models: list[ModelStatus] = []
        for server, stub in zip(self._servers, self._stubs, strict=True):
            try:
                with ERRORS.translated(server):
                    answer = stub.GetStatus(pb.GetStatusRequest(), timeout=timeout_s)
            except (Unreachable, Timeout) as error:
                servers.append(ServerStatus(server, 0, 0.0, 0, 0, str(error)))
                continue
            servers.append(server_status(server, answer))
            models.extend(model_status(m) for m in answer.models)
        return ClusterStatus(servers, models)

    def close(self) -> None:
        """Let go of all models and connections. The models live on in the tier. Idempotent."""
        self._closed = True
        for model in self._models.values():
            model._release()
        self._models.clear()
        for tier in self._tiers:
            tier.close()
        for channel in self._channels:
            channel.close()

    def check_open(self) -> None:
        """Raises ConfigError if `close` was called."""
        if self._closed:
            raise ConfigError(f"this client of {self.address} was closed; connect again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _list_models(server: str, stub: Any) -> list[str]:
    names: list[str] = []
    more = True
    while more:
        with ERRORS.translated(server):
            request = pb.ListModelsRequest(after_name=names[-1] if names else "")
            answer = stub.ListModels(request, timeout=_CALL_TIMEOUT_S)
        names += answer.names
        more = answer.more
    return names


class Model:
    """A model in the tier. Made by `Client.create_model` and `Client.model`."""

    def __init__(self, client: Client, spec: ModelSpec, stub: Any) -> None:
        self.spec = spec
        self.name = spec.name
        self.layout = spec.layout
        self._client = client
        self._stub = stub
        self._peer = spec.shards[0].server
        self._lock = threading.Lock()
        self._mapped: NearModel | None = None
        self._reader: Seat | None = None

    @property
    def _near(self) -> NearModel | None:
        with self._lock:
            if self._mapped is None and self._client.near:
                try:
                    self._mapped = NearModel(self.spec)
                except TierError as error:
                    raise as_coproc(error) from None
            return self._mapped

    def _call(self, method: str, request: Any, timeout_s: float = _CALL_TIMEOUT_S) -> Any:
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

    @property
    def version(self) -> int:
        """The newest version that all shards have published. No wait; no round trip on the servers' host."""
        near = self._near
        if near is not None:
            near.check()
            return near.version()
        header = self._call("GetModel", pb.GetModelRequest(name=self.name)).header
        return int(header.version)

    def join(self, worker: int, *, slots: int | None = None, timeout_s: float = _CALL_TIMEOUT_S) -> Worker:
        """Become a live attempt of `worker`; continue at its `next_step`. One round trip.

        Another live attempt of the same worker goes on as well: the first commit of each step counts.

        Args:
            worker: which part of the data: 0, 1, 2, ... Never a task's attempt.
            slots: gradients in flight; by default the model's.

        Raises:
            ModelNotFound, ConfigError, OutOfMemory, Unreachable, Timeout.
        """
        self._client.check_open()
        worker = whole("a worker's number", worker, 0, MAX_WORKERS - 1)
        slots = whole("slots", slots, 1, 64) if slots is not None else 0
        near = self._near
        if near is None:
            return Worker(self, FarWorker(self.spec, self._stub, self._peer, worker, slots, timeout_s), None)
        request = pb.JoinRequest(
            name=self.name,
            kind=pb.SEAT_KIND_NEAR_WORKER,
            worker=worker,
            slots_count=slots,
            identity=self.spec.identity,
        )
        answer = self._call("Join", request, timeout_s)
        path = self.spec.seat_path(answer.seat, answer.generation)
        try:
            seat = Seat.take(path, answer.slots_count, self.layout.size)
        except TierError as error:
            raise as_coproc(error) from None
        return Worker(self, NearWorker(near, worker, seat, answer.next_step), (answer.seat, answer.generation))

    def snapshot(self, timeout_s: float = 30.0) -> Snapshot:
        """One whole version, copied: with all that was acknowledged before the call and can be admitted now."""
        deadline = time.monotonic() + timeout_s
        version = self._call("Settle", pb.SettleRequest(name=self.name, identity=self.spec.identity), timeout_s).version
        near = self._near
        left_s = max(0.0, deadline - time.monotonic())
        if near is None:
            request = pb.PullRequest(
                name=self.name, min_version=version, timeout_ms=int(left_s * 1000), identity=self.spec.identity
            )
            version, flat = pull(self._stub, self._peer, request, self.layout.size, left_s)
            return Snapshot(version, flat, self.layout)
        near.wait_version(version, left_s)
        out = np.empty(self.layout.size, np.float32)
        with self._lock:
            if self._reader is None:
                answer = self._call(
                    "Join", pb.JoinRequest(name=self.name, kind=pb.SEAT_KIND_NEAR_READER, identity=self.spec.identity)
                )
                self._reader = Seat.take(self.spec.seat_path(answer.seat, answer.generation), 0, 0)
            version = near.read_into(self._reader, out, max(0.0, deadline - time.monotonic()))
        out.flags.writeable = False
        return Snapshot(version, out, self.layout)

    def checkpoint(self, timeout_s: float = 60.0) -> str:
        """Write a snapshot's parameters as a safetensors block of the tier; returns its path. Whole or not at all."""
        from safetensors.numpy import save

        snapshot = self.snapshot(timeout_s)
        path = f"/models/{self.name}/checkpoints/{snapshot.version:012d}.safetensors"
        data = save(
            {k: np.ascontiguousarray(v) for k, v in snapshot.params.items()}, {"version": str(snapshot.version)}
        )
        try:
            if not self._client.tier.exists(path):
                self._client.tier.put(path, data, {"version": snapshot.version}, timeout_s=timeout_s)
        except TierError as error:
            raise as_coproc(error) from None
        return path

    def set_learning_rate(self, learning_rate: float) -> None:
        """Descend with another learning rate from the next admitted gradient on, on every shard alike."""
        self.spec.optimizer.with_learning_rate(learning_rate)
        request = pb.SetLearningRateRequest(name=self.name, learning_rate=learning_rate, identity=self.spec.identity)
        self._call("SetLearningRate", request)

    def status(self) -> ModelStatus:
        """Counters of this model. One round trip.

        Raises:
            ModelNotFound, Unreachable.
        """
        answer = self._call("GetStatus", pb.GetStatusRequest(), 5.0)
        for status in answer.models:
            if status.name == self.name:
                return model_status(status)
        raise ModelNotFound(f"model {self.name!r} was deleted")

    def delete(self) -> None:
        """End the model on all its servers and give its memory back. Who still uses it gets ModelNotFound."""
        request = pb.DeleteModelRequest(name=self.name, identity=self.spec.identity)
        self._call("DeleteModel", request, 60.0)
        self._client._models.pop(self.spec.identity, None)
        self._release()

    def _release(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            mapped.close()


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

    def pull(self, min_version: int = 0, timeout_s: float = 30.0, *, copy: bool = False) -> Snapshot:
        """The newest whole version that this worker may read; waits as the consistency says.

        `Bsp`: for the round of its last push. `Ssp`: while the slowest is too far behind. On the servers' host and
        with one shard it is a view of shared memory, valid until this worker's next push or pull.

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
    ) -> Receipt:
        """Commit a gradient. When it returns, the gradient survives SIGKILL of worker and server and counts once.

        Doesn't wait for the descent; waits for a free slot if all are in flight.

        Args:
            grads: tensors by name, copied into the next slot; None if the slot was filled already.
            step: the step it belongs to; by default `next_step`. One that is there already is dropped, with a
                receipt that says `duplicate`.
            examples: the number of examples that the gradient is the mean of; weights the mean of a `Bsp` round.
            loss: mean loss over them, for the progress display.

        Raises:
            PushRejected: not finite, other shapes, or a step later than `next_step`. Nothing was pushed.
            LeaseExpired, Timeout, ModelNotFound: not acknowledged.
        """
        self._check_open()
        step = self.next_step if step is None else whole("a step", step, 0, MOST_STEPS)
        whole("examples (skip() commits a step without a gradient)", examples, 1, MOST_EXAMPLES)
        finite = grads is not None and self._fill(grads, timeout_s)
        return self._attempt.commit(step, examples, loss, timeout_s, finite=finite)

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
        """
        self._attempt.release_view()
        request = pb.LeaveRequest(name=self.model.name, worker=self.worker, identity=self.model.spec.identity)
        self.model._call("Leave", request)

    def close(self) -> None:
        """Give view and slots back; what was pushed stays, the worker stays a member. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._attempt.close()
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
