"""Charts of lengths: a bar a contestant, a bar cut into parts, and the small one in a line of a table."""

from __future__ import annotations

from dataclasses import dataclass

from coproc.report.axes import Axis, scale
from coproc.report.drawing import MEASURED, NARROW, Kinds, bottom_axis, drawing, label, signs, width_of
from coproc.report.marks import Markup, el, together

_STRIP = 110.0


@dataclass(frozen=True)
class Bar:
    """One value, with the least and the most of its repeats."""

    label: str
    look: str
    value: float | None
    """None: not measured, and said so."""
    low: float | None = None
    high: float | None = None
    kinds: Kinds = MEASURED


@dataclass(frozen=True)
class Bars:
    """Horizontal bars from 0, their values at their ends."""

    axis: Axis
    bars: tuple[Bar, ...]

    @property
    def kinds(self) -> Kinds:
        return frozenset(kind for bar in self.bars for kind in bar.kinds)

    def svg(self, width: float, name: str) -> Markup:
        values = [value for bar in self.bars for value in (bar.value, bar.high) if value is not None]
        words = [self.axis.words(bar.value) if bar.value is not None else "not measured" for bar in self.bars]
        rows = _Rows(width, [bar.label + signs(bar.kinds) for bar in self.bars], words)
        along = scale(self.axis, [0.0, *values], rows.left, rows.right, about=3 if width <= NARROW else 6)
        parts = [bottom_axis(self.axis, along, rows.top, rows.bottom)]
        for n, bar in enumerate(self.bars):
            y = rows.middle(n)
            end = rows.left
            inside: list[Markup] = []
            if bar.value is not None:
                end = along(bar.value)
                inside.append(_box(rows.left, end, y, "bar hollow" if bar.kinds else "bar"))
                if bar.low is not None and bar.high is not None and bar.low < bar.high:
                    inside.append(_whisker(along(bar.low), along(bar.high), y, 4))
                    end = max(end, along(bar.high))
            parts.append(el("g", *inside, class_=bar.look))
            parts.append(el("text", words[n], x=end + 6, y=y + 4, class_="value"))
            parts.append(rows.name(n))
        return drawing(width, rows.height, name, *parts)


@dataclass(frozen=True)
class Stack:
    """One sum and its parts, in the order of the chart's `parts`."""

    label: str
    values: tuple[float | None, ...]
    kinds: Kinds = MEASURED


@dataclass(frozen=True)
class Stacks:
    """Horizontal bars cut into parts, their sums at their ends."""

    axis: Axis
    parts: tuple[str, ...]
    stacks: tuple[Stack, ...]
    looks: tuple[str, ...] = ("p0", "p1", "p2", "p3", "p4")
    """Classes of the colours of the parts."""

    @property
    def kinds(self) -> Kinds:
        return frozenset(kind for stack in self.stacks for kind in stack.kinds)

    def svg(self, width: float, name: str) -> Markup:
        sums = [sum(value or 0.0 for value in stack.values) for stack in self.stacks]
        words = [self.axis.words(total) for total in sums]
        key, below = self._key(width)
        rows = _Rows(width, [stack.label + signs(stack.kinds) for stack in self.stacks], words, top=below)
        along = scale(self.axis, [0.0, *sums], rows.left, rows.right, about=3 if width <= NARROW else 6)
        drawn: list[Markup] = [key, bottom_axis(self.axis, along, rows.top, rows.bottom)]
        for n, stack in enumerate(self.stacks):
            y, at = rows.middle(n), 0.0
            for part, value in enumerate(stack.values):
                if value:
                    box = _box(along(at), along(at + value), y, "bar hollow" if stack.kinds else "bar")
                    told = el("title", f"{self.parts[part]}: {self.axis.words(value)}")
                    drawn.append(el("g", told, box, class_=self.looks[part]))
                    at += value
            drawn.append(el("text", words[n], x=along(at) + 6, y=y + 4, class_="value"))
            drawn.append(rows.name(n))
        return drawing(width, rows.height, name, *drawn)

    def _key(self, width: float) -> tuple[Markup, float]:
        """What the colours are, in the order of the parts; and where it ends."""
        x, y, parts = 0.0, 8.0, []
        for part, words in enumerate(self.parts):
            wide = 18 + width_of(words) + 14
            if x and x + wide > width:
                x, y = 0.0, y + 18
            parts.append(
                el("g", el("rect", x=x, y=y - 6, width=12, height=12, rx=2, class_="bar"), class_=self.looks[part])
            )
            parts.append(el("text", words, x=x + 18, y=y + 4, class_="tag"))
            x += wide
        return together(*parts), y + 18


def strip(value: float | None, low: float | None, high: float | None, most: float, look: str, kinds: Kinds) -> Markup:
    """A bar and the spread of its repeats in a line of a table; `most` is the end of the longest. Its number stands
    beside it, so it has no words."""
    if value is None or most <= 0:
        return Markup("")
    to = (_STRIP - 4) / most
    parts = [_box(0.0, value * to, 8.0, "bar hollow" if kinds else "bar", high=10.0)]
    if low is not None and high is not None and low < high:
        parts.append(_whisker(low * to, high * to, 8.0, 3.5))
    return el(
        "svg",
        el("g", *parts, class_=look),
        viewBox=f"0 0 {_STRIP:.0f} 16",
        width=f"{_STRIP:.0f}",
        height="16",
        class_="strip",
        aria_hidden="true",
        xmlns="http://www.w3.org/2000/svg",
    )


class _Rows:
    """Where the lines of such a chart lie: the names at the left, on a narrow page above their bars."""

    def __init__(self, width: float, names: list[str], values: list[str], *, top: float = 4.0) -> None:
        self.narrow = width <= NARROW
        self.names = names
        self.room = width if self.narrow else min(max(map(width_of, names), default=0.0) + 12, width * 0.38)
        self.left = 0.5 if self.narrow else self.room
        self.right = width - max(map(width_of, values), default=0.0) - 14
        self.step = 40.0 if self.narrow else 26.0
        self.top = top
        self.bottom = top + self.step * len(names) + 2
        self.height = self.bottom + 42

    def middle(self, n: int) -> float:
        """Of the bar of a line."""
        return self.top + self.step * n + (27.0 if self.narrow else 14.0)

    def name(self, n: int) -> Markup:
        if self.narrow:
            return label(self.names[n], 0, self.middle(n) - 12, self.room, class_="tag")
        return label(self.names[n], self.left - 8, self.middle(n) + 4, self.room - 8, anchor="end", class_="tag")


def _box(start: float, end: float, middle: float, class_: str, high: float = 14.0) -> Markup:
    return el("rect", x=start, y=middle - high / 2, width=max(0.5, end - start), height=high, class_=class_)


def _whisker(low: float, high: float, y: float, half: float) -> Markup:
    ends = [el("line", x1=x, x2=x, y1=y - half, y2=y + half, class_="whisker") for x in (low, high)]
    return together(el("line", x1=low, x2=high, y1=y, y2=y, class_="whisker"), *ends)
