"""All runs of a comparison, one after the other: each in fresh processes, its row written before the next begins.

Contestants take turns: the first repeat of every point, then the second, each repeat beginning with another point, so
that a machine that slows down slows all of them down. What fails is a row with its error. What was done stays, however
it ends, and is not done again with `resume`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from coproc import hosts
from coproc.cluster import remove_abandoned
from coproc.compare.grid import Grid
from coproc.errors import ConfigError, Timeout
from coproc.pools.base import python_path
from coproc.trials.base import Point, labels
from coproc.trials.memory import OTHER, Watching, idle_share, marked
from coproc.trials.record import Results, commit, host_facts, row_of, write_summary
from coproc.trials.workloads import provide

COMMAND = (sys.executable, "-m", "coproc.compare.child")
# A variable of the environment of all processes of a run, by which those are found that left its group.
MARK = "COPROC_RUN"
# Of a run that has told its row: until its process and all that it started are gone.
END_S = 20.0
LOOK_S = 0.05


@dataclass(frozen=True)
class Event:
    """What happens to a run."""

    kind: Literal["kept", "began", "progress", "ended"]
    """kept: it was done before, and is not run again."""
    point: Point
    repeat: int
    progress: Mapping[str, Any] = field(default_factory=dict)
    """What the run tells of itself: phase, epoch, steps, loss, moment_s."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """What came of it."""


@dataclass(frozen=True)
class Compared:
    """What a comparison has left."""

    rows: list[dict[str, Any]]
    interrupted: bool


class Failed(Exception):
    """A run has no row; the message says why."""


def compare(
    grid: Grid,
    skipped: Mapping[str, str],
    data: Path,
    output: Path,
    *,
    resume: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
    command: Sequence[str] = COMMAND,
) -> Compared:
    """Run a grid that was checked; blocks until it is through, or Ctrl-C.

    Leaves results.jsonl and summary.csv in `output`.

    Args:
        skipped: by id, why a point is not run here.
        resume: go on with what is in `output` already; else there must be no results yet.
        on_event: called in this thread.
        command: of a run's process; given by tests.

    Raises:
        ConfigError: results of other points, or results at all, are in `output`.
        CoprocError: results cannot be written, for want of room, say; what was done stays.
    """
    with Results(output) as results:
        _require_own(grid, results, resume)
        interrupted = False
        try:
            for point in grid.points:
                if point.id not in skipped:
                    provide(point)
            _run_all(grid, skipped, data, results, on_event, command)
        except KeyboardInterrupt:
            interrupted = True
        rows = results.latest()
    write_summary(output, rows)
    return Compared(rows, interrupted)


def order(points: Sequence[Point], repeats: int) -> list[tuple[Point, int]]:
    """(point, repeat) of all runs: interleaved, each repeat beginning one point later."""
    return [
        (points[(place + repeat) % len(points)], repeat) for repeat in range(repeats) for place in range(len(points))
    ]


def _require_own(grid: Grid, results: Results, resume: bool) -> None:
    if results.rows and not resume:
        raise ConfigError(
            f"there are results in {results.path} already: go on with them by --resume, or choose another --output"
        )
    ids = {point.id for point in grid.points}
    others = [row for row in results.rows if row["id"] not in ids]
    if others:
        named = labels([_point_of(row) for row in others]).values()
        raise ConfigError(
            f"{results.path} has results of points that this comparison does not have ({', '.join(named):.300}): "
            "resume it with the grid and the options that it was begun with, or choose another --output"
        )


def _point_of(row: Mapping[str, Any]) -> Point:
    try:
        return Point(**row["point"])
    except TypeError:
        raise ConfigError("the results were written by another version of coproc: choose another --output") from None


def _run_all(
    grid: Grid,
    skipped: Mapping[str, str],
    data: Path,
    results: Results,
    on_event: Callable[[Event], None],
    command: Sequence[str],
) -> None:
    done = results.done()
    facts = {"host": host_facts(), "commit": commit()}
    for point, repeat in order(grid.points, grid.repeats):
        before = done.get((point.id, repeat))
        # What was not installed then may be by now.
        if before is not None and (before["status"] != "skipped" or point.id in skipped):
            on_event(Event("kept", point, repeat, row=before))
            continue
        if point.id in skipped:
            row = row_of(point, repeat, "skipped", skipped[point.id]) | facts
        else:
            on_event(Event("began", point, repeat))
            try:
                row = run_child(point, repeat, data, grid.timeout_s, on_event, command) | facts
            except KeyboardInterrupt:
                row = row_of(point, repeat, "interrupted", "stopped by Ctrl-C before it was through") | facts
                results.add(row)
                on_event(Event("ended", point, repeat, row=row))
                raise
        results.add(row)
        on_event(Event("ended", point, repeat, row=row))


def run_child(
    point: Point,
    repeat: int,
    data: Path,
    timeout_s: float,
    on_event: Callable[[Event], None] = lambda event: None,
    command: Sequence[str] = COMMAND,
) -> dict[str, Any]:
    """One run in a process of its own, watched from here; a failure is a row too. Nothing of it is left running."""
    began, began_s = row_of(point, repeat), time.monotonic()
    mark = secrets.token_hex(8)
    request = {"point": point.to_json_values(), "data": str(data), "repeat": repeat, "began_s": began_s}
    # A file and not a pipe: nobody has to read it meanwhile.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*(hosts.command(point) if point.hosts is not None else ()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": python_path(), MARK: mark},
            start_new_session=True,
        )
        with process, Watching(process.pid) as watching:
            try:
                row = _told(process, request, began_s + timeout_s, on_event, point, repeat, log)
                _await_end(process, mark)
            except Failed as failure:
                row = {**began, "status": "failed", "error": str(failure), "wall_s": time.monotonic() - began_s}
            finally:
                _kill(process, mark)
    row |= {name: began[name] for name in ("id", "repeat", "point", "began")}
    peaks = dict(watching.peaks)
    if row["memory"]:  # a contestant that knows its processes has told those which nobody knows here
        peaks.pop(OTHER, None)
    row["memory"] = {**peaks, **row["memory"]}
    if row["groups"]:
        row["cpu_idle"] = idle_share(watching.idle, row["groups"][0][2], row["groups"][-1][3])
    return row


def _told(
    process: subprocess.Popen[bytes],
    request: Mapping[str, Any],
    deadline_s: float,
    on_event: Callable[[Event], None],
    point: Point,
    repeat: int,
    log: IO[bytes],
) -> dict[str, Any]:
    """The row that a run tells in the end.

    Raises:
        Failed: it told an error, ended without a word, or takes too long.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended already: what it left is read below
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    began_s, pending = request["began_s"], b""
    while True:
        left_s = deadline_s - time.monotonic()
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, left_s))
        if not readable:
            raise Failed(f"it was not through after {deadline_s - began_s:g} s, the timeout of a run, and was killed")
        read = os.read(process.stdout.fileno(), 1 << 16)
        if not read:
            raise Failed(_last_words(process, log))
        *lines, pending = (pending + read).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "row" in told:
                row: dict[str, Any] = told["row"]
                return row
            if "error" in told:
                raise Failed(told["error"])
            on_event(Event("progress", point, repeat, progress=told["progress"]))


