"""The log in shared memory: atomic, whole after a wrap, and replayed without what a killed append has left."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numba
import numpy as np
import pytest

from coproc import descent, probe
from coproc.server import drain
from coproc.shared import control as ctl
from coproc.shared.control import Control, Entry, Kind, float_to_word, word_to_float


@pytest.fixture
def control():
    with tempfile.TemporaryDirectory(prefix=f"coproc-test-control-{os.getpid()}-", dir="/dev/shm") as directory:
        made = Control.create(Path(directory) / "control", epoch=1)
        yield made
        for words in (made.general, made.workers, made.claims, made.seats):
            words.release()
        del made.log  # the map goes with its last view
        made.region.close()


compiled_append = numba.njit(drain.append)


def append(control, entries):
    """As the sequencer does; how many times HEAD was stored."""
    core = np.zeros(descent.CORE_WORDS, np.int64)
    core[descent.RECORDS] = len(entries)
    desk = np.zeros(drain.DESK_WORDS, np.int64)
    desk[drain.GENERAL] = control.general.address
    positions, left = np.zeros((8, 8), np.int64), np.full(16, 1000)
    workers = np.zeros((ctl.MAX_WORKERS, ctl.ROW), np.int64)
    records = np.array(entries, np.int64)
    compiled_append(desk, core, workers, records, control.log, control.workers.address, positions, left)
    assert core[descent.RECORDS] == 0
    return 1000 - left[probe.number("log.append.after")]


def entry(version, worker=0, step=0, kind=Kind.DESCEND):
    return Entry(version, kind, worker, step, 1, 2, 3, 0)


def test_entries_come_back_as_they_were_over_the_wrap(control):
    total = ctl.LOG_ENTRIES + 1000
    for start in range(0, total, 777):
        append(control, [entry(n + 1, n % 5, n // 5) for n in range(start, min(total, start + 777))])
    assert control.head == total
    assert control.head_version == total
    first = total - ctl.LOG_ENTRIES + 5
    assert control.entries(first, total) == [entry(n + 1, n % 5, n // 5) for n in range(first, total)]
    assert control.entries(total, total) == []
    assert [control.next_step(worker) for worker in range(5)] == [
        total // 5 + (worker < total % 5) for worker in range(5)
    ]


def test_the_ledger_is_the_sum_of_the_log(control):
    append(control, [entry(0, 3, 7, Kind.JOIN), entry(1, 3, 0), entry(2, 3, 1), entry(2, 4, 0, Kind.JOIN)])
    append(control, [entry(2, 4, 0, Kind.LEAVE)])
    assert list(control.ledger()) == [(3, ctl.Presence.JOINED, 2, 7), (4, ctl.Presence.LEFT, 0, 0)]
    control.replay()
    assert list(control.ledger()) == [(3, ctl.Presence.JOINED, 2, 7), (4, ctl.Presence.LEFT, 0, 0)]


def test_a_replay_sums_what_was_committed_and_not_yet_summed(control):
    append(control, [entry(1, 0, 0)])
    control.workers.store(ctl.NEXT_STEP, 0)  # killed between HEAD and the sum
    control.replay()
    assert control.next_step(0) == 1


def test_a_replay_does_not_read_what_a_killed_append_has_overwritten(control):
    for start in range(0, ctl.LOG_ENTRIES + 10, 1000):
        append(control, [entry(n + 1, 0, n) for n in range(start, start + 1000)])
    head = control.head
    # Rows written, HEAD not stored: they lie over the oldest ones.
    append(control, [entry(head + 1, 0, head), entry(head + 2, 9, 50)])
    control.general.store(ctl.HEAD, head)
    for worker, step in ((0, head), (9, 0)):
        control.workers.store(worker * ctl.ROW + ctl.NEXT_STEP, step)
    control.replay()
    assert control.next_step(0) == head
    assert control.next_step(9) == 0


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-3, 1e300, float("inf"), 5e-324])
def test_a_float_travels_as_a_word(value):
    word = float_to_word(value)
    assert -(2**63) <= word < 2**63
    assert word_to_float(word) == value


def test_one_append_has_whole_records_and_not_more_than_a_replay_reads(control):
    members = ctl.APPEND_ENTRIES // 2 + 1
    entries = [
        Entry(n, Kind.DESCEND, worker, n, 1, 2, 3, members - 1 - worker) for n in (1, 2, 3) for worker in range(members)
    ]
    assert append(control, entries) == 3  # two rounds together would be more than a replay reads
    assert control.entries(0, control.head) == entries
