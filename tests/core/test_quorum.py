"""Rounds that close without the slowest: who is late, when a grace ends, and that a kill changes none of it.

Gradients are constant vectors of integers and the rate is 1, so that the value of a model says who was in which round.
"""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import coproc
from coproc.consistency import Quorum
from coproc.descent import NEXT_STEP
from coproc.server import drain, loop, sequencing
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared import seats

from .still import Still, push, tail

LATE = pytest.mark.parametrize("late", ["drop", "carry"])
NEVER_S = 3600.0  # a grace that no test lives through


# ---- in a model that stands still


def still_with_a_late_worker(directory, late, grace_s=0.0):
    """Three workers, a quorum of two; round 0 was closed with (2 + 4) / 2, without worker 2."""
    still = Still(directory, Quorum(workers=3, count=2, late=late, grace_s=grace_s))
    workers = [still.join(number) for number in range(3)]
    push(workers[0], 2)
    push(workers[1], 4)
    still.turn()
    return still, workers


def test_whoever_is_there_when_the_grace_ends_is_in_the_round(directory):
    still = Still(directory, Quorum(workers=4, count=2))
    workers = [still.join(number) for number in range(4)]
    push(workers[3], 9)
    still.turn()
    assert (still.control.head_version, still.sequencer.core.missing()) == (0, [0, 1, 2])
    for worker in workers[:2]:
        push(worker, 3)
    assert still.sequencer.settle() == 1
    still.turn()
    assert (still.control.head_version, still.values()) == (1, -5)
    assert still.sequencer.counters.late == 0


@LATE
def test_a_late_step_is_dropped_or_carried_and_its_slot_is_free_again(directory, late):
    still, workers = still_with_a_late_worker(directory, late)
    assert (still.control.head_version, still.values()) == (1, -3)
    push(workers[2], 10)
    still.turn()
    assert still.sequencer.counters.late == 1
    assert tail(workers[2]) == (late == "drop")
    push(workers[2], 20)
    push(workers[0], 30)
    still.turn()
    # Dropped: its second step belongs to the open round. Carried: its first one does, and the second waits.
    assert still.values() == -3 - (25 if late == "drop" else 20)
    assert still.sequencer.counters.pushes == (4 if late == "drop" else 5)
    assert still.control.head_version == 2
    push(workers[0], 40)
    still.turn()
    assert still.values() == (-28 if late == "drop" else -23 - 30)
    assert [tail(worker) for worker in workers] == [2 + (late == "carry"), 1, 2]


@LATE
def test_a_late_worker_reads_when_it_is_known_what_became_of_its_step(directory, late):
    still, workers = still_with_a_late_worker(directory, late)
    push(workers[2], 10)
    with pytest.raises(coproc.Timeout, match="step 0 of worker 2"):
        workers[2].pull(0, 0.01)  # nobody has looked at it yet
    bell = still.shards[0].words.load(pub.BELL)
    still.turn()
    assert still.shards[0].words.load(pub.BELL) > bell
    if late == "carry":
        with pytest.raises(coproc.Timeout, match="step 0 of worker 2"):
            workers[2].pull(0, 0.01)
        push(workers[0], 20)
        still.turn()
    version, flat = workers[2].pull(0, 1)
    assert (version, flat[0]) == ((1, -3) if late == "drop" else (2, -18))


@LATE
def test_late_twins_count_once(directory, late):
    still = Still(directory, Quorum(workers=3, count=2, late=late))
    workers = [still.join(number) for number in (0, 1, 2, 2)]
    for worker in workers[:2]:
        push(worker, 2)
    still.turn()
    for value, twin in zip((10, 1000), workers[2:], strict=True):
        twin.slot(1)[:] = value
        twin._commit(twin.seat.words.load(seats.HEAD), 0, 1, float("nan"))
    still.turn()
    assert (still.sequencer.counters.late, still.sequencer.counters.duplicates) == (1, 1)
    push(workers[0], 4)
    still.turn()
    if late == "carry":
        assert still.values() in (-2 - 7, -2 - 502)
    else:
        assert still.values() == -2
        push(workers[3], 6)
        still.turn()
        assert still.values() == -2 - 5
    assert still.control.next_step(2) == (1 if late == "carry" else 2)


def test_a_twin_that_comes_later_is_not_late(directory):
    """It reads what is published now, so its gradient belongs to the open round, whatever the other attempt missed."""
    still, workers = still_with_a_late_worker(directory, "drop")
    twin = still.join(2)
    push(twin, 10)
    push(workers[0], 20)
    still.turn()
    assert still.values() == -3 - 15
    assert still.sequencer.counters.late == 0


