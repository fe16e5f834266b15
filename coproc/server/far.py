"""Workers on other hosts: the server holds their seats and is a client of shared memory on their behalf."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from coproc.errors import CoprocError, LeaseExpired, Timeout
from coproc.near import NearWorker

# A far client calls or renews at least this often, or it is taken for dead.
LEASE_TTL_S = 15.0

_ENDED = "this lease has ended (closed, silent for too long, or of a server before this one): join again"
log = logging.getLogger(__name__)


@dataclass
class _Session:
    model: str
    """Identity of the model."""
    worker: NearWorker
    give_back: Callable[[], None]
    used_at: float
    busy: threading.Lock = field(default_factory=threading.Lock)


class FarSessions:
    """Leases of far workers. Thread-safe; one call at a time a lease."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()

    def open(self, model: str, worker: NearWorker, give_back: Callable[[], None]) -> str:
        """A lease on a seat that this server holds; `give_back` is called once when it ends."""
        lease_id = secrets.token_hex(16)
        with self._lock:
            self._sessions[lease_id] = _Session(model, worker, give_back, time.monotonic())
        return lease_id

    @contextmanager
    def use(self, lease_id: str, timeout_s: float) -> Iterator[NearWorker]:
        """The seat of a lease, for one call.

        Raises:
            LeaseExpired: unknown: closed, silent for too long, or of a server before this one.
            Timeout: another call of the same lease goes on.
        """
        with self._lock:
            session = self._sessions.get(lease_id)
        if session is None:
            raise LeaseExpired(_ENDED)
        if not session.busy.acquire(timeout=timeout_s):
            raise Timeout(f"another call of this lease went on for {timeout_s:g} s; a worker makes one at a time")
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
                raise LeaseExpired(_ENDED)
            session.used_at = time.monotonic()

    def close(self, lease_id: str) -> None:
        """End a lease; what was pushed stays. Nothing if it has ended. Waits for its call at work, a second at most."""
        with self._lock:
            session = self._sessions.pop(lease_id, None)
        if session is None:
            return
        if session.busy.acquire(timeout=1.0):
            session.worker.close()
            session.busy.release()
        # Else the call at work goes on with its seat closed, and says so at its end.
        try:
            session.give_back()
        except CoprocError as error:
            log.info("the seat of a far worker was gone before its lease: %s", error)

    def end_of(self, model: str) -> None:
        """End all leases of a model that is deleted."""
        self._end([lease_id for lease_id, session in self._copy() if session.model == model])

    def expire(self, all_of_them: bool = False) -> None:
        """End the leases that were silent for too long (or all of them)."""
        limit = time.monotonic() - LEASE_TTL_S
        self._end(
            [
                lease_id
                for lease_id, session in self._copy()
                if all_of_them or (session.used_at < limit and not session.busy.locked())
            ]
        )

    def _copy(self) -> list[tuple[str, _Session]]:
        with self._lock:
            return list(self._sessions.items())

    def _end(self, lease_ids: list[str]) -> None:
        for lease_id in lease_ids:
            self.close(lease_id)
