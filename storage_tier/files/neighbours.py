"""The servers of the catalog as this one sees them: who lives, and where."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

from storage_tier.catalog import Catalog
from storage_tier.catalog.members import Member
from storage_tier.errors import InvalidRequest, VersionConflict
from storage_tier.files.base import Holder, Level

LOG = logging.getLogger(__name__)


class Neighbours:
    """The members, this server among them. Looks at the catalog only in `refresh`. Thread-safe."""

    def __init__(self, catalog: Catalog, server_id: str, dead_after_s: float) -> None:
        self._catalog = catalog
        self.server_id = server_id
        self._dead_after_s = dead_after_s
        # Replaced together, never changed.
        self._seen: tuple[float, dict[str, Member]] = (0.0, {})

    def refresh(self) -> None:
        """Ask the catalog."""
        asked_s = time.monotonic()
        self._seen = (asked_s, {member.server_id: member for member in self._catalog.members.list()})

    def retire(self, after_s: float) -> None:
        """Give servers up that were silent for so long: the catalog forgets what they have, and refuses them.

        Raises:
            as the catalog.
        """
        before = self._seen
        for member in before[1].values():
            if member.server_id == self.server_id or self.silent_s(member.server_id) <= after_s:
                continue
            try:
                lost = self._catalog.members.retire(member.server_id, member.epoch)
            except (VersionConflict, InvalidRequest):
                continue  # it is back, or another server was first
            LOG.warning(
                "the server %s at %s was not heard of for %.0f s, and is given up; nobody else has %d of its blocks in "
                "memory: of files that are not persisted these are lost, unless it is started anew with its directory",
                member.server_id,
                member.address,
                self.silent_s(member.server_id),
                len(lost),
            )
            self.refresh()

    def silent_s(self, server_id: str) -> float:
        """How long ago a server was heard of; inf: it is no member."""
        at_s, members = self._seen
        if server_id not in members:
            return math.inf
        return members[server_id].silent_s + time.monotonic() - at_s

    def alive(self, server_id: str) -> bool:
        """Whether it is worth asking. Of this server always."""
        return server_id == self.server_id or self.silent_s(server_id) <= self._dead_after_s

    def address(self, server_id: str) -> str:
        """'' of who is no member."""
        found = self._seen[1].get(server_id)
        return "" if found is None else found.address

    def others(self, server_ids: Sequence[str], alive: bool = True) -> list[str]:
        """Those of the servers that are not this one, the last heard of first."""
        if any(server_id not in self._seen[1] for server_id in server_ids):
            self.refresh()
        found = [one for one in server_ids if one != self.server_id and (not alive or self.alive(one))]
        return sorted(found, key=self.silent_s)

    def all_others(self) -> list[str]:
        """The ids of all live members but this one."""
        return self.others(list(self._seen[1]))

    def holders(self, server_ids: Sequence[str], level: Level | None = None) -> tuple[Holder, ...]:
        """As status and explanations show them."""
        return tuple(
            Holder(
                one,
                self.address(one),
                one == self.server_id,
                self.silent_s(one),
                level if one == self.server_id else None,
            )
            for one in server_ids
        )

    def everybody(self) -> tuple[Holder, ...]:
        """All members."""
        return self.holders(sorted(self._seen[1]))
