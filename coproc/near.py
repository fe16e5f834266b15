"""A model through shared memory, on the host where it lives: pinned reads, gradients born in slots, commits.

This is the fast face of a model. It needs no server process to answer: a server that is being restarted is only
a slow one. Servers use it too, on behalf of clients that are on another host.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coproc import probe
from coproc.consistency import Bsp, Quorum, Ssp
from coproc.errors import LeaseExpired, ModelNotFound, PushRejected, ServerError, Timeout, Unreachable, WorkerLost
from coproc.layout import Flat, all_finite
from coproc.probe import watched
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared import seats
from coproc.shared.control import Control
from coproc.shared.published import Published
from coproc.shared.seats import Seat
from coproc.spec import ModelSpec
from storage_tier.words import fence

# A wait looks again at least this often, whatever bell it missed.
LOOK_AGAIN_S = 0.05
# Before it sleeps, a wait looks again and again for this long, giving way to whoever wants the processor: to wake a
# sleeping one takes 50 microseconds, and most waits for a small model are shorter than twice that.
SPIN_S = 100e-6


class Receipt(NamedTuple):
    """What `push` promises: the gradient of `step` is in the tier's memory and will be descended once."""

    step: int
    duplicate: bool
    """Another attempt's gradient of this step was there first; this one was dropped. Of two that are committed at the
    same moment neither may say so; one is dropped all the same."""
    version_read: int
    """The version that the gradient was computed on, as far as this worker's `pull` knows."""
    skipped: bool = False
    """It was not finite, and the model takes such as steps without a gradient."""


