"""Applies a model's log to one shard: plan a pass, sweep it into the back, publish, wake who waits."""

from __future__ import annotations

import functools
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from coproc import optim, probe
from coproc.consistency import Bsp
from coproc.descent import (
    HAS_RATE,
    NEXT_VERSION,
    PLAN_WORDS,
    SWEEP_WIDTH,
    UPDATES,
    plan_sweep,
)
from coproc.descent import POSITION as PLAN_POSITION
from coproc.descent import RATE as PLAN_RATE
from coproc.optim.base import Constants, Weights
from coproc.server import passes
from coproc.server.drain import CROWDED
from coproc.server.kernels import kernel_of
from coproc.server.measuring import Measuring, Piece, pieces
from coproc.server.passes import EVER, POSITION, RATE, STATE_WORDS, VERSION, WIDTH
from coproc.server.seatmap import SeatMap
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared.control import Control, Entry, Kind
from coproc.shared.published import Published
from coproc.spec import ModelSpec

# Memory is saturated by then.
_PARTS_AT_MOST = 4
_LINE = 16  # float32 elements of a cache line

# Parameters up to which a pass takes less time than the Python around it: such are made in `coproc.server.passes`.
# Their rows stay in the cache while updates follow each other.
SMALL = 1 << 14

T = TypeVar("T")
Rows = tuple[NDArray[np.float32], ...]

_ALL: tuple[float, ...] = (1.0,)

_plan = passes.compiled_step(plan_sweep)
_claim_back = passes.compiled_step(passes.claim_back)
_publish = passes.compiled_step(passes.publish)
_pins = passes.compiled_step(passes.pins)


@functools.cache
def _warm() -> None:
    """Compile the steps of a pass, or load them, on memory that is nobody's."""
    words = np.zeros(2 * pub.MAX_BUFFERS + pub.BANKS, np.int64)
    state, plan = np.zeros(STATE_WORDS, np.int64), np.zeros(PLAN_WORDS, np.int64)
    state[:3] = words.ctypes.data, 1, 2
    table, log = np.zeros((1, ctl.ROW), np.int64), np.zeros((1, ctl.ROW), np.int64)
    room = np.zeros(1, np.int64)
    _plan(log, 0, 0, 0, room, _pins(table, room, 0, room), SWEEP_WIDTH, plan)
    nothing_armed = np.zeros_like(probe.left)
    _publish(state, 1, _claim_back(state, table, room, 0, room, room), 0, table, room, 0, room, nothing_armed)


def _shares(members: list[Entry]) -> tuple[float, ...]:
    """Each member's share of the examples of its round."""
    if len(members) == 1:
        return _ALL
    total = sum(m.examples for m in members)
    return tuple([m.examples / total for m in members])


def _updates(entries: list[Entry]) -> list[list[Entry]]:
    """The members that have a gradient, of each record that has one."""
    updates: list[list[Entry]] = []
    start = 0
    while start < len(entries):
        stop = start + entries[start].following + 1
        members = [m for m in entries[start:stop] if m.kind == Kind.DESCEND and m.examples]
        if members:
            updates.append(members)
        start = stop
    return updates


class _Inputs(NamedTuple):
    gradients: tuple[Rows, ...]
    weights: tuple[Weights, ...]
    constants: tuple[Constants, ...]
    tensors: list[Constants] | None
    """The constants of each tensor, for one update, where they differ."""


