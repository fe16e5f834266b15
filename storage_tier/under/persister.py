"""Persists committed files in the background, as often as it takes: what `async_through` promises.

It keeps nothing on disk. The catalog records what is to be persisted, and submits it again after a restart:
publishing the same version twice does no harm.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from storage_tier.errors import DeadlineExceeded
from storage_tier.under.queue import Action, PersistFailure, PersistJob, PersistQueue

# Two uploads fill most networks; each holds up to 64 MiB.
WORKER_COUNT = 2
# A short trouble is over in a second; in a long one a store is asked once a minute for each path.
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 60.0
# A status goes over the wire.
_SHOWN_COUNT = 20

_log = logging.getLogger(__name__)


class Clock(Protocol):
    """Time, so that tests need not wait for it."""

    def now_s(self) -> float:
        """Monotonic."""

    def now_ns(self) -> int:
        """Since 1970."""

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        """Give the held condition's lock up until it is notified or the time is over."""


class SystemClock:
    """The machine's own."""

    def now_s(self) -> float:
        return time.monotonic()

    def now_ns(self) -> int:
        return time.time_ns()

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        condition.wait(timeout_s)


@dataclass(frozen=True)
class PersisterStatus:
    """What is persisted at one moment, and what can't be."""

    pending_count: int
    running_count: int
    failing_count: int
    failing: tuple[PersistFailure, ...]
    """The longest failing first, at most 20."""
    callback_error: str
    """What `on_failed` raised the last time it did; '' when it never did."""


def backoff_s(attempt_count: int, chance: float) -> float:
    """The pause after the n-th failure: min(60, 0.5 * 2^(n-1)) seconds, times 0.5 to 1 as `chance` in [0, 1) says.

    The chance keeps servers that failed together from coming back together.
    """
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt_count - 1, 30)) * (0.5 + 0.5 * chance)


class Persister:
    """A queue of jobs and the threads that do them. Thread-safe.

    `persist(job)` does one: it publishes the bytes of exactly that version, or removes the object, and returns the
    stamp of what is underneath now ('' after a removal); None when the catalog wants this job no more. It must
    be idempotent, and is never called twice at a time for one path. Only after it has returned, `on_persisted(job,
    stamp)` is called; what either raises counts as a failure of the job, and all of it is tried again.
    """

    def __init__(
        self,
        persist: Callable[[PersistJob], str | None],
        *,
        on_persisted: Callable[[PersistJob, str], None],
        on_failed: Callable[[PersistJob, Exception, int], None] | None = None,
        worker_count: int = WORKER_COUNT,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Start the threads.

        Args:
            on_persisted: records it in the catalog.
            on_failed: is told (job, error, attempts so far) after each failure; it will be tried again.
            worker_count: how many jobs may run at a time.
        """
        self._persist = persist
        self._on_persisted = on_persisted
        self._on_failed = on_failed
        self._clock = clock or SystemClock()
        self._chance = chance
        self._queue = PersistQueue()
        self._changed = threading.Condition()
        self._closing = False
        self._stopped = False
        self._callback_error = ""
        # Daemons: a store that hangs must not keep the process alive.
        self._threads = [
            threading.Thread(target=self._work, name=f"persister {number}", daemon=True)
            for number in range(worker_count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, path: str, version: int, action: Action = Action.PUBLISH) -> bool:
        """Queue a version of a path, to be tried until it is done. Never blocks. Idempotent.

        An older version that has not been started is forgotten. False: this version or a newer one is queued
        already, or it was closed; then the catalog still has it.
        """
        with self._changed:
            if self._closing:
                return False
            taken = self._queue.submit(PersistJob(path, version, action))
            self._changed.notify_all()
            return taken

    def pending(self) -> list[PersistJob]:
        """The newest job of each path that is not done yet, those that run included."""
        with self._changed:
            return self._queue.pending()

    def wait(self, path: str | None, timeout_s: float) -> None:
        """Block until nothing of `path` is pending; None means of any path.

        A path that has failed is tried once more at once: whoever asks may have done something about it.

        Raises:
            DeadlineExceeded: it is still pending; the sentence says why.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            if path is not None:
                self._queue.hurry(path)
                self._changed.notify_all()
            while path in self._queue if path is not None else len(self._queue):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise DeadlineExceeded(self._why_not(path, timeout_s))
                self._changed.wait(left_s)

    def status(self) -> PersisterStatus:
        """Never blocks."""
        with self._changed:
            failures = self._queue.failures()
            return PersisterStatus(
                len(self._queue),
                self._queue.running_count,
                len(failures),
                tuple(failures[:_SHOWN_COUNT]),
                self._callback_error,
            )

    def close(self, timeout_s: float) -> list[PersistJob]:
        """Take no more, give each pending job one more try at once, stop. Returns what is left. Idempotent.

        What runs when the time is over is left to its thread and counts as left. The catalog has to submit what
        is left when it starts again.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            if not self._closing:
                self._closing = True
                self._queue.hurry()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(deadline_s - time.monotonic(), 0))
        return self.abort()

    def abort(self) -> list[PersistJob]:
        """Take no more, start no more, wait for nothing. Returns what is left. Idempotent."""
        with self._changed:
            self._closing = self._stopped = True
            self._queue.drop_ready()
            self._changed.notify_all()
            return self._queue.pending()

    # ---------------------------------------------------------------- inside

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                stamp = self._persist(job)
                if stamp is not None:
                    self._on_persisted(job, stamp)
            except Exception as error:
                self._fail(job, error)
            else:
                with self._changed:
                    self._queue.done(job)
                    self._changed.notify_all()

    def _next(self) -> PersistJob | None:
        """Block until a job is due; None when this thread shall end."""
        with self._changed:
            while not self._stopped:
                now_s = self._clock.now_s()
                # The last tries of a closing one are all ready; what failed again is not waited for.
                job = self._queue.take(float("-inf") if self._closing else now_s)
                if job is not None:
                    return job
                if self._closing:
                    return None
                due_s = self._queue.due_s()
                self._clock.wait(self._changed, None if due_s is None else due_s - now_s)
            return None

    def _fail(self, job: PersistJob, error: Exception) -> None:
        with self._changed:
            attempt_count = self._queue.attempt_count(job) + 1
        self._tell(job, error, attempt_count)
        # Somebody has to do something about an error that would come again; asking fast does not help.
        retryable = getattr(error, "retryable", True)
        delay_s = backoff_s(attempt_count if retryable else 31, self._chance())
        with self._changed:
            self._queue.failed(job, _sentence(error), self._clock.now_ns(), self._clock.now_s() + delay_s)
            self._changed.notify_all()

    def _tell(self, job: PersistJob, error: Exception, attempt_count: int) -> None:
        if self._on_failed is None:
            return
        try:
            self._on_failed(job, error, attempt_count)
        except Exception as second:
            # It must not stop the retries; it is shown in `status`.
            self._callback_error = _sentence(second)
            _log.exception("on_failed for %s", job)

    def _why_not(self, path: str | None, timeout_s: float) -> str:
        subject = path if path is not None else f"{len(self._queue):,} paths"
        failures = self._queue.failures() if path is None else [self._queue.failure(path)]
        said = f"{subject} could not be persisted in {timeout_s:g} s"
        if not failures or failures[0] is None:
            return f"{said}: no attempt has ended yet. It will go on."
        first = failures[0]
        return f"{said}: {first.attempt_count} attempts failed, the last with: {first.reason} It will go on."


def _sentence(error: BaseException) -> str:
    return str(error) or type(error).__name__
