"""The sequencer of one model: seats given and taken back, requests of other threads, and the loop that takes commits.

Runs on the thread of shard 0. Other threads ask it for things (a join, a leave, ...) through `submit`. What happens for
each push is compiled, see `coproc.server.loop`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar
from uuid import uuid4

import numpy as np

from coproc import optim, probe
from coproc.consistency import Bsp, Quorum, Ssp
from coproc.descent import HELD_COUNT, Sequencer
from coproc.errors import ConfigError, CoprocError, Timeout
from coproc.near import LOOK_AGAIN_S, SPIN_S
from coproc.server import drain, loop
from coproc.server.seatmap import SeatMap
from coproc.server.sweeper import Sweeper
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared import seats
from coproc.shared.control import Control, Kind
from coproc.shared.published import Published
from coproc.shared.seats import Seat
from coproc.spec import ModelSpec
from storage_tier.budget import Budget
from storage_tier.regions import file_bytes
from storage_tier.words import Words, fence

T = TypeVar("T")

# A seat that was given but never taken (the client died in between) is free again after this long.
_TAKE_WITHIN_S = 30.0
READER = -1
_MOST_SLOTS = 64
# After the first gradient of a round the others are near, and the first worker's core is idle until they come.
_HELD_SPIN_NS = 1_000_000
# Parameters from which a shard is swept by several threads: a round's workers then want the cores that a spin takes.
_NO_SPIN_FROM = optim.STREAM_FROM


@dataclass(frozen=True)
class Counters:
    """What has been admitted since this server started."""

    loss_sum: float
    """Sum of loss x examples over the pushes that told their loss."""
    pushes: int
    examples: int
    duplicates: int
    loss_examples: int
    staleness_sum: int
    staleness_max: int
    late: int
    """Steps that came after their round was closed without them."""
    not_finite: int
    """Steps whose gradient was not finite, of a model that skips such."""


@dataclass
class _Taken:
    """The server's side of one seat."""

    number: int
    generation: int
    worker: int
    seat: Seat
    given_at: float
    closing: bool = False


