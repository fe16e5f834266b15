"""What is expected of more hosts, as a figure and as text."""

from coproc.compare.projected import figure, text
from coproc.trials.base import Point
from coproc.trials.project import Curve, Expected, Measured

POINT = Point("coproc", hosts=2, workers=2, link="1gbit", emulate_compute=True)
CURVE = Curve(
    "coproc",
    POINT,
    (Expected(16, 0.2, 0.1, 0.05, 0.02, 0.03), Expected(64, 0.4, 0.1, 0.2, 0.05, 0.05)),
    (Measured(2, 0.11, 0.121, False), Measured(4, 0.1, 0.09, True)),
    ("All wait for the slowest.", "Nobody fails."),
)


def test_the_figure_has_the_curve_its_points_and_all_that_is_assumed():
    found = figure([CURVE])
    lines = {line.label: line for line in found.panels[0].chart.series}
    assert [(mark.x, mark.y) for mark in lines["coproc, expected"].marks] == [(16, 8.0), (64, 16.0)]
    assert lines["coproc, expected"].dashed
    assert [mark.x for mark in lines["coproc"].marks] == [2, 4]
    assert lines["coproc"].marks[1].y == 4.0
    assert [len(mark.kinds) for mark in lines["coproc"].marks] == [1, 2]
    page = str(found.html("figure-1")).replace("\N{NARROW NO-BREAK SPACE}", " ")
    for words in ("+10 %", "-10 %", "All wait for the slowest.", "Nobody fails.", "50 %", "25 %"):
        assert words in page


def test_the_text_says_the_same():
    lines = [line.strip() for line in text([CURVE]).splitlines()]
    assert lines == [
        "Expected of more hosts:",
        "coproc",
        "16 hosts: 200 ms a step, 50 % of ideal",
        "64 hosts: 400 ms a step, 25 % of ideal",
        "measured on 2: 110 ms a step; the model says 121 ms, +10 %",
        "measured on 4: 100 ms a step; the model says 90 ms, -10 % (CPU-bound)",
        "All wait for the slowest.",
        "Nobody fails.",
    ]