class Sweeper:
    """The only writer of one shard."""

    def __init__(
        self, spec: ModelSpec, number: int, control: Control, shards: Sequence[Published], seat_map: SeatMap
    ) -> None:
        self.number = number
        self.shard = shard = shards[number]
        self._spec = spec
        self._control = control
        self._seats = seat_map
        self._streamed = shard.size >= optim.STREAM_FROM
        self._sweep_rows = optim.compile_sweep(spec.optimizer)
        self.blocked = False
        """The last pass found no back buffer, for readers hold them all; or other shards have not measured theirs."""
        rounds_of = spec.consistency.workers if isinstance(spec.consistency, Bsp) else 1
        # Passes of single gradients over a small shard are compiled as a whole; rounds never wait for each other. What
        # is left, pushes that wait for a larger shard, goes together.
        plain = spec.optimizer.is_plain and not spec.sums_count
        self.small = shard.size <= SMALL and rounds_of == 1 and plain
        self._width = 1
        if not (self.small or rounds_of > 1 or spec.sums_count):
            self._width = SWEEP_WIDTH // 2 if spec.optimizer.compensates else SWEEP_WIDTH
        several = optim.ASYNCHRONOUS_COUNTS[: self._width]
        self._compile(several if self._width > 1 else optim.synchronous_counts(rounds_of))
        # A large shard is swept in parts, a thread each, where its workers wait meanwhile and leave their cores free;
        # else all others on the host would wait for one. The result does not depend on where it is cut.
        waited_for = self._streamed and isinstance(spec.consistency, Bsp)
        parts = min(_PARTS_AT_MOST, len(os.sched_getaffinity(0))) if waited_for else 1
        bounds = [shard.size * n // parts // _LINE * _LINE for n in range(parts)] + [shard.size]
        self._cuts = [slice(lo, hi) for lo, hi in pairwise(bounds)]
        self._helpers = ThreadPoolExecutor(parts - 1, f"{spec.name}/{number}") if parts > 1 else None
        self._pieces = pieces(spec, spec.shards[number].lo, self._cuts, self._streamed)
        self._scratches = [np.empty(optim.SCRATCH_FLOATS, np.float32) for _ in self._cuts]
        self._measuring = None
        if spec.sums_count:
            self._measuring = Measuring(spec, number, shards, control.general, rounds_of)

        shard.forget_unpublished()
        version, _, bank = shard.front()
        position, updates, rate = shard.bank_words(bank)
        # So many old versions may be held as views: one more, and no back buffer is left.
        views_of_old = spec.buffers - 2
        words = shard.words
        words.store(pub.COPY_ONLY, int(views_of_old <= 0))
        words.store(pub.APPLIED, position)

        # What compiled passes need; see `coproc.server.passes`.
        self.kernel = kernel_of(spec.optimizer) if self.small else None
        self.state = np.zeros(STATE_WORDS, np.int64)
        self.state[:10] = words.address, shard.size, spec.buffers, position, version, updates, rate, views_of_old, 0, 0
        self.rows = np.array([buffer.ctypes.data for buffer in shard.buffers], np.int64)
        self.banks = np.array([[row.ctypes.data for row in bank] for bank in shard.banks], np.int64).reshape(2, -1)
        self.constants = np.zeros((WIDTH, self.kernel.constants_count if self.kernel else 0), np.float32)
        self.held, self.again = np.zeros((2, ctl.MAX_SEATS), np.int64)
        self.plan = np.zeros(PLAN_WORDS, np.int64)
        self.work = np.zeros((2, 1 + self.banks.shape[1]), np.int64)
        self._fill_constants()

    def _compile(self, counts: list[tuple[int, int]]) -> None:
        """Compile what sweeps need before the model takes its first gradient, never inside a round.

        A server that comes back finds it on disk and loads the commonest shape only: it is to serve within a second.
        The others follow beside it; until they are there, pushes that wait are swept one by one.
        """
        optimizer, streamed = self._spec.optimizer, self._streamed
        _, updates, _ = self.shard.bank_words(self.shard.front()[2])
        _warm()
        if not updates:
            optim.warm(optimizer, counts, streamed)
            return
        width, rounds = self._width, counts[-1][1] > 1
        first = counts[-1] if rounds else counts[0]
        optim.warm(optimizer, [first], streamed)
        self._width = 1

        def load_others() -> None:
            optim.warm(optimizer, counts, streamed)
            self._width = width

        threading.Thread(target=load_others, name=f"{self._spec.name}/{self.number} loads", daemon=True).start()

    @property
    def position(self) -> int:
        """How far the log is applied."""
        return int(self.state[POSITION])

    def close(self) -> None:
        """End the helping threads and unmap the seats. Idempotent."""
        self._seats.close()
        if self._measuring is not None:
            self._measuring.close()
        if self._helpers is not None:
            self._helpers.shutdown()

    def _fill_constants(self) -> None:
        """For the next updates of a small shard, at the rate that is in force."""
        optimizer, state = self._spec.optimizer, self.state
        if not self.small:
            return
        first, rate = int(state[passes.UPDATES]) + 1, ctl.word_to_float(int(state[RATE]))
        count = WIDTH if optimizer.varies else 1
        for i in range(count):
            self.constants[i] = optimizer.constants(first + i, optimizer.rate_at(first + i, rate))
        state[passes.CONSTANTS_FIRST] = first
        state[passes.CONSTANTS_COUNT] = WIDTH if optimizer.varies else EVER

    def advance(self) -> bool:
        """Apply what one pass over memory can; False if there is nothing, or readers hold every back buffer."""
        head, state, seats, plan = self._control.due, self.state, self._seats, self.plan
        position, version = int(state[POSITION]), int(state[VERSION])
        if head == position:
            return False
        seats.refresh()
        count = len(seats.open)
        pinned = _pins(seats.table, seats.order, count, self.held)
        _plan(self._control.log, position, head, version, self.held, pinned, self._width, plan)
        crowded = head - self.shard.kept_from > CROWDED
        updates, next_version, stop = int(plan[UPDATES]), int(plan[NEXT_VERSION]), int(plan[PLAN_POSITION])
        rate = int(plan[PLAN_RATE]) if plan[HAS_RATE] else int(state[RATE])
        if updates or next_version != version or crowded:
            entries = self._control.entries(position, stop)
            if not self._sweep(_updates(entries), next_version, stop, rate):
                return False
        state[POSITION], state[VERSION], state[RATE] = stop, next_version, rate
        self._fill_constants()
        self.shard.words.store(pub.APPLIED, stop)
        return True

    def _claim(self) -> int:
        seats = self._seats
        while True:
            back: int = _claim_back(self.state, seats.table, seats.order, len(seats.open), self.held, self.again)
            # Who has come in between may look at what was just claimed.
            if not seats.refresh():
                return back

    def _sweep(self, updates: list[list[Entry]], version: int, position: int, rate: int) -> bool:
        shard, state, seats = self.shard, self.state, self._seats
        began_ns = time.monotonic_ns()
        _, buffer, bank = shard.front()
        front = shard.buffers[buffer], *shard.banks[bank]
        inputs = self._inputs(updates, front) if updates else None
        back = self._claim() if inputs is not None or not updates else -1
        self.blocked = back < 0
        if self.blocked:
            return False
        probe.hit("sweep.before")
        behind = shard.buffers[back], *shard.banks[1 - bank]
        if inputs is not None:
            self._apply(inputs, front, behind)
        else:
            for source, target in zip(front, behind, strict=True):
                target[:] = source
        state[passes.UPDATES] += len(updates)
        state[RATE] = rate
        shard.words.store(pub.SWEPT_NS, shard.words.load(pub.SWEPT_NS) + time.monotonic_ns() - began_ns)
        _publish(state, version, back, position, seats.table, seats.order, len(seats.open), self.held, probe.left)
        return True

    def _inputs(self, updates: list[list[Entry]], front: Rows) -> _Inputs | None:
        """What the sweep of these updates needs; None while that hangs on other shards."""
        optimizer, base_rate = self._spec.optimizer, ctl.word_to_float(int(self.state[RATE]))
        first = int(self.state[passes.UPDATES]) + 1
        seats_open = self._seats.open
        gradients = tuple([tuple([seats_open[m.seat].slots[m.slot] for m in members]) for members in updates])
        shares = [optimizer.combined(_shares(members), self._losses(members)) for members in updates]
        based: list[list[bool] | None] = [None] * len(updates)
        if optimizer.compensates:
            found = [self._bases(members, front[0]) for members in updates]
            gradients = tuple([g + bases for g, (bases, _) in zip(gradients, found, strict=True)])
            based = [known for _, known in found]
        weights = [optimizer.weights(each, based=known) for each, known in zip(shares, based, strict=True)]
        rates = [optimizer.rate_at(first + i, base_rate) for i in range(len(updates))]
        if optimizer.staleness == "inverse":
            rates = [rate / self._staleness(members) for rate, members in zip(rates, updates, strict=True)]
        constants = [optimizer.constants(first + i, rate) for i, rate in enumerate(rates)]
        tensors = None
        if self._measuring is not None:
            sums = self._measuring.of(first, gradients[0], weights[0], constants[0], front, self._measure_parts)
            if sums is None:
                return None
            if optimizer.clip_norm is not None:
                weights = [optimizer.weights(shares[0], self._measuring.scale(sums), based[0])]
            else:
                tensors = self._measuring.constants(first, rates[0], sums)
        return _Inputs(gradients, tuple(weights), tuple(constants), tensors)

    def _bases(self, members: list[Entry], params: NDArray[np.float32]) -> tuple[Rows, list[bool]]:
        """What these gradients were computed on, in the shard's range, and of which it is known: else any row."""
        place, at = self._spec.shards[self.number], self._spec.base_at
        part = slice(at + place.lo, at + place.hi)
        held = [self._seats.open[m.seat].seat for m in members]
        # Who has not read anything has told no base.
        known = [seat.read_line(m.slot).read_version >= 0 for seat, m in zip(held, members, strict=True)]
        bases = [
            seat.slots[m.slot][part] if told else params for seat, m, told in zip(held, members, known, strict=True)
        ]
        return tuple(bases), known

    def _losses(self, members: list[Entry]) -> list[float]:
        if len(members) == 1:
            return [math.nan]  # there is nothing to choose from
        return [self._seats.open[m.seat].seat.read_line(m.slot).loss for m in members]

    def _staleness(self, members: list[Entry]) -> float:
        """How many versions old the parameters of these gradients were, at least 1: the mean over their examples."""
        total = 0
        for m in members:
            read = self._seats.open[m.seat].seat.read_line(m.slot).read_version
            # Version n is made of what was descended onto version n - 1. Who has not read anything is not stale.
            total += m.examples * (max(1, m.version - 1 - read) if read >= 0 else 1)
        return total / sum(m.examples for m in members)

    def _measure_parts(
        self, measure: Callable[[list[Piece], NDArray[np.float32]], NDArray[np.float64]]
    ) -> list[NDArray[np.float64]]:
        return self._in_parts(lambda number: measure(self._pieces[number], self._scratches[number]))

    def _apply(self, inputs: _Inputs, front: Rows, back: Rows) -> None:
        gradients, weights, constants, tensors = inputs
        if not self._streamed and tensors is None and len(gradients[0]) <= optim.GRADIENTS_AT_ONCE:
            # Of a small shard the checks of `apply` cost more than the sweep; these rows fit as they were made.
            self._sweep_rows(gradients, weights, constants, front, back, None)
            probe.hit("sweep.middle")
            return

        def sweep(number: int) -> None:
            """One of the parts; without the interpreter lock."""
            for part, tensor, streamed in self._pieces[number]:
                cut_gradients = tuple([tuple([g[part] for g in members]) for members in gradients])
                optim.apply(
                    self._sweep_rows,
                    cut_gradients,
                    weights,
                    constants if tensors is None else (tensors[tensor],),
                    tuple([row[part] for row in front]),
                    tuple([row[part] for row in back]),
                    self._scratches[number],
                    streamed,
                )

        self._in_parts(sweep, between=lambda: probe.hit("sweep.middle"))

    def _in_parts(self, work: Callable[[int], T], between: Callable[[], None] | None = None) -> list[T]:
        """Do the work of all parts, a thread each; the first here, and then `between`."""
        others = [self._helpers.submit(work, n) for n in range(1, len(self._cuts))] if self._helpers else []
        results = [work(0)]
        if between is not None:
            between()
        return results + [other.result() for other in others]
