"""The control region of a model: its order (the log), its workers (the ledger), and who is being waited for.

Written by the sequencer (the server of shard 0) alone, but for two things that near clients write: the bell,
and for each worker the last step it has claimed. Everything is 64-bit words; see `storage_tier.words`.

Record n of the log is what turns version n-1 into version n, or a change of membership or of a setting. It is
stored as one entry for each member; `HEAD`, the count of entries, is stored last and is the commit point. The
ledger (worker -> next step) is the log's own sum: it is updated after `HEAD`, and a restart replays over it the
entries that are still there, which changes nothing unless the sequencer was killed in between.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from storage_tier.errors import CorruptRegion
from storage_tier.regions import Region, align

ROW = 8  # words in a row of a table: one cache line

# General words, grouped by writer so that no two writers share a cache line.
EPOCH, STATE = 0, 1
# What a model begins with that is restored: version, count of updates, bits of the learning rate. The log begins empty.
FIRST_VERSION, FIRST_UPDATES, FIRST_RATE = 2, 3, 4
HEAD, SLOWEST, WORKERS_USED, SEATS_CHANGED, LOST_WORKER = 8, 9, 10, 11, 12
# Shards apply the log up to here and no further: all of them then hold one version, which is being copied. A word and
# no record of the log, so that it ends with the server that set it.
CUT = 13
NO_CUT = 1 << 62
SLEEPING = 16
BELL = 24
_GENERAL_WORDS = 64

LIVE, DELETED = 1, 2

MAX_WORKERS = 4096
MAX_SEATS = 512
LOG_ENTRIES = 16384
# One append has at most this many entries (a round of all workers), so that a replay of the newest ones never reads
# what an append that was killed has half overwritten: the oldest.
APPEND_ENTRIES = MAX_WORKERS


class Kind(IntEnum):
    """What a record of the log does."""

    DESCEND = 1
    JOIN = 2
    LEAVE = 3
    HYPER = 4


class Presence(IntEnum):
    """State of a worker in the ledger."""

    UNKNOWN = 0
    JOINED = 1
    LEFT = 2


class Entry(NamedTuple):
    """One member of one record. A tuple, because millions of them are made."""

    version: int
    """The model's version once the record is applied."""
    kind: int
    """A `Kind`."""
    worker: int
    step: int
    """DESCEND: the worker's step. JOIN: its offset (round = step + offset). HYPER: the bits of a float64."""
    seat: int
    slot: int
    examples: int
    """0 if the member gives no gradient (a skipped step)."""
    following: int
    """How many entries of the same record come after this one."""


# Where an entry's words lie, for those who read rows of the log as they are.
ENTRY_VERSION, ENTRY_KIND, ENTRY_WORKER, ENTRY_STEP, ENTRY_SEAT, ENTRY_SLOT, ENTRY_EXAMPLES, ENTRY_FOLLOWING = range(8)

# Worker table: words of a row.
PRESENCE, NEXT_STEP, OFFSET = 0, 1, 2
# Seat table: words of a row.
SEAT_STATE, SEAT_WORKER, SEAT_GENERATION, SEAT_DEPTH = 0, 1, 2, 3
SEAT_FREE, SEAT_OPEN = 0, 1


Row = tuple[int, int, int, int]
"""Of the ledger: worker, presence, next step, offset."""


