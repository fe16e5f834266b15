"""What an observer is: code hung on a directory, run where the data is, in a process of its own.

    class Count(Observer):
        @classmethod
        def from_parameters(cls, parameters):
            return cls()

        def post_commit(self, context, batch):
            context.env.write(f"{context.env.directory}/count", str(len(batch)).encode())

It is found by its name in the entry points of group `storage_tier.observers`; what crosses the wire is that
name and its parameters, never code. `ObserverHost` runs it; this module knows nothing of how.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

from storage_tier.errors import CorruptBlock
from storage_tier.errors import ObserverFailed as ObserverFailed
from storage_tier.errors import ObserverNotFound as ObserverNotFound
from storage_tier.errors import Vetoed as Vetoed
from storage_tier.headers import Metadata

Origin = tuple[str, ...]
"""The observers by whose work a file came to be, the first cause first; empty for anybody else's files."""

OnFailure = Literal["open", "closed"]


@dataclass(frozen=True)
class Veto:
    """The answer of a `pre_commit` that refuses a file. It is no failure of the observer."""

    sentence: str
    """For who wrote the file: what was expected, what was found, what to do."""


@dataclass(frozen=True)
class FileInfo:
    """One version of a file."""

    path: str
    version: int
    """0 before the first commit."""
    size_bytes: int
    metadata: Metadata = field(default_factory=dict)


def describe(info: FileInfo) -> dict[str, Any]:
    """A file's facts for a message: what `FileInfo` takes."""
    return {
        "path": info.path,
        "version": info.version,
        "size_bytes": info.size_bytes,
        "metadata": dict(info.metadata),
    }


@dataclass(frozen=True)
class CommittedFile(FileInfo):
    """A commit, as it is told to `post_commit`."""

    sequence: int = 0
    """Grows with every commit of the tier: the place in the order of commits, and what a cursor counts."""
    origin: Origin = ()


class OpenFile:
    """A file's bytes, read-only; valid until `close`. They are mapped when they are first asked for, never copied.

    Sealed bytes never change. In `pre_commit` they are those of the writer's temporary: nobody else sees it yet.
    """

    def __init__(self, info: FileInfo, fd: int, offset_bytes: int = 0) -> None:
        """Takes the descriptor over. `offset_bytes` is where the content begins in its file."""
        self.info = info
        self._fd = fd
        self._offset_bytes = offset_bytes
        self._view: memoryview | None = None

    @property
    def path(self) -> str:
        """Name in the tier."""
        return self.info.path

    @property
    def size_bytes(self) -> int:
        """Length of `data`."""
        return self.info.size_bytes

    @property
    def metadata(self) -> Metadata:
        """What the writer attached."""
        return self.info.metadata

    @property
    def data(self) -> memoryview:
        """The bytes: read-only, `size_bytes` long.

        Raises:
            ValueError: it is closed. CorruptBlock: there are fewer bytes than the file should have.
        """
        if self._view is None:
            if self._fd < 0:
                raise ValueError(f"{self.path} is closed")
            self._view = self._map()
            os.close(self._fd)
            self._fd = -1
        return self._view

    def _map(self) -> memoryview:
        end_bytes = self._offset_bytes + self.info.size_bytes
        found_bytes = os.fstat(self._fd).st_size
        if found_bytes < end_bytes:
            raise CorruptBlock(f"{self.path} should end at byte {end_bytes:,}, and its file has {found_bytes:,}")
        if self.info.size_bytes == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(self._fd, end_bytes, prot=mmap.PROT_READ))[self._offset_bytes :]

    def close(self) -> None:
        """Forget the map, which goes with the last array over the data. Idempotent."""
        fd, self._fd = self._fd, -1
        self._view = None
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class ResolvedFile:
    """The content of a virtual file: one whole version."""

    data: Any
    """A contiguous buffer, which is copied once, or the descriptor (an int) of a memfd, which is not copied:
    then it is sealed, and the tier closes it."""
    version: int = 0
    metadata: Metadata = field(default_factory=dict)


# Inside of a class with a method `list` that name is the method's.
Listing = list[FileInfo]


