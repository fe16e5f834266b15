"""What the tier tells its clients: of files, of where their bytes are, of mounts and observers. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["file", "directory", "mount"]
Persisted = Literal["not_needed", "waiting", "done"]
WriteTypeName = Literal["must_cache", "cache_through", "async_through", "through"]
Route = Literal["mapped", "peer", "under-store", "virtual", "nowhere"]
FileValue = str | int | float | bool | None
FileMetadata = Mapping[str, FileValue]


@dataclass(frozen=True)
class FileInfo:
    """A file, a directory or a mount point, as it was at one moment."""

    path: str
    kind: Kind
    """A mount is a directory whose files are those of an under-store."""
    version: int
    """Of a file: it grows with each commit of the path; 0 of a directory, and of what only an under-store has."""
    size_bytes: int
    created_ns: int
    """When the first version was committed, in nanoseconds since 1970."""
    modified_ns: int
    """When this version was committed; of a directory, when something in it came or went."""
    metadata: FileMetadata = field(default_factory=dict, hash=False)
    """What the writer attached: strings, numbers, truth values and None by name."""
    pinned: bool = False
    """Its bytes are never evicted."""
    persisted: Persisted = "not_needed"
    """Whether the under-store has these bytes: 'waiting' when it shall."""
    expires_ns: int | None = None
    """When it will be removed, in nanoseconds since 1970."""
    locations: tuple[str, ...] = field(default=(), compare=False)
    """Addresses of the servers that hold the bytes, where that was asked for: by `stat`, not by lists."""

    @property
    def is_directory(self) -> bool:
        """Whether it can hold entries: a directory or a mount point."""
        return self.kind != "file"


@dataclass(frozen=True)
class Holder:
    """A server, as another one sees it."""

    server_id: str
    address: str
    here: bool
    """It is the one that was asked."""
    silent_s: float
    """How long ago it was heard of; inf: it is no member any more."""
    level: str
    """'memory' or 'disk' where it is known, else ''."""


@dataclass(frozen=True)
class Explanation:
    """Where the bytes of a file are, and which way a read takes."""

    path: str
    info: FileInfo | None
    """None: only the under-store or an observer has it, or nobody."""
    block_id: str
    """'' when there is none."""
    route: Route
    """The one that a read from the asked server would take."""
    holders: tuple[Holder, ...]
    """Who has the block."""
    under_url: str
    """Of the mount that it is below, without secrets; '' for none."""
    sentences: tuple[str, ...]
    """Where it is, and why it is not nearer."""


@dataclass(frozen=True)
class FilesStatus:
    """What a server does with files at one moment."""

    server_id: str
    address: str
    catalog_revision: int
    members: tuple[Holder, ...]
    failure: str
    """Why it can change nothing, or what its upkeep last failed with; '' when all is well."""
    evicted_count: int
    spilled_count: int
    spilled_bytes: int
    fetched_count: int
    """Blocks that came from peers."""
    loaded_count: int
    """Blocks that came from under-stores."""
    persister: Mapping[str, Any] = field(hash=False)
    """The queue to the under-stores."""


@dataclass(frozen=True)
class MountInfo:
    """An under-store at a path."""

    path: str
    url: str
    """Without secrets."""
    write_type: WriteTypeName


@dataclass(frozen=True)
class AttachmentInfo:
    """An observer on a directory, and how it fares on the asked server."""

    directory: str
    name: str
    """What it is called there."""
    observer: str
    """Which one it is, in the registry."""
    parameters: Mapping[str, Any] = field(hash=False)
    state: str
    """starting, running, restarting, quarantined or detached."""
    failure: str
    """The last one as a sentence; '' when there was none."""
    traceback: str
    delivered_count: int
    """Commits that it has acknowledged."""
    queued_count: int
    """Commits that wait for it."""
