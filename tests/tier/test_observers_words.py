"""The words for an observer that failed: those of its state and those of the log are the same."""

from __future__ import annotations

import logging
import time

import pytest

from storage_tier.observers import ObserverOptions
from storage_tier.observers.options import State
from storage_tier.testing.memory import MemoryTier

LONG_S = 60.0


@pytest.mark.parametrize(
    ("delays_s", "state", "words"),
    [((1000.0,), "restarting", "it is started again in 1000 s"), ((), "quarantined", "until it is resumed")],
)
def test_the_log_says_what_the_state_says(
    delays_s: tuple[float, ...], state: State, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with MemoryTier() as tier, caplog.at_level(logging.WARNING, "storage_tier.observers"):
        attached = tier.host.attach("/d", "average", options=ObserverOptions(restart_delays_s=delays_s))
        child = tier.host._find(attached)._child
        assert child is not None
        child.fail("killed by a test")
        deadline_s = time.monotonic() + LONG_S
        while not caplog.messages:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        assert [one.state for one in tier.host.attachments()] == [state]
        assert caplog.messages == [f"killed by a test; {state}: {words}"]
