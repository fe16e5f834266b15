"""Readings of experiments about what a step costs beside computing: scheduling, synchronising, memory."""

from __future__ import annotations

from collections.abc import Sequence

from coproc.compare.findings import course, entries_of, limits, lines_figure, missing, those, workers_axis
from coproc.report import words
from coproc.report.axes import Axis
from coproc.report.bars import Bar, Bars
from coproc.report.contest import Entry, Trial, contests_of
from coproc.report.curves import Rule, Series
from coproc.report.figures import split_of_a_step
from coproc.report.tables import Figure, Panel, Table
from coproc.trials.metrics import DESCENDS_ON_DRIVER
from coproc.trials.workloads import WORKLOADS

# What BigDL's whitepaper has with Drizzle's groups, flat to 680 tasks; and what this project promises.
DRIZZLE = 0.012
# The same paper's figure without groups, read off its chart: tasks, share of computing.
UNGROUPED = ((8, 0.036), (32, 0.045), (128, 0.068), (256, 0.092), (448, 0.110))
# Its share of synchronising, Inception-v1 on 32 nodes.
BIGDL_SYNC = 0.07

# The talk's rule: (model + batch * units) * 3 * 4 bytes * 1.5 for each executor.
COPIES, FLOAT_BYTES, ROOM = 3, 4, 1.5


def scheduling_figures(trials: Sequence[Trial]) -> list[Figure]:
    """Scheduling as a share of computing over the tasks of a stage, a line a size of groups."""
    entries = entries_of(trials)
    shares, costs = [], []
    for n, size in enumerate(_sizes(entries)):
        own = those(entries, group_size=size)
        called = _size_words(size)
        shares.append(Series(called, f"s{n + 1}", course(own, "workers", scheduling_share), shape=n))
        costs.append(Series(called, f"s{n + 1}", course(own, "workers", _scheduling, "scheduling_s"), shape=n))
    x = workers_axis(entries, label="tasks a stage")
    share = Axis("scheduling, share of computing", log=True, words=words.percent)
    say = ["Scheduling is what a group of tasks takes beyond its busiest task, by the steps in it."]
    rules = (Rule(DRIZZLE, f"BigDL with Drizzle {words.percent(DRIZZLE)}"),)
    return lines_figure("Scheduling as a share of computing", shares, x, share, say, rules) + lines_figure(
        "Scheduling in time", costs, x, Axis("scheduling a step", log=True, words=words.seconds)
    )


def scheduling_reading(trials: Sequence[Trial]) -> list[str]:
    """What a job costs, and how long a group has to be for it not to matter."""
    entries = entries_of(trials)
    single = [entry for entry in those(entries, group_size=1) if _scheduling(entry)]
    told = []
    if single:
        single.sort(key=lambda entry: entry.point.workers)
        ends = [single[0], single[-1]] if len(single) > 1 else single
        spans = [
            f"{words.seconds(_scheduling(entry))} with {words.count(entry.point.workers, 'task')}" for entry in ends
        ]
        told.append(
            f"A job a step costs {words.joined(spans)}: {words.percent(scheduling_share(ends[-1]))} of computing."
        )
    for size in _sizes(entries):
        grouped = [
            entry for entry in those(entries, group_size=size) if size != 1 and scheduling_share(entry) is not None
        ]
        if grouped:
            values = [scheduling_share(entry) or 0.0 for entry in grouped]
            told.append(
                f"With {_size_words(size)}: {words.percent(min(values))} to {words.percent(max(values))} of computing."
            )
    if not told:
        return [missing("what scheduling costs")]
    last = single[-1] if single else None
    job, compute = (_scheduling(last), last.median("compute_s")) if last is not None else (None, None)
    if job and compute:
        needed = job / (DRIZZLE * compute)
        told.append(
            f"A step computes for {words.seconds(compute)} here, so that groups of about {words.number(needed, 2)} "
            f"steps bring a job's cost to {words.percent(DRIZZLE)}."
        )
    paper = ", ".join(f"{words.percent(share)} at {tasks}" for tasks, share in UNGROUPED)
    return [
        *told,
        f"BigDL's whitepaper has, read off its chart and with longer steps, {paper} tasks without groups, and "
        f"{words.percent(DRIZZLE)} with Drizzle's, flat to 680 tasks; Drizzle's own chart has some 195 against 4.2 "
        "ms a step on 128 nodes, in groups of 100.",
        *limits(
            trials,
            "All executors are on this machine, which has fewer cores than tasks: starting many tasks is slower "
            "than on as many hosts.",
        ),
    ]