@LATE
def test_a_restart_repeats_what_was_decided(directory, late):
    """Killed with a late gradient admitted, not yet in a round; and again with one that was not even looked at."""
    still, workers = still_with_a_late_worker(directory, late)
    push(workers[2], 10)
    still.turn()
    push(workers[2], 20)
    still.start()
    push(workers[0], 30)
    still.turn()
    assert still.values() == -3 - (25 if late == "drop" else 20)
    still.start()
    still.turn()
    assert still.control.next_step(2) == (2 if late == "drop" else 1)
    assert still.sequencer.core.workers[2, NEXT_STEP] == still.control.next_step(2)


def test_a_grace_lets_others_in_and_the_loop_sleeps_no_longer(directory, monkeypatch):
    monkeypatch.setattr(sequencing, "LOOK_AGAIN_S", 60.0)
    grace_s = 0.3
    still = Still(directory, Quorum(workers=3, count=2, grace_s=grace_s))
    workers = [still.join(number) for number in range(3)]
    still.turn()
    for value in (1, 2):
        for worker in workers[:2]:
            push(worker, 2 * value)
        began = time.monotonic()
        still.sequencer.serve_requests()
        assert still.sequencer.serve(time.monotonic_ns() + 30_000_000_000) == loop.SWEEP
        assert grace_s <= time.monotonic() - began < 20
        still.sweep(0)
        assert still.control.head_version == value
    assert still.values() == -6


def test_a_round_that_is_full_waits_for_no_grace_and_the_next_has_a_grace_of_its_own(directory):
    still = Still(directory, Quorum(workers=3, count=2, grace_s=NEVER_S))
    workers = [still.join(number) for number in range(3)]
    for worker in workers[1:]:
        push(worker, 3)
        push(worker, 30)
    still.turn()
    assert still.control.head_version == 0
    close_at_ns = still.sequencer._desk[drain.CLOSE_AT_NS]
    push(workers[0], 9)
    still.turn()
    # Worker 0 is looked at first: round 1 has its quorum in the same look.
    assert (still.control.head_version, still.values()) == (1, -5)
    assert close_at_ns < still.sequencer._desk[drain.CLOSE_AT_NS] < drain.NEVER
    push(workers[0], 90)
    still.turn()
    assert (still.control.head_version, still.values()) == (2, -55)


def test_a_restart_begins_the_grace_anew(directory):
    still, workers = still_with_a_late_worker(directory, "drop", grace_s=NEVER_S)
    assert still.control.head_version == 0
    still.start()
    still.turn()
    assert (still.control.head_version, still.sequencer.core.missing()) == (0, [2])
    push(workers[2], 6)
    still.turn()
    assert (still.control.head_version, still.values()) == (1, -4)


def test_a_worker_that_joins_in_the_middle_begins_in_the_open_round(directory):
    still = Still(directory, Quorum(workers=3, count=2))
    workers = [still.join(number) for number in range(2)]
    for _ in range(3):
        for worker in workers:
            push(worker, 2)
    still.turn()
    assert still.control.head_version == 3
    comes = still.join(2)
    assert comes.pull(0, 1)[0] == 3
    push(comes, 10)
    push(workers[0], 4)
    still.turn()
    assert (still.values(), still.sequencer.counters.late) == (-6 - 7, 0)


@pytest.mark.parametrize(("gone", "lost"), [((2,), False), ((1, 2), True)], ids=["backup", "needed"])
def test_a_lost_worker_matters_when_a_round_cannot_close_without_it(directory, gone, lost):
    still = Still(directory, Quorum(workers=3, count=2, patience_s=1e-9))
    workers = [still.join(number) for number in range(3)]
    for number in gone:
        seat = still.sequencer._seats[number - len(still.sequencer._seats)]
        still.sequencer.close_seat(seat.number, seat.generation)
    push(workers[0], 2)
    still.turn()
    for _ in range(3):
        still.sequencer.keep_house()
    assert (still.control.general.load(ctl.LOST_WORKER) != 0) == lost
    if lost:
        for number in gone:
            still.sequencer.leave(number)
        still.turn()
        assert still.control.general.load(ctl.LOST_WORKER) == 0
        assert still.values() == -2


# ---- in a cluster


STRAGGLER = """
import sys
import coproc
address, name, near = sys.argv[1:]
with coproc.connect(address, near=near == "near") as client, client.model(name).join(2) as worker:
    view = worker.pull()
    print("joined", view.version, flush=True)
    for line in sys.stdin:
        if line.startswith("push"):
            worker.gradient(timeout_s=60)[:] = float(line.split()[1])
            receipt = worker.push(timeout_s=60)
            print("pushed", receipt.step, receipt.duplicate, flush=True)
        else:
            view = worker.pull(timeout_s=60)
            assert (view.flat == view.flat[0]).all()
            print("pulled", view.version, view.flat[0], flush=True)
"""


