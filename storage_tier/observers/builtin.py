"""An observer of the server program itself: called in the server's process, on the thread that reads or commits.

It costs no process and sees the memory of the server; so it is no place for code that may fail or hang, and
nobody can attach one: a program that has a server gives it to `ObserverHost.build_in`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from traceback import format_exc
from typing import Any

from storage_tier.errors import InvalidRequest, TierError
from storage_tier.headers import Metadata, is_below
from storage_tier.observers.answers import clean_text
from storage_tier.observers.base import (
    CommittedFile,
    Context,
    FileInfo,
    Listing,
    Observer,
    ObserverFailed,
    OpenFile,
    Origin,
    Vetoed,
    hooks_of,
)
from storage_tier.observers.files import OpenedFile, PendingFile
from storage_tier.observers.options import AttachmentState
from storage_tier.observers.sealed import seal, sealed_copy

LOG = logging.getLogger(__name__)


class BuiltIn:
    """Thread-safe as far as the observer is. Its guard is 'closed': what it cannot look at is not committed.

    `post_commit` gets each file at once and alone, while the commits of this server wait: it may only note it. It
    gets no file twice, and none from before a restart: what it has missed it finds by itself.
    """

    def __init__(self, name: str, directory: str, observer: Observer) -> None:
        """`directory` is a clean prefix: '' for the whole tier."""
        self.mark = f"{name}@{directory or '/'}"
        self._name = name
        self._directory = directory
        self._observer = observer
        self._hooks = tuple(hooks_of(observer))
        self._env = _NoEnvironment(directory or "/", name)
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("checked", "vetoed", "delivered", "resolved", "failure"), 0)
        self._failure = ("", "")

    def concerns(self, path: str, origin: Origin, hook: str) -> bool:
        """Whether a hook has to see a file."""
        return hook in self._hooks and self.mark not in origin and is_below(path, self._directory)

    def pre_commit(self, file: PendingFile) -> None:
        """Ask about a file before it is committed.

        Raises:
            Vetoed. TierError: its own. ObserverFailed: it failed. The file is refused.
        """
        with OpenFile(file.info, file.reopened(), file.offset_bytes) as opened:
            try:
                found = self._observer.pre_commit(Context(self._env, file.origin), opened)
            except TierError:
                raise
            except Exception as error:
                raise self._failed(f"pre_commit of {file.info.path}", error) from error
        self._count("checked")
        if found is not None:
            self._count("vetoed")
            raise Vetoed(found.sentence)

    def pre_remove(self, path: str) -> None:
        """Ask about a file or directory before it is removed or renamed.

        Raises:
            Vetoed. TierError: its own. ObserverFailed: it failed. It stays.
        """
        if "pre_remove" not in self._hooks or not (is_below(path, self._directory) or is_below(self._directory, path)):
            return
        try:
            found = self._observer.pre_remove(Context(self._env, ()), path)
        except TierError:
            raise
        except Exception as error:
            raise self._failed(f"pre_remove of {path}", error) from error
        if found is not None:
            self._count("vetoed")
            raise Vetoed(found.sentence)

    def told(self, file: CommittedFile) -> None:
        """A file was committed."""
        try:
            self._observer.post_commit(Context(self._env, file.origin), [file])
        except Exception as error:
            self._failed(f"post_commit of {file.path}", error)
        else:
            self._count("delivered")

    def resolve(self, path: str, origin: Origin) -> OpenedFile | None:
        """Ask for a virtual file; the descriptor is the caller's.

        Raises:
            TierError: its own. ObserverFailed: it failed.
        """
        try:
            found = self._observer.resolve(Context(self._env, origin), path)
            if found is None:
                return None
            fd = found.data if isinstance(found.data, int) else sealed_copy(found.data)
            opened = OpenedFile(FileInfo(path, found.version, seal(fd), dict(found.metadata)), fd)
        except TierError:
            raise
        except Exception as error:
            raise self._failed(f"resolve of {path}", error) from error
        self._count("resolved")
        return opened

    def list_virtual(self, directory: str, origin: Origin) -> Sequence[FileInfo]:
        """Ask for the virtual files in a directory; none where it fails."""
        try:
            return self._observer.list_virtual(Context(self._env, origin), directory)
        except Exception as error:
            self._failed(f"list_virtual of {directory}", error)
            return ()

    def state(self) -> AttachmentState:
        """As of now."""
        with self._lock:
            return AttachmentState(
                id=self.mark,
                directory=self._directory or "/",
                name=self._name,
                parameters={},
                state="running",
                hooks=self._hooks,
                on_failure="closed",
                pid=os.getpid(),
                queued_count=0,
                behind=False,
                cursor=None,
                checked_count=self._counts["checked"],
                vetoed_count=self._counts["vetoed"],
                delivered_count=self._counts["delivered"],
                resolved_count=self._counts["resolved"],
                missed_count=0,
                failure_count=self._counts["failure"],
                failure=self._failure[0],
                traceback=self._failure[1],
                output="",
            )

    def _failed(self, what: str, error: Exception) -> ObserverFailed:
        sentence = clean_text(f"{what} by {self._name} failed: {type(error).__name__}: {error}")
        with self._lock:
            self._counts["failure"] += 1
            self._failure = (sentence, clean_text(format_exc()))
        LOG.exception("%s", sentence)
        return ObserverFailed(sentence)

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1


class _NoEnvironment:
    """It has the server itself, and asks for nothing."""

    facts: Mapping[str, Any] = {}

    def __init__(self, directory: str, name: str) -> None:
        self.directory = directory
        self.log = logging.getLogger(f"storage_tier.observer.{name}")

    def list(self, prefix: str) -> Listing:
        raise _asked()

    def open(self, path: str, version: int | None = None) -> OpenFile:
        raise _asked()

    def write(self, path: str, data: Any, metadata: Metadata | None = None, if_version: int | None = None) -> FileInfo:
        raise _asked()

    def copy(self, source: str, target: str) -> FileInfo:
        raise _asked()

    def delete(self, path: str, if_version: int | None = None) -> None:
        raise _asked()


def _asked() -> InvalidRequest:
    return InvalidRequest("an observer that is built into a server has the server's files, and no environment")
