"""Readings of experiments about what is learned: convergence, local steps, and numbers of fewer bits."""

from __future__ import annotations

from collections.abc import Sequence

from coproc.compare.findings import (
    NOTHING,
    bars_panel,
    course,
    entries_of,
    limits,
    lines_figure,
    metrics_table,
    missing,
    the,
    those,
)
from coproc.report import figures, verdict, words
from coproc.report.axes import Axis
from coproc.report.contest import LINK, Contest, Entry, Trial, contests_of
from coproc.report.curves import Lines, Mark, Series
from coproc.report.moments import losses, over_epochs
from coproc.report.tables import Figure, Panel

BYTES = "worker_bytes_per_step"
SPEED = "examples_per_s"


def convergence_figures(trials: Sequence[Trial]) -> list[Figure]:
    """Loss and accuracy over time, and accuracy over epochs: what is speed, and what is a better step."""
    contests = contests_of(trials)
    drawn = [figures.quality_over_time(contests), figures.loss_over_time(contests), *_over_epochs(trials)]
    return [figure for figure in [*drawn, figures.split_of_a_step(contests)] if figure is not None]


def convergence_reading(trials: Sequence[Trial]) -> list[str]:
    """Who is first at the target, and by how much each learns from the same epochs."""
    contests = contests_of(trials)
    if not any(contest.finished for contest in contests):
        return NOTHING
    told = [sentence for contest in contests for sentence in _first(contest)]
    ends = [
        (value, entry.name) for entry in entries_of(trials) if (value := entry.median("final_accuracy")) is not None
    ]
    if len(ends) > 1:
        (least, last), (most, best) = min(ends), max(ends)
        told.append(
            f"After the same epochs, test accuracy lies between {words.number(least, 4)} ({last}) and "
            f"{words.number(most, 4)} ({best}): what parts them in time is mostly the speed of a step."
            if most - least < 0.01
            else f"After the same epochs, test accuracy lies between {words.number(least, 4)} ({last}) and "
            f"{words.number(most, 4)} ({best}): they do not learn the same from an epoch."
        )
    return [
        *told,
        "The talk says that its coprocessor converges faster, and shows no numbers. Synchronous architectures take "
        "the same steps here, by the same kernels on the same batches; those that are not synchronous or average "
        "parameters do not.",
        *limits(trials),
    ]


def tau_figures(trials: Sequence[Trial]) -> list[Figure]:
    """Loss at the end, bytes and speed over tau, a line a number of workers."""
    entries = those(entries_of(trials), contestant="localsgd")
    taus = tuple(sorted({float(entry.point.tau) for entry in entries if entry.point.tau is not None}))
    x = Axis("tau, local steps between averages", log=True, ticks=taus)
    counts = sorted({entry.point.workers for entry in entries})
    found = []
    for title, metric, y in (
        ("Loss at the end", "final_loss", Axis("test loss at the end", from_zero=False)),
        ("Speed", SPEED, Axis("examples/s")),
        ("Bytes", BYTES, Axis("bytes a step, each worker", log=True, words=words.size)),
    ):
        lines = [
            Series(
                words.count(count, "worker"),
                f"s{2 * n + 1}",
                course(those(entries, workers=count), "tau", lambda entry, metric=metric: entry.median(metric), metric),  # type: ignore[misc]
                shape=n,
            )
            for n, count in enumerate(counts)
        ]
        found += lines_figure(title, lines, x, y)
    return found


def tau_reading(trials: Sequence[Trial]) -> list[str]:
    """What averaging more seldom saves, and what it costs."""
    entries = those(entries_of(trials), contestant="localsgd")
    told = []
    for workers in sorted({entry.point.workers for entry in entries}):
        own = sorted(
            (entry for entry in those(entries, workers=workers) if entry.point.tau),
            key=lambda entry: entry.point.tau or 0,
        )
        if len(own) < 2:
            continue
        first, last = own[0], own[-1]
        faster = last.ratio(SPEED, first)
        losses_ = [entry.median("final_loss") for entry in (first, last)]
        fewer = first.ratio(BYTES, last)
        parts = [f"{words.times(faster)} the speed"] if faster else []
        parts += [f"{words.times(fewer)} fewer bytes"] if fewer else []
        learned = (
            f"; the loss at the end is {words.number(losses_[1])} instead of {words.number(losses_[0])}"
            if None not in losses_
            else ""
        )
        told.append(
            f"With {words.count(workers, 'worker')}, averaging every {last.point.tau} steps instead of every "
            f"{first.point.tau} brings {words.joined(parts) or 'nothing that was measured'}{learned}."
        )
        every = the(those(entries_of(trials), workers=workers), contestant="coproc")
        if every is not None and (beside := every.ratio(SPEED, last)) is not None:
            loss = words.number(every.median("final_loss"))
            told.append(
                f"The coprocessor, which exchanges every step, has {words.times(beside)} the speed of tau = "
                f"{last.point.tau}, and a loss of {loss}."
            )
    if not told:
        return [missing("what tau does")]
    formula = _bytes_by_formula(entries)
    return [
        *told,
        *formula,
        "SparkNet took tau = 10 for CIFAR and 50 for ImageNet, where, as BigDL's authors say, an average took some "
        "20 s with 5 workers. Its own table of speed-ups by tau and workers was not at hand to compare with.",
        *limits(trials, "With more workers than cores the speeds share these cores; the losses do not depend on them."),
    ]


