"""The files of this server as its observers get them: what they write has their origin, what they find is stored."""

from __future__ import annotations

from storage_tier.catalog import Entry
from storage_tier.files.base import DEFAULT_TIMEOUT_S, CommitOptions, Located
from storage_tier.files.committing import Commits
from storage_tier.files.loading import Loader
from storage_tier.files.tree import Tree
from storage_tier.headers import Metadata
from storage_tier.observers.base import Origin


class ForObservers:
    """Made before what it works with, for writers ask observers and observers write. Thread-safe."""

    _loader: Loader
    _commits: Commits
    _tree: Tree

    def connect(self, loader: Loader, commits: Commits, tree: Tree) -> None:
        """Once, before the first observer is started."""
        self._loader = loader
        self._commits = commits
        self._tree = tree

    def find_stored(self, path: str, after: str | None = None, count: int = 1000) -> list[Entry]:
        """`Files.find` without virtual files: an observer that asks must not wait for itself."""
        return self._tree.find(path, after, count, virtual=False)

    def stat(self, path: str) -> Entry:
        """As `Files.stat`."""
        return self._loader.stat(path, DEFAULT_TIMEOUT_S)

    def ensure_local(self, path: str, version: int | None = None) -> Located:
        """As `Files.ensure_local`."""
        return self._loader.ensure(path, version, DEFAULT_TIMEOUT_S)

    def write_observed(
        self, path: str, fd: int, size_bytes: int, metadata: Metadata, origin: Origin, if_version: int | None
    ) -> Entry:
        """Publish the first bytes of a descriptor, which stays the caller's, as an observer's work."""
        options = CommitOptions(metadata=metadata, origin=origin, expected_version=if_version)
        return self._commits.put_file(path, fd, size_bytes, options)

    def copy_observed(self, source: str, target: str, origin: Origin) -> Entry:
        """`Files.copy` over what is there, as an observer's work."""
        return self._commits.copy(source, target, True, CommitOptions(origin=origin), DEFAULT_TIMEOUT_S)

    def remove(self, path: str, expected_version: int | None = None) -> None:
        """As `Files.remove`."""
        self._tree.remove(path, expected_version, DEFAULT_TIMEOUT_S)
