"""The client of one server's blocks: shared memory on the same host, bytes by RPC from anywhere else."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from storage_tier.blocks import Block
from storage_tier.errors import (
    BlockNotFound,
    InvalidRequest,
    ReservationLost,
    ServerFailed,
    TierError,
    Unsupported,
)
from storage_tier.headers import (
    BlockInfo,
    Metadata,
    clean_metadata,
    clean_path,
    clean_prefix,
    payload_offset_bytes,
)
from storage_tier.host import is_near
from storage_tier.messages import info_from_wire, metadata_to_wire
from storage_tier.tier import Listing, TierStatus
from storage_tier.v1 import tier_pb2, tier_pb2_grpc
from storage_tier.wire import CHUNK_BYTES, TIER_ERRORS, TlsClient, channel, check_token, parse_address, target
from storage_tier.writer import BlockWriter, flat_views

LOG = logging.getLogger(__name__)

# Generous on purpose: a wait that ends wrongly costs more than one that ends late.
DEFAULT_TIMEOUT_S = 60.0

# Channels made before a fork. Their threads do not exist in the child: closing or collecting them there can
# hang.
_OTHER_PROCESS: list[Any] = []


@dataclass
class _Connection:
    channel: grpc.Channel
    stub: Any
    hello: _Hello | None = None


@dataclass(frozen=True)
class _Hello:
    server_id: str
    epoch: int
    directory: Path
    near: bool


class TierClient:
    """Blocks of one server. Picklable when made from an address; each process connects by itself.

    Thread-safe. Each call raises `Unreachable` at once when nobody listens (it does not wait for a server to
    come back) and `DeadlineExceeded` after `timeout_s`; after either the server may or may not have done what
    was asked.
    """

    def __init__(
        self,
        address_or_channel: str | grpc.Channel,
        token: str | None = None,
        tls: TlsClient | None = None,
        near: bool | None = None,
        server_index: int = 0,
    ) -> None:
        """Does no I/O.

        Args:
            address_or_channel: 'coproc://HOST:PORT[,...]', or a channel that the caller keeps and closes.
            token: what the server was started with.
            tls: when the server speaks TLS.
            near: None finds out by the server's nonce; True refuses to go on when this is not the server's
            host;
                False never touches shared memory.
            server_index: which server of the address.

        Raises:
            InvalidAddress, InvalidRequest.
        """
        self._arguments = (address_or_channel, token, tls, near, server_index)
        self._token = check_token(token)
        self._tls = tls
        self._wanted = near
        self._given = None if isinstance(address_or_channel, str) else address_or_channel
        self._server: tuple[str, int] | None = None
        self.peer = "the given channel"
        if isinstance(address_or_channel, str):
            servers = parse_address(address_or_channel)
            if not 0 <= server_index < len(servers):
                raise InvalidRequest(f"{address_or_channel} has {len(servers)} servers, and no number {server_index}")
            self._server = servers[server_index]
            self.peer = target(*self._server)
        self._connections: dict[int, _Connection] = {}  # by process id; as a rule one

    def __reduce__(self) -> tuple[Any, ...]:
        if self._given is not None:
            raise TypeError("a TierClient over a channel cannot be pickled: make it from an address")
        return (TierClient, self._arguments)

    # -------------------------------------------------------------- connection

    @property
    def near(self) -> bool:
        """Whether this process shares memory with the server. Asks the server once a connection."""
        return self._hello(time.monotonic() + DEFAULT_TIMEOUT_S).near

    @property
    def epoch(self) -> int:
        """The server's count of starts, as of the last answer."""
        return self._hello(time.monotonic() + DEFAULT_TIMEOUT_S).epoch

    def close(self) -> None:
        """Close the connection of this process. Idempotent; a later call connects again; blocks stay open."""
        connection = self._connections.pop(os.getpid(), None)
        if connection is not None and self._given is None:
            connection.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _connect(self) -> _Connection:
        pid = os.getpid()
        connection = self._connections.get(pid)
        if connection is not None:
            return connection
        others = [other for other in tuple(self._connections) if other != pid]
        _OTHER_PROCESS.extend(self._connections.pop(other, None) for other in others)
        made: grpc.Channel = self._given
        if self._server is not None:
            made = channel(*self._server, token=self._token, tls=self._tls)
        mine = _Connection(made, tier_pb2_grpc.TierStub(made))
        # No lock: one held by another thread at a fork would stay held in the child.
        connection = self._connections.setdefault(pid, mine)
        if connection is not mine and self._given is None:
            made.close()
        return connection

    def _call(self, name: str, request: Any, deadline_s: float) -> Any:
        connection = self._connect()
        with TIER_ERRORS.translated(self.peer):
            response = getattr(connection.stub, name)(request, timeout=_remaining_s(deadline_s))
        hello, header = connection.hello, response.header
        if hello is not None and (hello.server_id, hello.epoch) != (header.server_id, header.epoch):
            # Another start of the server, or another server: whether it is near is to be found out anew.
            connection.hello = None
        return response

    def _hello(self, deadline_s: float) -> _Hello:
        connection = self._connect()
        if connection.hello is not None:
            return connection.hello
        challenge = secrets.token_bytes(32)
        response = self._call("Hello", tier_pb2.HelloRequest(challenge=challenge), deadline_s)
        near = self._wanted is not False and is_near(response.nonce_path, response.proof, challenge)
        if self._wanted and not near:
            raise Unsupported(
                f"near=True, and this process cannot read the nonce of the server at {self.peer} "
                f"({response.nonce_path}): it runs on another host, in another container, or as another user"
            )
        # The proof is about the folder that holds the nonce, so that is the only folder to be trusted.
        directory = Path(os.path.abspath(response.nonce_path)).parent
        hello = _Hello(response.header.server_id, response.header.epoch, directory, near)
        connection.hello = hello
        return hello

    def _inside(self, path: str, hello: _Hello) -> Path:
        """A path that the server told, if it lies in the folder it proved to own."""
        inside = Path(os.path.abspath(path))
        if not inside.is_relative_to(hello.directory):
            raise ServerFailed(f"the server at {self.peer} names {path!r:.200}, outside of its {hello.directory}")
        return inside

    # ------------------------------------------------------------------ blocks

    def put(
        self,
        path: str,
        buffers: Any,
        metadata: Metadata | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> BlockInfo:
        """Publish a block made of one buffer or several. Whole or not at all; a name is given once.

        Near: two round trips and one copy, by this process, from the buffers into shared memory. Far: one
        stream. The buffers stay the caller's.

        Raises:
            BlockExists, InvalidPath, InvalidRequest, OutOfMemory; Unreachable, DeadlineExceeded: it may have
            been published (then a second try says `BlockExists`).
        """
        path = clean_path(path)
        metadata = clean_metadata(metadata)
        views = flat_views(buffers)
        size_bytes = sum(len(view) for view in views)
        deadline_s = time.monotonic() + timeout_s
        if self._hello(deadline_s).near:
            info = self._put_near(path, views, size_bytes, metadata, deadline_s)
            if info is not None:
                return info
        begin = tier_pb2.PutBlockBegin(path=path, size_bytes=size_bytes, metadata=metadata_to_wire(metadata))
        response = self._call("PutBlock", _put_stream(begin, views), deadline_s)
        return info_from_wire(response.block)

    def _put_near(
        self,
        path: str,
        views: list[memoryview],
        size_bytes: int,
        metadata: Metadata,
        deadline_s: float,
    ) -> BlockInfo | None:
        """None when the server that answers is no longer the one that was near."""
        file_bytes = payload_offset_bytes(path, metadata) + size_bytes
        request = tier_pb2.CreateBlockRequest(path=path, file_bytes=file_bytes)
        created = self._call("CreateBlock", request, deadline_s)
        hello = self._hello(deadline_s)
        if not hello.near:
            self._give_back(created.reservation_id, deadline_s)
            return None
        try:
            with BlockWriter(self._inside(created.directory, hello), path, metadata) as writer:
                writer.write(*views)
        except BaseException:
            self._give_back(created.reservation_id, deadline_s)
            raise
        commit = tier_pb2.CommitBlockRequest(reservation_id=created.reservation_id)
        try:
            return info_from_wire(self._call("CommitBlock", commit, deadline_s).block)
        except ReservationLost:
            # The server was started anew, or this took too long. The link is what counts: it finds the block.
            return info_from_wire(self._open(path, deadline_s).block)

    def _give_back(self, reservation_id: str, deadline_s: float) -> None:
        try:
            self._call("AbortBlock", tier_pb2.AbortBlockRequest(reservation_id=reservation_id), deadline_s)
        except TierError as error:
            # The caller is told why the write failed; the reservation ends by itself.
            LOG.debug("a reservation was left to run out: %s", error)

    def info(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> BlockInfo:
        """What a block is. One round trip.

        Raises:
            BlockNotFound, CorruptBlock, InvalidPath.
        """
        return info_from_wire(self._open(path, time.monotonic() + timeout_s).block)

    def open(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Block:
        """Open a block. Near: one round trip, `data` is the server's memory, no copy. Far: fetches all bytes.

        Raises:
            BlockNotFound, CorruptBlock, InvalidPath.
        """
        path = clean_path(path)
        deadline_s = time.monotonic() + timeout_s
        if not self._hello(deadline_s).near:
            return self._fetch(path, 0, 0, deadline_s)
        response = self._open(path, deadline_s)
        # Asked again, for another server may have answered than the one that was near.
        hello = self._hello(deadline_s)
        if not hello.near:
            return self._fetch(path, 0, 0, deadline_s)
        return Block.map(self._inside(response.local_path, hello), path)

    def read(
        self, path: str, offset_bytes: int, limit_bytes: int, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> memoryview:
        """A range of a block's bytes, by RPC even when near: `limit_bytes`, or less at the end of the block.

        Raises:
            BlockNotFound, CorruptBlock, InvalidPath; InvalidRequest: the range begins outside of the block.
        """
        path = clean_path(path)
        if limit_bytes <= 0 or offset_bytes < 0:
            raise InvalidRequest(f"{limit_bytes:,} bytes from {offset_bytes:,} on cannot be read from {path}")
        return self._fetch(path, offset_bytes, limit_bytes, time.monotonic() + timeout_s).data

    def exists(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """Whether there is a block of this name. One round trip."""
        try:
            self.info(path, timeout_s=timeout_s)
        except BlockNotFound:
            return False
        return True

    def list(self, prefix: str = "", *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Listing:
        """Blocks at or below a prefix, by path: '/a' means /a and /a/..., not /ab. A round trip a thousand.

        Raises:
            InvalidPath.
        """
        prefix = clean_prefix(prefix)
        deadline_s = time.monotonic() + timeout_s
        found: Listing = []
        after_path = ""
        while True:
            request = tier_pb2.ListBlocksRequest(prefix=prefix, after_path=after_path)
            response = self._call("ListBlocks", request, deadline_s)
            found += [info_from_wire(message) for message in response.blocks]
            if not response.next_after_path:
                return found
            if response.next_after_path <= after_path:
                raise ServerFailed(f"the server at {self.peer} lists {prefix or '/'} in circles")
            after_path = response.next_after_path

    def delete(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Remove a block. Who has it open keeps its bytes.

        Raises:
            BlockNotFound, InvalidPath.
        """
        request = tier_pb2.DeleteBlockRequest(path=clean_path(path))
        self._call("DeleteBlock", request, time.monotonic() + timeout_s)

    def delete_prefix(self, prefix: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Remove all blocks at or below a prefix; returns how many. Not atomic over the blocks.

        Raises:
            InvalidPath.
        """
        request = tier_pb2.DeleteBlocksRequest(prefix=clean_prefix(prefix))
        return int(self._call("DeleteBlocks", request, time.monotonic() + timeout_s).deleted_count)

    def status(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> TierStatus:
        """Memory, blocks and damage of the server."""
        response = self._call("Status", tier_pb2.StatusRequest(), time.monotonic() + timeout_s)
        return TierStatus(
            server_id=response.header.server_id,
            epoch=response.header.epoch,
            directory=response.directory,
            memory_used_bytes=response.memory_used_bytes,
            memory_limit_bytes=response.memory_limit_bytes,
            block_count=response.block_count,
            block_bytes=response.block_bytes,
            reservation_count=response.reservation_count,
            started_ns=response.started_ns,
            damaged_count=response.damaged_count,
            damaged=tuple(response.damaged),
        )

    def _open(self, path: str, deadline_s: float) -> tier_pb2.OpenBlockResponse:
        response = self._call("OpenBlock", tier_pb2.OpenBlockRequest(path=clean_path(path)), deadline_s)
        assert isinstance(response, tier_pb2.OpenBlockResponse)
        return response

    def _fetch(self, path: str, offset_bytes: int, limit_bytes: int, deadline_s: float) -> Block:
        request = tier_pb2.ReadBlockRequest(path=path, offset_bytes=offset_bytes, limit_bytes=limit_bytes)
        stub = self._connect().stub
        with TIER_ERRORS.translated(self.peer):
            stream = stub.ReadBlock(request, timeout=_remaining_s(deadline_s))
            info = info_from_wire(next(stream).block)
            want_bytes = info.size_bytes - offset_bytes
            if limit_bytes:
                want_bytes = min(want_bytes, limit_bytes)
            data = bytearray(want_bytes)
            at = 0
            for response in stream:
                data[at : at + len(response.chunk)] = response.chunk
                at += len(response.chunk)
                if at > want_bytes:
                    stream.cancel()
                    break
        if at != want_bytes:
            raise ServerFailed(
                f"the server at {self.peer} sent {at:,} bytes of {path}, and {want_bytes:,} were asked for"
            )
        return Block(info, memoryview(data).toreadonly())


def _remaining_s(deadline_s: float) -> float:
    # gRPC takes 0 for a deadline that has passed and says so.
    return max(0.0, deadline_s - time.monotonic())


def _put_stream(begin: tier_pb2.PutBlockBegin, views: Iterable[memoryview]) -> Iterator[tier_pb2.PutBlockRequest]:
    yield tier_pb2.PutBlockRequest(begin=begin)
    for view in views:
        for at in range(0, len(view), CHUNK_BYTES):
            yield tier_pb2.PutBlockRequest(chunk=bytes(view[at : at + CHUNK_BYTES]))
