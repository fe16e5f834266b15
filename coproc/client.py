"""The client: finds servers, creates and finds models by name, tells how they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from coproc.consistency import Asp, Consistency
from coproc.errors import ConfigError, CoprocError, ModelNotFound, Timeout, Unauthenticated, Unreachable, whole
from coproc.layout import ParamLayout, as_tensors
from coproc.model import CALL_TIMEOUT_S, Model
from coproc.optim import Optimizer
from coproc.spec import Checkpoints, ModelSpec, ShardPlace, check_name
from coproc.status import ClusterStatus, ModelStatus, ServerStatus, model_status, server_status
from coproc.v1 import coproc_pb2 as pb
from coproc.wire import ERRORS, as_coproc, chunks, service_stub
from storage_tier import wire as tier_wire
from storage_tier.errors import TierError

if TYPE_CHECKING:
    from storage_tier.client import TierClient
    from storage_tier.line import Lines

# How soon a server is asked again that does not answer yet.
AGAIN_S = 0.1


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
        # Here, and not above: what only imports this package pays nothing for it.
        from storage_tier.client import TierClient

        try:
            servers = tier_wire.parse_address(address)
            self.address = tier_wire.format_address(servers)
            self._channels = [tier_wire.channel(host, port, token=token, tls=tls) for host, port in servers]
        except TierError as error:
            raise as_coproc(error) from None
        self._servers = [tier_wire.target(host, port) for host, port in servers]
        self._stubs = [service_stub(c) for c in self._channels]
        self._tiers = [TierClient(self.address, token, tls, near, index) for index in range(len(servers))]
        self._tier = self._tiers[0]
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
                # Any server answers for any file: the one on this host, else the first that answers.
                if not answered or (tier.near and not self._tier.near):
                    self._tier = tier
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
        """Files of the tier, through the server on this host where there is one."""
        return self._tier

    def new_lines(self, server: str) -> Lines | None:
        """Lines to one of the servers, that the caller closes; None where there are none. One round trip.

        Raises:
            storage_tier.errors.Unreachable, storage_tier.errors.DeadlineExceeded.
        """
        return self._tiers[self._servers.index(server)].new_lines(CALL_TIMEOUT_S)

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
        not_finite: Literal["reject", "skip"] = "reject",
        checkpoint: Checkpoints | None = None,
        memory_limit_bytes: int | None = None,
        timeout_s: float = 60.0,
    ) -> Model:
        """Store a new model in the tier; version 0 is `params`, converted to float32. Atomic.

        Args:
            name: letters, digits, dots, dashes, underscores.
            params: first values by tensor name; their order is the order of the flat vector.
            optimizer: how the servers descend; from `coproc.optim`.
            consistency: `Bsp`, `Quorum`, `Ssp` or `Asp` (the default).
            shards: ranges the vector is cut into, dealt to the servers in turn; by default one a server.
            slots: gradients one attempt may have in flight; each takes the size of the model.
            buffers: parameter buffers a shard.
            not_finite: what a gradient with NaN or infinity gets: "reject" raises `PushRejected` and pushes nothing;
                "skip" commits its step without a gradient, and status counts it.
            checkpoint: when the servers write checkpoints by themselves; else when `Model.checkpoint` is called.
            memory_limit_bytes: the most that it may take on each server, slots of its workers included: a worker that
                would take it beyond is refused. By default only the server's own budget limits it.

        Raises:
            ModelExists, ConfigError, OutOfMemory, Unreachable.
        """
        self.check_open()
        consistency = Asp() if consistency is None else consistency
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(f"optimizer must be one of coproc.optim, not {type(optimizer).__name__}")
        if not isinstance(consistency, Consistency):
            raise ConfigError(f"consistency must be a Bsp, Quorum, Ssp or Asp of coproc, not {consistency!r:.100}")
        for what, value, most in (("shards", shards, 1 << 20), ("slots", slots, 64), ("buffers", buffers, 16)):
            if value is not None:
                whole(what, value, 1, most)
        if checkpoint is not None and not isinstance(checkpoint, Checkpoints):
            raise ConfigError(f"checkpoint must be a Checkpoints of coproc, not {checkpoint!r:.100}")
        arrays = as_tensors(params)
        layout = ParamLayout.of(arrays)
        flat = np.empty(layout.size, np.float32)
        layout.fill(flat, arrays)
        if not np.isfinite(flat).all():
            raise ConfigError(f"the first parameters of model {name!r} are not all finite")
        # More slots for small models cost nothing and hide the wake-up; large ones are mostly copies of the model.
        default_slots = consistency.slots if layout.size < 1 << 20 else 2
        count = shards or min(len(self._servers), max(1, layout.size // 16))
        spec = ModelSpec(
            name,
            layout,
            optimizer,
            consistency,
            slots or default_slots,
            buffers or consistency.buffers,
            shards=tuple(ShardPlace(lo, hi, "", "") for lo, hi in layout.shards(count)),
            not_finite=not_finite,
            checkpoints=checkpoint,
            memory_limit_bytes=memory_limit_bytes,
        )

        def requests() -> Any:
            yield pb.CreateModelRequest(begin=pb.CreateModelBegin(spec_json=spec.to_json(), servers=self._servers))
            for chunk in chunks(flat):
                yield pb.CreateModelRequest(chunk=chunk)

        with ERRORS.translated(self._servers[0]):
            answer = self._stubs[0].CreateModel(requests(), timeout=timeout_s)
        return self._model(ModelSpec.from_json(answer.spec_json))

    def restore(
        self,
        path: str,
        *,
        name: str | None = None,
        shards: int | None = None,
        checkpoint: Checkpoints | None = None,
        timeout_s: float = 60.0,
    ) -> Model:
        """A new model that goes on where a checkpoint was taken, on the servers of this address. Atomic.

        It has the checkpoint's version, optimizer's state, learning rate and workers: who joins continues at the step
        that his worker had reached then. The same pushes lead to the same bits, on however many shards.

        Args:
            path: the file in the tier; one that lies elsewhere is mounted first.
            name: of the model; None: as it was called.
            shards: ranges the vector is cut into; by default one a server.
            checkpoint: when the servers write checkpoints by themselves; None: as they did.

        Raises:
            CorruptCheckpoint: it was cut or altered, or is none; what was expected and found.
            ConfigError: there is no such file. ModelExists, OutOfMemory, Unreachable.
        """
        self.check_open()
        if name is not None:
            check_name(name)
        request = pb.RestoreModelRequest(
            path=path,
            name=name or "",
            servers=self._servers,
            shards_count=whole("shards", shards, 1, 1 << 20) if shards is not None else 0,
            checkpoints_json=checkpoint.to_json() if checkpoint is not None else "",
            timeout_ms=int(timeout_s * 1000),
        )
        with ERRORS.translated(self._servers[0]):
            answer = self._stubs[0].RestoreModel(request, timeout=timeout_s)
        return self._model(ModelSpec.from_json(answer.spec_json))

    def model(self, name: str, timeout_s: float = CALL_TIMEOUT_S) -> Model:
        """An existing model. One round trip, more if the first server doesn't know it or is down.

        Args:
            timeout_s: how long to wait for a server that restarts, or restores the model.

        Raises:
            ModelNotFound: all servers say so. Unreachable.
        """
        check_name(name)
        deadline = time.monotonic() + timeout_s
        while True:
            self.check_open()
            problem: CoprocError | None = None
            for server, stub in zip(self._servers, self._stubs, strict=True):
                try:
                    with ERRORS.translated(server):
                        answer = stub.GetModel(pb.GetModelRequest(name=name), timeout=CALL_TIMEOUT_S)
                    return self._model(ModelSpec.from_json(answer.spec_json))
                except (ModelNotFound, Unreachable) as error:
                    problem = error if problem is None or isinstance(error, Unreachable) else problem
            assert problem is not None  # an address has a server
            if isinstance(problem, ModelNotFound) or time.monotonic() + AGAIN_S > deadline:
                raise problem
            time.sleep(AGAIN_S)

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
            model.release()
        self._models.clear()
        for tier in self._tiers:
            tier.close()
        for channel in self._channels:
            channel.close()

    def forget(self, model: Model) -> None:
        """A model of this client was deleted."""
        self._models.pop(model.spec.identity, None)

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
            answer = stub.ListModels(request, timeout=CALL_TIMEOUT_S)
        names += answer.names
        more = answer.more
    return names
