"""Applies a model's log to one shard: plan a pass, sweep it into the back, publish, wake who waits."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coproc import optim, probe
from coproc.consistency import Bsp
from coproc.descent import SWEEP_WIDTH, Sweep, plan_sweep
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared import seats
from coproc.shared.control import Control, Entry
from coproc.shared.published import Published
from coproc.shared.seats import Seat
from coproc.spec import ModelSpec
from storage_tier.errors import RegionNotFound

# Entries looked at for one pass: more than it can take, so that a pass is never short for want of looking.
_LOOK_AHEAD = 4 * SWEEP_WIDTH


# Memory is saturated by then.
_PARTS_AT_MOST = 4
_LINE = 16  # float32 elements of a cache line

_ALL: tuple[np.float32, ...] = (np.float32(1),)


def _shares(members: list[Entry]) -> tuple[np.float32, ...]:
    """Each member's share of the examples of its round."""
    if len(members) == 1:
        return _ALL
    total = sum(m.examples for m in members)
    return tuple([np.float32(m.examples / total) for m in members])


class MappedSeat(NamedTuple):
    """A seat as one shard sees it."""

    generation: int
    seat: Seat
    slots: list[NDArray[np.float32]]
    """The shard's range of each slot."""


class SeatMap:
    """The seats of a model as one shard's thread has mapped them; follows the seat table of the control region."""

    def __init__(self, spec: ModelSpec, control: Control, lo: int, hi: int) -> None:
        self._lo, self._hi = lo, hi
        self._spec = spec
        self._control = control
        self._changed = -1
        self.open: dict[int, MappedSeat] = {}
        """By number."""

    def refresh(self) -> None:
        """Map seats that were given and forget those that were taken back since the last look. One word if none."""
        changed = self._control.general.load(ctl.SEATS_CHANGED)
        if changed == self._changed:
            return
        for number in range(ctl.MAX_SEATS):
            state, _, generation, depth = self._control.seats.row(number * ctl.ROW, 4)
            known = self.open.get(number)
            if known is not None and (state != ctl.SEAT_OPEN or known.generation != generation):
                known.slots.clear()
                known.seat.close()
                del self.open[number]
                known = None
            if state == ctl.SEAT_OPEN and known is None:
                size = self._spec.layout.size if depth else 0
                try:
                    seat = Seat.open(self._spec.seat_path(number, generation), depth, size)
                except RegionNotFound:
                    # It was given back between the look at the table and now: the table has changed again.
                    changed = -1
                    continue
                self.open[number] = MappedSeat(generation, seat, [slot[self._lo : self._hi] for slot in seat.slots])
        self._changed = changed

    def close(self) -> None:
        """Unmap all seats: who holds one keeps its own map. Idempotent."""
        for mapped in self.open.values():
            mapped.slots.clear()
            mapped.seat.close()
        self.open.clear()

    def pins(self) -> list[int]:
        """The versions that readers hold."""
        return [pin for m in self.open.values() if (pin := m.seat.words.load(seats.PIN)) != seats.NO_PIN]


