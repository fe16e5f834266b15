"""The table of coproc's errors on the wire, and float32 vectors as streams of chunks.

A message that is one piece of a vector and nothing else is written and read here, byte by byte as protobuf does it: by
protobuf it is copied three times more at either end, which takes twice as long as all the rest of a push.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from coproc import errors
from coproc.compression import Compression
from coproc.compression.base import PIECE_FLOATS
from coproc.compression.feedback import Part, advance
from coproc.layout import Flat, all_finite
from coproc.v1 import coproc_pb2 as pb
from coproc.v1 import coproc_pb2_grpc
from storage_tier import errors as tier_errors
from storage_tier.wire import ErrorTable

# Each message is handed from thread to thread in gRPC, which takes longer than to copy a MiB.
_PLAIN_BYTES = 2 << 20
# Received by the line before it is looked at: it is in the processor's cache then.
_RECEIVED_BYTES = 1 << 20
# A part up to this size is better copied into another message than sent by one of its own.
_SMALL_BYTES = 1 << 16
_SERVICE = "coproc.v1.Coprocessor"

ERRORS = ErrorTable(
    {
        errors.ServerError: grpc.StatusCode.INTERNAL,
        errors.CoprocError: grpc.StatusCode.UNKNOWN,
        errors.Unreachable: grpc.StatusCode.UNAVAILABLE,
        errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
        errors.Timeout: grpc.StatusCode.DEADLINE_EXCEEDED,
        errors.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.PushRejected: grpc.StatusCode.INVALID_ARGUMENT,
        errors.DataError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.DataLost: grpc.StatusCode.DATA_LOSS,
        errors.CorruptCheckpoint: grpc.StatusCode.INVALID_ARGUMENT,
        errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
        errors.ModelExists: grpc.StatusCode.ALREADY_EXISTS,
        errors.OutOfMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.LeaseExpired: grpc.StatusCode.FAILED_PRECONDITION,
        errors.WorkerLost: grpc.StatusCode.ABORTED,
        errors.Diverged: grpc.StatusCode.FAILED_PRECONDITION,
        errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    }
)

_FROM_TIER: dict[type[Exception], type[errors.CoprocError]] = {
    tier_errors.OutOfMemory: errors.OutOfMemory,
    tier_errors.Unreachable: errors.Unreachable,
    tier_errors.Unauthenticated: errors.Unauthenticated,
    tier_errors.DeadlineExceeded: errors.Timeout,
    tier_errors.InvalidAddress: errors.ConfigError,
    tier_errors.InvalidRequest: errors.ConfigError,
    tier_errors.RegionNotFound: errors.ModelNotFound,
}


def as_coproc(error: tier_errors.TierError) -> errors.CoprocError:
    """The error of this package that says the same as one of the tier's."""
    kind = next((_FROM_TIER[k] for k in type(error).__mro__ if k in _FROM_TIER), errors.ServerError)
    return kind(str(error))


def chunks(flat: NDArray[np.float32]) -> Iterator[bytes]:
    """The bytes of a contiguous float32 vector in pieces of 2 MiB; each is copied once."""
    return (bytes(part.data) for part in plain_parts(flat))


def plain_parts(flat: NDArray[np.float32]) -> Iterator[Part]:
    """The same as views, not copied."""
    data = flat.data.cast("B")
    for start in range(0, len(data), _PLAIN_BYTES):
        yield Part(data[start : start + _PLAIN_BYTES], False)


# -- messages of Push, Pull and PushPull: a field of bytes is (its number << 3 | 2), its length, and the bytes

_PUSH_CHUNK, _PULL_CHUNK, _CODED = 2 << 3 | 2, 15 << 3 | 2, 3 << 3 | 2


