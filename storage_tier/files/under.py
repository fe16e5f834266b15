"""The under-stores of the mounts, as files see them: opened when first needed, listed together with the catalog."""

from __future__ import annotations

import json
import threading
from typing import NamedTuple

from storage_tier.catalog import Entry, Mount
from storage_tier.catalog.paths import child
from storage_tier.errors import UnderNotFound
from storage_tier.files.base import MountStatus
from storage_tier.files.settings import Settings
from storage_tier.under.base import UnderInfo, below
from storage_tier.under.redact import safe_url
from storage_tier.under.store import UnderStore
from storage_tier.under.write_type import WriteType


class Below(NamedTuple):
    """A path of the tier as a path below its mount."""

    mount: Mount
    store: UnderStore
    relative: str


class UnderStores:
    """One `UnderStore` a mount. Thread-safe."""

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._stores: dict[tuple[str, str], UnderStore] = {}

    def of(self, path: str) -> Below | None:
        """Where a path is below a mount; None below none. Opens nothing."""
        mount = self._settings.mount_of(path)
        return None if mount is None else Below(mount, self.store(mount), below(mount.path, path))

    def store(self, mount: Mount) -> UnderStore:
        """The under-store of a mount; the same one as long as the mount is the same."""
        key = _key(mount)
        with self._lock:
            if key not in self._stores:
                self._stores[key] = UnderStore(mount.url, mount.options, timeout_s=self._timeout_s)
            return self._stores[key]

    def stat(self, path: str) -> Entry | None:
        """What the under-store has at a path, whatever the catalog has; None below no mount, or nothing is there.

        Raises:
            those of the under-store.
        """
        place = self.of(path)
        if place is None:
            return None
        try:
            return entry_of(path, place.store.info(place.relative))
        except UnderNotFound:
            return None

    def list(self, path: str) -> dict[str, Entry] | None:
        """What the under-store has in a directory, by name; None below no mount, or there is no such directory."""
        place = self.of(path)
        if place is None:
            return None
        try:
            found = place.store.list(place.relative)
        except UnderNotFound:
            return None
        names = [(info.path.rpartition("/")[2], info) for info in found]
        return {name: entry_of(child(path, name), info) for name, info in names}

    def close_unused(self) -> None:
        """Close those whose mounts are gone."""
        with self._lock:
            wanted = {_key(mount) for mount in self._settings.mounts}
            gone = [self._stores.pop(key) for key in list(self._stores) if key not in wanted]
        for store in gone:
            store.close()

    def status(self) -> tuple[MountStatus, ...]:
        """Of all mounts, without secrets."""
        found = []
        for mount in self._settings.mounts:
            with self._lock:
                store = self._stores.get(_key(mount))
            found.append(
                MountStatus(
                    mount.path,
                    safe_url(mount.url),
                    WriteType(mount.write_type),
                    None if store is None else store.status(),
                )
            )
        return tuple(found)

    def close(self) -> None:
        """Close all. Idempotent."""
        with self._lock:
            stores, self._stores = list(self._stores.values()), {}
        for store in stores:
            store.close()


def entry_of(path: str, info: UnderInfo) -> Entry:
    """An entry for what only the under-store has."""
    return Entry(
        path=path,
        kind="directory" if info.is_directory else "file",
        version=0,
        size_bytes=info.size_bytes,
        block_id=None,
        metadata={},
        created_ns=info.modified_ns or 0,
        modified_ns=info.modified_ns or 0,
        pinned=False,
        persisted="not_needed" if info.is_directory else "done",
        expires_ns=None,
    )


def _key(mount: Mount) -> tuple[str, str]:
    return mount.path, json.dumps([mount.url, dict(mount.options)], sort_keys=True)
