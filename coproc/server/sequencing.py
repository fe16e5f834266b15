"""The sequencer of one model: takes commits out of seats, lets `descent` decide, frees slots when shards are done.

Runs on the thread of shard 0. Other threads ask it for things (a join, a leave, ...) through `submit`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from coproc import probe
from coproc.consistency import Bsp
from coproc.descent import Sequencer, Verdict
from coproc.errors import ConfigError, CoprocError, Timeout
from coproc.server.sweeper import SeatMap
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared import seats
from coproc.shared.control import Control, Kind
from coproc.shared.published import Published
from coproc.shared.seats import Seat
from coproc.spec import ModelSpec
from storage_tier.budget import Budget
from storage_tier.regions import file_bytes
from storage_tier.words import fence

T = TypeVar("T")

_PENDING = -1
# A seat that was given but never taken (the client died in between) is free again after this long.
_TAKE_WITHIN_S = 30.0
READER = -1
# Entries that may wait for the slowest shard: the log, less what one append may overwrite, less one round that a
# single commit may close.
_LOG_ROOM = ctl.LOG_ENTRIES - ctl.APPEND_ENTRIES - ctl.MAX_WORKERS


@dataclass
class Counters:
    """What has been admitted since this server started; read by `status` without a lock."""

    pushes: int = 0
    examples: int = 0
    duplicates: int = 0
    loss_sum: float = 0.0
    """Sum of loss x examples over the pushes that told their loss."""
    loss_examples: int = 0
    staleness_sum: int = 0
    staleness_max: int = 0


@dataclass
class _Taken:
    """The server's side of one seat."""

    number: int
    generation: int
    worker: int
    seat: Seat
    taken: int
    positions: list[int]
    """Slot -> log position after which it is free; `_PENDING` while its record is not written."""
    given_at: float
    closing: bool = False


