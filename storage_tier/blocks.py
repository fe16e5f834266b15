"""Blocks: sealed, immutable, self-describing files in shared memory; one block is one file ROOT/<path>.

Reading, listing and removing them; `writer` makes them, `headers` is their format. Whoever has a block mapped
keeps its bytes, also when its name is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from storage_tier.errors import BlockNotFound, CorruptBlock
from storage_tier.headers import (
    MAX_HEADER_BYTES,
    PAGE_BYTES,
    PRELUDE,
    Metadata,
    block_name,
    parse_header,
)
from storage_tier.headers import BlockInfo as BlockInfo

# Headers of blocks that this process has mapped, by what tells that the file is still the same.
_seen: dict[tuple[int, int, int, int], BlockInfo] = {}
_SEEN_COUNT = 256


def read_info(file: Path) -> BlockInfo:
    """Read and check the header of a block's file. One open, one read of 4 KiB as a rule.

    Raises:
        BlockNotFound: no such file, or not readable by this process.
        CorruptBlock: not a whole block.
    """
    fd = _open_file(file)
    try:
        return _read_info(fd, file, os.fstat(fd))
    finally:
        os.close(fd)


class Block:
    """An open block: read-only bytes that never change, valid until `close`.

    Near, `data` is the mapped file: no copy, and nothing is read before it is touched. Far, it is memory of
    this process. Deleting the block takes only its name: who has it open keeps the bytes.
    """

    def __init__(self, info: BlockInfo, data: memoryview, mapping: mmap.mmap | None = None) -> None:
        self._info = info
        self._data: memoryview | None = data
        self._mapping = mapping

    @classmethod
    def map(cls, file: Path | str, path: str | None = None) -> Block:
        """Open and map a block's file.

        Raises:
            BlockNotFound: no such file, or not readable by this process.
            CorruptBlock: not a whole block, or not the block `path` when that is given.
        """
        fd = _open_file(file)
        try:
            info = _seen_info(fd, file)
            if path is not None and info.path != path:
                raise CorruptBlock(f"{file} should be {path} and says it is {info.path}")
            # Tells who makes room that this one would free nothing; the map keeps it. The kernel drops it with the
            # last map, however its process ends. Refused, it is being deleted right now, and what is open stays.
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
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
        """Give the bytes back. Idempotent. An array over `data` keeps the map until it dies."""
        data, self._data = self._data, None
        mapping, self._mapping = self._mapping, None
        if data is None:
            return
        # Arrays over the data may be alive: to unmap now would crash them. The map goes with the last of
        # them.
        with contextlib.suppress(BufferError):
            data.release()
            if mapping is not None:
                mapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def is_open(file: Path) -> bool:
    """Whether a process of this host has the block mapped (`Block.map`). False when there is no such file."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def scan(root: Path) -> tuple[list[BlockInfo], list[str]]:
    """All blocks by their files' headers: (blocks in order of paths, sentences about files that are none).

    Changes nothing. A file that is not a whole block, or not the block of its name, is reported, never
    listed.
    """
    blocks: list[BlockInfo] = []
    damaged: list[str] = []
    for file in walk_files(root):
        name = "/" + _printable(str(file.relative_to(root)))
        try:
            info = read_info(file)
            if info.path != name:
                raise CorruptBlock(f"{name} says it is {info.path}: it was renamed or copied")
        except BlockNotFound as error:
            # Deleted meanwhile is no news; unreadable is.
            if file.is_symlink() or file.exists():
                damaged.append(_printable(str(error)))
            continue
        except CorruptBlock as error:
            damaged.append(_printable(str(error)))
            continue
        blocks.append(info)
    return sorted(blocks, key=lambda info: info.path), damaged


def delete_file(root: Path, path: str) -> bool:
    """Remove a block's name, and the directories that are empty then. Atomic. False when it was not there."""
    name = block_name(root, path)
    try:
        os.unlink(name)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    least = len(str(root))
    parent = name.rpartition("/")[0]
    while len(parent) > least and _remove_if_empty(parent):
        parent = parent.rpartition("/")[0]
    return True


def prune(directory: Path) -> None:
    """Remove a directory and those below it, as far as they are empty: left over by killed writers.

    Never fails when others make or remove something there meanwhile.
    """
    for folder, _, _ in os.walk(directory, topdown=False):
        _remove_if_empty(folder)


def _remove_if_empty(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
            return False
        raise
    return True


def _printable(text: str) -> str:
    """Names that are not UTF-8 come as surrogates; no report of them could be sent."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _open_file(file: Path | str) -> int:
    try:
        # Nothing but a regular file is ever read: a link could lead elsewhere and a pipe would block.
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise BlockNotFound(f"no block at {file} for this process: {error.strerror}") from None
    except OSError as error:
        raise CorruptBlock(f"{file} is not a block: {error.strerror}") from None
    return fd


def _seen_info(fd: int, file: Path | str) -> BlockInfo:
    """As `_read_info`. Of a file that this process has read already nothing is read again, if it was not touched since.

    Inodes of a file system are not given twice as long as it is mounted, and each write changes `st_ctime_ns`.
    """
    status = os.fstat(fd)
    key = (status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size)
    info = _seen.get(key)
    if info is None:
        info = _read_info(fd, file, status)
        if not info.metadata:
            if len(_seen) >= _SEEN_COUNT:
                _seen.clear()
            _seen[key] = info
    return info


def _read_info(fd: int, file: Path | str, status: os.stat_result) -> BlockInfo:
    try:
        if not stat.S_ISREG(status.st_mode):
            raise CorruptBlock("it is not a regular file")
        head = os.pread(fd, PAGE_BYTES, 0)
        if len(head) >= PRELUDE.size:
            needed_bytes = min(PRELUDE.size + PRELUDE.unpack_from(head)[2], PRELUDE.size + MAX_HEADER_BYTES)
            if needed_bytes > len(head):
                head = os.pread(fd, needed_bytes, 0)
        return parse_header(head, status.st_size)
    except CorruptBlock as error:
        raise CorruptBlock(f"{file} is not a whole block: {error}") from None


def walk_files(root: Path) -> Iterator[Path]:
    """All that is no directory below `root`; links are not followed."""
    for directory, subdirectories, names in os.walk(root):
        subdirectories.sort()
        base = Path(directory)
        for name in subdirectories:
            if (base / name).is_symlink():
                yield base / name
        for name in names:
            yield base / name
