"""Where the blocks are. The catalog says it, the servers keep to it: bytes first, then the row; the row last to go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, Connection, bindparam, delete, exists, false, insert, select

from storage_tier.catalog.checks import check_id
from storage_tier.catalog.database import Database
from storage_tier.catalog.rows import CHUNK_COUNT
from storage_tier.catalog.schema import entry, replica
from storage_tier.errors import BlockNotFound


class Use(NamedTuple):
    """Who needs a block."""

    named: bool
    """By an entry at least; else it may be deleted."""
    pinned: bool
    """By one of the entries that name it."""
    persisted: bool
    """By all of the entries that name it: 'done'."""
    server_ids: tuple[str, ...]
    """Who holds it."""

    def victim(self, server_id: str) -> bool:
        """Whether this server may drop its copy and nothing is lost."""
        elsewhere = any(other != server_id for other in self.server_ids)
        return not self.named or (not self.pinned and (self.persisted or elsewhere))


class Reconciled(NamedTuple):
    """What a server finds when it compares what it has with what the catalog says."""

    unnamed: tuple[str, ...]
    """It has them and no entry names them: delete the bytes; the rows are gone already."""
    lost: tuple[str, ...]
    """Entries name them, and the catalog said it had them, and it doesn't: no longer noted here."""


class Replicas:
    """The places of the blocks. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, block_id: str) -> None:
        """Note that this server holds a block too, once its bytes are there. Twice is fine.

        Raises:
            BlockNotFound: no entry names it any more: delete the bytes again.
        """
        check_id(block_id, "block")
        with self._database.write(changes=False) as write:
            values = {"block": block_id, "server": self._database.server_id}
            if write.connection.execute(_NAMED, {"blocks": [block_id]}).first() is None:
                raise BlockNotFound(f"no file has the block {block_id} any more")
            write.connection.execute(_ADD, values)

    def drop(self, block_ids: Iterable[str]) -> None:
        """Note that this server holds these blocks no longer, once their bytes are gone. Unknown ones are fine."""
        with self._database.write(changes=False) as write:
            for chunk in _chunks(block_ids):
                write.connection.execute(_DROP, {"blocks": chunk, "server": self._database.server_id})

    def evict(self, block_ids: Iterable[str]) -> tuple[str, ...]:
        """Give up this server's copy of those blocks of which that loses nothing. Atomic.

        Given up is what no entry names, and what no entry has pinned and either all have persisted or another server
        holds. Two servers cannot give up the last two copies at once.

        Returns:
            the blocks whose bytes may be deleted now: the catalog sends nobody here for them.
        """
        server_id = self._database.server_id
        with self._database.write(changes=False) as write:
            blocks = list(block_ids)
            uses = _uses(write.connection, blocks)
            victims = tuple(
                block for block in blocks if server_id in uses[block].server_ids and uses[block].victim(server_id)
            )
            for chunk in _chunks(victims):
                write.connection.execute(_DROP, {"blocks": chunk, "server": server_id})
            return victims

    def locations(self, block_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """block id -> ids of the servers that hold it, for each block asked for."""
        blocks = list(block_ids)
        with self._database.read() as connection:
            return _locations(connection, blocks)

    def uses(self, block_ids: Iterable[str]) -> dict[str, Use]:
        """Who needs these blocks, for each block asked for."""
        blocks = list(block_ids)
        with self._database.read() as connection:
            return _uses(connection, blocks)

    def orphans(self, count: int = CHUNK_COUNT) -> tuple[str, ...]:
        """Blocks that this server holds and no entry names: delete the bytes, then `drop` them.

        After each change of the namespace these are the released ones; after a crash, whatever was left.
        """
        with self._database.read() as connection:
            found = connection.execute(_ORPHANS, {"server": self._database.server_id, "count": count})
            return tuple(found.scalars())

    def reconcile(self, block_ids: Iterable[str]) -> Reconciled:
        """Make the catalog say that this server holds exactly these blocks, those which entries name. For its start.

        A block that was sealed and never committed is among the unnamed, so a crash between the two leaks nothing.
        """
        held = set(block_ids)
        with self._database.write(changes=False) as write:
            server_id = self._database.server_id
            noted = set(write.connection.execute(_HELD, {"server": server_id}).scalars())
            named: set[str] = set()
            for chunk in _chunks(sorted(held)):
                named.update(write.connection.execute(_NAMED, {"blocks": chunk}).scalars())
            for chunk in _chunks(sorted(noted - named)):
                write.connection.execute(_DROP, {"blocks": chunk, "server": server_id})
            new = [
                {"block_id": block_id, "server_id": server_id, "released": False} for block_id in sorted(named - noted)
            ]
            if new:
                write.connection.execute(insert(replica), new)
            lost: set[str] = set()
            for chunk in _chunks(sorted(noted - held)):
                lost.update(write.connection.execute(_NAMED, {"blocks": chunk}).scalars())
            return Reconciled(tuple(sorted(held - named)), tuple(sorted(lost)))


def _chunks(block_ids: Iterable[str]) -> Iterator[Sequence[str]]:
    blocks = list(block_ids)
    for start in range(0, len(blocks), CHUNK_COUNT):
        yield blocks[start : start + CHUNK_COUNT]


def _locations(connection: Connection, block_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = dict.fromkeys(block_ids, ())
    for chunk in _chunks(found):
        for block_id, server_id in connection.execute(_LOCATIONS, {"blocks": chunk}):
            found[block_id] += (server_id,)
    return found


def _uses(connection: Connection, block_ids: Sequence[str]) -> dict[str, Use]:
    naming: dict[str, list[tuple[bool, bool]]] = {}
    for chunk in _chunks(dict.fromkeys(block_ids)):
        for block_id, pinned, persisted in connection.execute(_ENTRIES, {"blocks": chunk}):
            naming.setdefault(block_id, []).append((pinned, persisted == "done"))
    return {
        block_id: Use(
            block_id in naming,
            any(pinned for pinned, _ in naming.get(block_id, [])),
            block_id in naming and all(persisted for _, persisted in naming[block_id]),
            server_ids,
        )
        for block_id, server_ids in _locations(connection, block_ids).items()
    }


_BLOCKS: BindParameter[Any] = bindparam("blocks", expanding=True)
_SERVER: BindParameter[Any] = bindparam("server")
_block, _holder = bindparam("block", type_=replica.c.block_id.type), bindparam("server", type_=replica.c.server_id.type)
_ADD = insert(replica).from_select(
    ["block_id", "server_id", "released"],
    select(_block, _holder, false()).where(
        ~exists().where(replica.c.block_id == _block, replica.c.server_id == _holder).correlate(None)
    ),
)
_DROP = delete(replica).where(replica.c.block_id.in_(_BLOCKS), replica.c.server_id == _SERVER)
_HELD = select(replica.c.block_id).where(replica.c.server_id == _SERVER)
_NAMED = select(entry.c.block_id).where(entry.c.block_id.in_(_BLOCKS)).distinct()
_ENTRIES = select(entry.c.block_id, entry.c.pinned, entry.c.persisted).where(entry.c.block_id.in_(_BLOCKS))
_LOCATIONS = (
    select(replica.c.block_id, replica.c.server_id).where(replica.c.block_id.in_(_BLOCKS)).order_by(replica.c.server_id)
)
_ORPHANS = (
    select(replica.c.block_id)
    .where(replica.c.server_id == _SERVER, replica.c.released)
    .order_by(replica.c.block_id)
    .limit(bindparam("count"))
)
