"""The pure core: any interleaving of joins, commits, twins and leaves gives one order that has each step once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coproc import descent
from coproc.consistency import Asp, Bsp, Quorum, Ssp
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

    def end_grace(self):
        super().end_grace()
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


def ledger_of(log):
    """(worker, presence, next step, offset) as a log sums them."""
    ledger = {}
    for e in log:
        presence, step, offset = ledger.get(e.worker, (Presence.UNKNOWN, 0, 0))
        if e.kind == Kind.DESCEND:
            ledger[e.worker] = (presence, e.step + 1, offset)
        elif e.kind == Kind.JOIN:
            ledger[e.worker] = (Presence.JOINED, step, e.step)
        else:
            ledger[e.worker] = (Presence.LEFT, step, offset)
    return [(worker, *row) for worker, row in ledger.items()]


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


@dataclass
class Rounds:
    """What `Quorum` says, in plain words: no offsets, no log."""

    count: int
    late: str
    workers: int = 3

    def __post_init__(self):
        self.open = 0  # the round that is open
        self.given = {}  # worker -> examples, in the open round
        self.done = [0] * self.workers  # steps that are in a closed round, or dropped
        self.waits_until = [0] * self.workers  # steps that a worker has committed ahead of its turn
        self.round_of_next = [0] * self.workers
        self.members, self.left = set(), set()
        self.closed = []  # of each round: worker -> (step, examples)
        self.dropped = []

    def join(self, worker):
        self.members.add(worker)
        self.left.discard(worker)
        self.round_of_next[worker] = self.open

    def leave(self, worker):
        self.members.discard(worker)
        self.left.add(worker)
        self.close_if_all_have_given()

    def commit(self, worker, step, examples):
        if step > self.done[worker]:
            self.waits_until[worker] = max(self.waits_until[worker], step + 1)
            return Verdict.AHEAD
        if step < self.done[worker] or worker in self.given:
            return Verdict.DUPLICATE
        late = worker in self.members and self.round_of_next[worker] < self.open
        self.round_of_next[worker] = self.open
        if late and self.late == "drop":
            self.dropped.append((worker, step))
            self.done[worker] += 1
            return Verdict.DROPPED
        self.given[worker] = examples
        self.close_if_all_have_given()
        return Verdict.CARRIED if late else Verdict.ADMITTED

    def close_if_all_have_given(self):
        def may_give(worker):
            return worker not in self.left or self.waits_until[worker] > self.done[worker]

        if self.given and all(worker in self.given or not may_give(worker) for worker in range(self.workers)):
            self.close()

    def end_grace(self):
        if len(self.given) >= self.count:
            self.close()

    def close(self):
        self.closed.append({worker: (self.done[worker], self.given[worker]) for worker in sorted(self.given)})
        self.open += 1
        for worker in self.given:
            self.done[worker] += 1
            self.round_of_next[worker] = self.open
        self.given = {}

    def restart(self):
        """What was given to the open round lies in slots, and is looked at again."""
        self.given, self.waits_until = {}, [0] * self.workers


class AnyOrderQuorum(AnyOrderBsp):
    """The same, ends of grace and restarts in between, against the plain model."""

    late = "drop"

    def __init__(self):
        super().__init__()
        self.rounds = Rounds(2, self.late)
        self.consistency = Quorum(workers=3, count=2, late=self.late)
        self.core = sequencer(self.consistency, self.log)

    @initialize(members=st.integers(1, 3))
    def begin(self, members):
        for worker in range(members):
            self.join(worker)

    @rule(worker=st.integers(0, 2), back=st.integers(-1, 2), seat=st.integers(0, 1), examples=st.integers(0, 3))
    def commit(self, worker, back, seat, examples):
        step = max(0, self.rounds.done[worker] + (worker in self.rounds.given) - back)
        verdict = self.core.commit(worker, step, 2 * worker + seat, step % 4, examples)
        assert verdict is self.rounds.commit(worker, step, examples)
        if verdict in (Verdict.ADMITTED, Verdict.CARRIED, Verdict.DROPPED):
            assert (worker, step) not in self.acknowledged
            self.acknowledged.add((worker, step))

    @rule(straggler=st.integers(0, 2))
    def close_a_round_without(self, straggler):
        for worker in {0, 1, 2} - {straggler}:
            if worker not in self.rounds.given:
                self.commit(worker, 0, 0, 1)
        self.end_grace()

    @rule(worker=st.integers(0, 2))
    def join(self, worker):
        super().join(worker)
        self.rounds.join(worker)

    @precondition(lambda self: len(self.left) < 2)
    @rule(worker=st.integers(0, 2))
    def leave(self, worker):
        super().leave(worker)
        self.rounds.leave(worker)

    @rule()
    def end_grace(self):
        self.core.end_grace()
        self.rounds.end_grace()

    @rule()
    def restart(self):
        self.core = Sequencer(self.consistency, self.rounds.open, ledger_of(self.log), records=self.log)
        self.acknowledged = set(gradients(self.log))
        self.rounds.restart()

    @invariant()
    def the_log_is_that_of_the_plain_model(self):
        closed, dropped, record, version = [], [], {}, 0
        for e in self.log:
            if e.kind != Kind.DESCEND:
                assert e.version == version
            elif e.version == version and not record:
                assert (e.examples, e.following) == (0, 0)
                dropped.append((e.worker, e.step))
            else:
                assert e.version == len(closed) + 1
                record[e.worker] = (e.step, e.examples)
                if not e.following:
                    closed.append(record)
                    record, version = {}, e.version
        assert (closed, dropped) == (self.rounds.closed, self.rounds.dropped)

    @invariant()
    def whoever_has_given_is_not_missing(self):
        assert self.core.version == self.rounds.open
        assert not set(self.core.missing()) & set(self.rounds.given)
        for worker, _, step, offset in ledger_of(self.log):
            assert step == self.rounds.done[worker]
            if worker in self.rounds.members:
                assert step + offset == self.rounds.round_of_next[worker]


class AnyOrderQuorumThatCarries(AnyOrderQuorum):
    late = "carry"

    @invariant()
    def nothing_is_lost(self):
        assert not self.rounds.dropped


TestAsp = AnyOrder.TestCase
TestBsp = AnyOrderBsp.TestCase
TestSsp = AnyOrderSsp.TestCase
TestQuorum = AnyOrderQuorum.TestCase
TestQuorumThatCarries = AnyOrderQuorumThatCarries.TestCase


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


def late_worker(late):
    """Three workers with a quorum of two; round 0 was closed without worker 2, whose step 0 comes now."""
    log = []
    core = sequencer(Quorum(workers=3, count=2, late=late), log)
    for worker in range(3):
        core.join(worker)
    core.commit(0, 0, 0, 0, 1)
    core.end_grace()
    assert core.version == 0  # one is no quorum
    core.commit(1, 0, 1, 0, 1)
    assert core.version == 0  # the grace
    core.end_grace()
    assert core.version == 1
    del log[:]
    return core, log


def test_a_late_gradient_is_dropped_and_its_worker_goes_on_in_the_open_round():
    core, log = late_worker("drop")
    assert core.commit(2, 0, 2, 0, 7) is Verdict.DROPPED
    assert [(e.kind, e.version, e.step, e.examples) for e in log] == [(Kind.JOIN, 1, 0, 0), (Kind.DESCEND, 1, 0, 0)]
    assert core.commit(2, 0, 3, 0, 7) is Verdict.DUPLICATE
    assert core.commit(2, 1, 2, 1, 7) is Verdict.ADMITTED
    core.commit(0, 1, 0, 1, 1)
    core.end_grace()
    assert [(e.worker, e.step, e.examples) for e in log if e.version == 2] == [(0, 1, 1), (2, 1, 7)]


def test_a_late_gradient_is_carried_into_the_open_round():
    core, log = late_worker("carry")
    assert core.commit(2, 0, 2, 0, 7) is Verdict.CARRIED
    assert core.commit(2, 0, 3, 0, 7) is Verdict.DUPLICATE
    assert core.commit(2, 1, 2, 1, 7) is Verdict.AHEAD  # one gradient of a worker in a round
    core.commit(0, 1, 0, 1, 1)
    core.end_grace()
    assert [(e.worker, e.step, e.examples) for e in log if e.version == 2] == [(0, 1, 1), (2, 0, 7)]
    assert core.commit(2, 1, 2, 1, 7) is Verdict.ADMITTED


@pytest.mark.parametrize("late", ["drop", "carry"])
def test_a_new_attempt_of_a_late_worker_is_not_late(late):
    core, log = late_worker(late)
    core.join(2)
    assert core.commit(2, 0, 3, 0, 7) is Verdict.ADMITTED
    core.join(2)  # a twin, while a gradient is held: nothing moves
    assert [e.kind for e in log] == [Kind.JOIN]


def test_with_fewer_members_than_the_quorum_a_round_needs_all_of_them():
    core, log = late_worker("drop")
    core.leave(0)
    core.commit(1, 1, 1, 1, 1)
    core.end_grace()
    assert core.version == 1
    core.leave(2)
    assert gradients(log) == [(1, 1)]


def test_a_skip_counts_as_given():
    core, _ = late_worker("drop")
    core.commit(0, 1, 0, 1, 0)
    core.commit(1, 1, 1, 1, 5)
    core.end_grace()
    assert core.version == 2


def test_a_kill_between_the_two_records_of_a_dropped_step_drops_it_and_no_other():
    core, log = late_worker("drop")
    core.commit(2, 0, 2, 0, 7)
    move = log[0]
    again = Sequencer(Quorum(workers=3, count=2), 1, [(0, 1, 1, 0), (1, 1, 1, 0), (2, 1, 0, move.step)])
    assert again.commit(2, 0, 2, 0, 7) is Verdict.DROPPED
    assert again.commit(2, 1, 2, 1, 7) is Verdict.ADMITTED


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
    st.tuples(st.sampled_from(["join", "push", "push", "push", "grace", "leave", "restart"]), st.integers(0, 2)),
    max_size=40,
)


@pytest.mark.parametrize("late", [None, "drop", "carry"], ids=["bsp", "drop", "carry"])
@given(st.integers(1, 3), OPERATIONS)
def test_nothing_that_was_committed_is_lost_whoever_leaves_and_restarts(late, workers, operations):
    """Rings of two slots, polled after each event; in the end all leave, and each commit is in the log, once."""
    log, rings, joined, pushed = [], {}, set(), [0] * workers
    rounds = Quorum(workers=workers, count=max(1, workers - 1), late=late) if late else Bsp(workers=workers)
    core = sequencer(rounds, log)

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
        elif operation == "grace":
            core.end_grace()
        elif operation == "restart":
            version = max((e.version for e in log), default=0)
            core = Sequencer(rounds, version, ledger_of(log), records=log)
            for worker, ring in rings.items():
                ring[:] = [step for step in range(pushed[worker]) if (worker, step) not in steps()]
        poll()
    for worker in range(workers):
        core.leave(worker)
        poll()
    assert steps() == {(worker, step) for worker in range(workers) for step in range(pushed[worker])}
    assert len(steps()) == sum(e.kind == Kind.DESCEND for e in log)
