"""The pure core: commits, joins and leaves go in, records of the model's log and plans of sweeps come out.

No clock, no socket, no memory shared with anybody: `Sequencer` decides the one order of a model, `plan_sweep`
decides how much of that order one pass over memory applies. Both are tested without a server.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum

from coproc.consistency import Bsp, Consistency
from coproc.shared.control import Entry, Kind, Presence

# A sweep is compiled for one to this many gradients in registers (see coproc.optim).
SWEEP_WIDTH = 8


class Verdict(Enum):
    """What becomes of a commit."""

    ADMITTED = 1
    """It is in a record, or held for the record of its round. Its slot is busy until that is applied."""
    DUPLICATE = 2
    """Another attempt's gradient of the same step was first; the slot is free at once."""
    AHEAD = 3
    """An earlier step of this worker is not here yet (its twin has it), or its round is not open: look later."""


@dataclass
class _Worker:
    presence: Presence = Presence.UNKNOWN
    next_step: int = 0
    offset: int = 0
    owes: bool = False
    """Bsp: it has committed a step that a later round takes, so that round waits for it even if it has left."""


@dataclass
class Sequencer:
    """Decides the order of one model's log. Every method is quick and deterministic.

    Args:
        consistency: the rule of the model.
        ledger: (worker, presence, next step, offset) as the log has summed them, after a restart.
        version: the version that the log's last record makes.
    """

    consistency: Consistency
    version: int
    ledger: Iterable[tuple[int, Presence, int, int]] = ()
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _held: dict[int, Entry] = field(default_factory=dict)
    """Bsp: worker -> its gradient for the open round."""
    records: list[Entry] = field(default_factory=list)
    """What was decided since the caller last took it, in order: whole records, to be appended to the log."""

    def __post_init__(self) -> None:
        for worker, presence, next_step, offset in self.ledger:
            self._workers[worker] = _Worker(presence, next_step, offset)
        if isinstance(self.consistency, Bsp):
            for worker in range(self.consistency.workers):
                self._workers.setdefault(worker, _Worker())

    # -- events ----------------------------------------------------------------------------------------------

    def join(self, worker: int) -> None:
        """An attempt of `worker` has come. Its rounds count from now on, if they did not already."""
        known = self._workers.setdefault(worker, _Worker())
        if known.presence is Presence.JOINED:
            return
        if isinstance(self.consistency, Bsp):
            # A first join starts in the round of its step; one that comes back goes on in the open round.
            offset = 0 if known.presence is Presence.UNKNOWN else self.version - known.next_step
        else:
            offset = self.slowest_clock() - known.next_step
        known.presence, known.offset = Presence.JOINED, offset
        self.records.append(Entry(self.version, Kind.JOIN, worker, offset, 0, 0, 0, 0))

    def leave(self, worker: int) -> None:
        """`worker` has no more data: nobody waits for it any more."""
        known = self._workers.setdefault(worker, _Worker())
        if known.presence is Presence.LEFT:
            return
        known.presence = Presence.LEFT
        self.records.append(Entry(self.version, Kind.LEAVE, worker, 0, 0, 0, 0, 0))
        self._close_rounds()

    def hyper(self, learning_rate_word: int) -> None:
        """From the next record on, descend with another learning rate (the bits of a float64)."""
        self.records.append(Entry(self.version, Kind.HYPER, 0, learning_rate_word, 0, 0, 0, 0))

    def commit(self, worker: int, step: int, seat: int, slot: int, examples: int) -> Verdict:
        """A gradient lies in a slot (`examples` 0: a step without one). Admits each (worker, step) once."""
        known = self._workers.get(worker)
        if known is None:
            return Verdict.AHEAD
        if step < known.next_step:
            return Verdict.DUPLICATE
        if step > known.next_step:
            known.owes = True
            return Verdict.AHEAD
        if not isinstance(self.consistency, Bsp):
            known.next_step += 1
            if examples:
                self.version += 1
            self.records.append(Entry(self.version, Kind.DESCEND, worker, step, seat, slot, examples, 0))
            return Verdict.ADMITTED
        if worker in self._held:
            return Verdict.DUPLICATE
        if known.presence is Presence.JOINED and step + known.offset != self.version:
            return Verdict.AHEAD
        # What a worker has committed before it left goes into the rounds that are open now, one each.
        known.owes = False
        self._held[worker] = Entry(0, Kind.DESCEND, worker, step, seat, slot, examples, 0)
        self._close_rounds()
        return Verdict.ADMITTED

    def _close_rounds(self) -> None:
        if not isinstance(self.consistency, Bsp) or not self._held or self.missing():
            return
        members = [self._held[worker] for worker in sorted(self._held)]
        self._held.clear()
        self.version += 1
        last = len(members) - 1
        for i, member in enumerate(members):
            self._workers[member.worker].next_step += 1
            self.records.append(member._replace(version=self.version, following=last - i))

    # -- questions -------------------------------------------------------------------------------------------

    def missing(self) -> list[int]:
        """Bsp: the workers that the open round waits for. Otherwise nobody."""
        if not isinstance(self.consistency, Bsp):
            return []
        return [
            worker
            for worker in range(self.consistency.workers)
            if worker not in self._held
            and (self._workers[worker].presence is not Presence.LEFT or self._workers[worker].owes)
        ]

    def slowest_clock(self) -> int:
        """The round of the slowest worker that has joined and not left; 0 if there is none."""
        clocks = [w.next_step + w.offset for w in self._workers.values() if w.presence is Presence.JOINED]
        return min(clocks, default=0)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one pass over memory applies."""

    updates: list[list[Entry]]
    """In order; each a list of members that have a gradient, in worker order."""
    version: int
    """The version that the pass makes."""
    position: int
    """The log position after it."""
    learning_rate_word: int | None
    """A new learning rate that takes effect *after* these updates, if the log says so next."""


def plan_sweep(entries: list[Entry], position: int, version: int, pinned: Collection[int]) -> Sweep:
    """How far to go from `position` in one pass: as many updates as a sweep takes, but no pinned version jumped.

    Args:
        entries: the committed entries from `position` on, whole records only.
        position: log position of entries[0].
        version: the version published now.
        pinned: versions that readers wait for; the pass ends at the first of them, so that every shard has it.
    """
    updates: list[list[Entry]] = []
    rate: int | None = None
    i = 0
    while i < len(entries):
        size = entries[i].following + 1
        record = entries[i : i + size]
        if record[0].kind == Kind.DESCEND:
            members = [m for m in record if m.examples]
            if updates and members and (len(members) > 1 or len(updates[-1]) > 1 or len(updates) == SWEEP_WIDTH):
                break
            if members:
                updates.append(members)
        elif record[0].kind == Kind.HYPER:
            rate = record[0].step
        i += size
        advanced = record[0].version != version
        version = record[0].version
        if rate is not None or (advanced and version in pinned):
            break
    return Sweep(updates, version, position + i, rate)
