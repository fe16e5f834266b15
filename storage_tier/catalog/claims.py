"""Which server is at work below a mount point, and where: the one lock that all servers share for under-stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy import bindparam, delete, insert, select

from storage_tier.catalog.database import Database
from storage_tier.catalog.execute import run
from storage_tier.catalog.paths import split
from storage_tier.catalog.schema import claim, member


class Claims:
    """Paths that somebody has for itself, with all that is below them. Thread-safe.

    They end when they are given back, with the server's next start, when it is retired, and for whoever wants such a
    path when it was silent for long.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, claim_id: str, paths: Iterable[str], dead_after_s: float) -> str | None:
        """Claim all of these paths, or none. Atomic; waits for nobody.

        Args:
            claim_id: a new one, to give them back by.
            dead_after_s: a server that was silent for so long has no claim any more.

        Returns:
            None: they are claimed. Else the path of a claim that is in the way.
        """
        wanted = set(paths)
        with self._database.write(changes=False) as write:
            above = {one for path in wanted for one in _and_above(path)}
            for taken, server_id, heartbeat_ns in run(write.connection, _ALL):
                if taken not in above and wanted.isdisjoint(_and_above(taken)):
                    continue
                silent_s = (write.now_ns - heartbeat_ns) / 1e9
                if server_id == self._database.server_id or silent_s <= dead_after_s:
                    return str(taken)
                run(write.connection, _DROP_ONE, {"taken": taken})
            server_id = self._database.server_id
            write.connection.execute(
                insert(claim), [{"path": path, "claim_id": claim_id, "server_id": server_id} for path in wanted]
            )
            return None

    def give_back(self, claim_id: str) -> None:
        """End a claim. An unknown one is no error."""
        with self._database.write(changes=False) as write:
            run(write.connection, _DROP, {"of": claim_id})


def _and_above(path: str) -> Iterator[str]:
    """A path and all directories that it is below."""
    yield "/"
    above = ""
    for name in split(path):
        above += f"/{name}"
        yield above


_ALL = select(claim.c.path, claim.c.server_id, member.c.heartbeat_ns).join(
    member, member.c.server_id == claim.c.server_id
)
_DROP = delete(claim).where(claim.c.claim_id == bindparam("of"))
_DROP_ONE = delete(claim).where(claim.c.path == bindparam("taken"))
