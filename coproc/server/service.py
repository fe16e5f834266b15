"""The gRPC face of the coprocessor. It decides nothing: it asks the sequencer, or uses shared memory as any client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from coproc.errors import ConfigError, CoprocError, OutOfMemory, whole
from coproc.observers.directory import ModelDirectory
from coproc.server.access import Access
from coproc.server.engine import Engine
from coproc.server.far import LEASE_TTL_S, FarSessions
from coproc.server.models import Models
from coproc.server.report import Report
from coproc.server.sequencing import READER
from coproc.spec import MOST_EXAMPLES, MOST_STEPS, ModelSpec, ShardPlace, check_identity
from coproc.v1 import coproc_pb2 as pb
from coproc.v1 import coproc_pb2_grpc
from coproc.wire import ERRORS, Filling, as_coproc, chunks
from storage_tier import wire as tier_wire
from storage_tier.errors import TierError
from storage_tier.files import Files
from storage_tier.tier import Tier

_PEER_TIMEOUT_S = 60.0
_PAGE_COUNT = 1000


class CoprocessorService(coproc_pb2_grpc.CoprocessorServicer):
    """Serves the models of one server."""

    def __init__(
        self,
        tier: Tier,
        models: Models,
        files: Files,
        token: str | None,
        tls: tier_wire.TlsClient | None = None,
    ) -> None:
        """Has the files ask it about models, so before they start."""
        self._tier = tier
        self._models = models
        self._token = token
        self._tls = tls
        self._far = FarSessions()
        self._access = Access(models, tier.server_id, self._peer)
        self._directory = ModelDirectory(files, self._access)
        self._directory.build_in()
        self._report = Report(tier, models, files, self._directory.pusher)

    # -- models ----------------------------------------------------------------------------------------------

    @ERRORS.handler
    def CreateModel(self, requests: Iterator[pb.CreateModelRequest], context: grpc.ServicerContext) -> Any:
        begin = _first(requests, "begin").begin
        spec = ModelSpec.from_json(begin.spec_json)
        servers = list(begin.servers)
        if not servers:
            raise ConfigError("no server was named for the model's shards")
        ranges = spec.layout.shards(len(spec.shards) or len(servers))
        places = tuple(ShardPlace(lo, hi, servers[n % len(servers)], "") for n, (lo, hi) in enumerate(ranges))
        spec = replace(spec, shards=places)
        need_bytes, free_bytes = spec.memory_bytes(servers[0]), self._tier.budget.free_bytes
        if need_bytes > free_bytes:
            raise OutOfMemory(
                f"model {spec.name!r} needs {need_bytes:,} bytes on server {servers[0]} ({spec.buffers} buffers of its "
                f"parameters and 2 banks of its optimizer's state), and {free_bytes:,} of its memory budget are free: "
                f"delete what is no longer needed, use more servers, or {self._tier.budget.remedy}"
            )
        params = np.empty(spec.layout.size, np.float32)
        filling = Filling(params, f"the parameters of model {spec.name!r}")
        for request in requests:
            filling.add(request.chunk)
        filling.finish()
        made: list[str] = []
        with _coproc_errors():
            spec, first = self._models.begin(spec, params)
            try:
                spec = self._models.make_shards(spec, servers[0], first)
                for server in servers[1 : len(places)]:
                    made.append(server)  # before the call: what it made is to be dropped also if its answer is lost
                    answer = self._peer(server).ServeShards(
                        pb.ServeShardsRequest(spec_json=spec.to_json(), parameters_path=str(first), server=server),
                        timeout=_PEER_TIMEOUT_S,
                    )
                    spec = ModelSpec.from_json(answer.spec_json)
                for server in made:
                    complete = pb.ServeShardsRequest(spec_json=spec.to_json(), server=server)
                    self._peer(server).ServeShards(complete, timeout=_PEER_TIMEOUT_S)
                self._directory.appear(spec)
                engine = self._models.activate(spec)
            except BaseException:
                self._drop_on(made, spec)
                self._models.abandon(spec)
                self._disappear(spec)
                raise
        self._directory.pusher.wake()
        return pb.CreateModelResponse(header=_header(engine), spec_json=spec.to_json())

    @ERRORS.handler
    def ServeShards(self, request: pb.ServeShardsRequest, context: grpc.ServicerContext) -> Any:
        spec = ModelSpec.from_json(request.spec_json)
        with _coproc_errors():
            if request.parameters_path:
                spec = self._models.make_shards(spec, request.server, Path(request.parameters_path))
            else:
                self._models.activate(spec)
        return pb.ServeShardsResponse(spec_json=spec.to_json())

    @ERRORS.handler
    def GetModel(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name)
        return pb.GetModelResponse(header=_header(engine), spec_json=engine.spec.to_json())

    @ERRORS.handler
    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> Any:
        names = [e.spec.name for e in self._models.all() if e.spec.name > request.after_name]
        limit = min(request.limit_count or _PAGE_COUNT, _PAGE_COUNT)
        header = pb.ResponseHeader(epoch=self._tier.epoch)
        return pb.ListModelsResponse(header=header, names=names[:limit], more=len(names) > limit)

    @ERRORS.handler
    def DeleteModel(self, request: pb.DeleteModelRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name, request.identity)
        spec = engine.spec
        self._access.sequencer(engine)
        self._forget(spec, f"model {spec.name!r} was deleted")
        self._models.drop(spec.name, spec.identity)
        self._far.end_of(spec.identity)
        self._drop_on(sorted({p.server for p in spec.shards if p.server != spec.shards[0].server}), spec)
        self._disappear(spec)
        return pb.DeleteModelResponse(header=pb.ResponseHeader(epoch=self._tier.epoch))

    @ERRORS.handler
    def DropShards(self, request: pb.DropShardsRequest, context: grpc.ServicerContext) -> Any:
        check_identity(request.identity)
        self._models.drop(request.name, request.identity)
        self._models.abandon_part(request.name, request.identity)
        return pb.DropShardsResponse(header=pb.ResponseHeader(epoch=self._tier.epoch))

    @ERRORS.handler
    def SetLearningRate(self, request: pb.SetLearningRateRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name, request.identity)
        sequencer = self._access.sequencer(engine)
        sequencer.submit(lambda: sequencer.set_learning_rate(request.learning_rate))
        return pb.SetLearningRateResponse(header=_header(engine))

    # -- seats -----------------------------------------------------------------------------------------------

    @ERRORS.handler
    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name, request.identity)
        sequencer = self._access.sequencer(engine)
        reader = request.kind == pb.SEAT_KIND_NEAR_READER
        depth = 0 if reader else (request.slots_count or engine.spec.slots)
        if not reader and not 1 <= depth <= 64:
            raise ConfigError(f"slots must be 1 to 64, not {depth}")
        worker = READER if reader else int(request.worker)
        if not reader and worker < 0:
            raise ConfigError(f"a worker's number must be at least 0, not {worker}")
        if request.kind == pb.SEAT_KIND_FAR_WORKER:
            with _coproc_errors():
                near, give_back = self._access.join_here(engine, worker, depth)
            return pb.JoinResponse(
                header=_header(engine),
                slots_count=depth,
                next_step=near.next_step,
                lease_id=self._far.open(engine.spec.identity, near, give_back),
                lease_ttl_ms=int(LEASE_TTL_S * 1000),
            )
        with _coproc_errors():
            seat, generation, next_step = sequencer.join(worker, depth)
        return pb.JoinResponse(
            header=_header(engine), seat=seat, generation=generation, slots_count=depth, next_step=next_step
        )

    @ERRORS.handler
    def Renew(self, request: pb.RenewRequest, context: grpc.ServicerContext) -> Any:
        self._far.renew(request.lease_id)
        return pb.RenewResponse(header=_header(self._models.get(request.name)))

    @ERRORS.handler
    def Close(self, request: pb.CloseRequest, context: grpc.ServicerContext) -> Any:
        if request.lease_id:
            self._far.close(request.lease_id)
        engine = self._models.get(request.name, request.identity)
        if not request.lease_id:
            sequencer = self._access.sequencer(engine)
            sequencer.submit(lambda: sequencer.close_seat(int(request.seat), int(request.generation)))
        return pb.CloseResponse(header=_header(engine))

    @ERRORS.handler
    def Leave(self, request: pb.LeaveRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name, request.identity)
        sequencer = self._access.sequencer(engine)
        sequencer.submit(lambda: sequencer.leave(int(request.worker)))
        return pb.LeaveResponse(header=_header(engine))

    @ERRORS.handler
    def Settle(self, request: pb.SettleRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name, request.identity)
        sequencer = self._access.sequencer(engine)
        version = sequencer.submit(sequencer.settle)
        return pb.SettleResponse(header=_header(engine), version=version)

    # -- bytes -----------------------------------------------------------------------------------------------

    @ERRORS.handler
    def Push(self, requests: Iterator[pb.PushRequest], context: grpc.ServicerContext) -> Any:
        begin = _first(requests, "begin").begin
        engine = self._models.get(begin.name)
        timeout_s = begin.timeout_ms / 1000
        whole("examples", begin.examples, 0, MOST_EXAMPLES)
        whole("step", begin.step, 0, MOST_STEPS)
        with self._far.use(begin.lease_id, timeout_s) as worker:
            if begin.examples:
                filling = Filling(worker.slot(timeout_s), f"a gradient of model {begin.name!r}")
                for request in requests:
                    filling.add(request.chunk)
                filling.finish()
                receipt = worker.commit(begin.step, begin.examples, begin.loss)
            else:
                receipt = worker.skip(begin.step, timeout_s)
            return pb.PushResponse(
                header=_header(engine),
                step=receipt.step,
                duplicate=receipt.duplicate,
                next_step=worker.next_step,
                version_read=receipt.version_read,
            )

    @ERRORS.handler
    def Pull(self, request: pb.PullRequest, context: grpc.ServicerContext) -> Iterator[Any]:
        engine = self._models.get(request.name, request.identity)
        timeout_s = request.timeout_ms / 1000
        if request.lease_id:
            with self._far.use(request.lease_id, timeout_s) as worker:
                version, flat = worker.pull(request.min_version, timeout_s)
                yield from self._send(engine, version, flat)
            return
        readers = self._access.readers(engine)
        deadline = time.monotonic() + timeout_s
        readers.model.wait_version(request.min_version, timeout_s)
        out = np.empty(engine.spec.layout.size, np.float32)
        with readers.use() as seat:
            version = readers.model.read_into(seat, out, max(0.0, deadline - time.monotonic()))
        yield from self._send(engine, version, out)

    def _send(self, engine: Engine, version: int, flat: Any) -> Iterator[Any]:
        header = pb.ResponseHeader(epoch=engine.control.epoch, version=version)
        yield pb.PullResponse(header=header)
        for chunk in chunks(flat):
            yield pb.PullResponse(chunk=chunk)

    # -- status ----------------------------------------------------------------------------------------------

    @ERRORS.handler
    def GetStatus(self, request: pb.GetStatusRequest, context: grpc.ServicerContext) -> Any:
        return self._report.answer()

    def sample(self) -> None:
        """Called about once a second: for rates, and to end the leases of silent far workers."""
        self._report.sample()
        self._far.expire()

    # -- within ----------------------------------------------------------------------------------------------

    def _peer(self, server: str) -> Any:
        [(host, port)] = tier_wire.parse_address(f"coproc://{server}")
        return _Peer(
            coproc_pb2_grpc.CoprocessorStub(tier_wire.channel(host, port, token=self._token, tls=self._tls)), server
        )

    def _drop_on(self, servers: list[str], spec: ModelSpec) -> None:
        for server in servers:
            try:
                request = pb.DropShardsRequest(name=spec.name, identity=spec.identity)
                self._peer(server).DropShards(request, timeout=_PEER_TIMEOUT_S)
            except CoprocError as error:
                # It is down; at its next start it finds that the model is deleted and removes its part.
                tier_wire.LOG.warning("server %s could not drop model %s: %s", server, spec.name, error)

    def _forget(self, spec: ModelSpec, reason: str) -> None:
        self._access.forget(spec, reason)
        self._report.forget(spec.name)

    def _disappear(self, spec: ModelSpec) -> None:
        try:
            self._directory.disappear(spec.name, spec.identity)
        except TierError as error:
            # The model is gone all the same; the next start, or the next model of the name, removes what is left.
            tier_wire.LOG.warning("the directory of model %s could not be removed: %s", spec.name, error)

    def start(self) -> None:
        """Begin to take gradients that are committed as files. After the files have started."""
        self._directory.pusher.start()

    def stop(self) -> None:
        """Have calls that wait end now: the server is stopping. Before its RPC side stops."""
        self._directory.pusher.close()
        self._access.end_waits("the server is stopping")

    def close(self) -> None:
        """End all leases."""
        self._far.expire(all_of_them=True)


class _Peer:
    """Another server's service; its refusals become typed errors."""

    def __init__(self, stub: Any, server: str) -> None:
        self._stub = stub
        self._server = server

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._stub, method)

        def checked(request: Any, timeout: float) -> Any:
            with ERRORS.translated(self._server):
                return call(request, timeout=timeout)

        return checked


class _coproc_errors:
    """Errors of the tier as this package's."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, TierError):
            raise as_coproc(error) from error


def _first(requests: Iterator[Any], part: str) -> Any:
    request = next(requests, None)
    if request is None or request.WhichOneof("part") != part:
        raise ConfigError(f"a stream must begin with {part!r}")
    return request


def _header(engine: Engine) -> pb.ResponseHeader:
    version = min(shard.version for shard in engine.shards)
    return pb.ResponseHeader(epoch=engine.control.epoch, version=version)