def precision_figures(trials: Sequence[Trial]) -> list[Figure]:
    """Bytes, speed and loss of each format."""
    entries = entries_of(trials)
    if not entries:
        return []
    columns = (
        (BYTES, "bytes a step, each worker", words.size),
        (LINK, "bytes a step, busiest link", words.size),
        ("steps_per_s", "steps/s", words.number),
        ("final_loss", "test loss at the end", words.number),
        ("final_accuracy", "test accuracy at the end", lambda value: words.number(value, 4)),
    )
    panels = [
        bars_panel(entries, BYTES, "Bytes a step", Axis("in and out of each worker", words=words.size)),
        bars_panel(entries, "steps_per_s", "Speed", Axis("steps/s")),
    ]
    linked = [entry for entry in entries if entry.median(LINK) is not None]
    if linked:
        axis = Axis("in and out of the busiest host", words=words.size)
        panels.insert(1, bars_panel(linked, LINK, "Bytes a step between hosts", axis))
    told = [Series(entry.name, entry.look, losses(entry), shape=entry.shape) for entry in entries]
    lines = tuple(line for line in told if line.marks)
    if lines:
        positive = all(mark.y > 0 for line in lines for mark in line.marks)
        axis = Axis("training loss", log=positive, from_zero=False)
        panels.append(Panel(Lines(Axis("training time, s"), axis, lines), "Loss over time"))
    return [Figure("Fewer bits on the wire", tuple(panels), metrics_table(entries, columns))]


def precision_reading(trials: Sequence[Trial]) -> list[str]:
    """What each format saves and costs against float32 of the same contestant."""
    entries = entries_of(trials)
    told = []
    for entry in entries:
        plain = the(entries, contestant=entry.point.contestant, compression=None, hosts=entry.point.hosts)
        if entry.point.compression is None or plain is None:
            continue
        on_link, by_worker = entry.ratio(LINK, plain), entry.ratio(BYTES, plain)
        share, where = (by_worker, "") if on_link is None else (on_link, " on the busiest link")
        faster = entry.ratio("steps_per_s", plain)
        before, after = plain.median("final_loss"), entry.median("final_loss")
        parts = [f"{words.percent(share)} of the bytes{where}"] if share is not None else []
        parts += [f"{words.times(faster)} the speed"] if faster is not None else []
        if before is not None and after is not None:
            parts.append(f"a loss of {words.number(after)} instead of {words.number(before)}")
        name = f"{entry.point.contestant} with {entry.point.compression}"
        told.append(f"{name}: {words.joined(parts) or 'nothing measured'}, against float32.")
    if not told:
        return [missing("what fewer bits do")]
    return [
        *told,
        "BigDL sends the upper 16 bits of each float32, both ways, and sums in them; here they are an option, sums "
        "are in float32.",
        *limits(
            trials,
            "What fewer bytes bring in time depends on the link; on one host nothing of coproc's travels, and "
            "nothing is won.",
        ),
    ]


def _first(contest: Contest) -> list[str]:
    told = verdict.sentences([contest])
    lacking = set(limits([trial for entry in contest.entries for trial in (*entry.trials, *entry.lost)]))
    # Who was first at the target is the answer here; the speed comes after it.
    own = [sentence for sentence in told if sentence not in lacking]
    return sorted(own, key=lambda sentence: not sentence.startswith(("First at", "Nobody reached")))


def _over_epochs(trials: Sequence[Trial]) -> list[Figure]:
    lines = []
    for entry in entries_of(trials):
        marks = over_epochs(entry, "accuracy")
        by_epoch = tuple(Mark(float(n), mark.y, mark.low, mark.high, mark.kinds) for n, mark in enumerate(marks, 1))
        lines.append(Series(entry.name, entry.look, by_epoch, shape=entry.shape))
    epochs = tuple(sorted({mark.x for line in lines for mark in line.marks}))
    y = Axis("test accuracy", from_zero=False, most=1.0, words=lambda value: words.number(value, 4))
    say = ["The same without the clock: what an epoch teaches, however long it takes."]
    return lines_figure("Test accuracy over epochs", lines, Axis("epochs", from_zero=False, ticks=epochs), y, say)


def _bytes_by_formula(entries: Sequence[Entry]) -> list[str]:
    """Against 8 K / tau: parameters of 4 bytes in and out, once in tau steps."""
    off = []
    for entry in entries:
        measured, tau = entry.median(BYTES), entry.point.tau
        parameters = next((int(trial.row.get("parameters") or 0) for trial in entry.trials), 0)
        if measured and tau and parameters:
            off.append(measured / (8 * parameters / tau))
    if not off:
        return []
    return [
        f"Bytes a step are {words.span(min(off), max(off))} times 8 K / tau, SparkNet's formula for K parameters in "
        "and out; groups that end before tau steps add to it."
    ]