class Straggler:
    """Worker 2 in a process of its own; it does nothing but what it is told."""

    def __init__(self, address, name, near="near"):
        self.process = subprocess.Popen(
            [sys.executable, "-c", STRAGGLER, address, name, near],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.answer() == ["joined", "0"]

    def tell(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()

    def answer(self):
        readable, _, _ = select.select([self.process.stdout], [], [], 60)
        assert readable, "the straggler hangs"
        return self.process.stdout.readline().split()

    def finish(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0
        self.process.stdout.close()


def create(client, name, **settings):
    return client.create_model(
        name,
        params={"w": np.zeros(100, np.float32)},
        optimizer=coproc.optim.SGD(1.0),
        consistency=coproc.Quorum(workers=3, count=2, **settings),
    )


def give(worker, value):
    worker.gradient()[:] = value
    worker.push()


@LATE
@pytest.mark.parametrize("near", ["near", "far"])
def test_rounds_go_on_without_a_straggler(client, cluster, name, late, near):
    model = create(client, name, late=late)
    straggler = Straggler(cluster.address, name, near)
    with model.join(0) as first, model.join(1) as second:
        for round_ in range(8):
            assert first.pull().version == second.pull().version == round_
            give(first, 1)
            give(second, 3)
        assert first.pull().version == 8
        assert first.pull().flat[0] == -16
        straggler.tell("push 30")
        assert straggler.answer() == ["pushed", "0", "False"]
        straggler.tell("pull")
        if late == "drop":
            assert straggler.answer() == ["pulled", "8", "-16.0"]
            straggler.tell("push 40")
            assert straggler.answer() == ["pushed", "1", "False"]
            straggler.tell("pull")
            gave = 40
        else:
            gave = 30
        give(first, 10)  # two: the round closes
        after = -16 - (gave + 10) / 2
        assert straggler.answer() == ["pulled", "9", str(after)]
        assert (first.pull().version, first.pull().flat[0]) == (9, after)
        assert model.status().late_count == 1
        # Now the second one is late, and the straggler is not.
        give(second, 100)
        straggler.tell("push 7")
        assert straggler.answer() == ["pushed", "2" if late == "drop" else "1", "False"]
        if late == "drop":
            give(first, 9)
            after -= 8
        else:
            after -= (100 + 7) / 2
        assert (second.pull(min_version=10).version, second.pull().flat[0]) == (10, after)
        assert model.status().late_count == 2
    straggler.finish()
    model.delete()


@LATE
def test_late_twins_in_a_cluster(client, name, late):
    model = create(client, name, late=late)
    with model.join(0) as first, model.join(1) as second, model.join(2) as slow, model.join(2) as twin:
        give(first, 2)
        give(second, 4)
        assert first.pull().version == 1
        give(slow, 10)
        twin.gradient()[:] = 1000
        assert twin.push(step=0).duplicate
        if late == "drop":
            give(twin, 20)
        give(first, 30)
        assert twin.pull().version == slow.pull().version == 2
        assert slow.pull().flat[0] == -3 - (25 if late == "drop" else 20)
        assert model.status().late_count == 1
    model.delete()


@pytest.mark.parametrize("grace_s", [1.0, NEVER_S])
def test_a_server_killed_with_a_round_past_its_quorum(name, grace_s):
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        model = create(client, name, grace_s=grace_s)
        with model.join(0) as first, model.join(1) as second, model.join(2) as third:
            give(first, 3)
            give(second, 6)
            cluster.servers[0].kill()
            cluster.servers[0].restart()
            if grace_s == NEVER_S:
                give(third, 12)
            # Otherwise nobody gives any more: the grace alone ends it.
            assert first.pull(timeout_s=60).version == 1
            assert second.pull(timeout_s=60).flat[0] == (-7 if grace_s == NEVER_S else -4.5)


@LATE
@pytest.mark.parametrize("point", ["log.append.before", "log.append.after"])
def test_a_server_killed_at_the_record_of_a_late_step(name, late, point):
    """Appends: three joins, round 0, and the fifth is the late one's."""
    with (
        coproc.LocalCluster(environment={"COPROC_FAILPOINT": f"{point}:5"}) as cluster,
        coproc.connect(cluster.address) as client,
    ):
        model = create(client, name, late=late)
        [server] = cluster.servers
        with model.join(0) as first, model.join(1) as second, model.join(2) as slow:
            give(first, 2)
            give(second, 4)
            assert first.pull().version == 1
            give(slow, 10)
            assert server.wait(timeout_s=60) == -signal.SIGKILL
            del server.environment["COPROC_FAILPOINT"]
            server.restart()
            if late == "drop":
                assert slow.pull().version == 1
                give(slow, 20)
            give(first, 30)
            assert (slow.pull().version, slow.pull().flat[0]) == (2, -28 if late == "drop" else -23)
            assert slow.next_step == (2 if late == "drop" else 1)
            # The same steps by another attempt are there already.
            with model.join(2) as again:
                assert again.next_step == slow.next_step
                again.gradient()[:] = 1000
                assert again.push(step=0).duplicate
                assert again.pull().flat[0] == slow.pull().flat[0]
