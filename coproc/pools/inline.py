"""Workers as threads of this process: for tests, and for trying something without another process.

One Python interpreter computes for all of them, so this pool is not about speed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from coproc.errors import CoprocError
from coproc.worker import WorkerReport, WorkerTask, never, run_worker


class InlinePool:
    """Runs each task in a thread of its own, all at once, so that synchronous rounds can close."""

    name = "inline"

    def __init__(self, slots: int = 64, run_task: Callable[..., WorkerReport] = run_worker) -> None:
        """`run_task(task, stop=…)` does one task; tests give another than the worker loop."""
        self._slots_count = slots
        self._run_task = run_task

    @property
    def slots(self) -> int:
        return self._slots_count

    def run(self, tasks: Sequence[WorkerTask], *, stop: Callable[[], bool] = never) -> list[WorkerReport]:
        """As `Pool.run`; an exception of a task is final, for no process died."""
        failed = threading.Event()
        reports: dict[int, WorkerReport] = {}
        errors: list[BaseException] = []
        seats = threading.Semaphore(self._slots_count)

        def asked() -> bool:
            return failed.is_set() or stop()

        def one(index: int, task: WorkerTask) -> None:
            with seats:
                try:
                    reports[index] = self._run_task(task, stop=asked)
                except BaseException as error:  # handed to the caller's thread, below
                    errors.append(error)
                    failed.set()

        threads = [
            threading.Thread(target=one, args=(index, task), name=f"worker-{task.worker}", daemon=True)
            for index, task in enumerate(tasks)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            failed.set()  # interrupted: the workers look at it within half a second
            raise
        if errors:
            # The first one is the cause; what follows is mostly somebody who waited for it.
            raise next((e for e in errors if isinstance(e, CoprocError)), errors[0])
        return [reports[index] for index in range(len(tasks))]

    def close(self) -> None:
        """Nothing is kept between runs."""
