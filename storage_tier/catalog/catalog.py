"""The catalog of a tier: what there is, where it is, who serves it. Only servers talk to it.

with Catalog("sqlite:////var/tier/catalog.sqlite") as catalog:
    catalog.members.register("server-1", "coproc://10.0.0.1:7000")
    catalog.namespace.make_directory("/runs/a", parents=True)
    catalog.namespace.commit("/runs/a/00003", block_id, size_bytes)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from storage_tier.catalog.claims import Claims
from storage_tier.catalog.database import Database
from storage_tier.catalog.members import Members
from storage_tier.catalog.mounts import Mounts
from storage_tier.catalog.namespace import Namespace
from storage_tier.catalog.observers import Observers
from storage_tier.catalog.replicas import Replicas

DEFAULT_TIMEOUT_S = 30.0


class Catalog:
    """One connection of one server process to its catalog. Thread-safe; not across a fork."""

    def __init__(
        self, url: str | Path, timeout_s: float = DEFAULT_TIMEOUT_S, clock_ns: Callable[[], int] | None = None
    ) -> None:
        """Open it; an empty database gets its tables.

        Args:
            url: 'sqlite:////DIR/FILE' or a path, for servers of one host; 'postgresql+psycopg://USER@HOST/NAME'.
            timeout_s: the longest that a call waits for the database or for the writers before it.
            clock_ns: the time, for tests; None for the database's own clock.

        Raises:
            InvalidRequest: not such a URL.
            CatalogRefused: not a catalog, or one of another version of this program.
            Unreachable, DeadlineExceeded.
        """
        self._database = Database(url, timeout_s, clock_ns)
        self.namespace = Namespace(self._database)
        self.replicas = Replicas(self._database)
        self.mounts = Mounts(self._database)
        self.observers = Observers(self._database)
        self.members = Members(self._database)
        self.claims = Claims(self._database)

    def revision(self) -> int:
        """A number that grows with each change of the namespace, its mounts or its observers: has anything changed?"""
        return self._database.revision()

    def settings(self) -> int:
        """A number that grows whenever mounts, observers or their paths may have changed."""
        return self._database.settings()

    @contextmanager
    def together(self, parts: bool = True) -> Iterator[None]:
        """All writes of this thread inside of the block happen at once, or, when it raises, not at all.

        Keep it short: other writers wait. A call that fails undoes itself alone; the block may catch it and go on.

        Args:
            parts: False is cheaper: the block has to raise when a call in it fails.

        Raises:
            as each call; Unreachable: at the end, when it is not known whether it was committed.
        """
        with self._database.write(changes=False, parts=parts):
            yield

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
