"""The loop of a sequencer's thread as machine code: it gives the interpreter lock up once, not once a push.

Whatever else Python does in this process, a push is admitted, descended and seen within microseconds. The loop comes
back to Python for what is rare: requests of other threads, housekeeping, passes that are left to `Sweeper`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coproc import descent, jit
from coproc.descent import Table
from coproc.server.drain import (
    ATTENTION,
    BLOCKED,
    CLOSE_AT_NS,
    GENERAL,
    IDLE_SINCE_NS,
    LATE,
    UNTIL_NS,
    admit,
    anything_new,
    append,
    applied_by_all,
    compiled,
    end_grace,
    fence,
    free,
    load,
    ring,
    room_in_log,
    store,
    wake_others,
    word,
)
from coproc.server.passes import DONE, LEFT_TO_PYTHON, POSITION, advance, sources
from coproc.shared import control as ctl
from coproc.shared import published as pub
from storage_tier.words import WORD_BYTES

# Why the loop came back.
ASKED, HOUSEKEEPING, SWEEP = 1, 2, 3


def serve(
    kernel: Any, small: bool, spin_ns: int, held_spin_ns: int, sleep_ns: int,
    desk: Table, core: Table, workers: Table, records: Table, log: Table, ledger: int, shards: Table,
    table: Table, order: Table, count: int, positions: Table, counters: Table, loss: Any, left: Table,
    state: Table, rows: Table, banks: Table, constants: Any,
    held: Table, again: Table, plan: Table, work: Table, pair: Table,
) -> int:  # fmt: skip
    """Serve one model until Python is needed; says why. Takes commits and writes the log once at least.

    Args:
        small: passes that `advance` can make are made in here.
        spin_ns: look again and again for this long before sleeping; held_spin_ns: while a round is open that some have
            given to, whose cores are free. sleep_ns: look again after so long at the latest.
        desk, …, left: as in `drain`; shards: addresses of the words of all shards, this thread's first.
        state, …, work: as in `passes`; pair: room for two words.
    """
    bell, sleeping = desk[GENERAL] + ctl.BELL * WORD_BYTES, desk[GENERAL] + ctl.SLEEPING * WORD_BYTES
    while True:
        room, late = room_in_log(desk, shards), counters[LATE]
        busy = admit(core, workers, records, table, order, count, positions, counters, loss, room)
        # Who was there when the grace ended is part of the round: after the look into all seats.
        end_grace(desk, core, workers, records, pair)
        if core[descent.RECORDS] != 0:
            append(desk, core, workers, records, log, ledger, positions, left)
            wake_others(desk, shards)
            if counters[LATE] != late:
                # Who was late waits for what becomes of its step; if that was dropped, no pass wakes it.
                ring(shards[0] + pub.BELL * WORD_BYTES)
            busy = True
        if load(desk[ATTENTION]) != 0:
            return ASKED
        now = compiled.monotonic_ns(pair)
        if now >= desk[UNTIL_NS]:
            return HOUSEKEEPING
        applied = free(desk, shards, table, order, count, positions, left)
        head = min(word(desk[GENERAL], ctl.HEAD), word(desk[GENERAL], ctl.CUT))
        if head != state[POSITION] and desk[BLOCKED] == 0:
            done = LEFT_TO_PYTHON
            if small:
                done = advance(
                    kernel, state, rows, banks, constants, log, head, table, order, count, held, again, plan, work, left
                )
                if done == DONE:
                    swept = shards[0] + pub.SWEPT_NS * WORD_BYTES
                    store(swept, load(swept) + compiled.monotonic_ns(pair) - now)
            if done == LEFT_TO_PYTHON:
                return SWEEP
            busy = busy or done == DONE
        desk[BLOCKED] = 0
        if busy:
            desk[IDLE_SINCE_NS] = now
        elif now - desk[IDLE_SINCE_NS] < (spin_ns if core[descent.HELD_COUNT] == 0 else held_spin_ns):
            compiled.give_way()
        else:
            seen = load(bell)
            store(sleeping, 1)
            fence()
            news = load(desk[ATTENTION]) != 0 or anything_new(table, order, count)
            if not news and applied_by_all(desk, shards) == applied:
                compiled.wait(bell, seen, min(sleep_ns, desk[UNTIL_NS] - now, desk[CLOSE_AT_NS] - now), pair)
            store(sleeping, 0)


compiled_serve = jit.compiled(serve, lambda: [Path(__file__), *sources()])
