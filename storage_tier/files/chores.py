"""What a server does for its files unasked: the tasks of the upkeep, and a look for what dead writers left behind."""

from __future__ import annotations

import logging
import threading

from storage_tier.catalog import Catalog
from storage_tier.errors import TierError
from storage_tier.files.alone import Alone
from storage_tier.files.base import FilesOptions, block_id_of
from storage_tier.files.committing import Commits
from storage_tier.files.held import Held
from storage_tier.files.neighbours import Neighbours
from storage_tier.files.observing import Observing
from storage_tier.files.persisting import Persisting
from storage_tier.files.settings import Settings
from storage_tier.files.under import UnderStores
from storage_tier.files.upkeep import Task
from storage_tier.files.virtual import VirtualFiles
from storage_tier.tier import Tier

LOG = logging.getLogger(__name__)


class Chores:
    """Each is one call; all but the one of `start` are called by the upkeep's thread alone."""

    def __init__(
        self,
        tier: Tier,
        catalog: Catalog,
        held: Held,
        neighbours: Neighbours,
        settings: Settings,
        under: UnderStores,
        virtual: VirtualFiles,
        persisting: Persisting,
        observing: Observing,
        commits: Commits,
        alone: Alone,
        options: FilesOptions,
    ) -> None:
        self._tier = tier
        self._catalog = catalog
        self._held = held
        self._neighbours = neighbours
        self._settings = settings
        self._under = under
        self._virtual = virtual
        self._persisting = persisting
        self._observing = observing
        self._commits = commits
        self._alone = alone
        self._options = options
        self._cleaner = threading.Thread(target=self._clean_under, name="under-store clean-up", daemon=True)
        self._watched_revision = -1
        self._closed = False

    def tasks(self) -> list[Task]:
        """For the upkeep."""
        options = self._options
        return [
            Task("send a heartbeat", options.heartbeat_s, self.heartbeat),
            Task("look at the catalog", options.watch_s, self.watch),
            Task("remove what has expired", options.heartbeat_s, self.expire),
            Task("find what waits to be persisted", options.retry_s, self._persisting.submit_waiting),
            Task("clean up", options.retry_s, self.clean),
            Task("give back claims", options.retry_s, self._alone.give_back_left),
            Task("sweep", options.sweep_s, self.sweep),
        ]

    def start(self) -> None:
        """Look in the under-stores, in the background, for what writers that died have left there."""
        self._cleaner.start()

    def close(self) -> None:
        """After the under-stores: wait for that look to end. Idempotent."""
        self._closed = True
        if self._cleaner.is_alive():
            self._cleaner.join(self._options.close_timeout_s)

    def heartbeat(self) -> None:
        """Say that this server lives, see who else does, and give up who was silent for long."""
        self._catalog.members.heartbeat()
        self._neighbours.refresh()
        self._neighbours.retire(self._options.retire_after_s)

    def watch(self) -> None:
        """Follow what other servers changed, and tell the catalog what was deleted, and told to observers, here."""
        self._observing.record()
        revision = self._catalog.revision()
        if revision == self._watched_revision:
            return
        self._settings.look()
        self._under.close_unused()
        while orphans := self._catalog.replicas.orphans():
            self._held.drop(orphans)
            self._catalog.replicas.drop(orphans)
        self._watched_revision = revision

    def expire(self) -> None:
        """Remove files whose time is over."""
        while True:
            paths, released = self._catalog.namespace.expire()
            self._held.drop(one.block_id for one in released)
            if not paths:
                return
            LOG.debug("the time of %d files is over: %s", len(paths), ", ".join(paths))

    def clean(self) -> None:
        """Delete what late writers and readers of virtual files have left."""
        self._commits.clean()
        self._virtual.drop_idle()

    def sweep(self) -> None:
        """Delete block files of writers that died between the link and the commit."""
        found = {
            block_id: path for path in self._tier.unlisted(self._options.sweep_s) if (block_id := block_id_of(path))
        }
        uses = self._catalog.replicas.uses(found)
        self._held.drop(block_id for block_id, use in uses.items() if not use.named)

    def _clean_under(self) -> None:
        for mount in self._settings.mounts:
            try:
                self._under.store(mount).clean()
            except TierError as error:
                if self._closed:
                    return
                LOG.warning("what dead writers left below %s was not looked for: %s", mount.path, error)
