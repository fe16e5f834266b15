"""`coprocessor serve`: one server of the memory tier, with its coprocessor."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from coproc.cli.base import PROGRAM, in_sentences, parse_size, token_from_environment, usage_error, warn


@in_sentences
def serve(
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Its memory, on tmpfs; outlives it (default: one below /dev/shm a user)."),
    ] = None,
    host: Annotated[str, typer.Option(help="Interface; others than loopback need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    memory: Annotated[str | None, typer.Option(help="Budget, as 4g (default: 0.8 of what is free).")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients must show; or COPROC_TOKEN.")
    ] = None,
    wipe: Annotated[bool, typer.Option("--wipe", help="Begin empty.")] = False,
    tls_certificate: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key, PEM.")] = None,
    tls_authority: Annotated[Path | None, typer.Option(help="Whom to trust among servers, PEM.")] = None,
    catalog: Annotated[
        str | None,
        typer.Option(
            envvar="COPROC_CATALOG",
            help="URL of the catalog that all servers share, as postgresql+psycopg://USER@HOST/NAME "
            "(default: an SQLite file in the server's directory).",
        ),
    ] = None,
    spill: Annotated[
        Path | None, typer.Option(help="A folder on disk for what has no room in memory (default: none).")
    ] = None,
    spill_size: Annotated[str | None, typer.Option(help="The most kept there, as 100g (default: all it has).")] = None,
    line_port: Annotated[
        int, typer.Option(help="Second port, for bytes and small calls; 0 takes a free one. Without it gRPC is used.")
    ] = 0,
    advertise: Annotated[
        str | None, typer.Option(help="Host by which other servers reach this one (default: --host).")
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Prints `ready coproc://HOST:PORT` when it does."""
    from coproc.errors import ConfigError
    from coproc.server.main import ServeConfig, default_directory
    from coproc.server.main import serve as serve_until_stopped

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    token = token_file.read_text().strip() if token_file else token_from_environment()
    place = directory or default_directory()
    budget_bytes = None if memory is None else parse_size(memory)
    try:
        config = ServeConfig(
            directory=place,
            host=host,
            port=port,
            memory_bytes=budget_bytes,
            token=token or None,
            wipe=wipe,
            certificate=tls_certificate,
            key=tls_key,
            authority=tls_authority,
            catalog=catalog,
            spill=spill,
            spill_bytes=None if spill_size is None else parse_size(spill_size),
            line_port=line_port,
            advertise=advertise,
        )
    except ConfigError as error:
        usage_error(str(error))
    kind = file_system(place)
    if kind not in ("tmpfs", "ramfs", None):
        warn(
            f"{place} is on {kind}, not on tmpfs: gradients and parameters will be written to its disk; "
            f"{default_directory()} would be in memory"
        )
    serve_until_stopped(config)
    again = PROGRAM + (" serve" if directory is None else f" serve --dir {shlex.quote(str(directory))}")
    print(
        f"stopped; models and data stay in {place}: `{again}` goes on with them, with --wipe it begins empty "
        "(so does removing the directory)",
        file=sys.stderr,
        flush=True,
    )


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The kind of file system (tmpfs, ext4, …) where `path` is or would be; None where there is no such list."""
    if not mounts.exists():
        return None
    where, kind, found = path.resolve(), None, -1
    for line in mounts.read_text(errors="surrogateescape").splitlines():
        # Fields, as many optional ones as there are, a dash, then the kind. Blanks in paths are written \040.
        mount, _, source = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount.split()[4]))
        # Of two mounts at one point the later one hides the earlier.
        if where.is_relative_to(point) and len(point.parts) >= found:
            kind, found = source.split()[0], len(point.parts)
    return kind
