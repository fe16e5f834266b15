"""`coprocessor bench`: the project's own measurements."""

from __future__ import annotations

from typing import Annotated

import typer

from coproc.cli.base import in_sentences, usage_error


@in_sentences
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Measurements to take; all if none is named."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Raw samples and environment as JSON.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: see that it runs, not how fast.")] = False,
    rounds: Annotated[int | None, typer.Option(help="Samples of each contestant.", min=1)] = None,
    show: Annotated[bool, typer.Option("--list", help="Name the measurements there are.")] = False,
) -> None:
    """Take the project's measurements: contestants interleaved in one run, ratios, raw samples."""
    from coproc import bench as measurements

    if show:
        for name in sorted(measurements.benches()):
            typer.echo(name)
        return
    unknown = sorted(set(names or []) - set(measurements.benches()))
    if unknown:
        usage_error(f"no measurement is called {unknown[0]}; there are: {', '.join(sorted(measurements.benches()))}")
    defaults = measurements.Options()
    options = measurements.Options(quick=quick, rounds=rounds or defaults.rounds)
    results = measurements.run(names or [], options)
    typer.echo(measurements.as_json(results, options) if as_json else measurements.as_text(results))
