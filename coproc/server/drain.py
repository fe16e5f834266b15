"""The sequencer's turn as machine code: take commits out of seats, write the log, free slots that are done.

Functions over addresses and tables of 64-bit integers, called from `coproc.server.loop` without the interpreter lock.
What is decided is decided by `coproc.descent`; here is what moves between its tables and shared memory. The thread of
shard 0 is the only one that calls them.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from typing import Any

from numba.extending import register_jitable

from coproc import descent, probe
from coproc.descent import Table
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared import seats
from storage_tier import intrinsics
from storage_tier.words import WORD_BYTES

compiled: Any = intrinsics
load, store, fence, ring = compiled.load_acquire, compiled.store_release, compiled.fence, compiled.ring

for _function in (
    descent.record_gradient,
    descent.record,
    descent.move,
    descent.commit,
    descent.is_missing,
    descent.is_full,
    descent.has_quorum,
    descent.close_round,
    descent.slowest_clock,
    descent.plan_sweep,
):
    register_jitable(_function)

PENDING = -1
"""In place of a log position: the slot's record is not written yet."""

# Words of the desk: what the sequencer's thread knows besides the core. Addresses first.
GENERAL, ATTENTION, SHARDS_COUNT, TELLS_SLOWEST, UNTIL_NS, IDLE_SINCE_NS, BLOCKED = range(7)
# The round after version CLOSING has its quorum and is closed at CLOSE_AT_NS; `NEVER` where the open round has none.
GRACE_NS, CLOSING, CLOSE_AT_NS = range(7, 10)
DESK_WORDS = 16
NEVER = 1 << 62

# Words of a mapped seat (see `SeatMap`): addresses of its words, lines and slots (of the shard's range), bytes from
# slot to slot, depth, worker; commits taken out of it, and commits it had when it was looked at last; slots given back.
# The seat's own TAIL says the same as FREED, but a client that errs can write there.
WORDS, LINES, SLOTS, STRIDE, DEPTH, WORKER, TAKEN, SEEN, FREED = range(9)
SEAT_WORDS = 16

# Counters of what was admitted.
PUSHES, EXAMPLES, DUPLICATES, LOSS_EXAMPLES, STALENESS_SUM, STALENESS_MAX, LATE, NOT_FINITE = range(8)
COUNTERS = 8

# Entries that may wait for the slowest shard: the log, less what one append may overwrite, less the rounds that a
# single commit and the end of a grace may close.
LOG_ROOM = ctl.LOG_ENTRIES - ctl.APPEND_ENTRIES - ctl.MAX_WORKERS
# From so many on that a published version does not include, one is published for their sake: records without a
# gradient make none by themselves.
CROWDED = LOG_ROOM // 2

_APPEND_BEFORE, _APPEND_AFTER = probe.number("log.append.before"), probe.number("log.append.after")
_RELEASE_BEFORE, _RELEASE_AFTER = probe.number("release.before"), probe.number("release.after")
_ADMITTED, _DUPLICATE = int(descent.Verdict.ADMITTED), int(descent.Verdict.DUPLICATE)
_AHEAD = int(descent.Verdict.AHEAD)
_CARRIED, _DROPPED = int(descent.Verdict.CARRIED), int(descent.Verdict.DROPPED)
_DESCEND, _JOIN, _LEAVE = int(ctl.Kind.DESCEND), int(ctl.Kind.JOIN), int(ctl.Kind.LEAVE)
_JOINED, _LEFT = int(ctl.Presence.JOINED), int(ctl.Presence.LEFT)
_ROW_BYTES = ctl.ROW * WORD_BYTES


@register_jitable
def hit(left: Table, point: int) -> None:
    """As `probe.hit`."""
    if left[point] > 0:
        left[point] -= 1
        if left[point] == 0:
            compiled.die()


@register_jitable
def word(base: int, index: int) -> int:
    """Load word `index` of those that begin at an address."""
    return load(base + index * WORD_BYTES)  # type: ignore[no-any-return]


