"""The log in shared memory: atomic, whole after a wrap, and replayed without what a killed append has left."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from coproc.shared import control as ctl
from coproc.shared.control import Control, Entry, Kind, float_to_word, word_to_float


@pytest.fixture
def control():
    with tempfile.TemporaryDirectory(prefix="coproc-test-control-", dir="/dev/shm") as directory:
        made = Control.create(Path(directory) / "control", epoch=1)
        yield made
        for words in (made.general, made.workers, made.claims, made.seats, made._log):
            words.release()
        del made._log_rows  # the map goes with its last view
        made.region.close()


def entry(version, worker=0, step=0, kind=Kind.DESCEND):
    return Entry(version, kind, worker, step, 1, 2, 3, 0)


def test_entries_come_back_as_they_were_over_the_wrap(control):
    total = ctl.LOG_ENTRIES + 1000
    for start in range(0, total, 777):
        control.append([entry(n + 1, n % 5, n // 5) for n in range(start, min(total, start + 777))])
    assert control.head == total
    assert control.head_version == total
    first = total - ctl.LOG_ENTRIES + 5
    assert control.entries(first, total) == [entry(n + 1, n % 5, n // 5) for n in range(first, total)]
    assert control.entries(total, total) == []
    assert [control.next_step(worker) for worker in range(5)] == [
        total // 5 + (worker < total % 5) for worker in range(5)
    ]


def test_the_ledger_is_the_sum_of_the_log(control):
    control.append([entry(0, 3, 7, Kind.JOIN), entry(1, 3, 0), entry(2, 3, 1), entry(2, 4, 0, Kind.JOIN)])
    control.append([entry(2, 4, 0, Kind.LEAVE)])
    assert list(control.ledger()) == [(3, ctl.Presence.JOINED, 2, 7), (4, ctl.Presence.LEFT, 0, 0)]
    control.replay()
    assert list(control.ledger()) == [(3, ctl.Presence.JOINED, 2, 7), (4, ctl.Presence.LEFT, 0, 0)]


def test_a_replay_sums_what_was_committed_and_not_yet_summed(control):
    control.append([entry(1, 0, 0)])
    control.workers.store(ctl.NEXT_STEP, 0)  # killed between HEAD and the sum
    control.replay()
    assert control.next_step(0) == 1


def test_a_replay_does_not_read_what_a_killed_append_has_overwritten(control):
    for start in range(0, ctl.LOG_ENTRIES + 10, 1000):
        control.append([entry(n + 1, 0, n) for n in range(start, start + 1000)])
    head = control.head
    # Rows written, HEAD not stored: they lie over the oldest ones.
    control._write(head % ctl.LOG_ENTRIES, [entry(head + 1, 0, head), entry(head + 2, 9, 50)])
    control.replay()
    assert control.next_step(0) == head
    assert control.next_step(9) == 0


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-3, 1e300, float("inf"), 5e-324])
def test_a_float_travels_as_a_word(value):
    word = float_to_word(value)
    assert -(2**63) <= word < 2**63
    assert word_to_float(word) == value


def test_claims_only_grow(control):
    assert control.claimed(2) == -1
    control.claim(2, 5)
    control.claim(2, 3)
    assert control.claimed(2) == 5
