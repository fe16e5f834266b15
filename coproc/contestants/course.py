"""A training as it is told: its epochs, and how far it is."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coproc.contestants.work import Work
from coproc.errors import Diverged
from coproc.layout import Flat
from coproc.trials.base import Run, Tell

# To look alive.
LOOK_S = 0.25


@dataclass
class Course:
    """The epochs of a training as they are told: their times without the validations, and what was measured."""

    work: Work
    evaluate: Callable[[Flat], dict[str, float]]
    groups: list[tuple[int, int, float, float]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    train_s: float = 0.0

    def over(self, began_s: float, ended_s: float, loss: float, flat: Flat) -> bool:
        """An epoch is over: measure it; whether that is enough.

        Args:
            loss: mean over the epoch's examples, each at the parameters of its step.

        Raises:
            Diverged: it, or what was measured, is not finite.
        """
        epoch = len(self.epochs)
        self.groups.append((epoch, 0, began_s, ended_s))
        self.train_s += ended_s - began_s
        require_finite(loss, epoch)
        measured = self.evaluate(flat)
        require_finite(measured["loss"], epoch)
        self.epochs.append({"epoch": epoch + 1, "train_s": self.train_s, "train_loss": loss, **measured})
        enough = self.work.enough(measured)
        if enough and epoch + 1 < len(self.work.rates):
            self.notes.append(f"ended after epoch {epoch + 1} of {len(self.work.rates)}: its target was reached")
        return enough


def require_finite(loss: float, epoch: int) -> None:
    """Raises Diverged for a loss that is not finite any more."""
    if not math.isfinite(loss):
        raise Diverged(
            f"training diverged: the loss is {loss} in epoch {epoch + 1}; try a learning rate ten times smaller, or "
            "check the scale of the features"
        )


def mean_loss(samples: Sequence[Sequence[Any]]) -> float:
    """Over the examples of some samples, as `Run` has them."""
    return float(sum(each[6] * each[7] for each in samples) / sum(each[6] for each in samples))


def run_of(values: Mapping[str, Any]) -> Run:
    """A run from the values that a process of a contestant has told."""
    tuples = {name: [tuple(each) for each in values[name]] for name in ("groups", "samples")}
    return Run(**{**values, **tuples})


@contextlib.contextmanager
def watched(work: Work, tell: Tell) -> Iterator[None]:
    """Tells a few times a second how far the processes of a work have come, while the caller waits for them."""
    ended = threading.Event()
    progress = work.progress()

    def look() -> None:
        while not ended.wait(LOOK_S):
            epoch, steps, loss = progress.tolist()
            if epoch:
                tell("training", epoch=int(epoch), steps=steps, loss=loss if math.isfinite(loss) else None)

    thread = threading.Thread(target=look, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10.0)
