"""Workers on other hosts: the server holds their seats and is a client of shared memory on their behalf."""

from __future__ import annotations

import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from coproc.compression import Compression, Replica
from coproc.compression.feedback import Part
from coproc.errors import ConfigError, CoprocError, LeaseExpired, Timeout
from coproc.near import NearWorker
from coproc.spec import ModelSpec
from coproc.v1 import coproc_pb2 as pb
from coproc.wire import Filling, plain_parts
from storage_tier.budget import Budget
from storage_tier.server.line import Taken

# A far client calls or renews at least this often, or it is taken for dead.
LEASE_TTL_S = 15.0

_ENDED = "this lease has ended (closed, silent for too long, or of a server before this one): join again"
log = logging.getLogger(__name__)


@dataclass
class FarSession:
    """What a lease stands for. Its methods are for whoever has it in `FarSessions.use`."""

    model: str
    """Identity of the model."""
    worker: NearWorker
    give_back: Callable[[], None]
    replica: Replica | None
    """What its client has of the parameters, and the compression; None if it has joined without one."""
    used_at: float
    count: Callable[[int, int], None]
    """Told of the bytes that came and went, as they travelled."""
    committed_step: int = -1
    """The last step of which this lease's gradient was the first."""
    busy: threading.Lock = field(default_factory=threading.Lock)

    @property
    def compression(self) -> Compression:
        """Of this lease.

        Raises:
            ConfigError: it has none.
        """
        if self.replica is None:
            raise ConfigError("a coded chunk was sent under a lease that was joined without a compression")
        return self.replica.compression

    def push(self, begin: pb.PushBegin, given: Iterable[Part] | Taken) -> pb.PushResponse:
        """Commit a gradient that comes in parts, once it is whole; a step without one if `begin` has no examples.

        The answer has no header yet.
        """
        worker, timeout_s = self.worker, begin.timeout_ms / 1000
        if begin.examples:
            filling = Filling(worker.slot(timeout_s), f"a gradient of model {begin.name!r}")
            if isinstance(given, Taken):
                filling.receive(given)
            else:
                for part in given:
                    if part.coded:
                        filling.add_coded(part.data, self.compression)
                    else:
                        filling.add(part.data)
            filling.finish()
            self.count(filling.travelled_bytes, 0)
            receipt = worker.commit(begin.step, begin.examples, begin.loss, finite=filling.finite)
        else:
            receipt = worker.skip(begin.step, timeout_s)
        if not receipt.duplicate:
            self.committed_step = receipt.step
        return pb.PushResponse(
            step=receipt.step,
            duplicate=receipt.duplicate,
            next_step=worker.next_step,
            version_read=receipt.version_read,
            skipped=receipt.skipped,
            own=receipt.duplicate and receipt.step == self.committed_step,
        )

    def pull(self, min_version: int, timeout_s: float, held: int) -> tuple[int, int, Iterator[Part]]:
        """The newest version that the worker may read: (version, number of the replica it makes or 0, its parts).

        The version is pinned, and the parts are of it, until the next push or pull.

        Args:
            held: the number of the replica that the client has.
        """
        version, flat = self.worker.pull(min_version, timeout_s)
        if self.replica is None:
            return version, 0, self._sent(plain_parts(flat))
        number, given = self.replica.sending(flat, held)
        return version, number, self._sent(given)

    def _sent(self, given: Iterator[Part]) -> Iterator[Part]:
        went_bytes = 0
        for part in given:
            went_bytes += len(part.data)
            yield part
        self.count(0, went_bytes)


class FarSessions:
    """Leases of far workers. Thread-safe; one call at a time a lease."""

    def __init__(self, budget: Budget) -> None:
        """Replicas are charged to the budget."""
        self._budget = budget
        self._sessions: dict[str, FarSession] = {}
        self._moved: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def open(self, worker: NearWorker, give_back: Callable[[], None], compression: Compression | None = None) -> str:
        """A lease on a seat that this server holds; `give_back` is called once when it ends, and if this raises.

        Raises:
            storage_tier.errors.OutOfMemory: the budget has no room for the replica that a compression needs.
        """
        lease_id = secrets.token_hex(16)
        spec = worker.model.spec
        replica = None
        if compression is not None:
            replica = Replica(compression, spec.layout.size)
            if spec.optimizer.compensates:
                worker.computes_on(replica.values)
            try:
                self._budget.charge(_charge(spec, lease_id), spec.layout.size * 4)
            except BaseException:
                worker.close()
                give_back()
                raise
        count = functools.partial(self._count, spec.identity)
        with self._lock:
            self._sessions[lease_id] = FarSession(spec.identity, worker, give_back, replica, time.monotonic(), count)
        return lease_id

    def _count(self, model: str, in_bytes: int, out_bytes: int) -> None:
        with self._lock:
            came, went = self._moved.get(model, (0, 0))
            self._moved[model] = came + in_bytes, went + out_bytes

    def moved(self, model: str) -> tuple[int, int]:
        """(bytes of gradients that came, bytes of parameters that went) of a model, by its identity: all leases'."""
        with self._lock:
            return self._moved.get(model, (0, 0))

    @contextmanager
    def use(self, lease_id: str, model: str, timeout_s: float) -> Iterator[FarSession]:
        """A lease on a model, by its identity, for one call.

        Raises:
            LeaseExpired: unknown: closed, silent for too long, or of a server before this one; or of another model.
            Timeout: another call of the same lease goes on.
        """
        with self._lock:
            session = self._sessions.get(lease_id)
        if session is None or session.model != model:
            raise LeaseExpired(_ENDED)
        if not session.busy.acquire(timeout=timeout_s):
            raise Timeout(f"another call of this lease went on for {timeout_s:g} s; a worker makes one at a time")
        try:
            with self._lock:
                if lease_id not in self._sessions:  # it ended while this waited
                    raise LeaseExpired(_ENDED)
                session.used_at = time.monotonic()
            yield session
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
        # Else the call at work goes on with its seat closed: a push says so at its end, and nobody waits for a pull.
        self._give_back(lease_id, session)

    def _give_back(self, lease_id: str, session: FarSession) -> None:
        self._budget.release(_charge(session.worker.model.spec, lease_id))
        try:
            session.give_back()
        except CoprocError as error:
            log.info("the seat of a far worker was gone before its lease: %s", error)

    def end_of(self, model: str) -> None:
        """End all leases of a model that is deleted."""
        for lease_id, session in self._copy():
            if session.model == model:
                self.close(lease_id)
        with self._lock:
            self._moved.pop(model, None)

    def expire(self, all_of_them: bool = False) -> None:
        """End the leases that were silent for too long and have no call at work (or all of them)."""
        for lease_id, session in self._copy():
            if all_of_them:
                self.close(lease_id)
            elif self._is_silent(session) and session.busy.acquire(blocking=False):
                try:
                    with self._lock:
                        ends = self._is_silent(session) and self._sessions.pop(lease_id, None) is not None
                    if ends:
                        session.worker.close()
                finally:
                    session.busy.release()
                if ends:
                    self._give_back(lease_id, session)

    @staticmethod
    def _is_silent(session: FarSession) -> bool:
        return session.used_at < time.monotonic() - LEASE_TTL_S

    def _copy(self) -> list[tuple[str, FarSession]]:
        with self._lock:
            return list(self._sessions.items())


def _charge(spec: ModelSpec, lease_id: str) -> str:
    """The key of a replica in the budget: below the model's directory, so that it is told as memory of the model."""
    return f"{spec.home}/replicas/{lease_id}"
