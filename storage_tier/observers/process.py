"""The server's side of one observer's process: start it, call it within limits, end it.

A call is made by the thread that needs it, directly on the lane: no thread stands between a writer and the
observer. Whatever goes wrong ends the process, for nothing is known about it any more; the first cause is kept.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from storage_tier.errors import DeadlineExceeded
from storage_tier.observers.base import Origin
from storage_tier.observers.frames import BadFrame, Ended, Header, Late, close_all, receive, send

LaneName = Literal["work", "pre", "resolve"]
Answer = Callable[[Header, Sequence[int], Origin, bool], tuple[Header, list[int]]]
"""Answers a question: (question, its descriptors, origin, read only) -> (header, descriptors to send and close)."""

MAX_OUTPUT_BYTES = 16_000
MAX_SENTENCE_CHARACTERS = 2000
MAX_TRACEBACK_CHARACTERS = 20_000
MAX_ANSWER_BYTES = 2 << 20
END_TIMEOUT_S = 10.0
_LAST_WORDS_S = 0.5
# From the end of its connections to its own end: what the kernel needs to take a process apart.
_ENDING_S = 2.0
# A library that starts a thread a core would count all their stacks against the memory limit.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_SOURCE = str(Path(__file__).resolve().parents[2])


class Broken(Exception):
    """The process is ended or is being ended; `ChildProcess.cause` says why."""


class _Lane:
    def __init__(self, name: LaneName) -> None:
        self.name = name
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.lock = threading.Lock()
        self.call_count = 0
        self.hook = ""  # that is being called
        self.closed = False


class ChildProcess:
    """One process; thread-safe. It ends with this process, however that ends."""

    def __init__(self, title: str, answer: Answer) -> None:
        """Spawn it. It does nothing before its first call, which has to be 'start'.

        Args:
            title: the observer in sentences: 'validate of /runs'.
            answer: for what the observer asks; called in the thread of the call.
        """
        self._title = title
        self._answer = answer
        self._fate = threading.Lock()
        self._cause: tuple[str, str] | None = None
        self._reaped = False
        self._output = bytearray()
        self._output_lock = threading.Lock()
        lanes = [_Lane("work"), _Lane("pre"), _Lane("resolve")]
        self._lanes: dict[str, _Lane] = {lane.name: lane for lane in lanes}
        with contextlib.ExitStack() as undo:
            for lane in lanes:
                undo.callback(lane.ours.close)
            theirs = [lane.theirs.fileno() for lane in lanes]
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "storage_tier.observers.child", *map(str, theirs)],
                    stdin=subprocess.PIPE,  # held and never written: when it closes, the process is killed
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=theirs,
                    env={**os.environ, **_ONE_THREAD, "PYTHONPATH": _python_path()},
                    start_new_session=True,  # Ctrl-C is for the server; and what it starts is killed with it
                )
            finally:
                for lane in lanes:
                    lane.theirs.close()
            undo.push(self._process)
            undo.callback(self._process.kill)
            self.ended_fd = os.pidfd_open(self._process.pid)
            """Readable when the process has ended."""
            undo.pop_all()
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        self.output_fd: int | None = self._process.stderr.fileno()
        """Readable when `drain` has something to read; None when there will be nothing more."""

    @property
    def pid(self) -> int:
        """Its process id, and that of its session."""
        return self._process.pid

    @property
    def output(self) -> str:
        """The end of what it has printed."""
        with self._output_lock:
            return self._output.decode(errors="replace")

    @property
    def failed(self) -> bool:
        """Whether it is ended."""
        with self._fate:
            return self._cause is not None

    @property
    def cause(self) -> tuple[str, str]:
        """Why it was ended: a sentence, and the traceback or the end of what it has printed."""
        while self.drain():
            pass
        with self._fate:
            sentence, traceback = self._cause or (f"the process of {self._title} has ended", "")
        return sentence, traceback or self.output

    def call(
        self, lane_name: LaneName, header: Header, descriptors: Sequence[int], limit_s: float, deadline_s: float
    ) -> tuple[Header, list[int]]:
        """Make one call and wait for its answer; calls of one lane wait for each other.

        Args:
            descriptors: to send; they stay the caller's.
            limit_s: the observer's time. What it asks the server in between does not count.
            deadline_s: until when to wait for other calls, on the monotonic clock. One that has begun is not broken
                off: it has its own limit.

        Raises:
            DeadlineExceeded: other calls took all of the time; this one was not made.
            Broken: it failed, and the process is ended.
        """
        lane = self._lanes[lane_name]
        what = f"{header['hook']} of {self._title}"
        if not lane.lock.acquire(timeout=max(0.0, min(deadline_s - time.monotonic(), threading.TIMEOUT_MAX))):
            raise DeadlineExceeded(f"{what} is busy with the files of others: try again")
        try:
            if lane.closed:
                raise Broken
            lane.call_count += 1
            lane.hook = header["hook"]
            found, received = self._converse(lane, header, descriptors, limit_s)
            if "failed" not in found:
                return found, received
            close_all(received)
            sentence = str(found["failed"])[:MAX_SENTENCE_CHARACTERS]
            self.fail(f"{what} failed: {sentence}", str(found.get("traceback", ""))[:MAX_TRACEBACK_CHARACTERS])
        except Late:
            self._interrupt(f"{what} took longer than {limit_s:g} s and was killed")
        except BadFrame as error:
            self.fail(f"{what} gave a bad answer: {error}")
        except Ended:
            self.note_end()
        finally:
            lane.hook = ""
            lane.lock.release()
        raise Broken

    def _converse(
        self, lane: _Lane, header: Header, descriptors: Sequence[int], limit_s: float
    ) -> tuple[Header, list[int]]:
        """The call, the questions in between with their replies, the answer."""
        origin: Origin = tuple(header.get("origin", ()))
        end_s = time.monotonic() + limit_s
        send(lane.ours, {"call": lane.call_count, **header}, descriptors, end_s, self._wait)
        while True:
            found, received = receive(lane.ours, end_s, self._wait, MAX_ANSWER_BYTES)
            if found.get("call") != lane.call_count:
                close_all(received)
                raise BadFrame(f"it is to call {found.get('call')!r:.40}, and call {lane.call_count} was made")
            if "ask" not in found:
                return found, received
            asked_s = time.monotonic()
            try:
                reply, opened = self._answer(found, received, origin, lane.name != "work")
            finally:
                close_all(received)
            end_s += time.monotonic() - asked_s
            try:
                send(lane.ours, reply, opened, end_s, self._wait)
            finally:
                close_all(opened)

    def _wait(self, connection: socket.socket, event: int, deadline_s: float) -> None:
        """Wait for a lane, and read meanwhile what the process prints: else it would wait for us."""
        while True:
            poller = select.poll()
            poller.register(connection, event)
            output_fd = self.output_fd
            if output_fd is not None:
                poller.register(output_fd, select.POLLIN)
            left_ms = (deadline_s - time.monotonic()) * 1000
            ready = [fd for fd, _ in poller.poll(None if left_ms == math.inf else max(0.0, left_ms))]
            if not ready:
                raise Late
            if output_fd in ready:
                self.drain()
            if connection.fileno() in ready:
                return

    def drain(self) -> bool:
        """Read something of what it has printed; whether there was anything. Does not block."""
        with self._output_lock:
            if self.output_fd is None:
                return False
            try:
                read = os.read(self.output_fd, 1 << 16)
            except BlockingIOError:
                return False
            if not read:
                self.output_fd = None
            self._output += read
            del self._output[:-MAX_OUTPUT_BYTES]
            return bool(read)

    def fail(self, sentence: str, traceback: str = "") -> None:
        """Kill it. The first cause is the one that is kept. Does not block. Idempotent."""
        with self._fate:
            if self._cause is None:
                self._cause = (sentence, traceback)
            if not self._reaped:
                # It leads a session of its own: what it has started goes with it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)

    def _interrupt(self, sentence: str) -> None:
        """Kill it after it has printed where it hangs, which a handler of SIGABRT does whatever it is doing."""
        with self._fate:
            if self._cause is None:
                self._cause = (sentence, "")
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.ended_fd, signal.SIGABRT)
        self._ended_within(_LAST_WORDS_S)
        self.fail(sentence)

    def note_end(self) -> None:
        """It ended by itself, or somebody killed it: note how, unless the cause is known."""
        hooks = " and ".join(lane.hook for lane in self._lanes.values() if lane.hook)
        during = f" during {hooks}" if hooks else ""
        if not self._ended_within(_ENDING_S):
            self.fail(f"{self._title} closed its connection{during}")
            return
        # Not reaped before `close`, so that its number is nobody else's as long as we may kill it.
        end = os.waitid(os.P_PIDFD, self.ended_fd, os.WEXITED | os.WNOWAIT)
        assert end is not None
        if end.si_code == os.CLD_EXITED:
            how = f"ended with exit code {end.si_status}"
        else:
            how = f"was killed by {signal.Signals(end.si_status).name}"
        self.fail(f"the process of {self._title} {how}{during}")

    def _ended_within(self, timeout_s: float) -> bool:
        poller = select.poll()
        poller.register(self.ended_fd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def close(self) -> None:
        """Kill it and give everything back. Waits for calls that are being made, which end at once."""
        self.fail(f"{self._title} was ended")
        for lane in self._lanes.values():
            with lane.lock:
                lane.closed = True
                lane.ours.close()
        while self.drain():
            pass
        with self._output_lock:
            self.output_fd = None
        with self._fate:
            self._process.wait(timeout=END_TIMEOUT_S)
            self._reaped = True
        for pipe in (self._process.stdin, self._process.stderr):
            assert pipe is not None
            pipe.close()
        os.close(self.ended_fd)


def _python_path() -> str:
    """PYTHONPATH with which another interpreter finds this very package first."""
    rest = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != _SOURCE]
    return os.pathsep.join([_SOURCE, *rest])