@register_jitable
def kept_from(shard: int) -> int:
    """As `Published.kept_from`."""
    return word(shard, pub.BANKS + (word(shard, pub.PUB) & 1) * ctl.ROW + pub.POSITION)


@register_jitable
def room_in_log(desk: Table, shards: Table) -> int:
    """Entries that may be admitted before the slowest shard has caught up."""
    slowest = kept_from(shards[0])
    for i in range(1, desk[SHARDS_COUNT]):
        slowest = min(slowest, kept_from(shards[i]))
    return LOG_ROOM - word(desk[GENERAL], ctl.HEAD) + slowest


@register_jitable
def admit(
    core: Table,
    workers: Table,
    records: Table,
    table: Table,
    order: Table,
    count: int,
    positions: Table,
    counters: Table,
    loss: Any,
    room: int,
) -> bool:
    """Take new commits out of all seats, in the order of workers; False if nothing was new."""
    new = False
    for i in range(count):
        number = order[i]
        seat = table[number]
        if seat[DEPTH] == 0:
            continue
        begun = taken = seat[TAKEN]
        seat[SEEN] = word(seat[WORDS], seats.HEAD)
        # A holder that says more than it can have is not followed further than its slots go.
        head = min(seat[SEEN], seat[FREED] + seat[DEPTH])
        while taken < head and core[descent.RECORDS] < room:
            slot = taken % seat[DEPTH]
            line = seat[LINES] + slot * _ROW_BYTES
            step, examples, read_version = word(line, 0), word(line, 1), word(line, 2)
            # A round may be closed in here: the slot is pending before it is known.
            positions[number, slot] = PENDING
            version = core[descent.VERSION]
            verdict = descent.commit(core, workers, records, seat[WORKER], step, number, slot, examples)
            if verdict == _AHEAD:
                break
            taken += 1
            if verdict == _DUPLICATE:
                positions[number, slot] = 0
                counters[DUPLICATES] += 1
                continue
            if verdict in (_CARRIED, _DROPPED):
                counters[LATE] += 1
            if verdict == _DROPPED:
                continue
            counters[PUSHES] += 1
            told = compiled.load_float(line + 3 * WORD_BYTES)
            if examples == 0:
                counters[NOT_FINITE] += told == math.inf
                continue
            counters[EXAMPLES] += examples
            if told == told:
                loss[0] += told * examples
                counters[LOSS_EXAMPLES] += examples
            if read_version >= 0:
                staleness = max(0, version - read_version)
                counters[STALENESS_SUM] += staleness
                counters[STALENESS_MAX] = max(counters[STALENESS_MAX], staleness)
        seat[TAKEN] = taken
        new = new or taken != begun
    return new


@register_jitable
def end_grace(desk: Table, core: Table, workers: Table, records: Table, pair: Table) -> bool:
    """Close the open round if it has had its quorum for as long as the grace is; whether it did.

    The time is not kept for the next process: after a restart the grace begins anew.
    """
    if not descent.has_quorum(core):
        desk[CLOSE_AT_NS] = NEVER
        return False
    now = compiled.monotonic_ns(pair)
    if desk[CLOSE_AT_NS] == NEVER or desk[CLOSING] != core[descent.VERSION]:
        desk[CLOSING], desk[CLOSE_AT_NS] = core[descent.VERSION], now + desk[GRACE_NS]
    if now < desk[CLOSE_AT_NS]:
        return False
    desk[CLOSE_AT_NS] = NEVER
    descent.close_round(core, workers, records)
    return True


