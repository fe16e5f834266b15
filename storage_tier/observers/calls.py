"""The calls of an observer's process: what each sends, and what is understood of its answer."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from storage_tier.observers.answers import BadAnswer, listed, resolved, started, veto
from storage_tier.observers.base import CommittedFile, FileInfo, OnFailure, Origin, describe
from storage_tier.observers.files import OpenedFile, PendingFile
from storage_tier.observers.frames import Header, close_all
from storage_tier.observers.options import ObserverOptions
from storage_tier.observers.process import Broken, ChildProcess, LaneName
from storage_tier.observers.registry import find

T = TypeVar("T")

STOP_LIMIT_S = 5.0


class Calls:
    """Of one process. Each call raises `Broken` when the process failed, or answered what nobody understands."""

    def __init__(self, child: ChildProcess, title: str, options: ObserverOptions) -> None:
        self._child = child
        self._title = title
        self._options = options

    def start(
        self, name: str, parameters: Mapping[str, Any], directory: str, facts: Mapping[str, Any]
    ) -> tuple[tuple[str, ...], OnFailure]:
        """Load and start the observer: its hooks, and what becomes of files without it.

        Raises:
            InvalidRequest: it refused its parameters or its directory. Broken.
        """
        entry = find(name)
        header: Header = {
            "hook": "start",
            "origin": (),
            "name": name,
            "module": entry.module,
            "attribute": entry.attr,
            "parameters": parameters,
            "directory": directory or "/",
            "facts": facts,
            "memory_bytes": self._options.memory_bytes,
        }
        return self._plain("work", header, self._options.start_limit_s, math.inf, started)

    def pre_commit(self, file: PendingFile, deadline_s: float) -> str | None:
        """The sentence of a veto, or None."""
        header: Header = {
            "hook": "pre_commit",
            "origin": file.origin,
            "file": describe(file.info),
            "offset_bytes": file.offset_bytes,
        }
        fd = file.reopened()
        try:
            return self._plain("pre", header, self._options.pre_commit_limit_s, deadline_s, veto, (fd,))
        finally:
            os.close(fd)

    def post_commit(self, batch: Sequence[CommittedFile], redelivered: bool) -> None:
        """Tell of a batch of one origin; returns when it is acknowledged."""
        header: Header = {
            "hook": "post_commit",
            "origin": batch[0].origin,
            "redelivered": redelivered,
            "batch": [{**describe(file), "sequence": file.sequence} for file in batch],
        }
        self._plain("work", header, self._options.post_commit_limit_s, math.inf, lambda found: None)

    def resolve(self, path: str, origin: Origin, deadline_s: float) -> OpenedFile | None:
        """The virtual file of a path, whose descriptor is the caller's."""
        header: Header = {"hook": "resolve", "origin": origin, "path": path}
        found, received = self._child.call("resolve", header, (), self._options.resolve_limit_s, deadline_s)
        try:
            return resolved(path, found, received)
        except BadAnswer as error:
            close_all(received)
            raise self._misunderstood(header, error) from None

    def list_virtual(self, directory: str, origin: Origin, deadline_s: float) -> list[FileInfo]:
        """The virtual files directly in a directory."""
        header: Header = {"hook": "list_virtual", "origin": origin, "path": directory}
        limit_s = self._options.resolve_limit_s
        return self._plain("resolve", header, limit_s, deadline_s, lambda found: listed(directory, found))

    def stop(self) -> None:
        """Ask it to stop."""
        self._plain("work", {"hook": "stop", "origin": ()}, STOP_LIMIT_S, math.inf, lambda found: None)

    def _plain(
        self,
        lane: LaneName,
        header: Header,
        limit_s: float,
        deadline_s: float,
        understand: Callable[[Header], T],
        descriptors: tuple[int, ...] = (),
    ) -> T:
        """A call whose answer has no descriptors."""
        found, received = self._child.call(lane, header, descriptors, limit_s, deadline_s)
        close_all(received)
        try:
            return understand(found)
        except BadAnswer as error:
            raise self._misunderstood(header, error) from None

    def _misunderstood(self, header: Header, error: BadAnswer) -> Broken:
        self._child.fail(f"{header['hook']} of {self._title} gave a bad answer: {error}")
        return Broken()
