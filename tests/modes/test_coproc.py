"""The project's own mode: what is its own of it. Trainings are those of the conformance suite."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import coproc
from coproc.modes.coproc import CoprocMode
from coproc.modes.driver import Driver


class Answering:
    """A model whose server answers as listed: with an epoch, or an error."""

    def __init__(self, *answers):
        self._answers = list(answers)

    def status(self, timeout_s=5.0):
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(epoch=answer)


class Jobs:
    """A pool that counts its jobs and asks, in each, whether it is to stop."""

    name = "inline"

    def __init__(self):
        self.count = 0

    def run(self, tasks, *, stop):
        self.count += 1
        stop()
        return []


def run(*answers):
    mode = CoprocMode.__new__(CoprocMode)
    Driver.__init__(mode)
    mode.model, pool = Answering(*answers), Jobs()
    mode.run(pool, [])
    assert not mode.model._answers
    assert mode.counted.jobs_count == pool.count
    return pool.count


DOWN, SLOW = coproc.Unreachable("it is down"), coproc.Timeout("it is slow")


def test_a_server_that_is_down_at_the_beginning_in_the_middle_or_at_the_end_of_a_group_is_waited_for():
    assert run(1, 1, 1) == 1
    assert run(DOWN, SLOW, 1, DOWN, DOWN, SLOW, 1) == 1


def test_a_model_that_went_back_is_trained_again():
    assert run(1, 2, 2, 2, 2) == 2  # known in the middle
    assert run(1, DOWN, 2, 2, DOWN, 2) == 2


def test_a_server_that_stays_away_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr("coproc.modes.coproc._PATIENCE_S", 0.0)
    for answers in [(DOWN,), (1, 1, DOWN)]:
        with pytest.raises(coproc.Unreachable):
            run(*answers)
