"""Elements of HTML and of SVG, escaped unless they are elements themselves.

Labels, errors and notes come from grids, programs and machines that nobody here has seen: whatever is not made by
`el` is text, and is escaped. What is made is both HTML and well-formed XML.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

# What XML cannot have at all, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Elements without content.
_VOID = {"meta", "br", "hr", "col", "path", "line", "rect", "circle"}


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Anything as markup that shows it."""
    return value if isinstance(value, Markup) else Markup(escape(_NOT_XML.sub("�", str(value)), quote=True))


def el(tag: str, /, *children: object, **attributes: Any) -> Markup:
    """An element. `class_` is class, other underscores are hyphens; None is left out, a number has two places at most.

    `children` that are None or "" are nothing.
    """
    parts = []
    for name, value in attributes.items():
        if value is not None:
            shown = _short(value) if isinstance(value, float) else value
            parts.append(f' {name.rstrip("_").replace("_", "-")}="{escape(_NOT_XML.sub("�", str(shown)), quote=True)}"')
    if tag in _VOID:
        return Markup(f"<{tag}{''.join(parts)}/>")
    return Markup(f"<{tag}{''.join(parts)}>{together(*children)}</{tag}>")


def together(*children: object) -> Markup:
    """Elements and texts one after the other."""
    return Markup("".join(text(child) for child in children if child is not None))


def path(points: list[tuple[float, float]], *, closed: bool = False) -> str:
    """The `d` of a path through points."""
    line = "L".join(f"{_short(x)} {_short(y)}" for x, y in points)
    return f"M{line}{'Z' if closed else ''}" if points else ""


def _short(value: float) -> str:
    shown = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if shown == "-0" else shown
