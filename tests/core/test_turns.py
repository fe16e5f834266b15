"""What happens between two turns of a sequencer and its shards, looked at in a model that stands still."""

from __future__ import annotations

import numpy as np
import pytest

from coproc import optim
from coproc.consistency import Asp, Bsp, Ssp
from coproc.server import drain, passes
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared import seats

from .still import SIZE, Still, push, tail


def test_a_slot_is_free_when_every_shard_has_applied_its_record_and_not_before(directory):
    still = Still(directory, Asp(), shards=2)
    worker = still.join(0)
    for value in (1, 2):
        push(worker, value)
    still.turn()
    assert still.control.head == still.shards[0].applied == 3  # the join is a record too
    for applied, free in ((0, 0), (1, 0), (2, 1), (3, 2)):
        still.shards[1].words.store(pub.APPLIED, applied)
        still.turn()
        assert tail(worker) == free
    still.shards[1].words.store(pub.APPLIED, 0)
    still.sweep(1)
    assert (still.values(0), still.values(1)) == (-3, -3)


def test_all_slots_of_a_round_are_busy_until_the_whole_round_is_applied(directory):
    still = Still(directory, Bsp(workers=2), shards=2)
    workers = [still.join(0), still.join(1)]
    push(workers[0], 2)
    still.turn()
    assert tail(workers[0]) == 0  # held: its record is not written yet
    push(workers[1], 4)
    still.turn()
    # The round's first entry alone says nothing: a sweep reads all of its slots.
    still.shards[1].words.store(pub.APPLIED, 3)
    still.turn()
    assert [tail(worker) for worker in workers] == [0, 0]
    still.shards[1].words.store(pub.APPLIED, 0)
    still.sweep(1)
    still.turn()
    assert [tail(worker) for worker in workers] == [1, 1]
    assert (still.values(0), still.values(1)) == (-3, -3)


def test_after_a_restart_a_slot_is_busy_until_the_slowest_shard_has_applied_it(directory):
    still = Still(directory, Asp(), shards=2)
    worker = still.join(0)
    push(worker, 1)
    still.turn()
    still.start()
    still.turn()
    assert tail(worker) == 0
    push(worker, 2)
    still.turn()
    still.sweep(1)
    still.turn()
    assert tail(worker) == 2
    assert (still.values(0), still.values(1)) == (-3, -3)


def test_a_duplicate_gives_its_slot_back_at_once(directory):
    still = Still(directory, Asp(), shards=2)
    first, twin = still.join(0), still.join(0)
    for round_ in range(3):
        first.slot(1)[:] = 1
        twin.slot(1)[:] = 1
        for each in (first, twin):
            each._commit(each.seat.words.load(seats.HEAD), round_, 1, float("nan"))
        still.turn()
    assert sorted((tail(first), tail(twin))) == [0, 3]
    assert still.sequencer.counters.duplicates == 3


def test_the_log_has_the_room_that_the_slowest_shard_leaves(directory):
    """One shard far ahead makes no room: what another has not applied must stay in the log."""
    still = Still(directory, Asp(), shards=2)
    worker = still.join(0)
    push(worker, 1)
    still.turn()
    words = still.control.general
    full = ctl.LOG_ENTRIES - ctl.APPEND_ENTRIES - ctl.MAX_WORKERS
    words.store(ctl.HEAD, full)
    still.sweepers[0].state[passes.POSITION] = full
    bank = pub.BANKS + (still.shards[0].words.load(pub.PUB) & 1) * ctl.ROW
    still.shards[0].words.store(bank + pub.POSITION, full)
    push(worker, 1)
    still.turn()
    assert still.control.head == full
    bank = pub.BANKS + (still.shards[1].words.load(pub.PUB) & 1) * ctl.ROW
    still.shards[1].words.store(bank + pub.POSITION, 1)
    still.turn()
    assert still.control.head == full + 1


def test_a_pass_stops_at_a_version_that_somebody_waits_for(directory):
    still = Still(directory, Asp(), shards=2)
    worker, reader = still.join(0), still.join(-1, 0)
    for value in (1, 2, 4):
        push(worker, value)
    reader.seat.words.store(seats.PIN, 2)
    still.turn()
    still.sweep(1)
    for shard in still.shards:
        assert shard.version == 3
        assert set(shard.find(2).tolist()) == {-3.0}


