"""What a parameter server decides: which gradients wait, when they are descended, what is a duplicate. No I/O.

As in the original, two numbers span from asynchronous to bulk-synchronous: a descent takes `min_updates` gradients at
the least and `max_updates` at the most. With `min_updates` = 1 each gradient is descended when it comes; with
`min_updates` = `max_updates` = workers each descent is a round of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from coproc.errors import ConfigError, PushRejected, whole
from coproc.layout import Flat

_MOST_WORKERS = 1 << 20


@dataclass(frozen=True, eq=False)
class Given:
    """A gradient that waits, or a step without one."""

    worker: int
    examples: int
    """0: without one."""
    loss: float
    gradient: Flat | None


class Rounds:
    """Which gradients of which workers are in, and which wait. Used by one thread."""

    def __init__(self, workers: int | None, min_updates: int, max_updates: int) -> None:
        """
        Args:
            workers: so many take part, numbered from 0, each with one step a round, until they leave; None: there are
                no rounds, whoever comes gives whenever it likes.

        Raises:
            ConfigError: numbers that leave a round open for ever.
        """
        whole("min_updates", min_updates, 1, _MOST_WORKERS)
        whole("max_updates", max_updates, min_updates, _MOST_WORKERS)
        if workers is not None and min_updates > workers:
            raise ConfigError(f"a descent that takes {min_updates} gradients waits for ever for {workers} workers")
        self.workers = workers
        self.min_updates = min_updates
        self.max_updates = max_updates
        self.next_steps: dict[int, int] = {}
        self._left: set[int] = set()
        self._waiting: list[Given] = []
        """As they came. Of one worker several, if it skips steps or reads seldom: one a round."""

    def join(self, worker: int) -> int:
        """A worker comes, or comes again; the step that it is to push next.

        Raises:
            ConfigError: nobody can have this number.
        """
        most = (self.workers or _MOST_WORKERS) - 1
        if not 0 <= worker <= most:
            raise ConfigError(f"workers of this server are numbered 0 to {most}, not {worker}")
        self._left.discard(worker)
        return self.next_steps.setdefault(worker, 0)

    def is_duplicate(self, worker: int, step: int) -> bool:
        """Whether a step is in, or waits already.

        Raises:
            PushRejected: it is not the next one either; or the worker has not joined.
        """
        expected = self.next_steps.get(worker)
        if expected is None:
            raise PushRejected(f"worker {worker} has not joined")
        if step > expected:
            raise PushRejected(
                f"worker {worker} pushes step {step}, but its next step is {expected}: steps have no holes"
            )
        return step < expected

    def give(self, given: Given) -> None:
        """Take a worker's next step."""
        self.next_steps[given.worker] += 1
        self._waiting.append(given)

    def leave(self, worker: int) -> None:
        """Nobody waits for it any more. What it has given stays."""
        self._left.add(worker)

    @property
    def missing(self) -> list[int]:
        """Whom the open round waits for; where there are no rounds, who is there and has given nothing."""
        there = self.next_steps if self.workers is None else range(self.workers)
        gave = {given.worker for given in self._waiting}
        return [worker for worker in there if worker not in gave and worker not in self._left]

    def waits(self, worker: int) -> bool:
        """Whether something that this worker has given waits: what it reads next is to contain it."""
        return any(given.worker == worker for given in self._waiting)

    def holds(self, given: Given) -> bool:
        """Whether this one waits."""
        return given in self._waiting

    def take(self) -> list[Given] | None:
        """What the next descent is made of, in the order of workers, or as they came; None: it has to wait.

        It may be steps without gradients only; then nothing is descended, and the round is over all the same.
        """
        open_round = self._waiting
        if self.workers is not None:
            first: dict[int, Given] = {}
            for given in self._waiting:
                first.setdefault(given.worker, given)
            open_round = [first[worker] for worker in sorted(first)]
        if not open_round or (len(open_round) < self.min_updates and self.missing):
            return None
        taken = open_round[: self.max_updates]
        self._waiting = [given for given in self._waiting if given not in taken]
        return taken
