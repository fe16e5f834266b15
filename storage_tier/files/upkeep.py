"""The one background thread of the file layer: heartbeats, time to live, what was released, what waits, what is left.

Every task only asks the catalog and deletes files; nothing here waits for an under-store, an observer or a peer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from storage_tier.errors import Fenced

LOG = logging.getLogger(__name__)


@dataclass
class Task:
    """What is done every so often."""

    name: str
    every_s: float
    do: Callable[[], None]
    due_s: float = 0.0


class Upkeep:
    """Runs tasks, one after the other. A task that fails is tried again; a fenced server stops for good."""

    def __init__(self, tasks: list[Task]) -> None:
        self._tasks = tasks
        self._wake = threading.Condition()
        self._hurry = False
        self._stopped = False
        self._failures: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name="tier upkeep", daemon=True)

    @property
    def failure(self) -> str:
        """What last failed and did not succeed since; '' when all is well."""
        return "; ".join(self._failures.values())

    def start(self) -> None:
        now_s = time.monotonic()
        for task in self._tasks:
            task.due_s = now_s + task.every_s
        self._thread.start()

    def hurry(self) -> None:
        """Run all tasks soon."""
        with self._wake:
            self._hurry = True
            self._wake.notify()

    def close(self, timeout_s: float) -> None:
        """Stop after the task under way. Idempotent."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def run_all(self) -> None:
        """Each task once, in this thread; for tests.

        Raises:
            whatever they raise.
        """
        for task in self._tasks:
            task.do()

    def _run(self) -> None:
        while True:
            with self._wake:
                due_s = min(task.due_s for task in self._tasks)
                if not self._stopped and not self._hurry:
                    self._wake.wait(max(due_s - time.monotonic(), 0))
                if self._stopped:
                    return
                hurry, self._hurry = self._hurry, False
            for task in self._tasks:
                now_s = time.monotonic()
                if not hurry and task.due_s > now_s:
                    continue
                task.due_s = now_s + task.every_s
                if not self._try(task):
                    return

    def _try(self, task: Task) -> bool:
        try:
            task.do()
        except Fenced as error:
            self._failures = {"fenced": str(error)}
            LOG.error("%s", error)
            return False
        except Exception as error:
            if self._failures.get(task.name) != str(error):
                LOG.exception("the upkeep failed to %s; it is tried again", task.name)
            self._failures[task.name] = str(error) or type(error).__name__
        else:
            self._failures.pop(task.name, None)
        return True
