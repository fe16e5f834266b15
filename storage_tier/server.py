"""The server process's RPC side: one gRPC server for any number of services, and the service of the tier.

One port. Loopback unless told otherwise. Health and reflection are always there. A handler only ever talks to
a thread-safe store and gives its answer; it keeps no state of its own.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc

from storage_tier.errors import AddressInUse, InvalidRequest
from storage_tier.host import proof_of
from storage_tier.messages import info_to_wire, metadata_from_wire
from storage_tier.tier import RESERVATION_TTL_S, Tier
from storage_tier.v1 import tier_pb2, tier_pb2_grpc
from storage_tier.wire import (
    CHUNK_BYTES,
    SERVER_OPTIONS,
    TIER_ERRORS,
    AskToken,
    TlsServer,
    check_token,
    target,
)

DEFAULT_MAX_WORKERS = 16
MAX_CHALLENGE_BYTES = 64
MAX_PAGE_COUNT = 1000
# Metadata may be 64 KiB a block: a page ends here even when it has few blocks.
MAX_PAGE_BYTES = 1 << 20
MAX_DAMAGED_SHOWN = 20


class RpcServer:
    """A gRPC server: `add` services, `start`, `stop`. Its threads share an interpreter: no busy loops."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        tls: TlsServer | None = None,
        max_workers: int = DEFAULT_MAX_WORKERS,
    ) -> None:
        """Nothing is bound before `start`.

        Args:
            host: the interface; '0.0.0.0' for all of them (give a token then).
            port: 0 lets the system choose.
            token: when given, every call but health checks must show it.
            tls: when given, nothing but TLS is spoken.
            max_workers: calls served at once; a stream takes one for as long as it lasts, the others wait.
        """
        self.host = host
        self.port = port
        self._token = check_token(token)
        self._tls = tls
        self._pool = ThreadPoolExecutor(max_workers, thread_name_prefix="rpc")
        self._server = grpc.server(
            self._pool,
            interceptors=() if token is None else (AskToken(token),),
            options=SERVER_OPTIONS,
        )
        self._services: list[str] = []
        self._health: Any = None
        self._stopped = False

    def add(self, register: Callable[[grpc.Server], None], service_name: str | None = None) -> None:
        """Add a service before `start`: `register` is called with the gRPC server.

        Args:
            register: as a rule `lambda server: add_XServicer_to_server(servicer, server)`.
            service_name: its full name ('storage_tier.v1.Tier'), which health and reflection then know.
        """
        register(self._server)
        if service_name is not None:
            self._services.append(service_name)

    def start(self) -> int:
        """Bind and serve; returns the port. Does not block.

        Raises:
            AddressInUse: another process listens there, or the host is none of this machine's.
        """
        # Only a server needs these two.
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection

        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [*self._services, health.SERVICE_NAME]
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._server)
        # Asked beforehand, for gRPC would write its own idea of it to standard error first.
        if self.port and (reason := _why_not(self.host, self.port)):
            raise AddressInUse(reason)
        where = target(self.host, self.port)
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(where)
            else:
                self.port = self._server.add_secure_port(where, self._tls.credentials())
        except RuntimeError as error:
            raise AddressInUse(_why_not(self.host, self.port) or f"{where} cannot be bound: {error}") from None
        self._server.start()
        for name in ("", *names):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self.port

    def stop(self, grace_s: float = 1.0) -> None:
        """Take no more calls, give those at work `grace_s` seconds, then cancel them. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        if self._health is not None:
            self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait(timeout=grace_s + 5.0)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _why_not(host: str, port: int) -> str | None:
    """Why the address cannot be bound, as a sentence; None when it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return (
            f"{target(host, port)} cannot be listened on: {error.strerror or error}. Stop the process that "
            "does, or choose another port (0 takes a free one) or host"
        )
    return None


