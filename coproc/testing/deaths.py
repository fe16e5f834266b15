"""Workers that die when told to, and twins: what a mode has to bear.

Run as a program it is a worker process as the pool's own, but for its deaths.
"""

from __future__ import annotations

import contextvars
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from coproc.errors import DataError
from coproc.exchange import Pushed
from coproc.pools import processes
from coproc.prefetch import join
from coproc.tasks import WorkerReport, WorkerTask
from coproc.worker import never, run_worker


@dataclass(frozen=True)
class Deaths:
    """Steps of workers at which the task dies, once each."""

    folder: Path
    """Empty; says later who has died, to all processes."""

    at: Sequence[tuple[int, int, str]]
    """(worker, step, "before" or "after" its push; or "refuse", which is no death but an error of the task)."""

    @property
    def command(self) -> list[str]:
        """Of a worker process for `ProcessPool`: it is killed."""
        return [sys.executable, "-m", "coproc.testing.deaths", str(self.folder), json.dumps(self.at)]

    @property
    def died(self) -> int:
        """How many so far."""
        return len(list(self.folder.iterdir()))

    def run_task(self, task: WorkerTask, *, stop: Callable[[], bool] = never) -> WorkerReport:
        """A task in this thread: an exception that nobody expects, and another attempt."""

        def die() -> None:
            raise SystemExit

        while True:
            try:
                return run_worker(task, stop=stop, open_exchange=lambda task: Mortal(task, self, die))
            except SystemExit:
                continue

    def run_killed(self, task: WorkerTask, *, stop: Callable[[], bool] = never) -> WorkerReport:
        """A task in a process of its own."""

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        return run_worker(task, stop=stop, open_exchange=lambda task: Mortal(task, self, die))

    def come(self, worker: int, step: int, when: str) -> bool:
        """Whether it is this one's turn to die; True once."""
        if (worker, step, when) not in [tuple(each) for each in self.at]:
            return False
        try:
            (self.folder / f"{worker}-{step}-{when}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Mortal:
    """A task's exchange, with the deaths that are to come."""

    def __init__(self, task: WorkerTask, deaths: Deaths, die: Callable[[], None]) -> None:
        self._exchange = join(task)
        self._worker = task.worker
        self._deaths = deaths
        self._die = die

    def push(self, *, step: int, **told: Any) -> Pushed:
        if self._deaths.come(self._worker, step, "refuse"):
            raise DataError(f"worker {self._worker} refuses step {step}")
        if self._deaths.come(self._worker, step, "before"):
            self._die()
        receipt = self._exchange.push(step=step, **told)
        if self._deaths.come(self._worker, step, "after"):
            self._die()
        return receipt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exchange, name)


def run_twice(task: WorkerTask, *, stop: Callable[[], bool] = never) -> WorkerReport:
    """Two attempts of a task at once, as with Spark's speculation; the report of one, when both are over."""
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as other:
        twin = other.submit(context.run, run_worker, task, stop=stop)
        report = run_worker(task, stop=stop)
    twin.result()
    return report


if __name__ == "__main__":
    told = Deaths(Path(sys.argv[1]), json.loads(sys.argv[2]))
    with mock.patch.object(processes, "run_worker", told.run_killed):
        processes.main()
