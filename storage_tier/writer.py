"""Writing a block: into an unnamed file, which gets its name by a link once it is whole.

The link is the commit point. A writer that raises or is killed leaves nothing behind; nobody ever sees a
part; a name is given once. The bytes go by write(2): fallocate and a map cost a second pass over the pages
(0.65 of its speed), and a full file system is an error here, never a SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from storage_tier.blocks import prune, walk_files
from storage_tier.errors import (
    BlockExists,
    BlockNotFound,
    InvalidPath,
    InvalidRequest,
    OutOfMemory,
    Unsupported,
)
from storage_tier.headers import (
    BlockInfo,
    Metadata,
    block_name,
    clean_metadata,
    clean_path,
    pack_header,
    payload_offset_bytes,
)

# Directories are pruned when their last block is deleted, so one can vanish between mkdir and link.
_LINK_TRIES = 64


def flat_views(buffers: Any) -> list[memoryview]:
    """One buffer, or an iterable of them, as flat views of bytes, empty ones left out. No copies.

    The memory stays the caller's. An array is one buffer, although it could be iterated over too.

    Raises:
        InvalidRequest: not a buffer, or not contiguous.
    """
    try:
        pending: Iterable[Any] = (memoryview(buffers),)
    except TypeError:
        pending = buffers
    except (ValueError, BufferError) as error:
        # An array that has bytes but cannot give them; it must not be taken apart item by item.
        raise InvalidRequest(f"this buffer cannot be taken as bytes: {error}") from None
    if isinstance(pending, str) or not isinstance(pending, Iterable):
        raise InvalidRequest(_not_a_buffer(pending))
    views = []
    for buffer in pending:
        try:
            view = memoryview(buffer)
        except (TypeError, ValueError, BufferError):
            raise InvalidRequest(_not_a_buffer(buffer)) from None
        if view.nbytes == 0:
            continue
        if not view.c_contiguous:
            raise InvalidRequest("a buffer of a block must be contiguous: give numpy.ascontiguousarray(x)")
        views.append(view.cast("B"))
    return views


class BlockWriter:
    """Writes one block below `root`. Leaving `with` publishes it whole; leaving by an exception, nothing.

    Nothing has a name before the commit, so a process that dies leaves nothing. Not thread-safe. Every write
    is one copy by the kernel, from the caller's buffers into the file.
    """

    def __init__(self, root: Path, path: str, metadata: Metadata | None = None) -> None:
        """Open an unnamed file in `root`.

        Raises:
            InvalidPath, InvalidRequest: a path or metadata that cannot be.
            Unsupported: the file system of `root` has no unnamed files.
        """
        self.path = clean_path(path)
        self.metadata = clean_metadata(metadata)
        self._root = root
        self._offset_bytes = payload_offset_bytes(self.path, self.metadata)
        self._size_bytes = 0
        self._fd = _open_unnamed(root)
        try:
            os.lseek(self._fd, self._offset_bytes, os.SEEK_SET)
        except BaseException:
            self.abort()
            raise

    @property
    def size_bytes(self) -> int:
        """Payload written so far."""
        return self._size_bytes

    @property
    def file_bytes(self) -> int:
        """Size the file has so far, header included."""
        return self._offset_bytes + self._size_bytes

    def write(self, *buffers: Any) -> int:
        """Append buffers to the payload: one copy, by the kernel, as other threads run. Returns their bytes.

        Raises:
            OutOfMemory: the file system is full; the block can only be aborted.
            InvalidRequest: not a contiguous buffer.
        """
        views = flat_views(buffers)
        total_bytes = sum(len(view) for view in views)
        fd = self._open_fd()
        try:
            _write_all(fd, views)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise OutOfMemory(self._no_room(total_bytes)) from None
        self._size_bytes += total_bytes
        return total_bytes

    @property
    def fd(self) -> int:
        """The unnamed file, for who writes the payload into it past this object; stays the writer's.

        Raises:
            ValueError: committed or aborted.
        """
        return self._open_fd()

    @property
    def payload_offset_bytes(self) -> int:
        """Where in `fd` the payload begins."""
        return self._offset_bytes

    def filled(self, size_bytes: int) -> None:
        """Note that the whole payload was written straight into `fd`.

        Raises:
            InvalidRequest: the file does not end there.
        """
        found_bytes = os.fstat(self._open_fd()).st_size - self._offset_bytes
        if size_bytes != found_bytes and (size_bytes or found_bytes > 0):
            raise InvalidRequest(
                f"{self.path}: {size_bytes:,} bytes should have been written, and {found_bytes:,} were"
            )
        self._size_bytes = size_bytes

    def commit(self) -> BlockInfo:
        """Seal the file and give it its name. Atomic and exclusive: of several writers of one path one wins.

        Raises:
            BlockExists: the name is taken, or a block lies above it, or blocks lie below it. Nothing was
            published. OutOfMemory: no room for the header.
        """
        fd = self._open_fd()
        info = BlockInfo(self.path, self._size_bytes, self._offset_bytes, time.time_ns(), self.metadata)
        try:
            try:
                _pwrite_all(fd, pack_header(info))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OutOfMemory(self._no_room(self._offset_bytes)) from None
            # An empty payload leaves the file shorter than its first page.
            if self._size_bytes == 0:
                os.ftruncate(fd, self._offset_bytes)
            os.fchmod(fd, 0o400)
            _link(fd, self._root, self.path)
        finally:
            self.abort()
        return info

    def abort(self) -> None:
        """Drop what was written. Idempotent; after a commit it does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._fd >= 0:
            self.commit()
        else:
            self.abort()

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise ValueError(f"the writer of {self.path} is closed")
        return self._fd

    def _no_room(self, more_bytes: int) -> str:
        room = os.statvfs(self._root)
        return (
            f"{self.path}: {more_bytes:,} bytes more do not fit under {self._root}, where "
            f"{room.f_bavail * room.f_frsize:,} bytes are free. Delete what is no longer needed, or make the "
            "shared memory larger (docker run --shm-size=8g)."
        )


