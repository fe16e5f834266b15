"""Workers as processes of this host: no Java needed, and each has an interpreter of its own.

A child is `python -m coproc.pools.processes`. It reads one JSON task a line on its standard input and writes
one JSON answer a line on its standard output: nothing is pickled, nothing is forked after gRPC was started.
A child ends at once when its standard input ends, which the kernel sees to however the parent ends. (Not
PR_SET_PDEATHSIG: that fires when the *thread* ends which started the child.)
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any

from coproc.errors import CoprocError, ServerError
from coproc.pools.base import (
    ATTEMPT_LIMIT,
    ONE_THREAD,
    call_text,
    failure_in,
    failure_text,
    perform,
    python_path,
)
from coproc.tasks import WorkerReport, WorkerTask
from coproc.worker import never, run_worker

# A worker that was asked to stop looks at it between two steps, and twice a second where it waits.
STOP_GRACE_S = 10.0
LOOK_S = 0.1

COMMAND = (sys.executable, "-m", "coproc.pools.processes")


class Died(Exception):
    """A child ended without an answer."""


class Child:
    """One worker process; does one task at a time, and many one after the other."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        # A file and not a pipe: nobody has to read it while the child works.
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._sending = threading.Lock()
        self._sent_count = 0
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": python_path()},
            start_new_session=True,  # Ctrl-C is for the driver, which stops its workers in an orderly way
        )

    def do(self, text: str, ending: threading.Event) -> str:
        """One task's line, in this thread, and its answer; told to stop at once where `ending` is set already.

        Raises:
            Died: the process ended first; the last line of its log is in the message.
            CoprocError: what the worker raised.
        """
        assert self.process.stdout is not None
        try:
            with self._sending:
                self._sent_count += 1
                self._send(text)
            if ending.is_set():
                self.ask_to_stop()
            answer = self.process.stdout.readline().decode()
        except (OSError, ValueError) as error:
            raise Died(self._last_words()) from error
        if not answer.endswith("\n"):
            raise Died(self._last_words())
        failure = failure_in(answer)
        if failure is not None:
            raise failure
        return answer

    def ask_to_stop(self) -> None:
        """Ask the task that was sent last to end early. Returns at once."""
        # The child may be dead already: whoever waits for its answer finds out.
        with contextlib.suppress(OSError, ValueError), self._sending:
            self._send(f"stop {self._sent_count}")

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL. Idempotent."""
        self.process.kill()

    def close(self) -> None:
        """End the process and wait for it. Idempotent."""
        self.process.kill()
        self.process.wait(timeout=STOP_GRACE_S)
        for pipe in (self.process.stdin, self.process.stdout, self._log):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _last_words(self) -> str:
        code = self.process.wait(timeout=STOP_GRACE_S)
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"{cause}{': ' + lines[-1] if lines else ''}"


class ProcessPool:
    """Up to `slots` worker processes, kept from one run to the next."""

    name = "processes"

    def __init__(self, slots: int, command: Sequence[str] = COMMAND, places: Sequence[Sequence[str]] = ((),)) -> None:
        """Starts nothing.

        Args:
            command: the child's program; tests give another.
            places: what it is started by, to run somewhere else: worker w is always at place w % their number.
        """
        self._commands = [(*place, *command) for place in places]
        self._slots_count = slots
        self._idle: list[queue.SimpleQueue[Child]] = [queue.SimpleQueue() for _ in places]
        self._seats = threading.Semaphore(slots)
        self._busy: dict[int, Child] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def slots(self) -> int:
        return self._slots_count

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that work now: for tests that kill one."""
        with self._lock:
            return [child.process.pid for child in self._busy.values()]

    def run(self, tasks: Sequence[WorkerTask], *, stop: Callable[[], bool] = never) -> list[WorkerReport]:
        """As `Pool.run`. A child that dies is replaced; its task continues where the model says."""
        named = [(task.worker, f"worker {task.worker}", task.to_json()) for task in tasks]
        return [WorkerReport.from_json(answer) for answer in self._do(named, stop)]

    def call(self, function: str, arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
        """As `Pool.call`. A child that dies is replaced."""
        named = [(number, f"task {number}", call_text(function, each)) for number, each in enumerate(arguments)]
        return [json.loads(answer) for answer in self._do(named, never)]

    def _do(self, tasks: Sequence[tuple[int, str, str]], stop: Callable[[], bool]) -> list[str]:
        """The answers to tasks, (number, name, line) each, in their order."""
        finished: queue.SimpleQueue[tuple[int, str | BaseException]] = queue.SimpleQueue()
        ending = threading.Event()

        def one(index: int, number: int, name: str, text: str) -> None:
            with self._seats:
                try:
                    finished.put((index, self._attempts(index, number % len(self._idle), name, text, ending)))
                except BaseException as error:  # raised again in the caller's thread, below
                    finished.put((index, error))

        threads = [
            threading.Thread(target=one, args=(index, number, name, text), name=name, daemon=True)
            for index, (number, name, text) in enumerate(tasks)
        ]
        for thread in threads:
            thread.start()
        answers: dict[int, str] = {}
        failure: BaseException | None = None
        try:
            while len(answers) < len(tasks) and failure is None:
                try:
                    index, outcome = finished.get(timeout=LOOK_S)
                except queue.Empty:
                    if stop() and not ending.is_set():
                        self._end_all(ending)
                    continue
                if isinstance(outcome, str):
                    answers[index] = outcome
                else:
                    failure = outcome
        finally:
            if failure is not None or len(answers) < len(tasks):
                self._end_all(ending)
                self._join_or_kill(threads)
        if failure is not None:
            raise failure
        for thread in threads:
            thread.join()
        return [answers[index] for index in range(len(tasks))]

    def close(self) -> None:
        """End every child. Idempotent."""
        self._closed = True
        with self._lock:
            busy = list(self._busy.values())
        for child in busy:
            child.kill()
        for idle in self._idle:
            with contextlib.suppress(queue.Empty):
                while True:
                    idle.get_nowait().close()

    def _attempts(self, index: int, place: int, name: str, text: str, ending: threading.Event) -> str:
        deaths: list[str] = []
        while len(deaths) < ATTEMPT_LIMIT:
            child = self._take(place)
            with self._lock:
                self._busy[index] = child
            try:
                answer = child.do(text, ending)
            except Died as death:
                deaths.append(str(death))
                self._give(index, place, child, alive=False)
                if ending.is_set() or self._closed:
                    break
                continue
            except CoprocError:
                self._give(index, place, child, alive=True)
                raise
            except BaseException:
                self._give(index, place, child, alive=False)
                raise
            self._give(index, place, child, alive=True)
            return answer
        raise ServerError(
            f"{name} died {len(deaths)} time{'s' if len(deaths) != 1 else ''} ({deaths[-1]}); "
            "SIGKILL mostly means that the machine has too little memory: use fewer workers"
        )

    def _take(self, place: int) -> Child:
        try:
            return self._idle[place].get_nowait()
        except queue.Empty:
            return Child(self._commands[place])

    def _give(self, index: int, place: int, child: Child, *, alive: bool) -> None:
        with self._lock:
            self._busy.pop(index, None)
        if alive and not self._closed and child.process.poll() is None:
            self._idle[place].put(child)
        else:
            child.close()

    def _end_all(self, ending: threading.Event) -> None:
        ending.set()
        with self._lock:
            busy = list(self._busy.values())
        for child in busy:
            child.ask_to_stop()

    def _join_or_kill(self, threads: Sequence[threading.Thread]) -> None:
        for thread in threads:
            thread.join(STOP_GRACE_S)
            if thread.is_alive():
                with self._lock:
                    busy = list(self._busy.values())
                for child in busy:
                    child.kill()
                thread.join(STOP_GRACE_S)


class Inbox:
    """Lines of standard input: tasks into a queue, and each task's own stop."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.tasks: queue.SimpleQueue[tuple[str, threading.Event]] = queue.SimpleQueue()
        self._lines = lines

    def listen(self) -> None:
        """Read until the input ends; then this process ends, for nobody waits for its answer any more."""
        received_count = 0
        stop = threading.Event()
        for line in self._lines:
            if line.startswith("stop "):
                # Numbered: a stop that comes when its task is done is not for the next one.
                if int(line.removeprefix("stop ")) == received_count:
                    stop.set()
            else:
                received_count += 1
                stop = threading.Event()
                self.tasks.put((line, stop))
        os._exit(0)


def main() -> None:
    """The child: tasks in, answers out, until standard input ends."""
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    inbox = Inbox(sys.stdin)
    threading.Thread(target=inbox.listen, name="inbox", daemon=True).start()
    while True:
        text, stop = inbox.tasks.get()
        try:
            answer = perform(text, stop.is_set, run_worker)
        except Exception as error:
            if not isinstance(error, CoprocError):
                traceback.print_exc()
            answer = failure_text(error)
        answers.write(answer + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
