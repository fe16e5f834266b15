"""Parameters fetched ahead: when they are asked for, whose they are, and how it ends."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from coproc.errors import ConfigError, LeaseExpired, Timeout, Unreachable
from coproc.exchange import ExchangeSpec, Spent, Taken, Version
from coproc.prefetch import Prefetched, join
from coproc.tasks import DataSpec, WorkerTask
from coproc.training import TrainConfig

WAIT_S = 10.0


class Attempt:
    """An exchange whose pulls come when they are let."""

    def __init__(self, events):
        self.events = events
        self.next_step = 0
        self.version = 0
        self.spent = Spent()
        self.asked = threading.Semaphore(0)
        self.let = threading.Semaphore(0)
        self.failure = None
        self._flat = np.zeros(3, np.float32)
        self._pulls = 0

    def pull(self, *, timeout_s):
        self.asked.release()
        assert self.let.acquire(timeout=WAIT_S)
        if self.failure is not None:
            raise self.failure
        self._pulls += 1
        self._flat += 1
        self.spent.came(self._flat.nbytes)
        return Version(self._pulls, self._flat)

    def push(self, *, step, **told):
        self.next_step = step + 1
        self.spent.went(12)
        return Taken(step, 0)

    def close(self):
        self.events.append(f"{'pushing' if self.next_step else 'pulling'} closed")

    def abort(self):
        self.events.append("aborted")


@pytest.fixture
def events():
    return []


@pytest.fixture
def attempts(events):
    pushing, pulling = Attempt(events), Attempt(events)
    exchange = Prefetched(pushing, pulling, until_step=3)
    yield exchange, pushing, pulling
    pulling.let.release(8)
    exchange.abort()


def push(exchange):
    step = exchange.next_step
    assert exchange.push(step=step, examples=1, loss=0.0, timeout_s=1.0, last=False).step == step


def test_the_next_pull_is_under_way_while_a_gradient_is_made_and_leaves_its_parameters_alone(attempts):
    exchange, _, pulling = attempts
    pulling.let.release()
    first = exchange.pull(timeout_s=WAIT_S)
    assert pulling.asked.acquire(timeout=WAIT_S)
    assert pulling.asked.acquire(timeout=WAIT_S), "nobody has asked again"
    pulling.let.release()
    push(exchange)
    assert (first.version, first.flat.tolist()) == (1, [1, 1, 1])
    assert not first.flat.flags.writeable
    assert exchange.pull(timeout_s=WAIT_S).version == 2
    assert exchange.spent == Spent(in_bytes=24, out_bytes=12)


def test_nothing_is_fetched_for_a_step_that_is_not_the_tasks(attempts):
    exchange, _, pulling = attempts
    pulling.let.release(3)
    for version in (1, 2, 3):
        assert exchange.pull(timeout_s=WAIT_S).version == version
        push(exchange)
    exchange.close()
    asked = sum(pulling.asked.acquire(blocking=False) for _ in range(5))
    assert asked == 3


def test_what_is_late_is_a_timeout_and_comes_with_the_next_call(attempts):
    exchange, _, pulling = attempts
    with pytest.raises(Timeout, match=r"did not come within 0\.0 s"):
        exchange.pull(timeout_s=0.01)
    pulling.let.release()
    assert exchange.pull(timeout_s=WAIT_S).version == 1


@pytest.mark.parametrize("failure", [LeaseExpired("over"), Timeout("nothing to read yet")])
def test_a_failure_of_the_pull_is_told_once(attempts, failure):
    exchange, _, pulling = attempts
    pulling.failure = failure
    pulling.let.release()
    with pytest.raises(type(failure), match=str(failure)):
        exchange.pull(timeout_s=WAIT_S)
    pulling.failure = None
    pulling.let.release()
    assert exchange.pull(timeout_s=WAIT_S).version == 1


def test_the_end_waits_for_what_is_coming_and_closes_both(attempts, events):
    exchange, _, pulling = attempts
    pulling.let.release()
    exchange.pull(timeout_s=WAIT_S)
    push(exchange)
    pulling.failure = Unreachable("gone")
    threading.Timer(0.05, pulling.let.release).start()
    exchange.close()
    assert events == ["pulling closed", "pushing closed"]


def test_a_worker_that_cannot_join_twice_has_not_joined(monkeypatch, events):
    answers = [Attempt(events), Unreachable("gone")]

    def open_exchange(spec, worker, *, timeout_s):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("coproc.prefetch.open_exchange", open_exchange)
    task = WorkerTask(
        run="r",
        worker=0,
        exchange=ExchangeSpec("fake"),
        backend={},
        data=DataSpec("none", "/none"),
        pushes_per_epoch=1,
        until_step=1,
        end_step=1,
        prefetch=True,
    )
    with pytest.raises(Unreachable):
        join(task)
    assert events == ["aborted"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "--prefetch goes with --consistency asp"),
        ({"consistency": "ssp"}, "--prefetch goes with --consistency asp"),
        ({"consistency": "asp", "n_fetch": 4}, "as many --n-fetch as --n-send"),
        ({"mode": "hogwild", "consistency": "asp"}, "--prefetch goes with --mode coproc or http"),
        ({"consistency": "asp", "delay_compensation": 0.1}, "--delay-compensation does not go with --prefetch"),
    ],
)
def test_what_cannot_be_fetched_ahead_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        TrainConfig(prefetch=True, **given)