class Sweeper:
    """The only writer of one shard."""

    def __init__(self, spec: ModelSpec, number: int, control: Control, shard: Published, seat_map: SeatMap) -> None:
        self.number = number
        self.shard = shard
        self._spec = spec
        self._control = control
        self._seats = seat_map
        self._streamed = shard.size >= optim.STREAM_FROM
        self._kernel = optim.compile_sweep(spec.optimizer)
        # So many old versions may be held as views: one more, and no back buffer is left.
        self._views_of_old = spec.buffers - 2
        shard.words.store(pub.COPY_ONLY, int(self._views_of_old <= 0))
        self.blocked = False
        """The last pass found no back buffer: readers hold them all."""
        consistency = spec.consistency
        counts = optim.synchronous_counts(consistency.workers) if isinstance(consistency, Bsp) else []
        # Compiled before the model takes its first gradient, never inside a round.
        optim.warm(spec.optimizer, [*counts, *optim.ASYNCHRONOUS_COUNTS], self._streamed)
        # A large shard is swept in parts, a thread each: a round's workers wait meanwhile, so their cores are free.
        # The result does not depend on where it is cut.
        parts = min(_PARTS_AT_MOST, len(os.sched_getaffinity(0))) if self._streamed else 1
        bounds = [shard.size * n // parts // _LINE * _LINE for n in range(parts)] + [shard.size]
        self._cuts = [slice(lo, hi) for lo, hi in pairwise(bounds)]
        self._helpers = ThreadPoolExecutor(parts - 1, f"{spec.name}/{number}") if parts > 1 else None
        self._scratches = [np.empty(optim.SCRATCH_FLOATS, np.float32) for _ in self._cuts]
        shard.forget_unpublished()
        self.version, _, bank = shard.front()
        self.position, self._updates, self._rate = shard.bank_words(bank)
        shard.words.store(pub.APPLIED, self.position)

    def close(self) -> None:
        """End the helping threads and unmap the seats. Idempotent."""
        self._seats.close()
        if self._helpers is not None:
            self._helpers.shutdown()

    def advance(self) -> bool:
        """Apply what one pass over memory can; False if there is nothing, or readers hold every back buffer."""
        head = self._control.head
        if head == self.position:
            return False
        stop = min(head, self.position + _LOOK_AHEAD)
        entries = self._control.entries(self.position, stop)
        if entries[-1].following:  # a record is applied whole
            entries += self._control.entries(stop, stop + entries[-1].following)
        self._seats.refresh()
        pins = self._seats.pins()
        plan = plan_sweep(entries, self.position, self.version, pins)
        crowded = head - self.shard.kept_from > ctl.LOG_ENTRIES // 2
        if plan.updates or plan.version != self.version or crowded:
            if not self._sweep(plan, pins):
                return False
        elif plan.learning_rate_word is not None:
            self._rate = plan.learning_rate_word
        self.position, self.version = plan.position, plan.version
        self.shard.words.store(pub.APPLIED, self.position)
        return True

    def _sweep(self, plan: Sweep, pins: list[int]) -> bool:
        shard = self.shard
        back = shard.claim_back(pins, self._seats.pins)
        self.blocked = back is None
        if back is None:
            shard.words.store(pub.COPY_ONLY, 1)
            return False
        probe.hit("sweep.before")
        _, front, bank = shard.front()
        self._apply(plan, (shard.buffers[front], *shard.banks[bank]), (shard.buffers[back], *shard.banks[1 - bank]))
        self._updates += len(plan.updates)
        if plan.learning_rate_word is not None:
            self._rate = plan.learning_rate_word
        leased = {pin for pin in self._seats.pins() if pin != plan.version}
        shard.words.store(pub.COPY_ONLY, int(len(leased) >= self._views_of_old))
        probe.hit("publish.before")
        shard.publish(plan.version, back, 1 - bank, plan.position, self._updates, self._rate)
        probe.hit("publish.after")
        shard.words.ring(pub.BELL)
        return True

    def _apply(
        self, plan: Sweep, front: tuple[NDArray[np.float32], ...], back: tuple[NDArray[np.float32], ...]
    ) -> None:
        if not plan.updates:
            for source, target in zip(front, back, strict=True):
                target[:] = source
            return
        optimizer, rate = self._spec.optimizer, ctl.word_to_float(self._rate)
        seats_open = self._seats.open
        gradients = tuple([tuple([seats_open[m.seat].slots[m.slot] for m in members]) for members in plan.updates])
        weights = tuple([_shares(members) for members in plan.updates])
        first = self._updates + 1
        constants = tuple([optimizer.constants(first + i, rate) for i in range(len(plan.updates))])

        if not self._streamed and len(gradients[0]) <= optim.GRADIENTS_AT_ONCE:
            # Of a small shard the checks of `apply` cost more than the sweep; these rows fit as they were made.
            self._kernel(gradients, weights, constants, front, back, None)
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
            optim.apply(self._kernel, *rows, self._scratches[number], self._streamed)

        others = [self._helpers.submit(part, n) for n in range(1, len(self._cuts))] if self._helpers else []
        part(0)
        probe.hit("sweep.middle")
        for other in others:
            other.result()
