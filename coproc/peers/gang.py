"""All-reduce through streams, many steps in one job: the tasks meet, and then go step by step together.

In each step every peer sends each other its slice of the gradient, sums what it gets in the order of workers, descends
its slice, and sends that to all: as soon as its own sum is whole, while other bytes still come and go. The first
weights of a group come from the files of the tier, and the last step ends with writing them there, so that a group of G
steps moves G times what a step does.

All or none: one peer that dies ends the group of all (`WorkerLost`), and it is run again from its first step. What it
has left is a version of its own, that nobody reads unless all of the group have come through.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import replace

import numpy as np

from coproc.errors import ServerError, WorkerLost
from coproc.exchange import Spent, Taken, Version
from coproc.layout import Flat
from coproc.local import Descent
from coproc.peers.slices import Codes, Slices, coded, decode, translated
from coproc.peers.streams import Meeting, Script, Streams
from storage_tier.errors import TierError

# Before each slice: its step, its bytes, the examples behind it, their loss.
_HEAD = struct.Struct("<qqqd")


class GangExchange:
    """Worker face: one peer of a group."""

    def __init__(self, slices: Slices, worker: int) -> None:
        """Does no I/O; the first call of another method meets the others."""
        self._slices = slices
        self._worker = worker
        terms, size = slices.terms, slices.layout.size
        meeting = f"{terms.directory}/{terms.begin}/{terms.end}"
        self._meeting = Meeting(slices.tier, terms.address, meeting, terms.secret, worker, terms.peers)
        self._streams: Streams | None = None
        self._own: Descent | None = None
        self._where = slices.bounds[worker]
        self._params = np.empty(0, np.float32)
        self._gradient = np.empty(size, np.float32)
        # Of what travels with less, made once: fresh memory costs more than to code.
        self._codes: Codes | None = None
        self._incoming: dict[int, Codes] = {}
        self._decoded: dict[int, Flat] = {}
        self._given: dict[int, tuple[int, float, Flat]] = {}
        self.next_step = terms.step
        self.version = 0

    @property
    def spent(self) -> Spent:
        """By streams, and, at the group's ends, through the tier."""
        return replace(self._slices.spent, update_s=0.0 if self._own is None else self._own.busy_s)

    def pull(self, *, timeout_s: float) -> Version:
        """The parameters, as they are until the next push. No bytes move, but for the first."""
        self._meet(timeout_s)
        return Version(self.version, self._params)

    def gradient(self, *, timeout_s: float) -> Flat:
        self._meet(timeout_s)
        return self._gradient

    def push(self, *, step: int, examples: int, loss: float, timeout_s: float, last: bool) -> Taken:
        """One step with all others; returns when this peer has the next weights. It counts when the group is over.

        Raises:
            WorkerLost: one of them is gone, or nothing moves for `timeout_s`. What one of them failed with.
        """
        read = self.version
        self._together(step, examples, loss, timeout_s)
        return Taken(step, read)

    def skip(self, *, step: int, timeout_s: float) -> None:
        """As `push`, with an empty hand."""
        self._together(step, 0, 0.0, timeout_s)

    def leave(self) -> None:
        """A group begins and ends with all of its peers."""

    def close(self) -> None:
        """Close the streams and the connection. Idempotent."""
        if self._streams is not None:
            self._streams.close()
        if self._own is not None:
            self._own.close()
        self._meeting.close()
        self._slices.close()

    def abort(self) -> None:
        """As `close`; where that is because of an error, the others are told of it first."""
        error = sys.exception()
        try:
            if isinstance(error, Exception) and not isinstance(error, WorkerLost):
                self._meeting.give_up(error)
        except TierError:
            pass  # the tier is gone: the others find that out
        finally:
            self.close()

    # ---- a step

    def _meet(self, timeout_s: float) -> Streams:
        if self._streams is None:
            with translated():
                self._meeting.join(timeout_s)
            self._own = self._slices.owned(self._worker)
            self._params, self.version = self._slices.pull(self._worker)
            own, truncated = self._own.params.size, self._slices.terms.truncated
            for other, where in enumerate(self._slices.bounds):
                if truncated:
                    self._decoded[other] = np.empty(own, np.float32)
                if other != self._worker:
                    most = max(own, where.stop - where.start)
                    self._incoming[other] = np.empty(most, np.uint16 if truncated else np.float32)
            if truncated:
                self._codes = np.empty(self._gradient.size, np.uint16)
            self._streams = Streams(self._meeting)
        return self._streams

    def _together(self, step: int, examples: int, loss: float, timeout_s: float) -> None:
        streams, terms = self._meet(timeout_s), self._slices.terms
        self._given = {}
        codes = coded(self._gradient, terms.truncated, self._codes) if examples else self._gradient
        for other in self._meeting.sockets:
            self._send(other, step, codes[self._slices.bounds[other]] if examples else codes[:0], examples, loss)
        self._take(step, self._worker, codes[self._where], examples, loss)
        with translated():
            streams.move({other: self._script(other, step) for other in self._meeting.sockets}, timeout_s)
        if step + 1 == terms.until:
            assert self._own is not None
            self._slices.publish(self._worker, self._own)
        self.next_step = step + 1

    def _script(self, other: int, step: int) -> Script:
        """What comes from one peer in a step."""
        head = bytearray(_HEAD.size)
        assert self._own is not None
        codes = self._incoming[other][: self._own.params.size]
        yield memoryview(head)
        examples, loss = self._read(head, step, codes.nbytes)
        if examples:
            yield codes.data
        self._take(step, other, codes, examples, loss)
        if step + 1 == self._slices.terms.until:
            return
        part = self._params[self._slices.bounds[other]]
        into = self._incoming[other][: part.size] if self._slices.terms.truncated else part
        yield memoryview(head)
        examples, _ = self._read(head, step, into.nbytes)
        if examples:
            yield into.data
            self._slices.spent.came(into.nbytes)
            if into is not part:
                decode(into, part)

    def _read(self, head: bytearray, step: int, size_bytes: int) -> tuple[int, float]:
        its_step, its_bytes, examples, loss = _HEAD.unpack(head)
        if its_step != step or its_bytes != (size_bytes if examples else 0):
            raise ServerError(
                f"worker {self._worker} expects {size_bytes:,} bytes of step {step}, and is sent {its_bytes:,} of step "
                f"{its_step}: do all executors have the same coproc?"
            )
        return examples, loss

    def _send(self, other: int, step: int, codes: Codes, examples: int, loss: float) -> None:
        assert self._streams is not None
        self._streams.send(other, _HEAD.pack(step, codes.nbytes, examples, loss), codes)
        self._slices.spent.went(codes.nbytes)

    def _take(self, step: int, worker: int, codes: Codes, examples: int, loss: float) -> None:
        """One peer's slice of the gradient is here; with the last one, descend and send."""
        if examples:
            self._slices.spent.came(codes.nbytes if worker != self._worker else 0)
            if self._slices.terms.truncated:
                decode(codes, self._decoded[worker])
                codes = self._decoded[worker]
        self._given[worker] = (examples, loss, codes)
        if len(self._given) < self._slices.terms.peers:
            return
        assert self._own is not None
        members = [self._given[each] for each in range(self._slices.terms.peers) if self._given[each][0]]
        total = sum(count for count, _, _ in members)
        if members:
            counts, losses, gradients = zip(*members, strict=True)
            self._own.step(gradients, counts, losses)
            self.version = self._own.updates
        if step + 1 == self._slices.terms.until:
            return
        weights = coded(self._own.params, self._slices.terms.truncated)
        decode(weights, self._params[self._where])
        for other in self._meeting.sockets:
            self._send(other, step, weights if total else weights[:0], total, 0.0)
