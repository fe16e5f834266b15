"""Reading files: on the server's host its memory is mapped, from anywhere else the bytes are fetched."""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import replace
from typing import Self

from storage_tier.blocks import Block
from storage_tier.client.connection import Connection
from storage_tier.client.way import Opened
from storage_tier.errors import BlockNotFound, InvalidRequest, ServerFailed
from storage_tier.file_info import FileInfo, FileMetadata
from storage_tier.messages import file_from_wire
from storage_tier.v1 import files_pb2

# Between the answer of a server and the map its block can be replaced or moved to disk; then it is asked again.
_OPEN_TRIES = 16
_MAPPED_BYTES = 4 << 20


class FileView:
    """An open version of a file: read-only bytes that never change, valid until `close`.

    Near, `data` is the server's memory: no copy, and nothing is read before it is touched; the block is not evicted
    while this is open. Far, it is memory of this process. Removing or replacing the file takes only its name.
    """

    def __init__(self, info: FileInfo, data: memoryview, block: Block | None = None) -> None:
        self._info = info
        self._data: memoryview | None = data
        self._block = block

    @property
    def info(self) -> FileInfo:
        """The version that is open."""
        return self._info

    @property
    def path(self) -> str:
        """Where it was found."""
        return self._info.path

    @property
    def version(self) -> int:
        """Which one it is."""
        return self._info.version

    @property
    def size_bytes(self) -> int:
        """Length of `data`."""
        return self._info.size_bytes

    @property
    def metadata(self) -> FileMetadata:
        """What the writer attached."""
        return self._info.metadata

    @property
    def near(self) -> bool:
        """Whether `data` is the server's memory and not a copy."""
        return self._block is not None

    @property
    def data(self) -> memoryview:
        """The bytes: read-only, `size_bytes` long.

        Raises:
            ValueError: it is closed.
        """
        if self._data is None:
            raise ValueError(f"{self.path} is closed")
        return self._data

    def close(self) -> None:
        """Give the bytes back. Idempotent. An array over `data` keeps the map until it dies."""
        self._data = None
        block, self._block = self._block, None
        if block is not None:
            block.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_near(connection: Connection, path: str, version: int | None, deadline_s: float) -> FileView | None:
    """One round trip, then a map. None when the server that answers is not on this host (any more).

    Raises:
        PathNotFound, PathIsDirectory, VersionConflict, BytesLost, CorruptBlock, …
    """
    request = files_pb2.OpenFileRequest(path=path, version=version)
    last: BlockNotFound | None = None
    for _ in range(_OPEN_TRIES):
        response: Opened = connection.call("OpenFile", request, deadline_s, again=True)
        # Asked after the answer, for another server may have given it than the one that was near.
        if not connection.hello(deadline_s).near:
            return None
        # What one reader does to the metadata is not seen by the next.
        info = replace(response.info, metadata=dict(response.info.metadata))
        if not response.local_path:
            return FileView(info, memoryview(b""))
        try:
            # It may lie outside of the server's directory, on its second level. What is mapped is a sealed block with
            # the id that the catalog names, and nothing else, whatever the path.
            return _map(response.local_path, response.block_path, info)
        except BlockNotFound as error:
            last = error
    raise ServerFailed(f"{path} was not where the server said, {_OPEN_TRIES} times in a row: {last}")


def _map(file: str, block_path: str, info: FileInfo) -> FileView:
    block = Block.map(file, block_path)
    if block.size_bytes != info.size_bytes:
        block.close()
        raise ServerFailed(f"{info.path} should have {info.size_bytes:,} bytes, and its block has {block.size_bytes:,}")
    return FileView(info, block.data, block)


def fetch(
    connection: Connection, path: str, version: int | None, offset_bytes: int, limit_bytes: int, deadline_s: float
) -> FileView:
    """A range of a file's bytes by RPC; `limit_bytes` 0 means to the end. One copy in this process.

    Raises:
        as `open_near`; InvalidRequest: the range begins outside of the file.
    """
    if limit_bytes < 0 or offset_bytes < 0:
        raise InvalidRequest(f"{limit_bytes:,} bytes from {offset_bytes:,} on cannot be read from {path}")
    request = files_pb2.ReadFileRequest(path=path, version=version, offset_bytes=offset_bytes, limit_bytes=limit_bytes)
    with connection.read("ReadFile", request, deadline_s) as incoming:
        info = file_from_wire(incoming.first.file)
        want_bytes = info.size_bytes - offset_bytes
        if limit_bytes:
            want_bytes = min(want_bytes, limit_bytes)
        view = _memory(want_bytes)
        at = incoming.into(view)
    if at != want_bytes:
        raise ServerFailed(
            f"the server at {connection.peer} sent {at:,} bytes of {path}, and {want_bytes:,} were asked for"
        )
    return FileView(info, view.toreadonly())


def _memory(size_bytes: int) -> memoryview:
    """Memory to be filled. Large pieces are not cleared first, and come in large pages where the kernel has them."""
    if size_bytes < _MAPPED_BYTES:
        return memoryview(bytearray(size_bytes))
    made = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        made.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(made)
