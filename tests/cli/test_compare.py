"""`coprocessor compare` as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from coproc.cli import main
from coproc.cli.compare import NAMES, spread, verdict
from coproc.cli.running import Display
from coproc.compare.experiments import EXPERIMENTS
from coproc.compare.grid import Grid
from coproc.compare.runner import Event
from coproc.pools.base import python_path
from coproc.trials.base import Point
from coproc.trials.record import row_of

TIMEOUT_S = 90

GRID = """
repeats = 1
[defaults]
workload = "digits"
pool = "inline"
rows = 512
hidden = [8]
epochs = 2
[[grid]]
contestant = ["coproc", "localsgd"]
"""


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(GRID)
    return path


@pytest.fixture
def here(capsys, monkeypatch, tmp_path):
    """The command within this process, for what ends before a run is started."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)

    def here(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["compare", *map(str, arguments)])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=out, err=err)

    return here


def command(*arguments):
    return [sys.executable, "-W", "error", "-m", "coproc", "compare", *map(str, arguments)]


def environment():
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COPROC_")}
    return {**plain, "PYTHONPATH": python_path(), "COLUMNS": "200"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--resume"], 2, "--resume goes on with what is in --output"),
        (["--link", "1gbit"], 2, "--link and --delay are of emulated hosts"),
        (["grid.toml", "--experiment", "tau"], 2, "GRID and --experiment are two ways"),
        (["--experiment", "magic"], 2, r"no experiment is called 'magic'; there are: scaling, speedup"),
        (["--project", "many"], 1, "numbers of hosts are written as 16..1024"),
        (["--project", "16..64"], 2, "--project starts from runs on emulated hosts"),
        (["--repeats", "0"], 2, "--repeats"),
        (["--hosts", "0"], 2, "--hosts"),
        (["grid.toml"], 1, r"the grid grid.toml cannot be read: No such file"),
        (["--only", "ftp"], 1, "no contestant of this comparison is called 'ftp'"),
        (["--data", "/nowhere"], 1, r"coproc: mnist needs /nowhere/mnist_train.parquet"),
    ],
)
def test_a_wrong_command_line_is_refused(here, arguments, code, words):
    done = here(*arguments)
    assert done.code == code
    assert re.search(words, done.err), done.err
    assert "Traceback" not in done.err


def test_the_help_names_all_experiments():
    assert set(NAMES) == set(EXPERIMENTS)


def test_impossible_points_are_refused_in_one_list_before_anything_starts(here, grid, tmp_path):
    grid.write_text(GRID.replace('"localsgd"]', '"ftp", "http"]\nservers = [0, 1]\npreset = "fast"'))
    done = here(grid, "--output", tmp_path / "out")
    assert done.code == 1
    lines = done.err.strip().splitlines()
    assert len(lines) == 7
    assert all(line.startswith("error: ") for line in lines)
    assert sum("servers must be at least 1, not 0" in line for line in lines) == 2
    assert sum("there is no contestant 'ftp'" in line for line in lines) == 2
    assert sum("--preset must be one of" in line for line in lines) == 2
    assert lines[-1] == "error: nothing was started: 6 of 6 points cannot be run"
    assert not (tmp_path / "out").exists()


