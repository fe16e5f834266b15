"""A path of the namespace: absolute, one form. Pure."""

from __future__ import annotations

import re

from storage_tier.errors import InvalidPath

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4096

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def split(path: str) -> tuple[str, ...]:
    """The names of a path, outermost first: '/a/b' is ('a', 'b'), and '/' is ().

    Raises:
        InvalidPath: not absolute, '.' or '..' or an empty name in it (a slash at the end makes one), NUL or
            another control character, not UTF-8, a name over 255 bytes, more than 4096 bytes in all.
    """
    if not isinstance(path, str):
        raise InvalidPath(f"a path must be a string like '/runs/a/00003', and {path!r:.100} was given")
    if not path.startswith("/"):
        raise InvalidPath(f"{_show(path)} does not begin with a slash: a path looks like '/runs/a/00003'")
    if path == "/":
        return ()
    names = tuple(path[1:].split("/"))
    if "" in names or "." in names or ".." in names:
        wrong = next(name for name in names if name in ("", ".", ".."))
        what = f"the name {wrong!r}" if wrong else "an empty name"
        raise InvalidPath(f"{_show(path)} has {what} in it: a path looks like '/runs/a/00003'")
    if _CONTROL.search(path):
        raise InvalidPath(f"{_show(path)} has a control character: they are not allowed in paths")
    try:
        path_bytes = len(path.encode())
    except UnicodeEncodeError:
        raise InvalidPath(f"{_show(path)} cannot be written as UTF-8") from None
    if path_bytes > MAX_PATH_BYTES:
        raise InvalidPath(f"{_show(path)} has {path_bytes:,} bytes, and {MAX_PATH_BYTES:,} are allowed in a path")
    if path_bytes > MAX_NAME_BYTES:  # else no name can be that long
        longest_bytes = max(len(name.encode()) for name in names)
        if longest_bytes > MAX_NAME_BYTES:
            raise InvalidPath(f"{_show(path)} has a name of {longest_bytes:,} bytes, and {MAX_NAME_BYTES} are allowed")
    return names


def join(names: tuple[str, ...]) -> str:
    """The inverse of `split`."""
    return "/" + "/".join(names)


def child(directory: str, name: str) -> str:
    """The path of an entry of a directory."""
    return f"{directory}/{name}" if directory != "/" else f"/{name}"


def _show(path: str) -> str:
    shown = repr(path)
    return shown if len(shown) <= 100 else shown[:97] + "..."
