"""Blocking calls with a deadline that holds, into libraries that may hang.

Each call runs in a thread of its own and is waited for. One that makes no progress for `timeout_s` is
abandoned: its thread is left to end by itself, counts against the limit until then, and keeps what it was
changing for itself, so that nothing it does late can undo what came after it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from storage_tier.errors import UnderUnreachable

T = TypeVar("T")


class Call:
    """One running call, seen by the thread that does it and by the one that waits for it."""

    def __init__(self, what: str, keys: frozenset[str], now_s: float) -> None:
        self.what = what
        self.keys = keys
        self.started_s = now_s
        self.moved_s = now_s
        self.done = False
        self.abandoned = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._lock = threading.Lock()

    def moved(self) -> None:
        """Progress was made: the time limit begins anew. Called by the worker between two steps.

        Raises:
            UnderUnreachable: nobody waits for this call any more; stop here.
        """
        if self.abandoned:
            raise UnderUnreachable(f"{self.what} was given up")
        self.moved_s = time.monotonic()

    @contextmanager
    def delivering(self) -> Iterator[None]:
        """While this is held nobody can give the call up: for writing into memory of the one who waits.

        Hold it for a copy, never for anything that can hang.
        """
        with self._lock:
            self.moved()
            yield

    def abandon(self) -> None:
        """After this returns, the worker is in no `delivering` block and enters none."""
        with self._lock:
            self.abandoned = True


class Calls:
    """Runs calls for one under-store: at most `limit_count` at a time, abandoned ones included. Thread-safe."""

    def __init__(self, limit_count: int) -> None:
        self.limit_count = limit_count
        self._running: set[Call] = set()
        self._changed = threading.Condition()

    @property
    def running_count(self) -> int:
        """Threads at work now, abandoned ones included."""
        with self._changed:
            return len(self._running)

    @property
    def abandoned_count(self) -> int:
        """Threads that nobody waits for and that have not ended yet."""
        with self._changed:
            return sum(call.abandoned for call in self._running)

    def run(self, what: str, work: Callable[[Call], T], timeout_s: float, keys: frozenset[str] = frozenset()) -> T:
        """Call `work(call)` in a thread and return what it returns or raise what it raises. Blocks.

        Args:
            what: for sentences: "s3://b: publishing /a".
            timeout_s: the longest wait for a turn, and then the longest time without `call.moved()`.
            keys: names that only one call at a time may change.

        Raises:
            UnderUnreachable: no turn or no progress in time. Nothing is written into memory of the caller
                afterwards; what happens underneath is not known until the thread ends.
        """
        call = self._admit(what, keys, timeout_s)
        try:
            threading.Thread(target=self._work, args=(call, work), name=f"under: {what}"[:60], daemon=True).start()
        except BaseException:
            self._end(call)
            raise
        try:
            self._wait(call, timeout_s)
        except BaseException:
            call.abandon()
            raise
        if call.error is not None:
            try:
                raise call.error
            finally:
                call.error = None  # else the traceback and this frame would hold each other
        result: T = call.result
        return result

    def _admit(self, what: str, keys: frozenset[str], timeout_s: float) -> Call:
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                in_the_way = [call for call in self._running if call.keys & keys]
                if not in_the_way and len(self._running) < self.limit_count:
                    call = Call(what, keys, time.monotonic())
                    self._running.add(call)
                    return call
                # Waiting for a thread that hangs would only hang as well.
                hanging = [call for call in in_the_way or self._running if call.abandoned]
                if hanging and (in_the_way or len(hanging) == self.limit_count):
                    raise UnderUnreachable(f"{what} cannot begin: {_tell(hanging)}")
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise UnderUnreachable(
                        f"{what} did not get its turn in {timeout_s:g} s: {_tell(in_the_way or list(self._running))}"
                    )
                self._changed.wait(left_s)

    def _wait(self, call: Call, timeout_s: float) -> None:
        with self._changed:
            while not call.done:
                left_s = call.moved_s + timeout_s - time.monotonic()
                if left_s <= 0:
                    raise UnderUnreachable(f"{call.what} made no progress for {timeout_s:g} s and was given up")
                self._changed.wait(left_s)

    def _work(self, call: Call, work: Callable[[Call], object]) -> None:
        try:
            call.result = work(call)
        except BaseException as error:
            call.error = error  # raised by the one who waits
        finally:
            self._end(call)

    def _end(self, call: Call) -> None:
        with self._changed:
            call.done = True
            self._running.discard(call)
            self._changed.notify_all()


def _tell(calls: list[Call]) -> str:
    oldest = min(calls, key=lambda call: call.started_s)
    state = "hangs" if oldest.abandoned else "is at work"
    count = f"{len(calls)} earlier calls are, the oldest: " if len(calls) > 1 else ""
    return f"{count}{oldest.what} {state} for {time.monotonic() - oldest.started_s:.1f} s. Try again later."