class Control:
    """The mapped control region. One sequencer writes; everybody on the host may read at any time."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.general = region.words(0, _GENERAL_WORDS)
        at = _GENERAL_WORDS * 8
        self.workers = region.words(at, MAX_WORKERS * ROW)
        at += MAX_WORKERS * ROW * 8
        self.claims = region.words(at, MAX_WORKERS)
        at += MAX_WORKERS * 8
        self.seats = region.words(at, MAX_SEATS * ROW)
        at += MAX_SEATS * ROW * 8
        # Read and written as rows: below HEAD nothing changes until it is overwritten.
        self.log = region.array(at, "i8", LOG_ENTRIES * ROW).reshape(LOG_ENTRIES, ROW)

    @staticmethod
    def size_bytes() -> int:
        """Size of every control region."""
        words = _GENERAL_WORDS + MAX_WORKERS * ROW + MAX_WORKERS + MAX_SEATS * ROW + LOG_ENTRIES * ROW
        return align(words * 8, 4096)

    @classmethod
    def create(
        cls, path: Path, epoch: int, first: tuple[int, int, int] = (0, 0, 0), ledger: Iterable[Row] = ()
    ) -> Control:
        """Create the region of a new model; live from here on.

        Args:
            first: version, count of updates, bits of the learning rate.
            ledger: (worker, presence, next step, offset) of those that have worked on it before it was restored.
        """
        control = cls(Region.create(path, cls.size_bytes(), "control"))
        for worker in range(MAX_WORKERS):
            control.claims.store(worker, -1)
        for word, value in zip((FIRST_VERSION, FIRST_UPDATES, FIRST_RATE), first, strict=True):
            control.general.store(word, value)
        for worker, *row in ledger:
            for word, value in zip((PRESENCE, NEXT_STEP, OFFSET), row, strict=True):
                control.workers.store(worker * ROW + word, value)
            control.general.store(WORKERS_USED, max(control.general.load(WORKERS_USED), worker + 1))
        control.general.store(CUT, NO_CUT)
        control.general.store(EPOCH, epoch)
        control.general.store(STATE, LIVE)
        return control

    @classmethod
    def open(cls, path: Path) -> Control:
        """Map the region of an existing model.

        Raises:
            RegionNotFound, CorruptRegion: as `Region.open`, or the region of something else.
        """
        region = Region.open(path, populate=True)
        if region.kind != "control" or region.size_bytes != cls.size_bytes():
            region.close()
            raise CorruptRegion(f"{path} is a region of kind {region.kind!r}, not a model's control region")
        return cls(region)

    @property
    def epoch(self) -> int:
        return self.general.load(EPOCH)

    @property
    def deleted(self) -> bool:
        return self.general.load(STATE) == DELETED

    # -- the log ---------------------------------------------------------------------------------------------

    @property
    def head(self) -> int:
        """How many entries are committed: the position after the last record."""
        return self.general.load(HEAD)

    @property
    def head_version(self) -> int:
        """The version that the log's last record makes, or the first one."""
        head = self.head
        return int(self.log[(head - 1) % LOG_ENTRIES, ENTRY_VERSION]) if head else self.first_version

    @property
    def first_version(self) -> int:
        """What the model began with: 0, or more if it was restored."""
        return self.general.load(FIRST_VERSION)

    @property
    def due(self) -> int:
        """How far shards shall apply the log now: to its head, unless a cut is nearer. The head is looked at first."""
        return min(self.head, self.general.load(CUT))

    def entries(self, start: int, stop: int) -> list[Entry]:
        """The committed entries at positions [start, stop), which must still be in the log."""
        first, last = start % LOG_ENTRIES, stop % LOG_ENTRIES
        if start == stop:
            return []
        rows = self.log[first:last] if first < last else np.roll(self.log, -first, 0)[: stop - start]
        return [Entry._make(row) for row in rows.tolist()]

    def replay(self) -> None:
        """Bring the ledger up to the log after a restart; idempotent. Sequencer only.

        Only the last append can be missing in it.
        """
        head = self.head
        for entry in self.entries(max(0, head - APPEND_ENTRIES), head):
            self._sum(entry)

    def _sum(self, e: Entry) -> None:
        row, workers = e.worker * ROW, self.workers
        if e.kind == Kind.DESCEND:
            if workers.load(row + NEXT_STEP) <= e.step:
                workers.store(row + NEXT_STEP, e.step + 1)
        elif e.kind == Kind.JOIN:
            workers.store(row + OFFSET, e.step)
            workers.store(row + PRESENCE, Presence.JOINED)
            if e.worker >= self.general.load(WORKERS_USED):
                self.general.store(WORKERS_USED, e.worker + 1)
        elif e.kind == Kind.LEAVE:
            workers.store(row + PRESENCE, Presence.LEFT)

    # -- the ledger ------------------------------------------------------------------------------------------

    def ledger(self) -> Iterator[tuple[int, Presence, int, int]]:
        """(worker, presence, next step, offset) of each worker that ever joined."""
        for worker in range(self.general.load(WORKERS_USED)):
            presence, next_step, offset = self.workers.row(worker * ROW, 3)
            if presence:
                yield worker, Presence(presence), next_step, offset

    def rows(self) -> tuple[Row, ...]:
        """`ledger`, as plain numbers."""
        return tuple((worker, int(presence), step, offset) for worker, presence, step, offset in self.ledger())

    def next_step(self, worker: int) -> int:
        """The first step of this worker that is not in the log."""
        return self.workers.load(worker * ROW + NEXT_STEP)

    def claimed(self, worker: int) -> int:
        """The last step that an attempt of this worker says is committed in its slots, or -1."""
        return self.claims.load(worker)


_FLOAT, _INTEGER = struct.Struct("<d"), struct.Struct("<q")


def float_to_word(value: float) -> int:
    """The bits of a float64 as a signed 64-bit integer."""
    return _INTEGER.unpack(_FLOAT.pack(value))[0]  # type: ignore[no-any-return]


def word_to_float(word: int) -> float:
    """The float64 whose bits are `word`."""
    return _FLOAT.unpack(_INTEGER.pack(word))[0]  # type: ignore[no-any-return]
