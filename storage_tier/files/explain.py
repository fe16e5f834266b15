"""Where a file's bytes are and which way a read takes, for people: the commonest question to every tier."""

from __future__ import annotations

from storage_tier.catalog import Catalog, Entry
from storage_tier.errors import PathNotDirectory, PathNotFound, TierError
from storage_tier.files.base import Explanation, Holder, LocalBlock, Route, block_path_of
from storage_tier.files.eviction import Evictor
from storage_tier.files.held import Held
from storage_tier.files.neighbours import Neighbours
from storage_tier.files.observing import Observing
from storage_tier.files.persisting import Persisting
from storage_tier.files.under import UnderStores
from storage_tier.tier import Tier


class Explainer:
    """Asks, changes nothing. Thread-safe."""

    def __init__(
        self,
        tier: Tier,
        catalog: Catalog,
        held: Held,
        evictor: Evictor,
        neighbours: Neighbours,
        under: UnderStores,
        persisting: Persisting,
        observing: Observing,
    ) -> None:
        self._tier = tier
        self._catalog = catalog
        self._held = held
        self._evictor = evictor
        self._neighbours = neighbours
        self._under = under
        self._persisting = persisting
        self._observing = observing

    def explain(self, path: str) -> Explanation:
        """As `Files.explain`."""
        self._neighbours.refresh()
        place = self._under.of(path)
        url = None if place is None else place.store.url
        try:
            entry = self._catalog.namespace.stat(path)
        except (PathNotFound, PathNotDirectory) as error:
            return self._unknown(path, url, str(error))
        if entry.kind != "file":
            kind = "mount point of " + str(url) if entry.kind == "mount" else "directory"
            return Explanation(path, entry, "nowhere", (), url, (f"{path} is a {kind}; it has no bytes.",))
        if entry.block_id is None:
            return Explanation(path, entry, "mapped", (), url, ("It is empty: there is nothing to read.",))
        holder_ids = self._catalog.replicas.locations([entry.block_id])[entry.block_id]
        local = self._held.find(entry.block_id, remember=False)
        holders = self._neighbours.holders(holder_ids, None if local is None else local.level)
        sentences = [f"Version {entry.version}, {entry.size_bytes:,} bytes in block {entry.block_id}."]
        route = self._route(entry, local, holders, url, sentences)
        self._persistence(entry, url, sentences)
        if local is not None:
            self._keeping(entry.block_id, sentences)
        return Explanation(path, entry, route, holders, url, tuple(sentences))

    def _route(
        self, entry: Entry, local: LocalBlock | None, holders: tuple[Holder, ...], url: str | None, said: list[str]
    ) -> Route:
        here = self._neighbours.server_id
        if local is not None:
            where = "in the shared memory" if local.level == "memory" else "on the second level, a disk,"
            said.append(
                f"It is {where} of this server ({here}), at {local.file}. A client of this host maps it without a "
                "copy; one of another host, or of a container that does not share this file system, gets the bytes "
                "over the network."
            )
            if local.level == "disk":
                said.append("It was moved out of memory to make room, for it was on no other server and not persisted.")
            return "mapped"
        said.append(
            f"It is not in the memory of this server ({here}), so it cannot be mapped before it is brought here."
        )
        for holder in holders:
            if holder.here:
                said.append("The catalog says that this server has it, and the file is gone: restart this server.")
            elif self._neighbours.alive(holder.server_id):
                said.append(
                    f"The server {holder.server_id} at {holder.address} has it: a read copies it from there, and "
                    "keeps it if there is room."
                )
                return "peer"
            else:
                said.append(
                    f"The server {holder.server_id} has it and was not heard of for {holder.silent_s:.0f} s, so it is "
                    "not asked."
                )
        if not holders:
            said.append("No server has it in memory.")
        if url is not None and entry.persisted == "done":
            said.append(f"A read loads it from {url}, and keeps it if there is room.")
            return "under-store"
        said.append("Its bytes cannot be had now." if holders else "Its bytes are lost.")
        return "nowhere"

    def _persistence(self, entry: Entry, url: str | None, said: list[str]) -> None:
        if url is None:
            said.append("It is below no mount: it lives in memory only, and a host that is lost takes it along.")
        elif entry.persisted == "done":
            said.append(f"It is persisted in {url}.")
        elif entry.persisted == "waiting":
            why = self._persisting.why(entry.path)
            said.append(f"It waits to be persisted in {url}{f': {why}' if why else '.'}")
        else:
            said.append(f"It is below the mount of {url} and was not written to it (must_cache): `persist` does.")

    def _keeping(self, block_id: str, said: list[str]) -> None:
        reason = self._evictor.reason(block_id, self._catalog.replicas.uses([block_id])[block_id])
        if reason is None:
            said.append("It may be evicted from here when room is needed: nothing would be lost.")
        else:
            said.append(f"It is not evicted from here: it is {reason}.")
        if self._tier.is_open(block_path_of(block_id)):
            said.append("A process of this host has it mapped.")

    def _unknown(self, path: str, url: str | None, why: str) -> Explanation:
        try:
            below = self._under.stat(path)
        except TierError as error:
            return Explanation(path, None, "nowhere", (), url, (f"The catalog: {why}.", f"The under-store: {error}"))
        if below is not None and below.kind == "file":
            said = (
                f"Only {url} has it ({below.size_bytes:,} bytes); it was never read or written through the tier.",
                "A read loads it from there, and keeps it if there is room.",
            )
            return Explanation(path, below, "under-store", (), url, said)
        if below is not None:
            return Explanation(path, below, "nowhere", (), url, (f"It is a directory of {url}; it has no bytes.",))
        resolvers = [attached.name for attached, state in self._observing.states() if "resolve" in state.hooks]
        if resolvers:
            said = (f"The catalog: {why}.", f"A read asks the observers {', '.join(resolvers)} whether they know it.")
            return Explanation(path, None, "virtual", (), url, said)
        return Explanation(path, None, "nowhere", (), url, (f"{why}.",))
