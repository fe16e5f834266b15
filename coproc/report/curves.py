"""A chart of lines: one value over another, a line a series, its name at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coproc.report.axes import Axis, Scale, scale
from coproc.report.drawing import (
    MEASURED,
    NARROW,
    TEXT,
    Kinds,
    apart,
    bottom_axis,
    drawing,
    label,
    signs,
    width_of,
)
from coproc.report.marks import Markup, el, path, together

# A line of more points than this is one to follow, not points to look at.
MARKED_AT_MOST = 16
# Of names one below the other; how far from the edge the end of a line still has a thread to its name.
LINE = 15.0
FAR = 60.0


@dataclass(frozen=True)
class Mark:
    """A point, with the least and the most of its repeats."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    kinds: Kinds = MEASURED
    first: float | None = None
    last: float | None = None
    """Where its repeats were along x, if they were not all in one place."""


@dataclass(frozen=True)
class Series:
    """Points that belong together, in the order of x."""

    label: str
    look: str
    """Class of its colour: k0, s2, …; "" of a guide."""
    marks: tuple[Mark, ...]
    dashed: bool = False
    shape: int = 0
    """0 a circle, 1 a square, 2 a triangle, 3 a diamond: for who cannot tell colours."""


@dataclass(frozen=True)
class Rule:
    """A value to be compared with, across the chart."""

    value: float
    label: str


@dataclass(frozen=True)
class Lines:
    """The chart. `guides` are drawn thin and grey: what an ideal would be."""

    x: Axis
    y: Axis
    series: tuple[Series, ...]
    rules: tuple[Rule, ...] = ()
    guides: tuple[Series, ...] = ()

    @property
    def kinds(self) -> Kinds:
        return frozenset(kind for series in self.series for mark in series.marks for kind in mark.kinds)

    def svg(self, width: float, name: str) -> Markup:
        shown = [*(guide for guide in self.guides if guide.marks), *(series for series in self.series if series.marks)]
        tags = [series.label + signs(_kinds(series)) for series in shown]
        narrow = width <= NARROW
        room = min(max((width_of(tag) for tag in tags), default=0) + 34, width * (0.33 if narrow else 0.26))
        height = max(240.0 if narrow else 340.0, LINE * len(shown) + 90)
        top, bottom = 30.0, height - 44
        marks = [mark for series in shown for mark in series.marks]
        ys = [y for mark in marks for y in (mark.y, mark.low, mark.high) if y is not None]
        up = scale(self.y, [*ys, *(rule.value for rule in self.rules)], bottom, top)
        left = max((width_of(self.y.words(tick)) for tick in up.ticks), default=20.0) + 10
        xs = [x for mark in marks for x in (mark.x, mark.first, mark.last) if x is not None]
        across = scale(self.x, xs, left, width - room, about=5 if narrow else 8)
        parts = [bottom_axis(self.x, across, top, bottom), self._left_axis(up, left, width - room)]
        parts += [self._rule(rule, up, left, width - room) for rule in self.rules]
        parts += [_line(series, across, up) for series in shown]
        parts += _tags(shown, tags, across, up, width, top, bottom)
        return drawing(width, height, name, *parts)

    def _left_axis(self, up: Scale, left: float, right: float) -> Markup:
        parts = [el("text", self.y.label, x=0, y=TEXT, class_="axis")]
        for tick in up.ticks:
            y = up(tick)
            parts.append(el("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(el("text", self.y.words(tick), x=left - 6, y=y + 4, text_anchor="end", class_="tick"))
        return together(*parts)

    def _rule(self, rule: Rule, up: Scale, left: float, right: float) -> Markup:
        y = up(rule.value)
        return together(
            el("line", x1=left, x2=right, y1=y, y2=y, class_="rule"),
            el("text", rule.label, x=left + 6, y=y - 5, class_="tick"),
        )


def _line(series: Series, across: Scale, up: Scale) -> Markup:
    marks = series.marks
    places = [(across(mark.x), up(mark.y)) for mark in marks]
    spread = [mark for mark in marks if mark.low is not None and mark.high is not None and mark.low < mark.high]
    parts: list[Markup] = []
    dense = len(marks) > MARKED_AT_MOST
    if dense and all(mark.first is not None and mark.last is not None for mark in marks):
        before = [(across(mark.first or 0.0), up(mark.y)) for mark in marks]
        after = [(across(mark.last or 0.0), up(mark.y)) for mark in reversed(marks)]
        parts.append(el("path", d=path([*before, *after], closed=True), class_="band"))
    elif dense and spread:
        above = [(across(mark.x), up(mark.y if mark.high is None else mark.high)) for mark in marks]
        below = [(across(mark.x), up(mark.y if mark.low is None else mark.low)) for mark in reversed(marks)]
        parts.append(el("path", d=path([*above, *below], closed=True), class_="band"))
    parts.append(el("path", d=path(places), class_="curve dashed" if series.dashed else "curve"))
    if not dense and series.look:
        for mark in spread:
            x = across(mark.x)
            parts.append(el("line", x1=x, x2=x, y1=up(mark.low or 0.0), y2=up(mark.high or 0.0), class_="whisker"))
        for mark, (x, y) in zip(marks, places, strict=True):
            parts.append(el("path", d=_shape(series.shape, x, y), class_="mark hollow" if mark.kinds else "mark"))
    return el("g", *parts, class_=series.look or "guide")


def _tags(
    shown: Sequence[Series], tags: Sequence[str], across: Scale, up: Scale, width: float, top: float, bottom: float
) -> list[Markup]:
    """The names at the right, as near to the heights of the ends as they fit, with a thread from ends that are near.

    Where many lines end at one height, who ends first stands first.
    """
    ends = [(across(series.marks[-1].x), up(series.marks[-1].y)) for series in shown]
    order = sorted(range(len(shown)), key=lambda n: (round(ends[n][1] / (2 * LINE)), ends[n][0], n))
    heights = [ends[n][1] for n in order]
    # In this order, whatever their exact heights.
    level = [max(heights[: n + 1]) for n in range(len(heights))]
    parts = []
    begin = across.end + 24
    for n, place in zip(order, apart(level, LINE, top, bottom), strict=True):
        series, (x, y) = shown[n], ends[n]
        # From afar it would cross the others; the mark in its colour is enough.
        thread = path([(x + 6, y), (begin - 9, place)]) if across.end - x < FAR > abs(place - y) else None
        mark = _shape(series.shape, begin - 4, place)
        parts.append(
            el(
                "g",
                el("path", d=thread, class_="thread") if thread else None,
                el("path", d=mark, class_="mark") if series.look else None,
                label(tags[n], begin + 4, place + 4, width - begin - 4, class_="tag"),
                class_=series.look or "guide",
            )
        )
    return parts


def _kinds(series: Series) -> Kinds:
    return frozenset(kind for mark in series.marks for kind in mark.kinds)


def _shape(shape: int, x: float, y: float) -> str:
    r = 3.6
    if shape % 4 == 1:
        return path([(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)], closed=True)
    if shape % 4 == 2:
        return path([(x, y - 1.3 * r), (x + 1.2 * r, y + r), (x - 1.2 * r, y + r)], closed=True)
    if shape % 4 == 3:
        return path([(x, y - 1.4 * r), (x + 1.4 * r, y), (x, y + 1.4 * r), (x - 1.4 * r, y)], closed=True)
    return f"M{x - r:.2f} {y:.2f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
