"""Publishing sealed blocks as files: one transaction of the catalog, which is the commit point, and what is around it.

observers may refuse -> the under-store has it (cache_through, through) -> catalog -> observers are told -> the
under-store gets it (async_through)

Several files are published by one transaction, too: all of them, or none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from storage_tier.catalog import KEEP, Catalog, Changed, Entry, Mount, NewFile, SettingsChanged
from storage_tier.errors import (
    InvalidRequest,
    NotMounted,
    ObserverFailed,
    PathExists,
    PathIsDirectory,
    PathNotDirectory,
    PathNotFound,
    UnderError,
    UnderUnreachable,
    Unreachable,
    VersionConflict,
    Vetoed,
)
from storage_tier.files.alone import Alone
from storage_tier.files.base import CommitOptions
from storage_tier.files.eviction import Evictor
from storage_tier.files.held import Held
from storage_tier.files.observing import Observing
from storage_tier.files.persisting import Persisting
from storage_tier.files.settings import Settings
from storage_tier.files.under import Below, UnderStores
from storage_tier.probe import hit
from storage_tier.under.write_type import WriteType

LOG = logging.getLogger(__name__)
# Mounts and observers that change during a commit, and writers of the same path through the under-store.
TRIES = 16


@dataclass(frozen=True)
class Sealed:
    """A block that is to become a file."""

    path: str
    block_id: str | None
    """None of an empty file."""
    size_bytes: int
    options: CommitOptions
    source: Entry | None = None
    """The file whose block it is already; it stays, whatever becomes of this one."""

    @property
    def own_block_id(self) -> str | None:
        """The block that nobody needs if this is not published."""
        return None if self.source is not None else self.block_id


class _Plan(NamedTuple):
    """How a commit goes, as mounts and observers are now."""

    mount: Mount | None
    place: Below | None
    write_type: WriteType


class _Published(NamedTuple):
    """An object in the under-store, of a file that is not committed yet."""

    file: Sealed
    place: Below
    before: int
    """The version that it replaces; 0 for none."""


class Again(Exception):
    """What a commit was planned by has changed."""


class Publisher:
    """Thread-safe."""

    def __init__(
        self,
        catalog: Catalog,
        held: Held,
        evictor: Evictor,
        settings: Settings,
        under: UnderStores,
        persisting: Persisting,
        observing: Observing,
        alone: Alone,
    ) -> None:
        self._catalog = catalog
        self._held = held
        self._evictor = evictor
        self._settings = settings
        self._under = under
        self._persisting = persisting
        self._observing = observing
        self._alone = alone
        self._lock = threading.Lock()
        self._unsure: set[str] = set()

    def publish(self, files: Sequence[Sealed]) -> list[Entry]:
        """Commit sealed blocks: all, or none. When it raises, the blocks are gone, unless they are of a `source`.

        Raises:
            Again: a `source` was replaced meanwhile; its block stays. As `Files.commit`.
        """
        own = [file.own_block_id for file in files if file.own_block_id is not None]
        try:
            _check(files)
            for _ in range(TRIES):
                known = self._settings.known
                plans = [self._plan(file) for file in files]
                try:
                    return self._try(files, plans, known)
                except Again:
                    if any(file.source is not None for file in files):
                        raise
            raise VersionConflict(
                f"{files[0].path}: mounts or observers, or the file itself, changed {TRIES} times: try again"
            )
        except Unreachable:
            # The transaction may have happened. The upkeep finds out.
            with self._lock:
                self._unsure.update(own)
            raise
        except BaseException:
            self._held.drop(own)
            raise

    def refuse(self, path: str, options: CommitOptions) -> None:
        """Refuse what the commit would refuse, as far as it can be seen now.

        Raises:
            PathExists, VersionConflict, PathIsDirectory, PathNotFound, PathNotDirectory, InvalidPath.
        """
        self._before(path, options)
        place = self._under.of(path)
        if place is not None:
            self._check_under(path, options, place)

    def release(self, changed: Changed) -> None:
        """Delete what has lost its last name; other servers find theirs by themselves."""
        if changed.released:
            hit("release.before")
            self._held.drop(released.block_id for released in changed.released)
            hit("release.after")

    def clean(self) -> None:
        """Delete what turned out not to be committed.

        Raises:
            as the catalog.
        """
        with self._lock:
            unsure = list(self._unsure)
        if unsure:
            uses = self._catalog.replicas.uses(unsure)
            self._held.drop([block_id for block_id in unsure if not uses[block_id].named])
            with self._lock:
                self._unsure.difference_update(unsure)

    # ---------------------------------------------------------------- inside

    def _plan(self, file: Sealed) -> _Plan:
        path, options = file.path, file.options
        mount = self._settings.mount_of(path)
        write_type = options.write_type or (WriteType(mount.write_type) if mount else WriteType.MUST_CACHE)
        if not write_type.persists:
            return _Plan(mount, self._under.of(path) if mount else None, write_type)
        if mount is None:
            # Perhaps it was mounted through another server a moment ago.
            self._settings.look()
            mount = self._settings.mount_of(path)
            if mount is None:
                raise NotMounted(f"{path} is below no mount, so {write_type.value} has nowhere to write to")
        if options.ttl_s is not None:
            raise InvalidRequest(
                f"{path} is to be persisted, so it cannot have a time to live: the under-store would still have it"
            )
        return _Plan(mount, self._under.of(path), write_type)

    def _try(self, files: Sequence[Sealed], plans: Sequence[_Plan], known: int) -> list[Entry]:
        for file, plan in zip(files, plans, strict=True):
            if self._observing.asks(file.path, file.options.origin):
                self._ask(file, known)
            if plan.place is not None:
                self._check_under(file.path, file.options, plan.place)
        if any(plan.write_type.persists_before_return for plan in plans):
            changes = self._publish_through(files, plans, known)
        else:
            changes = self._commit(
                [_new_file(file, plan) for file, plan in zip(files, plans, strict=True)], files, known
            )
        for changed, file, plan in zip(changes, files, plans, strict=True):
            self.release(changed)
            if changed.entry.persisted == "waiting":
                self._persisting.submit(changed.entry)
            if not plan.write_type.caches and file.own_block_id is not None:
                self._evictor.give_up([file.own_block_id])
        return [changed.entry for changed in changes]

    def _ask(self, file: Sealed, known: int) -> None:
        block = None if file.block_id is None else self._held.find(file.block_id)
        try:
            metadata = file.options.metadata or {}
            self._observing.before_commit(file.path, file.size_bytes, metadata, block, file.options.origin)
        except (Vetoed, ObserverFailed):
            # It may have been taken off through another server.
            self._settings.look()
            if self._settings.known != known:
                raise Again from None
            raise

    def _publish_through(self, files: Sequence[Sealed], plans: Sequence[_Plan], known: int) -> list[Changed]:
        published: list[_Published] = []
        new: list[NewFile] = []
        paths = [file.path for file, plan in zip(files, plans, strict=True) if plan.write_type.persists_before_return]
        with self._alone.at(paths):
            try:
                for file, plan in zip(files, plans, strict=True):
                    if not plan.write_type.persists_before_return:
                        new.append(_new_file(file, plan))
                        continue
                    assert plan.place is not None
                    before = self._before(file.path, file.options)
                    # Noted first: an object that is reported to have failed may be there all the same.
                    published.append(_Published(file, plan.place, before))
                    if before:
                        # Killed from here on, the next start brings the version before back to the under-store.
                        self._persisting.mark_waiting(file.path)
                    block = None if file.block_id is None else self._held.find(file.block_id)
                    info = self._persisting.publish(plan.place, block)
                    hit("commit.publish.after")
                    new.append(_new_file(file, plan, before, info.stamp))
                return self._commit(new, files, known)
            except BaseException as error:
                for one in published:
                    # The object below may be that of a file that is not committed.
                    if one.before:
                        self._persisting.again(one.file.path)
                    elif not isinstance(error, Unreachable):
                        self._undo(one.file.path, one.place)
                if isinstance(error, VersionConflict) and any(self._moved(one) for one in published):
                    raise Again from None
                raise

    def _commit(self, new: Sequence[NewFile], files: Sequence[Sealed], known: int) -> list[Changed]:
        """The transaction, then observers are told, in the order of commits."""
        sources = [file.source for file in files if file.source is not None]
        hit("commit.catalog.before")

        def change() -> list[Changed]:
            # In one transaction: a block that lost its last name may be deleted at any moment.
            for source in sources:
                try:
                    now = self._catalog.namespace.stat(source.path)
                except PathNotFound:
                    raise Again from None
                if now.block_id != source.block_id:
                    raise Again
            if len(new) == 1:
                return [self._catalog.namespace.commit(**vars(new[0]), known_settings=known)]
            return self._catalog.namespace.commit_all(new, known_settings=known)

        def tell(changes: list[Changed]) -> None:
            hit("commit.catalog.after")
            for changed in changes:
                self._observing.after_commit(changed.entry)

        try:
            return self._settings.change(change, tell)
        except SettingsChanged:
            self._settings.look()
            raise Again from None

    def _before(self, path: str, options: CommitOptions) -> int:
        """The version that is there, 0 for none, after what the catalog would say to these options."""
        try:
            found = self._catalog.namespace.stat(path)
        except PathNotFound:
            if options.expected_version:
                raise VersionConflict(
                    f"there is no file at {path} (version 0), and version {options.expected_version} was expected"
                ) from None
            return 0
        if found.kind != "file":
            raise PathIsDirectory(f"{path} is a {found.kind}, and a file cannot take its place")
        if options.exclusive:
            raise PathExists(f"there is a file at {path} already (version {found.version})")
        if options.expected_version is not None and found.version != options.expected_version:
            raise VersionConflict(
                f"{path} has version {found.version}, and version {options.expected_version} was expected: "
                "read it again"
            )
        return found.version

    def _moved(self, published: _Published) -> bool:
        """Whether the file was replaced by somebody, where whoever writes it does not mind."""
        options = published.file.options
        if options.expected_version is not None or options.exclusive:
            return False
        try:
            return self._before(published.file.path, options) != published.before
        except (PathIsDirectory, PathNotDirectory):
            return False

    def _check_under(self, path: str, options: CommitOptions, place: Below) -> None:
        """Refuse what only the under-store knows to be in the way.

        Raises:
            PathExists, VersionConflict, PathIsDirectory; those of the under-store: it has to answer where the file is
            to be the first at its path.
        """
        if self._known(path):
            return  # then the transaction decides; and the under-store may be down
        try:
            found = self._under.stat(path)
        except UnderUnreachable as error:
            if not options.exclusive and options.expected_version != 0:
                return  # a directory that is in the way is told when the file is persisted
            raise UnderUnreachable(
                f"{path} was not written: it is to be only where nothing is, and whether {place.store.url} has a file "
                f"there cannot be asked now. overwrite=True writes it without asking; or try again later. {error}"
            ) from None
        if found is None:
            return
        if found.kind != "file":
            raise PathIsDirectory(f"{path} is a directory in {place.store.url}, and a file cannot take its place")
        if (options.exclusive or options.expected_version == 0) and not self._known(path):
            kind = PathExists if options.exclusive else VersionConflict
            raise kind(f"there is a file at {path} already, in {place.store.url}")

    def _known(self, path: str) -> bool:
        return self._catalog.namespace.exists(path)

    def _undo(self, path: str, place: Below) -> None:
        """Take an object away that was published for a file that was not committed."""
        try:
            self._catalog.namespace.stat(path)
        except (PathNotFound, PathNotDirectory):
            try:
                place.store.remove(place.relative)
            except UnderError as error:
                LOG.warning("%s was not committed, and is left in the under-store: %s", path, error)
        else:
            self._persisting.again(path)


def _check(files: Sequence[Sealed]) -> None:
    paths = {file.path for file in files}
    if len(paths) < len(files):
        raise InvalidRequest(
            "a path is twice among the files that are committed together: commit its last version only"
        )
    for file in files:
        if file.options.exclusive and file.options.expected_version:
            raise InvalidRequest(
                f"{file.path}: an exclusive commit expects no file, and version {file.options.expected_version} was "
                "expected"
            )


def _new_file(file: Sealed, plan: _Plan, before: int | None = None, stamp: str | None = None) -> NewFile:
    """As the catalog takes it; with `before`, the under-store has it already."""
    options = file.options
    through = before is not None
    return NewFile(
        file.path,
        file.block_id,
        file.size_bytes,
        metadata=options.metadata,
        exclusive=options.exclusive and not through,
        expected_version=before if through else options.expected_version,
        parents=options.parents or plan.mount is not None,
        persisted="done" if through else "waiting" if plan.write_type.persists else "not_needed",
        pinned=KEEP if options.pinned is None else options.pinned,
        expires_ns=None if options.ttl_s is None else time.time_ns() + round(options.ttl_s * 1e9),
        server_ids=None if file.source is None else (),
        origin=options.origin,
        stamp=stamp,
    )
