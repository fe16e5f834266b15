"""`coprocessor compare`: architectures on the same work, one run after the other, and a report of it."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coproc.cli.base import in_sentences, say_error, usage_error

if TYPE_CHECKING:
    from coproc.compare.grid import Grid
    from coproc.report import Study
    from coproc.report.contest import Entry

DATA = "../shared/data"
SPEED = "examples_per_s"

# Of the experiments; they themselves need what a help page does not.
NAMES = (
    *("scaling", "speedup", "convergence", "partitions", "tau", "scheduling", "syncfraction", "independence"),
    *("memory", "precision"),
)

_WHAT = "What to compare"
_HOSTS = "Several hosts on this machine"


@in_sentences
def compare(
    grid: Annotated[
        Path | None,
        typer.Argument(help="TOML file of points; without it, every architecture on MNIST, about 5 minutes."),
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"One of the field's experiments instead: {', '.join(NAMES)}.", rich_help_panel=_WHAT
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="These contestants only; repeated.", rich_help_panel=_WHAT),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Runs of each point, in turns.", min=1, rich_help_panel=_WHAT)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help=f"Folder with mnist_train.parquet and so on (default: {DATA}).", rich_help_panel=_WHAT),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Directory for results.jsonl, summary.csv and report.html (default: coproc-runs/…)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --output already.")] = False,
    hosts: Annotated[
        int | None,
        typer.Option(help="So many, a worker and a server on each; needs root.", min=1, rich_help_panel=_HOSTS),
    ] = None,
    link: Annotated[str | None, typer.Option(help="Of each of them, as 1gbit.", rich_help_panel=_HOSTS)] = None,
    delay: Annotated[str | None, typer.Option(help="Of each link, as 0.2ms.", rich_help_panel=_HOSTS)] = None,
    emulate_compute: Annotated[
        bool, typer.Option("--emulate-compute", help="Gradients are a calibrated wait.", rich_help_panel=_HOSTS)
    ] = False,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="HOSTS", help="Expect 16..1024 hosts from those runs, by a cost model.", rich_help_panel=_HOSTS
        ),
    ] = None,
) -> None:
    """Compare architectures: fresh processes for each run, in turns, raw samples, and report.html."""
    from coproc.cli.running import Display
    from coproc.compare.grid import changed, check
    from coproc.compare.projected import figure, text
    from coproc.compare.runner import compare as run_all
    from coproc.report import write
    from coproc.trials.project import hosts_in
    from coproc.trials.project import project as project_to

    if grid is not None and experiment is not None:
        usage_error("GRID and --experiment are two ways to say what to compare: give one of them")
    if resume and output is None:
        usage_error("--resume goes on with what is in --output: name it")
    if (link or delay) and hosts is None:
        usage_error("--link and --delay are of emulated hosts: say how many with --hosts")
    expected = None if project is None else hosts_in(project)
    told, study = _grid(grid, experiment, hosts is not None)
    # Each host has a worker and a server; a grid can say it in other ways.
    settings = {"hosts": hosts, "workers": hosts, "servers": hosts, "link": link, "delay": delay}
    settings["emulate_compute"] = emulate_compute or None
    told = changed(told, only=only or (), repeats=repeats, **settings)
    if expected and not any(point.hosts is not None and point.hosts == point.workers for point in told.points):
        usage_error(
            "--project starts from runs on emulated hosts with a worker each: give --hosts, or a grid with them"
        )
    folder = data or Path(told.data or DATA)
    checked = check(told.points, folder)
    if checked.impossible:
        for sentence in checked.impossible:
            say_error(sentence)
        many = len(checked.impossible)
        say_error(f"nothing was started: {many} of {len(told.points)} points cannot be run")
        raise typer.Exit(1)
    directory = output or Path(f"coproc-runs/compare-{time.strftime('%Y%m%d-%H%M%S')}")
    with ending_in_order(), Display(told, checked.skipped) as display:
        done = run_all(told, checked.skipped, folder, directory, resume=resume, on_event=display.update)
    typer.echo(verdict(done.rows))
    figures = []
    if expected and any(row["status"] == "ok" and row["point"]["hosts"] is not None for row in done.rows):
        curves = project_to(done.rows, expected)
        figures.append(figure(curves))
        typer.echo(f"\n{text(curves)}")
    page = write(directory, done.rows, title=told.title, experiment=study, more=figures)
    typer.echo(f"\nReport: {page}\nwith results.jsonl and summary.csv beside it.")
    if done.interrupted:
        say_error(f"interrupted; what was done is kept: go on with --resume --output {directory}")
        raise typer.Exit(130)
    if all(row["status"] == "failed" for row in done.rows):
        raise typer.Exit(1)


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C: what is done is told, too, where a scheduler ends it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _grid(path: Path | None, experiment: str | None, several: bool) -> tuple[Grid, Study | None]:
    """What to run, and the question behind it."""
    from coproc.compare.grid import Grid, default_grid, read_grid

    if path is not None:
        return read_grid(path), None
    if experiment is None:
        return default_grid(several), None
    from coproc.compare.experiments import EXPERIMENTS

    study = EXPERIMENTS.get(experiment)
    if study is None:
        usage_error(f"no experiment is called {experiment!r}; there are: {', '.join(EXPERIMENTS)}")
    return Grid(tuple(study.points), study.title, study.repeats), study


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """What came out, as the report has it: a table for all that did the same work, and what came to nothing.

    Medians over the repeats, least and most beside them. Speeds against another's are of examples/s, and taken within a
    repeat: what slows a run down slows its neighbours too.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from coproc.report.contest import contests_of, trials_of
    from coproc.trials.metrics import metrics_of

    console = Console(width=200, no_color=True, highlight=False)
    contests = contests_of(trials_of(rows, metrics_of))
    lost: dict[str, str] = {}
    with console.capture() as capture:
        for contest in contests:
            reference = contest.reference
            against = f"against {reference.name}" if reference else ""
            table = Table(box=None, pad_edge=False)
            targets = [f"seconds_to_{what}" for what in ("accuracy", "loss")]
            targets = [name for name in targets if any(entry.values(name) for entry in contest.entries)]
            for n, name in enumerate(("contestant", "steps/s", against, "accuracy", *targets)):
                table.add_column(Text(name.replace("_", " ")), justify="right" if n else "left")
            for entry in contest.entries:
                for trial in entry.lost:
                    lost[entry.name] = trial.row["error"]
                if entry.trials:
                    shares = [100 * share for share in entry.values("final_accuracy")]
                    table.add_row(
                        Text(entry.name),
                        spread(entry.values("steps_per_s")),
                        "" if reference is None or entry is reference else spread(ratios(entry, reference), "x"),
                        spread(shares, " %"),
                        *(spread(entry.values(name)) for name in targets),
                    )
            if len(contests) > 1:
                console.print(Text(f"{contest.work}:"))
            console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([*lines, *(f"{name}: {error}" for name, error in lost.items())])


def ratios(entry: Entry, reference: Entry) -> list[float]:
    """Examples/s through the reference's, of each repeat that both have."""
    ours, theirs = entry.by_repeat(SPEED), reference.by_repeat(SPEED)
    return [ours[repeat] / theirs[repeat] for repeat in ours.keys() & theirs.keys()]


def spread(values: Sequence[float], unit: str = "") -> str:
    """The median, and from where to where the values go: 61.2x (59.1 to 63)."""
    import statistics

    if not values:
        return "-"
    text = f"{_three(statistics.median(values))}{unit}"
    low, high = _three(min(values)), _three(max(values))
    return text if low == high else f"{text} ({low} to {high})"


def _three(value: float) -> str:
    """With three digits that count."""
    if not value:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
