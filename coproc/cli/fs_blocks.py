"""`coprocessor fs pin | unpin | persist | free | explain`: where bytes are, and where they stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coproc.cli.base import in_sentences
from coproc.cli.fs_options import (
    TIMEOUT_S,
    Address,
    AsJson,
    Authority,
    InBytes,
    Paths,
    Recursive,
    Token,
    files_of,
    for_each,
    open_client,
    tier_path,
)
from coproc.cli.fs_text import as_json as json_text
from coproc.cli.fs_text import explain_text, to_json
from storage_tier.errors import PathIsDirectory

if TYPE_CHECKING:
    from storage_tier.client import TierClient


@in_sentences
def pin(
    paths: Paths,
    recursive: Recursive = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Never evict the bytes of files, until unpin.

    Example: coprocessor fs pin /models/mine/weights.bin
    """
    _on_files(paths, recursive, address, token, tls_authority, lambda client, path: client.pin(path))


@in_sentences
def unpin(
    paths: Paths,
    recursive: Recursive = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Let the bytes of files be evicted again when room is needed and nothing is lost by it.

    Example: coprocessor fs unpin -r /models/mine
    """
    _on_files(paths, recursive, address, token, tls_authority, lambda client, path: client.unpin(path))


@in_sentences
def persist(
    paths: Paths,
    recursive: Recursive = False,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait for each.", min=0.001)] = TIMEOUT_S,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Write files to the under-store of their mount; returns when it has them.

    Example: coprocessor fs persist -r /bucket/results
    """
    _on_files(
        paths, recursive, address, token, tls_authority, lambda client, path: client.persist(path, timeout_s=timeout)
    )


@in_sentences
def free(
    paths: Paths,
    recursive: Recursive = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Drop a server's copy of bytes that are elsewhere too. Nothing is lost: the next read brings them back.

    Example: coprocessor fs free -r /bucket/results
    """
    _on_files(paths, recursive, address, token, tls_authority, lambda client, path: client.free(path))


@in_sentences
def explain(
    paths: Paths,
    as_json: AsJson = False,
    in_bytes: InBytes = False,
    address: Address = None,
    token: Token = None,
    tls_authority: Authority = None,
) -> None:
    """Say where the bytes of files are, which way a read takes (mapped, peer, under-store), and why no better one.

    Example: coprocessor fs explain /bucket/results/part-0.parquet
    """
    shown: list[object] = []
    with open_client(address, token, tls_authority) as client:

        def one(path: str) -> None:
            found = client.explain(tier_path(path))
            near = client.near
            if not as_json:
                text = explain_text(found, peer=client.peer, near=near, exact=in_bytes)
                typer.echo(("\n" if shown else "") + text)
            shown.append({**to_json(found), "asked": client.peer, "near": near})

        try:
            for_each(paths, one)
        finally:
            if as_json:
                typer.echo(json_text(shown))


def _on_files(
    paths: list[str],
    recursive: bool,
    address: str | None,
    token: str | None,
    tls_authority: Path | None,
    act: Callable[[TierClient, str], object],
) -> None:
    with open_client(address, token, tls_authority) as client:

        def on_file(path: str) -> None:
            try:
                act(client, path)
            except PathIsDirectory as error:
                raise PathIsDirectory(f"{error}; -r takes all files below it") from None

        def one(path: str) -> None:
            for_each(files_of(client, tier_path(path), recursive), on_file)

        for_each(paths, one)
