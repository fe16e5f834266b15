"""Sums over a whole model that an update needs before it is swept, gathered from all of its shards.

Each shard measures its part, tells it in shared memory, and looks whether the others have told theirs. Nobody waits
in here: who finds one missing comes back later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coproc import optim
from coproc.optim import norms
from coproc.optim.base import Constants, Row, Weights
from coproc.shared.control import BELL
from coproc.shared.published import WAKE, Published
from coproc.shared.sums import Sums
from coproc.spec import ModelSpec
from storage_tier.words import Words, fence

# As PyTorch's clip_grad_norm_: keeps the quotient finite.
_CLIP_EPSILON = 1e-6


class Piece(NamedTuple):
    """A part of a shard that is swept with one set of constants."""

    part: slice
    """Of the shard."""
    tensor: int
    """Number of the tensor it lies in, where that matters, else 0."""
    streamed: bool


def pieces(spec: ModelSpec, lo: int, cuts: Sequence[slice], streamed: bool) -> list[list[Piece]]:
    """What each cut of the shard that begins at `lo` is swept in: whole, or tensor by tensor."""
    if not isinstance(spec.optimizer, optim.Layerwise):
        return [[Piece(cut, 0, streamed)] for cut in cuts]
    found: list[list[Piece]] = []
    for cut in cuts:
        found.append([])
        for tensor, (_, first, last, _) in enumerate(spec.layout.ranges()):
            start, stop = max(cut.start, first - lo), min(cut.stop, last - lo)
            # Streamed rows begin at whole lines.
            line = min(-(-start // optim.LINE_FLOATS) * optim.LINE_FLOATS, stop) if streamed else start
            if start < line:
                found[-1].append(Piece(slice(start, line), tensor, False))
            if line < stop:
                found[-1].append(Piece(slice(line, stop), tensor, streamed))
    return found


class Measuring:
    """Of one shard. Used by its thread only.

    Args:
        spec: of a model whose optimizer clips by the norm or goes by layers.
        number: of the shard.
        shards: all of them.
        bell: rung, with those of the shards, when this one has told its sums.
        members: the most that an update has.
    """

    def __init__(self, spec: ModelSpec, number: int, shards: Sequence[Published], bell: Words, members: int) -> None:
        self._optimizer = spec.optimizer
        self._number = number
        self._words = [shard.words for shard in shards]
        self._bell = bell
        self._vectors = [len(shape) == 1 for shape in spec.layout.shapes.values()]
        self._count = spec.sums_count
        self._sums = Sums.open(spec.sums_path, len(shards), self._count) if len(shards) > 1 else None
        self._measured: tuple[int, NDArray[np.float64]] = (0, np.zeros(0))
        norms.warm(spec.optimizer, members)

    def of(
        self,
        update: int,
        members: tuple[Row, ...],
        weights: Weights,
        constants: Constants,
        front: tuple[Row, ...],
        in_parts: Callable[[Callable[[list[Piece], Row], NDArray[np.float64]]], list[NDArray[np.float64]]],
    ) -> NDArray[np.float64] | None:
        """The sums over the whole model for an update, counted from 1; None as long as a shard has not told its own.

        Args:
            members: gradients, and bases where delays are compensated.
            weights, constants, front: as for the sweep of the shard.
            in_parts: calls a function with the pieces of each part of the shard and a scratch; its answers.
        """

        def part(pieces: list[Piece], scratch: Row) -> NDArray[np.float64]:
            found = np.zeros(self._count)
            for piece in pieces:
                rows = tuple([row[piece.part] for row in members])
                cut = tuple([row[piece.part] for row in front])
                if isinstance(self._optimizer, optim.Layerwise):
                    squares = norms.squares_of_layer(self._optimizer, rows, weights, constants, cut, scratch)
                    found[2 * piece.tensor : 2 * piece.tensor + 2] += squares
                else:
                    found += norms.squares_of_gradient(rows, weights, cut[0], scratch)
            return found

        if self._measured[0] != update:
            self._measured = update, np.sum(in_parts(part), axis=0)
            if self._sums is not None:
                self._sums.tell(self._number, update, self._measured[1])
                fence()
                for words in self._words:
                    words.ring(WAKE)
                self._bell.ring(BELL)
        return self._measured[1] if self._sums is None else self._sums.total(update)

    def scale(self, sums: NDArray[np.float64]) -> float:
        """What clipping by the norm multiplies the gradient by."""
        limit = self._optimizer.clip_norm
        assert limit is not None
        return min(1.0, limit / (math.sqrt(sums[0]) + _CLIP_EPSILON))

    def constants(self, step: int, learning_rate: float, sums: NDArray[np.float64]) -> list[Constants]:
        """Those of each tensor."""
        optimizer = self._optimizer
        assert isinstance(optimizer, optim.Layerwise)
        roots = np.sqrt(sums).reshape(-1, 2).tolist()
        return [
            optimizer.layer_constants(step, learning_rate, (first, second), vector)
            for (first, second), vector in zip(roots, self._vectors, strict=True)
        ]

    def close(self) -> None:
        """Unmap. Idempotent."""
        if self._sums is not None:
            self._sums.close()
