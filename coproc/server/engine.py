"""The threads of one model on one server: one a shard, the first of which is also the sequencer's.

A thread works while there is work, then says that it sleeps, fences, looks once more, and sleeps on its bell for
at most 50 ms. The sequencer's loop and all sweeps run without the interpreter lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coproc import probe
from coproc.errors import ModelNotFound, ServerError, Timeout, Unsupported
from coproc.near import LOOK_AGAIN_S
from coproc.server import loop
from coproc.server.seatmap import SeatMap
from coproc.server.sequencing import SequencerLoop
from coproc.server.sweeper import Sweeper
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared.control import Control, Kind, Row
from coproc.shared.published import Published
from coproc.spec import ModelSpec
from storage_tier.budget import Budget
from storage_tier.words import fence

log = logging.getLogger(__name__)

_HOUSEKEEPING_NS = 250_000_000
# A shard that gets to a cut without publishing rings no bell.
_LOOK_AT_CUT_S = 1e-3


@dataclass(frozen=True)
class Cut:
    """A model that stands still at one version, on all shards; for as long as `Engine.cut` holds it."""

    version: int
    updates: int
    learning_rate: float
    ledger: tuple[Row, ...]
    """As of the version."""
    fronts: list[tuple[int, int, tuple[NDArray[np.float32], ...]]]
    """(lo, hi, (parameters, *state)) of each shard, the rows (hi - lo,) in shared memory."""


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
        self._maps = threading.Lock()
        """Held by a thread that reads the shards past their own: they stay mapped, and one cut is made at a time."""
        if 0 in mine:
            self._end_cut()  # of a server that was killed within one
        for number in mine:
            self.shards[number].words.store(pub.FAILED, 0)
            place = spec.shards[number]
            seat_map = SeatMap(spec, self.control, place.lo, place.hi)
            sweeper = Sweeper(spec, number, self.control, self.shards, seat_map)
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
            if (sweeper.blocked or self.control.due == sweeper.position) and not self._stopping.is_set():
                words.wait(pub.WAKE, seen, LOOK_AGAIN_S)
            words.store(pub.SLEEPING, 0)

    @contextmanager
    def cut(self, timeout_s: float) -> Iterator[Cut]:
        """Hold all shards, here and on other servers, behind one record of the log. On the sequencer's server.

        Pushes go on all the while: into their slots, and into the log as far as it has room. Descent goes on when the
        block is left, however that is, or with the next server if this one is killed in it.

        Raises:
            Timeout: the shards did not get there, or another cut was being made, for so long.
            ModelNotFound: the model was deleted, or its server is stopping. ServerError: a shard has failed.
        """
        deadline = time.monotonic() + timeout_s
        if not self._maps.acquire(timeout=timeout_s):
            raise Timeout(f"another checkpoint of model {self.spec.name!r} was being made for {timeout_s:g} s")
        try:
            cut = _Line(self, deadline)
            try:
                yield cut.reached()
            finally:
                cut.end()
        finally:
            self._maps.release()

    def check(self) -> None:
        """Raises ModelNotFound or ServerError if no shard will get any further."""
        if self._stopping.is_set():
            raise ModelNotFound(f"model {self.spec.name!r} was deleted, or its server is stopping")
        if any(shard.words.load(pub.FAILED) for shard in self.shards):
            raise ServerError(f"a server of model {self.spec.name!r} failed and descends no more: its log says why")

    def _end_cut(self) -> None:
        self.control.general.store(ctl.CUT, ctl.NO_CUT)
        fence()
        self.control.general.ring(ctl.BELL)
        for shard in self.shards:
            shard.words.ring(pub.WAKE)

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
        with self._maps:
            for shard in self.shards:
                shard.close()
            self.control.region.close()


class _Line:
    """The position in the log that shards do not pass."""

    def __init__(self, engine: Engine, deadline: float) -> None:
        self._engine = engine
        self._deadline = deadline
        self._lock = threading.Lock()
        self._ended = False

    def reached(self) -> Cut:
        """Draw it at the end of the log, and wait until all shards stand there."""
        engine, sequencer = self._engine, self._engine.sequencer
        if sequencer is None:
            raise Unsupported(f"the sequencer of model {engine.spec.name!r} is {engine.spec.shards[0].server}")
        left_s = max(0.0, self._deadline - time.monotonic())
        position, version, ledger = sequencer.submit(self._draw, left_s)
        probe.hit("checkpoint.cut.after")
        for shard in engine.shards:
            while max(shard.kept_from, shard.applied) < position:
                seen = shard.words.load(pub.BELL)
                engine.check()
                if time.monotonic() > self._deadline:
                    raise Timeout(
                        f"the shards of model {engine.spec.name!r} are at versions "
                        f"{[each.version for each in engine.shards]} and did not get to {version} in time for a "
                        "checkpoint: is one of its servers down?"
                    )
                shard.words.wait(pub.BELL, seen, _LOOK_AT_CUT_S)
        fronts = []
        for place, shard in zip(engine.spec.shards, engine.shards, strict=True):
            _, buffer, bank = shard.front()
            fronts.append((place.lo, place.hi, (shard.buffers[buffer], *shard.banks[bank])))
        kept_from, updates, rate = engine.shards[0].bank_words(engine.shards[0].front()[2])
        for entry in engine.control.entries(kept_from, position):  # what it has applied and not published
            if entry.kind == Kind.HYPER:
                rate = entry.step
        return Cut(version, updates, ctl.word_to_float(rate), ledger, fronts)

    def _draw(self) -> tuple[int, int, tuple[Row, ...]]:
        """On the sequencer's thread, the only one that writes the log."""
        engine = self._engine
        assert engine.sequencer is not None
        engine.sequencer.settle()
        ledger = engine.control.rows()
        position = engine.control.head
        with self._lock:
            if not self._ended:
                probe.hit("checkpoint.cut.before")
                engine.control.general.store(ctl.CUT, position)
        return position, engine.control.head_version, ledger

    def end(self) -> None:
        """Let the shards go on. A line that is drawn later, because nobody waits for it any more, is none."""
        with self._lock:
            self._ended = True
            self._engine._end_cut()
