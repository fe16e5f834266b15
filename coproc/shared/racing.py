"""A vector that all workers of one host change in place, without locks, and where each of them has got to.

The region has no name: it is the descriptor of whoever has made it, which others of the same user open by /proc, and it
is gone with the last of them, however they end.

What one worker tells has one writer: whoever holds that worker's lock, a record lock of one byte, which the kernel
drops with its holder. The vector itself has as many writers as there are workers, and nobody watches over it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coproc.errors import ConfigError
from coproc.shared.control import MAX_WORKERS, ROW, float_to_word, word_to_float
from storage_tier.errors import TierError
from storage_tier.regions import Region, align

Row = NDArray[np.float32]

SHARED_MEMORY = Path("/dev/shm")
_RATE, _COUNT = 0, 1
_HEAD_WORDS = 8
# Of a worker's row.
NEXT_STEP, UPDATES, EXAMPLES, LOSS, LOSS_EXAMPLES, STALENESS_SUM, STALENESS_MAX = range(7)
# One byte of the file a worker, as the kernel takes it: type, whence, start, length, no process.
_LOCK = struct.Struct("@hhqqi4x")


class Racing:
    """The mapped region, as the driver or a worker has it. Close it in the end."""

    def __init__(self, region: Region, size: int, rows_count: int) -> None:
        self._region = region
        self._held: set[int] = set()
        self._head = region.words(0, _HEAD_WORDS)
        self._workers = region.words(8 * _HEAD_WORDS, MAX_WORKERS * ROW)
        begin, stride = _begin(), align(4 * size)
        self.rows: tuple[Row, ...] = tuple(
            [region.array(begin + number * stride, np.float32, size) for number in range(rows_count)]
        )
        """(parameters, *state), float32 (size,) each: the memory itself."""

    @classmethod
    def create(cls, params: Row, rows_count: int, learning_rate: float) -> Self:
        """A new one, with a copy of `params` (n,) and state rows of zeros.

        Raises:
            storage_tier.errors.OutOfMemory: shared memory has no room.
        """
        size_bytes = _begin() + rows_count * align(params.nbytes)
        region = Region.allocate(SHARED_MEMORY, size_bytes, f"racing {secrets.token_hex(16)}")
        racing = cls(region, params.size, rows_count)
        racing.rows[0][:] = params
        racing.learning_rate = learning_rate
        return racing

    @property
    def place(self) -> dict[str, Any]:
        """Where it is, for `open` in another process. JSON values; good as long as this is not closed."""
        descriptor = self._region.descriptor
        found = os.fstat(descriptor)
        return {
            "path": f"/proc/{os.getpid()}/fd/{descriptor}",
            "file": [found.st_dev, found.st_ino],
            "kind": self._region.kind,
            "size": self.rows[0].size,
            "rows": len(self.rows),
        }

    @classmethod
    def open(cls, place: Mapping[str, Any]) -> Self:
        """Map the one at a place.

        Raises:
            ConfigError: it is not in this host's shared memory, or not this user's, or gone.
        """
        with contextlib.suppress(OSError, TierError):
            found = os.stat(place["path"])
            # Looked at before it is opened: on another host that number may be anything. The last one is where this
            # process's own memory would be, which tells containers and namespaces from each other.
            if [found.st_dev, found.st_ino] == place["file"] and found.st_dev == os.stat(SHARED_MEMORY).st_dev:
                region = Region.open(Path(place["path"]), populate=True)
                if region.kind == place["kind"]:
                    return cls(region, place["size"], place["rows"])
                region.close()
        raise ConfigError(
            f"process {os.getpid()} on {os.uname().nodename} does not share memory with the driver, or the driver is "
            "gone: all workers have to be on its host, as the same user"
        )

    # ---- of all

    @property
    def learning_rate(self) -> float:
        return word_to_float(self._head.load(_RATE))

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._head.store(_RATE, float_to_word(value))

    @property
    def count(self) -> int:
        """Workers are numbered below it. Written by the driver."""
        return self._head.load(_COUNT)

    @count.setter
    def count(self, value: int) -> None:
        self._head.store(_COUNT, value)

    @property
    def version(self) -> int:
        """Updates that all workers have made."""
        return sum([self._workers.load(worker * ROW + UPDATES) for worker in range(self.count)])

    # ---- of a worker

    def hold(self, worker: int) -> bool:
        """Become the one attempt of a worker that may change anything; False while another one is."""
        try:
            self._lock(fcntl.F_WRLCK, worker)
        except (BlockingIOError, PermissionError):
            return False
        self._held.add(worker)
        return True

    def _lock(self, kind: int, worker: int) -> None:
        fcntl.fcntl(self._region.descriptor, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, worker, 1, 0))

    def told(self, worker: int) -> list[int]:
        """What a worker has told: `NEXT_STEP` …, each whole, but not all of one moment."""
        return self._workers.row(worker * ROW)

    def next_step(self, worker: int) -> int:
        """Of a worker."""
        return self._workers.load(worker * ROW + NEXT_STEP)

    def tell(self, worker: int, step: int, examples: int, loss: float, staleness: int) -> None:
        """A step is done; 0 examples: without an update. Whoever holds the worker."""
        words, at = self._workers, worker * ROW
        words.store(at + NEXT_STEP, step + 1)
        if not examples:
            return
        words.store(at + UPDATES, words.load(at + UPDATES) + 1)
        words.store(at + EXAMPLES, words.load(at + EXAMPLES) + examples)
        words.store(at + LOSS, float_to_word(word_to_float(words.load(at + LOSS)) + loss * examples))
        words.store(at + LOSS_EXAMPLES, words.load(at + LOSS_EXAMPLES) + examples)
        words.store(at + STALENESS_SUM, words.load(at + STALENESS_SUM) + staleness)
        words.store(at + STALENESS_MAX, max(words.load(at + STALENESS_MAX), staleness))

    def close(self) -> None:
        """Give back lock and map; the memory goes with the last who has it. Idempotent."""
        # The map has a copy of the descriptor, and lives as long as somebody has a row.
        while self._held:
            self._lock(fcntl.F_UNLCK, self._held.pop())
        self.rows = ()
        self._region.close()


def _begin() -> int:
    """Bytes before the rows."""
    return align(8 * (_HEAD_WORDS + MAX_WORKERS * ROW), 4096)
