"""The memory budget of one server: who holds how many bytes, and a refusal before the memory is used up.

tmpfs gives pages until there are none; then writers get ENOSPC and whoever first touches a hole of a mapped
file dies of SIGBUS. The budget says no earlier, in a sentence, while readers go on.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from storage_tier.errors import InvalidRequest, OutOfMemory

# The rest is for what the budget does not see: page tables, other programs, files about to be deleted.
DEFAULT_SHARE = 0.8


def show_bytes(size_bytes: int) -> str:
    """A size for a sentence: exact below 1 MiB, else MiB or GiB with one digit."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if abs(size_bytes) >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes:,} bytes"


class Budget:
    """Counts bytes by key and refuses what does not fit. Thread-safe; never blocks; owns no memory itself."""

    def __init__(self, limit_bytes: int, remedy: str = "start the server with a larger memory budget") -> None:
        """`remedy` ends the sentence of a refusal: what to do, other than to delete something."""
        if limit_bytes <= 0:
            raise InvalidRequest(f"a memory budget must be positive, and {limit_bytes:,} bytes were given")
        self._limit_bytes = limit_bytes
        self.remedy = remedy
        self._used_bytes = 0
        self._charges: dict[str, int] = {}
        self._caps: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def limit_bytes(self) -> int:
        """The most that may be charged."""
        return self._limit_bytes

    @property
    def used_bytes(self) -> int:
        """The sum of all charges. Above the limit only after `adopt`."""
        return self._used_bytes

    @property
    def free_bytes(self) -> int:
        """What can still be charged."""
        return max(0, self._limit_bytes - self._used_bytes)

    def charge(self, key: str, size_bytes: int) -> None:
        """Charge `key` with `size_bytes`. Atomic. Charged again, a key changes to the new size.

        Raises:
            OutOfMemory: it does not fit; nothing changed. The sentence has asked, used and limit, and what to
            do.
        """
        with self._lock:
            self._set(key, size_bytes, self._charges.get(key, 0), what=key)

    def transfer(self, from_key: str, to_key: str, size_bytes: int) -> None:
        """Release `from_key` and charge `to_key` in one step, so that nobody else takes the room in between.

        Raises:
            OutOfMemory: the new size does not fit; `from_key` is still charged.
        """
        with self._lock:
            held_bytes = self._charges.get(from_key, 0)
            if from_key != to_key:
                held_bytes += self._charges.get(to_key, 0)
            self._set(to_key, size_bytes, held_bytes, what=to_key)
            if from_key != to_key:
                self._charges.pop(from_key, None)

    def adopt(self, key: str, size_bytes: int) -> None:
        """Count what exists already (found at a restart). Never refuses: the memory is in use anyway."""
        with self._lock:
            self._used_bytes += size_bytes - self._charges.get(key, 0)
            self._charges[key] = size_bytes

    def cap(self, prefix: str, limit_bytes: int | None) -> None:
        """Let keys that begin with `prefix` have so much together at the most, from now on; None: what there is."""
        with self._lock:
            self._caps.pop(prefix, None)
            if limit_bytes is not None:
                self._caps[prefix] = limit_bytes

    def release(self, key: str) -> int:
        """Drop the charge of `key` and return it; 0 when there was none."""
        with self._lock:
            size_bytes = self._charges.pop(key, 0)
            self._used_bytes -= size_bytes
            return size_bytes

    def charged_below(self, prefix: str) -> int:
        """The sum of the charges whose keys begin with `prefix`."""
        with self._lock:
            return self._below(prefix)

    def charged_bytes(self, key: str) -> int:
        """The charge of `key`; 0 when there is none."""
        return self._charges.get(key, 0)

    def _below(self, prefix: str) -> int:
        return sum(size_bytes for key, size_bytes in self._charges.items() if key.startswith(prefix))

    def _set(self, key: str, size_bytes: int, held_bytes: int, *, what: str) -> None:
        if size_bytes < 0:
            raise InvalidRequest(f"{what} asks for {size_bytes:,} bytes: a size cannot be negative")
        used_bytes = self._used_bytes - held_bytes + size_bytes
        # A charge that gets smaller is never refused, even when adopted bytes are above the limit.
        if used_bytes > self._limit_bytes and size_bytes > held_bytes:
            raise OutOfMemory(
                f"{what} asks for {show_bytes(size_bytes)}, and of the memory budget of "
                f"{show_bytes(self._limit_bytes)} {show_bytes(self._used_bytes - held_bytes)} are in use. "
                f"Delete what is no longer needed, or {self.remedy}."
            )
        for prefix, limit_bytes in self._caps.items():
            if key.startswith(prefix) and size_bytes > held_bytes:
                below_bytes = self._below(prefix) - held_bytes
                if below_bytes + size_bytes > limit_bytes:
                    raise OutOfMemory(
                        f"{what} asks for {show_bytes(size_bytes)}, and of the {show_bytes(limit_bytes)} that "
                        f"{prefix} may have {show_bytes(below_bytes)} are in use"
                    )
        self._used_bytes = used_bytes
        self._charges[key] = size_bytes


def free_shared_memory_bytes(directory: Path) -> int:
    """What files in `directory` can still grow to: of file system and memory the lesser."""
    room = os.statvfs(directory)
    free_bytes = room.f_bavail * room.f_frsize
    available_bytes = _available_memory_bytes()
    return free_bytes if available_bytes is None else min(free_bytes, available_bytes)


def check_shared_memory(directory: Path, need_bytes: int) -> None:
    """Refuse when the file system of `directory` has no room for `need_bytes`. Asks, reserves nothing.

    Raises:
        OutOfMemory: with what is needed, what is free, and how to get more (Docker gives /dev/shm 64 MiB).
    """
    room = os.statvfs(directory)
    free_bytes = room.f_bavail * room.f_frsize
    if need_bytes <= free_bytes:
        return
    raise OutOfMemory(
        f"{show_bytes(need_bytes)} of shared memory are needed under {directory}, and of "
        f"{show_bytes(room.f_blocks * room.f_frsize)} there {show_bytes(free_bytes)} are free. "
        "Make it larger: docker run --shm-size=8g, in Kubernetes an emptyDir with medium: Memory at "
        "/dev/shm, on a host mount -o remount,size=8g /dev/shm; or ask for less memory."
    )


def default_limit_bytes(directory: Path, held_bytes: int = 0) -> int:
    """The budget of a server that was given none: 0.8 of what is free now and of what it holds already.

    Raises:
        OutOfMemory: nothing at all is free.
    """
    limit_bytes = int(DEFAULT_SHARE * (free_shared_memory_bytes(directory) + held_bytes))
    if limit_bytes <= 0:
        check_shared_memory(directory, 1 << 20)
        raise OutOfMemory(f"this machine has no memory left for a tier under {directory}")
    return limit_bytes


def _available_memory_bytes() -> int | None:
    """MemAvailable of this machine; None where the kernel does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def larger_shared_memory(directory: Path) -> str:
    """What to do where the file system of `directory` is what limits a budget."""
    room = os.statvfs(directory)
    return (
        f"make the shared memory larger: the budget is {DEFAULT_SHARE:g} of what was free in {directory}, on a file "
        f"system of {show_bytes(room.f_blocks * room.f_frsize)} (docker run --shm-size=8g; on a host mount -o "
        "remount,size=8g /dev/shm)"
    )
