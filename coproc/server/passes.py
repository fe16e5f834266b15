"""Choosing a back buffer and publishing it, and whole passes over small shards, as machine code.

A pass is what `coproc.server.sweeper` does for every shard: plan, sweep the front into the back, publish, wake. Of a
small shard that Python takes longer than the arithmetic, so it is written here once more as one compiled function,
for the commonest pass: updates by one gradient each. Any other is left to `Sweeper`.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from pathlib import Path
from typing import Any

from numba.extending import register_jitable

from coproc import descent, jit, optim, probe
from coproc.descent import Table
from coproc.server import drain, kernels
from coproc.server.drain import CROWDED, SLOTS, STRIDE, WORDS, fence, hit, kept_from, ring, store, word
from coproc.server.kernels import descend
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared import seats
from storage_tier.words import WORD_BYTES

# Words of a shard's state: the address of its words; parameters; buffers; how far it is; how many old versions may be
# held as views. For passes in here, what the table of constants is good for: CONSTANTS_COUNT updates from
# CONSTANTS_FIRST on, or EVER, any of them.
SHARD, SIZE, BUFFERS, POSITION, VERSION, UPDATES, RATE, VIEWS_OF_OLD, CONSTANTS_FIRST, CONSTANTS_COUNT = range(10)
EVER = -1
STATE_WORDS = 16

# What a pass came to.
NOTHING, DONE, LEFT_TO_PYTHON = 0, 1, 2

# Updates of one pass; the rows of a small shard stay in the cache between them.
WIDTH = 64

_SWEEP_BEFORE, _SWEEP_MIDDLE = probe.number("sweep.before"), probe.number("sweep.middle")
_PUBLISH_BEFORE, _PUBLISH_AFTER = probe.number("publish.before"), probe.number("publish.after")
_DESCEND = int(ctl.Kind.DESCEND)


@register_jitable
def pins(table: Table, order: Table, count: int, out: Table) -> int:
    """Write the versions that readers hold into `out`; how many."""
    found = 0
    for i in range(count):
        version = word(table[order[i], WORDS], seats.PIN)
        if version != seats.NO_PIN:
            out[found] = version
            found += 1
    return found


@register_jitable
def _holds(values: Table, count: int, value: int) -> bool:
    for i in range(count):  # noqa: SIM110 (no generators in compiled code)
        if values[i] == value:
            return True
    return False


@register_jitable
def claim_back(state: Table, table: Table, order: Table, count: int, held: Table, again: Table) -> int:
    """Choose a buffer for the next version and mark it as going, or -1 if readers hold them all.

    A mark keeps the version's number (as ``-2 - version``), so that a server killed right here does not
    forget at restart who may be looking. `held` and `again` are room for the pins before and after the mark.
    """
    held_count = pins(table, order, count, held)
    front = word(state[SHARD], pub.PUB) >> 1 & 0x7F
    for buffer in range(state[BUFFERS]):
        at = state[SHARD] + (pub.VERSIONS + buffer) * WORD_BYTES
        version = word(at, 0)
        known = version if version >= pub.GONE else -2 - version
        if buffer == front or _holds(held, held_count, known):
            continue
        store(at, -2 - known if known >= 0 else pub.GONE)
        fence()
        if not _holds(again, pins(table, order, count, again), known):
            return buffer
        store(at, version)
    store(state[SHARD] + pub.COPY_ONLY * WORD_BYTES, 1)
    return -1


@register_jitable
def publish(
    state: Table, version: int, buffer: int, position: int, table: Table, order: Table, count: int, held: Table,
    left: Table,
) -> None:  # fmt: skip
    """Make a written buffer and the other bank the front, and wake who waits for it.

    Atomic; the streamed stores of the sweep are fenced first. UPDATES and RATE of the state go with it.
    """
    shard = state[SHARD]
    # So many readers hold old versions as views that one more would leave no back buffer?
    held_count = pins(table, order, count, held)
    old = 0
    for i in range(held_count):
        old += held[i] != version and not _holds(held, i, held[i])
    store(shard + pub.COPY_ONLY * WORD_BYTES, int(old >= state[VIEWS_OF_OLD]))
    hit(left, _PUBLISH_BEFORE)
    bank = 1 - (word(shard, pub.PUB) & 1)
    at = shard + (pub.BANKS + bank * ctl.ROW) * WORD_BYTES
    store(at + pub.POSITION * WORD_BYTES, position)
    store(at + pub.UPDATES * WORD_BYTES, state[UPDATES])
    store(at + pub.RATE * WORD_BYTES, state[RATE])
    store(shard + (pub.VERSIONS + buffer) * WORD_BYTES, version)
    fence()
    store(shard + pub.PUB * WORD_BYTES, version << 8 | buffer << 1 | bank)
    hit(left, _PUBLISH_AFTER)
    ring(shard + pub.BELL * WORD_BYTES)


@register_jitable
def advance(
    kernel: Any, state: Table, rows: Table, banks: Table, constants: Any, log: Table, head: int,
    table: Table, order: Table, count: int, held: Table, again: Table, plan: Table, work: Table, left: Table,
) -> int:  # fmt: skip
    """One pass over a small shard; NOTHING if readers hold every back buffer.

    Args:
        rows: addresses of the buffers of parameters; banks: (2, rows of state) of the optimizer's state.
        constants: float32 (`WIDTH`, constants), a row an update as the state says.
        head: entries of the log up to here are committed.
        held, again, plan: room for pins and for the plan; work: room for (2, rows) addresses.
    """
    position, version, size = state[POSITION], state[VERSION], state[SIZE]
    descent.plan_sweep(log, position, head, version, held, pins(table, order, count, held), WIDTH, plan)
    updates, stop = plan[descent.UPDATES], plan[descent.POSITION]
    crowded = head - kept_from(state[SHARD]) > CROWDED
    if plan[descent.HAS_RATE] != 0 or plan[descent.MEMBERS] > 1:
        return LEFT_TO_PYTHON
    if updates == 0:
        if crowded or plan[descent.NEXT_VERSION] != version:
            return LEFT_TO_PYTHON
        state[POSITION] = stop
        store(state[SHARD] + pub.APPLIED * WORD_BYTES, stop)
        return DONE
    ever = state[CONSTANTS_COUNT] == EVER
    skipped = 0 if ever else state[UPDATES] + 1 - state[CONSTANTS_FIRST]
    if not ever and (skipped < 0 or skipped + updates > state[CONSTANTS_COUNT]):
        return LEFT_TO_PYTHON
    for i in range(position, stop):
        entry = log[i % ctl.LOG_ENTRIES]
        if entry[ctl.ENTRY_EXAMPLES] != 0 and table[entry[ctl.ENTRY_SEAT], SLOTS] == 0:
            return LEFT_TO_PYTHON  # a seat that is gone before its time: where an exception can say so
    buffer = claim_back(state, table, order, count, held, again)
    if buffer < 0:
        return NOTHING
    hit(left, _SWEEP_BEFORE)
    now = word(state[SHARD], pub.PUB)
    front, back = work[0], work[1]
    front[0], back[0] = rows[now >> 1 & 0x7F], rows[buffer]
    for i in range(banks.shape[1]):
        front[1 + i], back[1 + i] = banks[now & 1, i], banks[1 - (now & 1), i]
    done = 0
    for i in range(position, stop):
        entry = log[i % ctl.LOG_ENTRIES]
        if entry[ctl.ENTRY_KIND] != _DESCEND or entry[ctl.ENTRY_EXAMPLES] == 0:
            continue
        seat = table[entry[ctl.ENTRY_SEAT]]
        gradient = seat[SLOTS] + entry[ctl.ENTRY_SLOT] * seat[STRIDE]
        descend(kernel, gradient, constants[0 if ever else skipped + done], front, back, size)
        front = back  # the second one and those after it, in place
        done += 1
        if done == 1:
            hit(left, _SWEEP_MIDDLE)
    state[UPDATES] += updates
    publish(state, plan[descent.NEXT_VERSION], buffer, stop, table, order, count, held, left)
    state[POSITION], state[VERSION] = stop, plan[descent.NEXT_VERSION]
    store(state[SHARD] + pub.APPLIED * WORD_BYTES, stop)
    return DONE


def sources() -> list[Path]:
    """The files whose text decides what is compiled here."""
    modules = (drain, kernels, descent, ctl, pub, seats)
    return [Path(__file__), *(Path(str(module.__file__)) for module in modules), *optim.sources()]


def compiled_step(function: Any) -> Any:
    """`plan_sweep`, `pins`, `claim_back` or `publish`, compiled, for Python."""
    return jit.compiled(function, sources)
