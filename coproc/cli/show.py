"""The progress of a training on a terminal (one live line over the finished epochs) or in a log (lines)."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Live
from rich.progress_bar import ProgressBar

from coproc.cli.base import amount

if TYPE_CHECKING:
    from coproc.training.base import EpochRow, Progress

# In a log: often enough to see that it is alive, seldom enough to be read.
LOG_EVERY_S = 10.0


class Share(BarColumn):
    """The bar, of a share that is kept beside rich's own count of what is done.

    A task whose count has reached its total is finished for rich: its clock and its spinner stop, and go on only
    with the clock at zero. A run reaches the end of an epoch many times, so its one task has no total.
    """

    def render(self, task: Task) -> ProgressBar:
        share: float | None = task.fields["share"]
        return ProgressBar(
            total=None if share is None else 1.0,
            completed=share or 0.0,
            width=self.bar_width,
            animation_time=task.get_time(),
        )


class Display:
    """Shows what `train` tells. A context manager; `update` may be called from any thread."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Live where `console` (standard error) is a terminal, plain lines elsewhere. `clock` tells seconds."""
        self._console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._clock = clock
        self._live: Live | None = None
        self._task = TaskID(0)
        self._phase = ""
        self._told_s = -math.inf
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                Share(bar_width=16),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
                get_time=clock,
            )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._task = self._live.add_task("starting", total=None, share=None, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, progress: Progress) -> None:
        """Show a moment of the run; a finished epoch becomes a line that stays."""
        if progress.row is not None:
            self._console.print(epoch_line(progress.row, progress.epochs))
            self._told_s = self._clock()
        elif self._live is not None:
            training = progress.phase == "training"
            where = f"epoch {progress.epoch}/{progress.epochs}" if progress.epoch else progress.phase
            self._live.update(
                self._task,
                description=where if training or not progress.epoch else f"{where}, {progress.phase}",
                share=progress.done if progress.epoch else None,
                numbers=moment(progress) if training else "",
                refresh=True,
            )
        elif progress.phase == "training":
            if self._clock() - self._told_s >= LOG_EVERY_S:
                self._told_s = self._clock()
                share = f"{100 * progress.done:.0f} % of epoch {progress.epoch}/{progress.epochs}"
                self._console.print(f"  {share}  {moment(progress)}")
        elif progress.phase != self._phase and progress.phase != "measuring":
            self._phase = progress.phase
            self._console.print(f"{progress.phase} …")


def moment(progress: Progress) -> str:
    """What is known within an epoch."""
    loss = f"loss {progress.loss:.4f}" if math.isfinite(progress.loss) else "loss ?"
    return f"{loss}  {amount(progress.examples_per_s)} examples/s  staleness {progress.staleness_mean:.1f}"


def epoch_line(row: EpochRow, epochs: int) -> str:
    """A finished epoch in one line."""
    parts = [f"epoch {row.epoch:>{len(str(epochs))}}/{epochs}", f"loss {row.loss:.4f}"]
    parts += [measure(name, value) for name, value in row.metrics.items() if name != "loss"]
    parts += [f"{amount(row.examples_per_s)} examples/s", f"staleness {row.staleness_mean:.1f}"]
    if row.duplicates:
        parts.append(f"{row.duplicates} duplicate pushes dropped")
    return "  ".join(parts)


def measure(name: str, value: float) -> str:
    """A metric as people read it."""
    return f"{name} {100 * value:.2f} %" if name == "accuracy" else f"{name} {value:.4f}"
