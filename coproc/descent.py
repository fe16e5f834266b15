"""The pure core: commits, joins and leaves go in, records of the model's log and plans of sweeps come out.

No clock, no socket, no memory shared with anybody: `Sequencer` decides the one order of a model, `plan_sweep`
decides how much of that order one pass over memory applies. Both are tested without a server.

The functions are written in the part of Python that numba compiles, over tables of 64-bit integers: a server runs
them as machine code (`coproc.server.drain`), a test may run them as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coproc.consistency import Bsp, Consistency, Quorum
from coproc.shared.control import (
    ENTRY_EXAMPLES,
    ENTRY_FOLLOWING,
    ENTRY_KIND,
    ENTRY_STEP,
    ENTRY_VERSION,
    LOG_ENTRIES,
    MAX_WORKERS,
    ROW,
    Entry,
    Kind,
    Presence,
)

Table = NDArray[np.int64]

# A sweep is compiled for one to this many gradients in registers (see coproc.optim).
SWEEP_WIDTH = 8

# The core's own words. QUORUM: so many gradients close a round at the least. LATE: what becomes of one whose round was
# closed without it.
VERSION, SYNCHRONOUS, WORKERS, HELD_COUNT, RECORDS, QUORUM, LATE = range(7)
CORE_WORDS = 8
NOBODY_IS_LATE, DROP, CARRY = 0, 1, 2
# Words of a worker's row. HELD: the core has its gradient for the open round, of SEAT, SLOT and EXAMPLES. OWES: one
# past the last step that it has committed ahead of its turn: rounds wait for those even if it has left.
PRESENCE, NEXT_STEP, OFFSET, OWES, HELD, SEAT, SLOT, EXAMPLES = range(8)

_UNKNOWN, _JOINED, _LEFT = int(Presence.UNKNOWN), int(Presence.JOINED), int(Presence.LEFT)
_DESCEND, _JOIN, _LEAVE, _HYPER = int(Kind.DESCEND), int(Kind.JOIN), int(Kind.LEAVE), int(Kind.HYPER)


class Verdict(IntEnum):
    """What becomes of a commit."""

    ADMITTED = 1
    """It is in a record, or held for the record of its round. Its slot is busy until that is applied."""
    DUPLICATE = 2
    """Another attempt's gradient of the same step was first; the slot is free at once."""
    AHEAD = 3
    """An earlier step of this worker is not here yet (its twin has it), or its round is not open: look later."""
    CARRIED = 4
    """Late: its round was closed without it. Held for the record of the open round, as if admitted there."""
    DROPPED = 5
    """Late, and not descended: a record says that its step is done. Its slot is busy until that is applied."""


_ADMITTED, _DUPLICATE, _AHEAD = int(Verdict.ADMITTED), int(Verdict.DUPLICATE), int(Verdict.AHEAD)
_CARRIED, _DROPPED = int(Verdict.CARRIED), int(Verdict.DROPPED)


# ---- the order


def record(core: Table, records: Table, kind: int, worker: int, step: int) -> None:
    """Write a record of one member without a gradient."""
    row = records[core[RECORDS]]
    row[:] = 0
    row[0], row[1], row[2], row[3] = core[VERSION], kind, worker, step
    core[RECORDS] += 1


def record_gradient(
    core: Table, records: Table, worker: int, step: int, seat: int, slot: int, examples: int, following: int
) -> None:
    """Write one member that has a gradient."""
    row = records[core[RECORDS]]
    row[0], row[1], row[2], row[3] = core[VERSION], _DESCEND, worker, step
    row[4], row[5], row[6], row[7] = seat, slot, examples, following
    core[RECORDS] += 1


def commit(
    core: Table, workers: Table, records: Table, worker: int, step: int, seat: int, slot: int, examples: int
) -> int:
    """See `Sequencer.commit`."""
    known = workers[worker]
    synchronous = core[SYNCHRONOUS] != 0
    if not synchronous and known[PRESENCE] == _UNKNOWN:
        return _AHEAD
    if step < known[NEXT_STEP]:
        return _DUPLICATE
    if step > known[NEXT_STEP]:
        known[OWES] = max(known[OWES], step + 1)
        return _AHEAD
    if not synchronous:
        known[NEXT_STEP] += 1
        if examples != 0:
            core[VERSION] += 1
        record_gradient(core, records, worker, step, seat, slot, examples, 0)
        return _ADMITTED
    if known[HELD] != 0:
        return _DUPLICATE
    verdict = _ADMITTED
    # What a worker has committed before it left goes into the rounds that are open now, one each.
    behind = core[VERSION] - step - known[OFFSET] if known[PRESENCE] == _JOINED else 0
    if behind != 0:
        if behind < 0 or core[LATE] == NOBODY_IS_LATE:
            return _AHEAD
        if core[LATE] == DROP:
            # The move comes first: a kill between the two records would else make the next step late as well.
            move(core, records, known, worker, step + 1)
            known[NEXT_STEP] += 1
            record_gradient(core, records, worker, step, seat, slot, 0, 0)
            return _DROPPED
        move(core, records, known, worker, step)
        verdict = _CARRIED
    known[HELD], known[SEAT], known[SLOT], known[EXAMPLES] = 1, seat, slot, examples
    core[HELD_COUNT] += 1
    if is_full(core, workers):
        close_round(core, workers, records)
    return verdict


