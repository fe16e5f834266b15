"""What is descended together, and what is a duplicate: decisions without a socket."""

from __future__ import annotations

import pytest

from coproc.errors import ConfigError, PushRejected
from coproc.http.rounds import Given, Rounds


def joined(workers, least, most, count=None):
    rounds = Rounds(workers, least, most)
    for worker in range(count or workers):
        assert rounds.join(worker) == 0
    return rounds


def give(rounds, *workers):
    for worker in workers:
        rounds.give(Given(worker, 1, 0.0, None))


def taken(rounds):
    found = rounds.take()
    return None if found is None else [given.worker for given in found]


def test_a_round_is_of_all_workers_in_their_order():
    rounds = joined(3, 3, 3)
    give(rounds, 2, 0)
    assert taken(rounds) is None
    assert rounds.missing == [1]
    assert rounds.waits(2)
    assert not rounds.waits(1)
    give(rounds, 1)
    assert taken(rounds) == [0, 1, 2]
    assert taken(rounds) is None
    assert not rounds.waits(2)


def test_who_is_ahead_gives_to_the_rounds_after():
    rounds = joined(2, 2, 2)
    give(rounds, 0, 0, 0)
    assert taken(rounds) is None
    give(rounds, 1, 1)
    assert taken(rounds) == [0, 1]
    assert rounds.waits(0)
    assert taken(rounds) == [0, 1]
    assert taken(rounds) is None
    assert rounds.next_steps == {0: 3, 1: 2}


def test_nobody_waits_for_who_left_and_what_it_gave_stays():
    rounds = joined(3, 3, 3)
    give(rounds, 1)
    rounds.leave(1)
    rounds.leave(2)
    assert rounds.missing == [0]
    give(rounds, 0)
    assert taken(rounds) == [0, 1]
    give(rounds, 0)
    assert taken(rounds) == [0]
    assert rounds.join(2) == 0  # and it is waited for again
    give(rounds, 0)
    assert taken(rounds) is None


def test_a_quorum_takes_what_is_late_in_its_next_round():
    rounds = joined(3, 2, 3)
    give(rounds, 0)
    assert taken(rounds) is None
    give(rounds, 2)
    assert taken(rounds) == [0, 2]
    give(rounds, 1)
    assert taken(rounds) is None
    give(rounds, 2)
    assert taken(rounds) == [1, 2]


def test_a_quorum_of_more_than_are_left_needs_all_of_them():
    rounds = joined(3, 2, 3)
    rounds.leave(0)
    rounds.leave(1)
    give(rounds, 2)
    assert taken(rounds) == [2]


def test_without_rounds_each_is_taken_as_it_came():
    rounds = joined(None, 1, 1, count=3)
    give(rounds, 1, 1, 0)
    assert [taken(rounds) for _ in range(4)] == [[1], [1], [0], None]
    assert rounds.join(1 << 19) == 0


def test_as_many_as_the_most_are_taken_at_once():
    rounds = joined(None, 2, 3, count=9)
    give(rounds, 4)
    assert taken(rounds) is None
    give(rounds, 3, 2, 1)
    assert taken(rounds) == [4, 3, 2]
    assert taken(rounds) is None


def test_a_step_is_given_once_and_none_is_left_out():
    rounds = joined(2, 2, 2)
    assert not rounds.is_duplicate(0, 0)
    give(rounds, 0)
    assert rounds.is_duplicate(0, 0)  # it waits
    give(rounds, 1)
    rounds.take()
    assert rounds.is_duplicate(0, 0)  # it is in
    assert rounds.join(0) == 1
    with pytest.raises(PushRejected, match="worker 0 pushes step 2, but its next step is 1"):
        rounds.is_duplicate(0, 2)
    with pytest.raises(PushRejected, match="worker 7 has not joined"):
        rounds.is_duplicate(7, 0)


@pytest.mark.parametrize(("workers", "least", "most"), [(2, 3, 3), (2, 0, 2), (2, 2, 1), (None, 0, 1)])
def test_numbers_that_leave_a_round_open_for_ever(workers, least, most):
    with pytest.raises(ConfigError):
        Rounds(workers, least, most)


@pytest.mark.parametrize("worker", [-1, 2])
def test_workers_have_the_numbers_of_a_round(worker):
    with pytest.raises(ConfigError, match="numbered 0 to 1"):
        Rounds(2, 2, 2).join(worker)
