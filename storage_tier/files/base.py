"""What the file layer of a server takes and gives: options, reservations, places, explanations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from storage_tier.catalog.entries import Entry, Metadata
from storage_tier.headers import BlockInfo
from storage_tier.observers.base import Origin
from storage_tier.under.persister import PersisterStatus
from storage_tier.under.store import UnderStatus
from storage_tier.under.write_type import WriteType

# How long a call may take that names no limit of its own.
DEFAULT_TIMEOUT_S = 60.0

Route = Literal["mapped", "peer", "under-store", "virtual", "nowhere"]
Level = Literal["memory", "disk"]


@dataclass(frozen=True)
class CommitOptions:
    """How a file is committed. The defaults replace what is there."""

    exclusive: bool = False
    """Only where nothing is."""
    expected_version: int | None = None
    """Only over this version; 0: only where there is no file."""
    parents: bool = True
    """Make directories that are missing above it."""
    metadata: Metadata | None = None
    """Strings, numbers, bools and None by name."""
    ttl_s: float | None = None
    """Remove it after so many seconds; None never."""
    pinned: bool | None = None
    """None: as the version before, and not for a new file."""
    write_type: WriteType | None = None
    """None: that of the mount it is below, else `must_cache`."""
    origin: Origin = ()
    """The observers by whose work it came to be; empty for anybody else's."""


@dataclass(frozen=True)
class FilesOptions:
    """How the file layer of a server works; each default has its reason."""

    heartbeat_s: float = 1.0
    """Some members a second are no load for a catalog."""
    dead_after_s: float = 10.0
    """A server silent for so long is not asked any more; a busy host pauses for seconds."""
    retire_after_s: float = 600.0
    """A server silent for so long counts as gone: nobody waits for its copies any more. If it comes back it is refused
    until it is started anew, and has its blocks again then."""
    watch_s: float = 0.25
    """How soon mounts and observers made through another server are known here, and its released blocks freed."""
    retry_s: float = 5.0
    """How often files that wait to be persisted are looked for, beside those submitted at their commit."""
    sweep_s: float = 60.0
    """How often block files that nobody knows are looked for; younger ones are somebody's at work."""
    under_timeout_s: float = 60.0
    """The longest time without progress of an under-store."""
    close_timeout_s: float = 10.0
    """What `close` gives to uploads and observers."""
    early_check_bytes: int = 1 << 20
    """From here on `create` looks whether the commit would be refused, before bytes are written for nothing."""
    reservation_ttl_s: float = 60.0
    """From `create` to `commit`."""


@dataclass(frozen=True)
class Reservation:
    """Memory set aside for a file's block, which a process of this host writes and links by itself.

    With `BlockWriter(directory, block_path)`, nothing in its header's metadata; then `Files.commit(id)`.
    """

    id: str
    path: str
    """Of the file."""
    block_id: str
    block_path: str
    """What the block has to be linked as."""
    directory: Path
    file_bytes: int
    ttl_s: float


@dataclass(frozen=True)
class Located:
    """Where the bytes of one version of a file are, at this moment."""

    entry: Entry
    block_path: str | None
    """The block's name at every server; None of an empty file without a block."""
    file: Path | None
    """The block's file on this host, to be mapped; None when it is not here."""
    offset_bytes: int
    """Where in `file` the bytes begin."""
    addresses: tuple[str, ...]
    """Of the other servers that have it and were heard of lately; not looked for when it is here."""


@dataclass(frozen=True)
class Holder:
    """A server that has a block."""

    server_id: str
    address: str
    here: bool
    silent_s: float
    """How long ago it was heard of; inf: it is not a member any more."""
    level: Level | None
    """Where, of this server; None of others."""


@dataclass(frozen=True)
class Explanation:
    """Where a file's bytes are, which way a read from this server would take, and why no better one."""

    path: str
    entry: Entry | None
    """None: there is nothing, or only the under-store or an observer has it."""
    route: Route
    """What `ensure_local` would do now: nothing ('mapped'), fetch, load, or fail."""
    holders: tuple[Holder, ...]
    under_url: str | None
    """Of the mount that it is below."""
    sentences: tuple[str, ...]
    """For people: where it is, why it is not nearer, what keeps it from being evicted or persisted."""


@dataclass(frozen=True)
class MountStatus:
    """A mount point as status and listings show it, without secrets."""

    path: str
    url: str
    write_type: WriteType
    under: UnderStatus | None
    """None until it was first used by this server."""


@dataclass(frozen=True)
class FilesStatus:
    """What the file layer of a server is doing at one moment."""

    server_id: str
    address: str
    catalog_revision: int
    members: tuple[Holder, ...]
    failure: str
    """Why this server can change nothing any more (fenced), or what its upkeep failed with; '' when all is well."""
    evicted_count: int
    spilled_count: int
    spilled_bytes: int
    fetched_count: int
    """Blocks that came from peers."""
    loaded_count: int
    """Blocks that came from under-stores."""
    persister: PersisterStatus
    mounts: tuple[MountStatus, ...]
    attachments: tuple[Mapping[str, Any], ...] = field(default=())
    """Each observer's state by name, as JSON can hold it."""


def new_block_id() -> str:
    """An id that was never given before."""
    return os.urandom(16).hex()


def block_path_of(block_id: str) -> str:
    """The name of a block at every server."""
    return f"/{block_id[:2]}/{block_id}"


def block_id_of(block_path: str) -> str | None:
    """The inverse; None for a name that is no file's block."""
    block_id = block_path.rpartition("/")[2]
    if len(block_id) != 32 or block_path != block_path_of(block_id) or not set(block_id) <= _HEX:
        return None
    return block_id


_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class LocalBlock:
    """A block's file on this host."""

    info: BlockInfo
    file: Path
    level: Level
