"""What the experiments' readings have in common: to find entries, and to say what cannot be said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from coproc.report import verdict, words
from coproc.report.axes import Axis
from coproc.report.bars import Bars
from coproc.report.contest import Entry, Trial, all_entries
from coproc.report.curves import Lines, Mark, Rule, Series
from coproc.report.figures import bar
from coproc.report.tables import Figure, Panel, Table

NOTHING = ["There are no numbers yet that could be read."]
TWO_CORES = (
    "On a machine of few cores, tasks that compute share them: what more workers would do in wall time is only seen "
    "where computing is a wait."
)


def entries_of(trials: Sequence[Trial]) -> list[Entry]:
    """The entries that have numbers."""
    return [entry for entry in all_entries(trials) if entry.trials]


def those(entries: Iterable[Entry], **fields: Any) -> list[Entry]:
    """The entries whose points have these settings."""
    return [entry for entry in entries if all(getattr(entry.point, name) == value for name, value in fields.items())]


def the(entries: Iterable[Entry], **fields: Any) -> Entry | None:
    """The first of `those`."""
    return next(iter(those(entries, **fields)), None)


def by(entries: Iterable[Entry], name: str) -> dict[Any, list[Entry]]:
    """Entries by a setting of their points, in its order; those that have none of it are left out."""
    found: dict[Any, list[Entry]] = {}
    for entry in entries:
        found.setdefault(getattr(entry.point, name), []).append(entry)
    return {value: found[value] for value in sorted(value for value in found if value is not None)}


def limits(trials: Sequence[Trial], *more: str) -> list[str]:
    """What the measurement cannot say."""
    return [*more, *verdict.noise(all_entries(trials))]


def missing(what: str) -> str:
    return f"There are too few numbers to tell {what}."


def course(
    entries: Iterable[Entry], name: str, value: Callable[[Entry], float | None], metric: str | None = None
) -> tuple[Mark, ...]:
    """A value of entries over a setting; `metric` is what its spread is the spread of, if it is a metric itself."""
    marks = []
    for setting, several in by(entries, name).items():
        for entry in several[:1]:
            y = value(entry)
            if y is not None:
                low, high = entry.spread(metric) if metric else (None, None)
                marks.append(Mark(float(setting), y, low, high, entry.kinds))
    return tuple(marks)


def lines_figure(
    title: str,
    lines: Sequence[Series],
    x: Axis,
    y: Axis,
    say: Sequence[str] = (),
    rules: tuple[Rule, ...] = (),
    guides: tuple[Series, ...] = (),
) -> list[Figure]:
    """A chart of lines with all of its points as numbers; none where no line has a point."""
    shown = tuple(line for line in lines if line.marks)
    if not shown:
        return []
    numbers = lines_table(shown, x, y)
    return [Figure(title, (Panel(Lines(x, y, shown, rules, guides)),), numbers, say)]


def lines_table(lines: Sequence[Series], x: Axis, y: Axis) -> Table:
    """The points of lines: a line of the table for each x, a column for each line."""
    columns = (x.label, *(line.label for line in lines))
    places = sorted({mark.x for line in lines for mark in line.marks})
    told = [{mark.x: mark for mark in line.marks} for line in lines]
    rows = tuple((x.words(place), *(_cell(marks.get(place), y) for marks in told)) for place in places)
    return Table(columns, rows)


def bars_panel(entries: Sequence[Entry], metric: str, title: str, axis: Axis) -> Panel:
    return Panel(Bars(axis, tuple(bar(entry, metric) for entry in entries)), title)


def metrics_table(entries: Sequence[Entry], columns: Sequence[tuple[str, str, Callable[[float | None], str]]]) -> Table:
    """Medians of metrics, an entry a line: (metric, name of the column, words)."""
    rows = tuple((entry.name, *(said(entry.median(metric)) for metric, _, said in columns)) for entry in entries)
    return Table(("contestant", *(name for _, name, _ in columns)), rows)


def workers_axis(entries: Iterable[Entry], name: str = "workers", label: str = "workers") -> Axis:
    """Just the numbers that were tried, equal ratios apart."""
    return Axis(label, log=True, ticks=tuple(float(value) for value in by(entries, name)))


def _cell(mark: Mark | None, axis: Axis) -> str:
    if mark is None:
        return words.NOTHING
    if mark.low is None or mark.high is None or mark.low == mark.high:
        return axis.words(mark.y)
    return f"{axis.words(mark.y)} ({axis.words(mark.low)} to {axis.words(mark.high)})"
