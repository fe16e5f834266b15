"""Workers on other hosts: the server holds their seats and is a client of shared memory on their behalf."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from coproc.errors import LeaseExpired
from coproc.near import NearWorker

# A far client calls or renews at least this often, or it is taken for dead.
LEASE_TTL_S = 15.0


@dataclass
class _Session:
    worker: NearWorker
    give_back: Callable[[], None]
    used_at: float
    busy: threading.Lock = field(default_factory=threading.Lock)


class FarSessions:
    """Leases of far workers. Thread-safe; one call at a time a lease."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()

    def open(self, worker: NearWorker, give_back: Callable[[], None]) -> str:
        """A lease on a seat that this server holds; `give_back` is called once when it ends."""
        lease_id = secrets.token_hex(16)
        with self._lock:
            self._sessions[lease_id] = _Session(worker, give_back, time.monotonic())
        return lease_id

    @contextmanager
    def use(self, lease_id: str, timeout_s: float) -> Iterator[NearWorker]:
        """The seat of a lease, for one call.

        Raises:
            LeaseExpired: unknown: closed, silent for too long, or of a server before this one.
        """
        with self._lock:
            session = self._sessions.get(lease_id)
        if session is None or not session.busy.acquire(timeout=timeout_s):
            raise LeaseExpired("this lease has ended (silent for too long, or the server restarted): join again")
        try:
            session.used_at = time.monotonic()
            yield session.worker
        finally:
            session.used_at = time.monotonic()
            session.busy.release()

    def renew(self, lease_id: str) -> None:
        """Keep a lease.

        Raises:
            LeaseExpired: unknown.
        """
        with self._lock:
            session = self._sessions.get(lease_id)
            if session is None:
                raise LeaseExpired("this lease has ended (silent for too long, or the server restarted): join again")
            session.used_at = time.monotonic()

    def close(self, lease_id: str) -> None:
        """End a lease; what was pushed stays. Nothing if it has ended."""
        with self._lock:
            session = self._sessions.pop(lease_id, None)
        if session is not None:
            with session.busy:
                session.worker.close()
            session.give_back()

    def expire(self, all_of_them: bool = False) -> None:
        """End the leases that were silent for too long (or all of them)."""
        limit = time.monotonic() - LEASE_TTL_S
        with self._lock:
            ended = [
                lease_id
                for lease_id, session in self._sessions.items()
                if all_of_them or (session.used_at < limit and not session.busy.locked())
            ]
        for lease_id in ended:
            self.close(lease_id)
