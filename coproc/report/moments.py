"""How a loss went on: the gradients of all repeats of an entry as one line with a band."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from coproc.report.contest import Entry, Trial
from coproc.report.curves import Mark
from coproc.trials.metrics import Clock, Gradient, Group

# Marks of a line of losses: enough that it bends where the loss does. Of how many batches each is the mean at least:
# the loss of one batch is mostly luck.
BINS = 60
BATCHES = 4
# What was measured on the test data, the first that is there: (key, what it is called).
QUALITIES = (("accuracy", "test accuracy"), ("auc", "test AUC"), ("r2", "test R²"))


def losses(entry: Entry) -> tuple[Mark, ...]:
    """Training loss over training seconds: medians over the repeats, each a mean over some batches.

    Repeats are put together by what was done and not by when, for one that was slower has not learned less: a mark has
    the median of the moments, and the first and the last of them. An entry without gradients has the losses of its
    epochs.
    """
    runs = [moments for trial in entry.trials if (moments := _moments(trial))]
    if not runs:
        return over_epochs(entry, "train_loss")
    most = max(len(run) for run in runs)
    bins = min(BINS, max(1, most // BATCHES))
    found = []
    for place in range(bins):
        begin, end = place * most // bins, (place + 1) * most // bins
        parts = [run[begin:end] for run in runs if len(run) >= end]
        means = [sum(loss * count for _, loss, count in part) / sum(count for *_, count in part) for part in parts]
        times = [part[-1][0] for part in parts]
        mark = _mark(statistics.median(times), means, entry)
        found.append(replace(mark, first=min(times), last=max(times)) if len(times) > 1 else mark)
    return tuple(found)


def over_epochs(entry: Entry, key: str) -> tuple[Mark, ...]:
    """A number of each epoch over the training seconds at its end: medians over the repeats and their spread."""
    found = []
    for epoch in sorted({each["epoch"] for trial in entry.trials for each in trial.row["epochs"]}):
        told = [each for trial in entry.trials for each in trial.row["epochs"] if each["epoch"] == epoch]
        told = [each for each in told if each.get(key) is not None and each.get("train_s") is not None]
        if told:
            moment = statistics.median(float(each["train_s"]) for each in told)
            found.append(_mark(moment, [float(each[key]) for each in told], entry))
    return tuple(found)


def quality(entries: Sequence[Entry]) -> tuple[str, str] | None:
    """(key, words) of what was measured on the test data of these, if anything was."""
    rows = [each for entry in entries for trial in entry.trials for each in trial.row["epochs"]]
    return next(((key, words) for key, words in QUALITIES if any(each.get(key) is not None for each in rows)), None)


def _mark(moment: float, values: Sequence[float], entry: Entry) -> Mark:
    """The median of the repeats, with their spread if there are several."""
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Mark(moment, statistics.median(values), low, high, entry.kinds)


def _groups(trial: Trial) -> list[Group]:
    return [Group(*each) for each in trial.row["groups"]]


def _moments(trial: Trial) -> list[tuple[float, float, int]]:
    """(training seconds at its end, loss, examples) of each gradient whose loss is a number, in their order."""
    groups = _groups(trial)
    if not groups:
        return []
    clock = Clock(groups)
    gradients = sorted((Gradient(*each) for each in trial.row["samples"]), key=lambda each: each.ended_s)
    return [
        (clock.at(each.ended_s), each.loss, each.examples)
        for each in gradients
        if each.loss is not None and math.isfinite(each.loss)
    ]