def _open_unnamed(root: Path) -> int:
    try:
        return os.open(root, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise Unsupported(
                f"the file system of {root} has no unnamed files (O_TMPFILE), which blocks are written into: "
                "choose a directory on tmpfs, as a rule below /dev/shm."
            ) from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfMemory(f"no file can be made under {root}: {error.strerror}") from None
        raise


def _write_all(fd: int, views: Sequence[memoryview]) -> None:
    """writev(2) until all is written: one call takes at most 1024 buffers and 2 GiB."""
    pending = list(views)
    while pending:
        written_bytes = os.writev(fd, pending[:1024])
        done = 0
        while done < len(pending) and written_bytes >= len(pending[done]):
            written_bytes -= len(pending[done])
            done += 1
        pending = pending[done:]
        if written_bytes:
            pending[0] = pending[0][written_bytes:]


def _pwrite_all(fd: int, content: bytes) -> None:
    written_bytes = 0
    while written_bytes < len(content):
        written_bytes += os.pwrite(fd, content[written_bytes:], written_bytes)


def _link(fd: int, root: Path, path: str) -> None:
    name = block_name(root, path)
    missing = False
    for _ in range(_LINK_TRIES):
        try:
            if missing:
                # Of the root itself it is no more than a look: who took that away wants no files there.
                _make_directories(root, path)
            # A descriptor, whichever, makes this linkat(AT_SYMLINK_FOLLOW): the link is to the file, not to /proc's
            # symlink.
            os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=fd)
            return
        except FileNotFoundError:
            missing = True
            if not root.is_dir():
                raise BlockNotFound(f"{path}: the tier's directory {root} is gone") from None
        except (FileExistsError, NotADirectoryError):
            # Also when a directory was pruned inside of mkdir, or the block was deleted by now: then
            # again.
            reason = why_taken(root, path)
            if reason is not None:
                raise BlockExists(reason) from None
            prune(Path(name))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutOfMemory(f"{path}: no room for its name under {root}: {error.strerror}") from None
            if error.errno == errno.ENAMETOOLONG:
                raise InvalidPath(f"{path} is too long below {root}") from None
            raise
    raise BlockNotFound(f"{path}: its directory was removed again and again while the block got its name")


def _make_directories(root: Path, path: str) -> None:
    """What is missing above a block, below the root."""
    at = path.find("/", 1)
    while at > 0:
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{root}{path[:at]}", 0o700)
        at = path.find("/", at + 1)


def why_taken(root: Path, path: str) -> str | None:
    """Why a block cannot get this name, as a sentence; None when it can.

    Empty directories are in nobody's way. Each name is looked at once: others make and remove them meanwhile.
    """
    name = block_name(root, path)
    try:
        mode = os.lstat(name).st_mode
    except FileNotFoundError:
        return None  # what is above it is a directory, or missing
    except NotADirectoryError:
        return _which_is_above(root, path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidPath(f"{name} is too long for the file system") from None
        raise
    if stat.S_ISDIR(mode):
        return f"{path} cannot be a block: there are blocks below it" if any(walk_files(Path(name))) else None
    return f"{path} exists already, and a block never changes: delete it first, or choose another path"


def _which_is_above(root: Path, path: str) -> str | None:
    parent = path.rpartition("/")[0]
    while parent:
        try:
            if not stat.S_ISDIR(os.lstat(f"{root}{parent}").st_mode):
                return f"{path} cannot be made: {parent} is a block"
        except (FileNotFoundError, NotADirectoryError):
            pass  # the one that is in the way is further up, or was deleted by now
        parent = parent.rpartition("/")[0]
    return None


def _not_a_buffer(found: object) -> str:
    return f"a block is made of buffers (bytes, arrays), and a {type(found).__name__} was given"
