"""Applies a model's log to one shard: plan a pass, sweep it into the back, publish, wake who waits."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

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
from coproc.server import passes
from coproc.server.drain import CROWDED
from coproc.server.kernels import kernel_of
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

_ALL: tuple[np.float32, ...] = (np.float32(1),)

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


def _shares(members: list[Entry]) -> tuple[np.float32, ...]:
    """Each member's share of the examples of its round."""
    if len(members) == 1:
        return _ALL
    total = sum(m.examples for m in members)
    return tuple([np.float32(m.examples / total) for m in members])


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


class Sweeper:
    """The only writer of one shard."""

    def __init__(self, spec: ModelSpec, number: int, control: Control, shard: Published, seat_map: SeatMap) -> None:
        self.number = number
        self.shard = shard
        self._spec = spec
        self._control = control
        self._seats = seat_map
        self._streamed = shard.size >= optim.STREAM_FROM
        self._sweep_rows = optim.compile_sweep(spec.optimizer)
        self.blocked = False
        """The last pass found no back buffer: readers hold them all."""
        rounds_of = spec.consistency.workers if isinstance(spec.consistency, Bsp) else 1
        # Passes of single gradients over a small shard are compiled as a whole; rounds never wait for each other. What
        # is left, pushes that wait for a larger shard, goes together.
        self.small = shard.size <= SMALL and rounds_of == 1
        self._width = 1 if self.small or rounds_of > 1 else SWEEP_WIDTH
        counts = optim.ASYNCHRONOUS_COUNTS if self._width > 1 else optim.synchronous_counts(rounds_of)
        # Compiled before the model takes its first gradient, never inside a round.
        optim.warm(spec.optimizer, counts, self._streamed)
        _warm()
        # A large shard is swept in parts, a thread each: a round's workers wait meanwhile, so their cores are free.
        # The result does not depend on where it is cut.
        parts = min(_PARTS_AT_MOST, len(os.sched_getaffinity(0))) if self._streamed else 1
        bounds = [shard.size * n // parts // _LINE * _LINE for n in range(parts)] + [shard.size]
        self._cuts = [slice(lo, hi) for lo, hi in pairwise(bounds)]
        self._helpers = ThreadPoolExecutor(parts - 1, f"{spec.name}/{number}") if parts > 1 else None
        self._scratches = [np.empty(optim.SCRATCH_FLOATS, np.float32) for _ in self._cuts]

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

    @property
    def position(self) -> int:
        """How far the log is applied."""
        return int(self.state[POSITION])

    def close(self) -> None:
        """End the helping threads and unmap the seats. Idempotent."""
        self._seats.close()
        if self._helpers is not None:
            self._helpers.shutdown()

    def _fill_constants(self) -> None:
        """For the next updates of a small shard, at the rate that is in force."""
        optimizer, state = self._spec.optimizer, self.state
        if not self.small:
            return
        first, rate = int(state[passes.UPDATES]) + 1, ctl.word_to_float(int(state[RATE]))
        count = WIDTH if optimizer.counts_updates else 1
        for i in range(count):
            self.constants[i] = optimizer.constants(first + i, rate)
        state[passes.CONSTANTS_FIRST] = first
        state[passes.CONSTANTS_COUNT] = WIDTH if optimizer.counts_updates else EVER

    def advance(self) -> bool:
        """Apply what one pass over memory can; False if there is nothing, or readers hold every back buffer."""
        head, state, seats, plan = self._control.head, self.state, self._seats, self.plan
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
        back = self._claim()
        self.blocked = back < 0
        if self.blocked:
            return False
        probe.hit("sweep.before")
        _, front, bank = shard.front()
        self._apply(updates, (shard.buffers[front], *shard.banks[bank]), (shard.buffers[back], *shard.banks[1 - bank]))
        state[passes.UPDATES] += len(updates)
        state[RATE] = rate
        _publish(state, version, back, position, seats.table, seats.order, len(seats.open), self.held, probe.left)
        return True

    def _apply(
        self, updates: list[list[Entry]], front: tuple[NDArray[np.float32], ...], back: tuple[NDArray[np.float32], ...]
    ) -> None:
        if not updates:
            for source, target in zip(front, back, strict=True):
                target[:] = source
            return
        optimizer, rate = self._spec.optimizer, ctl.word_to_float(int(self.state[RATE]))
        seats_open = self._seats.open
        gradients = tuple([tuple([seats_open[m.seat].slots[m.slot] for m in members]) for members in updates])
        weights = tuple([_shares(members) for members in updates])
        first = int(self.state[passes.UPDATES]) + 1
        constants = tuple([optimizer.constants(first + i, rate) for i in range(len(updates))])

        if not self._streamed and len(gradients[0]) <= optim.GRADIENTS_AT_ONCE:
            # Of a small shard the checks of `apply` cost more than the sweep; these rows fit as they were made.
            self._sweep_rows(gradients, weights, constants, front, back, None)
            probe.hit("sweep.middle")
            return

        def part(number: int) -> None:
            """Sweep one of the parts; without the interpreter lock."""
            if len(self._cuts) == 1:
                rows = gradients, weights, constants, front, back
            else:
                cut = self._cuts[number]
                cut_gradients = tuple([tuple([g[cut] for g in members]) for members in gradients])
                fronts, backs = tuple([x[cut] for x in front]), tuple([x[cut] for x in back])
                rows = cut_gradients, weights, constants, fronts, backs
            optim.apply(self._sweep_rows, *rows, self._scratches[number], self._streamed)

        others = [self._helpers.submit(part, n) for n in range(1, len(self._cuts))] if self._helpers else []
        part(0)
        probe.hit("sweep.middle")
        for other in others:
            other.result()
