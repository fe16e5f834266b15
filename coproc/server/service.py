"""The gRPC face of the coprocessor. It decides nothing: it asks the sequencer, or uses shared memory as any client."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from coproc.errors import ConfigError, CoprocError, OutOfMemory, Unsupported, whole
from coproc.near import NearWorker
from coproc.server.engine import Engine
from coproc.server.far import LEASE_TTL_S, FarSessions
from coproc.server.models import Models
from coproc.server.readers import Readers
from coproc.server.sequencing import READER, SequencerLoop
from coproc.shared.control import Presence
from coproc.shared.seats import Seat
from coproc.spec import MOST_EXAMPLES, MOST_STEPS, ModelSpec, ShardPlace, check_identity
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
        self._readers: dict[str, Readers] = {}
        self._lock = threading.Lock()
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
                    made.append(server)  # before the call: what it made is to be dropped also if its answer is lost
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
                self._drop_on(made, spec)
                self._models.abandon(spec)
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
        engine = self._models.get(request.name, request.identity)
        spec = engine.spec
        self._require_sequencer(engine)
        self._forget(spec, f"model {spec.name!r} was deleted")
        self._models.drop(spec.name, spec.identity)
        self._far.end_of(spec.identity)
        self._drop_on(sorted({p.server for p in spec.shards if p.server != spec.shards[0].server}), spec)
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
        sequencer = self._sequencer(engine)
        sequencer.submit(lambda: sequencer.set_learning_rate(request.learning_rate))
        return pb.SetLearningRateResponse(header=_header(engine))

    # -- seats -----------------------------------------------------------------------------------------------

    @ERRORS.handler
    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name, request.identity)
        sequencer = self._sequencer(engine)
        reader = request.kind == pb.SEAT_KIND_NEAR_READER
        depth = 0 if reader else (request.slots_count or engine.spec.slots)
        if not reader and not 1 <= depth <= 64:
            raise ConfigError(f"slots must be 1 to 64, not {depth}")
        worker = READER if reader else int(request.worker)
        if not reader and worker < 0:
            raise ConfigError(f"a worker's number must be at least 0, not {worker}")
        with _coproc_errors():
            seat, generation, next_step = sequencer.join(worker, depth)
        answer = pb.JoinResponse(
            header=_header(engine), seat=seat, generation=generation, slots_count=depth, next_step=next_step
        )
        if request.kind == pb.SEAT_KIND_FAR_WORKER:
            held = Seat.take(engine.spec.seat_path(seat, generation), depth, engine.spec.layout.size)
            near = NearWorker(self._readers_of(engine).model, worker, held, next_step)
            answer.lease_id = self._far.open(
                engine.spec.identity, near, lambda: sequencer.submit(lambda: sequencer.close_seat(seat, generation))
            )
            answer.lease_ttl_ms = int(LEASE_TTL_S * 1000)
        return answer

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
            sequencer = self._sequencer(engine)
            sequencer.submit(lambda: sequencer.close_seat(int(request.seat), int(request.generation)))
        return pb.CloseResponse(header=_header(engine))

    @ERRORS.handler
    def Leave(self, request: pb.LeaveRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name, request.identity)
        sequencer = self._sequencer(engine)
        sequencer.submit(lambda: sequencer.leave(int(request.worker)))
        return pb.LeaveResponse(header=_header(engine))

    @ERRORS.handler
    def Settle(self, request: pb.SettleRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name, request.identity)
        version = self._sequencer(engine).submit(self._sequencer(engine).settle)
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
        readers = self._readers_of(engine)
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

    def _require_sequencer(self, engine: Engine) -> None:
        if engine.sequencer is None:
            raise Unsupported(
                f"the sequencer of model {engine.spec.name!r} is {engine.spec.shards[0].server}; ask that server"
            )

    def _sequencer(self, engine: Engine) -> SequencerLoop:
        self._require_sequencer(engine)
        assert engine.sequencer is not None
        return engine.sequencer

    def _readers_of(self, engine: Engine) -> Readers:
        with self._lock:
            readers = self._readers.get(engine.spec.identity)
            if readers is None:
                readers = self._readers[engine.spec.identity] = Readers(engine.spec, self._sequencer(engine))
            return readers

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
        with self._lock:
            readers = self._readers.pop(spec.identity, None)
        if readers is not None:
            readers.close(reason)
        self._rates.pop(spec.name, None)

    def stop(self) -> None:
        """Have calls that wait end now: the server is stopping. Before its RPC side stops."""
        with self._lock:
            for readers in self._readers.values():
                readers.close("the server is stopping")

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
