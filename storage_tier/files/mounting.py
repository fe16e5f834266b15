"""Making a path a mount point of an under-store, and taking it away again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

from storage_tier.catalog import Catalog, Mount
from storage_tier.catalog.mounts import WriteType as CatalogWriteType
from storage_tier.errors import InvalidRequest
from storage_tier.files.held import Held
from storage_tier.files.settings import Settings
from storage_tier.files.under import UnderStores
from storage_tier.under.store import UnderStore
from storage_tier.under.write_type import WriteType


class Mounting:
    """Changes the mounts of the catalog; `Settings` and `UnderStores` follow. Thread-safe."""

    def __init__(
        self, catalog: Catalog, held: Held, settings: Settings, under: UnderStores, under_timeout_s: float
    ) -> None:
        self._catalog = catalog
        self._held = held
        self._settings = settings
        self._under = under
        self._under_timeout_s = under_timeout_s

    def mount(
        self, path: str, url: str, options: Mapping[str, Any] | None, write_type: WriteType | str | None
    ) -> Mount:
        """As `Files.mount`."""
        write_type = WriteType.ASYNC_THROUGH if write_type is None else write_type
        chosen = write_type.value if isinstance(write_type, WriteType) else write_type
        if chosen not in get_args(CatalogWriteType):
            raise InvalidRequest(
                f"a write type is one of {', '.join(get_args(CatalogWriteType))}, and {chosen!r:.40} was given"
            )
        tried = UnderStore(url, options, timeout_s=self._under_timeout_s)
        try:
            tried.check()
        finally:
            tried.close()
        with self._settings.turn():
            mounted = self._catalog.mounts.mount(path, url, options, cast(CatalogWriteType, chosen), parents=True)
            self._settings.look()
        return mounted

    def unmount(self, path: str, discard: bool) -> None:
        """As `Files.unmount`."""
        with self._settings.turn():
            released = self._catalog.mounts.unmount(path, discard)
            self._settings.look()
        self._held.drop(one.block_id for one in released)
        self._under.close_unused()
