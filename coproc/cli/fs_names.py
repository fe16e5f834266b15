"""`coprocessor fs ls | stat | find | mkdir | cp | mv | rm`: names, and what is at them. No byte moves."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Annotated

import typer

from coproc.cli.base import in_sentences, usage_error
from coproc.cli.fs_options import (
    Address,
    AsJson,
    Authority,
    Force,
    InBytes,
    Paths,
    Recursive,
    Token,
    below,
    for_each,
    is_directory,
    name_of,
    naming_force,
    open_client,
    tier_path,
    within,
)
from coproc.cli.fs_text import as_json as json_text
from coproc.cli.fs_text import listing, name, stat_text
from storage_tier.errors import InvalidRequest, PathIsDirectory, PathNotDirectory, PathNotFound

if TYPE_CHECKING:
    from storage_tier.client import TierClient
    from storage_tier.file_info import FileInfo

Sources = Annotated[list[str], typer.Argument(metavar="SOURCE")]
Target = Annotated[str, typer.Argument(metavar="TARGET")]


@in_sentences
def ls(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH")] = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="Flags, version, size and time, too.")] = False,
    as_json: AsJson = False,
    in_bytes: InBytes = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """List directories; the root if none is named.

    Flags of -l: d directory, m mount; p pinned; s safe in the under-store,
    w waiting to be written there; t goes after a time.

    Example: coprocessor fs ls -l /models
    """
    given = paths or ["/"]
    everything: list[FileInfo] = []
    with open_client(address, token, tls_authority) as client:

        def one(path: str) -> None:
            at = tier_path(path)
            try:
                found = client.list(at)
            except PathNotDirectory:
                found = [client.stat(at)]  # a file, or else what this says
            if as_json:
                everything.extend(found)
                return
            if len(given) > 1:
                typer.echo(f"{path}:")
            text = listing(found, exact=in_bytes) if long or in_bytes else "\n".join(map(name, found))
            if text:
                typer.echo(text)

        try:
            for_each(given, one)
        finally:
            if as_json:
                typer.echo(json_text(everything))


@in_sentences
def stat(
    paths: Paths,
    as_json: AsJson = False,
    in_bytes: InBytes = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Show all that is known of files and directories, and which servers hold the bytes.

    Example: coprocessor fs stat --json /models/line/model.safetensors
    """
    found: list[FileInfo] = []
    with open_client(address, token, tls_authority) as client:

        def one(path: str) -> None:
            info = client.stat(tier_path(path), locations=True)
            if not as_json:
                typer.echo(("\n" if found else "") + stat_text(info, exact=in_bytes))
            found.append(info)

        try:
            for_each(paths, one)
        finally:
            if as_json:
                typer.echo(json_text(found))


@in_sentences
def find(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH")] = None,
    pattern: Annotated[str | None, typer.Option("--name", help="Only where the last name is like '*.json'.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Only f (files), d (directories) or m (mounts).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line.")] = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Name all that is below directories, one path a line, as it is found.

    Example: coprocessor fs find /runs --type f --name '*.json'
    """
    kinds = {None: None, "f": "file", "d": "directory", "m": "mount"}
    if kind not in kinds:
        usage_error(f"--type is f, d or m, not {kind!r:.100}")
    with open_client(address, token, tls_authority) as client:

        def one(path: str) -> None:
            at = tier_path(path)
            top = client.stat(at)
            for info in client.find(at) if top.is_directory else iter([top]):
                wanted = kinds[kind] in (None, info.kind)
                if wanted and (pattern is None or fnmatch.fnmatchcase(name_of(info.path), pattern)):
                    typer.echo(json_text(info, indent=None) if as_json else info.path)

        for_each(paths or ["/"], one)


@in_sentences
def mkdir(
    paths: Paths,
    parents: Annotated[
        bool, typer.Option("--parents", "-p", help="What is missing above, too; one may be there.")
    ] = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Make directories.

    Example: coprocessor fs mkdir -p /runs/today
    """
    with open_client(address, token, tls_authority) as client:
        for_each(paths, lambda path: client.make_directory(tier_path(path), parents=parents, exist_ok=parents))


@in_sentences
def cp(
    sources: Sources,
    target: Target,
    recursive: Recursive = False,
    force: Force = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Copy within the tier. The copy names the same bytes: no byte moves.

    Example: coprocessor fs cp -r /runs/today /runs/kept
    """
    with open_client(address, token, tls_authority) as client:
        require_place(client, sources, target)

        def one(path: str) -> None:
            source = tier_path(path)
            to = within(client, target, name_of(source))
            if client.stat(source).kind == "file":
                with naming_force(force):
                    client.copy(source, to, overwrite=force)
                return
            require_recursive(source, recursive)
            if f"{to}/".startswith(f"{source.rstrip('/')}/"):
                raise InvalidRequest(f"{source} cannot be copied into itself, to {to}")
            client.make_directory(to)
            for found in client.find(source):
                copied = f"{to.rstrip('/')}/{below(found, source)}"
                if found.kind == "file":
                    with naming_force(force):
                        client.copy(found.path, copied, overwrite=force)
                else:
                    client.make_directory(copied)

        for_each(sources, one)


@in_sentences
def mv(
    sources: Sources,
    target: Target,
    force: Force = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Rename files and whole directories, each in one act; into TARGET if that is a directory.

    Example: coprocessor fs mv /runs/new /runs/current
    """
    with open_client(address, token, tls_authority) as client:
        require_place(client, sources, target)

        def one(path: str) -> None:
            source = tier_path(path)
            to = within(client, target, name_of(source))
            with naming_force(force):
                client.rename(source, to, overwrite=force)

        for_each(sources, one)


@in_sentences
def rm(
    paths: Paths,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Directories with all below them.")] = False,
    force: Annotated[bool, typer.Option("--force", help="What is not there is no error; and '/' may go.")] = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Remove files, empty directories, and with -r whole ones. Who has a file open keeps its bytes.

    Example: coprocessor fs rm -r /runs/old
    """
    with open_client(address, token, tls_authority) as client:

        def one(path: str) -> None:
            at = tier_path(path)
            if at == "/":
                if not (recursive and force):
                    usage_error("'/' is everything: `rm -r --force /` removes it")
                client.delete_prefix(at)
                return
            try:
                try:
                    client.remove(at)
                except PathIsDirectory:
                    client.remove_directory(at, recursive=recursive)
            except (PathNotFound, PathNotDirectory):
                if not force:
                    raise

        for_each(paths, one)


def require_place(client: TierClient, sources: list[str], target: str) -> None:
    """Several sources go into a directory; a usage error where there is none."""
    if len(sources) > 1 and not is_directory(client, tier_path(target)):
        usage_error(f"{len(sources)} sources need a directory to go into, and {target!r:.200} is none")


def require_recursive(source: str, recursive: bool) -> None:
    """Raise unless a directory was asked for with -r."""
    if not recursive:
        raise PathIsDirectory(f"{source} is a directory: -r takes it with all below it")
