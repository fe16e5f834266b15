"""Leader and followers: one thread polls all connections and serves them; when one holds it up, another takes over.

After Schmidt et al., "Leader/Followers", PLoP 2000, with one change: the leader serves what is ready itself and keeps
the lead, and only loses it when a call takes long. Threads of Python that work at the same time do not get more done:
they pass the interpreter's lock to and fro, which took as long as the calls themselves.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

LOG = logging.getLogger(__name__)

# A call at which the leader is for so long is left to it; also how often the watcher looks, while there are calls.
_LONG_S = 0.002
# A follower that nobody needs for so long ends; so does the watch, until the next call.
_SPARE_S = 10.0
_QUIET_S = 0.1


class Connection(Protocol):
    """What is watched."""

    def fileno(self) -> int:
        """Of its socket, until `close`."""

    def close(self) -> None:
        """End it. Raises nothing."""


C = TypeVar("C", bound=Connection)


class LeaderFollowers(Generic[C]):
    """Calls `serve(connection)` in a thread of its own whenever a watched connection has bytes, or has ended.

    Never twice at once for the same connection. After True it is watched on; after False, or an error, which is
    logged, it is closed. Thread-safe.
    """

    def __init__(self, serve: Callable[[C], bool], name: str) -> None:
        """Does no I/O but for a descriptor or two; `name` is that of the threads."""
        self._serve = serve
        self._name = name
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wake, select.EPOLLIN)
        self._watched: dict[int, C] = {}
        # Of the leader's: found ready, not served yet.
        self._ready: deque[C] = deque()
        # Guards what follows. Who leads has the newest number.
        self._lock = threading.Lock()
        self._called = threading.Condition(self._lock)
        self._lead = 0
        self._since_s = 0.0  # the leader is at a connection; 0: it polls
        self._calls = 0
        self._vacant = False  # a follower is to take the lead
        self._followers = 0
        self._threads: set[threading.Thread] = set()
        self._ending = threading.Event()
        self._busy = threading.Event()
        self._mine = threading.local()

    def start(self) -> None:
        """Begin to serve. Does not block."""
        with self._lock:
            self._hand_over()
            self._begin(self._look_after)

    def watch(self, connection: C) -> None:
        """Serve it when it has bytes. Returns at once; what is ready already is served soon."""
        fd = connection.fileno()
        self._watched[fd] = connection
        self._poll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)

    def leave_lead(self) -> None:
        """Of a call at work: what comes may take long, so another thread is to serve the others."""
        with self._lock:
            if getattr(self._mine, "lead", None) == self._lead and self._since_s:
                self._hand_over()

    def stop(self, timeout_s: float) -> None:
        """Serve no more; threads end after the call they are at, awaited for at most `timeout_s`. Idempotent."""
        with self._lock:
            if self._ending.is_set():
                return
            self._ending.set()
            self._busy.set()
            self._called.notify_all()
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        os.eventfd_write(self._wake, 1)
        deadline_s = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        # A thread that is still at a call has its connection's socket, and comes back to these: they are left to it.
        if not any(thread.is_alive() for thread in threads):
            self._poll.close()
            os.close(self._wake)

    # ---------------------------------------------------------------- inside

    def _begin(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._run, args=(target,), name=self._name, daemon=True)
        thread.start()
        self._threads.add(thread)

    def _run(self, target: Callable[[], None]) -> None:
        try:
            target()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _hand_over(self) -> None:
        # Under the lock. From here on nobody leads, until a follower does.
        self._lead += 1
        self._since_s = 0.0
        self._vacant = True
        if self._followers:
            self._called.notify()
            return
        try:
            self._begin(self._follow)
        except RuntimeError:
            LOG.warning("no thread to be had: other connections wait for a call that takes long", exc_info=True)

    def _follow(self) -> None:
        while True:
            with self._lock:
                self._followers += 1
                try:
                    called = self._called.wait_for(lambda: self._vacant or self._ending.is_set(), _SPARE_S)
                finally:
                    self._followers -= 1
                if not called or self._ending.is_set():
                    return
                self._vacant = False
                lead = self._mine.lead = self._lead
            self._serve_all(lead)

    def _serve_all(self, lead: int) -> None:
        """Serve until somebody else leads."""
        while True:
            if not self._ready:
                self._ready.extend(self._wait())
            with self._lock:
                if self._ending.is_set() or lead != self._lead:
                    return
                if not self._ready:
                    continue
                connection = self._ready.popleft()
                self._since_s = time.monotonic()
                self._calls += 1
            if not self._busy.is_set():
                self._busy.set()
            self._serve_one(connection)
            with self._lock:
                if lead != self._lead:
                    return
                self._since_s = 0.0

    def _wait(self) -> list[C]:
        ready = []
        for fd, _ in self._poll.poll():
            connection = self._watched.get(fd)
            if connection is not None:
                ready.append(connection)
        return ready

    def _serve_one(self, connection: C) -> None:
        fd = connection.fileno()
        try:
            if self._serve(connection):
                self._poll.modify(fd, select.EPOLLIN | select.EPOLLONESHOT)
                return
        except Exception:
            LOG.exception("a connection failed")
        # Before its number can be another's.
        del self._watched[fd]
        connection.close()

    def _look_after(self) -> None:
        """Take the lead from who has been at one connection for long."""
        calls, quiet_s = -1, 0.0
        while not self._ending.wait(_LONG_S):
            if not self._busy.wait(_SPARE_S):
                continue
            with self._lock:
                if self._since_s and time.monotonic() - self._since_s >= _LONG_S:
                    self._hand_over()
                quiet_s = 0.0 if self._since_s or calls != self._calls else quiet_s + _LONG_S
                calls = self._calls
                if quiet_s > _QUIET_S and not self._ending.is_set():
                    self._busy.clear()
