"""Bringing commits to one observer: out of its queue, or out of the catalog when it is behind."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from storage_tier.observers.backlog import Backlog, one_origin
from storage_tier.observers.base import CommittedFile

LOG = logging.getLogger(__name__)

Replay = Callable[[str, int, int], Sequence[CommittedFile]]
"""(directory, since, limit): the next commits below a directory ('' for all) after a sequence, in the order of
sequences. Fewer than `limit` mean that there are no more now. Of a path that was overwritten the newest is enough."""


class Delivery:
    """The backlog of one observer. `told` from any thread, `deliver` from its keeper."""

    def __init__(
        self,
        title: str,
        directory: str,
        queue_count: int,
        batch_count: int,
        wanted: Callable[[CommittedFile], bool],
        replay: Replay | None,
        record: Callable[[int], None],
        since: int | None,
    ) -> None:
        """
        Args:
            wanted: whether a replayed file is for this observer.
            record: told of the cursor after each batch.
        """
        self._title = title
        self._directory = directory
        self._batch_count = batch_count
        self._wanted = wanted
        self._replay = replay
        self._record = record
        self._changed = threading.Condition()
        self._backlog = Backlog(queue_count, replay is not None, since)

    def told(self, file: CommittedFile, working: bool) -> bool:
        """A file was committed; whether the keeper has to be woken. Does not block."""
        with self._changed:
            was_behind = self._backlog.behind
            self._backlog.told(file, working)
            return len(self._backlog) == 1 or self._backlog.behind > was_behind

    def forget(self) -> None:
        """Nobody wants to be told."""
        with self._changed:
            self._backlog.forget()
            self._changed.notify_all()

    def interrupted(self) -> None:
        """The observer failed. The catalog has what is queued too, so that it takes no memory meanwhile."""
        with self._changed:
            self._backlog.interrupted()

    def await_done(self, deadline_s: float, given_up: Callable[[], bool]) -> bool:
        """Wait until all is acknowledged; whether it is."""
        with self._changed:
            while not self._backlog.done and not given_up() and (left_s := deadline_s - time.monotonic()) > 0:
                # `given_up` changes under another lock.
                self._changed.wait(min(left_s, 0.05))
            return self._backlog.done

    def deliver(self, call: Callable[[Sequence[CommittedFile]], None], ending: Callable[[], bool]) -> None:
        """Deliver until nothing is left, the catalog cannot be read, or `ending`.

        What `call` raises goes through; its batch stays, and is delivered again.
        """
        while not ending():
            with self._changed:
                batch = self._backlog.batch(self._batch_count)
                since = self._backlog.catching_up() if not batch and self._backlog.behind else None
            if batch:
                call(batch)
                with self._changed:
                    self._backlog.acknowledge(batch)
                self._acknowledged()
            elif since is None or not self._deliver_replayed(call, since):
                return

    def _deliver_replayed(self, call: Callable[[Sequence[CommittedFile]], None], since: int) -> bool:
        """Deliver one page of the catalog; False when it could not be read."""
        assert self._replay is not None
        complete = False
        try:
            try:
                page = list(self._replay(self._directory, since, self._batch_count))
            except Exception:
                LOG.exception("the commits after %d cannot be read for %s; it is tried again", since, self._title)
                return False
            rest = [file for file in page if self._wanted(file)]
            while rest:
                batch = one_origin(rest, self._batch_count)
                call(batch)
                rest = rest[len(batch) :]
                self._replayed(batch[-1].sequence)
            if page:
                self._replayed(page[-1].sequence)
            complete = len(page) < self._batch_count
            return True
        finally:
            with self._changed:
                if complete:
                    self._backlog.caught_up()
                else:
                    self._backlog.fall_behind()
                self._changed.notify_all()

    def _replayed(self, sequence: int) -> None:
        with self._changed:
            self._backlog.replayed(sequence)
        self._acknowledged()

    def _acknowledged(self) -> None:
        with self._changed:
            cursor = self._backlog.cursor
            self._changed.notify_all()
        assert cursor is not None
        try:
            self._record(cursor)
        except Exception:
            # It costs a repeated delivery at the worst, and only if this server ends now.
            LOG.exception("the cursor %d of %s could not be recorded", cursor, self._title)

    @property
    def queued_count(self) -> int:
        """Files in the queue."""
        return len(self._backlog)

    @property
    def behind(self) -> bool:
        """Whether there is more in the catalog than is queued."""
        return self._backlog.behind

    @property
    def cursor(self) -> int | None:
        """All commits up to this sequence are acknowledged."""
        return self._backlog.cursor

    @property
    def missed_count(self) -> int:
        """Files that the observer was never told of."""
        return self._backlog.missed_count
