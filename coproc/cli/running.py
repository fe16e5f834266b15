"""The progress of a comparison: one live table on a terminal, a line a run in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coproc.trials.base import labels
from coproc.trials.metrics import metrics_of

if TYPE_CHECKING:
    from coproc.compare.grid import Grid
    from coproc.compare.runner import Event


class Display:
    """Shows a comparison: one live table on a terminal, a line a run elsewhere. A context manager."""

    def __init__(self, grid: Grid, skipped: Mapping[str, str], console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._states = {id_: State(name, grid.repeats) for id_, name in labels(grid.points).items()}
        for point in grid.points:
            if point.id in skipped:
                self._states[point.id].words = "skipped"
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, event: Event) -> None:
        """Take what has happened to a run."""
        state = self._states[event.point.id]
        state.take(event)
        if self._live is None and event.kind == "ended":
            told = f"{state.name}, run {event.repeat + 1} of {state.repeats}: {state.words}"
            self._console.print(told, markup=False)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("contestant")
        table.add_column("runs", justify="right")
        table.add_column("state")
        table.add_column("steps/s", justify="right")
        table.add_column("elapsed", justify="right")
        # The one at work, and as many of its neighbours as there is room for.
        states = list(self._states.values())
        room = max(3, self._console.size.height - 3)
        at = next((place for place, each in enumerate(states) if each.running), 0)
        first = max(0, min(at - room // 2, len(states) - room))
        for state in states[first : first + room]:
            elapsed = f"{state.elapsed_s:.0f} s" if state.elapsed_s else ""
            rate = f"{state.steps_per_s:.1f}" if state.steps_per_s else ""
            style = "bold" if state.running else None
            runs = f"{state.done}/{state.repeats}"
            # What stands in brackets in an install line is no markup.
            table.add_row(Text(state.name), runs, Text(state.words), rate, elapsed, style=style)
        return table


class State:
    """Where the runs of one point are."""

    def __init__(self, name: str, repeats: int) -> None:
        self.name = name
        self.repeats = repeats
        self.done = 0
        self.words = "waiting"
        self.running = False
        self.steps_per_s = 0.0
        self._began_s = 0.0
        self._ended_s = 0.0
        self._first: tuple[float, float] | None = None

    @property
    def elapsed_s(self) -> float:
        """Of the run at work, or of the last one."""
        return (
            (time.monotonic() if self.running else self._ended_s) - self._began_s
            if self._ended_s or self.running
            else 0.0
        )

    def take(self, event: Event) -> None:
        """What has happened to its run."""
        if event.kind == "began":
            self.running, self._began_s, self._first, self.words = True, time.monotonic(), None, "starting"
        elif event.kind == "progress":
            told = event.progress
            self.words = f"epoch {told['epoch']}, {told['phase']}" if told["epoch"] else told["phase"]
            self._rate(told["moment_s"], told["steps"])
        else:  # now, or by a run before that is resumed
            self._ended_s = time.monotonic() if self.running else 0.0
            self.running = False
            status, error = event.row["status"], event.row["error"]
            self.done += status in ("ok", "skipped")
            self.words = f"{status}: {error}" if error else self._reached(event.row)

    def _rate(self, moment_s: float, steps: float) -> None:
        if steps and self._first is None:
            self._first = (moment_s, steps)
        elif self._first is not None and steps > self._first[1]:
            self.steps_per_s = (steps - self._first[1]) / (moment_s - self._first[0])

    def _reached(self, row: Mapping[str, Any]) -> str:
        told = metrics_of(row)
        self.steps_per_s = told.get("steps_per_s", 0.0)
        parts = [f"{self.steps_per_s:.1f} steps/s"] if self.steps_per_s else []
        parts += [f"accuracy {100 * told['final_accuracy']:.2f} %"] if "final_accuracy" in told else []
        return ", ".join(["ok", *parts])
