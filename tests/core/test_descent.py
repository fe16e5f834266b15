"""The pure core: any interleaving of joins, commits, twins and leaves gives one order that has each step once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coproc import descent
from coproc.consistency import Asp, Bsp, Ssp
from coproc.descent import SWEEP_WIDTH, Verdict
from coproc.shared.control import Entry, Kind, Presence


class Sequencer(descent.Sequencer):
    """Moves what was decided into a list after each event."""

    def __init__(self, consistency, version, ledger=(), records=None):
        super().__init__(consistency, version, ledger)
        self.log = [] if records is None else records

    def commit(self, *args):
        verdict = super().commit(*args)
        self.log += self.take()
        return verdict

    def join(self, worker):
        super().join(worker)
        self.log += self.take()

    def leave(self, worker):
        super().leave(worker)
        self.log += self.take()


def sequencer(consistency, log):
    return Sequencer(consistency, 0, records=log)


@dataclass
class Plan:
    updates: list
    version: int
    position: int
    learning_rate_word: int | None


def plan_sweep(entries, position, version, pinned):
    """A pass over a log whose entries from `position` on are given."""
    log = np.zeros((512, 8), np.int64)
    for i, e in enumerate(entries[:512]):
        log[(position + i) % 512] = e
    plan = np.zeros(descent.PLAN_WORDS, np.int64)
    pins = np.array([*pinned, 0], np.int64)
    head = position + len(entries)
    descent.plan_sweep(log, position, head, version, pins, len(pinned), SWEEP_WIDTH, plan)
    stop = int(plan[descent.POSITION])
    updates, i = [], 0
    while i < stop - position:
        size = entries[i].following + 1
        members = [e for e in entries[i : i + size] if e.kind == Kind.DESCEND and e.examples]
        updates += [members] if members else []
        i += size
    assert len(updates) == plan[descent.UPDATES]
    assert max(map(len, updates), default=0) == plan[descent.MEMBERS]
    rate = int(plan[descent.RATE]) if plan[descent.HAS_RATE] else None
    return Plan(updates, int(plan[descent.NEXT_VERSION]), stop, rate)


def gradients(log):
    return [(e.worker, e.step) for e in log if e.kind == Kind.DESCEND]


class AnyOrder(RuleBasedStateMachine):
    """Twins commit the same steps through different seats, in any order, with skips, under any consistency."""

    consistency = Asp()
    workers = 3

    def __init__(self):
        super().__init__()
        self.log = []
        self.core = sequencer(self.consistency, self.log)
        self.seen = defaultdict(int)  # worker -> steps that some attempt has committed
        self.acknowledged = set()
        self.left = set()

    @rule(worker=st.integers(0, 2))
    def join(self, worker):
        self.core.join(worker)
        self.left.discard(worker)

    @rule(worker=st.integers(0, 2), back=st.integers(0, 2), seat=st.integers(0, 1), examples=st.integers(0, 3))
    def commit(self, worker, back, seat, examples):
        step = max(0, self.seen[worker] - back)
        verdict = self.core.commit(worker, step, 2 * worker + seat, step % 4, examples)
        if verdict is Verdict.ADMITTED:
            assert (worker, step) not in self.acknowledged
            self.acknowledged.add((worker, step))
            self.seen[worker] = step + 1
        elif verdict is Verdict.DUPLICATE:
            assert (worker, step) in self.acknowledged

    @precondition(lambda self: len(self.left) < 2)
    @rule(worker=st.integers(0, 2))
    def leave(self, worker):
        self.core.leave(worker)
        self.left.add(worker)

    @invariant()
    def each_step_once_and_in_order(self):
        found = gradients(self.log)
        assert len(found) == len(set(found))
        assert set(found) <= self.acknowledged
        for worker in range(self.workers):
            steps = [step for w, step in found if w == worker]
            assert steps == list(range(len(steps)))

    @invariant()
    def versions_count_records(self):
        versions = [e.version for e in self.log]
        assert versions == sorted(versions)
        assert all(b - a <= 1 for a, b in zip([0, *versions], versions, strict=False))


class AnyOrderBsp(AnyOrder):
    consistency = Bsp(workers=3)

    @invariant()
    def members_stand_in_worker_order(self):
        record = []
        for e in self.log:
            if e.kind == Kind.DESCEND:
                record.append(e.worker)
                if not e.following:
                    assert record == sorted(set(record))
                    record = []


class AnyOrderSsp(AnyOrder):
    consistency = Ssp(bound=1)


TestAsp = AnyOrder.TestCase
TestBsp = AnyOrderBsp.TestCase
TestSsp = AnyOrderSsp.TestCase


def test_a_round_closes_when_the_last_worker_has_given():
    log = []
    core = sequencer(Bsp(workers=3), log)
    for worker in (2, 0, 1):
        core.join(worker)
    assert core.commit(2, 0, 5, 0, 10) is Verdict.ADMITTED
    assert core.commit(0, 0, 3, 0, 30) is Verdict.ADMITTED
    assert core.missing() == [1]
    assert gradients(log) == []
    assert core.commit(2, 1, 5, 1, 10) is Verdict.AHEAD
    assert core.commit(2, 0, 6, 0, 10) is Verdict.DUPLICATE
    assert core.commit(1, 0, 4, 0, 20) is Verdict.ADMITTED
    assert [(e.worker, e.examples, e.following) for e in log[3:]] == [(0, 30, 2), (1, 20, 1), (2, 10, 0)]
    assert core.version == 1
    assert core.commit(2, 1, 5, 1, 10) is Verdict.ADMITTED


def test_a_round_does_not_wait_for_who_has_left_and_goes_on_where_it_comes_back():
    log = []
    core = sequencer(Bsp(workers=2), log)
    core.join(0)
    core.join(1)
    core.commit(0, 0, 0, 0, 1)
    core.leave(1)
    assert gradients(log) == [(0, 0)]
    core.commit(0, 1, 0, 1, 1)
    assert core.version == 2
    core.join(1)
    assert core.commit(0, 2, 0, 0, 1) is Verdict.ADMITTED
    assert core.version == 2
    # Its own steps have no hole: what it did not give in rounds 0 and 1 it gives from round 2 on.
    assert core.commit(1, 0, 1, 0, 1) is Verdict.ADMITTED
    assert core.version == 3


def test_a_restart_goes_on_from_the_ledger():
    log = []
    core = sequencer(Asp(), log)
    core.join(4)
    for step in range(3):
        core.commit(4, step, 0, step, 1)
    again = Sequencer(Asp(), core.version, [(4, 1, 3, 0)])
    assert again.commit(4, 2, 0, 2, 1) is Verdict.DUPLICATE
    assert again.commit(4, 4, 0, 4, 1) is Verdict.AHEAD
    assert again.commit(4, 3, 0, 3, 1) is Verdict.ADMITTED


def entry(version, kind=Kind.DESCEND, worker=0, step=0, examples=1, following=0):
    return Entry(version, kind, worker, step, 0, 0, examples, following)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=30), st.sets(st.integers(1, 30)))
def test_passes_cover_the_log_once_and_stop_at_pins(sizes, pinned):
    log = []
    for version, size in enumerate(sizes, 1):
        log += [entry(version, worker=i, following=size - 1 - i) for i in range(size)]
    position, version, applied, made = 0, 0, [], set()
    while position < len(log):
        plan = plan_sweep(log[position:], position, version, pinned)
        assert plan.position > position
        assert len(plan.updates) <= SWEEP_WIDTH
        assert len(plan.updates) == 1 or all(len(members) == 1 for members in plan.updates)
        applied += plan.updates
        position, version = plan.position, plan.version
        made.add(version)
    assert [len(members) for members in applied] == sizes
    assert version == len(sizes)
    assert {p for p in pinned if p <= len(sizes)} <= made


def test_a_learning_rate_takes_effect_after_the_updates_before_it():
    log = [entry(1), entry(1, Kind.HYPER, step=77), entry(2)]
    plan = plan_sweep(log, 0, 0, ())
    assert (plan.version, plan.position, plan.learning_rate_word) == (1, 2, 77)


def test_a_round_of_skips_makes_a_version_without_updates():
    plan = plan_sweep([entry(1, examples=0, following=1), entry(1, worker=1, examples=0)], 0, 0, ())
    assert (plan.version, plan.position, plan.updates) == (1, 2, [])


@pytest.mark.parametrize("consistency", [Asp(), Ssp(bound=2)])
def test_a_skip_takes_a_step_and_makes_no_version(consistency):
    log = []
    core = sequencer(consistency, log)
    core.join(0)
    assert core.commit(0, 0, 0, 0, 0) is Verdict.ADMITTED
    assert core.version == 0
    assert core.commit(0, 1, 0, 1, 5) is Verdict.ADMITTED
    assert core.version == 1


def test_what_a_worker_committed_before_it_left_goes_into_rounds():
    log = []
    core = sequencer(Bsp(workers=2), log)
    core.join(0)
    core.join(1)
    assert core.commit(1, 0, 1, 0, 5) is Verdict.ADMITTED
    assert core.commit(1, 1, 1, 1, 5) is Verdict.AHEAD
    core.leave(1)
    core.commit(0, 0, 0, 0, 5)
    assert gradients(log) == [(0, 0), (1, 0)]
    # The next round waits for the second one, which is committed and will come; then nobody waits any more.
    assert core.missing() == [0, 1]
    core.commit(0, 1, 0, 1, 5)
    assert core.version == 1
    core.commit(1, 1, 1, 1, 5)
    assert gradients(log)[2:] == [(0, 1), (1, 1)]
    assert core.missing() == [0]


def test_after_a_restart_a_held_gradient_of_who_has_left_is_held_again():
    core = Sequencer(Bsp(workers=2), 3, [(0, Presence.JOINED, 3, 0), (1, Presence.LEFT, 2, 1)])
    assert core.commit(1, 2, 1, 0, 5) is Verdict.ADMITTED
    assert core.commit(0, 3, 0, 0, 5) is Verdict.ADMITTED
    assert gradients(core.log) == [(0, 3), (1, 2)]


def test_a_round_waits_for_the_later_of_two_steps_of_twins_although_the_worker_has_left():
    core = Sequencer(Bsp(workers=2), 0)
    core.join(0)
    core.join(1)
    # The twin that is further sits on the lower seat, so its step is looked at first.
    assert core.commit(1, 1, 0, 0, 5) is Verdict.AHEAD
    assert core.commit(1, 0, 1, 0, 5) is Verdict.ADMITTED
    core.leave(1)
    core.commit(0, 0, 2, 0, 5)
    assert core.missing() == [0, 1]
    core.commit(0, 1, 2, 1, 5)
    core.commit(1, 1, 0, 0, 5)
    assert gradients(core.log) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert core.missing() == [0]


def test_after_a_restart_a_round_waits_for_what_is_in_the_seat_of_who_has_left():
    core = Sequencer(Bsp(workers=2), 3, [(0, Presence.JOINED, 3, 0), (1, Presence.LEFT, 2, 1)])
    core.owe(1, 2)
    assert core.commit(0, 3, 0, 0, 5) is Verdict.ADMITTED
    assert core.missing() == [1]
    assert core.commit(1, 2, 1, 0, 5) is Verdict.ADMITTED
    assert gradients(core.log) == [(0, 3), (1, 2)]


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["join", "push", "push", "push", "leave", "restart"]), st.integers(0, 2)), max_size=40
)


@given(st.integers(1, 3), OPERATIONS)
def test_nothing_that_was_committed_is_lost_whoever_leaves_and_restarts(workers, operations):
    """Rings of two slots, polled after each event; in the end all leave, and each commit is in the log, once."""
    log, rings, joined, pushed = [], {}, set(), [0] * workers
    core = sequencer(Bsp(workers=workers), log)

    def steps():
        return {(e.worker, e.step) for e in log if e.kind == Kind.DESCEND}

    def poll():
        moved = True
        while moved:
            moved = False
            for worker, ring in sorted(rings.items()):
                while ring:
                    verdict = core.commit(worker, ring[0], worker, ring[0] % 2, 1)
                    if verdict is Verdict.AHEAD:
                        break
                    ring.pop(0)
                    moved = True

    for operation, number in operations:
        worker = number % workers
        if operation == "join":
            core.join(worker)
            joined.add(worker)
            rings.setdefault(worker, [])
        elif operation == "push" and worker in joined:
            if sum((worker, step) not in steps() for step in range(pushed[worker])) < 2:
                rings[worker].append(pushed[worker])
                pushed[worker] += 1
        elif operation == "leave" and worker in joined:
            core.leave(worker)
            joined.discard(worker)
        elif operation == "restart":
            ledger = {}
            for e in log:
                presence, step, offset = ledger.get(e.worker, (Presence.UNKNOWN, 0, 0))
                if e.kind == Kind.DESCEND:
                    ledger[e.worker] = (presence, e.step + 1, offset)
                elif e.kind == Kind.JOIN:
                    ledger[e.worker] = (Presence.JOINED, step, e.step)
                else:
                    ledger[e.worker] = (Presence.LEFT, step, offset)
            version = max((e.version for e in log), default=0)
            core = Sequencer(Bsp(workers=workers), version, [(w, *row) for w, row in ledger.items()], records=log)
            for worker, ring in rings.items():
                ring[:] = [step for step in range(pushed[worker]) if (worker, step) not in steps()]
        poll()
    for worker in range(workers):
        core.leave(worker)
        poll()
    assert steps() == {(worker, step) for worker in range(workers) for step in range(pushed[worker])}
    assert len(steps()) == sum(e.kind == Kind.DESCEND for e in log)
