"""Steps on any fsspec filesystem that take names as they are and publish nothing when they are given up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from fsspec.spec import AbstractFileSystem

from storage_tier.errors import UnderFailed
from storage_tier.under.base import STEP_BYTES, TEMPORARY_NAME, Reader, new_temporary_name
from storage_tier.under.calls import Call

# S3 takes 10,000 parts; 32 MiB make that 312 GiB, beyond which parts grow.
_PART_BYTES = 32 << 20
_MAX_PARTS = 10_000
# Ranges that are asked for at the same time where the library below can.
_PARALLEL_COUNT = 4


def ranges(fs: AbstractFileSystem, full: str, start: int, end: int) -> Iterator[bytes]:
    """A range in steps, some of them fetched at the same time; for filesystems that can."""
    bounds = [(at, min(at + STEP_BYTES, end)) for at in range(start, end, STEP_BYTES)]
    for first in range(0, len(bounds), _PARALLEL_COUNT):
        some = bounds[first : first + _PARALLEL_COUNT]
        yield from fs.cat_ranges([full] * len(some), [s for s, _ in some], [e for _, e in some], on_error="raise")


def stream(fs: AbstractFileSystem, full: str, start: int, end: int) -> Iterator[bytes]:
    """A range in steps, one after the other through one open file."""
    with fs.open(full, "rb") as file:
        file.seek(start)
        while start < end:
            piece = file.read(min(STEP_BYTES, end - start))
            yield piece
            if not piece:
                return
            start += len(piece)


def upload_parts(fs: AbstractFileSystem, full: str, source: Reader, call: Call) -> None:
    """Upload to S3 in parts; the object appears when the last one is there, and on an error never."""
    part_bytes = max(_PART_BYTES, -(-source.size_bytes // (_MAX_PARTS - 1)))
    file = fs.open(full, "wb", block_size=part_bytes, autocommit=False)
    try:
        for start in range(0, source.size_bytes, part_bytes):
            file.write(source.read(start, min(part_bytes, source.size_bytes - start)))
            call.moved()
        file.flush(force=True)
        call.moved()
        file.commit()
    except BaseException:
        # Left to itself it would upload what it holds when it is collected.
        file.closed = True
        with contextlib.suppress(Exception):  # `clean` finds it; the first error is the one to tell
            file.discard()
        raise
    file.closed = True


def publish_by_move(
    fs: AbstractFileSystem,
    root: str,
    full: str,
    source: Reader,
    call: Call,
    give_name: Callable[[AbstractFileSystem, str, str], None],
) -> None:
    """Write under another name below `root`, look whether all has arrived, then `give_name(fs, temporary, full)`."""
    directory = f"{root}/{TEMPORARY_NAME}"
    temporary = f"{directory}/{new_temporary_name()}"
    fs.makedirs(directory, exist_ok=True)
    try:
        with fs.open(temporary, "wb") as file:
            for start in range(0, source.size_bytes, STEP_BYTES):
                file.write(source.read(start, min(STEP_BYTES, source.size_bytes - start)))
                call.moved()
        written_bytes = fs.info(temporary)["size"]
        if written_bytes != source.size_bytes:
            raise UnderFailed(f"{source.size_bytes:,} bytes were written, and {written_bytes:,} have arrived")
        fs.makedirs(fs._parent(full), exist_ok=True)
        call.moved()  # the last look: a call that was given up publishes nothing any more
        give_name(fs, temporary, full)
    except BaseException:
        # What cannot be removed now has a name that `clean` knows; the first error is the one to tell.
        with contextlib.suppress(Exception):
            remove(fs, temporary)
        raise


def remove(fs: AbstractFileSystem, full: str) -> None:
    """Remove one object, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(full)


def copy_and_remove(fs: AbstractFileSystem, old: str, new: str) -> None:
    """For filesystems that can't move."""
    fs.cp_file(old, new)
    remove(fs, old)


def move(fs: AbstractFileSystem, old: str, new: str) -> None:
    """In place of what is there; some servers (SFTP, HDFS) rename only to a free name."""
    try:
        fs.mv(old, new)
    except OSError:
        if not fs.isfile(new):
            raise
        fs.rm_file(new)
        fs.mv(old, new)


def remove_tree(fs: AbstractFileSystem, old: str, new: str) -> None:
    """Directories of a tree whose files have moved: made anew, then removed, the lowest first."""
    directories = [name for name, found in fs.find(old, withdirs=True, detail=True).items() if found["type"] != "file"]
    for name in sorted({*directories, old}, key=len, reverse=True):
        fs.makedirs(new + name[len(old) :], exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            fs.rmdir(name)
