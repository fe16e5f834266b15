"""What changes of the namespace take and give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from storage_tier.catalog.entries import Entry, Metadata, Persisted, Released


class Keep:
    """The type of `KEEP`."""


KEEP: Final = Keep()
"""Leave it as it is."""


@dataclass(frozen=True)
class NewFile:
    """One file of `commit_all`: the arguments of `commit`."""

    path: str
    block_id: str | None
    size_bytes: int
    metadata: Metadata | None = None
    exclusive: bool = False
    expected_version: int | None = None
    parents: bool = False
    persisted: Persisted = "not_needed"
    pinned: bool | Keep = KEEP
    expires_ns: int | None = None
    server_ids: Sequence[str] | None = None
    origin: tuple[str, ...] = ()
    stamp: str | None = None
    loaded: bool = False


class Changed(NamedTuple):
    """What a commit, copy or rename has done."""

    entry: Entry
    """What is at the path now."""
    released: tuple[Released, ...]
    """The blocks that no entry names since then."""
