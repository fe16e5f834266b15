"""How `coprocessor fs` moves bytes: a piece at a time; a local file gets its name when it is whole."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from coproc.cli.fs_options import timeout_s
from storage_tier.errors import VersionConflict

if TYPE_CHECKING:
    from storage_tier.client import TierClient
    from storage_tier.file_info import FileInfo

# A progress of some milliseconds each, and little memory.
PIECE_BYTES = 16 << 20
# From another host a file of this size is fetched in one stream: one version, whatever is committed meanwhile. A larger
# one comes in ranges, so that it need not fit into this process.
WHOLE_BYTES = 256 << 20
# How much a stream is taken for that does not say how much will come.
STREAM_BYTES = 1 << 30
# Large files that get a new version while they are read are begun again so many times.
_TRIES = 3

Write = Callable[[memoryview], object]


class Source(Protocol):
    """What bytes come from: a binary file that is open for reading."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the buffer from its beginning; how far. 0 at the end."""


def receive(client: TierClient, path: str, write: Write) -> FileInfo:
    """Give the bytes of one version to `write`, in pieces that are only valid during the call; which one it was.

    On the server's host they are its memory. From elsewhere at most `WHOLE_BYTES` are kept at a time.

    Raises:
        as `TierClient.open`; VersionConflict: a large file was replaced meanwhile.
    """
    info = client.stat(path)
    limit_s = timeout_s(info.size_bytes)
    if client.near or info.is_directory or info.size_bytes <= WHOLE_BYTES:
        with client.open(path, timeout_s=limit_s) as opened:
            data = opened.data
            for at in range(0, len(data), PIECE_BYTES):
                write(data[at : at + PIECE_BYTES])
            return opened.info
    at = 0
    while at < info.size_bytes:
        # What only an under-store has gets its version when the first range of it is read.
        piece = client.read(path, at, PIECE_BYTES, version=info.version or None, timeout_s=limit_s)
        if not info.version:
            loaded = client.stat(path)
            if loaded.size_bytes != info.size_bytes:
                raise VersionConflict(f"{path} was replaced while it was read: try again")
            info = loaded
        write(piece)
        at += len(piece)
    return info


def fetch_file(client: TierClient, path: str, target: Path, *, replace: bool) -> None:
    """Write a file's bytes to a local one, which appears whole or not at all. A device or a pipe is written to.

    Raises:
        FileExistsError: a file is there, and is not to be replaced; those of `receive`; OSError.
    """
    place = Path(os.path.realpath(target))
    found = place.stat() if place.exists() else None
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder is in the way", str(target))
    if found is not None and not stat.S_ISREG(found.st_mode):
        with place.open("wb", buffering=0) as opened:
            receive(client, path, lambda piece: write_all(opened.fileno(), piece))
        return
    if found is not None and not replace:
        raise FileExistsError(errno.EEXIST, "there is a file already, which --force replaces", str(target))
    with _unfinished(place, None if found is None else stat.S_IMODE(found.st_mode)) as (fd, temporary):
        for tries_left in reversed(range(_TRIES)):
            try:
                receive(client, path, lambda piece: write_all(fd, piece))
                break
            except VersionConflict:
                if not tries_left:
                    raise
                os.lseek(fd, 0, os.SEEK_SET)
                os.ftruncate(fd, 0)
        _publish(temporary, place, replace)


@contextlib.contextmanager
def _unfinished(place: Path, mode: int | None) -> Iterator[tuple[int, Path]]:
    """A new file beside `place`, which is gone when the block ends unless it was renamed by then."""
    temporary = place.with_name(f".coproc-{secrets.token_hex(8)}.part")
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(place.parent))
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        if mode is not None:
            os.fchmod(fd, mode)
        yield fd, temporary
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, place: Path, replace: bool) -> None:
    if replace:
        temporary.replace(place)
        return
    try:
        os.link(temporary, place)
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "somebody else made it meanwhile", str(place)) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A file system without hard links: between look and rename somebody may come.
        temporary.rename(place)


def write_all(fd: int, piece: memoryview) -> None:
    """write(2) until all is written."""
    while len(piece):
        piece = piece[os.write(fd, piece) :]


def publish_stream(
    client: TierClient, source: Source, path: str, options: Mapping[str, Any], size_bytes: int = STREAM_BYTES
) -> FileInfo:
    """Publish what comes from a pipe or a file as a file: whole, when its end is reached, or not at all.

    On the server's host the bytes go into its memory as they come. Elsewhere they wait on this host's disk, for a
    stream has to say first how much will come. `size_bytes` only tells how long the commit may take, which with some
    write types sends all of it to the under-store.

    Raises:
        as `TierClient.put`; OSError.
    """
    # Page-aligned, and used again and again.
    piece = memoryview(mmap.mmap(-1, PIECE_BYTES))
    if client.near:
        with client.create(path, **options, timeout_s=timeout_s(size_bytes)) as made:
            while count := source.readinto(piece):
                made.write(piece[:count])
        return made.info
    with tempfile.TemporaryFile(prefix="coproc-put-", buffering=0) as kept:
        while count := source.readinto(piece):
            write_all(kept.fileno(), piece[:count])
        return _publish_mapped(client, kept.fileno(), path, options)


def publish_file(client: TierClient, source: Path, path: str, options: Mapping[str, Any]) -> FileInfo:
    """Publish a local file, a pipe or a device as a file.

    Raises:
        as `publish_stream`.
    """
    with source.open("rb", buffering=0) as opened:
        found = os.fstat(opened.fileno())
        # Files of /proc say 0 and have bytes.
        if client.near or not stat.S_ISREG(found.st_mode) or not found.st_size:
            return publish_stream(client, opened, path, options, max(found.st_size, PIECE_BYTES))
        return _publish_mapped(client, opened.fileno(), path, options)


def _publish_mapped(client: TierClient, fd: int, path: str, options: Mapping[str, Any]) -> FileInfo:
    size_bytes = os.fstat(fd).st_size
    data: Any = mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ) if size_bytes else b""
    return client.put(path, data, **options, timeout_s=timeout_s(size_bytes))
