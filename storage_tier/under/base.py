"""What every under-store is to the tier: its verbs, what they return, where bytes come from and go to."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage_tier.errors import DirectoryNotEmpty, InvalidPath, InvalidRequest, OutOfMemory, UnderChanged, UnderFailed
from storage_tier.headers import clean_path
from storage_tier.under.calls import Call

# Below the root of each mount: objects on their way to their name. Never listed, never a path of the tier.
TEMPORARY_NAME = ".tier-tmp"
_TEMPORARY = re.compile(r"(\d{1,15})-[0-9a-f]{32}")
# One step of a transfer: big enough that its costs vanish, small enough for a cache and for progress.
STEP_BYTES = 8 << 20


@dataclass(frozen=True)
class UnderInfo:
    """An object or a directory below a mount, at one moment."""

    path: str
    """Below the mount's root, '/a/b'; '' is the root."""
    is_directory: bool
    size_bytes: int
    stamp: str
    """Changes when the object does: an ETag where there is one, else time, size and inode. '' of a directory."""
    modified_ns: int | None = None
    """Since 1970; None where the filesystem does not tell."""


@dataclass(frozen=True)
class Traits:
    """What a filesystem can promise."""

    whole: bool
    """Readers beside the tier see an object whole or not at all, also while it is replaced."""
    atomic_rename: bool
    """A rename is one act. Else it is a copy and a removal, and a crash between them leaves both."""
    directories: bool
    """Empty directories exist."""
    note: str
    """One sentence for people."""


@dataclass(frozen=True)
class FileRange:
    """Bytes of a local file: `size_bytes` from `offset_bytes`, such as the payload of a block."""

    path: Path
    offset_bytes: int
    size_bytes: int


Source = bytes | bytearray | memoryview | FileRange


class Reader:
    """A source while it is published. It reads; the bytes stay the caller's."""

    def __init__(self, view: memoryview | None, fd: int, offset_bytes: int, size_bytes: int) -> None:
        self.view = view
        self.fd = fd
        self.offset_bytes = offset_bytes
        self.size_bytes = size_bytes

    def read(self, start: int, size_bytes: int) -> bytes:
        """A copy of exactly these bytes, counted from the source's beginning.

        Raises:
            UnderFailed: the file ends before.
        """
        if self.view is not None:
            return bytes(self.view[start : start + size_bytes])
        content = os.pread(self.fd, size_bytes, self.offset_bytes + start)
        if len(content) < size_bytes:  # rare: pread stops at 2 GiB
            pieces = [content]
            while (done := sum(map(len, pieces))) < size_bytes:
                piece = os.pread(self.fd, size_bytes - done, self.offset_bytes + start + done)
                if not piece:
                    raise UnderFailed(f"the source ends {size_bytes - done:,} bytes early: nothing was published")
                pieces.append(piece)
            content = b"".join(pieces)
        return content


@contextmanager
def opened(source: Source) -> Iterator[Reader]:
    """Open a source.

    Raises:
        InvalidRequest: not contiguous, or a file that can't be opened.
    """
    if isinstance(source, FileRange):
        try:
            fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidRequest(f"the file to publish, {source.path}, can't be read: {error.strerror}") from None
        try:
            yield Reader(None, fd, source.offset_bytes, source.size_bytes)
        finally:
            os.close(fd)
        return
    view = memoryview(source)
    if not view.c_contiguous:
        raise InvalidRequest("only contiguous bytes can be published")
    flat = view.cast("B") if view.nbytes else memoryview(b"")
    yield Reader(flat, -1, 0, view.nbytes)


class Sink:
    """Where bytes that are read go: memory of the caller, or a descriptor of his from an offset on."""

    def __init__(self, target: memoryview | int, offset_bytes: int) -> None:
        """A descriptor is duplicated: a call that was given up cannot write into a later file of its number.

        Raises:
            InvalidRequest: memory that is read-only or not contiguous, no regular file, or one not open for writing.
        """
        self.view: memoryview | None = None
        self.fd = -1
        self.offset_bytes = offset_bytes
        if isinstance(target, int):
            flags = fcntl.fcntl(target, fcntl.F_GETFL)
            if flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_APPEND or not stat.S_ISREG(os.fstat(target).st_mode):
                raise InvalidRequest("bytes can be read only into a regular file that is open for writing at any place")
            self.fd = os.dup(target)
            return
        if target.readonly or not target.c_contiguous:
            raise InvalidRequest("bytes can be read only into contiguous memory that can be written")
        self.view = target.cast("B")[offset_bytes:] if target.nbytes else memoryview(bytearray())

    def expect(self, size_bytes: int) -> None:
        """Raises InvalidRequest: the memory is too small for what will come."""
        if self.view is not None and len(self.view) < size_bytes:
            raise InvalidRequest(f"{size_bytes:,} bytes do not fit into {len(self.view):,}")

    def write(self, call: Call, start: int, content: bytes | memoryview) -> None:
        """Put these bytes `start` bytes behind the beginning.

        Raises:
            OutOfMemory: the file's filesystem is full.
        """
        if self.view is not None:
            with call.delivering():
                self.view[start : start + len(content)] = content
            return
        pending = memoryview(content)
        while pending:
            call.moved()
            with self.room():
                done = os.pwrite(self.fd, pending, self.offset_bytes + start)
            pending, start = pending[done:], start + done

    @contextmanager
    def room(self) -> Iterator[None]:
        """Around each write: no room here is not the same as no room below the mount."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise OutOfMemory(f"there is no room for it in memory here: {error.strerror}") from None

    def close(self) -> None:
        """Let the descriptor go; the target stays the caller's."""
        if self.fd >= 0:
            os.close(self.fd)


