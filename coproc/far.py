"""A model over the wire, for clients on another host: the worker face of `coproc.near`, by the line or by gRPC.

With a compression, fewer bytes travel; what they leave out is kept (`coproc.compression.feedback`). Exactly once holds
for the decoded gradient: it is committed when all of it is staged and was found finite.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from coproc import by_line
from coproc.compression import Compression, Replica, Residual, Sending
from coproc.compression.feedback import Part
from coproc.errors import (
    ConfigError,
    CoprocError,
    LeaseExpired,
    ModelNotFound,
    PushRejected,
    ServerError,
    Unreachable,
)
from coproc.layout import Flat
from coproc.near import Receipt
from coproc.spec import ModelSpec
from coproc.v1 import coproc_pb2 as pb
from coproc.wire import ERRORS, Filling, led, parts, plain_parts
from storage_tier.line import LineDown, Lines

T = TypeVar("T")
log = logging.getLogger(__name__)

# A server that restarts is back within a second; ask again this often meanwhile.
_AGAIN_S = 0.05

# The bytes themselves take time too, on top of what the server may wait.
_BYTES_S = 30.0


def no_lines() -> Lines | None:
    """gRPC alone leads there."""
    return None


def pull(stub: Any, peer: str, request: pb.PullRequest, out: Flat, timeout_s: float) -> int:
    """One whole version into `out` (P,); its number."""
    with ERRORS.translated(peer):
        return int(_receive(stub.Pull(request, timeout=timeout_s + _BYTES_S), out)[0].version)


def _receive(answers: Iterator[Any], out: Flat) -> tuple[pb.ResponseHeader, int]:
    """Fill `out` (P,); (header, bytes that travelled)."""
    filling = Filling(out, "the model")
    first = next(answers)
    for part in parts(itertools.chain([first], answers)):
        filling.add(part.data)
    filling.finish()
    return first.header, filling.travelled_bytes


def _receive_coded(answers: Iterator[Any], replica: Replica) -> tuple[pb.ResponseHeader, int]:
    """Bring a replica to one whole version; as `_receive`. If it fails on the way, the next pull has it all anew."""
    first = next(answers)
    known = replica.receiving(first.replica, replica.number)
    filling = Filling(replica.values, "the model")
    for part in parts(itertools.chain([first], answers)):
        if not part.coded:
            filling.add(part.data)
        elif known:
            filling.add_difference(part.data, replica.compression)
        else:
            raise ServerError("the server sends differences to parameters that this worker does not have")
    filling.finish()
    replica.complete()
    return first.header, filling.travelled_bytes


class FarWorker:
    """One attempt of a worker on another host. Same methods and guarantees as `NearWorker`; copies travel.

    A call that finds no server, or a lease that ended with the server before, joins again and repeats itself: the
    step makes that safe. Only where the model has lost its memory and was restored, all calls raise LeaseExpired.
    """

    def __init__(
        self,
        spec: ModelSpec,
        stub: Any,
        peer: str,
        worker: int,
        slots: int,
        timeout_s: float,
        compression: Compression | None = None,
        new_lines: Callable[[], Lines | None] = no_lines,
    ) -> None:
        """Joins.

        Args:
            new_lines: makes lines to the server, which are closed here; None where there are none, and gRPC is used.
        """
        self.spec = spec
        self.worker = worker
        self.next_step = 0
        self.read_version = -1
        self.received_bytes = 0
        """Of parameters, as they travelled, without headers; of calls that were answered."""
        self.sent_bytes = 0
        """Of gradients, likewise."""
        self._stub = stub
        self._peer = peer
        self._slots = slots
        self._buffer: Flat | None = None
        # Of its own and kept: to get new memory for each pull takes as long as a third of the stream.
        self._pulled: Flat | None = None
        self.compression = compression
        size = spec.layout.size
        self._residual = None if compression is None else Residual(compression, size)
        self._replica = None if compression is None else Replica(compression, size)
        self._closed = threading.Event()
        self._new_lines = no_lines if compression is not None else new_lines
        self._lines: Lines | None = None
        self._lease = ""
        self.epoch = -1
        """Of the model, when this attempt joined."""
        self._went_back = False
        """The model was restored since this attempt joined: its step is not this attempt's any more."""
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
        if self._replica is not None:
            request.compression_json = json.dumps(self._replica.compression.to_config())
        with ERRORS.translated(self._peer):
            answer = self._stub.Join(request, timeout=30)
        # Stays so: what is left of a join may fail, and the next one has the new epoch to compare with.
        self._went_back |= self.epoch not in (-1, answer.header.epoch)
        self.epoch = answer.header.epoch
        self._lease = answer.lease_id
        if self._replica is not None:
            # Each lease numbers anew: a number of the last one may come to stand for other parameters.
            self._replica.number = 0
        self._ttl_s = answer.lease_ttl_ms / 1000
        self.next_step = max(self.next_step, answer.next_step)
        # Another start of the server has them elsewhere.
        self._turn_to(self._new_lines())

    def _turn_to(self, lines: Lines | None) -> None:
        before, self._lines = self._lines, lines
        if before is not None:
            before.close()

    def _beat(self) -> None:
        while not self._closed.wait(self._ttl_s / 3):
            try:
                with ERRORS.translated(self._peer):
                    self._stub.Renew(pb.RenewRequest(name=self.spec.name, lease_id=self._lease), timeout=self._ttl_s)
            except (ModelNotFound, ValueError):  # it was deleted, or the client closed its channel
                return
            except CoprocError as error:
                # The next call of the worker itself finds out, and joins again where that helps.
                log.debug("the lease of worker %d was not renewed: %s", self.worker, error)

    def _again(self, call: Callable[[], T], deadline: float) -> T:
        joined = True
        while True:
            try:
                if not joined:
                    self._join()
                    joined = True
                if self._went_back:
                    break
                return call()
            except LeaseExpired:
                if time.monotonic() >= deadline:
                    raise
                joined = False
            except Unreachable:
                if time.monotonic() + _AGAIN_S >= deadline:
                    raise
                self._closed.wait(_AGAIN_S)
        raise LeaseExpired(
            f"model {self.spec.name!r} lost its memory and was restored from a checkpoint: worker {self.worker} joins "
            "again and continues at its next_step"
        )

    def pull(self, min_version: int, timeout_s: float, copy: bool = False) -> tuple[int, Flat]:
        """The newest version that this worker may read; always a copy, valid until the next pull.

        With a compression it differs from the server's by what is still to be sent; the first pull of a lease is exact.
        """
        return self._read(None, min_version, time.monotonic() + timeout_s)

    def _read(self, coming: Iterator[Any] | None, min_version: int, deadline: float) -> tuple[int, Flat]:
        """What `coming`, the answers to a call that was made, bring; asks if there are none, or if they break off."""
        replica = self._replica
        if self._pulled is None:
            self._pulled = np.empty(self.spec.layout.size, np.float32) if replica is None else replica.values
        out = self._pulled

        def call() -> int:
            header, came_bytes = receive()
            self.received_bytes += came_bytes
            if header.epoch != self.epoch:
                # Read before the server is all there: whoever joins it then is told what happened.
                raise LeaseExpired(f"model {self.spec.name!r} is not the one that worker {self.worker} has joined")
            return int(header.version)

        def receive() -> tuple[pb.ResponseHeader, int]:
            nonlocal coming
            if self._lines is not None:
                left_s = max(0.001, deadline - time.monotonic())
                try:
                    request = self._request(min_version, left_s)
                    header = by_line.pull(self._lines, request, out, time.monotonic() + left_s + _BYTES_S)
                    return header, out.nbytes
                except LineDown:
                    self._turn_to(None)
            with ERRORS.translated(self._peer):
                answers = self._ask(min_version, deadline) if coming is None else coming
                coming = None
                return _receive(answers, out) if replica is None else _receive_coded(answers, replica)

        self.read_version = self._again(call, deadline)
        view = out.view()
        view.flags.writeable = False
        return self.read_version, view

    def _ask(self, min_version: int, deadline: float) -> Iterator[Any]:
        left_s = max(0.001, deadline - time.monotonic())
        answers: Iterator[Any] = self._stub.Pull(self._request(min_version, left_s), timeout=left_s + _BYTES_S)
        return answers

    def _request(self, min_version: int, left_s: float) -> pb.PullRequest:
        return pb.PullRequest(
            name=self.spec.name,
            lease_id=self._lease,
            min_version=min_version,
            timeout_ms=int(left_s * 1000),
            replica=self._held,
        )

    @property
    def _held(self) -> int:
        return 0 if self._replica is None else self._replica.number

    def use_memory(self, pulled: Flat, gradient: Flat) -> None:
        """Receive into `pulled` (P,), where there is no compression, and send what is in `gradient` (P,)."""
        self._buffer = gradient
        if self._replica is None:
            self._pulled = pulled

    def slot(self, timeout_s: float) -> Flat:
        """A buffer of this process, (P,) float32; sent by `commit`."""
        if self._buffer is None:
            self._buffer = np.zeros(self.spec.layout.size, np.float32)
        return self._buffer

    def commit(
        self,
        step: int,
        examples: int,
        loss: float,
        timeout_s: float = 30.0,
        *,
        finite: bool = False,
        flush: bool = False,
    ) -> Receipt:
        """Send the buffer as the gradient of `step`; returns when it is committed whole in the tier's memory.

        Whether it is finite is looked at by the server, whatever `finite` says.

        Args:
            flush: send it without compression, together with all that was left out so far.
        """
        return self._commit(step, examples, loss, time.monotonic() + timeout_s, flush, self._push)

    def push_pull(
        self,
        step: int,
        examples: int,
        loss: float,
        min_version: int,
        timeout_s: float,
        *,
        flush: bool = False,
    ) -> tuple[Receipt, int, Flat]:
        """As `commit`, then as `pull`; by gRPC in one call, and one more if it breaks off. `timeout_s` is for both.

        What fails once the receipt is here fails as `pull`: the step is committed, and `next_step` is beyond it.
        """
        deadline = time.monotonic() + timeout_s
        if self._lines is not None:
            receipt = self._commit(step, examples, loss, deadline, flush, self._push)
            return receipt, *self._read(None, min_version, deadline)
        coming: Iterator[Any] = iter(())

        def push(begin: pb.PushBegin, parts: Iterable[Part], timeout_s: float) -> pb.PushResponse:
            nonlocal coming
            both = pb.PushPullBegin(push=begin, min_version=min_version, replica=self._held)
            requests = led(pb.PushPullRequest(begin=both), parts)
            with ERRORS.translated(self._peer):
                coming = self._stub.PushPull(requests, timeout=timeout_s + _BYTES_S)
                receipt: pb.PushResponse = next(coming).receipt
                return receipt

        receipt = self._commit(step, examples, loss, deadline, flush, push)
        return receipt, *self._read(coming, min_version, deadline)

    def _commit(
        self,
        step: int,
        examples: int,
        loss: float,
        deadline: float,
        flush: bool,
        push: Callable[[pb.PushBegin, Iterable[Part], float], pb.PushResponse],
    ) -> Receipt:
        residual = self._residual
        if residual is not None:
            residual.begin(step)

        def call() -> pb.PushResponse:
            begin = pb.PushBegin(
                name=self.spec.name,
                lease_id=self._lease,
                step=step,
                examples=examples,
                loss=loss,
                timeout_ms=max(1, int((deadline - time.monotonic()) * 1000)),
            )
            left_s = max(0.001, deadline - time.monotonic()) + _BYTES_S
            if not examples:
                return push(begin, (), left_s)
            if residual is None:
                answer = push(begin, plain_parts(self.slot(0)), left_s)
                self.sent_bytes += self.slot(0).nbytes
                return answer
            sending = Sending(residual, self.slot(0), flush)
            try:
                answer = push(begin, sending, left_s)
                self.sent_bytes += sending.parts_bytes
                return answer
            except (PushRejected, ConfigError):
                raise
            except CoprocError:
                if sending.handed_over:
                    residual.doubt(step, self._lease)
                raise
            finally:
                sending.end()

        answer = self._again(call, deadline)
        if residual is not None and examples:
            residual.answered(step, answer.duplicate, answer.own, self._lease)
        self.next_step = answer.next_step
        return Receipt(step, answer.duplicate, self.read_version, answer.skipped)

    def _push(self, begin: pb.PushBegin, parts: Iterable[Part], timeout_s: float) -> pb.PushResponse:
        if self._lines is not None:
            gradient = self.slot(0) if begin.examples else None
            try:
                return by_line.push(self._lines, begin, gradient, time.monotonic() + timeout_s)
            except LineDown:
                self._turn_to(None)
        requests = itertools.chain([pb.PushRequest(begin=begin)], parts)
        with ERRORS.translated(self._peer):
            answer: pb.PushResponse = self._stub.Push(requests, timeout=timeout_s)
            return answer

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
            self._turn_to(None)
            self._heart.join(timeout=5)