def _last_words(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    """How a process ended that told nothing."""
    try:
        code = process.wait(timeout=END_S)
    except subprocess.TimeoutExpired:
        return "it closed its output and went on"
    cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return f"its process was {cause}, without a result{': ' + lines[-1] if lines else ''}"


def _await_end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Wait until a run that is through has put away what it started, which is to disturb nobody."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline and (process.poll() is None or marked(MARK, mark)):
        time.sleep(LOOK_S)


def _kill(process: subprocess.Popen[bytes], mark: str) -> None:
    """End all that is left of a run: its group, and what has left it. Idempotent.

    Raises:
        Timeout: it does not end.
    """
    if process.poll() is not None and not marked(MARK, mark):
        # What has just been started shows its environment a moment later.
        time.sleep(LOOK_S)
        if not marked(MARK, mark):
            return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + END_S
    while left := marked(MARK, mark):
        if time.monotonic() > deadline:
            raise Timeout(
                f"processes of a run do not end although they were killed: {sorted(each.pid for each in left)}"
            )
        for each in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
        time.sleep(LOOK_S)
    # Only then its last thread is over, which may have held what tells that a directory is in use.
    process.wait(timeout=END_S)
    _put_away()


def _put_away() -> None:
    """Remove what processes that were killed have left: memory of servers, files of Spark and of contestants."""
    from coproc.pools.session import PREFIX

    remove_abandoned()
    remove_abandoned(Path(tempfile.gettempdir()), PREFIX)
