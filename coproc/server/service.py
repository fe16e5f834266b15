"""The gRPC face of the coprocessor. It decides nothing: it asks the sequencer, or uses shared memory as any client."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from coproc import by_line
from coproc.checkpoint import Value
from coproc.compression import from_json
from coproc.compression.feedback import Part
from coproc.errors import ConfigError, whole
from coproc.observers.directory import ModelDirectory
from coproc.server.access import Access
from coproc.server.checkpoints import Checkpointing, beginning_of
from coproc.server.creating import Creation
from coproc.server.engine import Engine
from coproc.server.far import LEASE_TTL_S, FarSessions
from coproc.server.models import Beginning, Models
from coproc.server.report import Report
from coproc.server.restoring import Restoring
from coproc.server.sequencing import READER
from coproc.spec import MOST_EXAMPLES, MOST_STEPS, Checkpoints, ModelSpec, check_identity
from coproc.v1 import coproc_pb2 as pb
from coproc.v1 import coproc_pb2_grpc
from coproc.wire import ERRORS, Filling, as_coproc, led, parts, plain_parts, service_stub
from storage_tier import wire as tier_wire
from storage_tier.errors import TierError
from storage_tier.files import Files
from storage_tier.server.line import NOTHING, Call, Raw, Taken
from storage_tier.tier import Tier

_PAGE_COUNT = 1000


class CoprocessorService(coproc_pb2_grpc.CoprocessorServicer):
    """Serves the models of one server."""

    def __init__(
        self,
        tier: Tier,
        models: Models,
        files: Files,
        address: str,
        token: str | None,
        tls: tier_wire.TlsClient | None = None,
    ) -> None:
        """Has the files ask it about models, so before they start."""
        self._tier = tier
        self._models = models
        self._token = token
        self._tls = tls
        self._far = FarSessions(tier.budget)
        self._access = Access(models, tier.server_id, self._peer)
        self._directory = ModelDirectory(files, self._access, address)
        self._directory.build_in()
        self._creation = Creation(models, self._directory, tier.budget, self._peer)
        self._checkpoints = Checkpointing(tier, files, models)
        self._restoring = Restoring(models, self._directory, self._creation, self._checkpoints, self._let_go)
        self._report = Report(tier, models, files, self._directory.pusher, self._checkpoints, self._far)

    # -- models ----------------------------------------------------------------------------------------------

    @ERRORS.handler
    def CreateModel(self, requests: Iterator[pb.CreateModelRequest], context: grpc.ServicerContext) -> Any:
        begin = _first(requests, "begin").begin
        spec = ModelSpec.from_json(begin.spec_json)
        # Whatever else it says: an identity is given here.
        spec = self._creation.place(replace(spec, identity="", home=""), list(begin.servers), len(spec.shards))
        params = np.empty((1, spec.layout.size), np.float32)
        filling = Filling(params[0], f"the parameters of model {spec.name!r}")
        for request in requests:
            filling.add(request.chunk)
        filling.finish()
        beginning = Beginning(params, self._tier.epoch, spec.optimizer.base_rate)
        with _coproc_errors():
            engine = self._creation.create(spec, beginning)
        return pb.CreateModelResponse(header=_header(engine), spec_json=engine.spec.to_json())

    @ERRORS.handler
    def Checkpoint(self, request: pb.CheckpointRequest, context: grpc.ServicerContext) -> Any:
        engine = self._models.get(request.name, request.identity)
        self._access.sequencer(engine)
        metadata = _metadata(request.metadata_json)
        with _coproc_errors():
            path, version = self._checkpoints.take(engine, metadata, request.timeout_ms / 1000)
        return pb.CheckpointResponse(header=_header(engine), path=path, version=version)

    @ERRORS.handler
    def RestoreModel(self, request: pb.RestoreModelRequest, context: grpc.ServicerContext) -> Any:
        with _coproc_errors(), self._checkpoints.open(request.path, request.timeout_ms / 1000) as (found, read):
            spec = replace(found, name=request.name or found.name, identity="", home="", shards=())
            if request.checkpoints_json:
                spec = replace(spec, checkpoints=Checkpoints.from_json(request.checkpoints_json))
            spec = self._creation.place(spec, list(request.servers), request.shards_count)
            engine = self._creation.create(spec, beginning_of(read))
        return pb.RestoreModelResponse(header=_header(engine), spec_json=engine.spec.to_json())

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
        self._creation.drop_on(sorted({p.server for p in spec.shards if p.server != spec.shards[0].server}), spec)
        self._creation.disappear(spec)
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
            compression = from_json(request.compression_json)
            with _coproc_errors():
                near, give_back = self._access.join_here(engine, worker, depth)
                lease_id = self._far.open(near, give_back, compression)
            return pb.JoinResponse(
                header=_header(engine),
                slots_count=depth,
                next_step=near.next_step,
                lease_id=lease_id,
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
        engine, timeout_s = self._pushed_to(begin)
        with self._far.use(begin.lease_id, engine.spec.identity, timeout_s) as session:
            return _answered(engine, session.push(begin, parts(requests)))

    @ERRORS.handler
    def Pull(self, request: pb.PullRequest, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self._pull(request)

    def _pull(self, request: pb.PullRequest) -> Generator[Any, None, None]:
        engine = self._models.get(request.name, request.identity)
        timeout_s = request.timeout_ms / 1000
        if request.lease_id:
            with self._far.use(request.lease_id, engine.spec.identity, timeout_s) as session:
                version, number, sent = session.pull(request.min_version, timeout_s, request.replica)
                yield pb.PullResponse(header=_header_of(engine, version), replica=number)
                yield from sent
            return
        readers = self._access.readers(engine)
        deadline = time.monotonic() + timeout_s
        readers.model.wait_version(request.min_version, timeout_s)
        out = np.empty(engine.spec.layout.size, np.float32)
        with readers.use() as seat:
            version = readers.model.read_into(seat, out, max(0.0, deadline - time.monotonic()))
        yield pb.PullResponse(header=_header_of(engine, version))
        yield from plain_parts(out)

    def line_calls(self) -> dict[str, Call]:
        """Push and Pull for the line. PushPull is one after the other there."""
        return {
            by_line.PUSH: Call(pb.PushBegin, lambda begin, _, taken: (self._push_raw(begin, taken), NOTHING), ERRORS),
            by_line.PULL: Call(pb.PullRequest, lambda request, *_: self._pull_raw(request), ERRORS),
        }

    def _push_raw(self, begin: pb.PushBegin, taken: Taken) -> pb.PushResponse:
        engine, timeout_s = self._pushed_to(begin)
        with self._far.use(begin.lease_id, engine.spec.identity, timeout_s) as session:
            return _answered(engine, session.push(begin, taken))

    def _pull_raw(self, request: pb.PullRequest) -> tuple[pb.PullResponse, Raw]:
        size_bytes = 4 * self._models.get(request.name, request.identity).spec.layout.size
        if not request.lease_id:
            raise ConfigError("a pull by the line needs a lease: join, or pull by gRPC")
        sent = self._sent(request)
        first = next(sent)
        if first.replica:
            sent.close()
            raise ConfigError("what a compression codes does not go by the line: pull by gRPC, or join without one")
        return first, Raw(None, 0, size_bytes, sent)

    def _sent(self, request: pb.PullRequest) -> Generator[Any, None, None]:
        """The answer, then its bytes. One that was begun: to close it gives the lease back, also before any bytes."""
        with closing(self._pull(request)) as answers:
            yield next(answers)
            for part in parts(answers):
                yield part.data

    @ERRORS.handler
    def PushPull(self, requests: Iterator[pb.PushPullRequest], context: grpc.ServicerContext) -> Iterator[Any]:
        first = next(requests, None)
        if first is None or isinstance(first, Part) or not first.HasField("begin"):
            raise ConfigError("a stream must begin with 'begin'")
        begin = first.begin
        engine, timeout_s = self._pushed_to(begin.push)
        deadline = time.monotonic() + timeout_s
        with self._far.use(begin.push.lease_id, engine.spec.identity, timeout_s) as session:
            receipt = session.push(begin.push, parts(itertools.chain([first], requests)))
            yield pb.PushPullResponse(receipt=_answered(engine, receipt))
            left_s = max(0.0, deadline - time.monotonic())
            version, number, sent = session.pull(begin.min_version, left_s, begin.replica)
            yield from led(pb.PushPullResponse(header=_header_of(engine, version), replica=number), sent)

    def _pushed_to(self, begin: pb.PushBegin) -> tuple[Engine, float]:
        engine = self._models.get(begin.name)
        whole("examples", begin.examples, 0, MOST_EXAMPLES)
        whole("step", begin.step, 0, MOST_STEPS)
        return engine, begin.timeout_ms / 1000

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
        return _Peer(service_stub(tier_wire.channel(host, port, token=self._token, tls=self._tls)), server)

    def _forget(self, spec: ModelSpec, reason: str) -> None:
        self._access.forget(spec, reason)
        self._report.forget(spec.name)
        self._checkpoints.forget(spec)

    def _let_go(self, spec: ModelSpec, reason: str) -> None:
        self._forget(spec, reason)
        self._far.end_of(spec.identity)

    def start(self) -> None:
        """Begin to take gradients that are committed as files, and checkpoints. After the files have started."""
        self._directory.pusher.start()
        self._checkpoints.start()
        self._restoring.start()

    def stop(self) -> None:
        """Have calls that wait end now: the server is stopping. Before its RPC side stops."""
        self._directory.pusher.close()
        self._restoring.close()
        self._checkpoints.close()
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
    if request is None or isinstance(request, Part) or request.WhichOneof("part") != part:
        raise ConfigError(f"a stream must begin with {part!r}")
    return request


def _answered(engine: Engine, answer: pb.PushResponse) -> pb.PushResponse:
    answer.header.CopyFrom(_header(engine))
    return answer


def _metadata(text: str) -> dict[str, Value]:
    try:
        given = json.loads(text or "{}")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or not all(isinstance(v, str | int | float | None) for v in given.values()):
        raise ConfigError(f"metadata are strings, numbers, bools and nulls by name, as a JSON object, not {text!r:.80}")
    return given


def _header(engine: Engine) -> pb.ResponseHeader:
    return _header_of(engine, min(shard.version for shard in engine.shards))


def _header_of(engine: Engine, version: int) -> pb.ResponseHeader:
    return pb.ResponseHeader(epoch=engine.control.epoch, version=version)