def test_a_killed_pass_does_not_forget_who_looks_at_the_buffer_it_had_chosen(directory):
    """A buffer that is going keeps its version's number, so that a reader that was first keeps it after a restart."""
    still = Still(directory, Asp(), buffers=2)
    worker, reader = still.join(0), still.join(-1, 0)
    push(worker, 1)
    still.turn()
    sweeper = still.sweepers[0]
    # The server chooses buffer 0 (version 0) and is killed; a reader had pinned version 0 just before it looked again.
    assert sweeper._claim() == 0
    reader.seat.words.store(seats.PIN, 0)
    still.start()
    assert still.sweepers[0]._claim() == -1
    reader.seat.words.store(seats.PIN, seats.NO_PIN)
    assert still.sweepers[0]._claim() == 0


def test_what_was_written_and_not_published_is_forgotten_at_a_restart(directory):
    still = Still(directory, Asp(), buffers=3)
    worker = still.join(0)
    push(worker, 1)
    still.turn()
    back = still.sweepers[0]._claim()
    still.shards[0].words.store(pub.VERSIONS + back, 2)  # killed between this store and that of PUB
    still.start()
    assert still.shards[0].find(2) is None
    push(worker, 2)
    still.turn()
    assert still.shards[0].find(2) is not None
    assert still.values() == -3


@pytest.mark.parametrize("rule", [Asp(), Bsp(workers=2)], ids=["compiled", "python"])
def test_a_bank_says_how_many_updates_and_at_which_rate(directory, rule):
    still = Still(directory, rule, optimizer=optim.Adam(learning_rate=0.5))
    workers = [still.join(0), still.join(1)]
    for _ in range(3):
        for worker in workers:
            push(worker, 1)
    still.turn()
    still.sequencer.set_learning_rate(0.25)
    for worker in workers:
        push(worker, 1)
    still.turn()
    updates = 4 if isinstance(rule, Bsp) else 8
    position, count, rate = still.shards[0].bank_words(still.shards[0].front()[2])
    assert (position, count, ctl.word_to_float(rate)) == (still.control.head, updates, 0.25)


@pytest.mark.parametrize("optimizer", [optim.Adam(learning_rate=0.5), optim.Momentum(learning_rate=0.5)])
def test_a_long_run_of_compiled_passes_is_that_of_the_optimizer_alone(directory, optimizer):
    """Many updates a pass, more than one table of constants has, a change of rate and restarts in between."""
    still = Still(directory, Asp(), optimizer=optimizer)
    worker = still.join(0, depth=16)
    sweep = optim.compile_sweep(optimizer)
    rows = 1 + len(optimizer.state_rows)
    front, back = ([optim.aligned_row(SIZE) for _ in range(rows)] for _ in range(2))
    random, rate, step = np.random.default_rng(3), 0.5, 0
    for burst in range(24):
        for _ in range(burst % 12 + 1):
            gradient = random.standard_normal(SIZE).astype(np.float32)
            push(worker, gradient)
            step += 1
            constants = (optimizer.constants(step, rate),)
            sweep(((gradient,),), ((np.float32(1),),), constants, tuple(front), tuple(back), None)
            front, back = back, front
        if burst % 5 == 4:
            still.turn()
            rate /= 2
            still.sequencer.set_learning_rate(rate)
        if burst % 7 == 6:
            still.turn()
            still.start()
        still.turn()
    _, buffer, bank = still.shards[0].front()
    assert still.shards[0].version == step
    for found, wanted in zip([still.shards[0].buffers[buffer], *still.shards[0].banks[bank]], front, strict=True):
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("buffers", [2, 3, 4])
def test_readers_are_told_to_copy_before_their_views_take_the_last_buffer(directory, buffers):
    still = Still(directory, Asp(), buffers=buffers)
    worker = still.join(0)
    readers = [still.join(-1, 0) for _ in range(buffers)]
    told = []
    for version, reader in enumerate(readers):
        told.append(still.shards[0].words.load(pub.COPY_ONLY))
        if not told[-1]:
            reader.seat.words.store(seats.PIN, version)
        push(worker, 1)
        still.turn()
        assert still.shards[0].version == version + 1
    assert told == [0] * (buffers - 2) + [1] * 2