def service_stub(channel: grpc.Channel) -> Any:
    """The service's stub. Push and PushPull take, Pull and PushPull give, a `Part` for each message that is one."""
    made: Any = coproc_pb2_grpc.CoprocessorStub(channel)
    made.Push = channel.stream_unary(
        f"/{_SERVICE}/Push",
        request_serializer=lambda message: _written(message, _PUSH_CHUNK),
        response_deserializer=pb.PushResponse.FromString,
    )
    made.Pull = channel.unary_stream(
        f"/{_SERVICE}/Pull",
        request_serializer=pb.PullRequest.SerializeToString,
        response_deserializer=lambda data: _read(data, pb.PullResponse, _PULL_CHUNK),
    )
    made.PushPull = _push_pull(channel)
    return made


def _push_pull(channel: grpc.Channel) -> Callable[..., Iterator[Any]]:
    """PushPull, with the messages of `led`.

    Should there be one only, it is sent as the request of a call that takes one, which is the same on the wire: gRPC
    has a thread for every stream of requests, and with a small model that takes longer than all the rest.
    """
    streamed, at_once = [
        kind(
            f"/{_SERVICE}/PushPull",
            request_serializer=lambda message: _written(message, _PUSH_CHUNK),
            response_deserializer=lambda data: _read(data, pb.PushPullResponse, _PULL_CHUNK),
        )
        for kind in (channel.stream_stream, channel.unary_stream)
    ]

    def call(requests: Iterator[Any], timeout: float) -> Iterator[Any]:
        first, *second = itertools.islice(requests, 2)
        answers: Iterator[Any] = (
            streamed(itertools.chain([first], second, requests), timeout=timeout)
            if second
            else at_once(first, timeout=timeout)
        )
        return answers

    return call


def add_service(service: Any, server: grpc.Server) -> None:
    """Have a server serve it. Push and PushPull get, Pull and PushPull give, a `Part` for each message that is one."""
    coproc_pb2_grpc.add_CoprocessorServicer_to_server(service, server)
    handlers = {
        "Push": grpc.stream_unary_rpc_method_handler(
            service.Push,
            request_deserializer=lambda data: _read(data, pb.PushRequest, _PUSH_CHUNK),
            response_serializer=pb.PushResponse.SerializeToString,
        ),
        "Pull": grpc.unary_stream_rpc_method_handler(
            service.Pull,
            request_deserializer=pb.PullRequest.FromString,
            response_serializer=pull_written,
        ),
        "PushPull": grpc.stream_stream_rpc_method_handler(
            service.PushPull,
            request_deserializer=lambda data: _read(data, pb.PushPullRequest, _PUSH_CHUNK),
            response_serializer=lambda message: _written(message, _PULL_CHUNK),
        ),
    }
    server.add_registered_method_handlers(_SERVICE, handlers)


def pull_written(message: pb.PullResponse | Part) -> bytes:
    """An answer of Pull as it travels."""
    return _written(message, _PULL_CHUNK)


def parts(messages: Iterable[Any]) -> Iterator[Part]:
    """The parts of a stream, however they were written."""
    for message in messages:
        yield message if isinstance(message, Part) else Part(message.coded or message.chunk, bool(message.coded))


def led(first: Any, rest: Iterable[Part]) -> Iterator[Any]:
    """A stream that begins with a message; the first part goes in the same if it is small."""
    left = iter(rest)
    part = next(left, None)
    if part is not None and len(part.data) <= _SMALL_BYTES:
        setattr(first, "coded" if part.coded else "chunk", bytes(part.data))
        part = None
    yield first
    if part is not None:
        yield part
    yield from left


def _written(message: Any, chunk_tag: int) -> bytes:
    if not isinstance(message, Part):
        data: bytes = message.SerializeToString()
        return data
    left = len(message.data)
    head = bytearray([_CODED if message.coded else chunk_tag])
    while left > 0x7F:
        head.append(left & 0x7F | 0x80)
        left >>= 7
    head.append(left)
    return b"".join((head, message.data))


