"""Leases of far workers: when they end, and what of them is given back."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

import coproc
from coproc.server.far import LEASE_TTL_S, FarSessions


class Seats:
    """What leases stand for, and in which order they are given back."""

    def __init__(self):
        released = SimpleNamespace(release=lambda key: None)
        self.sessions = FarSessions(released)
        self.closed, self.given_back = [], []
        self.then = lambda: None

    def open(self, number):
        spec = SimpleNamespace(identity="model", home="/home")
        worker = SimpleNamespace(model=SimpleNamespace(spec=spec), close=lambda: self.closed.append(number))

        def give_back():
            self.given_back.append(number)
            self.then()

        return self.sessions.open(worker, give_back)

    def silence(self, *leases):
        for lease in leases:
            self.sessions._sessions[lease].used_at -= LEASE_TTL_S + 1


def test_a_silent_lease_ends_and_no_other():
    seats = Seats()
    leases = [seats.open(number) for number in range(3)]
    seats.silence(*leases)
    seats.sessions.renew(leases[1])
    with seats.sessions.use(leases[2], "model", 1.0):
        seats.silence(leases[2])
        seats.sessions.expire()
    assert (seats.closed, seats.given_back) == ([0], [0])
    for lease, model in ((leases[0], "model"), (leases[1], "another")):
        with pytest.raises(coproc.LeaseExpired), seats.sessions.use(lease, model, 1.0):
            pass
    seats.sessions.expire(all_of_them=True)
    assert seats.closed == seats.given_back == [0, 1, 2]


def test_a_lease_whose_call_begins_while_others_end_is_left_alone():
    seats = Seats()
    leases = [seats.open(number) for number in range(2)]
    seats.silence(*leases)
    with contextlib.ExitStack() as calls:
        seats.then = lambda: calls.enter_context(seats.sessions.use(leases[1], "model", 1.0))
        seats.sessions.expire()
        assert seats.given_back == [0]
        seats.then = lambda: None
    with seats.sessions.use(leases[1], "model", 1.0):
        pass


class Busy:
    """Of a lease that ends while a call waits for the one before."""

    def __init__(self, end):
        self._end = end

    def acquire(self, timeout):
        end, self._end = self._end, lambda: None
        end()
        return True

    def release(self):
        pass


def test_a_call_that_waits_for_one_before_it_ends_with_the_lease():
    seats = Seats()
    lease = seats.open(0)
    seats.sessions._sessions[lease].busy = Busy(lambda: seats.sessions.close(lease))
    with pytest.raises(coproc.LeaseExpired), seats.sessions.use(lease, "model", 1.0):
        pass
    assert seats.given_back == [0]
