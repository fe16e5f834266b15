"""Regions: live shared memory that is written in place and recycled; pinned, never evicted.

A region is one file on tmpfs: a header page that says what it is, then its bytes. It appears under its name
whole, with all of its memory allocated (a full tmpfs is an error here, not a SIGBUS later), and keeps its
inode and size for as long as it lives, across restarts of its server: who has mapped it once never has to
look again. Its liveness is a file lock: the kernel drops it when the holder dies, however it dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_tier.errors import CorruptRegion, OutOfMemory, RegionNotFound
from storage_tier.words import Words

HEADER_BYTES = 4096
_MAGIC = b"TIERRGN1"
_HEADER = struct.Struct("<8sqqq64s")  # magic, format version, payload bytes, created_ns, kind
_FORMAT_VERSION = 1


def align(size_bytes: int, to_bytes: int = 64) -> int:
    """`size_bytes` rounded up to a multiple of `to_bytes`."""
    return -(-size_bytes // to_bytes) * to_bytes


def file_bytes(size_bytes: int) -> int:
    """What the file of a region of `size_bytes` takes of a memory budget."""
    return HEADER_BYTES + size_bytes


class Region:
    """A mapped region. Views handed out stay valid until `close`; the file lives until `unlink`."""

    def __init__(self, path: Path, fd: int, populate: bool) -> None:
        self.path = path
        self._fd = -1  # the caller's until all is well
        total_bytes = os.fstat(fd).st_size
        if total_bytes < HEADER_BYTES:
            raise CorruptRegion(f"{path} has {total_bytes} bytes: too short for a region's header")
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
        self._map = mmap.mmap(fd, total_bytes, flags=flags)
        magic, version, size_bytes, self.created_ns, kind = _HEADER.unpack_from(self._map)
        if magic != _MAGIC or version != _FORMAT_VERSION or HEADER_BYTES + size_bytes != total_bytes:
            self._map.close()
            raise CorruptRegion(f"{path} is not a region of format {_FORMAT_VERSION}, or it was cut")
        self.size_bytes: int = size_bytes
        self.kind = kind.rstrip(b"\0").decode()
        self._fd = fd

    @classmethod
    def create(cls, path: Path, size_bytes: int, kind: str) -> Region:
        """Create the file with all of its memory, zeroed, and map it. Atomic: it appears whole or not at all.

        Raises:
            OutOfMemory: the tmpfs has no room (sizes in the message); nothing is left behind.
            FileExistsError: the name is taken.
        """
        region = cls.allocate(path.parent, size_bytes, kind)
        try:
            region.link(path)
        except BaseException:
            region.close()
            raise
        return region

    @classmethod
    def allocate(cls, directory: Path, size_bytes: int, kind: str) -> Region:
        """A mapped region with all of its memory, zeroed, and no name: it goes with this process until `link`.

        Takes half a millisecond a megabyte.

        Raises:
            OutOfMemory: the tmpfs has no room (sizes in the message).
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            try:
                os.posix_fallocate(fd, 0, HEADER_BYTES + size_bytes)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                room = os.statvfs(directory)
                raise OutOfMemory(
                    f"a region of {size_bytes:,} bytes does not fit under {directory}: "
                    f"{room.f_bavail * room.f_frsize:,} bytes are free. Make the shared memory larger "
                    "(docker run --shm-size=4g), or the model or the number of slots smaller."
                ) from None
            os.pwrite(fd, _HEADER.pack(_MAGIC, _FORMAT_VERSION, size_bytes, time.time_ns(), kind.encode()), 0)
            return cls(directory, fd, populate=True)
        except BaseException:
            os.close(fd)
            raise

    def link(self, path: Path) -> None:
        """Give an allocated region its name, in the directory it was allocated for. Atomic.

        Raises:
            FileExistsError: the name is taken.
        """
        # dir_fd makes this linkat(AT_SYMLINK_FOLLOW): the link is to the file, not to /proc's symlink.
        directory_fd = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.link(f"/proc/self/fd/{self._fd}", path.name, dst_dir_fd=directory_fd, follow_symlinks=True)
        finally:
            os.close(directory_fd)
        self.path = path

    @classmethod
    def open(cls, path: Path, *, populate: bool = False) -> Region:
        """Map an existing region for reading and writing.

        Args:
            path: where it lies.
            populate: fill the page table now; else at first touch, which costs about twice a copy.

        Raises:
            RegionNotFound: no such file, or not readable by this process.
            CorruptRegion: not a region, or cut.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError) as error:
            raise RegionNotFound(f"no region at {path} for this process: {error.strerror}") from None
        try:
            return cls(path, fd, populate)
        except BaseException:
            os.close(fd)
            raise

    @property
    def descriptor(self) -> int:
        """The file's, of this object alone, as long as it is open: for record locks, or for /proc."""
        return self._fd

    def words(self, offset_bytes: int, count: int) -> Words:
        """`count` shared words at `offset_bytes` of the payload."""
        return Words(self._map, HEADER_BYTES + offset_bytes, count)

    def array(self, offset_bytes: int, dtype: Any, count: int) -> NDArray[Any]:
        """A writable view of `count` items at `offset_bytes` of the payload. Not a copy."""
        return np.frombuffer(self._map, dtype, count, HEADER_BYTES + offset_bytes)

    def hold(self) -> None:
        """Take the region's lock for as long as this process lives or until `close` (never waits).

        Raises:
            BlockingIOError: another live process holds it.
        """
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def is_held(self) -> bool:
        """Whether a live process holds the region (asked through a file description of its own)."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def unlink(self) -> None:
        """Remove the name. Maps stay valid; the memory is given back when the last one is gone."""
        self.path.unlink(missing_ok=True)

    def __del__(self) -> None:
        # Who forgets to close a region loses its views with it; the descriptor would stay.
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Give back the lock and, once no view is left, the map. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(BufferError):  # views are still alive; the map goes with the last of them
            self._map.close()
