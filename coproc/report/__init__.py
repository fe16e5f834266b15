"""A comparison as one page to read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from coproc.report import figures, settings, verdict, words
from coproc.report.contest import Contest, Row, Trial, contests_of, trials_of
from coproc.report.marks import Markup, el
from coproc.report.page import page
from coproc.report.tables import Figure, Table, meanings
from coproc.trials.metrics import metrics_of

__all__ = ["REPORT", "Study", "write"]

REPORT = "report.html"


class Study(Protocol):
    """A question that the rows are to answer."""

    @property
    def title(self) -> str: ...

    @property
    def question(self) -> str: ...

    @property
    def figures(self) -> Callable[[Sequence[Trial]], list[Figure]]:
        """Its own figures, of whatever rows there are; the first is the answer."""
        ...

    @property
    def reading(self) -> Callable[[Sequence[Trial]], list[str]]:
        """What the numbers say to the question, sentence by sentence; the first is the answer."""
        ...


def write(
    output_dir: str | os.PathLike[str],
    rows: Iterable[Row],
    *,
    title: str,
    experiment: Study | None = None,
    more: Sequence[Figure] = (),
) -> Path:
    """Write report.html, of rows as `results.jsonl` has them, into a folder; the same rows give the same bytes.

    Atomic: a reader sees the old page or the new one. A study's own figures and sentences come first, `more` after the
    figures that every comparison has. Rows without numbers are told with their errors.
    """
    trials = trials_of(rows, metrics_of)
    contests = contests_of(trials)
    drawn = [*experiment.figures(trials)] if experiment else _figures(contests)
    sentences = experiment.reading(trials) if experiment else verdict.sentences(contests)
    parts: list[Markup | None] = [
        el("p", experiment.question) if experiment else None,
        el("div", *(el("p", sentence) for sentence in sentences), class_="verdict") if sentences else None,
    ]
    scores = _scores(contests, ordered=experiment is None or len(contests) == 1, asked=experiment is not None)
    # The answer to a question is its figure; where one has to be chosen, it is the table.
    first, rest = (drawn[:1], drawn[1:]) if experiment else ([], drawn)
    parts += [figure.html(f"figure-{n}") for n, figure in enumerate(first, 1)]
    parts += [scores]
    parts += [figure.html(f"figure-{n}") for n, figure in enumerate([*rest, *more], 1 + len(first))]
    parts += [
        _section("What came to nothing", settings.lost(trials), "lost"),
        _section("What to know of a contestant", settings.notes(trials), "notes"),
        _settings(trials, contests) if trials else el("p", "There are no rows yet."),
    ]
    path = Path(output_dir, REPORT)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_text(page(title, _lead(trials), parts), encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _figures(contests: Sequence[Contest]) -> list[Figure]:
    found = [
        figures.loss_over_time(contests),
        figures.quality_over_time(contests),
        figures.split_of_a_step(contests),
        figures.scaling(contests),
        *(figures.overheads(contest, contests) for contest in contests),
    ]
    return [figure for figure in found if figure is not None]


def _scores(contests: Sequence[Contest], *, ordered: bool, asked: bool) -> Markup | None:
    """The table of all contests."""
    if not contests:
        return None
    parts: list[object] = [el("h2", "All contestants" if asked else "Verdict")]
    kinds = frozenset(kind for contest in contests for entry in contest.entries for kind in entry.kinds)
    parts.append(verdict.table(contests, ordered=ordered).html("scores"))
    parts.append(el("p", _SCORES, class_="small"))
    parts.append(meanings(kinds))
    return el("section", *parts, id="verdict")


def _section(title: str, table: Table | None, anchor: str) -> Markup | None:
    return el("section", el("h2", title), table.html(), id=anchor) if table else None


def _settings(trials: Sequence[Trial], contests: Sequence[Contest]) -> Markup:
    return el(
        "section",
        el("h2", "Settings, and how it was measured"),
        settings.method(),
        settings.settings(trials).html("settings"),
        el("details", el("summary", "Every run"), settings.runs(contests).html()),
        id="settings",
    )


def _lead(trials: Sequence[Trial]) -> str:
    if not trials:
        return ""
    points = dict.fromkeys(trial.point for trial in trials)
    workloads = words.joined(list(dict.fromkeys(point.workload for point in points)))
    day = min((str(trial.row["began"])[:10] for trial in trials if trial.row.get("began")), default="")
    done = sum(trial.ok for trial in trials)
    told = [workloads, words.count(len(trials), "run")]
    told += [f"{len(trials) - done} without numbers"] if done < len(trials) else []
    return " · ".join(filter(None, [*told, day]))


_SCORES = (
    "A bar is steps a second, its whisker the spread of the repeats; a step is one mini-batch gradient of each "
    "worker, and who trains alone gives them one after the other. Speed is examples a second through the named "
    "one's. The ceiling is what as many processes would do that exchange for nothing. Exactly once: a push is in the "
    "model once, whatever is killed; whole versions: no reader sees parts of two; elastic: workers may come, leave "
    "and be replaced. A dash is what was not measured, or is no promise of this project to make."
)