def sync_figures(trials: Sequence[Trial]) -> list[Figure]:
    """Exchange as a share of computing, a bar a contestant and workload; then all parts."""
    contests = contests_of(trials)
    panels, rows = [], []
    for contest in contests:
        bars = tuple(Bar(entry.name, entry.look, sync_share(entry), kinds=entry.kinds) for entry in contest.finished)
        if any(each.value for each in bars):
            panels.append(Panel(Bars(Axis("exchange through computing", words=words.percent), bars), contest.work))
        for entry in contest.finished:
            parts = [
                words.seconds(entry.median(key))
                for key in ("compute_s", "pull_s", "push_s", "update_s", "scheduling_s")
            ]
            rows.append((f"{entry.name} · {contest.work}", *parts, words.percent(sync_share(entry))))
    if not panels:
        return []
    columns = ("contestant", "computing", "pull", "push", "update", "scheduling", "exchange through computing")
    say = ["Exchange is all that a step does besides computing: pull, push, update where it is waited for, scheduling."]
    split = split_of_a_step(contests)
    figure = Figure("Synchronising as a share of computing", tuple(panels), Table(columns, tuple(rows)), say)
    return [figure, split] if split else [figure]


def sync_reading(trials: Sequence[Trial]) -> list[str]:
    """The shares by workload; against BigDL's."""
    told = []
    for contest in contests_of(trials):
        shares = sorted((share, entry.name) for entry in contest.finished if (share := sync_share(entry)) is not None)
        if shares:
            least, most = shares[0], shares[-1]
            text = f"{contest.work}: {words.percent(least[0])} of computing with {least[1]}"
            told.append(text + (f", {words.percent(most[0])} with {most[1]}." if len(shares) > 1 else "."))
    if not told:
        return [missing("what synchronising costs")]
    return [
        *told,
        f"BigDL is known for under {words.percent(BIGDL_SYNC)} with Inception-v1 on 32 nodes (SoCC 2019), which "
        "computes much with few parameters; these networks have full layers only: most parameters for least "
        "computing.",
        *limits(trials, "On one host no link is in the way; the cores that exchange are those that compute."),
    ]


def memory_figures(trials: Sequence[Trial]) -> list[Figure]:
    """The rule and what was measured, side by side; and by role."""
    entries = [entry for entry in entries_of(trials) if memory(entry)]
    bars, rows = [], []
    for entry in entries:
        name = _case(entry)
        low, high = _spread(entry)
        bars.append(Bar(f"{name}: the rule", "s0", rule_bytes(entry)))
        bars.append(Bar(f"{name}: measured", entry.look, memory(entry), low, high, entry.kinds))
        roles = [words.size(entry.median(f"memory_{role}_bytes")) for role in ("worker", "server", "driver")]
        rows.append((name, words.size(rule_bytes(entry)), words.size(memory(entry)), *roles))
    if not bars:
        return []
    columns = ("case", "the talk's rule", "workers and servers", "workers", "servers", "driver")
    say = [
        "Measured are the peaks of workers and servers; the driver, with Spark's JVM, is beside the rule and told in "
        "the numbers."
    ]
    panel = Panel(Bars(Axis("bytes", words=words.size), tuple(bars)))
    return [Figure("The talk's sizing rule against what was measured", (panel,), Table(columns, tuple(rows)), say)]


