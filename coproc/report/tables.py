"""Tables and figures: what a page is made of. A figure never goes without its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coproc.report.drawing import MEANINGS, NARROW, SIGNS, WIDE, Chart, Kinds
from coproc.report.marks import Markup, el, together


@dataclass(frozen=True)
class Table:
    """Cells are text or markup; the first of a line is its name. Numbers stand at the right.

    A line of one cell is a heading of those below it; one of two says why there is nothing.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    left: frozenset[int] = frozenset()
    """Columns of words, besides the first."""

    def html(self, class_: str | None = None) -> Markup:
        head = [el("th", name, scope="col", class_=self._class(n)) for n, name in enumerate(self.columns)]
        lines = []
        for row in self.rows:
            if len(row) == 1 < len(self.columns):
                lines.append(
                    el(
                        "tr",
                        el("th", row[0], colspan=len(self.columns), scope="rowgroup", class_="left"),
                        class_="group",
                    )
                )
                continue
            name = el("th", row[0], scope="row", class_="left")
            if len(row) == 2 < len(self.columns):
                lines.append(
                    el(
                        "tr",
                        name,
                        el("td", el("span", row[1], class_="why"), colspan=len(self.columns) - 1, class_="left"),
                    )
                )
            else:
                cells = [el("td", cell, class_=self._class(n)) for n, cell in enumerate(row[1:], 1)]
                lines.append(el("tr", name, *cells))
        table = el("table", el("thead", el("tr", *head)), el("tbody", *lines), class_=class_)
        # It can be reached by the keyboard, since it may have to be scrolled.
        return el("div", table, class_="scroll", tabindex="0")

    def _class(self, column: int) -> str | None:
        return "left" if column == 0 or column in self.left else None


@dataclass(frozen=True)
class Panel:
    """One drawing of a figure."""

    chart: Chart
    title: str = ""
    """What is particular about it among the panels of its figure."""


@dataclass(frozen=True)
class Figure:
    """Drawings of one kind, what they say, and their numbers."""

    title: str
    panels: tuple[Panel, ...]
    numbers: Table
    say: Sequence[str] = ()
    """Sentences above it: how it is read, what is seen."""

    @property
    def kinds(self) -> Kinds:
        return frozenset(kind for panel in self.panels for kind in panel.chart.kinds)

    def html(self, anchor: str) -> Markup:
        return el(
            "section",
            el("h2", self.title),
            *(el("p", sentence) for sentence in self.say),
            el(
                "figure",
                self._drawings(),
                meanings(self.kinds, figure=True),
                el("details", el("summary", "The numbers"), self.numbers.html()),
            ),
            id=anchor,
        )

    def _drawings(self) -> Markup:
        if len(self.panels) == 1:
            chart, title = self.panels[0].chart, self.panels[0].title
            name = ", ".join(filter(None, [self.title, title]))
            return together(
                el("h3", title) if title else None,
                el("div", chart.svg(WIDE, name), class_="wide"),
                el("div", chart.svg(NARROW, name), class_="narrow"),
            )
        panels = [
            el("div", el("h3", panel.title), panel.chart.svg(NARROW, f"{self.title}, {panel.title}"), class_="panel")
            for panel in self.panels
        ]
        return el("div", *panels, class_="panels")


def meanings(kinds: Kinds, *, figure: bool = False) -> Markup | None:
    """What the signs behind labels mean, if there are any."""
    if not kinds:
        return None
    words = [f"{SIGNS[kind]} {MEANINGS[kind]}" for kind in sorted(kinds)]
    if figure:
        words[0] = f"Hollow: {words[0]}"
    return el("p", "; ".join(words), ".", class_="small")
