"""`coprocessor fs cat | get | put`: bytes between the tier and this host, in pieces; '-' is a stream."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from coproc.cli.base import in_sentences, usage_error, warn
from coproc.cli.fs_bytes import Source, fetch_file, publish_file, publish_stream, receive, write_all
from coproc.cli.fs_names import require_place, require_recursive
from coproc.cli.fs_options import (
    Address,
    Authority,
    Force,
    Paths,
    Recursive,
    Token,
    below,
    for_each,
    name_of,
    naming_force,
    open_client,
    settings,
    tier_path,
    within,
)

if TYPE_CHECKING:
    from storage_tier.client import TierClient

WRITE_TYPES = ("must_cache", "cache_through", "async_through", "through")
STREAM = "-"


@in_sentences
def cat(paths: Paths, address: Address = None, token: Token = None, tls_authority: Authority = None) -> None:
    """Write files to standard output, one after the other.

    Example: coprocessor fs cat /models/line/spec.json
    """
    with open_client(address, token, tls_authority) as client:
        for_each(paths, lambda path: receive(client, tier_path(path), _to_stdout))


@in_sentences
def get(
    sources: Annotated[list[str], typer.Argument(metavar="PATH")],
    target: Annotated[str, typer.Argument(metavar="LOCAL", help="'-' is standard output.")],
    recursive: Recursive = False,
    force: Force = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Write files to this host. A local file appears when it is whole; a file that is there stays, but for -f.

    Example: coprocessor fs get -r /runs/today ./today
    """
    with open_client(address, token, tls_authority) as client:
        if target == STREAM:
            for_each(sources, lambda path: receive(client, tier_path(path), _to_stdout))
            return
        if len(sources) > 1 and not os.path.isdir(target):
            usage_error(f"{len(sources)} sources need a folder to go into, and {target!r:.200} is none")

        def one(path: str) -> None:
            source = tier_path(path)
            to = Path(target)
            if name_of(source) and (target.endswith("/") or to.is_dir()):
                to = to / name_of(source)
            if client.stat(source).kind != "file":
                require_recursive(source, recursive)
                _fetch_below(client, source, to, force)
                return
            if target.endswith("/"):
                to.parent.mkdir(parents=True, exist_ok=True)
            fetch_file(client, source, to, replace=force)

        for_each(sources, one)


@in_sentences
def put(
    sources: Annotated[list[str], typer.Argument(metavar="LOCAL", help="'-' is standard input.")],
    target: Annotated[str, typer.Argument(metavar="PATH")],
    recursive: Recursive = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Over what is there, as its next version.")] = False,
    expect: Annotated[
        int | None, typer.Option("--expect-version", help="Only over this version; 0: only where none is.", min=0)
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", help="NAME=VALUE, attached to the file; repeated.")
    ] = None,
    ttl: Annotated[float | None, typer.Option("--ttl", help="Remove it after so many seconds.")] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Never evict its bytes.")] = False,
    write_type: Annotated[
        str | None, typer.Option("--write-type", help=f"{', '.join(WRITE_TYPES)} (default: as its mount).")
    ] = None,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Publish local files in the tier: each whole or not at all. Directories above are made.

    Example: coprocessor fs put model.bin /runs/; or: tar c run | coprocessor fs put - /runs/run.tar
    """
    if write_type is not None and write_type not in WRITE_TYPES:
        usage_error(f"--write-type is one of {', '.join(WRITE_TYPES)}, not {write_type!r:.100}")
    if expect is not None and (recursive or len(sources) > 1):
        usage_error("--expect-version is of one file")
    options: dict[str, Any] = {
        "metadata": settings(metadata, "--metadata") or None,
        "overwrite": force,
        "expected_version": expect,
        "ttl_s": ttl,
        "pinned": True if pin else None,
        "write_type": write_type,
    }
    with open_client(address, token, tls_authority) as client:
        require_place(client, sources, target)

        def publish(source: Path | None, path: str) -> None:
            with naming_force(force or expect is not None):
                if source is None:
                    publish_stream(client, _standard_input(), path, options)
                else:
                    publish_file(client, source, path, options)

        def one(source: str) -> None:
            if source == STREAM:
                publish(None, tier_path(target))
                return
            local = Path(source)
            to = within(client, target, local.resolve().name if local.name in ("", "..") else local.name)
            if not local.is_dir():
                publish(local, to)
                return
            if not recursive:
                raise IsADirectoryError(errno.EISDIR, "a folder, which -r takes with all below it", source)
            client.make_directory(to)
            for found, inside in _files_below(local):
                there = f"{to.rstrip('/')}/{inside}"
                if found.is_dir():
                    client.make_directory(there)
                else:
                    publish(found, there)

        for_each(sources, one)


def _standard_input() -> Source:
    """Without Python's buffer: that one goes on reading after a Ctrl-C that came between two reads."""
    return cast(Source, getattr(sys.stdin.buffer, "raw", sys.stdin.buffer))


def _to_stdout(piece: memoryview) -> None:
    # Past Python's buffer, which PYTHONUNBUFFERED takes away: then a `write` of it may write a part only.
    write_all(sys.stdout.fileno(), piece)


def _fetch_below(client: TierClient, source: str, target: Path, force: bool) -> None:
    """A directory with all below it: each file whole or not at all, one after the other."""
    target.mkdir(parents=True, exist_ok=True)
    for found in client.find(source):
        to = target / below(found, source)
        if found.kind == "file":
            fetch_file(client, found.path, to, replace=force)
        else:
            to.mkdir(exist_ok=True)


def _files_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """All below a folder, with its path from there, each folder before what is in it. Links to folders are left out."""

    def fail(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=fail):
        folders.sort()
        for name in [*folders, *sorted(files)]:
            found = Path(root, name)
            if found.is_symlink() and found.is_dir():
                warn(f"{found} is a link to a folder, and is left out")
            elif found.is_dir() or found.is_file():
                yield found, found.relative_to(folder).as_posix()
            else:
                warn(f"{found} is neither a file nor a folder, and is left out")
