"""What an observer may ask of the tier, as the server answers it.

`TierFiles` is what the server implements; `answer` turns a question from an observer's process, which may be
anything at all, into a call of it. Bytes go both ways as descriptors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from storage_tier.errors import InvalidRequest, ServerFailed, TierError
from storage_tier.headers import Metadata, clean_metadata, clean_path, clean_prefix
from storage_tier.observers.base import FileInfo, Origin, describe
from storage_tier.observers.frames import BadFrame, Header
from storage_tier.observers.sealed import seal

LOG = logging.getLogger(__name__)

MAX_PAGE_COUNT = 256


@dataclass(frozen=True)
class OpenedFile:
    """A file on this host, open for reading."""

    info: FileInfo
    fd: int
    """Read-only; closed by who asked for it."""
    offset_bytes: int = 0
    """Where the content begins."""


class TierFiles(Protocol):
    """The tier for observers. Called from several threads; every error that is an answer is a `TierError`.

    `origin` is never empty: it has to be kept with the file, and to be in the `PendingFile` and `CommittedFile`
    that the write itself leads to, also when they are replayed. That is what ends loops.
    """

    def list(self, prefix: str, after_path: str, limit_count: int) -> Sequence[FileInfo]:
        """Files at or below a prefix ('' for all), in order of paths, after `after_path`."""

    def open(self, path: str, version: int | None) -> OpenedFile:
        """A file for reading. Loads it to this host where it is elsewhere."""

    def write(
        self, path: str, fd: int, size_bytes: int, metadata: Metadata, origin: Origin, if_version: int | None
    ) -> FileInfo:
        """Publish the first `size_bytes` of a sealed memfd, which stays the caller's.

        With `if_version` only over that version, 0: only where there is none; else VersionConflict.
        """

    def copy(self, source: str, target: str, origin: Origin) -> FileInfo:
        """Publish the newest bytes of one path under another."""

    def delete(self, path: str, if_version: int | None, origin: Origin) -> None:
        """Remove a file, or refuse because its version is another."""


@dataclass(frozen=True)
class PendingFile:
    """A file that is about to be committed, as the server sees it."""

    info: FileInfo
    fd: int
    """Of its temporary, which nobody can see yet; stays the caller's. Observers get a read-only one of their own."""
    offset_bytes: int = 0
    """Where the content begins."""
    origin: Origin = ()

    def reopened(self) -> int:
        """A read-only descriptor with a position of its own: the caller closes it."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)


def answer(
    files: TierFiles, question: Header, descriptors: Sequence[int], origin: Origin, read_only: bool
) -> tuple[Header, list[int]]:
    """Answer one question; the descriptors that it returns are the caller's to close.

    An error of the tier is an answer too. So is one that nobody foresaw, after it was logged: the observer is
    not to blame for it.

    Raises:
        BadFrame: no question of this protocol.
    """
    what = question.get("ask")
    if not isinstance(what, str) or what not in _READS | _WRITES.keys():
        raise BadFrame(f"it asked to {what!r:.40}")
    try:
        if what in _READS:
            return _READS[what](files, question)
        if read_only:
            raise InvalidRequest(
                f"pre_commit and resolve may only read, and the observer asked to {what}: somebody waits for them, "
                "perhaps another observer. Write in post_commit"
            )
        return _WRITES[what](files, question, descriptors, origin), []
    except BadFrame:
        raise
    except TierError as error:
        return {"error": type(error).__name__, "sentence": str(error)}, []
    except Exception as error:
        LOG.error("an observer asked to %s, and that failed", what, exc_info=error)
        sentence = f"the server failed to {what}: {type(error).__name__}: {error}"
        return {"error": ServerFailed.__name__, "sentence": sentence}, []


def _list(files: TierFiles, question: Header) -> tuple[Header, list[int]]:
    count = _argument(question, "limit_count")
    if not isinstance(count, int) or not 0 < count <= MAX_PAGE_COUNT:
        raise InvalidRequest(f"a page has 1 to {MAX_PAGE_COUNT} files, and {count!r:.40} were asked for")
    prefix, after_path = _argument(question, "prefix"), _argument(question, "after_path")
    page = files.list(clean_prefix(prefix), clean_path(after_path) if after_path else "", count)
    return {"files": [describe(info) for info in page[:count]]}, []


def _open(files: TierFiles, question: Header) -> tuple[Header, list[int]]:
    opened = files.open(clean_path(_argument(question, "path")), _version(question, "version"))
    return {"file": describe(opened.info), "offset_bytes": opened.offset_bytes}, [opened.fd]


def _write(files: TierFiles, question: Header, descriptors: Sequence[int], origin: Origin) -> Header:
    if len(descriptors) != 1:
        raise BadFrame(f"it asked to write {len(descriptors)} descriptors")
    path, metadata = clean_path(_argument(question, "path")), clean_metadata(_argument(question, "metadata"))
    if_version = _version(question, "if_version")
    return {"file": describe(files.write(path, descriptors[0], seal(descriptors[0]), metadata, origin, if_version))}


def _copy(files: TierFiles, question: Header, descriptors: Sequence[int], origin: Origin) -> Header:
    source, target = clean_path(_argument(question, "source")), clean_path(_argument(question, "target"))
    return {"file": describe(files.copy(source, target, origin))}


def _delete(files: TierFiles, question: Header, descriptors: Sequence[int], origin: Origin) -> Header:
    files.delete(clean_path(_argument(question, "path")), _version(question, "if_version"), origin)
    return {}


_READS = {"list": _list, "open": _open}
_WRITES = {"write": _write, "copy": _copy, "delete": _delete}


def _argument(question: Header, name: str) -> Any:
    if name not in question:
        raise BadFrame(f"its question to {question['ask']} lacks {name!r}")
    return question[name]


def _version(question: Header, name: str) -> int | None:
    version = _argument(question, name)
    if version is not None and not isinstance(version, int):
        raise InvalidRequest(f"a version is a number, and {version!r:.40} was given")
    return version