class NearModel:
    """The mapped control region and shards of one model.

    A map outlives its file. Whose model lost its memory would read for ever what nobody else sees; so waits and pulls
    look whether the file is still there. Pushes need not: they wait as soon as their slots are full.
    """

    def __init__(self, spec: ModelSpec, on_lost: Callable[[NearModel], None] | None = None) -> None:
        """`on_lost` is called, again and again, when the files are found gone: it raises what became of the model."""
        self.spec = spec
        # Before it is mapped: what takes the file's place in between is then taken for another one, as it is after.
        self._file = _file_at(spec.control_path)
        self._on_lost = on_lost
        self._lost, self._look_at = False, 0.0
        self.control = Control.open(spec.control_path)
        rows = len(spec.optimizer.state_rows)
        self.shards = [
            Published.open(Path(place.path), place.hi - place.lo, rows, spec.buffers) for place in spec.shards
        ]
        self.ended = ""
        """Set, by another thread, to the reason why all waits shall end now."""
        self.ranges = [(place.lo, place.hi) for place in spec.shards]

    def version(self) -> int:
        """The newest version that every shard has published."""
        return min(shard.version for shard in self.shards)

    def is_lost(self) -> bool:
        """Whether the model's files are gone, or others have their names. Looks at most every 50 ms."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_AGAIN_S
            self._lost = _file_at(self.spec.control_path) != self._file
        return self._lost

    def _look(self) -> None:
        if self._on_lost is not None and self.is_lost() and not self.control.deleted:
            self._on_lost(self)

    def check(self) -> None:
        """Raise if the model is deleted, went back to a checkpoint, or takes no gradients any more."""
        if self.control.deleted:
            raise ModelNotFound(f"model {self.spec.name!r} was deleted")
        if self.ended:
            raise Unreachable(f"model {self.spec.name!r} can't be read here any more: {self.ended}")
        self._look()
        if any(shard.words.load(pub.FAILED) for shard in self.shards):
            raise ServerError(
                f"a server of model {self.spec.name!r} failed, or lost its part of it, and descends no more; what is "
                "published can be read. Status and log say why; restarting the server tries again"
            )

    def ring(self) -> None:
        """Wake the sequencer if it sleeps. Call after a fence."""
        general = self.control.general
        if general.load(ctl.SLEEPING):
            general.ring(ctl.BELL)

    def wait_until(self, ready: Callable[[], bool], shard: Published, deadline: float, what: Callable[[], str]) -> None:
        """Block until `ready()`; looked at whenever `shard` publishes, and every 50 ms.

        Raises:
            Timeout: not ready at `deadline` (time.monotonic); `what()` says what was waited for.
            WorkerLost, ModelNotFound, LeaseExpired: it never will be.
        """
        spin_until = 0.0
        bell = shard.words
        while True:
            seen = bell.load(pub.BELL)
            if ready():
                return
            now = time.monotonic()
            spin_until = spin_until or now + SPIN_S
            if now < spin_until:
                os.sched_yield()
                continue
            self.check()
            lost = self.control.general.load(ctl.LOST_WORKER)
            if lost:
                raise WorkerLost(
                    f"model {self.spec.name!r}: the round waits for worker {lost - 1}, which has had no live attempt "
                    "for longer than patience_s; start that worker again, or create the model with "
                    'on_loss="close"'
                )
            if now >= deadline:
                raise Timeout(what())
            bell.wait(pub.BELL, seen, min(LOOK_AGAIN_S, deadline - now))

    def wait_version(self, version: int, timeout_s: float) -> None:
        """Block until every shard has published `version` or a later one."""
        deadline = time.monotonic() + timeout_s
        for shard in self.shards:
            if shard.version < version:
                self.wait_until(
                    lambda shard=shard: shard.version >= version,  # type: ignore[misc]
                    shard,
                    deadline,
                    lambda: self._why_not(version, timeout_s),
                )

    def _why_not(self, version: int, timeout_s: float) -> str:
        text = f"model {self.spec.name!r} has version {self.version()}, not {version}, after {timeout_s:g} s"
        if isinstance(self.spec.consistency, Bsp):
            known = {worker: (p, n + o) for worker, p, n, o in self.control.ledger()}
            waiting = [
                w
                for w in range(self.spec.consistency.workers)
                if known.get(w, (ctl.Presence.UNKNOWN, 0))[0] is not ctl.Presence.LEFT
                and self.control.claimed(w) < self.control.next_step(w)
            ]
            if waiting:
                text += f"; its round waits for workers {waiting}"
        if self.control.head_version > self.version():
            text += "; gradients are admitted but not descended: is a server of its shards down?"
        return text

    def pin(self, seat: Seat, deadline: float) -> tuple[int, list[NDArray[np.float32]]]:
        """Hold the newest version for `seat` and return it with each shard's buffer of it.

        The buffers are whole and stay so until the seat's pin is changed. Every shard ends a pass at a pinned
        version, so that versions of several shards meet.

        Raises:
            Timeout: the shards' versions did not meet in time. LeaseExpired: the model went back to a checkpoint.
        """
        shards = self.shards
        self._look()
        while True:
            version = max([shard.version for shard in shards])
            seat.words.store(seats.PIN, version)
            fence()
            buffers = [shard.find(version) for shard in shards]
            found = [b for b in buffers if b is not None]
            if len(found) == len(shards):
                return version, found
            # Some shard is behind: it will stop at the pinned version, unless it was on its way past it.
            while time.monotonic() < deadline:
                self.ring()
                behind = [s for s in shards if s.version < version]
                if not behind:
                    break
                bell = behind[-1].words
                seen = bell.load(pub.BELL)
                if behind[-1].version < version:
                    bell.wait(pub.BELL, seen, LOOK_AGAIN_S)
                self.check()
            buffers = [shard.find(version) for shard in shards]
            found = [b for b in buffers if b is not None]
            if len(found) == len(shards):
                return version, found
            if time.monotonic() >= deadline:
                seat.words.store(seats.PIN, seats.NO_PIN)
                raise Timeout(
                    f"model {self.spec.name!r}: its {len(shards)} shards are at versions "
                    f"{[s.version for s in shards]} and did not meet in time: is one of its servers down?"
                )

    def read_into(self, seat: Seat, out: Flat, timeout_s: float) -> int:
        """Copy the newest whole version into `out` (P,); returns its number. The seat's pin is given back."""
        version, buffers = self.pin(seat, time.monotonic() + timeout_s)
        try:
            for (lo, hi), buffer in zip(self.ranges, buffers, strict=True):
                out[lo:hi] = buffer
        finally:
            seat.words.store(seats.PIN, seats.NO_PIN)
        return version

    def close(self) -> None:
        """Unmap."""
        for shard in self.shards:
            shard.close()
        self.control.region.close()