def move(core: Table, records: Table, known: Table, worker: int, step: int) -> None:
    """Let `step` of a worker that is a member belong to the open round."""
    known[PRESENCE], known[OFFSET] = _JOINED, core[VERSION] - step
    record(core, records, _JOIN, worker, known[OFFSET])


def is_missing(known: Table) -> bool:
    """Whether the open round waits for the worker of this row."""
    return bool(known[HELD] == 0 and (known[PRESENCE] != _LEFT or known[OWES] > known[NEXT_STEP]))


def is_full(core: Table, workers: Table) -> bool:
    """Whether somebody has given to the open round, and nobody is missing in it."""
    if core[HELD_COUNT] == 0:
        return False
    for worker in range(core[WORKERS]):  # noqa: SIM110 (no generators in compiled code)
        if is_missing(workers[worker]):
            return False
    return True


def has_quorum(core: Table) -> bool:
    """Whether the open round may be closed although somebody is missing, once its grace is over."""
    return bool(0 < core[QUORUM] <= core[HELD_COUNT])


def close_round(core: Table, workers: Table, records: Table) -> None:
    """Write the record of the open round with those who have given."""
    core[VERSION] += 1
    following = core[HELD_COUNT]
    core[HELD_COUNT] = 0
    for worker in range(core[WORKERS]):
        known = workers[worker]
        if known[HELD] != 0:
            following -= 1
            record_gradient(
                core, records, worker, known[NEXT_STEP], known[SEAT], known[SLOT], known[EXAMPLES], following
            )
            known[HELD] = 0
            known[NEXT_STEP] += 1


def slowest_clock(core: Table, workers: Table) -> int:
    """The round of the slowest worker that has joined and not left; 0 if there is none."""
    slowest = -1
    for worker in range(core[WORKERS]):
        known = workers[worker]
        clock = known[NEXT_STEP] + known[OFFSET]
        if known[PRESENCE] == _JOINED and (slowest < 0 or clock < slowest):
            slowest = clock
    return max(slowest, 0)


