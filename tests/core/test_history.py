"""The bookkeeping of the counting test: it sees a step that is lost, doubled, or another one's."""

from __future__ import annotations

import pytest

from . import history
from .history import ACKNOWLEDGED, BEGAN, JOINED, NOTE


def told(directory, *attempts):
    """Files of notes, all of worker 0."""
    files = {}
    for number, notes in enumerate(attempts):
        path = directory / str(number)
        path.write_bytes(b"".join(NOTE.pack(*note) for note in notes))
        files[path] = 0
    return files


def test_whoever_began_can_have_won(tmp_path):
    first = [(BEGAN, 4, 1, 1), (ACKNOWLEDGED, 4, 1, 2), (BEGAN, 5, 8, 3), (ACKNOWLEDGED, 5, 8, 4)]
    [life] = history.read(told(tmp_path, first, [(BEGAN, 5, 16, 5)]), [])
    assert [life.candidates(0, step) for step in (4, 5, 6)] == [{1}, {8, 16}, set()]
    assert life.acknowledged() == {0: 6}


def test_an_attempt_is_of_the_life_in_which_it_joined(tmp_path):
    notes = [(JOINED, 0, 0, 1), (BEGAN, 0, 8, 2), (ACKNOWLEDGED, 0, 8, 3), (BEGAN, 1, 8, 4)]
    notes += [(JOINED, 0, 0, 6), (BEGAN, 0, 16, 7)]
    first, second = history.read(told(tmp_path, notes), [5])
    assert (first.candidates(0, 0), first.candidates(0, 1)) == ({8}, {8})
    assert (second.candidates(0, 0), second.candidates(0, 1)) == ({16}, set())
    assert (first.acknowledged(), second.acknowledged()) == ({0: 1}, {})


def test_the_values_of_a_step_are_alike():
    for worker in range(3):
        for step in range(50):
            assert len({history.value_of(attempt, worker, step) % history.STRIDE for attempt in range(9)}) == 1


@pytest.mark.parametrize(
    ("total", "can_be"),
    [
        (13 + 2 * 22, True),
        (29 + 2 * 22, True),
        (13, False),
        (2 * 13 + 2 * 22, False),
        (21 + 2 * 22, False),
        (-1, False),
    ],
    ids=["one", "other", "lost", "doubled", "neither", "less"],
)
def test_what_a_sum_can_be(total, can_be):
    assert history.can_be(total, [(1, {13, 29}), (2, {22})]) is can_be
