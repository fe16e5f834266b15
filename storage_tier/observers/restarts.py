"""When a failed observer is started again. Pure.

After each failure the next of a few delays; after the last of them never by itself. What failed longer ago than
`FORGIVEN_AFTER_S` no longer counts. So what was a stroke of bad luck heals by itself, and what fails each time costs
a few failures and then nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

FORGIVEN_AFTER_S = 600.0


class Restarts:
    """The failures of one observer."""

    def __init__(self, delays_s: Sequence[float]) -> None:
        self._delays_s = delays_s
        self._failed_s: list[float] = []

    def failed(self, now_s: float) -> float | None:
        """It failed now: in how many seconds to start it; None: not by itself."""
        self._failed_s = [when_s for when_s in self._failed_s if now_s - when_s < FORGIVEN_AFTER_S] + [now_s]
        number = len(self._failed_s) - 1
        return self._delays_s[number] if number < len(self._delays_s) else None

    def forgive(self) -> None:
        """All restarts are there again."""
        self._failed_s = []
