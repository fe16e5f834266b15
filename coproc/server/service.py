"""The gRPC face of the coprocessor. It decides nothing: it asks the sequencer, or uses shared memory as any client."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from coproc.errors import ConfigError, ModelNotFound, OutOfMemory, Unsupported
from coproc.near import NearModel, NearWorker
from coproc.server.engine import Engine
from coproc.server.far import LEASE_TTL_S, FarSessions
from coproc.server.models import Models
from coproc.server.sequencing import READER, SequencerLoop
from coproc.shared.control import Presence
from coproc.shared.seats import Seat
from coproc.spec import ModelSpec, ShardPlace
from coproc.v1 import coproc_pb2 as pb
from coproc.v1 import coproc_pb2_grpc
from coproc.wire import ERRORS, Filling, as_coproc, chunks
from storage_tier import wire as tier_wire
from storage_tier.errors import TierError
from storage_tier.tier import Tier

_PEER_TIMEOUT_S = 60.0
_PAGE_COUNT = 1000
# pushes/s is the mean over this many seconds, from samples that `sample` takes.
_RATE_OVER_S = 5.0


class CoprocessorService(coproc_pb2_grpc.CoprocessorServicer):
    """Serves the models of one server."""

    def __init__(self, tier: Tier, models: Models, token: str | None, tls: tier_wire.TlsClient | None = None) -> None:
        self._tier = tier
        self._models = models
        self._token = token
        self._tls = tls
        self._far = FarSessions()
        self._near: dict[str, NearModel] = {}
        self._readers: dict[str, deque[tuple[Seat, int, int]]] = {}
        self._rates: dict[str, deque[tuple[float, int]]] = {}
        self._started = time.monotonic()

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
                    made.append(server)
                    answer = self._peer(server).ServeShards(
                        pb.ServeShardsRequest(spec_json=spec.to_json(), parameters_path=str(first), server=server),
                        timeout=_PEER_TIMEOUT_S,
                    )
                    spec = ModelSpec.from_json(answer.spec_json)
                for server in made:
                    complete = pb.ServeShardsRequest(spec_json=spec.to_json(), server=server)
                    self._peer(server).ServeShards(complete, timeout=_PEER_TIMEOUT_S)
                engine = self._models.activate(spec)
            except BaseException:
                self._drop_on(made, spec.name)
                self._models.abandon(spec.name)
                raise
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
        engine = self._models.get(request.name)
        self._sequencer(engine)
        mine = engine.spec.shards[0].server
        self._forget(request.name)
        self._models.drop(request.name)
        self._drop_on(sorted({p.server for p in engine.spec.shards if p.server != mine}), request.name)
        return pb.DeleteModelResponse(header=pb.ResponseHeader(epoch=self._tier.epoch))

    @ERRORS.handler
    def DropShards(self, request: pb.DropShardsRequest, context: grpc.ServicerContext) -> Any:
        self._models.drop(request.name)
        self._models.abandon(request.name)
        return pb.DropShardsResponse(header=pb.ResponseHeader(epoch=self._tier.epoch))

    @ERRORS.handler
    def SetLearningRate(self, request: pb.SetLearningRateRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name)
        if not (0 < request.learning_rate < float("inf")):
            raise ConfigError(f"a learning rate must be positive and finite, not {request.learning_rate}")
        sequencer = self._sequencer(engine)
        sequencer.submit(lambda: sequencer.set_learning_rate(request.learning_rate))
        return pb.SetLearningRateResponse(header=_header(engine))

    # -- seats -----------------------------------------------------------------------------------------------

    @ERRORS.handler
    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name)
        sequencer = self._sequencer(engine)
        if engine.failure:
            raise ModelNotFound(f"model {request.name!r} has stopped: {engine.failure}")
        reader = request.kind == pb.SEAT_KIND_NEAR_READER
        depth = 0 if reader else (request.slots_count or engine.spec.slots)
        if not reader and not 1 <= depth <= 64:
            raise ConfigError(f"slots must be 1 to 64, not {depth}")
        worker = READER if reader else int(request.worker)
        if not reader and worker < 0:
            raise ConfigError(f"a worker's number must be at least 0, not {worker}")
        with _coproc_errors():
            seat, generation, next_step = sequencer.submit(lambda: sequencer.give_seat(worker, depth))
        answer = pb.JoinResponse(
            header=_header(engine), seat=seat, generation=generation, slots_count=depth, next_step=next_step
        )
        if request.kind == pb.SEAT_KIND_FAR_WORKER:
            held = Seat.take(engine.spec.seat_path(seat, generation), depth, engine.spec.layout.size)
            near = NearWorker(self._near_model(engine), worker, held, next_step)
            answer.lease_id = self._far.open(
                near, lambda: sequencer.submit(lambda: sequencer.close_seat(seat, generation))
            )
            answer.lease_ttl_ms = int(LEASE_TTL_S * 1000)
        return answer

    @ERRORS.handler
    def Renew(self, request: pb.RenewRequest, context: grpc.ServicerContext) -> Any:
        self._far.renew(request.lease_id)
        return pb.RenewResponse(header=_header(self._models.get(request.name)))

    @ERRORS.handler
    def Close(self, request: pb.CloseRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name)
        if request.lease_id:
            self._far.close(request.lease_id)
        else:
            sequencer = self._sequencer(engine)
            sequencer.submit(lambda: sequencer.close_seat(int(request.seat), int(request.generation)))
        return pb.CloseResponse(header=_header(engine))

    @ERRORS.handler
    def Leave(self, request: pb.LeaveRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name)
        sequencer = self._sequencer(engine)
        sequencer.submit(lambda: sequencer.leave(int(request.worker)))
        return pb.LeaveResponse(header=_header(engine))

    @ERRORS.handler
    def Settle(self, request: pb.SettleRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name)
        version = self._sequencer(engine).submit(self._sequencer(engine).settle)
        return pb.SettleResponse(header=_header(engine), version=version)

    # -- bytes -----------------------------------------------------------------------------------------------

    @ERRORS.handler
    def Push(self, requests: Iterator[pb.PushRequest], context: grpc.ServicerContext) -> Any:
        begin = _first(requests, "begin").begin
        engine = self._models.get(begin.name)
        timeout_s = begin.timeout_ms / 1000
        if begin.examples < 0:
            raise ConfigError(f"examples must be at least 0, not {begin.examples}")
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
        engine = self._models.get(request.name)
        timeout_s = request.timeout_ms / 1000
        if request.lease_id:
            with self._far.use(request.lease_id, timeout_s) as worker:
                version, flat = worker.pull(request.min_version, timeout_s)
                yield from self._send(engine, version, flat)
            return
        model = self._near_model(engine)
        deadline = time.monotonic() + timeout_s
        model.wait_version(request.min_version, timeout_s)
        seat, number, generation = self._reader(engine)
        out = np.empty(engine.spec.layout.size, np.float32)
        try:
            version = model.read_into(seat, out, max(0.0, deadline - time.monotonic()))
        finally:
            self._readers.setdefault(request.name, deque()).append((seat, number, generation))
        yield from self._send(engine, version, out)

    def _send(self, engine: Engine, version: int, flat: Any) -> Iterator[Any]:
        header = pb.ResponseHeader(epoch=engine.control.epoch, version=version)
        yield pb.PullResponse(header=header)
        for chunk in chunks(flat):
            yield pb.PullResponse(chunk=chunk)

    def _reader(self, engine: Engine) -> tuple[Seat, int, int]:
        """A reader's seat that this server holds and nobody uses."""
        try:
            return self._readers.setdefault(engine.spec.name, deque()).popleft()
        except IndexError:
            sequencer = self._sequencer(engine)
            number, generation, _ = sequencer.submit(lambda: sequencer.give_seat(READER, 0))
            return Seat.take(engine.spec.seat_path(number, generation), 0, 0), number, generation

    # -- status ----------------------------------------------------------------------------------------------

    @ERRORS.handler
    def GetStatus(self, request: pb.GetStatusRequest, context: grpc.ServicerContext) -> Any:
        answer = pb.GetStatusResponse(
            header=pb.ResponseHeader(epoch=self._tier.epoch),
            uptime_s=time.monotonic() - self._started,
            memory_used_bytes=self._tier.budget.used_bytes,
            memory_limit_bytes=self._tier.budget.limit_bytes,
        )
        for engine in self._models.all():
            if engine.sequencer is not None:
                answer.models.append(self._model_status(engine, engine.sequencer))
        return answer

    def _model_status(self, engine: Engine, sequencer: SequencerLoop) -> pb.ModelStatus:
        spec, c = engine.spec, sequencer.counters
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
        )

    def sample(self) -> None:
        """Called about once a second: for rates, and to end the leases of silent far workers."""
        now = time.monotonic()
        for engine in self._models.all():
            if engine.sequencer is not None:
                samples = self._rates.setdefault(engine.spec.name, deque())
                samples.append((now, engine.sequencer.counters.pushes))
                while len(samples) > 1 and samples[0][0] < now - _RATE_OVER_S:
                    samples.popleft()
        self._far.expire()

    # -- within ----------------------------------------------------------------------------------------------

    def _sequencer(self, engine: Engine) -> SequencerLoop:
        if engine.sequencer is None:
            raise Unsupported(
                f"the sequencer of model {engine.spec.name!r} is {engine.spec.shards[0].server}; ask that server"
            )
        return engine.sequencer

    def _near_model(self, engine: Engine) -> NearModel:
        model = self._near.get(engine.spec.name)
        if model is None:
            model = self._near[engine.spec.name] = NearModel(engine.spec)
        return model

    def _peer(self, server: str) -> Any:
        [(host, port)] = tier_wire.parse_address(f"coproc://{server}")
        return _Peer(
            coproc_pb2_grpc.CoprocessorStub(tier_wire.channel(host, port, token=self._token, tls=self._tls)), server
        )

    def _drop_on(self, servers: list[str], name: str) -> None:
        for server in servers:
            try:
                self._peer(server).DropShards(pb.DropShardsRequest(name=name), timeout=_PEER_TIMEOUT_S)
            except Exception as error:
                # It is down; at its next start it finds that the model is deleted and removes its part.
                tier_wire.LOG.warning("server %s could not drop model %s: %s", server, name, error)

    def _forget(self, name: str) -> None:
        for seat, _, _ in self._readers.pop(name, deque()):
            seat.close()
        near = self._near.pop(name, None)
        if near is not None:
            near.close()
        self._rates.pop(name, None)

    def close(self) -> None:
        """End all leases and readers."""
        self._far.expire(all_of_them=True)
        for name in [*self._near, *self._readers]:
            self._forget(name)


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
