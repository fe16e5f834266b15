"""Where a file's bytes are and which way a read takes, for people: the commonest question to every tier."""

from __future__ import annotations

import os

from storage_tier.catalog import Attached, Catalog, Entry
from storage_tier.errors import PathNotDirectory, PathNotFound, TierError
from storage_tier.files.base import Explanation, Holder, LocalBlock, Route, block_path_of
from storage_tier.files.eviction import Evictor
from storage_tier.files.held import Held
from storage_tier.files.neighbours import Neighbours
from storage_tier.files.observing import Observing
from storage_tier.files.persisting import Persisting
from storage_tier.files.under import UnderStores
from storage_tier.headers import clean_prefix, is_below
from storage_tier.observers.base import FileInfo
from storage_tier.observers.options import AttachmentState
from storage_tier.tier import Tier

# For an observer that has to make the file to tell whether it knows it: as long as a reader would wait.
LOOK_TIMEOUT_S = 30.0


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
        except PathNotDirectory as error:
            # Nobody else is asked about such a path.
            text = str(error)
            return Explanation(path, None, "nowhere", (), url, (f"{text[:1].upper()}{text[1:]}.",))
        except PathNotFound:
            return self._unknown(path, url)
        if entry.kind != "file":
            kind = f"mount point of {url}" if entry.kind == "mount" else "directory"
            said = f"{path} is a {kind}: it has no bytes of its own, the files in it have."
            return Explanation(path, entry, "nowhere", (), url, (said,))
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

    def _unknown(self, path: str, url: str | None) -> Explanation:
        """A path that the catalog does not have."""
        try:
            below = self._under.stat(path)
        except TierError as error:
            said = f"The tier has nothing at {path}, and whether {url} has something there is not known: {error}"
            return Explanation(path, None, "nowhere", (), url, (said,))
        if below is not None and below.kind != "file":
            said = f"{path} is a directory that only {url} has: it has no bytes of its own, the files in it have."
            return Explanation(path, below, "nowhere", (), url, (said,))
        if below is not None:
            told = (
                f"Only {url} has it, {below.size_bytes:,} bytes: it is in no server's memory, and has no version yet.",
                "A read loads it from there, and keeps it if there is room.",
            )
            return Explanation(path, below, "under-store", (), url, told)
        also = "" if url is None else f" {url} was asked, and has nothing there either."
        sentences = [f"There is nothing at {path}.{also}"]
        asked = self._resolvers(path)
        names = " or ".join(f"the observer {attached.name} of {attached.directory}" for attached, _ in asked)
        try:
            made = self._virtual(path)
        except TierError as error:
            sentences.append(f"Whether {names or 'an observer'} makes it when it is opened is not known: {error}")
            return Explanation(path, None, "nowhere", (), url, tuple(sentences))
        if made is not None:
            version = f"version {made.version}, " if made.version else ""
            told = (
                f"It is a virtual file: {names or 'an observer'} makes it when it is opened, now {version}"
                f"{made.size_bytes:,} bytes.",
                "Nothing of it is stored. Who opens it has one whole version, in memory as long as it is open.",
            )
            return Explanation(path, None, "virtual", (), url, told)
        if asked:
            sentences.append(f"No virtual file is there either: {names} was asked, and does not make it.")
        sentences += [
            f"The observer {attached.name} of {attached.directory} does not work now ({state.state}): {state.failure}"
            for attached, state in asked
            if state.state != "running"
        ]
        return Explanation(path, None, "nowhere", (), url, tuple(sentences))

    def _resolvers(self, path: str) -> list[tuple[Attached, AttachmentState]]:
        """Those that may make a virtual file at a path."""
        return [
            (attached, state)
            for attached, state in self._observing.states()
            if "resolve" in state.hooks and is_below(path, clean_prefix(attached.directory))
        ]

    def _virtual(self, path: str) -> FileInfo | None:
        """What an observer makes at a path; as a rule its directory's list tells, and nothing has to be made.

        Raises:
            ObserverFailed, DeadlineExceeded.
        """
        listed = self._observing.list_virtual(path.rpartition("/")[0] or "/")
        for info in listed:
            if info.path == path:
                return info
        found = self._observing.resolve(path, LOOK_TIMEOUT_S)
        if found is None:
            return None
        os.close(found.fd)
        return found.info
