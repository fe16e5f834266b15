"""`coproc serve`: one server of the memory tier, with its coprocessor."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from coproc.cli.base import in_sentences, parse_size, token_from_environment


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
) -> None:
    """Serve until SIGTERM or Ctrl-C. Prints `ready coproc://HOST:PORT` when it does."""
    from coproc.server.main import ServeConfig, default_directory
    from coproc.server.main import serve as serve_until_stopped

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    token = token_file.read_text().strip() if token_file else token_from_environment()
    serve_until_stopped(
        ServeConfig(
            directory=directory or default_directory(),
            host=host,
            port=port,
            memory_bytes=None if memory is None else parse_size(memory),
            token=token or None,
            wipe=wipe,
            certificate=tls_certificate,
            key=tls_key,
            authority=tls_authority,
        )
    )