class Environment(Protocol):
    """The tier as an observer sees it. Each call is one round trip to the server on this host.

    For the thread that runs a hook, while it runs. `start`, `post_commit` and `stop` may do everything,
    the others only read: somebody waits for them, perhaps another observer. Errors are those of
    `storage_tier.errors`.
    """

    directory: str
    """Where the observer hangs: '/runs/a', or '/' for the whole tier."""
    facts: Mapping[str, Any]
    """What the server tells its observers of itself, as its address."""
    log: logging.Logger
    """Its last lines are shown by `status`."""

    def list(self, prefix: str) -> Listing:
        """All files at or below a path, in order of paths."""

    def open(self, path: str, version: int | None = None) -> OpenFile:
        """Map a file: no copy where the bytes are on this host. A version that was replaced may be gone."""

    def write(self, path: str, data: Any, metadata: Metadata | None = None, if_version: int | None = None) -> FileInfo:
        """Publish a file, whole or not at all, over what was there. Two copies.

        Args:
            if_version: only over this version; 0: only where there is none. Else VersionConflict.
        """

    def copy(self, source: str, target: str) -> FileInfo:
        """Publish the newest bytes of `source` as `target` too, over what was there."""

    def delete(self, path: str, if_version: int | None = None) -> None:
        """Remove a file; with `if_version` only if that is still its version."""


@dataclass(frozen=True)
class Context:
    """One call of a hook."""

    env: Environment
    origin: Origin
    """Who caused this. What the hook writes carries it and the observer's own mark."""
    redelivered: bool = False
    """Whether `post_commit` may have seen these files before: the call did not end well the last time."""


class Observer:
    """Base of all observers. Override what is needed: a hook that is not overridden costs nothing.

    Made and run in a child process of its own. Calls of one hook never overlap; different hooks may run at
    once, in different threads. A call that raises, answers nonsense, takes longer than its limit or more memory
    than its limit ends the process, and nobody else is the worse for it: the observer is started again a few
    times, then quarantined.

    What it writes carries its mark and those of the observers that caused it, and a file never triggers an
    observer whose mark it carries. So a chain of observers passes each of them once at most, and ends.
    """

    on_failure: OnFailure = "open"
    """What becomes of files while the observer does not work, where who attaches it does not say. 'open': they
    are committed as if it were not there; a broken addition must not stop the tier. 'closed': they are refused
    with a sentence; for a guard, whose absence nobody would notice."""

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Observer:
        """Make one from what was given to `attach`: a JSON object. No I/O.

        Raises:
            InvalidRequest: a name that is not known, a value that cannot work; a sentence for who attaches it.
        """
        raise NotImplementedError(f"{cls.__name__} does not say how it is made of parameters")

    def start(self, env: Environment) -> None:
        """Once, before the first hook.

        Raises:
            InvalidRequest: it cannot work on this directory.
        """

    def stop(self) -> None:
        """At an orderly end, after the last hook. A process that is killed does not get here."""

    def pre_commit(self, context: Context, file: OpenFile) -> Veto | None:
        """Look at a file before it is published; a `Veto` refuses it. The writer waits: read headers, not data."""
        return None

    def pre_remove(self, context: Context, path: str) -> Veto | None:
        """A file, or a directory with all that is in it, is to be removed or to get another path; a `Veto` refuses it.

        Asked of observers that are built into the server, and not of attached ones.
        """
        return None

    def post_commit(self, context: Context, batch: Sequence[CommittedFile]) -> None:
        """Files were committed. Each at least once, those of one path in the order of their commits.

        Returning acknowledges the whole batch. All of it has one origin.
        """

    def resolve(self, context: Context, path: str) -> ResolvedFile | None:
        """The content of a path where no file is; None when it is not this observer's."""
        return None

    def list_virtual(self, context: Context, directory: str) -> Sequence[FileInfo]:
        """The virtual files directly in a directory, for listings; cheap: nothing is made. Sizes as far as known.

        A directory is listed as '/runs/a', the root as '/'. What is resolved and not listed can still be opened.
        """
        return ()


def hooks_of(observer: Observer) -> list[str]:
    """The hooks that an observer overrides."""
    names = ("pre_commit", "pre_remove", "post_commit", "resolve", "list_virtual")
    return [name for name in names if getattr(type(observer), name) is not getattr(Observer, name)]
