"""Limits in figures of their own: seconds, a rate, bytes; where the promise is not about another contestant."""

from __future__ import annotations

from collections.abc import Sequence

from coproc.bench.base import Ratio


def within(
    samples: Sequence[float], limit: float | Sequence[float], shown: str, promised: bool, *, least: bool = False
) -> tuple[Ratio, ...]:
    """The samples as shares of a limit, which is kept by the median; no ratio at all where nothing is promised.

    Args:
        samples: in the unit of the limit.
        limit: one for all, or one for each sample.
        shown: the limit, for people.
        promised: False for sizes that say nothing (`Options.quick`).
        least: the samples shall be at least the limit, not at most.
    """
    if not promised:
        return ()
    limits = [limit] * len(samples) if isinstance(limit, int | float) else limit
    shares = tuple([sample / most for sample, most in zip(samples, limits, strict=True)])
    bound = {"at_least": 1.0} if least else {"at_most": 1.0}
    return (Ratio(shown, "limit", shares, **bound),)
