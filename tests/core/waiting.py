"""Waiting in tests for what another process does."""

from __future__ import annotations

import select
import time


def until(condition, timeout_s=30.0):
    """What the condition gives as soon as that is true; looked at again and again."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        select.select([], [], [], 0.01)
    return found