def memory_reading(trials: Sequence[Trial]) -> list[str]:
    """Whether the rule is enough, and what a parameter really costs."""
    entries = [entry for entry in entries_of(trials) if memory(entry) and rule_bytes(entry)]
    if not entries:
        return [missing("how much memory is needed")]
    over = [entry for entry in entries if (memory(entry) or 0.0) > (rule_bytes(entry) or 0.0)]
    shares = [(memory(entry) or 0.0) / (rule_bytes(entry) or 1.0) for entry in entries]
    judged = (
        "The rule is enough everywhere"
        if not over
        else f"The rule is too little in {len(over)} of {len(entries)} cases"
    )
    told = [f"{judged}: measured is {words.number(min(shares), 2)} to {words.number(max(shares), 2)} times the rule."]
    for workers in sorted({entry.point.workers for entry in entries}):
        own = sorted(those(entries, workers=workers, batch_size=entries[0].point.batch_size), key=_parameters)
        small, large = (own[0], own[-1]) if len(own) > 1 else (None, None)
        if small is not None and large is not None and _parameters(large) > _parameters(small):
            grown = ((memory(large) or 0.0) - (memory(small) or 0.0)) / (_parameters(large) - _parameters(small))
            by_rule = COPIES * FLOAT_BYTES * ROOM * workers
            fixed = (memory(small) or 0.0) - grown * _parameters(small)
            told.append(
                f"With {words.count(workers, 'worker')}, from {words.number(_parameters(small) / 1e6)} to "
                f"{words.number(_parameters(large) / 1e6)} million parameters each costs {words.number(grown)} bytes "
                f"(the rule: {words.number(by_rule)}), beside {words.size(max(0.0, fixed))} that processes need "
                "without any."
            )
    return [
        *told,
        "The rule of the talk is (model + batch * units) * 3 * 4 bytes * 1.5 for each executor; units are the "
        "outputs of all layers. It leaves out interpreters and libraries, which is what small networks mostly need.",
        *limits(
            trials,
            "Peaks were looked at a few times a second, and what processes share counts once where the system says so.",
        ),
    ]


def rule_bytes(entry: Entry) -> float | None:
    """The talk's rule for an entry; None of a workload that is not known."""
    work = WORKLOADS.get(entry.point.workload)
    if work is None:
        return None
    hidden = work.hidden if entry.point.hidden is None else entry.point.hidden
    units = sum(hidden) + work.outputs
    whole = work.parameters(entry.point.hidden) + entry.point.batch_size * units
    return whole * COPIES * FLOAT_BYTES * ROOM * entry.point.workers


def memory(entry: Entry) -> float | None:
    """Peak bytes of workers and servers."""
    told = [entry.median(f"memory_{role}_bytes") for role in ("worker", "server")]
    return sum(value for value in told if value is not None) if any(told) else None


def scheduling_share(entry: Entry) -> float | None:
    scheduling, compute = entry.median("scheduling_s"), entry.median("compute_s")
    return scheduling / compute if scheduling is not None and compute else None


def sync_share(entry: Entry) -> float | None:
    """All that is not computing, through computing."""
    compute = entry.median("compute_s")
    if not compute:
        return None
    keys = ["pull_s", "push_s", "scheduling_s"] + ["update_s"] * (entry.point.contestant in DESCENDS_ON_DRIVER)
    return sum(entry.median(key) or 0.0 for key in keys) / compute


def _scheduling(entry: Entry) -> float | None:
    return entry.median("scheduling_s")


def _sizes(entries: Sequence[Entry]) -> list[int | str | None]:
    """Sizes of groups, the smallest first, then auto, then an epoch."""
    sizes = {entry.point.group_size for entry in entries}
    return sorted(sizes, key=lambda size: (size is None, size == "auto", size if isinstance(size, int) else 0))


def _size_words(size: int | str | None) -> str:
    named = {None: "a group an epoch", 1: "a job a step", "auto": "groups by rule (auto)"}
    return named.get(size, f"groups of {size}")


def _case(entry: Entry) -> str:
    return f"{entry.point.workload}, {words.count(entry.point.workers, 'worker')}, batch {entry.point.batch_size}"


def _parameters(entry: Entry) -> int:
    return WORKLOADS[entry.point.workload].parameters(entry.point.hidden) if entry.point.workload in WORKLOADS else 0


def _spread(entry: Entry) -> tuple[float | None, float | None]:
    """Of workers and servers together, where several repeats told both."""
    worker, server = entry.by_repeat("memory_worker_bytes"), entry.by_repeat("memory_server_bytes")
    sums = [worker.get(repeat, 0.0) + server.get(repeat, 0.0) for repeat in sorted(worker.keys() | server.keys())]
    return (min(sums), max(sums)) if len(sums) > 1 else (None, None)
