"""What attempts say that they did, and what a model may therefore hold: the bookkeeping of a run of kills.

Nothing in here asks the model. Each attempt notes a push before it begins and after it was acknowledged, in a file that
its death does not touch. Times are of one clock for all processes of the host.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from pathlib import Path

# Kinds of notes. JOINED has the first step; the others a step and the value that was pushed.
JOINED, BEGAN, ACKNOWLEDGED = range(3)
NOTE = struct.Struct("<4q")
"""Kind, step, value, time in ns."""

STRIDE = 8
"""Values of one step are alike modulo this, whoever pushes it: then so is the sum, whoever wins."""


def value_of(attempt: int, worker: int, step: int) -> int:
    """What an attempt pushes, the same in all elements."""
    return STRIDE * attempt + ((step * 2654435761 >> 9) + 3 * worker) % STRIDE


class History:
    """All pushes of one life of a model: from its making, or its last restoration, to the next one."""

    def __init__(self) -> None:
        self._began: dict[tuple[int, int], set[int]] = defaultdict(set)
        self._acknowledged: dict[int, int] = defaultdict(int)

    def begin(self, worker: int, step: int, value: int) -> None:
        """An attempt is about to push."""
        self._began[worker, step].add(value)

    def acknowledge(self, worker: int, step: int) -> None:
        """An attempt's push has returned."""
        self._acknowledged[worker] = max(self._acknowledged[worker], step + 1)

    def candidates(self, worker: int, step: int) -> set[int]:
        """The values of which one is in the model, if the step is: of all who have begun to push it.

        The first one that the server sees counts. What an attempt is told of its twin, and when, is a hint.
        """
        return self._began.get((worker, step), set())

    def acknowledged(self) -> dict[int, int]:
        """worker -> one past the last of its steps that was acknowledged to anybody."""
        return dict(self._acknowledged)


def read(notes: dict[Path, int], restored_ns: list[int]) -> list[History]:
    """The lives of a model, the first one first.

    Args:
        notes: file -> worker, one a process.
        restored_ns: before any attempt of the next life had joined. Who had joined earlier pushes nothing in it: it is
            told to join again.
    """
    lives = [History() for _ in range(len(restored_ns) + 1)]
    for path, worker in notes.items():
        life = lives[0]
        for kind, step, value, when_ns in NOTE.iter_unpack(path.read_bytes()):
            if kind == JOINED:
                life = lives[sum(when_ns > each for each in restored_ns)]
            elif kind == BEGAN:
                life.begin(worker, step, value)
            else:
                life.acknowledge(worker, step)
    return lives


def can_be(total: int, parts: list[tuple[int, set[int]]]) -> bool:
    """Whether `total` is a sum of weight x one of the values of each part: (weight, values alike modulo `STRIDE`)."""
    rest, reached = total, 1
    for weight, values in parts:
        least, *others = sorted(values)
        rest -= weight * least
        shifts = [weight * (each - least) // STRIDE for each in others]
        for one in [reached << shift for shift in shifts]:
            reached |= one
    return rest >= 0 and rest % STRIDE == 0 and bool(reached >> rest // STRIDE & 1)