@register_jitable
def append(
    desk: Table, core: Table, workers: Table, records: Table, log: Table, ledger: int, positions: Table, left: Table
) -> None:
    """Write what the core has decided into the log; from here on it is decided. Whole records, atomic each append.

    `ledger` is the address of the shared table of workers: the sum of the log, stored after it.
    """
    start, count = 0, core[descent.RECORDS]
    while start < count:
        stop = min(count, start + ctl.APPEND_ENTRIES)
        while stop < count and records[stop - 1, ctl.ENTRY_FOLLOWING] != 0:
            stop -= 1
        head = word(desk[GENERAL], ctl.HEAD)
        for i in range(start, stop):
            entry, place = records[i], log[(head + i - start) % ctl.LOG_ENTRIES]
            for k in range(ctl.ROW):  # a whole row at once takes three seconds to compile
                place[k] = entry[k]
        hit(left, _APPEND_BEFORE)
        store(desk[GENERAL] + ctl.HEAD * WORD_BYTES, head + stop - start)
        hit(left, _APPEND_AFTER)
        for i in range(start, stop):
            entry = records[i]
            row = ledger + entry[ctl.ENTRY_WORKER] * _ROW_BYTES
            kind = entry[ctl.ENTRY_KIND]
            if kind == _DESCEND:
                store(row + ctl.NEXT_STEP * WORD_BYTES, entry[ctl.ENTRY_STEP] + 1)
                after = head + i - start + 1 + entry[ctl.ENTRY_FOLLOWING]
                positions[entry[ctl.ENTRY_SEAT], entry[ctl.ENTRY_SLOT]] = after
            elif kind == _JOIN:
                store(row + ctl.OFFSET * WORD_BYTES, entry[ctl.ENTRY_STEP])
                store(row + ctl.PRESENCE * WORD_BYTES, _JOINED)
                if entry[ctl.ENTRY_WORKER] >= word(desk[GENERAL], ctl.WORKERS_USED):
                    store(desk[GENERAL] + ctl.WORKERS_USED * WORD_BYTES, entry[ctl.ENTRY_WORKER] + 1)
            elif kind == _LEAVE:
                store(row + ctl.PRESENCE * WORD_BYTES, _LEFT)
        start = stop
    core[descent.RECORDS] = 0
    if desk[TELLS_SLOWEST] != 0:
        store(desk[GENERAL] + ctl.SLOWEST * WORD_BYTES, descent.slowest_clock(core, workers))


@register_jitable
def applied_by_all(desk: Table, shards: Table) -> int:
    """The log position up to which no shard has anything left to do."""
    applied = word(shards[0], pub.APPLIED)
    for i in range(1, desk[SHARDS_COUNT]):
        applied = min(applied, word(shards[i], pub.APPLIED))
    return applied


@register_jitable
def free(desk: Table, shards: Table, table: Table, order: Table, count: int, positions: Table, left: Table) -> int:
    """Give slots back whose record all shards have applied, and wake who waits for one; `applied_by_all`."""
    applied = applied_by_all(desk, shards)
    freed = False
    for i in range(count):
        number = order[i]
        seat = table[number]
        tail = start = seat[FREED]
        while tail < seat[TAKEN]:
            position = positions[number, tail % seat[DEPTH]]
            if position == PENDING or position > applied:
                break
            tail += 1
        if tail != start:
            seat[FREED] = tail
            hit(left, _RELEASE_BEFORE)
            store(seat[WORDS] + seats.TAIL * WORD_BYTES, tail)
            hit(left, _RELEASE_AFTER)
            freed = True
    if freed:
        fence()
        for i in range(count):
            words = table[order[i], WORDS]
            if word(words, seats.WAITING) != 0:
                ring(words + seats.BELL * WORD_BYTES)
    return applied


@register_jitable
def wake_others(desk: Table, shards: Table) -> None:
    """Tell other shards' threads, here or on other servers, that the log has grown."""
    fence()
    for i in range(1, desk[SHARDS_COUNT]):
        if word(shards[i], pub.SLEEPING) != 0:
            ring(shards[i] + pub.WAKE * WORD_BYTES)


@register_jitable
def anything_new(table: Table, order: Table, count: int) -> bool:
    """One last look before sleeping: whether a seat has more than was looked at."""
    for i in range(count):
        seat = table[order[i]]
        if seat[DEPTH] != 0 and word(seat[WORDS], seats.HEAD) != seat[SEEN]:
            return True
    return False
