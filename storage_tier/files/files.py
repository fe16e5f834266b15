"""The file layer of one server: what users name are files, and their bytes are sealed blocks. No sockets.

    with Files(tier, catalog, address="coproc://10.0.0.1:7000") as files:
        files.put("/runs/a/00003", 3, [b"abc"])
        with files.open("/runs/a/00003") as block:
            bytes(block.data)

A file's bytes never change. A new version is a new block; the catalog's transaction that names it is the commit
point. Any server of a catalog answers for any path.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from storage_tier.blocks import Block
from storage_tier.catalog import Catalog
from storage_tier.catalog.changes import KEEP, Keep
from storage_tier.catalog.entries import Entry
from storage_tier.catalog.mounts import Mount
from storage_tier.catalog.observers import Attached
from storage_tier.errors import BlockNotFound, PathNotDirectory, PathNotFound
from storage_tier.files.base import (
    DEFAULT_TIMEOUT_S,
    CommitOptions,
    Explanation,
    FilesOptions,
    FilesStatus,
    Located,
    Reservation,
)
from storage_tier.files.parts import Parts
from storage_tier.files.passing import Passing
from storage_tier.files.peers import NoPeers, Peers
from storage_tier.headers import BlockInfo
from storage_tier.observers.base import Observer
from storage_tier.observers.options import ObserverOptions
from storage_tier.tier import Tier
from storage_tier.under.write_type import WriteType

# Inside of `Files` the name `list` is its method.
Entries = list[Entry]
Mounted = list[Mount]
Attachments = list[Attached]


class Files:
    """The files of a tier, through one of its servers. Thread-safe. Blocks only where a method says so.

    Paths are absolute ('/a/b'). Errors are `TierError`s: those of `storage_tier.errors`, of the catalog, of the
    under-store, `Vetoed` and `ObserverFailed`, and `BytesLost` and `NotMounted`.
    """

    def __init__(
        self,
        tier: Tier,
        catalog: Catalog,
        *,
        address: str,
        options: FilesOptions | None = None,
        peers: Peers | None = None,
        observer_facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Nothing is changed before `start`. `tier`, `catalog` and `peers` stay the caller's, to be closed after this.

        Args:
            tier: the blocks of this server.
            catalog: not registered yet.
            address: where peers and clients reach this server.
            peers: how the others are reached; None for a server that is alone.
            observer_facts: what observers find in `env.facts`, beside `address`.
        """
        self._parts = Parts(tier, catalog, address, options or FilesOptions(), peers or NoPeers(), observer_facts or {})

    def start(self) -> None:
        """Become a member of the catalog, make blocks and catalog agree, and start the upkeep in the background.

        Older processes of this server are fenced from here on. Blocks that no file has are deleted; what waits to
        be persisted is submitted; observers are started, and not waited for.

        Raises:
            as the catalog: Unreachable, CatalogRefused, DeadlineExceeded.
        """
        self._parts.start()

    def close(self) -> None:
        """Stop the upkeep, uploads and observers, within `close_timeout_s` each. Idempotent; all files stay."""
        self._parts.close()

    def __enter__(self) -> Self:
        """Starts."""
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def server_id(self) -> str:
        """This server's name for life."""
        return self._parts.tier.server_id

    # ------------------------------------------------------------------ write

    def create(self, path: str, file_bytes: int, options: CommitOptions | None = None) -> Reservation:
        """Set memory aside for a file that a process of this host writes into a block file of its own.

        Makes room by eviction. Nothing is visible before `commit`; of several who create one path all may commit,
        in their order. An exclusive create of something that exists is refused here already when it is large.

        Args:
            file_bytes: of the block file: `payload_offset_bytes(block_path, {})` (a page) and the file's size.

        Raises:
            PathExists, VersionConflict, PathIsDirectory, PathNotFound, PathNotDirectory, InvalidPath, InvalidRequest;
            OutOfMemory: nothing can be evicted that would make room.
        """
        return self._parts.commits.create(path, file_bytes, options or CommitOptions())

    def commit(self, reservation_id: str, options: CommitOptions | None = None) -> Entry:
        """Publish the block that was linked under a reservation as the newest version of its path.

        Atomic: readers see the version before or this one. When it raises, nothing was published and the block is
        gone, except after Unreachable (the catalog did not answer: it may be or not).
        Blocks for observers that look at it before, and for the under-store with `cache_through` and `through`.

        Raises:
            Vetoed, ObserverFailed: an observer refused it, with its sentence, or a guard does not work.
            PathExists, VersionConflict, PathIsDirectory, PathNotFound, PathNotDirectory, InvalidRequest;
            ReservationLost, BlockNotFound (nothing was linked), CorruptBlock, OutOfMemory; those of the under-store.
        """
        return self._parts.commits.commit_all([(reservation_id, options or CommitOptions())])[0]

    def commit_all(self, commits: Sequence[tuple[str, CommitOptions]]) -> Entries:
        """`commit` several reservations, of different paths, at once: readers see all of the new files, or none.

        One transaction of the catalog, after the observers of all files were asked, and after what goes through to
        under-stores was published there. When it raises, nothing was committed and all the blocks are gone, except
        after Unreachable, as for `commit`. Objects that were published by then are taken back, or replaced by what the
        catalog has. Those may be left in the under-store, whole, as files that somebody else wrote there: when this
        process is killed between the under-store and the catalog, when the under-store does not answer the removal
        (the log tells), and after Unreachable.

        Args:
            commits: (reservation id, options), in the order in which observers are told of them.

        Raises:
            as `commit`, of the first one that is refused; InvalidRequest: two have the same path.
        """
        return self._parts.commits.commit_all(commits)

    def abort(self, reservation_id: str) -> None:
        """Give a reservation back, and delete what was linked under it. An unknown one is no error."""
        self._parts.commits.abort(reservation_id)

    def put(
        self,
        path: str,
        size_bytes: int,
        buffers: Iterable[Any],
        options: CommitOptions | None = None,
    ) -> Entry:
        """`create`, write and `commit` in one: buffers may come one by one, `size_bytes` is their sum.

        One copy. An exception out of `buffers` publishes nothing.

        Raises:
            as `create` and `commit`; InvalidRequest: the buffers are not `size_bytes` long.
        """
        return self._parts.commits.put(path, size_bytes, buffers, options or CommitOptions())

    def copy(
        self,
        source: str,
        target: str,
        overwrite: bool = False,
        options: CommitOptions | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Entry:
        """Publish the newest bytes of a file at another path too, with its metadata. No bytes move in memory.

        Below a mount the copy is written there as a new file would be. Observers see it as one.

        Args:
            overwrite: a file may be at the target.
            options: `origin` and `write_type` count; the rest is the source's.
        """
        return self._parts.commits.copy(source, target, overwrite, options or CommitOptions(), timeout_s)

    # ------------------------------------------------------------------- read

    def stat(self, path: str) -> Entry:
        """What is at a path. One query as a rule.

        Below a mount, what only the under-store has is found too: version 0, persisted 'done', no block. So is what
        an observer resolves: version as it says, no block.

        Raises:
            PathNotFound, PathNotDirectory, InvalidPath; those of the under-store and of observers.
        """
        return self._parts.loader.stat(path, DEFAULT_TIMEOUT_S)

    def exists(self, path: str) -> bool:
        """Whether `stat` would find something."""
        try:
            self.stat(path)
        except (PathNotFound, PathNotDirectory):
            return False
        return True

    def list(self, path: str, after: str = "", count: int | None = None) -> Entries:
        """The entries of a directory, by name in byte order; below a mount those of the under-store among them.

        So are the virtual files that observers tell of, with the version and size that they tell.

        Args:
            after: only names behind this one: the last of the page before.
            count: at most so many; None for all.

        Raises:
            PathNotFound, PathNotDirectory, InvalidPath; those of the under-store.
        """
        return self._parts.tree.list(path, after, count)

    def find(self, path: str, after: str | None = None, count: int = 1000) -> Entries:
        """A page of all that lies below a directory, each directory before what is in it, names in byte order.

        Virtual files are among them, as far as observers tell of them, and what only the under-store has.

        Args:
            after: the path of the last entry of the page before.
            count: the size of a page; one that is shorter is the last.

        Raises:
            as `list`; InvalidRequest: `after` is not below `path`.
        """
        return self._parts.tree.find(path, after, count)

    def locate(self, path: str, version: int | None = None) -> Located:
        """Where a file's bytes are now. Fetches and loads nothing; counts as a use of the block.

        What only the under-store or an observer has is nowhere: `ensure_local` gets it.

        Raises:
            VersionConflict: it has another version. PathNotFound, PathIsDirectory, PathNotDirectory, InvalidPath.
        """
        return self._parts.loader.locate(path, version)

    def ensure_local(
        self, path: str, version: int | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S, remember: bool = True
    ) -> Located:
        """Have a file's bytes on this host: they are, or come from a peer, the under-store, or an observer. Blocks.

        A block is fetched once at a time, whoever asks; the others wait for it. What comes stays here as a replica,
        as long as there is room. `Located.file` is set, but of an empty file without a block.

        Args:
            remember: it counts as a use of the block.

        Raises:
            PathNotFound, PathIsDirectory, PathNotDirectory, InvalidPath, VersionConflict; OutOfMemory;
            BytesLost: only servers that do not answer have it; DeadlineExceeded; those of the under-store.
        """
        return self._parts.loader.ensure(path, version, timeout_s, remember)

    def pass_through(
        self, path: str, version: int | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Passing | None:
        """Read a file where it is, at a peer or in the under-store, when `ensure_local` found no room for it here.

        None: it is at neither.

        Raises:
            PathIsDirectory, PathNotDirectory, InvalidPath, VersionConflict; those of the under-store.
        """
        return self._parts.pass_through.find(path, version, timeout_s)

    def open(self, path: str, version: int | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Block:
        """Map a file, after `ensure_local`. No copy. While it is open its block is not evicted.

        Raises:
            as `ensure_local`.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            located = self.ensure_local(path, version, timeout_s=max(deadline_s - time.monotonic(), 0.001))
            if located.file is None:
                return Block(BlockInfo(path, 0, 0, located.entry.modified_ns), memoryview(b""))
            try:
                return Block.map(located.file, located.block_path)
            except BlockNotFound:
                # Evicted, spilled or replaced since then.
                if time.monotonic() > deadline_s:
                    raise

    def locations(self, block_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Block id -> addresses of the servers that hold it, for each block asked for. One query."""
        return self._parts.copies.locations(block_ids)

    # -------------------------------------------------------------- namespace

    def make_directory(self, path: str, parents: bool = True, exist_ok: bool = True) -> Entry:
        """Make a directory; below a mount in the under-store too.

        Raises:
            PathExists, PathNotFound, PathNotDirectory, InvalidPath; those of the under-store.
        """
        return self._parts.tree.make_directory(path, parents, exist_ok)

    def rename(self, source: str, target: str, overwrite: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S) -> Entry:
        """Give a file or a whole directory another path. Atomic in the tier; observers see a file at its new path.

        Below a mount the under-store is changed first, by a rename of its own: one that is killed between the two
        leaves the file at both paths, or only at the new one, never at none.

        Raises:
            PathExists, PathNotFound, PathIsDirectory, PathNotDirectory, DirectoryNotEmpty, InvalidRequest;
            MountConflict: the two are below different mounts; Vetoed, ObserverFailed; those of the under-store.
        """
        return self._parts.tree.rename(source, target, overwrite, timeout_s)

    def remove(self, path: str, expected_version: int | None = None) -> None:
        """Remove a file; below a mount from the under-store too, which is asked first.

        Below a mount this, `rename`, `remove_directory` and writes that go through wait for what any server has on its
        way to or from the under-store at that path or below.

        Raises:
            VersionConflict, PathNotFound, PathIsDirectory, PathNotDirectory, InvalidPath; Vetoed: the server needs it;
            those of the under-store; DeadlineExceeded: something was on its way there for too long.
        """
        self._parts.tree.remove(path, expected_version, DEFAULT_TIMEOUT_S)

    def remove_directory(self, path: str, recursive: bool = False) -> None:
        """Remove a directory, with `recursive` and all that lies below it; below a mount in the under-store too.

        Raises:
            DirectoryNotEmpty, MountConflict, PathNotFound, PathNotDirectory, InvalidPath, InvalidRequest.
        """
        self._parts.tree.remove_directory(path, recursive, DEFAULT_TIMEOUT_S)

    def change(self, path: str, *, pinned: bool | Keep = KEEP, ttl_s: float | Keep | None = KEEP) -> Entry:
        """Pin a file or not; let it live for `ttl_s` seconds from now, or (None) for ever. Its version stays.

        A file that only the under-store has is loaded first.

        Raises:
            PathNotFound, PathIsDirectory, PathNotDirectory, InvalidPath, InvalidRequest.
        """
        expires_ns = time.time_ns() + round(ttl_s * 1e9) if isinstance(ttl_s, int | float) else ttl_s
        return self._parts.tree.change(path, pinned, expires_ns, DEFAULT_TIMEOUT_S)

    # ------------------------------------------------------------ block life

    def persist(self, path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Entry:
        """Have a file's newest bytes in the under-store. Blocks until they are there.

        Raises:
            NotMounted: it is below no mount. DeadlineExceeded: with why; it is tried on. PathNotFound, …
        """
        return self._parts.persisting.wait(path, timeout_s)

    def free(self, path: str) -> bool:
        """Drop this server's copy of a file's bytes; whether there was one. Nothing is lost.

        Raises:
            InvalidRequest: it is pinned, not persisted and nowhere else, or open: the sentence says which.
            PathNotFound, PathIsDirectory, PathNotDirectory, InvalidPath.
        """
        return self._parts.copies.free(path)

    def replicate(self, path: str, count: int, timeout_s: float = DEFAULT_TIMEOUT_S) -> tuple[str, ...]:
        """Have a file's bytes on `count` servers at least; returns the ids of all that have them. Blocks.

        Raises:
            InvalidRequest: there are fewer live servers. Those of `ensure_local`, of this server and of its peers.
        """
        return self._parts.copies.replicate(path, count, timeout_s)

    def explain(self, path: str) -> Explanation:
        """Where a file's bytes are, which way a read would take from here, and why no better one. Changes nothing.

        Raises:
            InvalidPath; what is missing or does not answer is told, not raised.
        """
        return self._parts.explainer.explain(path)

    # -------------------------------------------------- mounts and observers

    def mount(
        self,
        path: str,
        url: str,
        options: Mapping[str, Any] | None = None,
        write_type: WriteType | str | None = None,
    ) -> Mount:
        """Make a path a mount point of an under-store, after a real look at it. Other servers know within `watch_s`.

        Args:
            path: nothing, or an empty directory, must be there.
            url: 's3://bucket/prefix', 'file:///data', any that fsspec knows.
            options: for its filesystem; secrets are kept in the catalog, and shown to nobody.
            write_type: of files written below it; None for `async_through`.

        Raises:
            InvalidRequest, Unsupported, UnderNotFound, UnderRefused, UnderUnreachable: it cannot be opened.
            MountConflict, PathExists, DirectoryNotEmpty, PathNotDirectory, InvalidPath.
        """
        return self._parts.mounting.mount(path, url, options, write_type)

    def unmount(self, path: str, discard: bool = False) -> None:
        """Take a mount point away, with its files; the under-store keeps what it has.

        Raises:
            DirectoryNotEmpty: files below it are only in memory, and `discard` is not given. MountConflict, …
        """
        self._parts.mounting.unmount(path, discard)

    def mounts(self) -> Mounted:
        """All mount points, by path."""
        return self._parts.catalog.mounts.list()

    def attach(
        self,
        directory: str,
        observer: str,
        parameters: Mapping[str, Any] | None = None,
        name: str | None = None,
        options: ObserverOptions | None = None,
    ) -> Attached:
        """Hang an observer on a directory and all below it, for good. Blocks until it has started here.

        Each server runs it for the files that are committed through it; the others start it within `watch_s`.

        Args:
            directory: must exist.
            observer: its name in the registry.
            name: what it is called there; None for the observer's own name.
            options: how it is run, by every server.

        Raises:
            InvalidRequest, ObserverFailed: it is not registered, refuses the parameters, or cannot start.
            PathExists: the name is taken there. PathNotFound, PathNotDirectory, InvalidPath.
        """
        return self._parts.observing.attach(directory, name or observer, observer, parameters, options)

    def build_in(self, directory: str, name: str, observer: Observer) -> None:
        """Have an observer of this program called in this process; before `start`. As `ObserverHost.build_in`."""
        self._parts.observing.build_in(directory, name, observer)

    def detach(self, directory: str, name: str) -> None:
        """Take an observer off a directory; what is queued for it is dropped.

        Raises:
            PathNotFound, PathNotDirectory, InvalidPath.
        """
        with self._parts.settings.turn():
            self._parts.catalog.observers.detach(directory, name)
            self._parts.settings.look()

    def attachments(self) -> Attachments:
        """All attachments, by directory and name; how they do on this server is in `status`."""
        return self._parts.catalog.observers.list()

    # ----------------------------------------------------------------- status

    def revision(self) -> int:
        """Grows with each change of the namespace by any server. One small query."""
        return self._parts.catalog.revision()

    def status(self) -> FilesStatus:
        """What this server is doing. Never blocks for long: one query."""
        return self._parts.status()