def test_from_a_grid_to_a_report_and_on(grid, tmp_path):
    output = tmp_path / "out"
    done = subprocess.run(
        command(grid, "--output", output), capture_output=True, text=True, timeout=TIMEOUT_S, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^coproc, run 1 of 1: ok, [\d.,]+ steps/s, accuracy [\d.]+ %$", done.stderr, re.MULTILINE)
    assert re.search(r"^localsgd +[\d.,]+ +[\d.]+x +[\d.]+ %$", done.stdout, re.MULTILINE)
    assert f"Report: {output / 'report.html'}" in done.stdout
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [(row["point"]["contestant"], row["status"]) for row in rows] == [("coproc", "ok"), ("localsgd", "ok")]
    assert (output / "summary.csv").read_text().count("\n") == 3
    assert "localsgd" in (output / "report.html").read_text()
    again = subprocess.run(
        command(grid, "--output", output, "--resume"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment(),
    )
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    assert len((output / "results.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(grid, tmp_path, number):
    grid.write_text(GRID.replace("epochs = 2", "epochs = 1000000"))
    output = tmp_path / "out"
    with subprocess.Popen(
        command(grid, "--output", output, "--only", "coproc"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), "TTY_COMPATIBLE": "1", "TERM": "xterm"},  # rich shows the live table
    ) as process:
        assert process.stderr is not None
        shown = ""
        while "epoch" not in shown:
            read = process.stderr.read(1)
            assert read, shown
            shown += read
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert f"go on with --resume --output {output}" in err
    assert "Traceback" not in err
    assert "Report: " in out
    (row,) = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert row["status"] == "interrupted"


# ---- what is shown


def point(name, **settings):
    return Point(name, workload="digits", **settings)


def row(told, repeat, steps_per_s, accuracy=None):
    samples = [[0, n, n / steps_per_s, 0.0, 1 / steps_per_s, 0.0, 128, 1.0, 0] for n in range(100)]
    epochs = [] if accuracy is None else [{"epoch": 1, "train_s": 3.0, "loss": 0.5, "accuracy": accuracy}]
    groups = [[0, 0, 0.0, 100 / steps_per_s]]
    return row_of(told, repeat) | {"samples": samples, "groups": groups, "epochs": epochs}


def test_the_verdict_has_medians_spreads_and_ratios_within_a_repeat():
    first, second = point("coproc", workers=1, target_accuracy=0.9), point("http", workers=1, target_accuracy=0.9)
    third = point("storage", workers=1, target_accuracy=0.9)
    rows = [
        *(row(second, repeat, rate) for repeat, rate in enumerate((5, 5, 5))),
        *(row(first, repeat, rate, 0.95) for repeat, rate in enumerate((10, 20, 40))),
        row_of(third, 0, "failed", "it is [broken]"),
    ]
    lines = verdict(rows).splitlines()
    assert re.fullmatch(r"contestant +steps/s +against coproc +accuracy +seconds to accuracy", lines[0])
    assert re.fullmatch(r"http +5\.00 +0\.250x \(0\.125 to 0\.500\) +- +-", lines[1])
    assert re.fullmatch(r"coproc +20\.0 \(10\.0 to 40\.0\) +95\.0 % +3\.00", lines[2])
    assert lines[3:] == ["storage: it is [broken]"]


def test_only_what_did_the_same_work_is_compared():
    rows = [row(point(name, workers=workers), 0, 10) for workers in (1, 2) for name in ("coproc", "http")]
    lines = verdict(rows).splitlines()
    assert [line for line in lines if line.endswith(":")] == ["digits, 1 worker:", "digits, 2 workers:"]
    assert sum("1.00x" in line for line in lines) == 2
    assert verdict([]) == ""


def test_what_was_done_before_is_shown_as_done(shown):
    told = point("coproc")
    with Display(Grid((told,), "some", repeats=2), {}, shown) as display:
        display.update(Event("kept", told, 0, row=row(told, 0, 10, 0.5)))
        shown.print(display._table())
    shown.file.close()
    assert re.search(r"coproc +1/2 +ok, 5\.0+ steps/s, accuracy 50\.00 %", shown.export_text())


@pytest.mark.parametrize(
    ("values", "text"),
    [([], "-"), ([2.0], "2.00x"), ([1234.5, 1234.5], "1,234x"), ([0.0123, 0.0456], "0.0290x (0.0123 to 0.0456)")],
)
def test_spread(values, text):
    assert spread(values, "x") == text


@pytest.fixture
def shown():
    return Console(width=100, height=8, force_terminal=False, record=True, file=open(os.devnull, "w"))


def test_a_log_has_a_line_a_run(shown):
    told = point("coproc")
    with Display(Grid((told,), "some", repeats=2), {}, shown) as display:
        display.update(Event("began", told, 0))
        display.update(Event("progress", told, 0, progress={"phase": "x", "epoch": 0, "steps": 0, "moment_s": 0.0}))
        display.update(Event("ended", told, 0, row=row(told, 0, 10, 0.5)))
        display.update(Event("ended", told, 1, row=row_of(told, 1, "skipped", "pip install 'coproc[http]'")))
    shown.file.close()
    lines = shown.export_text().splitlines()
    assert lines[0].startswith("coproc, run 1 of 2: ok, ")
    assert lines[1] == "coproc, run 2 of 2: skipped: pip install 'coproc[http]'"


def test_the_table_shows_the_run_at_work_and_its_rate(shown):
    points = [point("coproc", seed=seed) for seed in range(20)]
    with Display(Grid(tuple(points), "some", repeats=2), {points[3].id: "why"}, shown) as display:
        display.update(Event("began", points[12], 0))
        for moment, steps in enumerate((0.0, 10.0, 40.0, 70.0)):
            told = {"phase": "training", "epoch": 1, "steps": steps, "moment_s": float(moment)}
            display.update(Event("progress", points[12], 0, progress=told))
        shown.print(display._table())
    shown.file.close()
    text = shown.export_text()
    assert re.search(r"coproc seed=12 +0/2 +epoch 1, training +30\.0 +0 s", text)
    assert "seed=11" in text
    assert "seed=2 " not in text
    assert len(text.splitlines()) <= 8