def _file_at(path: Path) -> tuple[int, int] | None:
    """What tells the file at a path from every other one; None: there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


class NearWorker:
    """One attempt of a worker: the only holder of its seat."""

    def __init__(self, model: NearModel, worker: int, seat: Seat, next_step: int) -> None:
        self.model = model
        self.worker = worker
        self.seat = seat
        self.next_step = next_step
        self.read_version = -1
        consistency = model.spec.consistency
        self._lockstep = isinstance(consistency, Bsp)
        self._may_be_late = isinstance(consistency, Quorum)
        self._bound = consistency.bound if isinstance(consistency, Ssp) else None
        self._copy: Flat | None = None
        size, base_at = model.spec.layout.size, model.spec.base_at
        self._gradients = [slot[:size] for slot in seat.slots]
        # Of gradients whose delay is compensated: places for what they were computed on, and where that is now.
        self._keeps = model.spec.optimizer.compensates
        self._bases = [slot[base_at:] for slot in seat.slots] if self._keeps else []
        self._base: Flat | None = None
        # A push of a small model takes some microseconds, and each call of Python's a tenth of one.
        self._words = seat.words.cells
        self._claims = model.control.claims.cells
        self._ledger = model.control.workers.cells
        self._general = model.control.general.cells
        self._next = worker * ctl.ROW + ctl.NEXT_STEP

    @property
    def _offset(self) -> int:
        """Round = step + this; another attempt that joins after the worker had left changes it."""
        return self.model.control.workers.load(self.worker * ctl.ROW + ctl.OFFSET)

    # -- reading ---------------------------------------------------------------------------------------------

    def pull(self, min_version: int, timeout_s: float, copy: bool = False) -> tuple[int, Flat]:
        """The newest version that this worker may read, as (version, (P,) read-only).

        With one shard it is a view into the tier's memory, valid until this worker's next push or pull; else, or
        when too many readers hold views, or where delays are compensated, or if `copy` is set, it is a copy in memory
        of this worker, valid until its next pull.
        """
        deadline = time.monotonic() + timeout_s
        seat, model = self.seat, self.model
        seat.words.store(seats.PIN, seats.NO_PIN)
        if self._may_be_late:
            self._wait_for_own(deadline)
        if self._lockstep:
            min_version = max(min_version, self.next_step + self._offset)
        elif self._bound is not None:
            min_version = max(min_version, self._wait_for_slowest(self._bound, deadline))
        if min_version > 0:
            model.wait_version(min_version, max(0.0, deadline - time.monotonic()))
        self._check_open()
        version, buffers = model.pin(seat, deadline)
        self.read_version = version
        if len(buffers) == 1 and not (copy or self._keeps) and not model.shards[0].words.load(pub.COPY_ONLY):
            view = buffers[0].view()
            view.flags.writeable = False
            return version, view
        out = self._room()
        for (lo, hi), buffer in zip(model.ranges, buffers, strict=True):
            out[lo:hi] = buffer
        seat.words.store(seats.PIN, seats.NO_PIN)
        view = out.view()
        view.flags.writeable = False
        return version, view

    def _room(self) -> Flat:
        """What a pull copies into: the place of the next gradient's base if its slot is free, else own memory."""
        if self._keeps and self.seat.free_slots > 0:
            self._base = self._bases[self._words[seats.HEAD] % self.seat.depth]
            return self._base
        if self._copy is None:
            self._copy = np.empty(self.model.spec.layout.size, np.float32)
        if self._keeps:
            self._base = self._copy
        return self._copy

    def computes_on(self, values: Flat) -> None:
        """Gradients are computed on `values` (P,), kept up to date by the caller, and not on what `pull` gives."""
        self._base, self._keeps = values, False

    def _wait_for_own(self, deadline: float) -> None:
        """Block until it is in the log what became of this worker's last step: in a closed round, or dropped.

        Only then its offset says in which round its next step is.
        """
        model, control = self.model, self.model.control
        model.wait_until(
            lambda: control.next_step(self.worker) >= self.next_step,
            model.shards[0],
            deadline,
            lambda: (
                f"step {self.next_step - 1} of worker {self.worker} of model {model.spec.name!r} is in no closed round "
                "yet: the open one has too few gradients"
            ),
        )

    def _wait_for_slowest(self, bound: int, deadline: float) -> int:
        """Block while the slowest worker is more than `bound` rounds behind; the version that has its pushes."""
        general, model = self.model.control.general, self.model
        mine = self.next_step + self._offset
        model.wait_until(
            lambda: general.load(ctl.SLOWEST) >= mine - bound,
            model.shards[0],
            deadline,
            lambda: (
                f"worker {self.worker} is at round {mine} and the slowest worker of model {model.spec.name!r} at "
                f"{general.load(ctl.SLOWEST)}: more than the bound of {bound} apart for too long"
            ),
        )
        return model.control.head_version

    # -- writing ---------------------------------------------------------------------------------------------

    def slot(self, timeout_s: float) -> Flat:
        """The next free slot, (P,) float32 in shared memory; waits for one. Contents are old: overwrite all."""
        if self._words[seats.CLOSED]:
            self._refuse()
        return self._gradients[self._free_head(timeout_s) % self.seat.depth]

    def _free_head(self, timeout_s: float) -> int:
        """HEAD, which this attempt alone moves, once the slot it points at is free: nearly always at once."""
        words = self._words
        head: int = words[seats.HEAD]
        if head - words[seats.TAIL] >= self.seat.depth:
            self._wait_for_slot(timeout_s)
        return head

    def _wait_for_slot(self, timeout_s: float) -> None:
        seat, words = self.seat, self.seat.words
        self._check_open()
        deadline = time.monotonic() + timeout_s
        words.store(seats.WAITING, 1)
        try:
            while True:
                seen = words.load(seats.BELL)
                fence()
                if seat.free_slots > 0:
                    return
                self._check_open()
                now = time.monotonic()
                if now >= deadline:
                    raise Timeout(
                        f"no slot of worker {self.worker} of model {self.model.spec.name!r} became free in "
                        f"{timeout_s:g} s: {seat.depth} gradients wait to be descended; is a server down, or does "
                        "the round wait for another worker?"
                    )
                self.model.check()
                self.model.ring()
                words.wait(seats.BELL, seen, min(LOOK_AGAIN_S, deadline - now))
        finally:
            words.store(seats.WAITING, 0)

    def commit(
        self, step: int, examples: int, loss: float, timeout_s: float = 30.0, *, finite: bool = False
    ) -> Receipt:
        """Commit the gradient in the next slot as `step`. Acknowledged when this returns; never waits for descent.

        Args:
            finite: whoever filled the slot has seen that all of it is; else it is looked at here.

        Raises:
            PushRejected: not finite, where the model does not take it as a skipped step; or beyond `next_step`.
            LeaseExpired: the seat was taken back; not acknowledged.
        """
        duplicate = self._turn(step)
        if duplicate is not None:
            return duplicate
        head = self._free_head(timeout_s)
        if examples and not finite:
            gradient = self._gradients[head % self.seat.depth]
            if not all_finite(gradient):
                if self.model.spec.not_finite == "reject":
                    raise PushRejected(self._not_finite(gradient, step))
                # Told apart from other steps without a gradient by a loss that none has.
                return self._commit(head, step, 0, math.inf)._replace(skipped=True)
        if self._bases and self.read_version >= 0:
            base = self._bases[head % self.seat.depth]
            if base is not self._base:
                base[:] = self._base
        return self._commit(head, step, examples, loss)

    def skip(self, step: int, timeout_s: float) -> Receipt:
        """Commit `step` without a gradient, so that rounds go on."""
        duplicate = self._turn(step)
        if duplicate is not None:
            return duplicate
        self._check_open()
        return self._commit(self._free_head(timeout_s), step, 0, float("nan"))

    def _turn(self, step: int) -> Receipt | None:
        """None if `step` is next; a duplicate's receipt if it is already there."""
        done = self.next_step
        in_log, claimed = self._ledger[self._next], self._claims[self.worker]
        if in_log > done or claimed >= done:  # another attempt is further
            done = max(in_log, claimed + 1)
        if step == done:
            return None
        if step < done:
            self.next_step = done
            self._words[seats.PIN] = seats.NO_PIN
            return Receipt(step, True, self.read_version)
        raise PushRejected(
            f"worker {self.worker} of model {self.model.spec.name!r} pushes step {step}, but its next step is {done}: "
            "steps have no holes"
        )

    def _commit(self, head: int, step: int, examples: int, loss: float) -> Receipt:
        seat, words, claims, worker, read_version = (
            self.seat, self._words, self._claims, self.worker, self.read_version
        )  # fmt: skip
        seat.write_line(head % seat.depth, step, examples, read_version, loss)
        words[seats.PIN] = seats.NO_PIN
        if watched:
            probe.hit("push.commit.before")
        words[seats.HEAD] = head + 1
        if watched:
            probe.hit("push.commit.after")
        fence()
        if words[seats.CLOSED]:
            self._refuse()
        # A twin that committed the same step at the same time and was first to say so: one of the two is dropped. Two
        # may both be first, and one that was held up in here says an old step again: it is a hint. The log decides.
        duplicate = claims[worker] >= step
        if watched:
            probe.hit("push.claim.before")
        if not duplicate:
            claims[worker] = step
        if self._general[ctl.SLEEPING]:
            self.model.control.general.ring(ctl.BELL)
        self.next_step = step + 1
        return Receipt(step, duplicate, read_version)

    def _not_finite(self, gradient: Flat, step: int) -> str:
        at = int(np.flatnonzero(~np.isfinite(gradient))[0])
        for name, start, stop, shape in self.model.spec.layout.ranges():
            if start <= at < stop:
                index = tuple(int(i) for i in np.unravel_index(at - start, shape)) if shape else ()
                return (
                    f"the gradient of worker {self.worker} at step {step} is not finite: {name}{list(index)} is "
                    f"{gradient[at]}; nothing was pushed. A smaller learning rate or scaled features may help"
                )
        raise AssertionError(at)

    def _check_open(self) -> None:
        if self._words[seats.CLOSED]:
            self._refuse()

    def _refuse(self) -> None:
        self.model.check()
        raise LeaseExpired(
            f"the slots of worker {self.worker} of model {self.model.spec.name!r} were taken back; join again and "
            "continue at its next_step"
        )

    def release_view(self) -> None:
        """Give the view of the last pull back, so that its buffer can be used again."""
        self.seat.words.store(seats.PIN, seats.NO_PIN)

    def close(self) -> None:
        """Give the view and the slots back. What is committed stays. Idempotent."""
        if self.seat.depth and self.seat.slots:
            self.seat.words.store(seats.PIN, seats.NO_PIN)
        self._copy = self._base = None
        self._gradients.clear()
        self._bases.clear()
        self.seat.close()
