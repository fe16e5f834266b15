"""The figures that any comparison has: loss over time, split of a step, scaling, overheads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from coproc.report import words
from coproc.report.axes import Axis
from coproc.report.bars import Bar, Bars, Stack, Stacks
from coproc.report.contest import LINK, Contest, Entry
from coproc.report.curves import Lines, Mark, Rule, Series
from coproc.report.drawing import EMULATED, signs
from coproc.report.moments import losses, over_epochs, quality
from coproc.report.tables import Figure, Panel, Table
from coproc.trials.metrics import DESCENDS_ON_DRIVER

# Times so far apart that on an even axis the short ones would be a line along the edge.
FAR_APART = 6.0

PARTS = (("compute_s", "computing"), ("pull_s", "pull"), ("push_s", "push"), ("update_s", "update on the driver"),
         ("scheduling_s", "scheduling"))  # fmt: skip
COSTS = (
    ("worker_bytes_per_step", "Bytes a step, each worker", "bytes a step, in and out", words.size),
    ("driver_bytes_per_step", "Bytes a step, driver", "bytes a step, in and out", words.size),
    ("server_bytes_per_step", "Bytes a step, each server", "bytes a step, in and out", words.size),
    (LINK, "Bytes a step, busiest link", "bytes a step, in and out of a host", words.size),
    ("jobs_per_step", "Spark jobs a step", "jobs", words.number),
    ("startup_s", "Start-up", "from the start to the first gradient", words.seconds),
)
STALENESS = (("staleness_p50", "staleness, median"), ("staleness_p99", "staleness, 99 of 100"))
ROLES = (("memory_worker_bytes", "workers"), ("memory_driver_bytes", "driver"), ("memory_server_bytes", "servers"))


def loss_over_time(contests: Sequence[Contest]) -> Figure | None:
    """Training loss over training seconds, a panel a contest."""
    panels, rows = [], []
    for contest in contests:
        # An emulated gradient is no loss.
        learning = [entry for entry in contest.finished if EMULATED not in entry.kinds]
        lines = tuple(line for entry in learning if (line := series(entry, losses(entry))).marks)
        log = _far_apart([line.marks[-1].x for line in lines])
        if lines:
            positive = all(mark.y > 0 for line in lines for mark in line.marks)
            rules = _targets(contest, "target_loss", "loss")
            panels.append(
                Panel(
                    Lines(_time(log), Axis("training loss", log=positive, from_zero=False), lines, rules), contest.work
                )
            )
            rows += [_course(contest, contests, line) for line in lines]
    say = [
        "Each line is the mean loss of some batches, one after the other; its band lies between the fastest repeat and "
        "the slowest."
    ]
    columns = ("contestant", *(f"at {words.percent(share)} of its time" for share in _SHARES), "its time")
    return _figure("Loss over time", panels, Table(columns, tuple(rows)), say)


def quality_over_time(contests: Sequence[Contest]) -> Figure | None:
    """What was measured on the test data after each epoch, a panel a contest."""
    panels, rows, called = [], [], "test accuracy"
    for contest in contests:
        learning = [entry for entry in contest.finished if EMULATED not in entry.kinds]
        measured = quality(learning)
        if measured is None:
            continue
        key, called = measured
        lines = tuple(line for entry in learning if (line := series(entry, over_epochs(entry, key))).marks)
        log = _far_apart([line.marks[-1].x for line in lines])
        rules = _targets(contest, f"target_{key}", "target")
        panels.append(Panel(Lines(_time(log), Axis(called, from_zero=False, most=1.0), lines, rules), contest.work))
        for line in lines:
            rows += [
                (
                    _named(contest, contests, line.label + signs(mark.kinds)),
                    n,
                    words.seconds(mark.x),
                    words.number(mark.y, 4),
                    _ends(mark, 4),
                )
                for n, mark in enumerate(line.marks, 1)
            ]
    say = ["Measured after each epoch, with the clock of the training stopped."]
    table = Table(("contestant", "epoch", "training time", called, "repeats"), tuple(rows))
    return _figure(f"{called[0].upper()}{called[1:]} over time", panels, table, say)


def split_of_a_step(contests: Sequence[Contest]) -> Figure | None:
    """Where the time of a step goes, a panel a contest."""
    panels, rows = [], []
    for contest in contests:
        shown = [entry for entry in contest.finished if entry.median("compute_s") is not None]
        # An update beside the workers is inside of what they wait for: only the driver's is a part of its own.
        stacks = tuple(
            Stack(
                entry.name,
                tuple(None if key == "update_s" and not _in_turns(entry) else entry.median(key) for key, _ in PARTS),
                entry.kinds,
            )
            for entry in shown
        )
        if stacks:
            panels.append(Panel(Stacks(Axis("time a step", words=words.seconds), _PART_NAMES, stacks), contest.work))
        rows += [
            (
                _named(contest, contests, entry.name + signs(entry.kinds)),
                *(words.seconds(entry.median(key)) for key, _ in PARTS),
                _share(entry),
            )
            for entry in shown
        ]
    say = [
        "Means over the steps of all workers. Pull and push have in them what a worker waits for the others and for "
        "the update; where servers or workers descend, the update is told in the numbers and is no part of the bar. "
        "Scheduling is what is left of a group of tasks: the starts and ends of its jobs."
    ]
    columns = ("contestant", *(name.removesuffix(" on the driver") for _, name in PARTS), "computing of all")
    return _figure("Where a step goes", panels, Table(columns, tuple(rows)), say)


def scaling(contests: Sequence[Contest]) -> Figure | None:
    """How examples/s grow with the workers, of whoever ran with several numbers of them."""
    families: dict[tuple[Any, ...], list[Entry]] = {}
    for contest in contests:
        for entry in contest.choices:
            point = replace(entry.point, workers=1, hosts=None, rows=None, rows_per_worker=None)
            families.setdefault((entry.name, point), []).append(entry)
    lines, rows, counts = [], [], set()
    for family in families.values():
        sized = {entry.point.workers: entry for entry in family if entry.median("examples_per_s")}
        if len(sized) < 2:
            continue
        line, told = speedups(dict(sorted(sized.items())))
        lines.append(line)
        rows += told
        counts |= set(sized)
    if not lines:
        return None
    ticks = tuple(sorted(float(count) for count in counts))
    chart = speedup_chart(tuple(lines), ticks)
    columns = ("contestant", "workers", "examples/s", "repeats", "speed-up", "efficiency")
    say = ["Examples a second through those with the fewest workers; ideal is as many times more workers."]
    return Figure("Scaling", (Panel(chart),), Table(columns, tuple(rows)), say)


def speedups(sized: dict[int, Entry]) -> tuple[Series, list[tuple[object, ...]]]:
    """(the line of speed-ups over the workers, its numbers) of entries by their workers, fewest first."""
    fewest = min(sized)
    marks: list[Mark] = []
    rows: list[tuple[object, ...]] = []
    for workers, entry in sized.items():
        grown = (entry.ratio("examples_per_s", sized[fewest]) or 0.0) * fewest
        marks.append(Mark(workers, grown, kinds=entry.kinds))
        spread = words.span(*entry.spread("examples_per_s"))
        efficiency = words.percent(grown / workers)
        name = entry.name + signs(entry.kinds)
        rows.append(
            (name, workers, words.number(entry.median("examples_per_s")), spread, words.times(grown), efficiency)
        )
    first = sized[fewest]
    return replace(series(first, tuple(marks)), dashed=EMULATED in first.kinds), rows


def speedup_chart(lines: tuple[Series, ...], ticks: tuple[float, ...]) -> Lines:
    """Speed-ups over workers, with the ideal."""
    ideal = Series("ideal", "", tuple(Mark(tick, tick) for tick in ticks), dashed=True)
    y = Axis("speed-up", log=True, from_zero=False, words=words.times)
    return Lines(Axis("workers", log=True, ticks=ticks), y, lines, guides=(ideal,))


def overheads(contest: Contest, contests: Sequence[Contest]) -> Figure | None:
    """What a step costs besides time, and what a run needs."""
    panels = []
    for key, title, axis, said in COSTS:
        bars = tuple(bar(entry, key) for entry in contest.finished)
        if any(each.value for each in bars):
            panels.append(Panel(Bars(Axis(axis, words=said), bars), title))
    stacks = tuple(
        Stack(entry.name, tuple(entry.median(key) for key, _ in ROLES), entry.kinds)
        for entry in contest.finished
        if any(entry.median(key) for key, _ in ROLES)
    )
    if stacks:
        memory = Stacks(
            Axis("peak bytes", words=words.size), tuple(name for _, name in ROLES), stacks, ("s0", "s2", "s4")
        )
        panels.append(Panel(memory, "Memory at its peak"))
    told = [(key, title, said) for key, title, _, said in COSTS]
    told += [(key, f"memory of {name}", words.size) for key, name in ROLES]
    told += [(key, title, words.number) for key, title in STALENESS]
    told = [each for each in told if any(entry.median(each[0]) is not None for entry in contest.finished)]
    rows = tuple(
        (entry.name + signs(entry.kinds), *(said(entry.median(key)) for key, _, said in told))
        for entry in contest.finished
    )
    columns = ("contestant", *(title for _, title, _ in told))
    title = f"Overheads: {contest.work}" if len(contests) > 1 else "Overheads"
    return _figure(title, panels, Table(columns, rows), ())


def series(entry: Entry, marks: tuple[Mark, ...]) -> Series:
    """An entry's line."""
    return Series(entry.name, entry.look, marks, shape=entry.shape)


