"""The seats of a model as one shard's thread has mapped them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coproc.server.drain import DEPTH, LINES, SEAT_WORDS, SLOTS, STRIDE, WORDS, WORKER
from coproc.shared import control as ctl
from coproc.shared.control import Control
from coproc.shared.seats import Seat
from coproc.spec import ModelSpec
from storage_tier.errors import RegionNotFound


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
        self.table = np.zeros((ctl.MAX_SEATS, SEAT_WORDS), np.int64)
        """The same for compiled code: a row a number, words as in `drain`."""
        self.order = np.zeros(ctl.MAX_SEATS, np.int64)
        """The numbers of all mapped seats, by worker: the order in which commits that wait are taken."""

    def refresh(self) -> bool:
        """Map seats that were given since the last look and forget those taken back; True if any was given."""
        changed = self._control.general.load(ctl.SEATS_CHANGED)
        if changed == self._changed:
            return False
        given = False
        for number in range(ctl.MAX_SEATS):
            state, worker, generation, depth = self._control.seats.row(number * ctl.ROW, 4)
            known = self.open.get(number)
            if known is not None and (state != ctl.SEAT_OPEN or known.generation != generation):
                self.table[number] = 0
                known.slots.clear()
                known.seat.close()
                del self.open[number]
                known = None
            if state == ctl.SEAT_OPEN and known is None:
                size = self._spec.slot_floats if depth else 0
                try:
                    seat = Seat.open(self._spec.seat_path(number, generation), depth, size)
                except RegionNotFound:
                    # It was given back between the look at the table and now: the table has changed again.
                    changed = -1
                    continue
                self._add(number, worker, MappedSeat(generation, seat, [s[self._lo : self._hi] for s in seat.slots]))
                given = True
        numbers = sorted(self.open, key=lambda number: (self.table[number, WORKER], number))
        self.order[: len(numbers)] = numbers
        self._changed = changed
        return given

    def adopt(self, number: int, seat: Seat) -> None:
        """Take a seat that this process has just made and entered into the table as mapped, and refresh."""
        _, worker, generation, _ = self._control.seats.row(number * ctl.ROW, 4)
        self._add(number, worker, MappedSeat(generation, seat, [s[self._lo : self._hi] for s in seat.slots]))
        self._changed = -1
        self.refresh()

    def _add(self, number: int, worker: int, mapped: MappedSeat) -> None:
        self.open[number] = mapped
        row = self.table[number]
        row[WORDS], row[LINES], row[WORKER] = mapped.seat.words.address, mapped.seat.lines_address, worker
        row[DEPTH] = mapped.seat.depth
        if mapped.slots:
            row[SLOTS], row[STRIDE] = mapped.slots[0].ctypes.data, mapped.seat.stride_bytes

    def close(self) -> None:
        """Unmap all seats: who holds one keeps its own map. Idempotent."""
        for mapped in self.open.values():
            mapped.slots.clear()
            mapped.seat.close()
        self.open.clear()
