"""What an observer's process answers, checked: it may be anything at all. Pure but for sealing a descriptor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from storage_tier.errors import InvalidRequest, TierError
from storage_tier.headers import clean_metadata, clean_path
from storage_tier.observers.base import FileInfo, OnFailure
from storage_tier.observers.files import OpenedFile
from storage_tier.observers.frames import Header
from storage_tier.observers.sealed import seal

HOOKS = {"pre_commit", "post_commit", "resolve", "list_virtual"}
MAX_LISTED_COUNT = 1000
MAX_TEXT_CHARACTERS = 20_000


class BadAnswer(Exception):
    """An answer that no observer gives."""


def clean_text(text: object) -> str:
    """Text of an observer as it can be sent on: bounded, and UTF-8."""
    return str(text)[:MAX_TEXT_CHARACTERS].encode(errors="replace").decode()


def started(found: Header) -> tuple[tuple[str, ...], OnFailure]:
    """Of 'start': the hooks that it has, and what becomes of files while it does not work.

    Raises:
        InvalidRequest: it refused its parameters or its directory. BadAnswer.
    """
    if "refused" in found:
        raise InvalidRequest(clean_text(found["refused"]))
    hooks, on_failure = found.get("hooks"), found.get("on_failure")
    if not isinstance(hooks, list) or not all(hook in HOOKS for hook in hooks):
        raise BadAnswer(f"its hooks are {hooks!r:.80}")
    if on_failure != "open" and on_failure != "closed":
        raise BadAnswer(f"its on_failure is {on_failure!r:.40}, and it is 'open' or 'closed'")
    return tuple(hooks), on_failure


def veto(found: Header) -> str | None:
    """Of 'pre_commit': why the file is refused, or None.

    Raises:
        BadAnswer.
    """
    sentence = found.get("veto", False)  # an answer without one is none
    if sentence is not None and not isinstance(sentence, str):
        raise BadAnswer(f"a veto that is {sentence!r:.80}")
    return None if sentence is None else clean_text(sentence)


def resolved(path: str, found: Header, received: Sequence[int]) -> OpenedFile | None:
    """Of 'resolve': the file, whose descriptor is the one that was received, or None.

    Raises:
        BadAnswer.
    """
    if found.get("found") is False and not received:
        return None
    version = found.get("version")
    if len(received) != 1 or not isinstance(version, int):
        raise BadAnswer("a virtual file has one descriptor and a number for its version")
    try:
        info = FileInfo(path, version, seal(received[0]), clean_metadata(found.get("metadata")))
    except TierError as error:
        raise BadAnswer(str(error)) from None
    return OpenedFile(info, received[0])


def listed(directory: str, found: Header) -> list[FileInfo]:
    """Of 'list_virtual': files directly in the directory.

    Raises:
        BadAnswer.
    """
    files = found.get("files")
    if not isinstance(files, list) or len(files) > MAX_LISTED_COUNT:
        raise BadAnswer(f"a list of at most {MAX_LISTED_COUNT:,} virtual files was expected, and not {files!r:.40}")
    prefix = directory.rstrip("/") + "/"
    infos: list[FileInfo] = []
    for file in files:
        try:
            info = FileInfo(clean_path(file["path"]), int(file["version"]), int(file["size_bytes"]))
            infos.append(replace(info, metadata=clean_metadata(file["metadata"])))
        except (TierError, TypeError, KeyError, ValueError) as error:
            raise BadAnswer(f"a virtual file of it cannot be: {error}") from None
        name = info.path.removeprefix(prefix)
        if name == info.path or "/" in name or info.size_bytes < 0:
            raise BadAnswer(f"{info.path:.80} is not directly in {directory}, or has {info.size_bytes} bytes")
    return infos
