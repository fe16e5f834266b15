"""What is expected of more hosts than were tried, as a figure and as text: the model's curves and its own errors."""

from __future__ import annotations

from collections.abc import Sequence

from coproc.report import words
from coproc.report.axes import Axis
from coproc.report.contest import looks_of
from coproc.report.curves import Lines, Mark, Series
from coproc.report.drawing import CPU_BOUND, EMULATED, Kinds
from coproc.report.tables import Figure, Panel, Table
from coproc.trials.project import Curve, Measured

TITLE = "Expected of more hosts"
SAY = (
    "Dashed is a model, not a measurement: what is known of each architecture's bytes, fitted to the points, which "
    "were measured on emulated hosts. The work of all hosts is told in workers that would only have to compute.",
    "The numbers below have the model's error on each point, and all that it assumes.",
)
COLUMNS = ("hosts", "a step", "computing", "links", "update", "else", "of the ideal", "measured", "error of the model")


def figure(curves: Sequence[Curve]) -> Figure:
    """The curves with their points; the numbers, errors and assumptions below them."""
    series: list[Series] = []
    looks = looks_of([curve.label for curve in curves])
    for curve in curves:
        look, shape = looks[curve.label]
        done = [_mark(curve, each) for each in curve.measured]
        ahead = [Mark(each.hosts, each.hosts * each.efficiency) for each in curve.expected]
        series.append(Series(f"{curve.label}, expected", look, tuple(ahead), dashed=True, shape=shape))
        series.append(Series(curve.label, look, tuple(done), shape=shape))
    hosts = sorted({mark.x for each in series for mark in each.marks})
    ideal = Series("ideal", "", tuple(Mark(count, count) for count in (hosts[0], hosts[-1])))
    across = Axis("hosts", log=True, ticks=tuple(hosts) if len(hosts) <= 12 else None)
    up = Axis("work of all hosts, in workers that only compute", log=True)
    rows: list[tuple[object, ...]] = []
    for curve in curves:
        rows += [(curve.label,), *_numbers(curve), *(("assumed", sentence) for sentence in curve.assumptions)]
    return Figure(TITLE, (Panel(Lines(across, up, tuple(series), guides=(ideal,))),), Table(COLUMNS, tuple(rows)), SAY)


def text(curves: Sequence[Curve]) -> str:
    """The same in lines: what is expected, what was measured with the model's error, what is assumed."""
    lines = [f"{TITLE}:"]
    for curve in curves:
        lines.append(f"  {curve.label}")
        lines += [
            f"    {each.hosts} hosts: {words.seconds(each.step_s)} a step, {words.percent(each.efficiency)} of ideal"
            for each in curve.expected
        ]
        lines += [
            f"    measured on {each.hosts}: {words.seconds(each.step_s)} a step; the model says "
            f"{words.seconds(each.expected_s)}, {100 * each.error:+.0f} %{' (CPU-bound)' if each.cpu_bound else ''}"
            for each in curve.measured
        ]
        lines += [f"    {sentence}" for sentence in curve.assumptions]
    # A terminal has no narrow spaces.
    return "\n".join(lines).replace("\N{NARROW NO-BREAK SPACE}", " ")


def _mark(curve: Curve, each: Measured) -> Mark:
    compute_s = curve.expected[0].compute_s if curve.expected else each.step_s
    kinds: Kinds = frozenset([CPU_BOUND] * each.cpu_bound + [EMULATED] * curve.point.emulate_compute)
    return Mark(each.hosts, each.hosts * compute_s / each.step_s, kinds=kinds)


def _numbers(curve: Curve) -> list[tuple[object, ...]]:
    """A line for each number of hosts, measured ones first."""
    told: list[tuple[object, ...]] = []
    for each in curve.measured:
        nothing = [words.NOTHING] * 4
        error = f"{100 * each.error:+.0f} %"
        told.append(
            (each.hosts, words.seconds(each.expected_s), *nothing, words.NOTHING, words.seconds(each.step_s), error)
        )
    for ahead in curve.expected:
        parts = (ahead.compute_s, ahead.link_s, ahead.update_s, ahead.other_s)
        share = words.percent(ahead.efficiency)
        told.append(
            (ahead.hosts, words.seconds(ahead.step_s), *map(words.seconds, parts), share, words.NOTHING, words.NOTHING)
        )
    return told
