"""Numbers in words, axes, places of names, and markup."""

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coproc.report import words
from coproc.report.axes import Axis, scale
from coproc.report.bars import Bar, Bars, Stack, Stacks
from coproc.report.contest import WORK, looks_of, names_of
from coproc.report.curves import Lines, Mark, Series
from coproc.report.drawing import NARROW, WIDE, apart
from coproc.report.marks import Markup, el, path
from coproc.report.tables import Table
from coproc.trials.base import Point

GAP = "\N{NARROW NO-BREAK SPACE}"
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
POSITIVE = st.floats(1e-9, 1e12)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (61.234, "61.2"), (55.04, "55.0"), (1863690, "1,863,690"), (0.01234, "0.0123"), (0.5, "0.5"),
     (-2.34, "-2.34"),
     (None, "\N{EN DASH}"), (math.nan, "\N{EN DASH}"), (math.inf, "\N{EN DASH}"), (0.00001234, "1.23e-05")],
)  # fmt: skip
def test_numbers_have_three_digits_that_count(value, said):
    assert words.number(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0 s"), (0.011, "11 ms"), (0.00024, "240 µs"), (3.456, "3.46 s"), (125, "2 min 5 s"), (120, "2 min"),
     (1e-9, "0.001 µs")],
)  # fmt: skip
def test_times_have_the_unit_that_suits_them(value, said):
    assert words.seconds(value).replace(GAP, " ") == said


def test_bytes_ratios_shares_and_spans():
    assert words.size(7_454_760).replace(GAP, " ") == "7.45 MB"
    assert words.size(0).replace(GAP, " ") == "0 B"
    assert words.size_unit([3.0, None, 2e9]) == (1e9, "GB")
    assert words.times(5.31) == "5.3\N{MULTIPLICATION SIGN}"
    assert words.percent(0.975).replace(GAP, " ") == "97.5 %"
    assert words.span(59.06, 63.0) == "59.1 to 63"
    assert words.span(59.06, 59.061) == "59.1"
    assert words.joined(["a", "b", "c"]) == "a, b and c"


@given(st.lists(FINITE, min_size=1, max_size=20), st.booleans(), st.booleans(), st.integers(2, 9))
def test_every_value_has_a_place_between_the_ends_of_its_axis(values, log, from_zero, about):
    drawn = scale(Axis("x", log=log, from_zero=from_zero), values, 10.0, 300.0, about=about)
    places = [drawn(value) for value in values]
    assert all(10.0 <= place <= 300.0 for place in places)
    assert drawn.low < drawn.high
    ticks = [drawn(tick) for tick in drawn.ticks]
    assert ticks == sorted(ticks)
    assert len(ticks) <= 4 * about + 8


@given(POSITIVE, st.floats(1.01, 1e6), st.booleans())
def test_an_axis_keeps_the_order_of_values_and_has_ticks(low, ratio, log):
    high = low * ratio
    drawn = scale(Axis("x", log=log), [low, high], 0.0, 100.0)
    assert drawn(low) < drawn(high)
    assert drawn.ticks


def test_what_lies_beyond_an_end_is_drawn_at_it():
    drawn = scale(Axis("x", most=1.0), [0.9], 0.0, 100.0)
    assert drawn(7.0) == 100.0
    assert drawn(-7.0) == 0.0
    assert scale(Axis("x", log=True), [1.0, 9.0], 0.0, 100.0)(0.0) == 0.0


def test_ticks_are_round_and_no_sums_of_roundings():
    assert scale(Axis("x"), [0.62], 0, 1).ticks == (0.0, 0.2, 0.4, 0.6)
    assert scale(Axis("x", log=True), [1, 900], 0, 1).ticks == (1.0, 10.0, 100.0, 1000.0)
    assert scale(Axis("x", log=True), [2, 80], 0, 1).ticks == (2.0, 5.0, 10.0, 20.0, 50.0)
    assert len(scale(Axis("x", log=True), [1e-9, 1e12], 0, 1).ticks) <= 10
    assert scale(Axis("x", ticks=(1.0, 2.0, 8.0)), [1, 8], 0, 1).ticks == (1.0, 2.0, 8.0)