def bar(entry: Entry, metric: str) -> Bar:
    """An entry's bar of a metric."""
    low, high = entry.spread(metric)
    return Bar(entry.name, entry.look, entry.median(metric), low, high, entry.kinds)


_PART_NAMES = tuple(name for _, name in PARTS)
_SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)


def _figure(title: str, panels: list[Panel], numbers: Table, say: Sequence[str]) -> Figure | None:
    if len(panels) == 1:
        panels = [replace(panels[0], title="")]
    return Figure(title, tuple(panels), numbers, say) if panels else None


def _time(log: bool) -> Axis:
    return Axis("training time, s" + (" (logarithmic)" if log else ""), log=log)


def _far_apart(durations: Sequence[float]) -> bool:
    some = [each for each in durations if each > 0]
    return bool(some) and max(some) > FAR_APART * min(some)


def _targets(contest: Contest, field: str, called: str) -> tuple[Rule, ...]:
    targets = sorted({value for entry in contest.entries if (value := getattr(entry.point, field, None)) is not None})
    return tuple(Rule(value, f"{called} {words.number(value)}") for value in targets)


def _in_turns(entry: Entry) -> bool:
    return entry.point.contestant in DESCENDS_ON_DRIVER


def _share(entry: Entry) -> str:
    total = sum(entry.median(key) or 0.0 for key, _ in PARTS if key != "update_s" or _in_turns(entry))
    computing = entry.median("compute_s")
    return words.percent(computing / total if computing is not None and total else None)


def _course(contest: Contest, contests: Sequence[Contest], line: Series) -> tuple[object, ...]:
    """A line of losses as some numbers: at shares of its time."""
    end = line.marks[-1].x
    at = [min(line.marks, key=lambda mark: abs(mark.x - share * end)) for share in _SHARES]
    return (
        _named(contest, contests, line.label + signs(line.marks[-1].kinds)),
        *(words.number(mark.y) for mark in at),
        words.seconds(end),
    )


def _named(contest: Contest, contests: Sequence[Contest], name: str) -> str:
    return f"{name} · {contest.work}" if len(contests) > 1 else name


def _ends(mark: Mark, digits: int) -> str:
    if mark.low is None or mark.high is None:
        return words.NOTHING
    return f"{words.number(mark.low, digits)} to {words.number(mark.high, digits)}"
