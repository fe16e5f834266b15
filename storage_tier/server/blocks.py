"""The service of the tier's blocks.

A handler only ever talks to a thread-safe store and gives its answer; it keeps no state of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from storage_tier.errors import InvalidRequest
from storage_tier.host import proof_of
from storage_tier.line import TICKET_OF
from storage_tier.messages import info_to_wire
from storage_tier.server.line import Call, Raw, unary_calls
from storage_tier.tier import Tier
from storage_tier.v1 import tier_pb2, tier_pb2_grpc
from storage_tier.wire import TIER_ERRORS

MAX_CHALLENGE_BYTES = 64
MAX_DAMAGED_SHOWN = 20


class TierService(tier_pb2_grpc.TierServicer):
    """The service `storage_tier.v1.Tier` over one store. Errors travel by `TIER_ERRORS`."""

    NAME = "storage_tier.v1.Tier"

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._header = tier_pb2.ResponseHeader(server_id=tier.server_id, epoch=tier.epoch)
        self.line_path = ""
        """Of the Unix socket that takes the same calls; '' for none."""
        self.line_port = 0
        """That takes the same calls; 0 for none."""

    def register(self, server: grpc.Server) -> None:
        """For `RpcServer.add(service.register, service.NAME)`."""
        tier_pb2_grpc.add_TierServicer_to_server(self, server)

    def line_calls(self) -> dict[str, Call]:
        """The same methods for the line."""
        return {
            **unary_calls(self, tier_pb2.DESCRIPTOR.services_by_name["Tier"]),
            "ReadBlock": Call(tier_pb2.ReadBlockRequest, lambda request, context, _: self.read_raw(request, context)),
        }

    @TIER_ERRORS.handler
    def Hello(self, request: tier_pb2.HelloRequest, context: grpc.ServicerContext) -> tier_pb2.HelloResponse:
        if len(request.challenge) > MAX_CHALLENGE_BYTES:
            raise InvalidRequest(f"a challenge has at most {MAX_CHALLENGE_BYTES} bytes")
        return tier_pb2.HelloResponse(
            header=self._header,
            nonce_path=str(self._tier.nonce_path),
            directory=str(self._tier.directory),
            proof=proof_of(self._tier.nonce, request.challenge),
            line_path=self.line_path,
            line_port=self.line_port,
            line_ticket=proof_of(self._tier.nonce, TICKET_OF),
        )

    @TIER_ERRORS.handler
    def Status(self, request: tier_pb2.StatusRequest, context: grpc.ServicerContext) -> tier_pb2.StatusResponse:
        status = self._tier.status()
        return tier_pb2.StatusResponse(
            header=self._header,
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
    def ReadBlock(
        self, request: tier_pb2.ReadBlockRequest, context: grpc.ServicerContext
    ) -> Iterator[tier_pb2.ReadBlockResponse]:
        first, raw = self.read_raw(request, context)
        with raw:
            yield first
            for chunk in raw.chunks():
                yield tier_pb2.ReadBlockResponse(chunk=bytes(chunk))

    def read_raw(self, request: tier_pb2.ReadBlockRequest, context: Any) -> tuple[tier_pb2.ReadBlockResponse, Raw]:
        """`ReadBlock` for the line: the first answer, and the bytes that follow."""
        block = self._tier.open(request.path)
        try:
            start, end = range_of(request, block.path, block.size_bytes)
            first = tier_pb2.ReadBlockResponse(header=self._header, block=info_to_wire(block.info))
            return first, Raw(block, start, end)
        except BaseException:
            block.close()
            raise


def range_of(request: Any, path: str, size_bytes: int) -> tuple[int, int]:
    """Where in `size_bytes` the bytes that a request asks for begin and end.

    Raises:
        InvalidRequest: they begin outside.
    """
    start, end = request.offset_bytes, size_bytes
    if not 0 <= start <= end or request.limit_bytes < 0:
        raise InvalidRequest(f"{path} has {end:,} bytes, and {request.limit_bytes:,} from {start:,} on were asked for")
    return start, min(end, start + request.limit_bytes) if request.limit_bytes else end
