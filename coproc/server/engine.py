"""The threads of one model on one server: one a shard, the first of which is also the sequencer's.

A thread works while there is work, then says that it sleeps, fences, looks once more, and sleeps on its bell for
at most 50 ms. The sequencer's loop and all sweeps run without the interpreter lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from coproc.errors import ModelNotFound, ServerError
from coproc.near import LOOK_AGAIN_S
from coproc.server import loop
from coproc.server.seatmap import SeatMap
from coproc.server.sequencing import SequencerLoop
from coproc.server.sweeper import Sweeper
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared.control import Control
from coproc.shared.published import Published
from coproc.spec import ModelSpec
from storage_tier.budget import Budget
from storage_tier.words import fence

log = logging.getLogger(__name__)

_HOUSEKEEPING_NS = 250_000_000


class Engine:
    """Serves the shards of one model that this server owns, until `close`.

    Args:
        spec: the model, with the places of all shards.
        mine: numbers of the shards that this server owns; number 0 makes it the sequencer.
        budget: the server's memory budget; seats are charged to it.
    """

    def __init__(self, spec: ModelSpec, mine: list[int], budget: Budget) -> None:
        self.spec = spec
        self.control = Control.open(spec.control_path)
        rows = len(spec.optimizer.state_rows)
        self.shards = [
            Published.open(Path(place.path), place.hi - place.lo, rows, spec.buffers) for place in spec.shards
        ]
        self._stopping = threading.Event()
        self.failure: str | None = None
        self.sequencer: SequencerLoop | None = None
        self._threads: list[threading.Thread] = []
        for number in mine:
            self.shards[number].words.store(pub.FAILED, 0)
            place = spec.shards[number]
            seat_map = SeatMap(spec, self.control, place.lo, place.hi)
            sweeper = Sweeper(spec, number, self.control, self.shards[number], seat_map)
            if number == 0:
                self.sequencer = SequencerLoop(spec, self.control, self.shards, seat_map, sweeper, budget)
            loop = self._sequence if number == 0 else self._follow
            self._threads.append(
                threading.Thread(target=self._run, args=(loop, sweeper), name=f"{spec.name}/{number}", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    def _run(self, loop: Callable[[Sweeper], None], sweeper: Sweeper) -> None:
        try:
            loop(sweeper)
        except Exception as error:
            # What is published stays readable; the model takes no more gradients and `status` says why.
            self.failure = f"shard {sweeper.number}: {type(error).__name__}: {error}"
            log.exception("model %s stops: %s", self.spec.name, self.failure)
            sweeper.shard.words.store(pub.FAILED, 1)
            if sweeper.number == 0 and self.sequencer is not None:
                self.sequencer.end(ServerError(f"model {self.spec.name!r} has stopped: {self.failure}"))
            for shard in self.shards:
                shard.words.ring(pub.BELL)
        finally:
            if self.failure is None:
                self._end_sequencer()
            sweeper.close()

    def _end_sequencer(self) -> None:
        if self.sequencer is not None:
            self.sequencer.end(ModelNotFound(f"model {self.spec.name!r} was deleted, or its server is stopping"))

    def _sequence(self, sweeper: Sweeper) -> None:
        sequencer = self.sequencer
        assert sequencer is not None
        keep_house_at = 0
        while not self._stopping.is_set():
            sequencer.serve_requests()
            now = time.monotonic_ns()
            if now >= keep_house_at:
                sequencer.keep_house()
                keep_house_at = now + _HOUSEKEEPING_NS
            if sequencer.serve(keep_house_at) == loop.SWEEP:
                sequencer.swept(sweeper.advance())

    def _follow(self, sweeper: Sweeper) -> None:
        words = sweeper.shard.words
        while not self._stopping.is_set():
            if sweeper.advance():
                fence()
                if self.control.general.load(ctl.SLEEPING):
                    self.control.general.ring(ctl.BELL)
                continue
            seen = words.load(pub.WAKE)
            words.store(pub.SLEEPING, 1)
            fence()
            if (sweeper.blocked or self.control.head == sweeper.position) and not self._stopping.is_set():
                words.wait(pub.WAKE, seen, LOOK_AGAIN_S)
            words.store(pub.SLEEPING, 0)

    def stop(self) -> None:
        """Finish the sweeps at hand and end the threads. Nothing acknowledged is lost. Idempotent."""
        self._stopping.set()
        if self.sequencer is not None:
            self.sequencer.call()
        for shard in self.shards:
            shard.words.ring(pub.WAKE)
        for thread in self._threads:
            thread.join(timeout=30)

    def close(self) -> None:
        """`stop`, and unmap. Idempotent."""
        self.stop()
        for shard in self.shards:
            shard.close()
        self.control.region.close()
