"""`coprocessor fs mount | unmount | mounts | attach | detach | observers`: what is hung on directories."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from coproc.cli.base import debugging, in_sentences, say_error, sentence, usage_error
from coproc.cli.fs_options import Address, AsJson, Authority, Token, open_client, settings, tier_path
from coproc.cli.fs_text import as_json as json_text
from coproc.cli.fs_text import attached_text, mounts_text, observers_text
from coproc.cli.fs_transfer import WRITE_TYPES
from storage_tier.errors import ObserverFailed, PathNotFound

Directory = Annotated[str, typer.Argument(metavar="DIRECTORY")]


@in_sentences
def mount(
    path: Annotated[str, typer.Argument(metavar="PATH")],
    url: Annotated[str, typer.Argument(metavar="URL", help="As fsspec has them: file:///data, s3://bucket/prefix.")],
    write_type: Annotated[
        str | None,
        typer.Option("--write-type", help=f"{', '.join(WRITE_TYPES)} (default: async_through)."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="NAME=VALUE for its filesystem; repeated.")
    ] = None,
    options_file: Annotated[
        str | None, typer.Option("--options-file", help="The same as a JSON file, or '-'; for secrets.")
    ] = None,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Make a path the place of an under-store, after a real look at it from the server.

    Write types: must_cache writes to memory only; cache_through to both,
    before it returns; async_through to memory, and soon after to the
    under-store; through to the under-store only.

    Example: coprocessor fs mount /bucket s3://results/2026
    """
    if write_type is not None and write_type not in WRITE_TYPES:
        usage_error(f"--write-type is one of {', '.join(WRITE_TYPES)}, not {write_type!r:.100}")
    options = {**_read_options(options_file), **settings(option, "--option")}
    with open_client(address, token, tls_authority) as client:
        # One of WRITE_TYPES, which the type checker cannot see.
        made = client.mount(tier_path(path), url, options or None, cast(Any, write_type))
    typer.echo(f"{made.path} is {made.url} ({made.write_type})")


@in_sentences
def unmount(
    path: Annotated[str, typer.Argument(metavar="PATH")],
    discard: Annotated[bool, typer.Option("--discard", help="Drop what is only in memory.")] = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Take a mount point away; the under-store keeps what it has.

    Example: coprocessor fs unmount /bucket
    """
    with open_client(address, token, tls_authority) as client:
        client.unmount(tier_path(path), discard=discard)


@in_sentences
def mounts(
    as_json: AsJson = False, address: Address = None, token: Token = None, tls_authority: Authority = None
) -> None:
    """List mount points with their write types and URLs, without secrets.

    Example: coprocessor fs mounts
    """
    with open_client(address, token, tls_authority) as client:
        found = client.mounts()
    text = json_text(found) if as_json else mounts_text(found)
    if text:
        typer.echo(text)


@in_sentences
def attach(
    directory: Directory,
    observer: Annotated[
        str,
        typer.Argument(
            metavar="OBSERVER", help="Its name: validate, average, keep_best, or one installed at the server."
        ),
    ],
    parameters: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Its parameters; values may be JSON.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What it is called there (default: OBSERVER).")] = None,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Hang an observer on a directory; returns when it has started.

    Example: coprocessor fs attach /runs keep_best metric=accuracy keep=3
    """
    with open_client(address, token, tls_authority) as client:
        try:
            made = client.attach(tier_path(directory), observer, settings(parameters, "a parameter"), name)
        except ObserverFailed as error:
            if debugging():
                raise
            _say_with_traceback(str(error))
            raise typer.Exit(1) from None
    typer.echo(f"{made.directory}  {made.name}  {made.state}")


@in_sentences
def detach(
    directory: Directory,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `fs observers` shows it.")],
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Take an observer off a directory.

    Example: coprocessor fs detach /runs keep_best
    """
    with open_client(address, token, tls_authority) as client:
        at = tier_path(directory)
        try:
            client.detach(at, name)
        except PathNotFound as error:
            raise PathNotFound(f"{error}; {attached_text(client.attachments(), at)}") from None


@in_sentences
def observers(
    directory: Annotated[str | None, typer.Argument(metavar="DIRECTORY", help="Only of this one.")] = None,
    traceback: Annotated[bool, typer.Option("--traceback", help="Of their failures, too.")] = False,
    as_json: AsJson = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """List observers: their directories, states, commits, and why one is quarantined.

    Example: coprocessor fs observers --traceback
    """
    with open_client(address, token, tls_authority) as client:
        found = client.attachments()
    if directory is not None:
        wanted = tier_path(directory)
        found = [one for one in found if one.directory == wanted]
    text = json_text(found) if as_json else observers_text(found, traceback=traceback)
    if text:
        typer.echo(text)


def _say_with_traceback(message: str) -> None:
    """A sentence, and below it what the observer printed or where it failed, in lines as it was."""
    said, _, trace = message.partition("\n")
    say_error(said)
    for line in trace.rstrip().splitlines():
        typer.echo(f"    {line}", err=True)


def _read_options(source: str | None) -> dict[str, Any]:
    """Options of a mount from a file or standard input, where nobody else on the host reads them."""
    if source is None:
        return {}
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
        found = json.loads(text)
    except OSError as error:
        usage_error(f"--options-file cannot be read: {sentence(error)}")
    except ValueError as error:
        usage_error(f"--options-file has to be JSON: {error}")
    if not isinstance(found, dict):
        usage_error(f"--options-file has to be one JSON object, not a {type(found).__name__}")
    return found
