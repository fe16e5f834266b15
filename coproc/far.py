"""A model over the wire, for clients on another host: the same worker face as `coproc.near`, by streams of bytes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from coproc.errors import CoprocError, LeaseExpired, Timeout, Unreachable
from coproc.layout import Flat
from coproc.near import Receipt
from coproc.spec import ModelSpec
from coproc.v1 import coproc_pb2 as pb
from coproc.wire import ERRORS, Filling, chunks

T = TypeVar("T")
log = logging.getLogger(__name__)

# A server that restarts is back within seconds; ask again this often meanwhile.
_AGAIN_S = 0.1


def pull(stub: Any, peer: str, request: pb.PullRequest, size: int, timeout_s: float) -> tuple[int, Flat]:
    """One whole version as (version, (P,)), received into new memory."""
    out = np.empty(size, np.float32)
    filling = Filling(out, "the model")
    with ERRORS.translated(peer):
        # The server keeps to the time; a little more for the bytes themselves.
        answers = stub.Pull(request, timeout=timeout_s + 30)
        version = next(answers).header.version
        for answer in answers:
            filling.add(answer.chunk)
    filling.finish()
    out.flags.writeable = False
    return version, out


class FarWorker:
    """One attempt of a worker on another host. Same methods and guarantees as `NearWorker`; copies travel.

    A call that finds no server, or a lease that ended with the server before, joins again and repeats itself: the
    step makes that safe.
    """

    def __init__(self, spec: ModelSpec, stub: Any, peer: str, worker: int, slots: int, timeout_s: float) -> None:
        self.spec = spec
        self.worker = worker
        self.next_step = 0
        self.read_version = -1
        self._stub = stub
        self._peer = peer
        self._slots = slots
        self._buffer: Flat | None = None
        self._closed = threading.Event()
        self._lease = ""
        self._again(self._join, time.monotonic() + timeout_s)
        self._heart = threading.Thread(target=self._beat, name=f"lease of worker {worker}", daemon=True)
        self._heart.start()

    def _join(self) -> None:
        request = pb.JoinRequest(
            name=self.spec.name,
            kind=pb.SEAT_KIND_FAR_WORKER,
            worker=self.worker,
            slots_count=self._slots,
            identity=self.spec.identity,
        )
        with ERRORS.translated(self._peer):
            answer = self._stub.Join(request, timeout=30)
        self._lease = answer.lease_id
        self._ttl_s = answer.lease_ttl_ms / 1000
        self.next_step = max(self.next_step, answer.next_step)

    def _beat(self) -> None:
        while not self._closed.wait(self._ttl_s / 3):
            try:
                with ERRORS.translated(self._peer):
                    self._stub.Renew(pb.RenewRequest(name=self.spec.name, lease_id=self._lease), timeout=self._ttl_s)
            except (Unreachable, Timeout, LeaseExpired):
                # The next call of the worker itself finds out, and joins again.
                continue
            except (CoprocError, ValueError):  # the model was deleted, or the client closed its channel
                return

    def _again(self, call: Callable[[], T], deadline: float) -> T:
        joined = True
        while True:
            try:
                if not joined:
                    self._join()
                    joined = True
                return call()
            except LeaseExpired:
                if time.monotonic() >= deadline:
                    raise
                joined = False
            except Unreachable:
                if time.monotonic() + _AGAIN_S >= deadline:
                    raise
                self._closed.wait(_AGAIN_S)

    def pull(self, min_version: int, timeout_s: float, copy: bool = False) -> tuple[int, Flat]:
        """The newest version that this worker may read; always a copy."""
        deadline = time.monotonic() + timeout_s

        def call() -> tuple[int, Flat]:
            left_s = max(0.001, deadline - time.monotonic())
            request = pb.PullRequest(
                name=self.spec.name, lease_id=self._lease, min_version=min_version, timeout_ms=int(left_s * 1000)
            )
            return pull(self._stub, self._peer, request, self.spec.layout.size, left_s)

        self.read_version, flat = self._again(call, deadline)
        return self.read_version, flat

    def slot(self, timeout_s: float) -> Flat:
        """A buffer of this process, (P,) float32; sent by `commit`."""
        if self._buffer is None:
            self._buffer = np.zeros(self.spec.layout.size, np.float32)
        return self._buffer

    def commit(
        self, step: int, examples: int, loss: float, timeout_s: float = 30.0, *, finite: bool = False
    ) -> Receipt:
        """Send the buffer as the gradient of `step`; returns when it is committed whole in the tier's memory.

        Whether it is finite is looked at by the server, whatever `finite` says.
        """
        deadline = time.monotonic() + timeout_s

        def call() -> pb.PushResponse:
            def requests() -> Iterator[pb.PushRequest]:
                begin = pb.PushBegin(
                    name=self.spec.name,
                    lease_id=self._lease,
                    step=step,
                    examples=examples,
                    loss=loss,
                    timeout_ms=max(1, int((deadline - time.monotonic()) * 1000)),
                )
                yield pb.PushRequest(begin=begin)
                if examples:
                    for chunk in chunks(self.slot(0)):
                        yield pb.PushRequest(chunk=chunk)

            with ERRORS.translated(self._peer):
                answer: pb.PushResponse = self._stub.Push(
                    requests(), timeout=max(0.001, deadline - time.monotonic()) + 30
                )
                return answer

        answer = self._again(call, deadline)
        self.next_step = answer.next_step
        return Receipt(step, answer.duplicate, self.read_version)

    def skip(self, step: int, timeout_s: float) -> Receipt:
        """Commit `step` without a gradient."""
        return self.commit(step, 0, float("nan"), timeout_s)

    def release_view(self) -> None:
        """Nothing: what was pulled is a copy."""

    def close(self) -> None:
        """End the lease. What is committed stays. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        try:
            with ERRORS.translated(self._peer):
                self._stub.Close(pb.CloseRequest(name=self.spec.name, lease_id=self._lease), timeout=5)
        except (CoprocError, ValueError):  # no server, no model, or the client has closed its channel
            log.debug("the lease of worker %d was left to end by itself", self.worker)
        finally:
            self._heart.join(timeout=5)