# Inside of a class with a method of that name, `list` is the method.
Infos = list[UnderInfo]


class Backend(Protocol):
    """One filesystem below a mount. Paths are clean and relative ('/a/b', '' the root).

    Every verb runs in a thread of `Calls`, several at once, and may raise whatever the library below raises.
    Loops call `call.moved()` between two steps.
    """

    traits: Traits

    def check(self) -> None:
        """A real look: the root is there and can be listed."""

    def info(self, path: str) -> UnderInfo: ...

    def list(self, path: str) -> tuple[list[UnderInfo], int]:
        """What lies directly below, and how many names were left out because no path of the tier can be them."""

    def find(self, path: str, limit: int) -> Infos | None:
        """All that lies below, in any order; None: it is more than `limit`, or costs no less than `list` of each."""

    def read(self, path: str, start: int, stop: int | None, stamp: str | None, sink: Sink, call: Call) -> UnderInfo:
        """Read a range into `sink`; None means to the end. What is returned is the object that was read."""

    def publish(self, path: str, source: Reader, call: Call) -> UnderInfo:
        """Make it the object of this name, whole, durable, in place of what was there."""

    def remove(self, path: str) -> None:
        """Afterwards there is no object of this name; there need not have been one."""

    def rename(self, source: str, target: str, call: Call) -> None: ...

    def make_directory(self, path: str) -> None: ...

    def remove_directory(self, path: str) -> None:
        """Afterwards there is no directory of this name. One with something in it is refused: DirectoryNotEmpty."""

    def remove_tree(self, path: str, call: Call) -> None:
        """Afterwards there is no directory of this name, nor was there need of one. Links are not followed.

        DirectoryNotEmpty: something came while it was removed, which stays.
        """

    def clean(self, older_than_s: float) -> int:
        """Remove what writers that died left; return how many. Never what a living one is writing."""

    def close(self) -> None: ...


def below(mount: str, path: str) -> str:
    """A path of the tier as a path below the mount: below('/lake', '/lake/a') is '/a'; of the mount itself ''.

    Raises:
        InvalidPath: it is not below the mount, or no path at all ('..', empty segments, control characters).
    """
    mount, path = clean_path(mount), clean_path(path)
    if path != mount and not path.startswith(mount + "/"):
        raise InvalidPath(f"{path} is not below the mount {mount}")
    return path[len(mount) :]


def clean_relative(path: str) -> str:
    """The one form of a path below a mount: '/a/b', or '' for the root.

    Raises:
        InvalidPath: as `clean_path`; or it is the tier's own place for half-written objects.
    """
    if path in ("", "/"):
        return ""
    cleaned = clean_path(path)
    if cleaned.split("/")[1] == TEMPORARY_NAME:
        raise InvalidPath(f"{cleaned}: /{TEMPORARY_NAME} of a mount is kept for objects on their way")
    return cleaned


def new_temporary_name() -> str:
    """A name for an object on its way: of nobody else, and it says when it was begun."""
    return f"{time.time_ns() // 1_000_000}-{uuid.uuid4().hex}"


def age_of_temporary_s(name: str) -> float | None:
    """How long ago an object on its way was begun; None when the name is no such object's."""
    found = _TEMPORARY.fullmatch(name)
    return None if found is None else time.time() - int(found[1]) / 1000


def can_be_named(name: str) -> bool:
    """Whether the tier has a path for this name."""
    try:
        return "/" not in name and clean_path("/" + name) != f"/{TEMPORARY_NAME}"
    except InvalidPath:
        return False


def not_empty(path: str) -> DirectoryNotEmpty:
    """To be raised: a directory that was to be removed has something in it."""
    return DirectoryNotEmpty(f"{path} cannot be removed: there is something in that directory by now, which stays")


def check_same(path: str, expected: str | None, found: str, when: str) -> None:
    """Raises UnderChanged: the object is another than expected."""
    if expected is not None and expected != found:
        raise UnderChanged(
            f"{path} {when}: its stamp was {expected} and is {found} now. Look at it again and read it anew."
        )
