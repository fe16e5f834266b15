"""Blocks: sealed, immutable files in shared memory that describe themselves.

A block is one file `ROOT/<path>`:

    offset 0    magic, format version, length and SHA-256 of the header    64 bytes
    offset 64   header: JSON with path, payload size and offset, created_ns, metadata
    offset n    payload, n a multiple of 4096, to the end of the file

It is written with write(2) into an unnamed file and gets its name by link(2), once, when it is whole: this is the
commit point. A writer that raises or is killed leaves nothing behind; nobody ever sees a part; a name is given once.
(fallocate and a map instead of write(2) cost a second pass over the pages: 0.65 of its speed.)
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from storage_tier.errors import (
    BlockExists,
    BlockNotFound,
    CorruptBlock,
    InvalidPath,
    InvalidRequest,
    OutOfMemory,
    TierError,
    Unsupported,
)

FORMAT_VERSION = 1
PAGE_BYTES = 4096
MAX_HEADER_BYTES = 1 << 20
MAX_METADATA_BYTES = 64 << 10
MAX_PATH_BYTES = 2048
MAX_SEGMENT_BYTES = 255
MAX_PAYLOAD_BYTES = 1 << 50

_MAGIC = b"TIERBLK1"
_PRELUDE = struct.Struct("<8sII32s16x")  # magic, format version, header bytes, SHA-256 of the header
_INT64 = range(-(1 << 63), 1 << 63)
# Directories are pruned when their last block is deleted, so one can vanish between mkdir and link.
_LINK_TRIES = 64

MetadataItem = str | int
Metadata = Mapping[str, MetadataItem]


@dataclass(frozen=True)
class BlockInfo:
    """What a block's header says."""

    path: str
    """Name in the tier, with a leading slash."""
    size_bytes: int
    """Size of the payload."""
    offset_bytes: int
    """Where the payload begins in the file: a multiple of 4096."""
    created_ns: int
    """When it was written, in nanoseconds since 1970."""
    metadata: Metadata = field(default_factory=dict)
    """What the writer attached: strings and 64-bit integers by name."""

    @property
    def file_bytes(self) -> int:
        """Size of the whole file, header included: what a budget is charged."""
        return self.offset_bytes + self.size_bytes


def clean_path(path: str) -> str:
    """The one form of a block's path: '/a/b'. A missing leading slash is added.

    Raises:
        InvalidPath: empty, '.' or '..' or an empty segment, NUL or other control characters, not UTF-8,
            a segment over 255 bytes, more than 2048 bytes in all.
    """
    if not isinstance(path, str):
        raise InvalidPath(f"a path must be a string like '/runs/a/00003', and {path!r} was given")
    segments = path.removeprefix("/").split("/")
    for segment in segments:
        if segment in ("", ".", ".."):
            what = f"the segment {segment!r}" if segment else "an empty segment"
            raise InvalidPath(f"{_show(path)} has {what}: a path looks like '/runs/a/00003'")
        if any(ord(character) < 32 or ord(character) == 127 for character in segment):
            raise InvalidPath(f"{_show(path)} has a control character: they are not allowed in paths")
        try:
            segment_bytes = len(segment.encode())
        except UnicodeEncodeError:
            raise InvalidPath(f"{_show(path)} cannot be written as UTF-8") from None
        if segment_bytes > MAX_SEGMENT_BYTES:
            raise InvalidPath(
                f"{_show(path)} has a segment of {segment_bytes:,} bytes, and {MAX_SEGMENT_BYTES} are allowed"
            )
    cleaned = "/" + "/".join(segments)
    if len(cleaned.encode()) > MAX_PATH_BYTES:
        raise InvalidPath(
            f"{_show(path)} has {len(cleaned.encode()):,} bytes, and {MAX_PATH_BYTES:,} are allowed in a path"
        )
    return cleaned


def clean_prefix(prefix: str) -> str:
    """The one form of a prefix: '' for everything, else a path. A prefix ends at a segment, '/a' is none of '/ab'.

    Raises:
        InvalidPath: as `clean_path`.
    """
    if isinstance(prefix, str) and prefix.strip("/") == "" and len(prefix) <= 1:
        return ""
    return clean_path(prefix.removesuffix("/") if isinstance(prefix, str) else prefix)