@given(st.lists(st.floats(0, 300), max_size=12))
def test_names_are_moved_apart_in_their_order(places):
    moved = apart(places, 15.0, 0.0, 300.0)
    order = sorted(range(len(places)), key=lambda n: (places[n], n))
    in_order = [moved[n] for n in order]
    assert all(after - before >= 15.0 - 1e-6 for before, after in pairwise(in_order))
    assert all(-1e-6 <= place <= 300.0 + 1e-6 for place in moved)


def test_names_that_are_apart_stay_where_they_are():
    assert apart([10.0, 40.0, 100.0], 15.0, 0.0, 300.0) == [10.0, 40.0, 100.0]


@given(st.text(), st.text())
def test_any_text_is_text_and_any_attribute_an_attribute(told, name):
    element = ET.fromstring(el("p", told, title=name))
    assert len(element) == 0
    assert set(element.attrib) == {"title"}


def test_markup_is_not_escaped_twice_and_none_is_nothing():
    assert el("p", el("b", "<"), None, class_="x", data_y=None) == '<p class="x"><b>&lt;</b></p>'
    assert el("rect", x=1.0, y=-0.001, stroke_width=2.345) == '<rect x="1" y="0" stroke-width="2.35"/>'
    assert isinstance(el("p"), Markup)
    assert path([(0, 1.005), (2, 3)], closed=True) == "M0 1L2 3Z"


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("many", [1, 40])
def test_nothing_is_drawn_outside_of_a_drawing(width, many):
    names = [f"a contestant with a long name, number {n}" for n in range(many)]
    lines = tuple(
        Series(name, f"k{n % 12}", tuple(Mark(x, x * (n + 1)) for x in (1.0, 5.0))) for n, name in enumerate(names)
    )
    bars = tuple(Bar(name, "k0", 3.0 * n, 2.0 * n, 4.0 * n) for n, name in enumerate(names))
    stacks = tuple(Stack(name, (1.0 * n, None, 2.0)) for n, name in enumerate(names))
    for chart in (
        Lines(Axis("x"), Axis("y"), lines),
        Bars(Axis("x"), bars),
        Stacks(Axis("x"), ("a", "b", "c"), stacks),
    ):
        drawn = ET.fromstring(chart.svg(width, "it"))
        high = float(drawn.get("height"))
        for element in drawn.iter():
            for key, most in (("x", width), ("x1", width), ("x2", width), ("y", high), ("y1", high), ("y2", high)):
                assert -1 <= float(element.get(key, 0)) <= most + 1, (element.tag, key)
            right = float(element.get("x", 0)) + float(element.get("width", 0))
            assert element.tag.endswith("svg") or right <= width + 1


def test_a_bar_that_was_not_measured_says_so_and_a_single_value_is_drawn():
    drawn = ET.fromstring(Bars(Axis("x"), (Bar("a", "k0", None), Bar("b", "k1", 0.0))).svg(WIDE, "it"))
    told = ["".join(each.itertext()) for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "not measured" in told
    assert "0" in told


def test_a_table_line_of_two_cells_tells_why_and_of_one_is_a_heading():
    table = ET.fromstring(Table(("a", "b", "c"), (("x", "1", "2"), ("y", "failed"), ("below",))).html())
    spans = [[cell.get("colspan") for cell in line] for line in table.findall(".//tbody/tr")]
    assert spans == [[None, None, None], [None, "2"], ["3"]]


def test_names_say_what_is_the_contestants_own_and_only_where_it_differs():
    points = [
        Point("coproc", group_size=1),
        Point("coproc", group_size=None),
        Point("http", workers=4),
        Point("coproc", label="mine"),
    ]
    names = names_of([*points, Point("http", workers=2)])
    assert [names[point] for point in points] == ["coproc, group of 1", "coproc, a group an epoch", "http", "mine"]
    assert names_of([Point("coproc", tau=5), Point("localsgd", tau=5)])[Point("localsgd", tau=5)] == "localsgd"
    # How a contestant does the work is no other work.
    ahead = Point("coproc", prefetch=True)
    assert names_of([Point("coproc"), ahead])[ahead] == "coproc, fetched ahead"
    assert "prefetch" not in WORK


def test_known_contestants_keep_their_colours_and_many_others_differ_in_shape():
    few, many = looks_of(["coproc", "http"]), looks_of(["http", *map(str, range(30)), "single"])
    assert few["http"] == many["http"]
    assert len(set(many.values())) >= 28
    assert many["single"][0] == "alone"
