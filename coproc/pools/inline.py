"""Workers as threads of this process: for tests, and for trying something without another process.

One Python interpreter computes for all of them, so this pool is not about speed.
"""

from __future__ import annotations

import functools
import json
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from coproc.errors import CoprocError
from coproc.layout import Flat
from coproc.pools.base import call_text, perform
from coproc.tasks import WorkerReport, WorkerTask
from coproc.worker import never, run_worker

T = TypeVar("T")


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

        def one(task: WorkerTask, asked: Callable[[], bool]) -> WorkerReport:
            return self._run_task(task, stop=asked)

        return self._at_once(one, tasks, stop)

    def call(self, function: str, arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
        """As `Pool.call`; an exception is final."""
        texts = [call_text(function, each) for each in arguments]
        return [json.loads(answer) for answer in self._at_once(lambda text, asked: perform(text), texts, never)]

    def aggregate(
        self,
        vector: Flat,
        function: Callable[[Flat, str, Callable[[WorkerTask], WorkerReport]], tuple[Flat | None, str]],
        arguments: Sequence[str],
        *,
        stop: Callable[[], bool] = never,
    ) -> tuple[Flat | None, list[str], int]:
        """As `SparkPool.aggregate`, with all vectors added up here, in order."""

        def one(argument: str, asked: Callable[[], bool]) -> tuple[Flat | None, str]:
            return function(vector, argument, functools.partial(self._run_task, stop=asked))

        given = self._at_once(one, arguments, stop)
        vectors = [each for each, _ in given if each is not None]
        total = functools.reduce(operator.iadd, vectors) if vectors else None
        return total, [text for _, text in given], sum(each.nbytes for each in vectors)

    def _at_once(
        self, do: Callable[[Any, Callable[[], bool]], T], arguments: Sequence[Any], stop: Callable[[], bool]
    ) -> list[T]:
        """`do(argument, stop)` of each, in a thread each; what they return, in order."""
        failed = threading.Event()
        answers: dict[int, T] = {}
        errors: list[BaseException] = []
        seats = threading.Semaphore(self._slots_count)

        def asked() -> bool:
            return failed.is_set() or stop()

        def one(index: int, argument: Any) -> None:
            with seats:
                try:
                    answers[index] = do(argument, asked)
                except BaseException as error:  # handed to the caller's thread, below
                    errors.append(error)
                    failed.set()

        threads = [
            threading.Thread(target=one, args=(index, argument), name=f"task-{index}", daemon=True)
            for index, argument in enumerate(arguments)
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
        return [answers[index] for index in range(len(arguments))]

    def close(self) -> None:
        """Nothing is kept between runs."""
