"""What one observer has yet to be told: a bounded queue, and a cursor to come back to. Pure.

Files are queued as they are committed. When the queue is full, or while the observer does not work, nothing
more is queued: it is *behind*, and reads on from the cursor what the catalog replays, until it has caught up.
So a writer never waits, memory is bounded, and nothing is left out. Without a replay the queue is all there is:
what finds no room in it is counted as missed.

Why this is complete. `catching_up` turns the queue on again before the caller reads the catalog. A file that is
committed later is queued; one that was committed before is replayed; one in between is both, and is known by its
sequence. That needs what `ObserverHost.after_commit` asks for: commits are told in the order of sequences.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from storage_tier.observers.base import CommittedFile


class Backlog:
    """Not thread-safe: its owner has a lock. The batch that is out stays in it until it is acknowledged."""

    def __init__(self, limit_count: int, can_replay: bool, since: int | None) -> None:
        """
        Args:
            limit_count: the most files that are queued.
            can_replay: whether there is a catalog that replays.
            since: the last sequence that was acknowledged before; None tells of nothing older than now.
        """
        self._limit_count = limit_count
        self._can_replay = can_replay
        self._queue: deque[CommittedFile] = deque()
        self._replayed_to = -1
        self._reading = False
        self.cursor = since
        """All up to this sequence is acknowledged; None before the first file."""
        self.behind = can_replay and since is not None
        """Whether the next batch has to come out of the catalog, when the queue is empty."""
        self.missed_count = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def done(self) -> bool:
        """Whether everything is acknowledged."""
        return not self._queue and not self.behind and not self._reading

    def told(self, file: CommittedFile, working: bool) -> None:
        """A file was committed."""
        if self.cursor is None:
            self.cursor = file.sequence - 1
        if self.behind:
            return
        if len(self._queue) < self._limit_count and (working or not self._can_replay):
            self._queue.append(file)
        elif self._can_replay:
            self.behind = True
        else:
            self.missed_count += 1

    def batch(self, limit_count: int) -> list[CommittedFile]:
        """The next files of one origin; they stay until `acknowledge`."""
        while self._queue and self._queue[0].sequence <= self._replayed_to:
            self._queue.popleft()
        return one_origin(self._queue, limit_count)

    def acknowledge(self, batch: Sequence[CommittedFile]) -> None:
        """A batch of the queue has been worked off."""
        for file in batch:
            self._queue.popleft()
            self._advance(file.sequence)

    def catching_up(self) -> int:
        """The queue is empty and it is behind: queue again, and read the catalog from the returned sequence on.

        `caught_up` or `fall_behind` has to follow.
        """
        self.behind, self._reading = False, True
        assert self.cursor is not None
        return self.cursor

    def replayed(self, sequence: int) -> None:
        """All that was replayed up to this sequence has been worked off."""
        self._advance(sequence)
        self._replayed_to = max(self._replayed_to, sequence)

    def caught_up(self) -> None:
        """All that the catalog had was worked off; what is queued comes next."""
        self._reading = False

    def fall_behind(self) -> None:
        """The catalog has more than was read, or the reading stopped half-way: what is queued comes after that."""
        self._queue.clear()
        self.behind, self._reading = True, False

    def interrupted(self) -> None:
        """The observer failed: what is queued will come from the catalog, where there is one."""
        if self._can_replay and self.cursor is not None:
            self.fall_behind()

    def forget(self) -> None:
        """Nobody wants to be told."""
        self._queue.clear()
        self.behind = False

    def _advance(self, sequence: int) -> None:
        self.cursor = sequence if self.cursor is None else max(self.cursor, sequence)


def one_origin(files: Iterable[CommittedFile], limit_count: int) -> list[CommittedFile]:
    """The first files, as long as they have the origin of the first one."""
    found: list[CommittedFile] = []
    for file in files:
        if len(found) == limit_count or (found and file.origin != found[0].origin):
            break
        found.append(file)
    return found
