"""64-bit words in shared memory: load, store, fence, and futex waits, from plain Python.

Two processes that map the same region talk through these words and through nothing else. The rules:

* One writer a word. A word is stored whole: an aligned 8-byte item store of a memoryview is one machine
  store (``struct.pack_into`` is not; it tears).
* `load` acquires, `store` releases. On x86-64 every load and store does so by itself; elsewhere each is
  accompanied by `fence`.
* "Store mine, then look at theirs" needs `fence` in between, on both sides, or both may miss each other.

Waiting is a futex on the low half of a word (Linux only). Nothing here blocks without a timeout.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from array import array

import numpy as np
from numpy.typing import NDArray

WORD_BYTES = 8
WORD_CODE = "l"
"""Type code of a word for `array.array`: 64 bits on every Linux this runs on."""

FUTEX_WAIT = 0
FUTEX_WAKE = 1
_FUTEX_WAKE_PRIVATE = 129
SYS_FUTEX = {"x86_64": 202, "AMD64": 202, "aarch64": 98, "riscv64": 98}.get(platform.machine(), -1)
_TOTAL_STORE_ORDER = platform.machine() in ("x86_64", "AMD64")

_ARGUMENTS = (
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_long,
)
# The same C function twice: a wait must let other Python threads run, a wake is too short to bother.
_blocking = ctypes.CDLL(None, use_errno=True).syscall
_brief = ctypes.PyDLL(None).syscall
for _function in (_blocking, _brief):
    _function.argtypes = _ARGUMENTS
    _function.restype = ctypes.c_long


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


_nobody = np.zeros(2, np.int64)
_nobody_address = _nobody.ctypes.data

if _TOTAL_STORE_ORDER:
    # A locked exchange on a word of nobody else is a full barrier, and the cheapest one that needs no compiled code
    # (0.2 microseconds). Which value it finds does not matter.
    _exchange = ctypes.PyDLL(None).pthread_spin_trylock
    _exchange.argtypes = (ctypes.c_void_p,)

    def fence() -> None:
        """Order everything this thread did before against everything it does after (a full barrier)."""
        _exchange(_nobody_address)

else:

    def fence() -> None:
        """Order everything this thread did before against everything it does after (a full barrier)."""
        # The kernel executes one in every futex wake, before it looks for waiters; here there is none.
        _brief(SYS_FUTEX, _nobody_address, _FUTEX_WAKE_PRIVATE, 0, None, None, 0)


class _Fenced:
    """`Words.cells` where a plain load does not acquire, nor a plain store release."""

    __slots__ = ("_words",)

    def __init__(self, words: Words) -> None:
        self._words = words

    def __getitem__(self, index: int) -> int:
        return self._words.load(index)

    def __setitem__(self, index: int, value: int) -> None:
        self._words.store(index, value)


class Words:
    """`count` 64-bit words of a buffer, starting at `offset_bytes` (a multiple of 8). Copies nothing.

    Args:
        buffer: writable shared memory, usually the map of a region.
        offset_bytes: where word 0 lies.
        count: how many words.
    """

    __slots__ = ("_array", "_cells", "address", "cells", "count")

    def __init__(self, buffer: mmap.mmap | memoryview | NDArray[np.uint8], offset_bytes: int, count: int) -> None:
        if sys.platform != "linux" or SYS_FUTEX < 0:
            raise OSError(f"shared words need Linux on x86-64 or ARM64, not {sys.platform} {platform.machine()}")
        if offset_bytes % WORD_BYTES:
            raise ValueError(f"words must start at a multiple of {WORD_BYTES} bytes, not at {offset_bytes}")
        self._array = np.frombuffer(buffer, np.int64, count, offset_bytes)
        self._cells = memoryview(self._array.data)
        self.cells: memoryview | _Fenced = self._cells if _TOTAL_STORE_ORDER else _Fenced(self)
        """The words by index: the same as `load` and `store`, for whoever counts their microseconds."""
        self.address: int = self._array.ctypes.data
        self.count = count

    if _TOTAL_STORE_ORDER:

        def load(self, index: int) -> int:
            """The word's value; what its writer did before storing it is visible too (acquire)."""
            return self._cells[index]

        def store(self, index: int, value: int) -> None:
            """Store whole; whoever loads `value` also sees what this process wrote before (release)."""
            self._cells[index] = value

    else:

        def load(self, index: int) -> int:
            """The word's value; what its writer did before storing it is visible too (acquire)."""
            value = self._cells[index]
            fence()
            return value

        def store(self, index: int, value: int) -> None:
            """Store whole; whoever loads `value` also sees what this process wrote before (release)."""
            fence()
            self._cells[index] = value

    def row(self, index: int, count: int = 8) -> list[int]:
        """`count` words from `index` on as a list: each whole, but not all of one moment."""
        return self._cells[index : index + count].tolist()

    def store_row(self, index: int, values: array[int]) -> None:
        """Store several words, in no promised order: for what becomes visible by a later `store`."""
        self._cells[index : index + len(values)] = memoryview(values)

    def ring(self, index: int) -> None:
        """Change the word and wake all who wait on it. Also a full barrier.

        The word is a bell: it carries no information beyond "look again", so that two ringers may overwrite
        each other's change and still wake the sleeper.
        """
        self._cells[index] = (self._cells[index] + 1) & 0x7FFFFFFF
        _brief(SYS_FUTEX, self.address + index * WORD_BYTES, FUTEX_WAKE, 0x7FFFFFFF, None, None, 0)

    def wait(self, index: int, seen: int, timeout_s: float) -> None:
        """Sleep until the bell at `index` no longer shows `seen`, is rung, or `timeout_s` is over.

        Returns without a reason, perhaps early: the caller looks again at what it waits for. The interpreter
        lock is released meanwhile.
        """
        if timeout_s <= 0:
            return
        whole = int(timeout_s)
        span = _Timespec(whole, int((timeout_s - whole) * 1e9))
        _blocking(
            SYS_FUTEX,
            self.address + index * WORD_BYTES,
            FUTEX_WAIT,
            seen & 0xFFFFFFFF,
            ctypes.addressof(span),
            None,
            0,
        )

    def release(self) -> None:
        """Let go of the buffer, so that its map can be closed. The words can't be used any more."""
        self._cells.release()
        del self._array