def is_below(path: str, prefix: str) -> bool:
    """Whether a clean path is the block `prefix` itself or lies below it."""
    return not prefix or path == prefix or path.startswith(prefix + "/")


def clean_metadata(metadata: Metadata | None) -> dict[str, MetadataItem]:
    """A checked copy of a block's metadata.

    Raises:
        InvalidRequest: a name that is not a string, a value that is neither a string nor a 64-bit integer,
            or more than 64 KiB.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidRequest(f"metadata must be a mapping of names to values, and {metadata!r:.80} was given")
    cleaned: dict[str, MetadataItem] = {}
    total_bytes = 0
    for name, value in (metadata or {}).items():
        if not isinstance(name, str):
            raise InvalidRequest(f"metadata has the name {name!r}: names must be strings")
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise InvalidRequest(
                f"metadata {name!r} is a {type(value).__name__}: only strings and integers are kept"
            )
        if isinstance(value, int) and value not in _INT64:
            raise InvalidRequest(f"metadata {name!r} does not fit into a 64-bit integer")
        try:
            total_bytes += len(name.encode()) + len(str(value).encode())
        except UnicodeEncodeError:
            raise InvalidRequest(f"metadata {name!r} cannot be written as UTF-8") from None
        cleaned[name] = str(value) if isinstance(value, str) else int(value)
    if total_bytes > MAX_METADATA_BYTES:
        raise InvalidRequest(f"metadata of {total_bytes:,} bytes: at most {MAX_METADATA_BYTES:,} are kept")
    return cleaned


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
    if isinstance(pending, str) or not isinstance(pending, Iterable):
        raise InvalidRequest(_not_a_buffer(pending))
    views = []
    for buffer in pending:
        try:
            view = memoryview(buffer)
        except TypeError:
            raise InvalidRequest(_not_a_buffer(buffer)) from None
        if view.nbytes == 0:
            continue
        if not view.c_contiguous:
            raise InvalidRequest("a buffer of a block must be contiguous: give numpy.ascontiguousarray(x)")
        views.append(view.cast("B"))
    return views


def payload_offset_bytes(path: str, metadata: Metadata) -> int:
    """Where the payload begins, before its size is known: room for the longest header these could give."""
    widest = BlockInfo(path, MAX_PAYLOAD_BYTES, MAX_HEADER_BYTES, _INT64[-1], metadata)
    needed_bytes = _PRELUDE.size + len(_header_json(widest))
    return -(-needed_bytes // PAGE_BYTES) * PAGE_BYTES


def pack_header(info: BlockInfo) -> bytes:
    """The first bytes of a block's file, up to the end of the JSON."""
    header = _header_json(info)
    return _PRELUDE.pack(_MAGIC, FORMAT_VERSION, len(header), hashlib.sha256(header).digest()) + header


