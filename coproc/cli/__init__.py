"""The command line, `coprocessor`. Each command is one file of this folder."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["main"]


def application() -> Any:
    """The command with all its subcommands, as typer builds it."""
    import typer

    from coproc.cli.base import DEBUG_VARIABLE, PROGRAM
    from coproc.cli.bench import bench
    from coproc.cli.compare import compare
    from coproc.cli.fs import application as fs
    from coproc.cli.serve import serve
    from coproc.cli.status import status
    from coproc.cli.train import train

    app = typer.Typer(
        name=PROGRAM,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None if os.environ.get("NO_COLOR") else "rich",
        help="A parameter coprocessor for Spark: workers compute gradients, a memory tier stores the model "
        "and applies descent to it.",
    )

    def show_version(asked: bool) -> None:
        if asked:
            from coproc import __version__

            typer.echo(f"coproc {__version__}")
            raise typer.Exit

    def show_tracebacks(asked: bool) -> None:
        if asked:
            os.environ[DEBUG_VARIABLE] = "1"

    @app.callback()
    def common(
        version: bool = typer.Option(
            False, "--version", is_eager=True, callback=show_version, help="Show the version."
        ),
        debug: bool = typer.Option(
            False, "--debug", callback=show_tracebacks, help="Failures show their traceback; after a command as well."
        ),
    ) -> None:
        pass

    for command in (train, compare, serve, status, bench):
        app.command()(command)
    app.add_typer(fs())
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with 0, 1 for a failure, 2 for a wrong command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        print(f"error: the commands need {error.name}: pip install 'coproc[cli]'", file=sys.stderr)
        sys.exit(1)
    from coproc.cli.base import PROGRAM

    if "--debug" in given:
        # It belongs before the command, but is thought of once the command has failed, and added at the end.
        given = ["--debug", *(each for each in given if each != "--debug")]
    application()(given, prog_name=PROGRAM)
