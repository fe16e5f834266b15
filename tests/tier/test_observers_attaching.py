"""Attaching observers and detaching them: what is refused, what fails to start, what does not end."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

from storage_tier.errors import InvalidRequest
from storage_tier.observers import ObserverFailed, ObserverNotFound, ObserverOptions, Vetoed
from storage_tier.testing.memory import MemoryTier

from . import observer_probes
from .observer_probes import TIMEOUT_S, Journal, is_gone, quarantined, state_of, until

examples = observer_probes.examples
journal = observer_probes.journal
tier = observer_probes.tier


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        ("no_such", {}, "there is no observer 'no_such' on this server: it knows .*probe.*validate"),
        ("twice", {}, "registered more than once"),
        ("../../etc/passwd", {}, "there is no observer"),
        ("probe", {"nonsense": 1}, "a probe does not know 'nonsense'"),
        ("probe", {"start": "bad"}, "a probe cannot start badly"),
        ("probe", [1], "parameters are an object"),
        ("probe", {"start": object()}, "cannot be written as JSON"),
        ("probe", {"start": float("nan")}, "cannot be written as JSON"),
        ("probe", {"start": "x" * 70_000}, "at most 65,536"),
    ],
)
def test_what_cannot_be_attached_is_refused(tier: MemoryTier, name: str, parameters: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        tier.host.attach("/a", name, parameters)
    assert tier.host.attachments() == []


@pytest.mark.parametrize(
    ("name", "start", "sentence"),
    [
        ("probe", "raise", "RuntimeError: in from_parameters"),
        ("probe", "raise in start", "ValueError: in start"),
        ("probe", "exit 3", "ended with exit code 3 during start"),
        ("probe", "crash", "was killed by SIGSEGV during start"),
        ("thing", "", "and no Observer"),
        ("lost", "", "AttributeError"),
    ],
)
def test_what_fails_to_start_is_not_attached(tier: MemoryTier, name: str, start: str, sentence: str) -> None:
    with pytest.raises(ObserverFailed, match=sentence):
        tier.host.attach("/a", name, {"start": start})
    assert tier.host.attachments() == []


def test_an_endless_start_ends(tier: MemoryTier) -> None:
    with pytest.raises(ObserverFailed, match=r"(?s)start of probe of /a took longer than 1 s.*in endless"):
        tier.host.attach("/a", "probe", {"start": "endless"}, ObserverOptions(start_limit_s=1.0))


def test_without_waiting_what_fails_is_shown(tier: MemoryTier) -> None:
    attached = tier.host.attach("/a", "no_such", wait=False, attachment_id="kept")
    assert attached == "kept"
    assert "there is no observer" in quarantined(tier, attached).failure
    tier.put("/a/x", b"")


def test_a_guard_that_does_not_start_lets_nothing_pass(tier: MemoryTier) -> None:
    tier.host.attach("/a", "no_such", options=ObserverOptions(on_failure="closed"), wait=False)
    with pytest.raises(ObserverFailed, match="there is no observer 'no_such'"):
        tier.put("/a/x", b"")
    tier.put("/b/x", b"")


def test_a_guard_that_is_being_started_is_waited_for(tier: MemoryTier) -> None:
    tier.host.attach("/a", "closed", options=ObserverOptions(on_failure="closed"), wait=False)
    with pytest.raises(Vetoed, match=r"^it was asked$"):
        tier.put("/a/x", b"veto it was asked")


def test_ids_are_taken_once_and_asked_for(tier: MemoryTier) -> None:
    tier.host.attach("/a", "quiet", attachment_id="one")
    with pytest.raises(InvalidRequest, match="already"):
        tier.host.attach("/b", "quiet", attachment_id="one")
    for call in (tier.host.detach, tier.host.resume):
        with pytest.raises(ObserverNotFound, match="'other'"):
            call("other")
    tier.host.detach("one")
    with pytest.raises(ObserverNotFound):
        tier.host.detach("one")


def test_detaching_stops_it_in_order(tier: MemoryTier, journal: Journal) -> None:
    attached = tier.host.attach("/a", "probe", {"log": journal.path})
    pid = state_of(tier, attached).pid
    assert pid is not None
    tier.host.detach(attached)
    assert [note["stopped"] for note in journal.notes("stopped")] == [pid]
    assert is_gone(pid)
    tier.put("/a/x", b"veto nobody is asked")


@pytest.mark.parametrize("stop", ["endless", "raise", "exit 1", "endless_in_c"])
def test_one_that_does_not_stop_is_killed(tier: MemoryTier, stop: str) -> None:
    attached = tier.host.attach("/a", "probe", {"stop": stop})
    pid = state_of(tier, attached).pid
    start_s = time.monotonic()
    tier.host.detach(attached, timeout_s=0.5)
    assert time.monotonic() - start_s < 4
    assert pid is not None
    assert is_gone(pid)


def test_nothing_is_attached_after_the_end(tier: MemoryTier) -> None:
    tier.host.close()
    with pytest.raises(InvalidRequest, match="this server ends"):
        tier.host.attach("/a", "quiet")


def test_a_hundred_times_leave_no_descriptor(tier: MemoryTier) -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    def attach_ten() -> None:
        def one() -> None:
            tier.host.detach(tier.host.attach("/a", "quiet"))

        threads = [threading.Thread(target=one) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)

    attach_ten()
    before = count()
    for _ in range(9):
        attach_ten()
    until(lambda: count() == before, "a descriptor or a thread is left")