class SequencerLoop:
    """All that only the sequencer does. Every method but `submit` and `join` belongs to its own thread."""

    def __init__(
        self, spec: ModelSpec, control: Control, shards: list[Published], seat_map: SeatMap, sweeper: Sweeper,
        budget: Budget,
    ) -> None:  # fmt: skip
        self._spec = spec
        self._control = control
        self._shards = shards
        self._map = seat_map
        self._sweeper = sweeper
        self._budget = budget
        self._requests: SimpleQueue[tuple[Callable[[], object], Future[object]]] = SimpleQueue()
        self._seats: list[_Taken] = []
        self._missing_since: dict[int, float] = {}
        self._ended: CoprocError | None = None
        control.replay()
        self.core = Sequencer(spec.consistency, control.head_version, control.ledger())
        control.general.store(ctl.SLOWEST, self.core.slowest_clock())
        # What the compiled loop works on.
        self._positions = np.zeros((ctl.MAX_SEATS, _MOST_SLOTS), np.int64)
        """(seat, slot) -> log position after which it is free; `drain.PENDING` while its record is not written."""
        self._counters = np.zeros(drain.COUNTERS, np.int64)
        self._loss_sum = np.zeros(1, np.float64)
        self._spin_ns = 0 if shards[0].size >= _NO_SPIN_FROM else int(SPIN_S * 1e9)
        self._shard_words = np.array([shard.words.address for shard in shards], np.int64)
        self._pair = np.zeros(2, np.int64)
        attention = np.zeros(1, np.int64)
        self._attention = Words(attention.view(np.uint8), 0, 1)
        """Set by whoever wants the loop to come back."""
        self._desk = np.zeros(drain.DESK_WORDS, np.int64)
        self._desk[drain.GENERAL] = control.general.address
        self._desk[drain.ATTENTION] = self._attention.address
        self._desk[drain.SHARDS_COUNT] = len(shards)
        self._desk[drain.TELLS_SLOWEST] = isinstance(spec.consistency, Ssp)
        self._desk[drain.CLOSE_AT_NS] = drain.NEVER
        if isinstance(spec.consistency, Quorum):
            self._desk[drain.GRACE_NS] = int(spec.consistency.grace_s * 1e9)
        self._recover_seats()
        self.settle()  # compiles the loop, or loads it, before the first gradient comes

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
            taken = freed = seat.words.load(seats.TAIL)
            while taken < min(seat.words.load(seats.HEAD), freed + seat.depth):
                slot = taken % seat.depth
                step = seat.read_line(slot).step
                if step >= self._control.next_step(worker):
                    self.core.owe(worker, step)
                    break
                # In the log: busy until all shards have it. Or a duplicate, or applied by all: free.
                self._positions[number, slot] = busy.get((number, slot, worker, step), 0)
                taken += 1
            self._map.table[number, [drain.TAKEN, drain.FREED]] = taken, freed
            self._seats.append(_Taken(number, generation, worker, seat, time.monotonic(), seat.closed))

    @property
    def seats_count(self) -> int:
        """Seats in use, readers' included."""
        return len(self._seats)

    @property
    def waiting(self) -> tuple[int, int]:
        """(committed steps whose slots are not free again, live attempts that wait for a free slot). As `counters`."""
        pending = blocked = 0
        for taken in list(self._seats):
            words = taken.seat.words
            pending += min(max(0, words.load(seats.HEAD) - words.load(seats.TAIL)), taken.seat.depth)
            blocked += words.load(seats.WAITING) != 0 and not taken.closing
        return pending, blocked

    @property
    def counters(self) -> Counters:
        """What has been admitted so far. Any thread may ask; the numbers may be of neighbouring moments."""
        return Counters(float(self._loss_sum[0]), *self._counters.tolist())

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
        self.call()
        try:
            return future.result(timeout_s)  # type: ignore[return-value]
        except TimeoutError as error:
            if future.done():
                raise
            raise Timeout(f"the sequencer of model {self._spec.name!r} gave no answer in {timeout_s:g} s") from error

    def call(self) -> None:
        """Let the loop come back to Python soon."""
        self._attention.store(0, 1)
        self._control.general.ring(ctl.BELL)

    def join(self, worker: int, depth: int) -> tuple[int, int, int]:
        """A new seat for an attempt of `worker`, or for a reader (`READER`); (seat, generation, next step).

        Its memory is allocated on the calling thread: rounds don't wait for it.

        Raises:
            OutOfMemory: the budget or the tmpfs has no room for its slots.
            ConfigError: too many seats, or a worker number that cannot be.
            As `submit`.
        """
        size = self._spec.slot_floats if depth else 0
        charge = f"{self._spec.home}/seats/new-{uuid4().hex}"
        self._budget.charge(charge, file_bytes(Seat.size_bytes(depth, size)))
        try:
            seat = Seat.allocate(self._spec.seat_path(0, 0).parent, depth, size)
            return self.submit(lambda: self._give(worker, seat, charge))
        finally:
            self._budget.release(charge)  # what became a seat is charged under its own name

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

    def _give(self, worker: int, seat: Seat, charge: str) -> tuple[int, int, int]:
        if worker != READER:
            self._check_worker(worker)
            self._require_room()
        in_use = {taken.number for taken in self._seats}
        number = next((n for n in range(ctl.MAX_SEATS) if n not in in_use), None)
        if number is None:
            raise ConfigError(f"model {self._spec.name!r} has all of its {ctl.MAX_SEATS} seats in use")
        table, row = self._control.seats, number * ctl.ROW
        generation = table.load(row + ctl.SEAT_GENERATION) + 1
        path = self._spec.seat_path(number, generation)
        self._budget.transfer(charge, str(path), file_bytes(seat.region.size_bytes))
        seat.region.link(path)
        for word, value in (
            (ctl.SEAT_WORKER, worker),
            (ctl.SEAT_DEPTH, seat.depth),
            (ctl.SEAT_GENERATION, generation),
            (ctl.SEAT_STATE, ctl.SEAT_OPEN),
        ):
            table.store(row + word, value)
        self._count_change()
        self._map.adopt(number, seat)
        self._seats.append(_Taken(number, generation, worker, seat, time.monotonic()))
        if worker == READER:
            return number, generation, 0
        self.core.join(worker)
        self.settle()
        self._missing_since.pop(worker, None)
        self._control.general.store(ctl.LOST_WORKER, 0)
        return number, generation, self._next_step(worker)

    def _check_worker(self, worker: int) -> None:
        consistency = self._spec.consistency
        limit = consistency.workers if isinstance(consistency, Bsp) else ctl.MAX_WORKERS
        if not 0 <= worker < limit:
            raise ConfigError(f"workers of model {self._spec.name!r} are numbered 0 to {limit - 1}, not {worker}")

    def _require_room(self) -> None:
        slowest = min(shard.kept_from for shard in self._shards)
        if drain.LOG_ROOM - self._control.head + slowest <= 0:
            raise Timeout(
                f"the log of model {self._spec.name!r} is full: a shard has not applied its last {drain.LOG_ROOM} "
                "records. Is one of its servers down?"
            )

    def _next_step(self, worker: int) -> int:
        """The step after all that attempts of `worker` have committed, taken out of their seats or not."""
        step = max(self._control.next_step(worker), self._control.claimed(worker) + 1)
        for taken in self._seats:
            if taken.worker == worker:
                freed = int(self._map.table[taken.number, drain.FREED])
                for position in range(freed, min(taken.seat.words.load(seats.HEAD), freed + taken.seat.depth)):
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
        self.settle()
        self._require_room()
        self.core.leave(worker)
        self.settle()
        general = self._control.general
        if general.load(ctl.LOST_WORKER) == worker + 1:
            general.store(ctl.LOST_WORKER, 0)

    def set_learning_rate(self, learning_rate: float) -> None:
        """A record of the log: every shard changes at the same version.

        Raises:
            ConfigError: not a rate that the optimizer can have. Timeout: the log is full.
        """
        self._spec.optimizer.with_learning_rate(learning_rate)
        self.settle()
        self._require_room()
        self.core.hyper(ctl.float_to_word(learning_rate))
        self.settle()

    # -- the loop --------------------------------------------------------------------------------------------

    def serve_requests(self) -> None:
        """Do what other threads asked for."""
        self._attention.store(0, 0)
        fence()
        while True:
            try:
                request, future = self._requests.get_nowait()
            except Empty:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(request())
            except Exception as error:  # handed to the thread that asked
                future.set_exception(error)

    def serve(self, until_ns: int) -> int:
        """Take commits, write the log, descend small shards, free slots, and sleep in between: until Python is needed.

        Returns why it came back (see `loop`), at `until_ns` (monotonic) at the latest. The interpreter lock is free
        meanwhile.
        """
        core, seat_map, sweeper = self.core, self._map, self._sweeper
        self._desk[drain.UNTIL_NS] = until_ns
        reason: int = loop.compiled_serve(
            sweeper.kernel, sweeper.small, self._spin_ns, _HELD_SPIN_NS, int(LOOK_AGAIN_S * 1e9),
            self._desk, core.core, core.workers, core.records, self._control.log, self._control.workers.address,
            self._shard_words, seat_map.table, seat_map.order, len(seat_map.open), self._positions, self._counters,
            self._loss_sum, probe.left, sweeper.state, sweeper.rows, sweeper.banks, sweeper.constants,
            sweeper.held, sweeper.again, sweeper.plan, sweeper.work, self._pair,
        )  # fmt: skip
        return reason

    def swept(self, moved: bool) -> None:
        """A pass that the loop had left to Python was made, or could not be: then it is tried again later."""
        self._desk[drain.BLOCKED] = not moved
        if moved:
            self._desk[drain.IDLE_SINCE_NS] = time.monotonic_ns()

    def settle(self) -> int:
        """Admit all that is committed and can be admitted now, and write all that is decided; the version it makes."""
        head = -1
        while head != self._control.head:
            head = self._control.head
            self._attention.store(0, 1)
            self.serve(0)
        return self.core.version

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
            freed, was_taken = self._map.table[taken.number, [drain.FREED, drain.TAKEN]]
            # All that it has was taken, and what was taken is applied.
            if freed == was_taken and min(taken.seat.words.load(seats.HEAD), freed + taken.seat.depth) <= freed:
                self._drop(taken)
        self._look_for_lost(now)

    def _drop(self, taken: _Taken) -> None:
        path = self._spec.seat_path(taken.number, taken.generation)
        self._seats.remove(taken)
        self._control.seats.store(taken.number * ctl.ROW + ctl.SEAT_STATE, ctl.SEAT_FREE)
        self._count_change()
        self._map.refresh()
        path.unlink(missing_ok=True)
        self._budget.release(str(path))

    def _look_for_lost(self, now: float) -> None:
        consistency = self._spec.consistency
        missing = self.core.missing()
        if not isinstance(consistency, Bsp) or len(missing) == consistency.workers:
            return
        alive = {taken.worker for taken in self._seats if not taken.closing}
        given = int(self.core.core[HELD_COUNT])
        closes = given + sum(worker in alive for worker in missing) >= min(consistency.needed, given + len(missing))
        for worker in missing:
            if worker in alive:
                self._missing_since.pop(worker, None)
            elif now - self._missing_since.setdefault(worker, now) > consistency.patience_s:
                if consistency.on_loss == "close":
                    with contextlib.suppress(Timeout):  # the log is full for now: it is looked at again soon
                        self.leave(worker)
                elif not closes:
                    self._control.general.store(ctl.LOST_WORKER, worker + 1)
                    for shard in self._shards:
                        shard.words.ring(pub.BELL)

    def _count_change(self) -> None:
        general = self._control.general
        general.store(ctl.SEATS_CHANGED, general.load(ctl.SEATS_CHANGED) + 1)
