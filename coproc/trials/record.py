"""The file of results: a line of JSON a run, only ever appended to; and the table of numbers made of it."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from coproc.errors import ConfigError, CoprocError
from coproc.trials.base import Point
from coproc.trials.metrics import metrics_of

RESULTS, SUMMARY = "results.jsonl", "summary.csv"
# What a run that is to be resumed need not do again.
FINAL = ("ok", "skipped")
GIT_TIMEOUT_S = 10.0
PACKAGE = Path(__file__).resolve().parent.parent


def row_of(point: Point, repeat: int, status: str = "ok", error: str | None = None) -> dict[str, Any]:
    """A row in which nothing was measured yet."""
    return {
        "id": point.id,
        "repeat": repeat,
        "point": point.to_json_values(),
        "status": status,
        "error": error,
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "wall_s": None,
        "startup_s": None,
        "groups": [],
        "samples": [],
        "epochs": [],
        "costs": {},
        "memory": {},
        "cpu_idle": None,
        "parameters": 0,
        "version": 0,
        "checksum": "",
        "versions": {},
        "commit": None,
        "seed": point.seed,
        "host": {},
        "notes": [],
        "link": None,
        "origin": "",
    }


class Results:
    """The results file of a directory, held by one process at a time. A context manager."""

    def __init__(self, directory: Path) -> None:
        """Open it, or make it. A last line that was torn by a crash is cut off.

        Raises:
            ConfigError: the directory cannot be written to, or another process writes to it.
        """
        self.path = directory / RESULTS
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"--output {directory} cannot be written to: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.rows, whole_bytes = _parse(self.path)
            os.ftruncate(self._file, whole_bytes)
            os.lseek(self._file, 0, os.SEEK_END)
        except BlockingIOError:
            os.close(self._file)
            raise ConfigError(f"another comparison is writing to {self.path}: choose another --output") from None
        except BaseException:
            os.close(self._file)
            raise

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row. Durable when it returns; if it raises, the file is as it was.

        Raises:
            CoprocError: it cannot be written, for want of room, say.
        """
        line = (json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n").encode()
        whole_bytes = os.lseek(self._file, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
            os.fsync(self._file)
        except BaseException as error:
            os.ftruncate(self._file, whole_bytes)
            if not isinstance(error, OSError):
                raise
            raise CoprocError(
                f"{self.path} cannot be written ({error.strerror}); the {len(self.rows)} runs in it stay: make room, "
                "and go on with --resume"
            ) from None
        self.rows.append(dict(row))

    def done(self) -> dict[tuple[str, int], dict[str, Any]]:
        """By (id, repeat) the rows of what need not be run again."""
        return {(row["id"], row["repeat"]): row for row in self.rows if row["status"] in FINAL}

    def latest(self) -> list[dict[str, Any]]:
        """The rows, without those that were run again later."""
        return list({(row["id"], row["repeat"]): row for row in self.rows}.values())

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file; a torn last line is none.

    Raises:
        ConfigError: a line before the last is no row.
    """
    return _parse(path)[0]


def _parse(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(rows, bytes of whole lines)."""
    rows: list[dict[str, Any]] = []
    whole_bytes = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
            row["id"], row["repeat"], row["status"], row["point"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"line {number} of {path} is not a result ({error}): choose another --output") from None
        rows.append(row)
        whole_bytes += len(line)
    return rows, whole_bytes


def write_summary(directory: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a line a run: its point, what came of it, its numbers. Atomic.

    Raises:
        CoprocError: it cannot be written.
    """
    lines = [
        {
            **{name: _cell(value) for name, value in row["point"].items()},
            **{name: row[name] for name in ("id", "repeat", "status", "error", "began", "wall_s", "startup_s")},
            "cpu_idle": row["cpu_idle"],
            "parameters": row["parameters"],
            "commit": row["commit"],
            **metrics_of(row),
        }
        for row in rows
    ]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    path = directory / SUMMARY
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text.getvalue())
        temporary.replace(path)
    except OSError as error:
        raise CoprocError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _cell(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def host_facts() -> dict[str, Any]:
    """What this machine is, as far as it decides results."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": pages * page_bytes,
        "kernel": f"{platform.system()} {platform.release()}",
    }


def commit() -> str | None:
    """The commit of the code at work, with a + where files have been changed since; None where it is in no clone."""
    try:
        told = [
            subprocess.run(
                ["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True
            ).stdout.strip()
            for words in (
                ("rev-parse", "--short=12", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", "--", "."),
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return told[0] + "+" * bool(told[1])
