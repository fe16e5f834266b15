"""What all charts have in common: their width, their words, and how a doubtful measurement is marked.

Charts are drawn by these few hundred lines and not by a library: a plotting library fixes colours, sizes and letters
when it draws, and a page that follows the reader's light or dark, phone or paper needs them as classes and real text.

A chart is drawn twice, for a wide and for a narrow page, and the page's style sheet shows one of them. Lengths are in
units that are one CSS pixel where the page has that width. Colours are classes (k0, k1, … of contestants, s0, s1, … of
what has an order, p0, p1, … of parts), so that light, dark and paper each have their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from coproc.report.axes import Axis, Scale
from coproc.report.marks import Markup, el, together
from coproc.report.words import shortened

WIDE = 920.0
NARROW = 350.0

# Of a letter of the text in charts; estimated, since nobody measures it here.
LETTER = 6.7
TEXT = 12.0

CPU_BOUND = "cpu-bound"
EMULATED = "emulated"
SIGNS = {CPU_BOUND: "†", EMULATED: "‡"}
MEANINGS = {
    CPU_BOUND: "measured while the processors had less than 20 % idle: what limits it is this machine",
    EMULATED: "computing was replaced by a calibrated wait: the exchange is measured, the gradients are not real",
}

Kinds = frozenset[str]
MEASURED: Kinds = frozenset()


class Chart(Protocol):
    """Something that can be drawn for a page of some width."""

    def svg(self, width: float, name: str) -> Markup:
        """The drawing; `name` is what it is called where it is not seen."""
        ...

    @property
    def kinds(self) -> Kinds:
        """How doubtful measurements in it are marked."""
        ...


def signs(kinds: Iterable[str]) -> str:
    """What goes behind a label: †, ‡, both or nothing."""
    told = "".join(SIGNS[kind] for kind in sorted(kinds))
    return f"\N{NO-BREAK SPACE}{told}" if told else ""


def drawing(width: float, height: float, name: str, *parts: object) -> Markup:
    """The element around a drawing."""
    return el(
        "svg",
        el("title", name),
        *parts,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        role="img",
        xmlns="http://www.w3.org/2000/svg",
    )


def width_of(words: str) -> float:
    return LETTER * len(words)


def label(
    words: str, x: float, y: float, room: float, *, anchor: str | None = None, class_: str | None = None
) -> Markup:
    """Text that fits into `room`; the whole of it is told where the pointer rests."""
    shown = shortened(words, max(4, int(room / LETTER)))
    whole = el("title", words) if shown != words else None
    return el("text", together(shown, whole), x=x, y=y, text_anchor=anchor, class_=class_)


def bottom_axis(axis: Axis, across: Scale, top: float, bottom: float) -> Markup:
    """Lines up from the ticks, their numbers, and what the axis is below them."""
    parts = []
    free = -1e9
    for tick in across.ticks:
        x, words = across(tick), axis.words(tick)
        parts.append(el("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        half = width_of(words) / 2
        if x - half > free:
            # The first may be wider than there is room on its left.
            parts.append(el("text", words, x=max(x, half), y=bottom + 16, text_anchor="middle", class_="tick"))
            free = max(x, half) + half + 4
    parts.append(
        el("text", axis.label, x=(across.start + across.end) / 2, y=bottom + 34, text_anchor="middle", class_="axis")
    )
    return together(*parts)


def apart(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved as little as it takes to be `gap` apart, in their order, between `low` and `high` if they fit."""
    order = sorted(range(len(places)), key=lambda n: (places[n], n))
    moved = [0.0] * len(places)
    free = low
    for n in order:
        moved[n] = max(places[n], free)
        free = moved[n] + gap
    free = high
    for n in reversed(order):
        moved[n] = min(moved[n], free)
        free = moved[n] - gap
    return moved
