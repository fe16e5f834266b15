"""Bringing files to the under-store: at once with a commit, or in the background until it is done."""

from __future__ import annotations

import contextlib
import logging
import time

from storage_tier.catalog import Catalog, Entry
from storage_tier.errors import (
    BytesLost,
    DeadlineExceeded,
    InvalidRequest,
    NotMounted,
    PathIsDirectory,
    PathNotDirectory,
    PathNotFound,
    VersionConflict,
)
from storage_tier.files.alone import Alone
from storage_tier.files.base import LocalBlock
from storage_tier.files.held import Held
from storage_tier.files.loading import Loader
from storage_tier.files.settings import Settings
from storage_tier.files.under import Below, UnderStores
from storage_tier.probe import hit
from storage_tier.under.base import FileRange, Source, UnderInfo
from storage_tier.under.persister import Persister, PersisterStatus
from storage_tier.under.queue import PersistJob

LOG = logging.getLogger(__name__)
# Of what waits, at each look; what is left comes with the next one.
WAITING_COUNT = 1000


class Persisting:
    """The queue of this server and what it does. Thread-safe."""

    def __init__(
        self,
        catalog: Catalog,
        held: Held,
        loader: Loader,
        settings: Settings,
        under: UnderStores,
        alone: Alone,
        timeout_s: float,
    ) -> None:
        self._catalog = catalog
        self._held = held
        self._loader = loader
        self._settings = settings
        self._under = under
        self._timeout_s = timeout_s
        self._alone = alone
        self._started: Persister | None = None

    @property
    def _persister(self) -> Persister:
        if self._started is None:
            raise InvalidRequest("the file layer of this server was not started")
        return self._started

    def start(self) -> None:
        """Start the threads, and submit what waits."""
        self._started = Persister(self._persist, on_persisted=_recorded, on_failed=self._failed)
        self.submit_waiting()

    def publish(self, place: Below, block: LocalBlock | None) -> UnderInfo:
        """Make a block, or nothing at all, the object of a path in the under-store.

        Raises:
            those of the under-store.
        """
        hit("persist.publish.before")
        source: Source = b"" if block is None else FileRange(block.file, block.info.offset_bytes, block.info.size_bytes)
        info = place.store.publish(place.relative, source)
        hit("persist.publish.after")
        return info

    def submit(self, entry: Entry) -> None:
        """Persist it in the background, until it is done. The catalog has it as 'waiting' already."""
        self._persister.submit(entry.path, entry.version)

    def submit_waiting(self) -> None:
        """Submit all of the catalog that waits and whose bytes this server has. Idempotent.

        Raises:
            as the catalog.
        """
        for entry in self._catalog.namespace.waiting(WAITING_COUNT):
            if entry.block_id is None or self._held.find(entry.block_id, remember=False) is not None:
                self._persister.submit(entry.path, entry.version)

    def wait(self, path: str, timeout_s: float) -> Entry:
        """As `Files.persist`."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            entry = self._loader.stat(path, timeout_s)
            if entry.kind != "file":
                raise PathIsDirectory(f"{path} is a {entry.kind}, and only files are persisted")
            if entry.persisted == "done":
                return entry
            if self._under.of(path) is None:
                raise NotMounted(
                    f"{path} is below no mount, so there is nowhere to persist it to: mount something above"
                )
            if entry.persisted == "not_needed":
                with contextlib.suppress(VersionConflict), self._settings.turn():
                    entry = self._catalog.namespace.change(path, version=entry.version, persisted="waiting")
            self._persister.submit(path, entry.version)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(
                    f"{path} could not be persisted in {timeout_s:g} s: it is replaced again and again"
                )
            self._persister.wait(path, left_s)

    def again(self, path: str) -> None:
        """What the under-store has at a path may not be the newest version: bring that there, if somebody has it."""
        entry = self.mark_waiting(path)
        if entry is not None:
            self.submit(entry)

    def mark_waiting(self, path: str) -> Entry | None:
        """Have a persisted file count as not persisted, so that it is no victim and is persisted again some time.

        Atomic, and only while a server has its bytes: else the under-store's are all there is. None: it was not done.
        """
        with self._settings.turn(), self._catalog.together():
            try:
                entry = self._catalog.namespace.stat(path)
            except (PathNotFound, PathNotDirectory):
                return None
            if entry.kind != "file" or entry.persisted == "not_needed" or entry.block_id is None:
                return None
            if not self._catalog.replicas.locations([entry.block_id])[entry.block_id]:
                return None
            entry = self._catalog.namespace.change(path, persisted="waiting")
        return entry

    def why(self, path: str) -> str:
        """Why a path is not persisted yet; '' when nothing is known."""
        for failure in self._persister.status().failing:
            if failure.path == path:
                return f"{failure.attempt_count} attempts failed, the last with: {failure.reason}"
        return ""

    def status(self) -> PersisterStatus:
        return self._persister.status()

    def close(self, timeout_s: float) -> None:
        """Give what is on its way some time. The rest is in the catalog. Idempotent."""
        left = [] if self._started is None else self._started.close(timeout_s)
        if left:
            LOG.info("%d files wait to be persisted by the next start of this server", len(left))

    # ---------------------------------------------------------------- inside

    def _persist(self, job: PersistJob) -> str | None:
        entry = self._current(job)
        if entry is None:
            return None
        place = self._under.of(job.path)
        if place is None:
            raise InvalidRequest(f"{job.path} is below no mount any more")
        block = self._loader.ensure_entry(entry, self._timeout_s)
        if block is None and entry.size_bytes:
            if self._current(job) is None:
                return None
            raise BytesLost(
                f"the bytes of {job.path} (version {job.version}) were evicted while they were to be persisted"
            )
        with self._alone.at([job.path]):
            # A writer through to the under-store may have come meanwhile: its object must not be replaced by this one.
            return None if self._current(job) is None else self._persist_alone(job, place, block)

    def _persist_alone(self, job: PersistJob, place: Below, block: LocalBlock | None) -> str | None:
        info = self.publish(place, block)
        try:
            with self._settings.turn():
                self._catalog.namespace.change(job.path, version=job.version, persisted="done", stamp=info.stamp)
        except (PathNotFound, PathNotDirectory, PathIsDirectory, VersionConflict):
            if not self._there(job.path):
                # Expired while it was on its way.
                place.store.remove(place.relative)
            return None  # else a newer version is on its way
        hit("persist.catalog.after")
        return info.stamp

    def _failed(self, job: PersistJob, error: Exception, attempt_count: int) -> None:
        LOG.warning("%s could not be persisted, attempt %d: %s", job.path, attempt_count, error)

    def _current(self, job: PersistJob) -> Entry | None:
        """The entry that a job is about, if it still is."""
        try:
            entry = self._catalog.namespace.stat(job.path)
        except (PathNotFound, PathNotDirectory):
            return None
        return entry if entry.version == job.version and entry.persisted == "waiting" else None

    def _there(self, path: str) -> bool:
        try:
            return self._catalog.namespace.stat(path).kind == "file"
        except (PathNotFound, PathNotDirectory):
            return False


def _recorded(job: PersistJob, stamp: str) -> None:
    """The catalog knew before anybody else could publish there."""
