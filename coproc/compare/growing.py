"""Readings of experiments in which something is made larger: workers, servers, partitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coproc.compare.findings import (
    NOTHING,
    TWO_CORES,
    course,
    entries_of,
    limits,
    lines_figure,
    lines_table,
    missing,
    those,
    workers_axis,
)
from coproc.report import words
from coproc.report.axes import Axis
from coproc.report.contest import Entry, Trial
from coproc.report.curves import Lines, Mark, Series
from coproc.report.drawing import EMULATED
from coproc.report.figures import speedup_chart, speedups
from coproc.report.tables import Figure, Panel, Table

SPEED = "examples_per_s"
# Still as good as linear: what the project promises of constant load.
LINEAR = 0.9

Family = dict[int, Entry]


def scaling_figures(trials: Sequence[Trial]) -> list[Figure]:
    """Efficiency over the workers; the time of a step over them."""
    families = _families(trials)
    entries = entries_of(trials)
    lines, rows = [], []
    for family in families:
        line, told = speedups(family)
        lines.append(replace(line, marks=tuple(replace(mark, y=mark.y / mark.x) for mark in line.marks)))
        rows += told
    if not lines:
        return []
    x = workers_axis(entries)
    ideal = Series("ideal", "", tuple(Mark(place, 1.0) for place in x.ticks or ()), dashed=True)
    chart = Lines(x, Axis("efficiency", words=words.percent), tuple(lines), guides=(ideal,))
    table = Table(("contestant", "workers", "examples/s", "repeats", "speed-up", "efficiency"), tuple(rows))
    say = ["Examples a second of one worker, through those with the fewest workers. Dashed where computing is a wait."]
    return [Figure("Efficiency with data that grow with the workers", (Panel(chart),), table, say)]


def scaling_reading(trials: Sequence[Trial]) -> list[str]:
    """How near to linear; against the talk and BigDL."""
    told = _efficiencies(trials)
    if not told:
        return NOTHING
    return [
        *told,
        'The talk says "scales almost linearly" and shows no figures. BigDL\'s whitepaper has Inception-v1 at 5.28 '
        "times the speed on 6 times the nodes (16 to 96: 88 %) and at 8.5 times on 16 times (53 %). Its steps "
        "compute for longer than the milliseconds of these, and the shorter a step, the harder it is to stay linear.",
        *limits(trials, TWO_CORES, "All of it is one machine: no link between the workers limits anything."),
    ]


def speedup_figures(trials: Sequence[Trial]) -> list[Figure]:
    """Speed-up over the workers."""
    lines, rows = [], []
    for family in _families(trials):
        line, told = speedups(family)
        lines.append(line)
        rows += told
    if not lines:
        return []
    ticks = tuple(sorted({mark.x for line in lines for mark in line.marks}))
    table = Table(("contestant", "workers", "examples/s", "repeats", "speed-up", "efficiency"), tuple(rows))
    say = ["The same rows on more workers, each with its own batches. Dashed where computing is a wait."]
    return [Figure("Speed-up with fixed data", (Panel(speedup_chart(tuple(lines), ticks)),), table, say)]


def speedup_reading(trials: Sequence[Trial]) -> list[str]:
    """How many times faster; to a loss as well, where there are real gradients; against SparkNet."""
    told = [
        f"{_called(family)}: {words.times(_grown(family))} the speed of {words.count(min(family), 'worker')} with "
        f"{max(family)}."
        for family in _families(trials)
    ]
    if not told:
        return NOTHING
    for family in _families(trials, emulated=False):
        few, many = family[min(family)], family[max(family)]
        before, after = few.median("seconds_to_loss"), many.median("seconds_to_loss")
        if before and after:
            told.append(
                f"To a loss of {words.number(few.point.target_loss)}, {few.name} takes {words.seconds(before)} with "
                f"{words.count(few.point.workers, 'worker')} and {words.seconds(after)} with {many.point.workers}: "
                f"{words.times(before / after)}. More workers make larger rounds, and fewer updates of the same rows."
            )
    return [
        *told,
        "SparkNet's AlexNet came to its accuracy 2.4, 3.8 and 4.4 times faster on 3, 5 and 10 workers than on one "
        "GPU; the talk says up to 60 % faster than other architectures, and not on how many workers.",
        *limits(trials, TWO_CORES),
    ]


def independence_figures(trials: Sequence[Trial]) -> list[Figure]:
    """Updates a second over the workers, a line a number of servers; and how busy the servers were."""
    entries = entries_of(trials)
    rates, busy = [], []
    for n, (servers, own) in enumerate(_by_servers(entries)):
        called = words.count(servers, "server")
        marks = course(own, "workers", _updates)
        rates.append(Series(called, f"s{2 * n + 1}", marks, shape=n))
        shares = course(own, "workers", _busy)
        busy.append(Series(called, f"s{2 * n + 1}", shares, shape=n))
    x = workers_axis(entries)
    found = lines_figure(
        "Gradients descended a second",
        rates,
        x,
        Axis("gradients/s"),
        ["Each worker gives gradients and waits for nobody. Where a line bends, its servers are the limit."],
        guides=_ideal(rates),
    )
    share = Axis("share of their time", words=words.percent)
    return found + lines_figure("How busy the servers are with descent", busy, x, share)


def independence_reading(trials: Sequence[Trial]) -> list[str]:
    """Which side limits."""
    told = []
    for servers, own in _by_servers(entries_of(trials)):
        marks = course(own, "workers", _updates)
        if len(marks) < 2:
            continue
        first = marks[0]
        straight = [mark for mark in marks if mark.y / first.y >= LINEAR * mark.x / first.x]
        bent = next((mark for mark in marks if mark not in straight), None)
        most = max(own, key=lambda entry: entry.point.workers)
        called = words.count(servers, "server")
        descent = _busy(most)
        at_work = (
            f" With {most.point.workers} workers, descent fills {words.percent(descent)} of their time."
            if descent
            else ""
        )
        if bent is None:
            told.append(f"With {called} the workers are the limit up to {most.point.workers} of them.{at_work}")
        else:
            told.append(
                f"With {called} the workers are the limit up to {words.number(straight[-1].x)}; "
                f"{words.number(bent.x)} bring {words.times(bent.y / first.y)} instead of "
                f"{words.times(bent.x / first.x)}.{at_work}"
            )
    if not told:
        return [missing("which side limits")]
    return [
        *told,
        "The talk's claim is that the two sides are chosen apart: workers until the servers are busy, then servers.",
        *limits(
            trials,
            "The servers share this machine's cores and memory with the tasks: a second one cannot bring what a "
            "host would.",
        ),
    ]


def partitions_figures(trials: Sequence[Trial]) -> list[Figure]:
    """Speed, computing and accuracy over the number of partitions."""
    entries = those(entries_of(trials), consistency="asp")
    x = workers_axis(entries, label="partitions")
    speed = Series("coproc", "k0", course(entries, "workers", lambda entry: entry.median(SPEED), SPEED))
    quality = Series(
        "coproc", "k0", course(entries, "workers", lambda entry: entry.median("final_accuracy"), "final_accuracy")
    )
    shares = Series("coproc", "k0", course(entries, "workers", _computing))
    panels = []
    for line, y in (
        (speed, Axis("examples/s")),
        (shares, Axis("slots' time that is computing", words=words.percent)),
        (
            quality,
            Axis("test accuracy at the end", from_zero=False, most=1.0, words=lambda value: words.number(value, 4)),
        ),
    ):
        if line.marks:
            panels.append((Panel(Lines(x, y, (line,)), y.label), lines_table([replace(line, label=y.label)], x, y)))
    if not panels:
        return []
    counts = [row[0] for row in panels[0][1].rows]
    cells = [{row[0]: row[1] for row in table.rows} for _, table in panels]
    rows = tuple((count, *(column.get(count, words.NOTHING) for column in cells)) for count in counts)
    numbers = Table(("partitions", *(panel.title for panel, _ in panels)), rows)
    say = ["The same rows in more and smaller partitions, on the same slots: a task an epoch and partition."]
    return [Figure("The size of a partition", tuple(panel for panel, _ in panels), numbers, say)]


def partitions_reading(trials: Sequence[Trial]) -> list[str]:
    """Where it is fastest, and what the extremes cost."""
    entries = [entry for entry in those(entries_of(trials), consistency="asp") if entry.median(SPEED)]
    if len(entries) < 2:
        return [missing("what the size of a partition does")]
    entries.sort(key=lambda entry: entry.point.workers)
    best = max(entries, key=lambda entry: entry.median(SPEED) or 0.0)
    most = entries[-1]
    told = [
        f"Fastest are {best.point.workers} partitions ({words.number(best.median(SPEED))} examples/s); "
        f"{most.point.workers} of the same rows have {words.times(most.ratio(SPEED, best))} that speed, since each is "
        "a task of its own to start."
    ]
    known = [entry for entry in entries if entry.median("final_accuracy") is not None]
    if known:
        ends = [
            f"{words.number(entry.median('final_accuracy'), 4)} with {entry.point.workers}"
            for entry in (known[0], known[-1])
        ]
        told.append(f"Test accuracy at the end is {words.joined(ends)}.")
    return [
        *told,
        "The talk names the size of a partition as a trade-off, without figures; a prototype of its authors cut "
        "MNIST into 48. Here a batch has a size of its own, whatever the partition is: what is left of the "
        "trade-off is the price of a task.",
        *limits(trials),
    ]


def _families(trials: Sequence[Trial], *, emulated: bool | None = None) -> list[Family]:
    """Entries of one contestant by their workers, fewest first, where there are several; real ones apart from
    emulated, and those with the most workers first."""
    found: dict[tuple[str, bool], Family] = {}
    for entry in entries_of(trials):
        if entry.median(SPEED) and not entry.alone and emulated in (None, entry.point.emulate_compute):
            found.setdefault((entry.name, entry.point.emulate_compute), {})[entry.point.workers] = entry
    families = [dict(sorted(family.items())) for family in found.values() if len(family) > 1]
    return sorted(families, key=lambda family: -max(family))


def _called(family: Family) -> str:
    first = family[min(family)]
    return first.name + (", computing a wait" if EMULATED in first.kinds else "")


def _grown(family: Family) -> float:
    """Speed with the most workers through speed with the fewest."""
    return family[max(family)].ratio(SPEED, family[min(family)]) or 0.0


def _efficiencies(trials: Sequence[Trial]) -> list[str]:
    told = []
    for family in _families(trials):
        efficiency = _grown(family) * min(family) / max(family)
        judged = "" if efficiency >= LINEAR else ", which is not linear"
        told.append(
            f"{_called(family)}: from {min(family)} to {words.count(max(family), 'worker')}, each keeps "
            f"{words.percent(efficiency)} of its speed{judged}."
        )
    return told


def _by_servers(entries: Sequence[Entry]) -> list[tuple[int, list[Entry]]]:
    counts = sorted({entry.point.servers for entry in entries})
    return [(count, those(entries, servers=count)) for count in counts]


def _updates(entry: Entry) -> float | None:
    speed = entry.median("steps_per_s")
    return speed * entry.point.workers if speed is not None else None


def _busy(entry: Entry) -> float | None:
    """Of each server's time, what goes into descent."""
    update, speed = entry.median("update_s"), entry.median("steps_per_s")
    return update * speed / entry.point.servers if update is not None and speed is not None else None


def _computing(entry: Entry) -> float | None:
    """Of the slots' time, what goes into gradients."""
    speed, compute = entry.median(SPEED), entry.median("compute_s")
    if speed is None or compute is None:
        return None
    return speed / entry.point.batch_size * compute / slots_of(entry)


def slots_of(entry: Entry) -> int:
    """Tasks at the same time: what `local[N]` says, else a slot for each worker."""
    master = entry.point.master
    return int(master.split("[")[1].rstrip("]").split(",")[0]) if master else entry.point.workers


def _ideal(lines: Sequence[Series]) -> tuple[Series, ...]:
    """As the first point of the first line, times as many more workers."""
    first = next((line.marks[0] for line in lines if line.marks), None)
    if first is None:
        return ()
    places = sorted({mark.x for line in lines for mark in line.marks})
    return (Series("ideal", "", tuple(Mark(place, first.y * place / first.x) for place in places), dashed=True),)