def test_a_reader_that_comes_between_the_two_looks_keeps_its_buffer():
    """`claim_back` looks for pins, marks a buffer, and looks again.

    Here the mark itself turns the reader up: the order of seats lies where the mark is stored, so that the first look
    is at seat 0, which has no pin, and the second at seat -2, which has one.
    """
    shard, idle, reader = np.zeros((3, 64), np.int64)
    idle[seats.PIN], reader[seats.PIN] = seats.NO_PIN, 0
    shard[pub.PUB] = 1 << 8 | 1 << 1  # version 1 is in buffer 1, version 0 in buffer 0
    shard[pub.VERSIONS + 1] = 1
    state = np.zeros(passes.STATE_WORDS, np.int64)
    state[passes.SHARD], state[passes.BUFFERS] = shard.ctypes.data, 2
    table = np.zeros((3, ctl.ROW), np.int64)
    table[0, drain.WORDS], table[-2, drain.WORDS] = idle.ctypes.data, reader.ctypes.data
    order, room = shard[pub.VERSIONS : pub.VERSIONS + 1], np.zeros((2, 3), np.int64)
    claim = passes.compiled_step(passes.claim_back)
    assert claim(state, table, order, 1, *room) == -1
    assert shard[pub.VERSIONS] == 0  # found again by who looks
    assert shard[pub.COPY_ONLY] == 1
    reader[seats.PIN] = seats.NO_PIN
    assert claim(state, table, order, 1, *room) == 0
    assert shard[pub.VERSIONS] == -2


def test_what_a_worker_that_has_left_had_committed_is_waited_for_after_a_restart(directory):
    still = Still(directory, Bsp(workers=2))
    stays, leaves = still.join(0), still.join(1)
    for value in (4, 8, 12):
        push(leaves, value)
    still.turn()
    still.sequencer.leave(1)
    for value in (2, 4, 6):
        push(stays, value)
    still.start()  # killed with all of this in seats: worker 0's are looked at first
    still.turn()
    assert still.control.head_version == 3
    assert still.values() == -18
    assert stays.next_step == 3


def test_a_join_continues_after_what_lies_in_seats_and_was_not_claimed(directory):
    """A worker that was killed right after its commit: the next attempt must not give that step again."""
    still = Still(directory, Bsp(workers=2))
    first = still.join(0)
    still.join(1)
    for value in (1, 2):
        push(first, value)
    still.control.claims.store(0, 0)  # killed before it could say that step 1 is committed
    assert still.join(0).next_step == 2


def test_the_slowest_clock_is_told_where_readers_wait_for_it(directory):
    still = Still(directory, Ssp(bound=1))
    fast, slow = still.join(0), still.join(1)
    for _ in range(3):
        push(fast, 1)
    still.turn()
    assert still.control.general.load(ctl.SLOWEST) == 0
    push(slow, 1)
    still.turn()
    assert still.control.general.load(ctl.SLOWEST) == 1


def test_a_seat_is_dropped_after_what_is_in_it_was_applied_by_all(directory):
    still = Still(directory, Asp(), shards=2)
    worker = still.join(0)
    path = worker.seat.region.path
    push(worker, 1)
    still.turn()
    still.sequencer.close_seat(0, 1)
    still.sequencer.keep_house()
    assert path.exists()
    still.sweep(1)
    still.turn()
    still.sequencer.keep_house()
    assert not path.exists()
    assert (still.values(0), still.values(1)) == (-1, -1)


def test_who_sleeps_is_woken_by_what_it_waits_for(directory):
    """The bells of a follower that has said it sleeps, and of a worker that has said it waits for a slot."""
    still = Still(directory, Asp(), shards=2)
    worker, words = still.join(0), still.shards[1].words
    still.turn()
    for asleep in (0, 1):
        words.store(pub.SLEEPING, asleep)
        before = words.load(pub.WAKE)
        push(worker, 1)
        still.turn()
        assert words.load(pub.WAKE) - before == asleep
    for waiting in (0, 1):
        worker.seat.words.store(seats.WAITING, waiting)
        before = worker.seat.words.load(seats.BELL)
        push(worker, 1)
        still.turn()
        still.sweep(1)
        still.turn()
        assert (worker.seat.words.load(seats.BELL) != before) == waiting


def test_a_sequencer_with_nothing_to_do_sleeps(directory):
    still = Still(directory, Asp())
    worker = still.join(0)
    push(worker, 1)
    still.turn()
    assert still.sleeps() >= 3