def parse_header(head: bytes, file_bytes: int) -> BlockInfo:
    """The inverse of `pack_header`, over any bytes at all. Pure: `head` is at least the header's bytes of a file.

    Raises:
        CorruptBlock: not a block of this format, damaged, cut, or a size that is not the file's.
    """
    if len(head) < _PRELUDE.size:
        raise CorruptBlock(f"it has {len(head)} bytes, and a block begins with {_PRELUDE.size}")
    magic, version, header_bytes, digest = _PRELUDE.unpack_from(head)
    if magic != _MAGIC:
        raise CorruptBlock("it does not begin as a block does")
    if version != FORMAT_VERSION:
        raise CorruptBlock(f"it has format {version}, and this program knows format {FORMAT_VERSION}")
    if header_bytes > MAX_HEADER_BYTES or _PRELUDE.size + header_bytes > len(head):
        raise CorruptBlock(f"its header of {header_bytes:,} bytes is cut or too long")
    header = head[_PRELUDE.size : _PRELUDE.size + header_bytes]
    if hashlib.sha256(header).digest() != digest:
        raise CorruptBlock("the checksum of its header is wrong")
    try:
        fields = json.loads(header)
        info = BlockInfo(
            path=clean_path(fields["path"]),
            size_bytes=_integer(fields["payload_bytes"]),
            offset_bytes=_integer(fields["payload_offset"]),
            created_ns=_integer(fields["created_ns"]),
            metadata=clean_metadata(fields["metadata"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError, TierError) as error:
        raise CorruptBlock(f"its header cannot be read: {type(error).__name__}: {error}") from None
    if info.offset_bytes % PAGE_BYTES or info.offset_bytes < _PRELUDE.size + header_bytes:
        raise CorruptBlock(f"its payload cannot begin at {info.offset_bytes:,}")
    if info.file_bytes != file_bytes:
        raise CorruptBlock(f"its header tells of {info.file_bytes:,} bytes, and the file has {file_bytes:,}")
    return info


def read_info(file: Path) -> BlockInfo:
    """Read and check the header of a block's file. One open, one read of 4 KiB as a rule.

    Raises:
        BlockNotFound: no such file, or not readable by this process.
        CorruptBlock: not a whole block.
    """
    fd = _open_file(file)
    try:
        return _read_info(fd, file)
    finally:
        os.close(fd)


class Block:
    """An open block: read-only bytes that never change. `data` stays valid until `close`, and views made of it longer.

    Near, `data` is the mapped file: no copy, and nothing is read before it is touched. Far, it is memory of this
    process. Deleting the block takes only its name: who has it open keeps the bytes.
    """

    def __init__(self, info: BlockInfo, data: memoryview, mapping: mmap.mmap | None = None) -> None:
        self._info = info
        self._data: memoryview | None = data
        self._mapping = mapping

    @classmethod
    def map(cls, file: Path, path: str | None = None) -> Block:
        """Open and map a block's file.

        Raises:
            BlockNotFound: no such file, or not readable by this process.
            CorruptBlock: not a whole block, or not the block `path` when that is given.
        """
        fd = _open_file(file)
        try:
            info = _read_info(fd, file)
            if path is not None and info.path != path:
                raise CorruptBlock(f"{file} should be {path} and says it is {info.path}")
            mapping = mmap.mmap(fd, info.file_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        return cls(info, memoryview(mapping)[info.offset_bytes : info.file_bytes], mapping)

    @property
    def info(self) -> BlockInfo:
        """The header."""
        return self._info

    @property
    def path(self) -> str:
        """Name in the tier."""
        return self._info.path

    @property
    def size_bytes(self) -> int:
        """Size of the payload."""
        return self._info.size_bytes

    @property
    def metadata(self) -> Metadata:
        """What the writer attached."""
        return self._info.metadata

    @property
    def near(self) -> bool:
        """Whether `data` is the block's own memory and not a copy."""
        return self._mapping is not None

    @property
    def data(self) -> memoryview:
        """The payload: read-only, `size_bytes` long.

        Raises:
            ValueError: the block is closed.
        """
        if self._data is None:
            raise ValueError(f"the block {self.path} is closed")
        return self._data

    def close(self) -> None:
        """Give the bytes back. Idempotent. A view that is still alive (an array over `data`) keeps the map until it dies."""
        data, self._data = self._data, None
        mapping, self._mapping = self._mapping, None
        if data is None:
            return
        try:
            data.release()
            if mapping is not None:
                mapping.close()
        except BufferError:
            # Arrays over the data are alive: to unmap now would crash them. The map goes with the last of them.
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class BlockWriter:
    """Writes one block below `root`. Leaving the `with` block publishes it whole; leaving it by an exception publishes nothing.

    Nothing has a name before the commit, so a process that dies leaves nothing. Not thread-safe. Every write is
    one copy by the kernel, from the caller's buffers into the file.
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
        """Append buffers to the payload, in one system call as a rule; returns their bytes. Lets other threads run.

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

    def commit(self) -> BlockInfo:
        """Seal the file and give it its name. Atomic and exclusive: of several writers of one path one wins.

        Raises:
            BlockExists: the name is taken, or a block lies above it, or blocks lie below it. Nothing was published.
            OutOfMemory: no room for the header.
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
            f"{room.f_bavail * room.f_frsize:,} bytes are free. Delete what is no longer needed, or make the shared "
            "memory larger (docker run --shm-size=8g)."
        )


def block_file(root: Path, path: str) -> Path:
    """The file of a block."""
    return root / clean_path(path)[1:]


def scan(root: Path) -> tuple[list[BlockInfo], list[str]]:
    """Rebuild the list of blocks from the files' headers: (blocks in order of paths, sentences about the rest).

    Changes nothing. A file that is not a whole block, or not the block of its name, is reported, never listed.
    """
    blocks: list[BlockInfo] = []
    damaged: list[str] = []
    for file in _files(root):
        # Names that are not UTF-8 come as surrogates; they must not break the report.
        name = "/" + str(file.relative_to(root)).encode(errors="surrogateescape").decode(errors="replace")
        try:
            info = read_info(file)
            if info.path != name:
                raise CorruptBlock(f"{name} says it is {info.path}: it was renamed or copied")
        except BlockNotFound as error:
            # Deleted meanwhile is no news; unreadable is.
            if file.is_symlink() or file.exists():
                damaged.append(str(error))
            continue
        except CorruptBlock as error:
            damaged.append(str(error))
            continue
        blocks.append(info)
    return sorted(blocks, key=lambda info: info.path), damaged


def delete_file(root: Path, path: str) -> bool:
    """Remove a block's name, and the directories that are empty then. Atomic. False when it was not there."""
    file = block_file(root, path)
    try:
        file.unlink()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    for parent in file.parents:
        if parent == root:
            break
        try:
            parent.rmdir()
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                break
            raise
    return True


def _show(path: str) -> str:
    shown = repr(path)
    return shown if len(shown) <= 100 else shown[:97] + "..."


def _not_a_buffer(found: object) -> str:
    return f"a block is made of buffers (bytes, arrays), and a {type(found).__name__} was given"


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value not in range(1 << 63):
        raise ValueError(f"{value!r:.40} is not a size or time")
    return value


def _header_json(info: BlockInfo) -> bytes:
    fields = {
        "path": info.path,
        "payload_bytes": info.size_bytes,
        "payload_offset": info.offset_bytes,
        "created_ns": info.created_ns,
        "metadata": dict(info.metadata),
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _open_file(file: Path) -> int:
    try:
        # Nothing but a regular file is ever read: a link could lead elsewhere and a pipe would block.
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise BlockNotFound(f"no block at {file} for this process: {error.strerror}") from None
    except OSError as error:
        raise CorruptBlock(f"{file} is not a block: {error.strerror}") from None
    return fd


def _read_info(fd: int, file: Path) -> BlockInfo:
    status = os.fstat(fd)
    try:
        if not stat.S_ISREG(status.st_mode):
            raise CorruptBlock("it is not a regular file")
        head = os.pread(fd, PAGE_BYTES, 0)
        if len(head) >= _PRELUDE.size:
            needed_bytes = min(_PRELUDE.size + _PRELUDE.unpack_from(head)[2], _PRELUDE.size + MAX_HEADER_BYTES)
            if needed_bytes > len(head):
                head = os.pread(fd, needed_bytes, 0)
        return parse_header(head, status.st_size)
    except CorruptBlock as error:
        raise CorruptBlock(f"{file} is not a whole block: {error}") from None


def _files(root: Path) -> Iterator[Path]:
    """All that is no directory below `root`; links are not followed."""
    for directory, subdirectories, names in os.walk(root):
        subdirectories.sort()
        base = Path(directory)
        for name in subdirectories:
            if (base / name).is_symlink():
                yield base / name
        for name in names:
            yield base / name


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
    file = block_file(root, path)
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(_LINK_TRIES):
            try:
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                # A dir_fd makes this linkat(AT_SYMLINK_FOLLOW): the link is to the file, not to /proc's symlink.
                os.link(f"/proc/self/fd/{fd}", path[1:], src_dir_fd=root_fd, dst_dir_fd=root_fd)
                return
            except FileNotFoundError:
                if not root.is_dir():
                    raise BlockNotFound(f"{path}: the tier's directory {root} is gone") from None
            except (FileExistsError, NotADirectoryError):
                raise BlockExists(_taken(root, path)) from None
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise OutOfMemory(f"{path}: no room for its name under {root}: {error.strerror}") from None
                if error.errno == errno.ENAMETOOLONG:
                    raise InvalidPath(f"{path} is too long below {root}") from None
                raise
        raise BlockNotFound(f"{path}: its directory was removed again and again while the block got its name")
    finally:
        os.close(root_fd)


def _taken(root: Path, path: str) -> str:
    file = block_file(root, path)
    if file.is_dir():
        return f"{path} cannot be a block: there are blocks below it"
    for parent in file.parents:
        if parent == root:
            break
        if not parent.is_dir() and parent.exists():
            return f"{path} cannot be made: /{parent.relative_to(root)} is a block"
    return f"{path} exists already, and a block never changes: delete it first, or choose another path"
