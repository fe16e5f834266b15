"""A seat: what one live attempt of a worker, or one reader, holds of a model.

It is a region of its own: a line of words that the holder writes (what it has committed, which version it
looks at), a line that the server writes (what it has taken and freed, whether the seat is closed), and the
slots, in which gradients are born; where delays are compensated, the parameters that a gradient was computed on lie
in its slot behind it (`ModelSpec.base_at`). Twins (two live attempts of one worker) have two seats, so they cannot mix.
The holder keeps the region's lock; when it dies, however it dies, the server sees that the lock is free.

Commit: write the gradient, write the slot's line, store HEAD, fence, look at CLOSED. The server closes a seat by
storing CLOSED, fence, and one more look at HEAD: whatever the holder believes committed is taken.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coproc.shared.control import ROW, word_to_float
from storage_tier.regions import Region, align
from storage_tier.words import WORD_BYTES

# Written by the holder.
HEAD, PIN, TAKEN, WAITING = 0, 1, 2, 3
# Written by the server.
TAIL, CLOSED = 16, 17
# A bell that the server rings when slots are freed.
BELL = 24
_WORDS = 64
NO_PIN = -1
# A `Commit` in the words of a slot's line. It may be written in pieces: HEAD, stored later, makes it visible.
_LINE = struct.Struct("=qqqd")


class Commit(NamedTuple):
    """What a slot's line says about the gradient in it."""

    step: int
    examples: int
    """Mini-batch size the gradient is the mean of; 0 for a skipped step without a gradient."""
    read_version: int
    loss: float
    """Mean loss over those examples, NaN if not told."""


class Seat:
    """A mapped seat of `depth` slots with `size` float32 elements each (`depth` 0: a reader's).

    A worker's slots have `ModelSpec.slot_floats`.
    """

    def __init__(self, region: Region, depth: int, size: int) -> None:
        self.region = region
        self.depth = depth
        self.words = region.words(0, _WORDS)
        self._lines = region.words(_WORDS * 8, depth * ROW) if depth else None
        self._line_bytes = memoryview(region.array(_WORDS * 8, np.uint8, depth * ROW * WORD_BYTES).data)
        start = align(_WORDS * 8 + depth * ROW * 8, 4096)
        # Five lines of padding, so that the slots' streams do not fall on the same offset of a page.
        self.stride_bytes = align(size * 4) + 5 * 64
        self.slots: list[NDArray[np.float32]] = [
            region.array(start + i * self.stride_bytes, np.float32, size) for i in range(depth)
        ]

    @staticmethod
    def size_bytes(depth: int, size: int) -> int:
        """Bytes of a seat's region."""
        return align(align(_WORDS * 8 + depth * ROW * 8, 4096) + depth * (align(size * 4) + 5 * 64), 4096)

    @classmethod
    def allocate(cls, directory: Path, depth: int, size: int) -> Seat:
        """The memory of a seat below `directory`, nobody's until its region is linked. Server only.

        Raises:
            OutOfMemory: the tmpfs has no room.
        """
        seat = cls(Region.allocate(directory, cls.size_bytes(depth, size), "seat"), depth, size)
        seat.words.store(PIN, NO_PIN)
        return seat

    @classmethod
    def open(cls, path: Path, depth: int, size: int) -> Seat:
        """Map an existing seat."""
        return cls(Region.open(path, populate=True), depth, size)

    @classmethod
    def take(cls, path: Path, depth: int, size: int) -> Seat:
        """Map a seat and hold it for as long as this process lives. Holder only."""
        seat = cls.open(path, depth, size)
        seat.region.hold()
        seat.words.store(TAKEN, os.getpid())
        return seat

    def write_line(self, slot: int, step: int, examples: int, read_version: int, loss: float) -> None:
        """Describe the gradient in `slot`; part of a commit, before HEAD is stored."""
        _LINE.pack_into(self._line_bytes, slot * ROW * WORD_BYTES, step, examples, read_version, loss)

    def read_line(self, slot: int) -> Commit:
        """What the holder wrote about the gradient in `slot`."""
        assert self._lines is not None
        step, examples, read_version, loss = self._lines.row(slot * ROW, 4)
        return Commit(step, examples, read_version, word_to_float(loss))

    @property
    def lines_address(self) -> int:
        """Where the slots' lines lie in this process's memory, 0 without slots: for compiled code."""
        return self._lines.address if self._lines is not None else 0

    @property
    def free_slots(self) -> int:
        """How many slots the holder may fill now."""
        return self.depth - (self.words.load(HEAD) - self.words.load(TAIL))

    @property
    def closed(self) -> bool:
        return self.words.load(CLOSED) != 0

    @property
    def pin(self) -> int:
        """The version that the holder looks at, or `NO_PIN`."""
        return self.words.load(PIN)

    def close(self) -> None:
        """Unmap; a holder's lock is given back. Idempotent."""
        self.slots.clear()
        self.region.close()
