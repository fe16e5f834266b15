"""A model whose threads stand still: each turn of its sequencer and of its shards happens when the test says so.

So moments that last a microsecond in a server can be looked at: a record that one shard has applied and another has
not, a slot between two stores, a restart in between.
"""

from __future__ import annotations

import itertools
import resource
import time
from pathlib import Path

import numpy as np

from coproc import near, optim
from coproc.layout import ParamLayout
from coproc.server import loop
from coproc.server.seatmap import SeatMap
from coproc.server.sequencing import SequencerLoop
from coproc.server.sweeper import Sweeper
from coproc.shared import control as ctl
from coproc.shared import seats
from coproc.shared.control import Control
from coproc.shared.published import Published
from coproc.shared.seats import Seat
from coproc.spec import ModelSpec, ShardPlace
from storage_tier.budget import Budget

SIZE = 32  # floats of a shard


class Still:
    """A model of `shards` small shards. `start` does what a server does, but for its threads."""

    def __init__(self, directory, consistency, *, optimizer=None, shards=1, buffers=4):
        optimizer = optimizer or optim.SGD(learning_rate=1.0)
        cuts = range(0, SIZE * shards + 1, SIZE)
        places = [ShardPlace(lo, hi, "here:1", f"{directory}/shard-{lo}") for lo, hi in itertools.pairwise(cuts)]
        layout = ParamLayout({"w": (SIZE * shards,)})
        self.spec = ModelSpec(
            "still", layout, optimizer, consistency, 4, buffers, "0" * 16, str(directory), tuple(places)
        )
        Control.create(self.spec.control_path, 1).region.close()
        rate = ctl.float_to_word(optimizer.learning_rate)
        for place in places:
            params = np.zeros(SIZE, np.float32)
            Published.create(Path(place.path), params, len(optimizer.state_rows), buffers, rate).close()
        self.budget = Budget(1 << 30)
        self.start()

    def start(self):
        """Map everything, as at the start or after a kill; what the server before knew is forgotten."""
        spec = self.spec
        self.control = Control.open(spec.control_path)
        rows = len(spec.optimizer.state_rows)
        self.shards = [Published.open(Path(place.path), SIZE, rows, spec.buffers) for place in spec.shards]
        maps = [SeatMap(spec, self.control, place.lo, place.hi) for place in spec.shards]
        self.sweepers = [
            Sweeper(spec, number, self.control, self.shards, seat_map)
            for number, (shard, seat_map) in enumerate(zip(self.shards, maps, strict=True))
        ]
        self.sequencer = SequencerLoop(spec, self.control, self.shards, maps[0], self.sweepers[0], self.budget)

    def join(self, number, depth=4):
        """(the holder's side of a new seat, its first step)."""
        directory = self.spec.seat_path(0, 0).parent
        made = Seat.allocate(directory, depth, self.spec.layout.size if depth else 0)
        seat, generation, step = self.sequencer._give(number, made, "new")
        taken = Seat.take(self.spec.seat_path(seat, generation), depth, self.spec.layout.size if depth else 0)
        return near.NearWorker(near.NearModel(self.spec), number, taken, step)

    def turn(self):
        """The sequencer's thread, as `Engine._sequence` without housekeeping, until nothing moves any more."""
        before = None
        while before != (now := self._where()):
            before = now
            reason, until = loop.SWEEP, time.monotonic_ns() + 5_000_000
            while reason != loop.HOUSEKEEPING:
                self.sequencer.serve_requests()
                reason = self.sequencer.serve(until)
                if reason == loop.SWEEP:
                    self.sequencer.swept(self.sweepers[0].advance())

    def sleeps(self):
        """How often the sequencer's thread sleeps within 0.4 s: not at all if it finds something to do all the time."""
        self.sequencer.serve_requests()
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        assert self.sequencer.serve(time.monotonic_ns() + 400_000_000) == loop.HOUSEKEEPING
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before

    def _where(self):
        mapped = self.sweepers[0]._seats.open.values()
        tails = [each.seat.words.load(seats.TAIL) for each in mapped]
        return self.control.head, self.shards[0].applied, tails

    def sweep(self, number):
        """All that a follower's shard can do now."""
        while self.sweepers[number].advance():
            pass

    def values(self, number=0):
        """The one value of all parameters of a shard that are published now."""
        _, buffer, _ = self.shards[number].front()
        [value] = set(self.shards[number].buffers[buffer].tolist())
        return value


def push(worker, value, examples=1):
    worker.slot(1)[:] = value
    return worker.commit(worker.next_step, examples, float("nan"), timeout_s=1)


def tail(worker):
    return worker.seat.words.load(seats.TAIL)
