"""What was found by attacking the compiled loop, in a model that stands still."""

from __future__ import annotations

import time

from coproc.consistency import Asp, Bsp
from coproc.descent import Sequencer, Verdict
from coproc.shared import seats

from .still import Still, push


def test_a_log_full_of_steps_that_change_nothing_goes_on(directory):
    still = Still(directory, Asp())
    worker = still.join(0, depth=64)
    for _ in range(140):
        for _ in range(64):
            worker.skip(worker.next_step, 1)
        still.turn()
    push(worker, 1)
    still.turn()
    assert still.values() == -1


def test_a_sequencer_with_nothing_to_do_sleeps_after_a_restart(directory):
    still = Still(directory, Asp())
    worker = still.join(0)
    push(worker, 1)
    still.turn()
    still.start()
    still.turn()
    assert still.sleeps() >= 3


def test_a_round_waits_for_the_younger_twins_step_of_who_has_left():
    core = Sequencer(Bsp(workers=2), 0)
    core.join(0)
    core.join(1)
    # Two attempts of worker 1; the one that is further sits on the seat that is looked at first.
    assert core.commit(1, 1, 0, 0, 5) is Verdict.AHEAD
    assert core.commit(1, 0, 1, 0, 5) is Verdict.ADMITTED
    core.leave(1)
    core.commit(0, 0, 2, 0, 5)
    assert core.missing() == [0, 1]


def test_a_holder_is_not_followed_further_than_its_slots_go(directory):
    still = Still(directory, Bsp(workers=2))
    worker, _ = still.join(0), still.join(1)
    push(worker, 1)
    still.turn()
    worker.seat.words.store(seats.HEAD, 1_000_000)
    began = time.monotonic()
    still.turn()
    assert still.join(0).next_step == 1
    assert worker.seat.words.load(seats.TAIL) == 0  # its gradient is held for the round
    assert time.monotonic() - began < 1