def _read(data: bytes, kind: Any, chunk_tag: int) -> Any:
    """A `Part` if the message is nothing else, else the message."""
    if data and data[0] in (chunk_tag, _CODED):
        size_bytes, shift = 0, 0
        for at in range(1, min(len(data), 6)):
            size_bytes |= (data[at] & 0x7F) << shift
            shift += 7
            if data[at] < 0x80:
                if at + 1 + size_bytes == len(data):
                    return Part(memoryview(data)[at + 1 :], data[0] == _CODED)
                break
    return kind.FromString(data)


class Raw(Protocol):
    """Bytes that follow a message on the line (`storage_tier.line`)."""

    left_bytes: int

    def fill(self, view: memoryview) -> None:
        """Take the next ones."""
        ...


class Filling:
    """Receives chunks into a float32 vector (P,) that somebody else owns."""

    def __init__(self, out: Flat, what: str) -> None:
        self._out = out
        self._data = out.data.cast("B")
        self._what = what
        self.filled_bytes = 0
        self.travelled_bytes = 0
        """That came, in whatever form."""
        self.finite = True
        """Whether what has come is known to be finite: looked at while it is in the processor's cache."""

    def add(self, chunk: bytes | memoryview) -> None:
        """Copy the next chunk.

        Raises:
            ConfigError: more bytes than the vector has.
        """
        end = self.filled_bytes + len(chunk)
        if end > len(self._data):
            raise errors.ConfigError(f"{self._what} has {len(self._data):,} bytes; more than that were sent")
        self._data[self.filled_bytes : end] = chunk
        self.travelled_bytes += len(chunk)
        whole_floats = not (self.filled_bytes | end) & 3
        self.finite &= whole_floats and all_finite(self._out[self.filled_bytes // 4 : end // 4])
        self.filled_bytes = end

    def receive(self, source: Raw) -> None:
        """Take all raw bytes of a call by the line, straight into place.

        Raises:
            ConfigError: not as many as the vector has; none was taken. As `source.fill`.
        """
        if source.left_bytes != len(self._data):
            raise errors.ConfigError(f"{self._what} has {len(self._data):,} bytes, and {source.left_bytes:,} were sent")
        while self.filled_bytes < len(self._data):
            end = min(self.filled_bytes + _RECEIVED_BYTES, len(self._data))
            source.fill(self._data[self.filled_bytes : end])
            self.finite &= all_finite(self._out[self.filled_bytes // 4 : end // 4])
            self.filled_bytes = end
        self.travelled_bytes += len(self._data)

    def add_coded(self, chunk: bytes | memoryview, compression: Compression) -> None:
        """Decode the next piece into its place.

        Raises:
            ConfigError: not the bytes of the next piece.
        """
        piece = self._next_piece()
        compression.decode(chunk, piece)
        self.travelled_bytes += len(chunk)
        self.finite &= all_finite(piece)
        self.filled_bytes += piece.nbytes

    def add_difference(self, chunk: bytes | memoryview, compression: Compression) -> None:
        """Decode the next piece and add it to what is there.

        Raises:
            ConfigError: not the bytes of the next piece; it is as it was.
        """
        piece = self._next_piece()
        difference = np.empty_like(piece)
        compression.decode(chunk, difference)
        self.travelled_bytes += len(chunk)
        advance(piece, difference)
        self.filled_bytes += piece.nbytes

    def _next_piece(self) -> Flat:
        start, odd_bytes = divmod(self.filled_bytes, 4)
        if odd_bytes or start == self._out.size:
            raise errors.ConfigError(
                f"{self._what} has {len(self._data):,} bytes, and a coded chunk was sent after {self.filled_bytes:,}"
            )
        return self._out[start : start + PIECE_FLOATS]

    def finish(self) -> None:
        """Raises ConfigError if bytes are missing."""
        if self.filled_bytes != len(self._data):
            raise errors.ConfigError(
                f"{self._what} has {len(self._data):,} bytes; only {self.filled_bytes:,} were sent"
            )
