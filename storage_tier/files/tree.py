"""Directories, names and removal: the catalog's namespace, and below a mount the under-store's beside it.

The catalog's transaction is what makes a change happen in the tier. Below a mount the under-store is changed before
it. So that a kill between the two costs nothing, a file whose bytes are here first becomes one that waits to be
persisted: if it is not removed or renamed after all, the next start brings it back to the under-store.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from storage_tier.catalog import Catalog, Changed, Entry
from storage_tier.catalog.changes import Keep
from storage_tier.catalog.paths import split
from storage_tier.errors import (
    DirectoryNotEmpty,
    InvalidRequest,
    MountConflict,
    PathExists,
    PathIsDirectory,
    PathNotDirectory,
    PathNotFound,
    UnderNotFound,
    VersionConflict,
)
from storage_tier.files.alone import Alone
from storage_tier.files.base import DEFAULT_TIMEOUT_S
from storage_tier.files.held import Held
from storage_tier.files.loading import Loader
from storage_tier.files.observing import Observing
from storage_tier.files.persisting import Persisting
from storage_tier.files.settings import Settings
from storage_tier.files.under import Below, UnderStores, entry_of
from storage_tier.files.virtual import VirtualFiles
from storage_tier.probe import hit

# Inside of `Tree` the name `list` is its method.
Entries = list[Entry]


class Tree:
    """The namespace of one server. Thread-safe."""

    def __init__(
        self,
        catalog: Catalog,
        held: Held,
        loader: Loader,
        settings: Settings,
        under: UnderStores,
        persisting: Persisting,
        observing: Observing,
        virtual: VirtualFiles,
        alone: Alone,
        release: Callable[[Changed], None],
    ) -> None:
        self._catalog = catalog
        self._held = held
        self._loader = loader
        self._settings = settings
        self._under = under
        self._persisting = persisting
        self._observing = observing
        self._virtual = virtual
        self._alone = alone
        self._release = release

    # ------------------------------------------------------------------- read

    def list(self, path: str, after: str, count: int | None, virtual: bool = True) -> list[Entry]:
        """As `Files.list`; without `virtual` no observer is asked."""
        self._settings.look()
        known: list[Entry] = []
        missing: PathNotFound | None = None
        try:
            known = self._catalog.namespace.list(path, after, count)
        except PathNotFound as error:
            missing = error
        told = {entry.path.rpartition("/")[2]: entry for entry in self._virtual.list(path)} if virtual else {}
        if self._settings.mount_of(path) is None:
            if missing is not None and not told:
                raise missing
            return _page([told], known, after, count) if told else known
        if missing is not None:
            found = self._under.stat(path)
            if found is not None and found.kind == "file":
                raise PathNotDirectory(f"{path} is a file, and a directory is needed")
        below = self._under.list(path)
        if below is None and missing is not None and not told:
            raise missing
        return _page([told, below or {}], known, after, count)

    def find(self, path: str, after: str | None, count: int, virtual: bool = True) -> Entries:
        """As `Files.find`; without `virtual` no observer is asked."""
        self._settings.look()
        mounted = self._settings.mount_of(path) is not None or bool(self._settings.below(path))
        if not mounted and not (virtual and self._observing.lists(path)):
            return self._catalog.namespace.find(path, after, count)
        top = split(path)
        behind = () if after is None else split(after)
        if after is not None and (behind[: len(top)] != top or len(behind) == len(top)):
            raise InvalidRequest(f"{after} is not below {path}, so no page of it ends there")
        page: list[Entry] = []
        for entry in self._descend(path, behind[len(top) :], after is not None, virtual):
            page.append(entry)
            if len(page) >= count:
                break
        return page

    def _descend(self, directory: str, behind: tuple[str, ...], started: bool, virtual: bool) -> Iterator[Entry]:
        """Depth first; with `behind`, only what comes after that path below the directory."""
        whole = self._whole(directory)
        if whole is not None:
            yield from self._merged(directory, behind, whole)
            return
        first = behind[0] if behind else ""
        if behind:
            # The one that the last page ended at, or in, is told already; what lies in it may not be.
            inside = f"{directory if directory != '/' else ''}/{first}"
            with suppress(PathNotFound, PathNotDirectory):
                yield from self._descend(inside, behind[1:], started, virtual)
        try:
            entries = self.list(directory, first, None, virtual)
        except (PathNotFound, PathNotDirectory):
            if not started:
                raise
            return
        for entry in entries:
            yield entry
            if entry.kind != "file":
                with suppress(PathNotFound, PathNotDirectory):
                    yield from self._descend(entry.path, (), started, virtual)

    def _whole(self, directory: str) -> Entries | None:
        """All that an under-store has below a directory, where one request tells; None else, or where it has none."""
        place = self._under.of(directory)
        if place is None or self._settings.below(directory):
            return None
        return [entry_of(place.mount.path + one.path, one) for one in place.store.find(place.relative) or ()] or None

    def _merged(self, directory: str, behind: tuple[str, ...], whole: Entries) -> Iterator[Entry]:
        """What the catalog and the under-store have below a directory, in the order of `find`."""
        after = (*split(directory), *behind)

        def place_of(entry: Entry) -> list[bytes]:
            return [name.encode() for name in split(entry.path)]

        def known() -> Iterator[Entry]:
            last: str | None = "/" + "/".join(after) if behind else None
            with suppress(PathNotFound):
                while page := self._catalog.namespace.find(directory, last):
                    yield from page
                    last = page[-1].path

        begin = [name.encode() for name in after]
        rest = [entry for entry in whole if not behind or place_of(entry) > begin]
        told = file = "\0"
        for entry in heapq.merge(known(), rest, key=place_of):
            # The catalog's comes first; and below what it takes for a file there is nothing.
            if entry.path != told and not entry.path.startswith(f"{file}/"):
                yield entry
                told, file = entry.path, entry.path if entry.kind == "file" else file

    # ----------------------------------------------------------------- change

    def make_directory(self, path: str, parents: bool, exist_ok: bool) -> Entry:
        """As `Files.make_directory`."""
        self._settings.look()
        place = self._under.of(path)
        if place is not None and place.relative:
            found = self._under.stat(path)
            if found is not None and found.kind == "file":
                raise PathExists(f"there is a file at {path} already")
            if found is not None and not exist_ok:
                raise PathExists(f"there is a directory at {path} already")
            if not parents and found is None:
                self._loader.stat(path.rpartition("/")[0] or "/", DEFAULT_TIMEOUT_S)
            place.store.make_directory(place.relative)
            parents = True
        with self._settings.turn():
            return self._catalog.namespace.make_directory(path, parents, exist_ok)

    def change(self, path: str, pinned: bool | Keep, expires_ns: int | Keep | None, timeout_s: float) -> Entry:
        """As `Files.change`."""
        if isinstance(expires_ns, int):
            found = self._loader.stat(path, timeout_s)
            if found.persisted != "not_needed":
                raise InvalidRequest(
                    f"{path} is persisted or shall be, so it cannot have a time to live: the under-store would still "
                    "have it. Remove it when its time is over"
                )
        with self._settings.turn():
            try:
                return self._catalog.namespace.change(path, pinned=pinned, expires_ns=expires_ns)
            except PathNotFound:
                if self._under.of(path) is None:
                    raise
        self._loader.ensure(path, None, timeout_s)
        with self._settings.turn():
            return self._catalog.namespace.change(path, pinned=pinned, expires_ns=expires_ns)

    def rename(self, source: str, target: str, overwrite: bool, timeout_s: float) -> Entry:
        """As `Files.rename`."""
        self._settings.look()
        self._refuse_root(source, target)
        self._observing.before_remove(source)
        place, target_place = self._under.of(source), self._under.of(target)
        if (place and place.mount.path) != (target_place and target_place.mount.path):
            raise MountConflict(
                f"{source} and {target} are not below the same mount point, so their bytes belong to different "
                "under-stores: copy, then remove"
            )
        if self._observing.asks(target):
            self._ask(source, target, timeout_s)
        if place is None or target_place is None:
            changed = self._rename_known(source, target, overwrite, None)
        else:
            self._check_rename_under(place, target_place, source, target, overwrite, timeout_s)
            if source == target:
                return self._loader.stat(source, timeout_s)
            # What is on its way there would be left at the path before, or be taken for what is to be renamed.
            with self._alone.at([source, target]):
                landed = self._rename_under(place, target_place, source, target)
                if not self._known(source):
                    return self._only_under(target, timeout_s)
                changed = self._rename_known(source, target, overwrite, landed)
        self._release(changed)
        if changed.entry.persisted == "waiting":
            self._persisting.submit(changed.entry)
        elif changed.entry.kind != "file" and place is not None:
            self._persisting.submit_waiting()
        return changed.entry

    def _rename_known(self, source: str, target: str, overwrite: bool, landed: str | None) -> Changed:
        """Rename in the catalog; `landed` is a block that the under-store has renamed."""
        with self._settings.turn():
            with self._catalog.together():
                changed = self._catalog.namespace.rename(source, target, overwrite)
                if landed and changed.entry.block_id == landed and changed.entry.persisted == "waiting":
                    # The under-store has renamed these very bytes.
                    entry = self._catalog.namespace.change(target, persisted="done")
                    changed = changed._replace(entry=entry)
            if changed.entry.kind == "file":
                hit("rename.catalog.after")
                self._observing.after_commit(changed.entry)
            else:
                # Mounts and observers below it have other paths now.
                self._settings.look()
        return changed

    def _check_rename_under(
        self, place: Below, target_place: Below, source: str, target: str, overwrite: bool, timeout_s: float
    ) -> None:
        """Refuse what the under-store would do all the same; get here what could be at neither path for a moment."""
        if not place.relative or not target_place.relative:
            raise MountConflict(f"{source if not place.relative else target} is a mount point: unmount it instead")
        moved = self._loader.stat(source, timeout_s)
        if source == target:
            return
        with suppress(PathNotFound):
            replaced = self._loader.stat(target, timeout_s)
            if not overwrite:
                raise PathExists(f"there is a {replaced.kind} at {target} already")
            if (replaced.kind == "file") != (moved.kind == "file"):
                kind = PathIsDirectory if replaced.kind != "file" else PathNotDirectory
                raise kind(f"{target} is a {replaced.kind}, and the {moved.kind} {source} cannot take its place")
            if replaced.kind != "file" and self.list(target, "", 1):
                raise DirectoryNotEmpty(f"{target} is not empty")
        above = self._loader.stat(target.rpartition("/")[0], timeout_s)
        if above.kind == "file":
            raise PathNotDirectory(f"{above.path} is a file, so {target} cannot exist")
        if moved.kind == "file" and moved.block_id is not None and moved.persisted == "done":
            self._loader.ensure(source, None, timeout_s)

    def _rename_under(self, place: Below, target_place: Below, source: str, target: str) -> str | None:
        """Rename what the under-store has; the block of a file that it had, and has renamed."""
        landed = self._landed(source)
        if landed is not None:
            self._persisting.mark_waiting(source)
        hit("rename.under.before")
        try:
            place.store.rename(place.relative, target_place.relative)
        except UnderNotFound:
            return None
        hit("rename.under.after")
        # The target's parents may be in the under-store only.
        parent = target.rpartition("/")[0]
        if self._known(source) and parent and not self._known(parent):
            with self._settings.turn():
                self._catalog.namespace.make_directory(parent, parents=True, exist_ok=True)
        return landed

    def _only_under(self, target: str, timeout_s: float) -> Entry:
        """The catalog had nothing to rename: what it has at the target has been replaced below."""
        if self._known(target):
            with self._settings.turn():
                released = self._catalog.namespace.remove(target)
            self._held.drop(one.block_id for one in released)
        return self._loader.stat(target, timeout_s)

    def remove(self, path: str, expected_version: int | None, timeout_s: float) -> None:
        """As `Files.remove`."""
        self._settings.look()
        self._observing.before_remove(path)
        place = self._under.of(path)
        if place is None or not place.relative:
            self._remove_known(path, expected_version)
            return
        found = self._loader.stat(path, timeout_s)
        if found.kind != "file":
            raise PathIsDirectory(f"{path} is a {found.kind}, and only a file was to be removed")
        # What is on its way there would come after the removal.
        with self._alone.at([path]):
            _check_version(self._loader.stat(path, timeout_s), expected_version)
            self._persisting.mark_waiting(path)
            hit("remove.under.before")
            place.store.remove(place.relative)
            hit("remove.under.after")
            if self._known(path):
                self._remove_known(path, expected_version)

    def _remove_known(self, path: str, expected_version: int | None) -> None:
        released = self._settings.change(lambda: self._catalog.namespace.remove(path, expected_version))
        hit("remove.catalog.after")
        self._held.drop(one.block_id for one in released)

    def remove_directory(self, path: str, recursive: bool, timeout_s: float) -> None:
        """As `Files.remove_directory`."""
        self._settings.look()
        self._observing.before_remove(path)
        place = self._under.of(path)
        if place is not None:
            if not place.relative:
                raise MountConflict(f"{path} is a mount point: unmount it")
            found = self._loader.stat(path, timeout_s)
            if found.kind == "file":
                raise PathNotDirectory(f"{path} is a file, and only a directory was to be removed")
            inner = self._settings.below(path)
            if inner:
                raise MountConflict(f"{path} has the mount point {inner[0].path} below it: unmount that first")
            if not recursive and self.list(path, "", 1):
                raise DirectoryNotEmpty(f"{path} is not empty: there is {self.list(path, '', 1)[0].path} in it")
            with self._alone.at([path]):
                remove = place.store.remove_tree if recursive else place.store.remove_directory
                try:
                    remove(place.relative)
                except DirectoryNotEmpty:
                    raise DirectoryNotEmpty(
                        f"{path} is not empty any more: something came into it in {place.store.url}, and stays"
                    ) from None
                if self._known(path):
                    self._remove_known_directory(path, recursive)
            return
        self._remove_known_directory(path, recursive)

    def _remove_known_directory(self, path: str, recursive: bool) -> None:
        with self._settings.turn():
            released = self._catalog.namespace.remove_directory(path, recursive)
            # Observers that were attached to it are gone.
            self._settings.look()
        self._held.drop(one.block_id for one in released)

    def _ask(self, source: str, target: str, timeout_s: float) -> None:
        """Have observers look at a file before it gets its new path."""
        entry = self._loader.stat(source, timeout_s)
        if entry.kind == "file" and source != target:
            located = self._loader.ensure(source, None, timeout_s)
            block = None if located.entry.block_id is None else self._held.find(located.entry.block_id)
            self._observing.before_commit(target, entry.size_bytes, entry.metadata, block, ())

    def _landed(self, source: str) -> str | None:
        """The block of a file that the under-store has, and will have renamed."""
        if not self._known(source):
            return None
        entry = self._catalog.namespace.stat(source)
        return entry.block_id if entry.persisted == "done" else None

    def _known(self, path: str) -> bool:
        return self._catalog.namespace.exists(path)

    def _refuse_root(self, source: str, target: str) -> None:
        if not split(source) or not split(target):
            raise InvalidRequest("the root cannot be renamed, and nothing can take its place")
        if target.startswith(source + "/"):
            raise InvalidRequest(f"{source} cannot be moved into itself, to {target}")


def _check_version(entry: Entry, expected_version: int | None) -> None:
    if expected_version is not None and entry.version != expected_version:
        raise VersionConflict(
            f"{entry.path} has version {entry.version}, and version {expected_version} was to be removed"
        )


def _page(others: Sequence[Mapping[str, Entry]], known: Entries, after: str, count: int | None) -> Entries:
    """One page of a directory by name: what the catalog knows, else what the last of the others has."""
    found: dict[str, Entry] = {}
    for other in others:
        found.update((name, entry) for name, entry in other.items() if name > after)
    # A page of the catalog's is complete up to its last name, and what is behind that is behind the page.
    found.update((entry.path.rpartition("/")[2], entry) for entry in known)
    ordered = [found[name] for name in sorted(found, key=str.encode)]
    return ordered if count is None else ordered[:count]
