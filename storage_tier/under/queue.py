"""What waits to be persisted, and in which order. Pure: no clock, no thread, no store.

A path has at most one job that runs and one that waits; a newer version takes the place of one that waits.
So the versions of a path reach the under-store in their order, and the last one committed is the one that
stays there.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What the under-store shall get."""

    PUBLISH = "publish"
    """The bytes of this version."""
    REMOVE = "remove"
    """Nothing any more: the file was removed from the tier. In the same order as the versions before it."""


@dataclass(frozen=True)
class PersistJob:
    """One path of the tier, brought to one version underneath."""

    path: str
    version: int
    action: Action = Action.PUBLISH


@dataclass(frozen=True)
class PersistFailure:
    """Why something is not persisted yet."""

    path: str
    version: int
    """The version that is to be persisted next."""
    attempt_count: int
    since_ns: int
    """When the first of these attempts failed, in nanoseconds since 1970."""
    next_try_s: float
    """On the clock of the queue's user."""
    reason: str


@dataclass
class _Entry:
    waiting: PersistJob | None
    running: PersistJob | None = None
    again: bool = False  # if the running job fails, the next try is due at once
    attempt_count: int = 0
    since_ns: int = 0
    not_before_s: float = 0.0
    reason: str = ""


class PersistQueue:
    """The order of persisting. Not thread-safe."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._ready: deque[str] = deque()
        self._delayed: list[tuple[float, int, str]] = []
        self._delayed_count = 0  # of all time: equal times keep their order

    def __len__(self) -> int:
        """Paths that are not persisted yet."""
        return len(self._entries)

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    @property
    def running_count(self) -> int:
        """Jobs that were taken and not finished."""
        return sum(entry.running is not None for entry in self._entries.values())

    def submit(self, job: PersistJob) -> bool:
        """Queue a job. False: the same or a newer version of this path is already queued or running.

        A path that has failed keeps its delay: the newer version would fail for the same reason.
        """
        entry = self._entries.get(job.path)
        if entry is None:
            self._entries[job.path] = _Entry(job)
            self._ready.append(job.path)
            return True
        newest = entry.waiting or entry.running
        if newest is not None and newest.version >= job.version:
            return False
        entry.waiting = job
        return True

    def take(self, now_s: float) -> PersistJob | None:
        """The next job that is due, now running; None when none is."""
        while self._delayed and self._delayed[0][0] <= now_s:
            self._ready.append(heapq.heappop(self._delayed)[2])
        if not self._ready:
            return None
        entry = self._entries[self._ready.popleft()]
        entry.running, entry.waiting = entry.waiting, None
        return entry.running

    def due_s(self) -> float | None:
        """When the next job is due; None when nothing waits for a time."""
        return self._delayed[0][0] if self._delayed else None

    def done(self, job: PersistJob) -> None:
        """A running job succeeded, or is wanted no more. A newer version that came meanwhile is ready at once."""
        entry = self._entries[job.path]
        if entry.waiting is None:
            del self._entries[job.path]
            return
        self._entries[job.path] = _Entry(entry.waiting)
        self._ready.append(job.path)

    def attempt_count(self, job: PersistJob) -> int:
        """How often this path has failed so far."""
        return self._entries[job.path].attempt_count

    def failed(self, job: PersistJob, reason: str, now_ns: int, not_before_s: float) -> None:
        """A running job failed: it waits again until `not_before_s`, or a newer version of it does."""
        entry = self._entries[job.path]
        entry.waiting = entry.waiting or job
        entry.running = None
        entry.attempt_count += 1
        entry.since_ns = entry.since_ns or now_ns
        entry.not_before_s = not_before_s
        entry.reason = reason
        if entry.again:
            entry.again = False
            self._ready.append(job.path)
            return
        self._delayed_count += 1
        heapq.heappush(self._delayed, (not_before_s, self._delayed_count, job.path))

    def hurry(self, path: str | None = None) -> None:
        """Make a path due that waits for its time, or every one: it gets one more try at once.

        A named one that is being tried gets it when that try fails, which had begun before.
        """
        entry = None if path is None else self._entries.get(path)
        if entry is not None and entry.running is not None:
            entry.again = True
        self._ready.extend(each for _, _, each in sorted(self._delayed) if path in (None, each))
        self._delayed = [entry for entry in self._delayed if path not in (None, entry[2])]
        heapq.heapify(self._delayed)

    def drop_ready(self) -> None:
        """Nothing more is to be started; what waits stays listed."""
        self._ready.clear()
        self._delayed.clear()

    def pending(self) -> list[PersistJob]:
        """The newest job of each path that is not persisted yet."""
        newest = (entry.waiting or entry.running for entry in self._entries.values())
        return [job for job in newest if job is not None]

    def failure(self, path: str) -> PersistFailure | None:
        """Why a path is not persisted yet; None when it has not failed."""
        entry = self._entries.get(path)
        job = None if entry is None else entry.waiting or entry.running
        if entry is None or job is None or not entry.attempt_count:
            return None
        return PersistFailure(path, job.version, entry.attempt_count, entry.since_ns, entry.not_before_s, entry.reason)

    def failures(self) -> list[PersistFailure]:
        """Every path that has failed and is not persisted yet, the longest failing first."""
        found = [failure for path in self._entries if (failure := self.failure(path)) is not None]
        return sorted(found, key=lambda failure: failure.since_ns)
