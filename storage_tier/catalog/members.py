"""Who the servers are. Each start of a server has an epoch, and only its latest start may write."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, exists, insert, select, update

from storage_tier.catalog.checks import check_id
from storage_tier.catalog.database import Database
from storage_tier.catalog.errors import VersionConflict
from storage_tier.catalog.schema import catalog, claim, entry, member, replica
from storage_tier.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Member:
    """A server, as the catalog knows it."""

    server_id: str
    """For life."""
    epoch: int
    """+1 with each start of this server."""
    address: str
    """Where its peers reach it."""
    nonce: str
    """What its host knows it by."""
    started_ns: int
    """When it registered, by the catalog's clock."""
    silent_s: float
    """How long ago it was heard of, by the catalog's clock."""


class Members:
    """The servers of a catalog. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, server_id: str, address: str, nonce: str = "") -> Member:
        """Become this server, with a new epoch: from here on all older starts of it are fenced.

        One transaction. This process writes in this name until it registers anew.

        Raises:
            InvalidRequest.
        """
        check_id(server_id, "server")
        with self._database.write(changes=False, fenced=False) as write:
            found = write.connection.execute(_OF, {"of": server_id}).one_or_none()
            values = {
                "epoch": 1 if found is None else found.epoch + 1,
                "address": address,
                "nonce": nonce,
                "started_ns": write.now_ns,
                "heartbeat_ns": write.now_ns,
                "retired": False,
            }
            if found is None:
                write.connection.execute(insert(member), {"server_id": server_id, **values})
            else:
                write.connection.execute(_UPDATE, {"of": server_id, **values})
            write.connection.execute(_COUNT_MEMBERSHIP)
            write.connection.execute(_DROP_CLAIMS, {"of": server_id})
        epoch = int(values["epoch"])
        self._database.become(server_id, epoch)
        return Member(server_id, epoch, address, nonce, write.now_ns, 0.0)

    def heartbeat(self) -> None:
        """Say that this server lives.

        Raises:
            Fenced: it was started anew or retired: stop.
        """
        with self._database.write(changes=False) as write:
            write.connection.execute(_UPDATE, {"of": self._database.server_id, "heartbeat_ns": write.now_ns})

    def list(self, alive_within_s: float | None = None) -> list[Member]:
        """The servers by id, without the retired.

        Args:
            alive_within_s: only those heard of so lately; None for all.
        """
        with self._database.read() as connection:
            now_ns = self._database.now_ns(connection)
            rows = connection.execute(_ALL).all()
        found = [
            Member(row.server_id, row.epoch, row.address, row.nonce, row.started_ns, (now_ns - row.heartbeat_ns) / 1e9)
            for row in rows
        ]
        return [one for one in found if alive_within_s is None or one.silent_s <= alive_within_s]

    def retire(self, server_id: str, epoch: int) -> tuple[str, ...]:
        """Declare a server gone: its process is fenced if it still lives, and it holds no replica any more.

        Args:
            server_id: which.
            epoch: the start that is gone: a newer one is left alone.

        Returns:
            the blocks that entries name and nobody holds now: to be read from the under-store, or lost.

        Raises:
            VersionConflict: it was started anew meanwhile. InvalidRequest: there is no such server, or it is this one.
        """
        if server_id == self._database.server_id:
            raise InvalidRequest(f"the server {server_id} cannot retire itself")
        with self._database.write(changes=False) as write:
            found = write.connection.execute(_OF, {"of": server_id}).one_or_none()
            if found is None or found.retired:
                raise InvalidRequest(f"there is no server {server_id} in the catalog")
            if found.epoch != epoch:
                raise VersionConflict(
                    f"the server {server_id} has epoch {found.epoch}, and epoch {epoch} was to be retired"
                )
            write.connection.execute(_UPDATE, {"of": server_id, "retired": True})
            write.connection.execute(_COUNT_MEMBERSHIP)
            write.connection.execute(_DROP_CLAIMS, {"of": server_id})
            lost = write.connection.execute(_ONLY_HERE, {"of": server_id}).scalars().all()
            write.connection.execute(_DROP_ALL, {"of": server_id})
            return tuple(lost)


_OF = select(member.c.epoch, member.c.retired).where(member.c.server_id == bindparam("of"))
_ALL = select(member).where(~member.c.retired).order_by(member.c.server_id)
_UPDATE = update(member).where(member.c.server_id == bindparam("of"))
_COUNT_MEMBERSHIP = update(catalog).values(membership=catalog.c.membership + 1)
_DROP_ALL = delete(replica).where(replica.c.server_id == bindparam("of"))
_DROP_CLAIMS = delete(claim).where(claim.c.server_id == bindparam("of"))
_other = replica.alias("other")
_ONLY_HERE = (
    select(replica.c.block_id)
    .where(
        replica.c.server_id == bindparam("of"),
        exists().where(entry.c.block_id == replica.c.block_id),
        ~exists().where(_other.c.block_id == replica.c.block_id, _other.c.server_id != replica.c.server_id),
    )
    .order_by(replica.c.block_id)
)
