"""What a terminal shows of a training while it goes on, at moments that the test chooses."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from coproc.cli.show import Display
from coproc.training import Progress

WIDTH = 80


class Terminal:
    """A terminal whose clock stands until it is moved."""

    def __init__(self):
        self.now_s = 1000.0
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=True, width=WIDTH, color_system=None, soft_wrap=True)
        self.display = Display(self.console, clock=lambda: self.now_s)

    def after(self, seconds, progress):
        """What the live line reads when `progress` is told `seconds` later."""
        self.now_s += seconds
        self.file.seek(0)
        self.file.truncate()
        self.display.update(progress)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.file.getvalue()).strip().splitlines()[-1].strip("\r")


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = Terminal()
    with shown.display:
        yield shown


def test_clock_and_spinner_move_in_every_epoch(terminal):
    lines = []
    for epoch in (1, 2, 3):
        lines.append(terminal.after(10, Progress("training", epoch, 3, 0.5, 0.25, 1200.0)))
        lines.append(terminal.after(10, Progress("measuring", epoch, 3, 1.0)))
    clocks = [re.search(r"\d:\d\d:\d\d$", line.strip()).group() for line in lines]
    assert clocks == [f"0:0{seconds // 60}:{seconds % 60:02}" for seconds in range(10, 70, 10)]
    assert "epoch 3/3, measuring" in lines[-1]
    spins = [terminal.after(0.1, Progress("training", 3, 3, done))[0] for done in (0.0, 0.2, 0.4, 1.0, 1.0)]
    assert len(set(spins)) == 5
    assert " " not in spins


def test_the_bar_shows_the_share_of_its_epoch(terminal):
    def bar(done):
        return terminal.after(1, Progress("training", 2, 9, done)).count("━")

    assert 0 == bar(0.0) < bar(0.25) < bar(0.75) < bar(1.0)
    assert bar(0.0) == 0


def test_the_clock_fits_a_terminal_of_80_columns(terminal):
    line = terminal.after(3600, Progress("training", 100, 100, 0.5, 0.1234, 123456.0, 10.25))
    assert line.rstrip().endswith("1:00:00")
    assert len(line) <= WIDTH


def test_a_log_gets_lines():
    file = io.StringIO()
    now_s = 0.0
    with Display(Console(file=file, soft_wrap=True), clock=lambda: now_s) as display:
        display.update(Progress("reading the data"))
        for now_s in (1.0, 2.0, 20.0):
            display.update(Progress("training", 1, 2, now_s / 40, 0.5, 10.0))
    assert [line.split("  loss")[0] for line in file.getvalue().splitlines()] == [
        "reading the data …",
        "  2 % of epoch 1/2",
        "  50 % of epoch 1/2",
    ]
