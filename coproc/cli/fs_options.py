"""What all commands of `coprocessor fs` share: where the servers are, paths, settings as NAME=VALUE, many paths."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from coproc.cli.base import (
    ADDRESS_VARIABLE,
    TOKEN_VARIABLE,
    debugging,
    require_address,
    say_error,
    sentence,
    token_from_environment,
    usage_error,
)
from storage_tier.errors import DeadlineExceeded, PathExists, TierError, Unauthenticated, Unreachable

if TYPE_CHECKING:
    from storage_tier.client import TierClient
    from storage_tier.file_info import FileInfo

T = TypeVar("T")

AUTHORITY_VARIABLE = "COPROC_TLS_AUTHORITY"

Address = Annotated[
    str | None,
    typer.Option(
        "--address", envvar=ADDRESS_VARIABLE, show_envvar=False, help=f"coproc://HOST:PORT[,…]; or {ADDRESS_VARIABLE}."
    ),
]
Token = Annotated[str | None, typer.Option("--token", help="Better in COPROC_TOKEN.")]
Authority = Annotated[
    Path | None,
    typer.Option(
        "--tls-authority",
        envvar=AUTHORITY_VARIABLE,
        show_envvar=False,
        help=f"Whom to trust, PEM, where servers speak TLS; or {AUTHORITY_VARIABLE}.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
InBytes = Annotated[bool, typer.Option("--bytes", help="Exact sizes.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="All files below directories, too.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace what is there.")]
Paths = Annotated[list[str], typer.Argument(metavar="PATH")]

# One round trip, generously; what moves bytes gets more by their number.
TIMEOUT_S = 60.0
_SLOWEST_BYTES_PER_S = 1e6


def timeout_s(size_bytes: int = 0) -> float:
    """How long a call may take that moves so many bytes: a slow line is no failure, a stuck one is."""
    return TIMEOUT_S + size_bytes / _SLOWEST_BYTES_PER_S


@contextlib.contextmanager
def open_client(address: str | None, token: str | None, tls_authority: Path | None) -> Iterator[TierClient]:
    """A client of the servers that were named, on the command line or by the environment. Does no I/O."""
    from storage_tier.client import TierClient
    from storage_tier.wire import TlsClient

    if not address:
        usage_error(f"where are the servers? Give --address coproc://HOST:PORT, or set {ADDRESS_VARIABLE}")
    require_address(address)
    tls = None if tls_authority is None else TlsClient(tls_authority)
    with TierClient(address, token=token or token_from_environment(), tls=tls) as client:
        try:
            yield client
        except Unauthenticated as error:
            raise Unauthenticated(f"{error}; give the right one in {TOKEN_VARIABLE}, or with --token") from error


def tier_path(text: str) -> str:
    """The one form of a path. An empty one is refused: as a rule it is a variable of a shell that is not set.

    Raises:
        InvalidPath.
    """
    from storage_tier.client.verbs import whole_path

    if not text:
        usage_error("a path is empty; the root is '/'")
    if "://" in text:
        usage_error(f"a path looks like '/runs/a/00003', not {text!r:.200}; the servers are named by --address")
    return whole_path(text)


def name_of(path: str) -> str:
    """The last name of a path; '' of the root."""
    return path.rpartition("/")[2]


def within(client: TierClient, target: str, name: str) -> str:
    """Where something called `name` goes: into the target when that is a directory or ends in a slash, else onto it."""
    path = tier_path(target)
    if name and (target.endswith("/") or is_directory(client, path)):
        return f"{path.rstrip('/')}/{name}"
    return path


def is_directory(client: TierClient, path: str) -> bool:
    """Whether a directory or a mount point is there. Nothing there is no error."""
    from storage_tier.errors import PathNotDirectory, PathNotFound

    try:
        return client.stat(path).is_directory
    except (PathNotFound, PathNotDirectory):
        return False


def files_of(client: TierClient, path: str, recursive: bool) -> Iterator[str]:
    """The path itself, or with `recursive` and a directory there, all files below it."""
    if recursive and is_directory(client, path):
        yield from (found.path for found in client.find(path) if found.kind == "file")
    else:
        yield path


def below(found: FileInfo, root: str) -> str:
    """The part of a found path that is below the directory it was found in.

    Raises:
        ServerFailed: it is not below it; nothing may be written anywhere else for a server's answer.
    """
    from storage_tier.errors import ServerFailed

    prefix = root.rstrip("/") + "/"
    names = found.path.removeprefix(prefix).split("/")
    if not found.path.startswith(prefix) or {"", ".", ".."} & set(names):
        raise ServerFailed(f"the server found {found.path!r:.200} below {root}")
    return "/".join(names)


@contextlib.contextmanager
def naming_force(force: bool) -> Iterator[None]:
    """Who is refused because something is there, is told what replaces it."""
    try:
        yield
    except PathExists as error:
        raise error if force else PathExists(f"{error}; --force puts this over a file") from None


def for_each(items: Iterable[T], act: Callable[[T], object]) -> None:
    """One after the other; a failure is a sentence, the others follow, and the exit status is 1 then.

    What would fail for the others too (no server, a wrong token) ends it at once.
    """
    failed = False
    for item in items:
        try:
            act(item)
        except (Unreachable, Unauthenticated, DeadlineExceeded, BrokenPipeError):
            raise
        except (TierError, OSError) as error:
            if debugging():
                raise
            say_error(sentence(error))
            failed = True
    if failed:
        raise typer.Exit(1)


def settings(texts: list[str] | None, what: str) -> dict[str, Any]:
    """A mapping out of NAME=VALUE; a value that is JSON (a number, true, a list) is that, any other is text."""
    found: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not name or not equals:
            usage_error(f"{what} looks like NAME=VALUE, not {text!r:.100}")
        if name in found:
            usage_error(f"{what} {name!r:.100} was given twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
