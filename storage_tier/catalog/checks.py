"""What arguments and what is there have to be for a change of the namespace: each check raises, or does nothing."""

from __future__ import annotations

from typing import get_args

from storage_tier.catalog.entries import Found, Persisted, Place
from storage_tier.catalog.errors import (
    MountConflict,
    PathExists,
    PathIsDirectory,
    PathNotDirectory,
    VersionConflict,
)
from storage_tier.errors import InvalidRequest

MAX_ID_BYTES = 255

_INT64 = range(1 << 63)


def check_block(path: str, block_id: str | None, size_bytes: int) -> None:
    if size_bytes not in _INT64:
        raise InvalidRequest(f"{path}: a file cannot have {size_bytes!r:.40} bytes")
    if block_id is None:
        if size_bytes:
            raise InvalidRequest(f"{path}: {size_bytes:,} bytes need a block, and none was named")
        return
    check_id(block_id, "block")


def check_id(text: str, of: str) -> None:
    """Refuse an id that a database would refuse, or cut.

    Raises:
        InvalidRequest: not a string of 1 to 255 ASCII characters without control characters.
    """
    if not isinstance(text, str) or not (0 < len(text) <= MAX_ID_BYTES and text.isascii() and text.isprintable()):
        raise InvalidRequest(
            f"the id of a {of} is 1 to {MAX_ID_BYTES} printable ASCII characters, and {text!r:.80} is not"
        )


def check_persisted(persisted: str) -> None:
    if persisted not in get_args(Persisted):
        raise InvalidRequest(f"persisted is one of {', '.join(get_args(Persisted))}, and {persisted!r:.40} was given")


def check_time(expires_ns: int | None) -> None:
    if expires_ns is not None and expires_ns not in _INT64:
        raise InvalidRequest(f"a file cannot expire at {expires_ns!r:.40} ns since 1970")


def check_version(path: str, found: Found | None, expected: int | None) -> None:
    version = 0 if found is None else found.version
    if expected is not None and expected != version:
        there = f"{path} has version {version}" if version else f"there is no file at {path} (version 0)"
        raise VersionConflict(f"{there}, and version {expected} was expected: read it again")


def check_mounts(source: Place, target: Place) -> None:
    for place in (source, target):
        if place.found is not None and place.found.kind == "mount":
            raise MountConflict(f"{place.path} is a mount point: it can be neither moved nor replaced, only unmounted")
    if source.mount_id() != target.mount_id():
        raise MountConflict(
            f"{source.path} and {target.path} are not below the same mount point, so their bytes belong to different "
            "under-stores: copy, then remove"
        )


def check_kinds(moved: Found, replaced: Found, source: str, target: str, overwrite: bool) -> None:
    if not overwrite:
        raise PathExists(f"there is a {replaced.kind} at {target} already")
    if replaced.kind != "file" and moved.kind == "file":
        raise PathIsDirectory(f"{target} is a directory, and the file {source} cannot take its place")
    if replaced.kind == "file" and moved.kind != "file":
        raise PathNotDirectory(f"{target} is a file, and the directory {source} cannot take its place")
