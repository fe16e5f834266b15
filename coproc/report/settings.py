"""What was run, on what, how it was measured, and what came to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from coproc.report import words
from coproc.report.contest import Contest, Trial, field_words, names_of
from coproc.report.drawing import signs
from coproc.report.marks import Markup, el, together
from coproc.report.tables import Table
from coproc.trials.base import Point

_METHOD = (
    "Every run is a process group of its own, started for it and ended after it. Contestants take turns: each runs "
    "once, in an order that is turned a little from repeat to repeat, before any runs again.",
    "A step is one mini-batch gradient of every worker. Rates leave out the first group of tasks, which pays what "
    "is paid once, or, of a run with one group, the first tenth of its gradients. Training time is from the "
    "beginning of the first group, without what passes for validation.",
    "Numbers are medians of the repeats; a spread is from the least to the most; a ratio is the median of the "
    "ratios within each repeat. All of it can be computed again from results.jsonl, which keeps every gradient.",
)


def settings(trials: Sequence[Trial]) -> Table:
    """What all runs have in common, and what was varied with its values."""
    points = list(dict.fromkeys(trial.point for trial in trials))
    rows = [("runs", _runs(trials)), ("when", _when(trials))]
    for field in fields(Point):
        values = list(dict.fromkeys(getattr(point, field.name) for point in points))
        shown = [_value(field.name, value) for value in values]
        if field.name in ("contestant", "label") or values == [None] or values == [False]:
            continue
        rows.append((field.name.replace("_", " "), words.joined([text or "not set" for text in shown])))
    rows.append(("parameters", _each(trials, "parameters", lambda value: f"{value:,}" if value else "")))
    rows.append(("data", _each(trials, "origin", str)))
    rows.append(("repeats", str(len({trial.repeat for trial in trials}))))
    rows.append(("machine", _machines(trials)))
    rows.append(("versions", _versions(trials)))
    rows.append(("commit", _each(trials, "commit", lambda value: str(value or "")[:12])))
    return Table(("", ""), tuple((name, value) for name, value in rows if value), frozenset({1}))


def method() -> Markup:
    """How it was measured."""
    return together(*(el("p", sentence) for sentence in _METHOD))


def notes(trials: Sequence[Trial]) -> Table | None:
    """What contestants have told a reader to know."""
    names = names_of(trial.point for trial in trials)
    told: dict[str, list[str]] = {}
    for trial in trials:
        for note in trial.row.get("notes") or []:
            told.setdefault(str(note), []).append(names[trial.point])
    rows = tuple((words.joined(list(dict.fromkeys(who))), note) for note, who in told.items())
    return Table(("contestant", "note"), rows, frozenset({1})) if rows else None


def lost(trials: Sequence[Trial]) -> Table | None:
    """Runs without numbers, with why; the same ones of several repeats in one line."""
    names = names_of(trial.point for trial in trials)
    groups: dict[tuple[Point, str, str], list[int]] = {}
    for trial in trials:
        if not trial.ok:
            why = str(trial.row.get("error") or "no reason was told").strip()
            groups.setdefault((trial.point, str(trial.row.get("status")), why), []).append(trial.repeat + 1)
    rows = tuple(
        (names[point], status, el("span", why, class_="error"), _work_of(point), ", ".join(map(str, repeats)))
        for (point, status, why), repeats in groups.items()
    )
    columns = ("contestant", "what", "why", "work", "repeats")
    return Table(columns, rows, frozenset({1, 2, 3, 4})) if rows else None


def runs(contests: Sequence[Contest]) -> Table:
    """Every run that came to its end, in a line."""
    rows = []
    for contest in contests:
        for entry in contest.entries:
            for trial in entry.trials:
                metrics, row = trial.metrics, trial.row
                quality = next(
                    (
                        f"{name} {words.number(value, 4)}"
                        for name in ("accuracy", "auc")
                        if (value := metrics.get(f"final_{name}"))
                    ),
                    words.NOTHING,
                )
                rows.append(
                    (
                        entry.name + signs(trial.kinds),
                        contest.work,
                        str(trial.repeat + 1),
                        words.number(metrics.get("steps_per_s")),
                        words.number(metrics.get("examples_per_s")),
                        quality,
                        words.seconds(row.get("wall_s")),
                        words.percent(row.get("cpu_idle")),
                        str(row.get("seed", "")),
                        str(row.get("checksum") or words.NOTHING)[:12],
                        str(row.get("id", "")),
                    )
                )
    columns = ("contestant", "work", "repeat", "steps/s", "examples/s", "at the end", "wall time", "idle", "seed")
    return Table((*columns, "checksum of the parameters", "id"), tuple(rows), frozenset({1, 9, 10}))


def _runs(trials: Sequence[Trial]) -> str:
    states = [str(trial.row.get("status")) for trial in trials]
    told = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return words.joined(told)


def _when(trials: Sequence[Trial]) -> str:
    began = sorted(str(trial.row["began"]) for trial in trials if trial.row.get("began"))
    whole = sum(float(trial.row.get("wall_s") or 0.0) for trial in trials)
    if not began:
        return ""
    day = began[0] if began[0] == began[-1] else f"{began[0]} to {began[-1]}"
    return f"{day.replace('T', ' ')}; {words.seconds(whole)} of running"


def _value(name: str, value: object) -> str:
    if name == "group_size":
        return field_words(name, value)
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _each(trials: Sequence[Trial], key: str, said: object) -> str:
    assert callable(said)
    values = dict.fromkeys(trial.row.get(key) for trial in trials if trial.ok)
    return words.joined([text for value in values if (text := said(value))])


def _machines(trials: Sequence[Trial]) -> str:
    told = []
    for trial in trials:
        host = trial.row.get("host") or {}
        parts = [words.count(int(host["cores"]), "core")] if host.get("cores") else []
        parts += [f"{words.size(host['memory_bytes'])} of memory"] if host.get("memory_bytes") else []
        parts += [f"kernel {host['kernel']}"] if host.get("kernel") else []
        told.append(", ".join(parts))
    return "; ".join(dict.fromkeys(filter(None, told)))


def _versions(trials: Sequence[Trial]) -> str:
    found: dict[str, list[str]] = {}
    for trial in trials:
        for name, version in sorted((trial.row.get("versions") or {}).items()):
            found.setdefault(str(name), []).append(str(version))
    return ", ".join(f"{name} {' or '.join(dict.fromkeys(found[name]))}" for name in sorted(found))


def _work_of(point: Point) -> str:
    said = [field_words(name, getattr(point, name)) for name in ("workload", "workers", "hosts", "link", "batch_size")]
    return ", ".join(filter(None, said))
