"""Numbers as people read them: three digits that count, a unit, and a dash where nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

NOTHING = "\N{EN DASH}"
# Between a number and its unit: no line ends there.
_GAP = "\N{NARROW NO-BREAK SPACE}"

# Decimal, as disks and networks count.
_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def number(value: float | None, digits: int = 3) -> str:
    """With `digits` digits that count: 0.0123, 61.2, 55.0, 1,864; as short as it is exact: 0.5."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    whole = math.floor(math.log10(abs(value))) + 1
    places = max(0, digits - whole)
    if whole < -3:
        return f"{value:.{digits - 1}e}"
    text = f"{value:,.{places}f}"
    # A last 0 of a measurement is a digit that counts; of a number that is exact without it, it is not.
    return text.rstrip("0").rstrip(".") if "." in text and float(text.replace(",", "")) == value else text


def seconds(value: float | None) -> str:
    """0.24 ms, 61 ms, 3.4 s, 2 min 5 s."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value >= 120:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes}{_GAP}min {rest}{_GAP}s" if rest else f"{minutes}{_GAP}min"
    factor, unit = _unit(value, _TIMES)
    return f"{number(value / factor, 2 if factor < 1 else 3)}{_GAP}{unit}" if value else f"0{_GAP}s"


def size(value: float | None) -> str:
    """Bytes as 7.45 MB."""
    if value is None or not math.isfinite(value):
        return NOTHING
    factor, unit = _unit(value, _SIZES)
    return f"{number(value / factor)}{_GAP}{unit}"


def size_unit(values: Iterable[float | None]) -> tuple[float, str]:
    """(factor, unit) that suits the largest of some bytes, so that a column has one unit."""
    return _unit(max((abs(value) for value in values if value is not None), default=0.0), _SIZES)


def percent(share: float | None) -> str:
    if share is None or not math.isfinite(share):
        return NOTHING
    return f"{number(100 * share, 3 if abs(share) >= 0.9 else 2)}{_GAP}%"


def times(ratio: float | None) -> str:
    """A ratio, with the sign of times behind it."""
    if ratio is None or not math.isfinite(ratio):
        return NOTHING
    return f"{number(ratio, 3 if ratio >= 100 else 2)}\N{MULTIPLICATION SIGN}"


def span(low: float | None, high: float | None) -> str:
    """What repeats gave, from the least to the most: 59.1 to 63."""
    if low is None or high is None:
        return NOTHING
    return number(low) if number(low) == number(high) else f"{number(low)} to {number(high)}"


def joined(parts: Sequence[str], last: str = "and") -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}" if parts else ""


def count(many: int, one: str, several: str | None = None) -> str:
    """1 run, 3 runs."""
    return f"{many:,} {one if many == 1 else several or one + 's'}"


def shortened(text: str, limit: int) -> str:
    """`text` in at most `limit` characters."""
    return text if len(text) <= limit else text[: max(1, limit - 1)].rstrip() + "…"


def _unit(value: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    return next((unit for unit in units if abs(value) >= unit[0]), units[-1])