class TierService(tier_pb2_grpc.TierServicer):
    """The service `storage_tier.v1.Tier` over one store. Errors travel by `TIER_ERRORS`."""

    NAME = "storage_tier.v1.Tier"

    def __init__(self, tier: Tier) -> None:
        self._tier = tier

    def register(self, server: grpc.Server) -> None:
        """For `RpcServer.add(service.register, service.NAME)`."""
        tier_pb2_grpc.add_TierServicer_to_server(self, server)

    def _header(self) -> tier_pb2.ResponseHeader:
        return tier_pb2.ResponseHeader(server_id=self._tier.server_id, epoch=self._tier.epoch)

    @TIER_ERRORS.handler
    def Hello(self, request: tier_pb2.HelloRequest, context: grpc.ServicerContext) -> tier_pb2.HelloResponse:
        if len(request.challenge) > MAX_CHALLENGE_BYTES:
            raise InvalidRequest(f"a challenge has at most {MAX_CHALLENGE_BYTES} bytes")
        return tier_pb2.HelloResponse(
            header=self._header(),
            nonce_path=str(self._tier.nonce_path),
            directory=str(self._tier.directory),
            proof=proof_of(self._tier.nonce, request.challenge),
        )

    @TIER_ERRORS.handler
    def Status(self, request: tier_pb2.StatusRequest, context: grpc.ServicerContext) -> tier_pb2.StatusResponse:
        status = self._tier.status()
        return tier_pb2.StatusResponse(
            header=self._header(),
            directory=status.directory,
            memory_used_bytes=status.memory_used_bytes,
            memory_limit_bytes=status.memory_limit_bytes,
            block_count=status.block_count,
            block_bytes=status.block_bytes,
            reservation_count=status.reservation_count,
            started_ns=status.started_ns,
            damaged_count=status.damaged_count,
            damaged=status.damaged[:MAX_DAMAGED_SHOWN],
        )

    @TIER_ERRORS.handler
    def CreateBlock(
        self, request: tier_pb2.CreateBlockRequest, context: grpc.ServicerContext
    ) -> tier_pb2.CreateBlockResponse:
        reservation = self._tier.reserve(request.path, request.file_bytes)
        return tier_pb2.CreateBlockResponse(
            header=self._header(),
            reservation_id=reservation.id,
            directory=str(reservation.directory),
            ttl_ms=int(RESERVATION_TTL_S * 1000),
        )

    @TIER_ERRORS.handler
    def CommitBlock(
        self, request: tier_pb2.CommitBlockRequest, context: grpc.ServicerContext
    ) -> tier_pb2.CommitBlockResponse:
        info = self._tier.commit(request.reservation_id)
        return tier_pb2.CommitBlockResponse(header=self._header(), block=info_to_wire(info))

    @TIER_ERRORS.handler
    def AbortBlock(
        self, request: tier_pb2.AbortBlockRequest, context: grpc.ServicerContext
    ) -> tier_pb2.AbortBlockResponse:
        self._tier.abort(request.reservation_id)
        return tier_pb2.AbortBlockResponse(header=self._header())

    @TIER_ERRORS.handler
    def PutBlock(
        self, requests: Iterator[tier_pb2.PutBlockRequest], context: grpc.ServicerContext
    ) -> tier_pb2.PutBlockResponse:
        first = next(requests, None)
        if first is None or first.WhichOneof("part") != "begin":
            raise InvalidRequest("the first message of PutBlock must say what begins: path, size, metadata")
        begin = first.begin
        metadata = metadata_from_wire(begin.metadata)
        info = self._tier.put(begin.path, begin.size_bytes, _chunks(requests), metadata)
        return tier_pb2.PutBlockResponse(header=self._header(), block=info_to_wire(info))

    @TIER_ERRORS.handler
    def OpenBlock(
        self, request: tier_pb2.OpenBlockRequest, context: grpc.ServicerContext
    ) -> tier_pb2.OpenBlockResponse:
        info = self._tier.info(request.path)
        return tier_pb2.OpenBlockResponse(
            header=self._header(), block=info_to_wire(info), local_path=str(self._tier.local_path(info.path))
        )

    @TIER_ERRORS.handler
    def ReadBlock(
        self, request: tier_pb2.ReadBlockRequest, context: grpc.ServicerContext
    ) -> Iterator[tier_pb2.ReadBlockResponse]:
        with self._tier.open(request.path) as block:
            start, end = request.offset_bytes, block.size_bytes
            if not 0 <= start <= end or request.limit_bytes < 0:
                raise InvalidRequest(
                    f"{block.path} has {end:,} bytes, and {request.limit_bytes:,} from {start:,} on were asked for"
                )
            if request.limit_bytes:
                end = min(end, start + request.limit_bytes)
            yield tier_pb2.ReadBlockResponse(header=self._header(), block=info_to_wire(block.info))
            for at in range(start, end, CHUNK_BYTES):
                yield tier_pb2.ReadBlockResponse(chunk=bytes(block.data[at : min(at + CHUNK_BYTES, end)]))

    @TIER_ERRORS.handler
    def ListBlocks(
        self, request: tier_pb2.ListBlocksRequest, context: grpc.ServicerContext
    ) -> tier_pb2.ListBlocksResponse:
        if request.page_count < 0:
            raise InvalidRequest(f"a page cannot have {request.page_count} blocks")
        count = min(request.page_count or MAX_PAGE_COUNT, MAX_PAGE_COUNT)
        # One more than the page tells whether there is a next one.
        found = self._tier.list(request.prefix, request.after_path, count + 1)
        page: list[tier_pb2.BlockInfo] = []
        page_bytes = 0
        for info in found[:count]:
            message = info_to_wire(info)
            page_bytes += message.ByteSize()
            if page and page_bytes > MAX_PAGE_BYTES:
                break
            page.append(message)
        more = len(page) < len(found)
        return tier_pb2.ListBlocksResponse(
            header=self._header(), blocks=page, next_after_path=page[-1].path if more else ""
        )

    @TIER_ERRORS.handler
    def DeleteBlock(
        self, request: tier_pb2.DeleteBlockRequest, context: grpc.ServicerContext
    ) -> tier_pb2.DeleteBlockResponse:
        self._tier.delete(request.path)
        return tier_pb2.DeleteBlockResponse(header=self._header())

    @TIER_ERRORS.handler
    def DeleteBlocks(
        self, request: tier_pb2.DeleteBlocksRequest, context: grpc.ServicerContext
    ) -> tier_pb2.DeleteBlocksResponse:
        count = self._tier.delete_prefix(request.prefix)
        return tier_pb2.DeleteBlocksResponse(header=self._header(), deleted_count=count)


def _chunks(requests: Iterator[tier_pb2.PutBlockRequest]) -> Iterator[bytes]:
    for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidRequest("after the first message of PutBlock nothing but chunks may come")
        yield request.chunk
