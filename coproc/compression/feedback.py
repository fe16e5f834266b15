"""What a compression left out, kept until it is sent: error feedback at both ends.

Pushes (Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014; Karimireddy et al., "Error Feedback Fixes
SignSGD", ICML 2019). With g the gradient of a step, C what comes out at the other end, e the *residual*:

    sends C(g + e);    e <- (g + e) - C(g + e) once the step is acknowledged, and not before

Pulls are coded as differences. With p the parameters and r the *replica*, what the client has, known to both ends:

    sends C(p - r);    r <- r + C(p - r) at both ends, in float32, bit by bit the same

so that what was left out is in the next difference by itself, and the error is a share of what has changed, not of the
parameters: of bf16 too, which without a difference would never show more than 8 bits of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from coproc.compression.base import PIECE_FLOATS, Compression, pieces
from coproc.layout import Flat, all_finite


class Part(NamedTuple):
    """A piece as it travels."""

    data: bytes | memoryview
    coded: bool
    """In a compression; else it is plain float32."""


class Residual:
    """What the pushes of one attempt have left out so far. Memory: two vectors (P,). Used by one thread.

    It follows what is in the model: the gradient that was sent, unless another attempt's was there first.
    """

    def __init__(self, compression: Compression, size: int) -> None:
        self.compression = compression
        self.kept = np.zeros(size, np.float32)
        """(P,): left out of what is in the model."""
        self.next = np.zeros(size, np.float32)
        """(P,): what will be, if what was sent last is."""
        # A step that was sent whole and never answered, and the leases by which it was.
        self._doubtful_step = -1
        self._doubtful_leases: set[str] = set()

    def begin(self, step: int) -> None:
        """This step is about to be pushed: one before it that was not answered is in the model."""
        if 0 <= self._doubtful_step < step:
            self._accept()

    def doubt(self, step: int, lease: str) -> None:
        """All of a step was sent under a lease, and there was no answer. If pushed again, then as it was."""
        self._doubtful_step = step
        self._doubtful_leases.add(lease)

    def answered(self, step: int, duplicate: bool, own: bool, lease: str) -> None:
        """A step is in the model.

        A duplicate is this attempt's own gradient if the server says so, under the same lease. A server that was
        restarted can't know: then it is, if it was sent whole under an earlier one. Should a twin have been first just
        then, what was left out of this one step is wrong by a step's loss, once.
        """
        before = self._doubtful_step == step and bool(self._doubtful_leases - {lease})
        if not duplicate or own or before:
            self._accept()
        self._clear()

    def _accept(self) -> None:
        self.kept, self.next = self.next, self.kept
        self._clear()

    def _clear(self) -> None:
        self._doubtful_step = -1
        self._doubtful_leases.clear()


class Sending:
    """One stream of a gradient: iterate over its parts. Thread-safe.

    The gradient and `Residual.kept` stay as they are, so another `Sending` of them has the same bytes. The one before
    must have ended: gRPC may still be asking for its parts after the call has failed.
    """

    def __init__(self, residual: Residual, gradient: Flat, everything: bool = False) -> None:
        """`everything` sends plain float32, so that nothing is left out."""
        self._residual = residual
        self._gradient = gradient
        self._everything = everything
        self._lock = threading.Lock()
        self._ended = False
        self.handed_over = False
        """Whether all parts were asked for: only then may the other end have all of them."""
        self.parts_bytes = 0
        """Of the parts so far."""

    def __iter__(self) -> Iterator[Part]:
        residual, size = self._residual, self._gradient.size
        total, decoded = _scratch(size), _scratch(size)
        for at in pieces(size):
            piece, out = total[: at.stop - at.start], decoded[: at.stop - at.start]
            with self._lock:
                if self._ended:
                    return
                with np.errstate(over="ignore"):
                    np.add(self._gradient[at], residual.kept[at], out=piece)
                # What is not finite travels as it is, and is refused over there with its place.
                if self._everything or not all_finite(piece):
                    part = Part(piece.tobytes(), False)
                    residual.next[at] = 0
                else:
                    part = Part(residual.compression.encode(piece, out), True)
                    np.subtract(piece, out, out=residual.next[at])
                self.handed_over = at.stop == size
                self.parts_bytes += len(part.data)
            yield part

    def end(self) -> None:
        """From now on no more parts, and no more changes of the residual. Idempotent."""
        with self._lock:
            self._ended = True


class Replica:
    """The parameters that the client of one lease has. Memory: a vector (P,) at either end. Used by one thread.

    Both ends number it. A stream of parts begins with the number that the replica has at its end; while it goes on
    there is none, so whatever breaks it off, the next pull begins anew with all parameters as they are.
    """

    def __init__(self, compression: Compression, size: int) -> None:
        self.compression = compression
        self.number = 0
        """Which it is; 0 while it is none."""
        self._size = size
        self._values: Flat | None = None
        self._given = 0

    @property
    def values(self) -> Flat:
        """(P,) float32, allocated at first use."""
        if self._values is None:
            self._values = np.empty(self._size, np.float32)
        return self._values

    def sending(self, params: Flat, held: int) -> tuple[int, Iterator[Part]]:
        """At the server: the number of what the client will have, and the parts that bring it there.

        Args:
            params: (P,) the version to send; stays as it is until the last part was taken.
            held: the number of what the client has. If it is not this one, all is sent, not coded.
        """
        known = held != 0 and held == self.number
        self.number = 0
        self._given += 1
        return self._given, self._parts(params, known, self._given)

    def _parts(self, params: Flat, known: bool, number: int) -> Iterator[Part]:
        values = self.values
        difference, decoded = _scratch(values.size), _scratch(values.size)
        for at in pieces(values.size):
            piece, out = difference[: at.stop - at.start], decoded[: at.stop - at.start]
            if known:
                with np.errstate(over="ignore", invalid="ignore"):
                    np.subtract(params[at], values[at], out=piece)
            if known and all_finite(piece):
                part = Part(self.compression.encode(piece, out), True)
                advance(values[at], out)
            else:
                values[at] = params[at]
                part = Part(values[at].tobytes(), False)
            yield part
        self.number = number

    def receiving(self, number: int, held: int) -> bool:
        """At the client: parts come that end with `number`; whether differences to `held` may be among them.

        `complete` is to be called when all have come.
        """
        known = held != 0 and held == self.number
        self.number, self._given = 0, number
        return known

    def complete(self) -> None:
        """At the client: all parts have come, into `values`."""
        self.number = self._given


def advance(values: Flat, difference: Flat) -> None:
    """What both ends do with a decoded difference."""
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(values, difference, out=values)


def _scratch(size: int) -> Flat:
    return np.empty(min(PIECE_FLOATS, size), np.float32)
