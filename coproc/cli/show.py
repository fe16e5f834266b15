"""The progress of a training on a terminal (one live line over the finished epochs) or in a log (lines)."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from coproc.cli.base import amount

if TYPE_CHECKING:
    from coproc.training.base import EpochRow, Progress

# In a log: often enough to see that it is alive, seldom enough to be read.
LOG_EVERY_S = 10.0


class Display:
    """Shows what `train` tells. A context manager; `update` may be called from any thread."""

    def __init__(self, stream: Any = None) -> None:
        """Live where `stream` (standard error) is a terminal, plain lines elsewhere."""
        from rich.console import Console

        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._live: Any = None
        self._task: Any = None
        self._phase = ""
        self._told_s = 0.0
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._task = self._live.add_task("starting", total=None, numbers="")
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
            self._told_s = time.monotonic()
        elif self._live is not None:
            training = progress.phase == "training"
            where = f"epoch {progress.epoch}/{progress.epochs}" if progress.epoch else progress.phase
            self._live.update(
                self._task,
                description=where if training or not progress.epoch else f"{where}, {progress.phase}",
                total=1.0 if progress.epoch else None,
                completed=progress.done,
                numbers=moment(progress) if training else "",
            )
        elif progress.phase == "training":
            if time.monotonic() - self._told_s >= LOG_EVERY_S:
                self._told_s = time.monotonic()
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
