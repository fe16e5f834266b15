"""The writes that changes of the namespace are made of. Each runs in its caller's transaction.

Statements are made once: SQLAlchemy then finds them compiled, and executing one costs little more than the driver.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, bindparam, case, delete, exists, func, insert, select, union_all, update
from sqlalchemy.exc import IntegrityError

from storage_tier.catalog.database import Write
from storage_tier.catalog.entries import COLUMNS, Above, Found, Place, Released, paths_of
from storage_tier.catalog.errors import DirectoryNotEmpty, MountConflict
from storage_tier.catalog.execute import run
from storage_tier.catalog.schema import entry, mount, observer, replica
from storage_tier.errors import InvalidRequest

# SQLite takes 32,766 parameters; more than a few hundred rows a statement save nothing.
CHUNK_COUNT = 500

EXPIRED = (
    select(entry.c.parent_id, *COLUMNS)
    .where(entry.c.expires_ns <= bindparam("now_ns"))
    .order_by(entry.c.expires_ns)
    .limit(bindparam("count"))
)
_INSERT = insert(entry).returning(entry.c.id)
_UPDATE = update(entry).where(entry.c.id == bindparam("of"))
_DELETE = delete(entry).where(entry.c.id == bindparam("of"))
_DELETE_OBSERVERS = delete(observer).where(observer.c.entry_id == bindparam("of"))
_TOUCH = (
    update(entry)
    .where(entry.c.id == bindparam("of"))
    .values(
        modified_ns=bindparam("now_ns"),
        version_floor=case((entry.c.version_floor < bindparam("lost"), bindparam("lost")), else_=entry.c.version_floor),
    )
)
_INSERT_REPLICA = insert(replica)
_ANY_CHILD = select(entry.c.name).where(entry.c.parent_id == bindparam("of")).limit(1)
_ANY_SETTING = union_all(select(mount.c.entry_id), select(observer.c.entry_id)).limit(1)
_UNNAMED = ~exists().where(entry.c.block_id == replica.c.block_id)
_RELEASE = (
    update(replica)
    .where(replica.c.block_id == bindparam("block"), _UNNAMED)
    .values(released=True)
    .returning(replica.c.server_id)
)
_RELEASE_MANY = (
    update(replica)
    .where(replica.c.block_id.in_(bindparam("blocks", expanding=True)), _UNNAMED)
    .values(released=True)
    .returning(replica.c.block_id, replica.c.server_id)
)

_child = select(entry.c.id, entry.c.kind, entry.c.block_id, entry.c.version, entry.c.version_floor)
_below = _child.where(entry.c.parent_id == bindparam("of")).cte("below", recursive=True)
_below = _below.union_all(_child.join(_below, entry.c.parent_id == _below.c.id))
_BELOW = select(_below)
_UNSAFE_BELOW = select(func.count()).where(
    entry.c.id.in_(select(_below.c.id)), entry.c.kind == "file", entry.c.persisted != "done"
)
_DELETE_BELOW = delete(entry).where(entry.c.id.in_(select(_below.c.id)))


def insert_entry(write: Write, parent_id: int, name: str, row: Found, server_id: str | None = None) -> int:
    """A new row; the id in `row` is ignored, and the new one is returned."""
    values = row._asdict()
    del values["id"]
    values["parent_id"] = parent_id
    values["name"] = name
    values["server_id"] = server_id
    return int(run(write.connection, _INSERT, values)[0][0])


def update_entry(write: Write, entry_id: int, **values: Any) -> None:
    """Give columns of a row new values."""
    run(write.connection, _UPDATE, {"of": entry_id, **values})


def delete_file(write: Write, entry_id: int) -> None:
    """Its row."""
    run(write.connection, _DELETE, {"of": entry_id})


def delete_directory(write: Write, entry_id: int) -> None:
    """Its row, and the observers attached to it. It must be empty."""
    run(write.connection, _DELETE, {"of": entry_id})
    run(write.connection, _DELETE_OBSERVERS, {"of": entry_id})


def touch(write: Write, directory_id: int, lost_version: int = 0) -> None:
    """Note that something in a directory came, went or was renamed, and the highest version that went with it."""
    run(write.connection, _TOUCH, {"of": directory_id, "now_ns": write.now_ns, "lost": lost_version})


def make_directory(write: Write, parent: Above, name: str, kind: str = "directory") -> Found:
    """A new directory in `parent`, which is not touched."""
    row = Found(0, kind, parent.version_floor, 0, 0, None, "{}", write.now_ns, write.now_ns, False, "not_needed", None)
    return row._replace(id=insert_entry(write, parent.id, name, row))


def parent_of(write: Write, place: Place, make: bool) -> Above:
    """The directory that holds a path; with `make`, what is missing of it is made.

    Raises:
        PathNotFound, PathNotDirectory.
    """
    if not make or len(place.above) == len(place.names) or place.above[-1].kind == "file":
        return place.parent()
    parent = place.above[-1]
    touch(write, parent.id)
    for name in place.names[len(place.above) - 1 : -1]:
        made = make_directory(write, parent, name)
        parent = Above(made.id, made.kind, made.version_floor)
    return parent


def add_replicas(write: Write, block_id: str, server_ids: Iterable[str]) -> None:
    """Note who holds a new block.

    Raises:
        InvalidRequest: the block is not new.
    """
    rows = [{"block_id": block_id, "server_id": server_id, "released": False} for server_id in sorted(set(server_ids))]
    try:
        if len(rows) == 1:
            run(write.connection, _INSERT_REPLICA, rows[0])
        elif rows:
            write.connection.execute(_INSERT_REPLICA, rows)
    except IntegrityError:
        raise InvalidRequest(
            f"the block {block_id} is in the catalog already: each commit needs a new block; `copy` names one twice"
        ) from None


def release(connection: Connection, block_ids: Iterable[str | None]) -> tuple[Released, ...]:
    """Which of these blocks no entry names any more, and note so. Blocks that nobody holds are left out."""
    blocks = sorted({block_id for block_id in block_ids if block_id is not None})
    if len(blocks) == 1:
        servers = sorted(row[0] for row in run(connection, _RELEASE, {"block": blocks[0]}))
        return (Released(blocks[0], tuple(servers)),) if servers else ()
    holders: dict[str, list[str]] = {}
    for start in range(0, len(blocks), CHUNK_COUNT):
        for block_id, server_id in connection.execute(_RELEASE_MANY, {"blocks": blocks[start : start + CHUNK_COUNT]}):
            holders.setdefault(block_id, []).append(server_id)
    return tuple(Released(block_id, tuple(sorted(holders[block_id]))) for block_id in sorted(holders))


def refuse_nonempty(write: Write, directory_id: int, path: str) -> None:
    """Raise DirectoryNotEmpty if something is in a directory."""
    rows = run(write.connection, _ANY_CHILD, {"of": directory_id})
    if rows:
        raise DirectoryNotEmpty(f"{path} is not empty: there is {rows[0][0]!r:.80} in it")


def delete_below(write: Write, directory_id: int, path: str) -> tuple[tuple[Released, ...], int]:
    """Remove all that lies below a directory; the released blocks, and the highest version that was lost.

    Raises:
        MountConflict: a mount point lies below it.
    """
    rows = write.connection.execute(_BELOW, {"of": directory_id}).all()
    if not rows:
        return (), 0
    mounts = [row.id for row in rows if row.kind == "mount"]
    if mounts:
        where = paths_of(write.connection, mounts[:1])[mounts[0]]
        raise MountConflict(f"{path} has the mount point {where} below it: unmount that first")
    write.connection.execute(_DELETE_BELOW, {"of": directory_id})
    write.connection.execute(
        _DELETE_OBSERVERS, [{"of": row.id} for row in rows if row.kind == "directory"] or [{"of": 0}]
    )
    lost = max(max(row.version, row.version_floor) for row in rows)
    return release(write.connection, (row.block_id for row in rows)), lost


def count_settings(write: Write) -> None:
    """Note that paths of mounts and observers may have changed, if there are any."""
    if run(write.connection, _ANY_SETTING):
        write.settings += 1


def unsafe_below(write: Write, directory_id: int) -> int:
    """How many files below a directory the under-store does not have."""
    return int(write.connection.execute(_UNSAFE_BELOW, {"of": directory_id}).scalar_one())
