"""`coprocessor fs`: the files of a tier, as files are handled everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable

import typer

from coproc.cli.fs_blocks import explain, free, persist, pin, unpin
from coproc.cli.fs_names import cp, find, ls, mkdir, mv, rm, stat
from coproc.cli.fs_places import attach, detach, mount, mounts, observers, unmount
from coproc.cli.fs_transfer import cat, get, put

_LOOK, _CHANGE, _BYTES, _PLACES = "Look", "Change", "Where bytes are", "Under-stores and observers"

COMMANDS: list[tuple[str, list[Callable[..., None]]]] = [
    (_LOOK, [ls, cat, stat, find]),
    (_CHANGE, [get, put, cp, mv, rm, mkdir]),
    (_BYTES, [explain, pin, unpin, persist, free]),
    (_PLACES, [mount, unmount, mounts, attach, detach, observers]),
]


def application() -> typer.Typer:
    """The command `fs` with all its subcommands."""
    app = typer.Typer(
        name="fs",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None if os.environ.get("NO_COLOR") else "rich",
        help="List, read, write and watch the files of a tier. Its servers: --address, or COPROC_ADDRESS.",
    )
    for panel, commands in COMMANDS:
        for command in commands:
            app.command(rich_help_panel=panel)(command)
    return app
