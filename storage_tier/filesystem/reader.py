"""What `TierFileSystem.open` returns for reading: one sealed version of a file.

Nothing is copied that need not be: `read_buffer` gives the mapped bytes themselves, which is what pyarrow asks for.
"""

from __future__ import annotations

import io
import mmap
import os
from typing import Any

from storage_tier.filesystem.lookup import TierLookup, describe

_LINE_BYTES = 8 << 10
# From another host a file up to here comes as a whole when it is opened; of a larger one what is read, in pieces that
# cost little more than their bytes, and not more at once than arrives before a time limit.
WHOLE_BYTES = 16 << 20
_PIECE_BYTES = 4 << 20
_AT_ONCE_COUNT = 64


class Pieces:
    """A large file of another host: a piece is fetched when it is first read, and kept.

    Unlike bytes that are here it can be replaced meanwhile; then what was not read yet is refused.
    """

    def __init__(self, client: Any, info: Any, timeout_s: float) -> None:
        self.info = info
        self._client = client
        self._timeout_s = timeout_s
        # Pages that nobody touches take no memory.
        self._memory = mmap.mmap(-1, info.size_bytes)
        self._view = memoryview(self._memory).toreadonly()
        self._have = bytearray(-(-info.size_bytes // _PIECE_BYTES))

    def take(self, begin: int, end: int) -> memoryview:
        """These bytes, read-only.

        Raises:
            VersionConflict: it was replaced; PathNotFound: it was removed; as `TierClient.read`.
        """
        at, last = begin // _PIECE_BYTES, -(-end // _PIECE_BYTES)
        while (at := self._have.find(0, at, last)) >= 0:
            stop = self._have.find(1, at, last)
            stop = min(at + _AT_ONCE_COUNT, last if stop < 0 else stop)
            first, behind = at * _PIECE_BYTES, min(stop * _PIECE_BYTES, self.info.size_bytes)
            self._memory[first:behind] = self._client.read(
                self.info.path, first, behind - first, version=self.info.version, timeout_s=self._timeout_s
            )
            self._have[at:stop] = b"\1" * (stop - at)
        return self._view[begin:end]

    def close(self) -> None:
        """Nothing is held but memory, which lives as long as somebody has a part of it."""


class TierReader(io.BufferedIOBase):
    """One version of a file, open for reading: these bytes never change, whatever is committed to the path.

    On the server's host the bytes are its memory, mapped: only `read` and `readinto` copy. Not thread-safe, as
    builtin files. From another host a large file is fetched piece by piece, as it is read: what has not been read when
    it is replaced can be read no more (VersionConflict).
    """

    mode = "rb"

    def __init__(self, fs: TierLookup, path: str, opened: Any) -> None:
        self.fs = fs
        self.path = path
        self._opened = opened
        self._pieces: Pieces | None = opened if isinstance(opened, Pieces) else None
        self._data: memoryview = memoryview(b"") if self._pieces is not None else opened.data
        self._loc = 0
        self.size: int = opened.info.size_bytes
        self.details: dict[str, Any] = describe(opened.info)

    @property
    def version(self) -> int:
        """Which version this is."""
        return int(self.details["version"])

    @property
    def full_name(self) -> str:
        """The URL."""
        return self.fs.unstrip_protocol(self.path)

    @property
    def loc(self) -> int:
        """Where the next read begins."""
        return self._loc

    def info(self) -> dict[str, Any]:
        """What `TierFileSystem.info` said of this version when it was opened."""
        return self.details

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check()
        return self._loc

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As builtin files: behind the end is allowed, before the beginning is a ValueError."""
        self._check()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._loc, os.SEEK_END: self.size}
        if whence not in bases:
            raise ValueError(f"whence is 0, 1 or 2, and {whence} was given")
        target = bases[whence] + int(offset)
        if target < 0:
            raise ValueError(f"{self.path}: {target:,} is before the beginning")
        self._loc = target
        return target

    def read_buffer(self, size: int | None = -1, /) -> memoryview:
        """The next bytes, without a copy: read-only, and valid as long as they are held, also after `close`."""
        self._check()
        begin = min(self._loc, self.size)
        end = self.size if size is None or size < 0 else min(begin + size, self.size)
        # Behind the end a read gives nothing and does not move.
        found = self._take(begin, end)
        self._loc = max(self._loc, end)
        return found

    def getbuffer(self) -> memoryview:
        """All bytes, without a copy, wherever the next read begins."""
        self._check()
        return self._take(0, self.size)

    def read(self, size: int | None = -1, /) -> bytes:
        return bytes(self.read_buffer(size))

    def read1(self, size: int = -1, /) -> bytes:
        return bytes(self.read_buffer(size))

    def readinto(self, buffer: Any, /) -> int:
        target = memoryview(buffer).cast("B")
        found = self.read_buffer(len(target))
        target[: len(found)] = found
        return len(found)

    def readinto1(self, buffer: Any, /) -> int:
        return self.readinto(buffer)

    def readline(self, size: int | None = -1, /) -> bytes:
        self._check()
        limit = self.size if size is None or size < 0 else min(self._loc + size, self.size)
        at = self._loc
        while at < limit:
            piece = bytes(self._take(at, min(at + _LINE_BYTES, limit)))
            newline = piece.find(b"\n")
            at += len(piece) if newline < 0 else newline + 1
            if newline >= 0:
                break
        return bytes(self.read_buffer(max(0, at - self._loc)))

    def close(self) -> None:
        """Give the bytes back. Idempotent. Buffers and arrays over them stay valid."""
        if not self.closed:
            self._opened.close()
            self._data, self._pieces = memoryview(b""), None
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        self._check()
        return (_reopen, (self.fs, self.path, self.version, self._loc))

    def __repr__(self) -> str:
        return f"<TierReader {self.path} version {self.version}>"

    def _take(self, begin: int, end: int) -> memoryview:
        return self._data[begin:end] if self._pieces is None else self._pieces.take(begin, end)

    def _check(self) -> None:
        if self.closed:
            raise ValueError(f"the file {self.path} is closed")


def _reopen(fs: TierLookup, path: str, version: int, loc: int) -> TierReader:
    """A reader that was pickled: the same version, or an error."""
    # What is not in memory has no version to ask for.
    reader: TierReader = fs.open(path, "rb", version=version or None)
    reader.seek(loc)
    return reader