class SequencerLoop:
    """All that only the sequencer does. Every method but `submit` belongs to its own thread."""

    def __init__(
        self, spec: ModelSpec, control: Control, shards: list[Published], seat_map: SeatMap, budget: Budget
    ) -> None:
        self._spec = spec
        self._control = control
        self._shards = shards
        self._map = seat_map
        self._budget = budget
        self._requests: SimpleQueue[tuple[Callable[[], object], Future[object]]] = SimpleQueue()
        self._seats: list[_Taken] = []
        self._missing_since: dict[int, float] = {}
        self._ended: CoprocError | None = None
        self.counters = Counters()
        control.replay()
        self.core = Sequencer(spec.consistency, control.head_version, control.ledger())
        self._tell_slowest()
        self._recover_seats()

    def _recover_seats(self) -> None:
        """After a restart: slots that are in the log wait for it, the others are looked at again."""
        start = min(shard.kept_from for shard in self._shards)
        busy: dict[tuple[int, int, int, int], int] = {}  # (seat, slot, worker, step) -> position after its record
        position = start
        for entry in self._control.entries(start, self._control.head):
            position += 1
            if entry.kind == Kind.DESCEND:
                busy[entry.seat, entry.slot, entry.worker, entry.step] = position + entry.following
        self._map.refresh()
        for number, (generation, seat, _) in self._map.open.items():
            worker = self._control.seats.row(number * ctl.ROW)[ctl.SEAT_WORKER]
            tail = seat.words.load(seats.TAIL)
            known = _Taken(number, generation, worker, seat, tail, [0] * seat.depth, time.monotonic())
            known.closing = seat.closed
            while known.taken < seat.words.load(seats.HEAD):
                slot = known.taken % seat.depth
                step = seat.read_line(slot).step
                if step >= self._control.next_step(worker):
                    break
                # In the log: busy until all shards have it. Or a duplicate, or applied by all: free.
                known.positions[slot] = busy.get((number, slot, worker, step), 0)
                known.taken += 1
            self._seats.append(known)
        self._seats.sort(key=lambda s: (s.worker, s.number))
        self._by_number = {taken.number: taken for taken in self._seats}

    @property
    def seats_count(self) -> int:
        """Seats in use, readers' included."""
        return len(self._seats)

    # -- other threads ---------------------------------------------------------------------------------------

    def submit(self, request: Callable[[], T], timeout_s: float = 30.0) -> T:
        """Have `request` done on the sequencer's thread, between two polls, and wait for its answer.

        Raises:
            ModelNotFound, ServerError: the thread has ended, because the model was deleted or it failed.
            Timeout: no answer in time.
        """
        future: Future[object] = Future()
        self._requests.put((request, future))
        if self._ended is not None:
            self._refuse_requests()
        self._control.general.ring(ctl.BELL)
        try:
            return future.result(timeout_s)  # type: ignore[return-value]
        except TimeoutError as error:
            if future.done():
                raise
            raise Timeout(f"the sequencer of model {self._spec.name!r} gave no answer in {timeout_s:g} s") from error

    def end(self, reason: CoprocError) -> None:
        """The thread ends: whoever asks it for something gets `reason`. Idempotent; the first reason stays."""
        self._ended = self._ended or reason
        self._refuse_requests()

    def _refuse_requests(self) -> None:
        while True:
            try:
                _, future = self._requests.get_nowait()
            except Empty:
                return
            if future.set_running_or_notify_cancel():
                future.set_exception(self._ended)

    # -- requests, on the sequencer's thread -----------------------------------------------------------------

    def give_seat(self, worker: int, depth: int) -> tuple[int, int, int]:
        """A new seat for an attempt of `worker`, or for a reader (`READER`); (seat, generation, next step).

        Raises:
            OutOfMemory: the budget or the tmpfs has no room for its slots.
            ConfigError: too many seats, or a worker number that cannot be.
        """
        if worker != READER:
            self._check_worker(worker)
            self._require_room()
        in_use = {taken.number for taken in self._seats}
        number = next((n for n in range(ctl.MAX_SEATS) if n not in in_use), None)
        if number is None:
            raise ConfigError(f"model {self._spec.name!r} has all of its {ctl.MAX_SEATS} seats in use")
        size = self._spec.layout.size if depth else 0
        table, row = self._control.seats, number * ctl.ROW
        generation = table.load(row + ctl.SEAT_GENERATION) + 1
        path = self._spec.seat_path(number, generation)
        self._budget.charge(str(path), file_bytes(Seat.size_bytes(depth, size)))
        try:
            Seat.create(path, depth, size).close()
        except BaseException:
            self._budget.release(str(path))
            raise
        for word, value in (
            (ctl.SEAT_WORKER, worker),
            (ctl.SEAT_DEPTH, depth),
            (ctl.SEAT_GENERATION, generation),
            (ctl.SEAT_STATE, ctl.SEAT_OPEN),
        ):
            table.store(row + word, value)
        self._seats_changed()
        seat = self._map.open[number].seat
        taken = _Taken(number, generation, worker, seat, 0, [0] * depth, time.monotonic())
        self._seats.append(taken)
        self._by_number[number] = taken
        self._seats.sort(key=lambda s: (s.worker, s.number))
        if worker == READER:
            return number, generation, 0
        self.core.join(worker)
        self._append_records()
        self._missing_since.pop(worker, None)
        self._control.general.store(ctl.LOST_WORKER, 0)
        return number, generation, self._next_step(worker)

    def _check_worker(self, worker: int) -> None:
        consistency = self._spec.consistency
        limit = consistency.workers if isinstance(consistency, Bsp) else ctl.MAX_WORKERS
        if not 0 <= worker < limit:
            raise ConfigError(f"workers of model {self._spec.name!r} are numbered 0 to {limit - 1}, not {worker}")

    def _room(self) -> int:
        """Entries that may be admitted before the slowest shard has caught up."""
        return _LOG_ROOM - self._control.head + min([shard.kept_from for shard in self._shards])

    def _require_room(self) -> None:
        if self._room() <= 0:
            raise Timeout(
                f"the log of model {self._spec.name!r} is full: a shard has not applied its last {_LOG_ROOM} records. "
                "Is one of its servers down?"
            )

    def _next_step(self, worker: int) -> int:
        """The step after all that attempts of `worker` have committed, taken out of their seats or not."""
        step = max(self._control.next_step(worker), self._control.claimed(worker) + 1)
        for taken in self._seats:
            if taken.worker == worker:
                for position in range(taken.seat.words.load(seats.TAIL), taken.seat.words.load(seats.HEAD)):
                    step = max(step, taken.seat.read_line(position % taken.seat.depth).step + 1)
        return step

    def close_seat(self, number: int, generation: int) -> None:
        """Take a seat back, after what is committed in it has been taken. Nothing if it is gone already."""
        for taken in self._seats:
            if taken.number == number and taken.generation == generation and not taken.closing:
                taken.closing = True
                taken.seat.words.store(seats.CLOSED, 1)
                taken.seat.words.store(seats.PIN, seats.NO_PIN)
                fence()
                taken.seat.words.ring(seats.BELL)

    def close_all_seats(self) -> None:
        """The model is deleted: nobody may commit any more. The one method for after the thread has ended."""
        for taken in self._seats:
            self.close_seat(taken.number, taken.generation)

    def leave(self, worker: int) -> None:
        """Nobody waits for `worker` any more; what it has committed still goes into rounds.

        Raises:
            ConfigError: no worker can have this number. Timeout: the log is full.
        """
        self._check_worker(worker)
        self.poll()
        self._require_room()
        self.core.leave(worker)
        self._append_records()

    def set_learning_rate(self, learning_rate: float) -> None:
        """A record of the log: every shard changes at the same version.

        Raises:
            ConfigError: not a rate that the optimizer can have. Timeout: the log is full.
        """
        self._spec.optimizer.with_learning_rate(learning_rate)
        self.poll()
        self._require_room()
        self.core.hyper(ctl.float_to_word(learning_rate))
        self._append_records()

    def settle(self) -> int:
        """Admit all that is committed and can be admitted now; the version that will have it."""
        while self.poll():
            pass
        return self.core.version

    # -- the loop --------------------------------------------------------------------------------------------

    def serve_requests(self) -> bool:
        """Do what other threads asked for; False if there was nothing."""
        served = False
        while True:
            try:
                request, future = self._requests.get_nowait()
            except Empty:
                return served
            served = True
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(request())
            except Exception as error:  # handed to the thread that asked
                future.set_exception(error)

    def poll(self) -> bool:
        """Take new commits and free applied slots; False if nothing was new."""
        new = False
        room = self._room()
        for taken in self._seats:
            if taken.taken < taken.seat.words.load(seats.HEAD):
                new |= self._take(taken, room)
        self._append_records()
        self._free()
        return new

    def _append_records(self) -> None:
        """Write what the core has decided; from here on it is decided."""
        records = self.core.records
        if not records:
            return
        self.core.records = []
        position = start = self._control.head
        while len(records) - (position - start) > ctl.APPEND_ENTRIES:
            part = records[position - start :][: ctl.APPEND_ENTRIES]
            while part[-1].following:
                part.pop()  # only whole records
            self._control.append(part)
            position += len(part)
        self._control.append(records[position - start :])
        position = start
        by_number = self._by_number
        for entry in records:
            position += 1
            if entry.kind == Kind.DESCEND:
                by_number[entry.seat].positions[entry.slot] = position + entry.following
        self._tell_slowest()

    def _take(self, taken: _Taken, room: int) -> bool:
        seat, counters, core = taken.seat, self.counters, self.core
        before = taken.taken
        head = seat.words.load(seats.HEAD)
        while taken.taken < head and len(core.records) < room:
            slot = taken.taken % seat.depth
            commit = seat.read_line(slot)
            # The sequencer may close a round inside commit(): the slot is pending before it is known.
            taken.positions[slot] = _PENDING
            version = core.version
            verdict = core.commit(taken.worker, commit.step, taken.number, slot, commit.examples)
            if verdict is Verdict.AHEAD:
                break
            taken.taken += 1
            if verdict is Verdict.DUPLICATE:
                taken.positions[slot] = 0
                counters.duplicates += 1
                continue
            counters.pushes += 1
            if commit.examples:
                counters.examples += commit.examples
                if commit.loss == commit.loss:
                    counters.loss_sum += commit.loss * commit.examples
                    counters.loss_examples += commit.examples
                if commit.read_version >= 0:
                    staleness = max(0, version - commit.read_version)
                    counters.staleness_sum += staleness
                    counters.staleness_max = max(counters.staleness_max, staleness)
        return taken.taken > before

    def _free(self) -> None:
        applied = min([shard.applied for shard in self._shards])
        freed: list[_Taken] = []
        for taken in self._seats:
            tail = start = taken.seat.words.load(seats.TAIL)
            while tail < taken.taken and _PENDING != taken.positions[tail % taken.seat.depth] <= applied:
                tail += 1
            if tail != start:
                probe.hit("release.before")
                taken.seat.words.store(seats.TAIL, tail)
                probe.hit("release.after")
                freed.append(taken)
        if freed:
            fence()
            for taken in freed:
                if taken.seat.words.load(seats.WAITING):
                    taken.seat.words.ring(seats.BELL)

    def _tell_slowest(self) -> None:
        self._control.general.store(ctl.SLOWEST, self.core.slowest_clock())

    def anything_new(self) -> bool:
        """One last look before sleeping."""
        return not self._requests.empty() or any(
            taken.taken < taken.seat.words.load(seats.HEAD) for taken in self._seats if not taken.closing
        )

    # -- housekeeping, a few times a second ------------------------------------------------------------------

    def keep_house(self) -> None:
        """Take back the seats of dead holders, and look after rounds whose workers are gone."""
        now = time.monotonic()
        for taken in self._seats:
            if taken.closing:
                continue
            was_taken = taken.seat.words.load(seats.TAKEN)
            if (was_taken and not taken.seat.region.is_held()) or (
                not was_taken and now - taken.given_at > _TAKE_WITHIN_S
            ):
                self.close_seat(taken.number, taken.generation)
        for taken in [t for t in self._seats if t.closing]:
            if taken.seat.words.load(seats.TAIL) == taken.seat.words.load(seats.HEAD):
                self._drop(taken)
        self._look_for_lost(now)

    def _drop(self, taken: _Taken) -> None:
        path = self._spec.seat_path(taken.number, taken.generation)
        self._seats.remove(taken)
        del self._by_number[taken.number]
        self._control.seats.store(taken.number * ctl.ROW + ctl.SEAT_STATE, ctl.SEAT_FREE)
        self._seats_changed()
        path.unlink(missing_ok=True)
        self._budget.release(str(path))

    def _look_for_lost(self, now: float) -> None:
        consistency = self._spec.consistency
        missing = self.core.missing()
        if not isinstance(consistency, Bsp) or len(missing) == consistency.workers:
            return
        alive = {taken.worker for taken in self._seats if not taken.closing}
        for worker in missing:
            if worker in alive:
                self._missing_since.pop(worker, None)
            elif now - self._missing_since.setdefault(worker, now) > consistency.patience_s:
                if consistency.on_loss == "close":
                    self.leave(worker)
                else:
                    self._control.general.store(ctl.LOST_WORKER, worker + 1)
                    for shard in self._shards:
                        shard.words.ring(pub.BELL)

    def _seats_changed(self) -> None:
        general = self._control.general
        general.store(ctl.SEATS_CHANGED, general.load(ctl.SEATS_CHANGED) + 1)
        self._map.refresh()
