"""The published versions of one shard: K parameter buffers, two banks of optimizer state, one publish word.

    PUB = version << 8 | buffer << 1 | bank

A sweep reads the front (the buffer and bank that PUB names) and writes the back: another buffer, the other bank.
Storing PUB, one 8-byte store after a fence, makes all of it the front at once: parameters, state, position in
the log, and count of updates (`coproc.server.passes`). What was not published did not happen, so a restart needs
no recovery.

A reader pins a version (a word of its seat), fences, and then looks whether the shard still has that version;
the server marks a buffer as gone, fences, and then looks whether somebody pinned it. One of the two sees the
other, so no reader's view is ever overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coproc.shared.control import ROW
from storage_tier.regions import Region, align

PUB, COPY_ONLY, APPLIED, FAILED = 0, 1, 2, 3
SWEPT_NS = 4  # time that its sweeps have taken
BELL = 8  # rung by the server when it has published
SLEEPING = 16
WAKE = 24  # rung by the sequencer when the log has grown
VERSIONS = 32  # version held by each buffer
BANKS = 48
_WORDS = 64
MAX_BUFFERS = 16
GONE = -1

# Words of a bank.
POSITION, UPDATES, RATE = 0, 1, 2


class Published:
    """The mapped region of one shard of n parameters."""

    def __init__(self, region: Region, size: int, state_rows: int, buffers: int) -> None:
        self.region = region
        self.size = size
        self.words = region.words(0, _WORDS)
        self.buffer_count = buffers
        stride = align(size * 4) + 5 * 64
        at = _WORDS * 8

        def rows(count: int) -> list[NDArray[np.float32]]:
            nonlocal at
            views = [region.array(at + i * stride, np.float32, size) for i in range(count)]
            at += count * stride
            return views

        self.buffers = rows(buffers)  # K x (n,)
        self.banks = [rows(state_rows), rows(state_rows)]  # 2 x state_rows x (n,)

    @staticmethod
    def size_bytes(size: int, state_rows: int, buffers: int) -> int:
        """Bytes of the region."""
        return align(_WORDS * 8 + (buffers + 2 * state_rows) * (align(size * 4) + 5 * 64), 4096)

    @classmethod
    def create(
        cls,
        path: Path,
        params: NDArray[np.float32],
        state_rows: int,
        buffers: int,
        learning_rate: int,
        *,
        state: Sequence[NDArray[np.float32]] = (),
        version: int = 0,
        updates: int = 0,
    ) -> Published:
        """Create the region with `params` (n,) as its first version. Server only.

        Args:
            learning_rate: the bits of the first learning rate (see `control.float_to_word`).
            state: the optimizer's rows (n,) of a model that is restored; of a new one they are zero.
            version, updates: where a model that is restored goes on.

        Raises:
            OutOfMemory: the tmpfs has no room.
        """
        region = Region.create(path, cls.size_bytes(params.size, state_rows, buffers), "shard")
        shard = cls(region, params.size, state_rows, buffers)
        shard.buffers[0][:] = params
        for row, values in zip(shard.banks[0] if state else (), state, strict=True):
            row[:] = values
        shard.words.store(VERSIONS, version)
        shard.words.store(BANKS + UPDATES, updates)
        shard.words.store(PUB, version << 8)
        for buffer in range(1, buffers):
            shard.words.store(VERSIONS + buffer, GONE)
        shard.words.store(BANKS + RATE, learning_rate)
        return shard

    @classmethod
    def open(cls, path: Path, size: int, state_rows: int, buffers: int) -> Published:
        """Map an existing shard."""
        return cls(Region.open(path, populate=True), size, state_rows, buffers)

    @property
    def version(self) -> int:
        """The newest published version."""
        return self.words.load(PUB) >> 8

    def front(self) -> tuple[int, int, int]:
        """(version, buffer, bank) that are published now."""
        pub = self.words.load(PUB)
        return pub >> 8, pub >> 1 & 0x7F, pub & 1

    def bank_words(self, bank: int) -> tuple[int, int, int]:
        """(position in the log, count of updates, bits of the learning rate) of a bank."""
        position, updates, rate = self.words.row(BANKS + bank * ROW, 3)
        return position, updates, rate

    @property
    def kept_from(self) -> int:
        """Log position that the published version starts to read from after a restart."""
        return self.words.load(BANKS + (self.words.load(PUB) & 1) * ROW + POSITION)

    @property
    def applied(self) -> int:
        """Log position up to which nothing is left to do: `kept_from`, and past records that change nothing."""
        return self.words.load(APPLIED)

    @property
    def swept_s(self) -> float:
        """Seconds that its sweeps have taken, since the region was made."""
        return self.words.load(SWEPT_NS) / 1e9

    def find(self, version: int) -> NDArray[np.float32] | None:
        """The buffer that holds `version`, or None. Only a pin stored and fenced before makes it last."""
        for buffer in range(self.buffer_count):
            if self.words.load(VERSIONS + buffer) == version:
                return self.buffers[buffer]
        return None

    def forget_unpublished(self) -> None:
        """After a restart: a buffer that says it holds more than was published holds nothing. Server only."""
        for buffer in range(self.buffer_count):
            if self.words.load(VERSIONS + buffer) > self.version:
                self.words.store(VERSIONS + buffer, GONE)

    def close(self) -> None:
        """Unmap. Idempotent."""
        self.buffers.clear()
        self.banks.clear()
        self.region.close()
