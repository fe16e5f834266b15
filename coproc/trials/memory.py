"""What a run takes while it goes on: memory by role, and what the processors leave idle. Read from /proc.

A process is of the role that its command line tells; its memory is its proportional share (Pss), so that what several
map is counted once. /proc/PID/smaps_rollup walks the process's pages, which is why the pace follows what it costs.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

EVERY_S = 0.1
# Of one core, at the most, is spent on looking.
SHARE = 0.02
# What a command line contains, and the role that it tells. The first that fits counts.
ROLES = (
    ("coproc.hosts.play", "hosts"),
    ("coproc.compare.child", "driver"),
    # On an emulated host the driver descends from what plays the hosts.
    ("coproc.compare.child", "driver"),
    ("coproc.server.main", "server"),
    ("coproc.http.server", "server"),
    ("coproc.pools.processes", "worker"),
    ("pyspark.daemon", "worker"),
    ("pyspark/daemon", "worker"),
    ("ray::", "worker"),
    ("gcs_server", "server"),
    ("raylet", "server"),
    ("CoarseGrainedExecutorBackend", "jvm"),
    ("org.apache.spark", "jvm"),
    ("java", "jvm"),
)
DRIVER, OTHER = "driver", "other"


class Process(NamedTuple):
    """A process, never mistaken for a later one of its number."""

    pid: int
    started: str


class Idle(NamedTuple):
    """The processors' clocks at a moment, in ticks since the machine began."""

    moment_s: float
    idle: int
    total: int


def role_of(command: str) -> str:
    """The role of a process by its command line."""
    return next((role for words, role in ROLES if words in command), OTHER)


def tree(pid: int) -> set[Process]:
    """A process and all that descend from it, as far as their parents live."""
    children: dict[int, list[Process]] = {}
    found: set[Process] = set()
    for name in os.listdir("/proc"):
        told = _stat(int(name)) if name.isdigit() else None
        if told is not None:
            parent, started, state = told
            each = Process(int(name), started)
            children.setdefault(parent, []).append(each)
            if each.pid == pid and state != "Z":
                found.add(each)
    queue = list(found)
    while queue:
        for each in children.get(queue.pop().pid, []):
            found.add(each)
            queue.append(each)
    return found


def _stat(pid: int) -> tuple[int, str, str] | None:
    """(parent, start time, state); None when it is gone."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    fields = text[text.rindex(b")") + 2 :].split(maxsplit=20)
    return int(fields[1]), fields[19].decode(), fields[0].decode()


def _read(path: str) -> bytes:
    """What a small file of /proc says; nothing when its process is gone, or is another user's."""
    try:  # a file object would take three times as long, and this is done for each process
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
    try:
        return os.read(file, 1 << 18)
    except ProcessLookupError:
        return b""
    finally:
        os.close(file)


def marked(name: str, value: str) -> set[Process]:
    """The living processes that have a variable of the environment with this value, which they hand down to all that
    they start: whoever their parents are by now."""
    entry = f"{name}={value}".encode()
    found = set()
    for each in os.listdir("/proc"):
        if each.isdigit() and entry in _read(f"/proc/{each}/environ").split(b"\0"):
            told = _stat(int(each))
            if told is not None and told[2] != "Z":
                found.add(Process(int(each), told[1]))
    return found


def pss_bytes(pid: int) -> int:
    """Its proportional share of memory; 0 when it is gone."""
    lines = _read(f"/proc/{pid}/smaps_rollup").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(b"Pss:")), 0)


def processors() -> tuple[int, int]:
    """(idle ticks, all ticks) of all processors since the machine began."""
    ticks = [int(word) for word in _read("/proc/stat").split(b"\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def idle_share(samples: Sequence[Idle], began_s: float, ended_s: float) -> float | None:
    """Share of the processors' time that nobody used between two moments; None if no two samples lie there.

    The nearest samples that enclose as much of it as was sampled.
    """
    moments = [each.moment_s for each in samples]
    first, last = max(0, bisect_right(moments, began_s) - 1), min(len(samples) - 1, bisect_left(moments, ended_s))
    if last <= first or samples[last].total == samples[first].total:
        return None
    return (samples[last].idle - samples[first].idle) / (samples[last].total - samples[first].total)


class Watching:
    """Looks at a process and its descendants from another thread, until it is closed. A context manager."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._peaks: dict[str, int] = {}
        self._idle: list[Idle] = []
        self._thread = threading.Thread(target=self._look, name="watching", daemon=True)

    @property
    def peaks(self) -> Mapping[str, int]:
        """The most bytes that all processes of a role took at one moment, by role."""
        return dict(self._peaks)

    @property
    def idle(self) -> Sequence[Idle]:
        return list(self._idle)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(10.0)

    def _look(self) -> None:
        pause_s = 0.0
        while not self._ended.wait(pause_s):
            began_s = time.thread_time()
            self._idle.append(Idle(time.monotonic(), *processors()))
            sums: dict[str, int] = {}
            for each in tree(self._pid):
                # Asked anew each time: between fork and exec a process has its parent's command line.
                role = role_of(_read(f"/proc/{each.pid}/cmdline").replace(b"\0", b" ").decode(errors="replace"))
                role = DRIVER if role == OTHER and each.pid == self._pid else role
                sums[role] = sums.get(role, 0) + pss_bytes(each.pid)
            for role, count in sums.items():
                if count:  # 0 of who is gone already
                    self._peaks[role] = max(self._peaks.get(role, 0), count)
            pause_s = max(EVERY_S, (time.thread_time() - began_s) / SHARE)
