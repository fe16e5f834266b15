"""The client of a tier: its files, by shared memory on a server's host and by RPC from anywhere else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self

import grpc

from storage_tier.client.connection import Connection
from storage_tier.client.reading import FileView, fetch, open_near
from storage_tier.client.verbs import DEFAULT_TIMEOUT_S, Verbs, whole_path
from storage_tier.client.writing import FileWriter, commit_all, put
from storage_tier.errors import InvalidRequest, OutOfMemory
from storage_tier.file_info import FileInfo, FileMetadata, WriteTypeName
from storage_tier.line import Lines
from storage_tier.messages import commit_options
from storage_tier.wire import TlsClient
from storage_tier.writer import flat_views


class TierClient(Verbs):
    """The files of a tier. Picklable when made from an address; each process connects by itself.

    After a fork both sides may go on with it, and the child may make others, for servers that were used by the same
    address before; a server that was not is refused with `Unsupported` when gRPC had been used before the fork.

    Any server answers for any path, so of several the one on this host is taken, else the first that answers. Thread-
    safe. Each call raises `Unreachable` at once when nobody listens (it does not wait for a server to come back) and
    `DeadlineExceeded` after `timeout_s`; after either the server may or may not have done what was asked. Everything
    raises `InvalidPath` for what is none. Errors are those of `storage_tier.errors`.
    """

    def __init__(
        self,
        address_or_channel: str | grpc.Channel,
        token: str | None = None,
        tls: TlsClient | None = None,
        near: bool | None = None,
        server_index: int | None = None,
    ) -> None:
        """Does no I/O.

        Args:
            address_or_channel: 'coproc://HOST:PORT[,...]', or a channel that the caller keeps and closes.
            token: what the servers were started with.
            tls: when the servers speak TLS.
            near: None finds out by a server's nonce; True refuses to go on when none is on this host;
                False never touches shared memory.
            server_index: which server of the address; None chooses.

        Raises:
            InvalidAddress, InvalidRequest.
        """
        self._arguments = (address_or_channel, token, tls, near, server_index)
        self._connection = Connection(address_or_channel, token, tls, near, server_index)

    def __reduce__(self) -> tuple[Any, ...]:
        if not isinstance(self._arguments[0], str):
            raise TypeError("a TierClient over a channel cannot be pickled: make it from an address")
        return (TierClient, self._arguments)

    @property
    def peer(self) -> str:
        """Who is at the other end, for sentences."""
        return self._connection.peer

    @peer.setter
    def peer(self, peer: str) -> None:
        self._connection.peer = peer

    @property
    def near(self) -> bool:
        """Whether this process shares memory with the server. Asks the server once a connection."""
        return self._connection.hello(time.monotonic() + DEFAULT_TIMEOUT_S).near

    @property
    def epoch(self) -> int:
        """The server's count of starts, as of the last answer."""
        return self._connection.hello(time.monotonic() + DEFAULT_TIMEOUT_S).epoch

    def new_lines(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> Lines | None:
        """Lines to the server, for calls of another service that takes some by them; the caller closes them.

        None where there are none: gRPC is the way then. One round trip.

        Raises:
            Unreachable, DeadlineExceeded.
        """
        return self._connection.new_lines(time.monotonic() + timeout_s)

    def close(self) -> None:
        """Close the connection of this process. Idempotent; a later call connects again; open files stay open."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------------------------------------------------------------------- write

    def put(
        self,
        path: str,
        buffers: Any,
        metadata: FileMetadata | None = None,
        *,
        exclusive: bool = True,
        overwrite: bool = False,
        expected_version: int | None = None,
        ttl_s: float | None = None,
        pinned: bool | None = None,
        write_type: WriteTypeName | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> FileInfo:
        """Publish a file made of one buffer or several. Whole or not at all; directories above it are made.

        Small: one round trip. Near: two, and one copy, by this process, from the buffers into shared memory. Far: one
        stream. The buffers stay the caller's.

        Args:
            exclusive: only where nothing is; the default, unless one of the next two is given.
            overwrite: a file may be there: this becomes its next version.
            expected_version: only over this version (compare and swap); 0: only where there is no file.
            ttl_s: remove it after so many seconds.
            pinned: never evict its bytes; None: as the version before.
            write_type: how it comes to the under-store; None as its mount says.

        Raises:
            PathExists, VersionConflict, PathIsDirectory, PathNotDirectory, InvalidRequest, OutOfMemory, Vetoed; those
            of the under-store; Unreachable, DeadlineExceeded: it may have been published.
        """
        options = commit_options(
            metadata,
            overwrite=overwrite or not exclusive,
            expected_version=expected_version,
            ttl_s=ttl_s,
            pinned=pinned,
            write_type=write_type,
        )
        return put(self._connection, whole_path(path), flat_views(buffers), options, time.monotonic() + timeout_s)

    def create(
        self,
        path: str,
        metadata: FileMetadata | None = None,
        *,
        exclusive: bool = True,
        overwrite: bool = False,
        expected_version: int | None = None,
        ttl_s: float | None = None,
        pinned: bool | None = None,
        write_type: WriteTypeName | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> FileWriter:
        """A writer of a file of any size: `with client.create(path) as file: file.write(b"...")`.

        Published when the block ends, and not when it raises. Arguments and errors are those of `put`; `timeout_s` is
        of each round trip.
        """
        options = commit_options(
            metadata,
            overwrite=overwrite or not exclusive,
            expected_version=expected_version,
            ttl_s=ttl_s,
            pinned=pinned,
            write_type=write_type,
        )
        return FileWriter(self._connection, whole_path(path), options, timeout_s)

    def commit_all(self, writers: Sequence[FileWriter], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[FileInfo]:
        """Publish what several writers of this client hold, in one transaction: all or none. They are closed then.

        A round trip for each that was not begun in shared memory yet, and one for all.

        Raises:
            as `put`, for the first that is refused: nothing was published, and all that was written is dropped.
        """
        for writer in writers:
            if writer.connection is not self._connection:
                raise InvalidRequest(f"the writer of {writer.path} was made by another client")
        return commit_all(self._connection, writers, time.monotonic() + timeout_s) if writers else []

    # -------------------------------------------------------------------- read

    def open(self, path: str, *, version: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> FileView:
        """Open a file. Near: one round trip, `data` is the server's memory, no copy. Far: fetches all bytes.

        Where the bytes are not on the server yet, it gets them first: from another server or the under-store. Where it
        has no room to keep them they are fetched through it, as if far.

        Raises:
            PathNotFound, PathIsDirectory, PathNotDirectory; VersionConflict: `version` is not the newest any more;
            BytesLost, CorruptBlock, OutOfMemory; those of the under-store and of observers.
        """
        path, deadline_s = whole_path(path), time.monotonic() + timeout_s
        if self._connection.hello(deadline_s).near:
            try:
                view = open_near(self._connection, path, version, deadline_s)
            except OutOfMemory:
                view = None  # it is elsewhere, and the server passes its bytes through
            if view is not None:
                return view
        return fetch(self._connection, path, version, 0, 0, deadline_s)

    def read(
        self,
        path: str,
        offset_bytes: int,
        limit_bytes: int,
        *,
        version: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> memoryview:
        """A range of a file's bytes, by RPC even when near: `limit_bytes`, or less at the end of the file.

        Raises:
            as `open`; InvalidRequest: the range begins outside of the file.
        """
        path = whole_path(path)
        if limit_bytes <= 0 or offset_bytes < 0:
            raise InvalidRequest(f"{limit_bytes:,} bytes from {offset_bytes:,} on cannot be read from {path}")
        deadline_s = time.monotonic() + timeout_s
        return fetch(self._connection, path, version, offset_bytes, limit_bytes, deadline_s).data
