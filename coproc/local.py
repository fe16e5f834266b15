"""Descent in one process: the kernels that servers run, in place on memory of its own, without a server.

For the architectures in which a driver, or a worker, holds the model. Nothing is crash-safe here.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from coproc import optim
from coproc.errors import ConfigError
from coproc.layout import Flat, ParamLayout
from coproc.optim import norms
from coproc.optim.base import Constants, Row, Weights

T = TypeVar("T")

# Smaller parts take less time than to hand them to a thread.
_PART_FLOATS = 1 << 17
# As PyTorch's clip_grad_norm_: keeps the quotient finite.
_CLIP_EPSILON = 1e-6


class Descent:
    """The parameters of a model, or of a slice of one, and their optimizer. Used by one thread; a context manager."""

    def __init__(
        self,
        optimizer: optim.Optimizer,
        layout: ParamLayout,
        params: Flat,
        *,
        whole: slice | None = None,
        threads: int | None = None,
        rows: tuple[Row, ...] = (),
        begin: float = 0.0,
    ) -> None:
        """Copies `params`; the optimizer's state begins at 0.

        Args:
            layout: of the whole model.
            params: float32 (n,), all of it, or what lies at `whole` of it.
            threads: that share an update; None: one a core. What comes out is the same.
            rows: memory of the caller to descend in, parameters and state as they are there; `params` is the first.
            begin: of one thread, the share of the vector that it leaves for the end of an update.

        Raises:
            ConfigError: the optimizer goes by norms over all of the model, and this is a slice.
        """
        where = slice(0, layout.size) if whole is None else whole
        self._layerwise = optimizer if isinstance(optimizer, optim.Layerwise) else None
        if (self._layerwise or optimizer.clip_norm is not None) and where != slice(0, layout.size):
            raise ConfigError(
                f"{type(optimizer).__name__} goes by norms over the whole model here, and this architecture cuts it in "
                "slices that do not know each other: use another optimizer, no clip_norm, or another mode"
            )
        size = where.stop - where.start
        self.optimizer = optimizer
        self.updates = 0
        """Made so far."""
        self.busy_s = 0.0
        """Seconds in `step`."""
        self.learning_rate = optimizer.base_rate
        """Of the next update, before its schedule."""
        self.rows: tuple[Row, ...] = rows
        if not rows:
            self.rows = tuple([optim.aligned_row(size) for _ in range(1 + len(optimizer.state_rows))])
            self.rows[0][:] = params
        self._sweep = optim.compile_sweep(optimizer)
        self._warm: set[int] = set()
        count = min(threads or len(os.sched_getaffinity(0)), max(1, size // _PART_FLOATS))
        line = optim.LINE_FLOATS
        bounds = [size * n // count // line * line for n in range(count)] + [size]
        self._cuts = [slice(lo, hi) for lo, hi in pairwise(bounds)]
        first = int(size * begin) // line * line
        if count == 1 and first:
            self._cuts = [slice(first, size), slice(0, first)]
        self._scratches = [np.empty(optim.SCRATCH_FLOATS, np.float32) for _ in self._cuts]
        self._threads = ThreadPoolExecutor(count - 1, "descent") if count > 1 else None
        self._tensors = [(slice(lo, hi), len(shape) == 1) for _, lo, hi, shape in layout.ranges()]

    @property
    def params(self) -> Flat:
        """The parameters (n,) themselves: the next update changes them."""
        return self.rows[0]

    def warm(self, members: int) -> None:
        """Compile ahead, or load from the cache, what updates of one to `members` gradients need."""
        optim.warm(self.optimizer, optim.synchronous_counts(members), False)
        if self._layerwise is not None or self.optimizer.clip_norm is not None:
            norms.warm(self.optimizer, members)

    def step(self, gradients: Sequence[Row], examples: Sequence[int], losses: Sequence[float] = ()) -> None:
        """One update with the mean of `gradients` (n,) each, weighted by `examples`, summed in the order given.

        Args:
            losses: one each, for rules of combining that go by them.
        """
        if len(gradients) not in self._warm:  # what is loaded once is no part of an update's time
            optim.warm(self.optimizer, optim.synchronous_counts(len(gradients))[-1:], False)
            self._warm.add(len(gradients))
        began = time.perf_counter()
        total = sum(examples)
        losses = losses or [math.nan] * len(gradients)
        optimizer, members = self.optimizer, tuple(gradients)
        if optimizer.compensates:  # of what was computed on these parameters
            members += (self.params,) * len(members)
        shares = optimizer.combined([count / total for count in examples], losses)
        update = self.updates + 1
        rate = optimizer.rate_at(update, self.learning_rate)
        weights = optimizer.weights(shares)
        constants = optimizer.constants(update, rate)
        if self._layerwise is not None:
            self._by_tensor(self._layerwise, members, weights, constants, rate)
        else:
            if optimizer.clip_norm is not None:
                squares = self._in_parts(lambda part, scratch: self._squares(members, weights, part, scratch))
                norm = math.sqrt(sum(float(each[0]) for each in squares))
                weights = optimizer.weights(shares, min(1.0, optimizer.clip_norm / (norm + _CLIP_EPSILON)))
            self._in_parts(lambda part, scratch: self._apply(members, weights, constants, part, scratch))
        self.updates = update
        self.busy_s += time.perf_counter() - began

    def _by_tensor(
        self,
        optimizer: optim.Layerwise,
        members: tuple[Row, ...],
        weights: Weights,
        constants: Constants,
        rate: float,
    ) -> None:
        scratch = self._scratches[0]
        for part, vector in self._tensors:
            cut, front = _cut(members, part), _cut(self.rows, part)
            first, second = np.sqrt(norms.squares_of_layer(optimizer, cut, weights, constants, front, scratch)).tolist()
            own = optimizer.layer_constants(self.updates + 1, rate, (first, second), vector)
            self._apply(members, weights, own, part, scratch)

    def _squares(self, members: tuple[Row, ...], weights: Weights, part: slice, scratch: Row) -> NDArray[np.float64]:
        return norms.squares_of_gradient(_cut(members, part), weights, self.rows[0][part], scratch)

    def _apply(
        self, members: tuple[Row, ...], weights: Weights, constants: Constants, part: slice, scratch: Row
    ) -> None:
        rows = _cut(self.rows, part)
        optim.apply(self._sweep, (_cut(members, part),), (weights,), (constants,), rows, rows, scratch, False)

    def _in_parts(self, do: Callable[[slice, Row], T]) -> list[T]:
        parts = list(zip(self._cuts, self._scratches, strict=True))
        if self._threads is None:
            return [do(*part) for part in parts]
        others = [self._threads.submit(do, *part) for part in parts[1:]]
        return [do(*parts[0]), *(other.result() for other in others)]

    def close(self) -> None:
        """End the threads. Idempotent."""
        if self._threads is not None:
            self._threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _cut(rows: tuple[Row, ...], part: slice) -> tuple[Row, ...]:
    return tuple([row[part] for row in rows])