class Sequencer:
    """Decides the order of one model's log. Every method is quick and deterministic.

    Args:
        consistency: the rule of the model.
        version: the version that the log's last record makes.
        ledger: (worker, presence, next step, offset) as the log has summed them, after a restart.
    """

    def __init__(
        self, consistency: Consistency, version: int, ledger: Iterable[tuple[int, int, int, int]] = ()
    ) -> None:
        self.core = np.zeros(CORE_WORDS, np.int64)
        self.workers = np.zeros((MAX_WORKERS, ROW), np.int64)
        self.records = np.zeros((LOG_ENTRIES, ROW), np.int64)
        """What was decided since the caller last took it, in order: whole records, `core[RECORDS]` entries."""
        self.core[VERSION] = version
        if isinstance(consistency, Bsp):
            self.core[SYNCHRONOUS], self.core[WORKERS] = 1, consistency.workers
            self.core[QUORUM] = consistency.needed
        if isinstance(consistency, Quorum):
            self.core[LATE] = CARRY if consistency.late == "carry" else DROP
        for worker, *words in ledger:
            self.workers[worker, :3] = words
            self._know(worker)

    def _know(self, worker: int) -> Table:
        if not self.core[SYNCHRONOUS]:
            self.core[WORKERS] = max(self.core[WORKERS], worker + 1)
        known: Table = self.workers[worker]
        return known

    @property
    def version(self) -> int:
        """The version that the last record makes."""
        return int(self.core[VERSION])

    def take(self) -> list[Entry]:
        """The records that were decided since the last call."""
        count, self.core[RECORDS] = int(self.core[RECORDS]), 0
        return [Entry._make(row) for row in self.records[:count].tolist()]

    # -- events ----------------------------------------------------------------------------------------------

    def join(self, worker: int) -> None:
        """An attempt of `worker` has come. Its rounds count from now on, if they did not already."""
        known, step = self._know(worker), int(self.workers[worker, NEXT_STEP])
        if self.core[SYNCHRONOUS]:
            # Who is late goes on in the open round as well: what this attempt reads is no older.
            if known[PRESENCE] != Presence.JOINED or step + known[OFFSET] != self.version:
                move(self.core, self.records, known, worker, step)
        elif known[PRESENCE] != Presence.JOINED:
            offset = slowest_clock(self.core, self.workers) - step
            known[PRESENCE], known[OFFSET] = Presence.JOINED, offset
            record(self.core, self.records, _JOIN, worker, offset)

    def leave(self, worker: int) -> None:
        """`worker` has no more data: nobody waits for it any more."""
        known = self._know(worker)
        if known[PRESENCE] == Presence.LEFT:
            return
        known[PRESENCE] = Presence.LEFT
        record(self.core, self.records, _LEAVE, worker, 0)
        if is_full(self.core, self.workers):
            close_round(self.core, self.workers, self.records)

    def end_grace(self) -> None:
        """Time has passed since the open round had its quorum: it is closed. Nothing if it has none any more."""
        if has_quorum(self.core):
            close_round(self.core, self.workers, self.records)

    def owe(self, worker: int, step: int) -> None:
        """After a restart: a seat has this step of `worker`, which is not in the log. Its round waits for it."""
        known = self._know(worker)
        known[OWES] = max(known[OWES], step + 1)

    def hyper(self, learning_rate_word: int) -> None:
        """From the next record on, descend with another learning rate (the bits of a float64)."""
        record(self.core, self.records, _HYPER, 0, learning_rate_word)

    def commit(self, worker: int, step: int, seat: int, slot: int, examples: int) -> Verdict:
        """A gradient lies in a slot (`examples` 0: a step without one). Admits each (worker, step) once."""
        return Verdict(commit(self.core, self.workers, self.records, worker, step, seat, slot, examples))

    # -- questions -------------------------------------------------------------------------------------------

    def missing(self) -> list[int]:
        """In rounds: the workers that have not given to the open one and may. Otherwise nobody."""
        if not self.core[SYNCHRONOUS]:
            return []
        return [worker for worker in range(self.core[WORKERS]) if is_missing(self.workers[worker])]

    def slowest_clock(self) -> int:
        """The round of the slowest worker that has joined and not left; 0 if there is none."""
        return int(slowest_clock(self.core, self.workers))


# ---- the plan of a pass

# Words of a plan. UPDATES have a gradient at least; the largest has MEMBERS. The pass makes NEXT_VERSION and leaves
# the log at POSITION. RATE is a new learning rate that takes effect *after* these updates, if HAS_RATE.
UPDATES, MEMBERS, NEXT_VERSION, POSITION, HAS_RATE, RATE = range(6)
PLAN_WORDS = 8


def plan_sweep(
    log: Table, position: int, head: int, version: int, pinned: Any, pinned_count: int, width: int, plan: Table
) -> None:
    """How far to go from `position` in one pass: as many updates as a sweep takes, but no pinned version jumped.

    Args:
        log: the ring of entries.
        position, head: entries [position, head) are committed and not applied; whole records.
        version: the version published now.
        pinned: versions that readers wait for, `pinned_count` of them; the pass ends at the first of them, so that
            every shard has it.
        width: the most updates of one member; one of more members is a pass of its own.
        plan: gets the answer.
    """
    updates = members_most = has_rate = rate = 0
    entries = len(log)
    while position < head:
        first = log[position % entries]
        following, kind = first[ENTRY_FOLLOWING], first[ENTRY_KIND]
        if kind == _DESCEND:
            members = 0
            for i in range(position, position + following + 1):
                if log[i % entries, ENTRY_EXAMPLES] != 0:
                    members += 1
            if updates > 0 and members > 0 and (members > 1 or members_most > 1 or updates == width):
                break
            if members > 0:
                updates += 1
                members_most = max(members_most, members)
        elif kind == _HYPER:
            has_rate, rate = 1, first[ENTRY_STEP]
        position += following + 1
        advanced = first[ENTRY_VERSION] != version
        version = first[ENTRY_VERSION]
        stop = has_rate != 0
        if advanced:
            for i in range(pinned_count):
                stop = stop or pinned[i] == version
        if stop:
            break
    plan[UPDATES], plan[MEMBERS], plan[NEXT_VERSION] = updates, members_most, version
    plan[POSITION], plan[HAS_RATE], plan[RATE] = position, has_rate, rate
