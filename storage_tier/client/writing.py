"""Writing files: small ones in one message; on the server's host into its memory; from elsewhere as a stream."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from storage_tier.client.connection import Connection
from storage_tier.errors import OutOfMemory, ReservationLost, TierError
from storage_tier.file_info import FileInfo
from storage_tier.messages import file_from_wire
from storage_tier.v1 import files_pb2
from storage_tier.writer import BlockWriter, flat_views

LOG = logging.getLogger(__name__)

# Up to here one message costs less than the two round trips around a block that is written here.
NEAR_INLINE_BYTES = 64 << 10
# From elsewhere the bytes go by RPC anyway; a stream of messages only pays when one would be large.
FAR_INLINE_BYTES = 1 << 20
# What a writer reserves that does not know how much will come: twice as much each time, and never too much at once.
_FIRST_BYTES = 1 << 20
_MOST_MORE_BYTES = 256 << 20


@dataclass(frozen=True)
class _Reserved:
    id: str
    directory: str
    block_path: str
    size_bytes: int
    renew_s: float
    """On the monotonic clock: half of its life."""


def put(
    connection: Connection,
    path: str,
    views: list[memoryview],
    options: files_pb2.CommitOptions,
    deadline_s: float,
) -> FileInfo:
    """Publish a file made of these bytes. Whole or not at all; nothing is kept of the buffers.

    Raises:
        as `TierClient.put`.
    """
    size_bytes = sum(len(view) for view in views)
    near = connection.hello(deadline_s).near
    if size_bytes <= NEAR_INLINE_BYTES:
        return _put_inline(connection, path, views, options, deadline_s)
    if near:
        try:
            info = _put_near(connection, path, views, size_bytes, options, deadline_s)
        except ReservationLost:
            # The server was started anew, or this took too long: nothing was published, the buffers are still here.
            info = _put_near(connection, path, views, size_bytes, options, deadline_s)
        if info is not None:
            return info
    if size_bytes <= FAR_INLINE_BYTES:
        return _put_inline(connection, path, views, options, deadline_s)
    begin = files_pb2.SendFileBegin(path=path, size_bytes=size_bytes, options=options)
    return file_from_wire(connection.send("SendFile", begin, views, deadline_s).file)


def _put_inline(
    connection: Connection,
    path: str,
    views: list[memoryview],
    options: files_pb2.CommitOptions,
    deadline_s: float,
) -> FileInfo:
    request = files_pb2.PutFileRequest(path=path, content=b"".join(views), options=options)
    return file_from_wire(connection.call("PutFile", request, deadline_s).file)


def _put_near(
    connection: Connection,
    path: str,
    views: list[memoryview],
    size_bytes: int,
    options: files_pb2.CommitOptions,
    deadline_s: float,
) -> FileInfo | None:
    """None when the server that answers is no longer the one that was near."""
    reserved = _reserve(connection, path, size_bytes, options, deadline_s)
    if reserved is None:
        return None
    try:
        with _writer(connection, reserved, deadline_s) as writer:
            writer.write(*views)
        return _commit(connection, reserved.id, options, deadline_s)
    except BaseException:
        give_back(connection, reserved.id, deadline_s)
        raise


def _reserve(
    connection: Connection, path: str, size_bytes: int, options: files_pb2.CommitOptions, deadline_s: float
) -> _Reserved | None:
    request = files_pb2.CreateFileRequest(path=path, size_bytes=size_bytes, options=options)
    created = connection.call("CreateFile", request, deadline_s)
    if not connection.hello(deadline_s).near:
        give_back(connection, created.reservation_id, deadline_s)
        return None
    renew_s = time.monotonic() + created.ttl_ms / 2000
    return _Reserved(created.reservation_id, created.directory, created.block_path, size_bytes, renew_s)


def _writer(connection: Connection, reserved: _Reserved, deadline_s: float) -> BlockWriter:
    return BlockWriter(connection.inside(reserved.directory, connection.hello(deadline_s)), reserved.block_path)


def _commit(
    connection: Connection, reservation_id: str, options: files_pb2.CommitOptions, deadline_s: float
) -> FileInfo:
    request = files_pb2.CommitFileRequest(reservation_id=reservation_id, options=options)
    return file_from_wire(connection.call("CommitFile", request, deadline_s).file)


def give_back(connection: Connection, reservation_id: str, deadline_s: float) -> None:
    """Give a reservation back; one that cannot be ends by itself."""
    try:
        connection.call("AbortFile", files_pb2.AbortFileRequest(reservation_id=reservation_id), deadline_s)
    except TierError as error:
        # The caller is told why the write failed.
        LOG.debug("a reservation was left to run out: %s", error)


def commit_all(connection: Connection, writers: Sequence[FileWriter], deadline_s: float) -> list[FileInfo]:
    """As `TierClient.commit_all`."""
    try:
        commits = [writer.stage(deadline_s) for writer in writers]
        request = files_pb2.CommitFilesRequest(commits=commits)
        infos = [file_from_wire(file) for file in connection.call("CommitFiles", request, deadline_s).files]
        for writer, info in zip(writers, infos, strict=True):
            writer.published(info)
        return infos
    finally:
        for writer in writers:
            writer.abort()


class FileWriter:
    """A file that is written piece by piece. Leaving `with` publishes it whole; leaving by an exception, nothing.

    Near, the bytes go into the server's memory as they come: one copy, by the kernel. Far, this process keeps them
    until the end. Nobody sees anything before, and a process that dies leaves nothing. Not thread-safe.
    """

    def __init__(self, connection: Connection, path: str, options: files_pb2.CommitOptions, timeout_s: float) -> None:
        self.path = path
        self.connection = connection
        self._options = options
        self._timeout_s = timeout_s
        self._kept = bytearray()
        self._far = False
        self._reserved: _Reserved | None = None
        self._writer: BlockWriter | None = None
        self._closed = False
        self._info: FileInfo | None = None

    @property
    def size_bytes(self) -> int:
        """What was written so far."""
        return self._writer.size_bytes if self._writer is not None else len(self._kept)

    @property
    def info(self) -> FileInfo:
        """The file as it was published.

        Raises:
            ValueError: it was not.
        """
        if self._info is None:
            raise ValueError(f"{self.path} was not published by this writer")
        return self._info

    def write(self, *buffers: Any) -> int:
        """Append buffers; returns their bytes. They stay the caller's.

        Raises:
            OutOfMemory: they do not fit; InvalidRequest: not contiguous buffers; as `TierClient.put`.
        """
        if self._closed:
            raise ValueError(f"the writer of {self.path} is closed")
        views = flat_views(buffers)
        more_bytes = sum(len(view) for view in views)
        if self._writer is None and not self._far and len(self._kept) + more_bytes > NEAR_INLINE_BYTES:
            self._begin_near(len(self._kept) + more_bytes)
        if self._writer is None:
            for view in views:
                self._kept += view
            return more_bytes
        self._grow(self._writer, self._writer.size_bytes + more_bytes)
        return self._writer.write(*views)

    def commit(self) -> FileInfo:
        """Publish it. Atomic.

        Raises:
            as `TierClient.put`; ReservationLost: the server was started anew meanwhile, write it again.
        """
        if self._closed:
            raise ValueError(f"the writer of {self.path} is closed")
        deadline_s = time.monotonic() + self._timeout_s
        try:
            if self._writer is None or self._reserved is None:
                self._info = put(self.connection, self.path, [memoryview(self._kept)], self._options, deadline_s)
            else:
                self._writer.commit()
                self._info = _commit(self.connection, self._reserved.id, self._options, deadline_s)
                self._reserved = None
        finally:
            self.abort()
        return self._info

    def stage(self, deadline_s: float) -> files_pb2.CommitFileRequest:
        """Have all bytes at the server, and nothing published; returns what would publish them. Nothing more comes.

        Raises:
            OutOfMemory; InvalidRequest, PathExists, …: what can be told now already; ReservationLost.
        """
        if self._closed:
            raise ValueError(f"the writer of {self.path} is closed")
        if self._writer is None and not self._far:
            self._begin_near(len(self._kept), about=False)
        if self._writer is not None:
            self._writer.commit()
        elif self._reserved is None:
            begin = files_pb2.SendFileBegin(path=self.path, size_bytes=len(self._kept), options=self._options)
            staged = self.connection.send("StageFile", begin, [memoryview(self._kept)], deadline_s)
            self._reserved = _Reserved(staged.reservation_id, "", "", len(self._kept), time.monotonic())
        assert self._reserved is not None
        return files_pb2.CommitFileRequest(reservation_id=self._reserved.id, options=self._options)

    def published(self, info: FileInfo) -> None:
        """Take what was staged for published by somebody else."""
        self._info, self._reserved = info, None
        self.abort()

    def abort(self) -> None:
        """Drop what was written. Idempotent; after a commit it does nothing."""
        self._closed = True
        self._kept = bytearray()
        if self._writer is not None:
            self._writer.abort()
        reserved, self._reserved = self._reserved, None
        if reserved is not None:
            give_back(self.connection, reserved.id, time.monotonic() + self._timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and not self._closed:
            self.commit()
        else:
            self.abort()

    def _begin_near(self, size_bytes: int, about: bool = True) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        if self.connection.hello(deadline_s).near:
            if about:
                self._reserved = self._reserve_about(size_bytes, deadline_s)
            else:
                self._reserved = _reserve(self.connection, self.path, size_bytes, self._options, deadline_s)
        if self._reserved is None:
            self._far = True
            return
        self._writer = _writer(self.connection, self._reserved, deadline_s)
        self._writer.write(self._kept)
        self._kept = bytearray()

    def _reserve_about(self, size_bytes: int, deadline_s: float) -> _Reserved | None:
        """At least `size_bytes`; where there is room for what will come next too, that as well."""
        generous_bytes = max(_FIRST_BYTES, min(2 * size_bytes, size_bytes + _MOST_MORE_BYTES))
        try:
            return _reserve(self.connection, self.path, generous_bytes, self._options, deadline_s)
        except OutOfMemory:
            return _reserve(self.connection, self.path, size_bytes, self._options, deadline_s)

    def _grow(self, writer: BlockWriter, size_bytes: int) -> None:
        """Have a reservation that is large enough and young enough; the bytes stay where they are."""
        reserved = self._reserved
        if reserved is not None and size_bytes <= reserved.size_bytes and time.monotonic() < reserved.renew_s:
            return
        deadline_s = time.monotonic() + self._timeout_s
        # First the old one, or both would have to fit at once. Its name was never linked.
        self._reserved = None
        if reserved is not None:
            give_back(self.connection, reserved.id, deadline_s)
        self._reserved = self._reserve_about(size_bytes, deadline_s)
        if self._reserved is None:
            raise ReservationLost(f"{self.path}: another server answers than the one it was begun at: write it again")
        # All names of blocks have one length, so the payload may stay where it begins.
        writer.path = self._reserved.block_path
