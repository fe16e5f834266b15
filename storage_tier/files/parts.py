"""What the file layer of one server is made of: its parts, put together, started and ended in their order."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from storage_tier.catalog import Catalog
from storage_tier.errors import TierError
from storage_tier.files.alone import Alone
from storage_tier.files.base import DEFAULT_TIMEOUT_S, FilesOptions, FilesStatus
from storage_tier.files.chores import Chores
from storage_tier.files.committing import Commits
from storage_tier.files.copies import Copies
from storage_tier.files.eviction import Evictor
from storage_tier.files.explain import Explainer
from storage_tier.files.for_observers import ForObservers
from storage_tier.files.held import Held
from storage_tier.files.loading import Loader
from storage_tier.files.mounting import Mounting
from storage_tier.files.neighbours import Neighbours
from storage_tier.files.observing import Observing
from storage_tier.files.passing import PassThrough
from storage_tier.files.peers import Peers
from storage_tier.files.persisting import Persisting
from storage_tier.files.publishing import Publisher
from storage_tier.files.settings import Settings
from storage_tier.files.tree import Tree
from storage_tier.files.under import UnderStores
from storage_tier.files.upkeep import Upkeep
from storage_tier.files.virtual import VirtualFiles
from storage_tier.host import proof_of
from storage_tier.tier import Tier

LOG = logging.getLogger(__name__)


class Parts:
    """The parts of one `Files`, which says what each of its calls does. Each is given those that it needs."""

    def __init__(
        self,
        tier: Tier,
        catalog: Catalog,
        address: str,
        options: FilesOptions,
        peers: Peers,
        observer_facts: Mapping[str, Any],
    ) -> None:
        """As `Files`."""
        self.tier = tier
        self.catalog = catalog
        self._options = options
        self._address = address
        for_observers = ForObservers()
        self.held = Held(tier)
        self.neighbours = Neighbours(catalog, tier.server_id, options.dead_after_s)
        self.observing = Observing(catalog, for_observers, {"address": address, **observer_facts})
        self.settings = Settings(catalog, self.observing.sync, DEFAULT_TIMEOUT_S)
        self.under = UnderStores(self.settings, options.under_timeout_s)
        self.virtual = VirtualFiles(tier, self.held, self.observing.resolve, self.observing.list_virtual)
        self.evictor = Evictor(tier, catalog, self.held, self.neighbours, self.virtual)
        self.alone = Alone(catalog, options.dead_after_s, options.under_timeout_s)
        self.loader = Loader(
            catalog,
            self.held,
            self.neighbours,
            peers,
            self.settings,
            self.under,
            self.virtual,
            self.alone,
            self.evictor.why,
        )
        self.pass_through = PassThrough(catalog, self.neighbours, peers, self.under)
        self.persisting = Persisting(
            catalog, self.held, self.loader, self.settings, self.under, self.alone, options.under_timeout_s
        )
        self.publisher = Publisher(
            catalog,
            self.held,
            self.evictor,
            self.settings,
            self.under,
            self.persisting,
            self.observing,
            self.alone,
        )
        self.commits = Commits(
            tier,
            self.held,
            self.evictor,
            self.loader,
            self.under,
            self.observing,
            self.virtual,
            self.publisher,
            options.early_check_bytes,
            options.reservation_ttl_s,
        )
        self.tree = Tree(
            catalog,
            self.held,
            self.loader,
            self.settings,
            self.under,
            self.persisting,
            self.observing,
            self.virtual,
            self.alone,
            self.publisher.release,
        )
        for_observers.connect(self.loader, self.commits, self.tree)
        self.explainer = Explainer(
            tier,
            catalog,
            self.held,
            self.evictor,
            self.neighbours,
            self.under,
            self.persisting,
            self.observing,
        )
        self.copies = Copies(catalog, self.neighbours, peers, self.loader, self.evictor)
        self.mounting = Mounting(catalog, self.held, self.settings, self.under, options.under_timeout_s)
        self.chores = Chores(
            tier,
            catalog,
            self.held,
            self.neighbours,
            self.settings,
            self.under,
            self.virtual,
            self.persisting,
            self.observing,
            self.commits,
            self.alone,
            options,
        )
        self.upkeep = Upkeep(self.chores.tasks())
        self._closed = False

    def start(self) -> None:
        """As `Files.start`."""
        self.catalog.members.register(self.tier.server_id, self._address, proof_of(self.tier.nonce).hex())
        self.neighbours.refresh()
        found = self.catalog.replicas.reconcile(self.held.start())
        self.held.drop(found.unnamed)
        if found.lost:
            LOG.warning("%d blocks that this server had are gone", len(found.lost))
        self.tier.make_room = self.evictor.make_room
        self.observing.start()
        self.settings.look()
        self.persisting.start()
        self.upkeep.start()
        self.chores.start()

    def close(self) -> None:
        """As `Files.close`."""
        if self._closed:
            return
        self._closed = True
        self.upkeep.close(self._options.close_timeout_s)
        self.persisting.close(self._options.close_timeout_s)
        self.observing.close(self._options.close_timeout_s)
        try:
            self.observing.record()
        except TierError as error:
            LOG.warning(
                "how far observers have come could not be noted, so they are told some commits again: %s", error
            )
        self.tier.make_room = None
        self.under.close()
        self.chores.close()

    def status(self) -> FilesStatus:
        """As `Files.status`."""
        spilled = self.tier.spilled
        return FilesStatus(
            server_id=self.tier.server_id,
            address=self._address,
            catalog_revision=self.catalog.revision(),
            members=self.neighbours.everybody(),
            failure=self.upkeep.failure,
            evicted_count=self.evictor.evicted_count,
            spilled_count=len(spilled),
            spilled_bytes=sum(info.file_bytes for info in spilled.values()),
            fetched_count=self.loader.fetched_count,
            loaded_count=self.loader.loaded_count,
            persister=self.persisting.status(),
            mounts=self.under.status(),
            attachments=tuple(
                {**asdict(state), "called": attached.name} for attached, state in self.observing.states()
            ),
        )
