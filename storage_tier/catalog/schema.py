"""The tables of the catalog, and what a database must be to hold them.

The namespace is a tree of rows, each with the id of its parent: renaming a directory changes one row, whatever
lies below it, and listing one reads one range of the index (parent_id, name). Names compare by their bytes on
both databases. There are no foreign keys: all writers stand in one queue (see `database`), each leaves the tree
whole, and a check on each row would be paid by every commit.
"""

from __future__ import annotations

import uuid

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    insert,
    inspect,
    select,
    text,
)

from storage_tier.catalog.errors import CatalogRefused

SCHEMA_VERSION = 3
ROOT_ID = 1

# Names in PostgreSQL would otherwise sort by the language of the database.
_BYTEWISE = Text().with_variant(Text(collation="C"), "postgresql")
# SQLite counts rows by itself only in a column of exactly this type.
_ROW_ID = BigInteger().with_variant(Integer, "sqlite")
# Any number: it only has to be the same for all that open a new database at once.
_CREATION_LOCK = 7306581923

_tables = MetaData()

catalog = Table(
    "tier_catalog",
    _tables,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("schema_version", Integer, nullable=False),
    Column("identity", Text, nullable=False),
    # +1 with each change of the namespace, in the order of the commits.
    Column("revision", BigInteger, nullable=False),
    # +1 whenever the epoch of a server changes: who has seen it needs no other look to know that it may write.
    Column("membership", BigInteger, nullable=False),
    # +1 whenever mounts, observers or their paths may have changed: who has seen it knows them all.
    Column("settings", BigInteger, nullable=False),
)

entry = Table(
    "tier_entry",
    _tables,
    Column("id", _ROW_ID, primary_key=True),
    Column("parent_id", BigInteger, nullable=False),
    Column("name", _BYTEWISE, nullable=False),
    Column("kind", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("modified_ns", BigInteger, nullable=False),
    # Of a directory: the highest version that a path below it had and may have lost. New files start above it.
    Column("version_floor", BigInteger, nullable=False),
    # Of a file, all to the end.
    Column("version", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("block_id", Text),
    Column("metadata", Text, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("persisted", Text, nullable=False),
    Column("expires_ns", BigInteger),
    # The catalog's revision that its commit made; 0 of what was loaded, which is no commit of anybody here.
    Column("sequence", BigInteger, nullable=False),
    # The server that committed it.
    Column("server_id", Text),
    # The observers by whose work it came to be, as JSON.
    Column("origin", Text),
    # What the under-store called these bytes when they were published or loaded.
    Column("stamp", Text),
    UniqueConstraint("parent_id", "name", name="tier_entry_by_name"),
)
Index(
    "tier_entry_by_block",
    entry.c.block_id,
    sqlite_where=entry.c.block_id.is_not(None),
    postgresql_where=entry.c.block_id.is_not(None),
)
Index(
    "tier_entry_by_expiry",
    entry.c.expires_ns,
    sqlite_where=entry.c.expires_ns.is_not(None),
    postgresql_where=entry.c.expires_ns.is_not(None),
)
Index(
    "tier_entry_by_sequence",
    entry.c.sequence,
    sqlite_where=entry.c.sequence > 0,
    postgresql_where=entry.c.sequence > 0,
)
Index(
    "tier_entry_waiting",
    entry.c.id,
    sqlite_where=entry.c.persisted == "waiting",
    postgresql_where=entry.c.persisted == "waiting",
)

mount = Table(
    "tier_mount",
    _tables,
    Column("entry_id", BigInteger, primary_key=True, autoincrement=False),
    Column("url", Text, nullable=False),
    Column("options", Text, nullable=False),
    Column("write_type", Text, nullable=False),
)

observer = Table(
    "tier_observer",
    _tables,
    Column("entry_id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", _BYTEWISE, primary_key=True),
    Column("observer", Text, nullable=False),
    Column("parameters", Text, nullable=False),
    # How it is run, as JSON.
    Column("options", Text, nullable=False),
    Column("attached_ns", BigInteger, nullable=False),
    # What the catalog's revision was then: it is told of what came after.
    Column("attached_sequence", BigInteger, nullable=False),
    Column("failure", Text),
)

member = Table(
    "tier_member",
    _tables,
    Column("server_id", _BYTEWISE, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("address", Text, nullable=False),
    Column("nonce", Text, nullable=False),
    Column("started_ns", BigInteger, nullable=False),
    Column("heartbeat_ns", BigInteger, nullable=False),
    Column("retired", Boolean, nullable=False),
)

replica = Table(
    "tier_replica",
    _tables,
    Column("block_id", _BYTEWISE, primary_key=True),
    Column("server_id", _BYTEWISE, primary_key=True),
    # No entry names the block any more, for good: its bytes are to be deleted, then this row.
    Column("released", Boolean, nullable=False),
    sqlite_with_rowid=False,
)
Index(
    "tier_replica_released",
    replica.c.server_id,
    replica.c.block_id,
    sqlite_where=replica.c.released,
    postgresql_where=replica.c.released,
)

cursor = Table(
    "tier_cursor",
    _tables,
    # An attachment, for its life.
    Column("attachment_id", _BYTEWISE, primary_key=True),
    Column("server_id", _BYTEWISE, primary_key=True),
    # All commits of this server up to this sequence were told to it.
    Column("sequence", BigInteger, nullable=False),
)

# What somebody of this server works at in an under-store, with all below it.
claim = Table(
    "tier_claim",
    _tables,
    Column("path", _BYTEWISE, primary_key=True),
    Column("claim_id", _BYTEWISE, nullable=False),
    Column("server_id", _BYTEWISE, nullable=False),
)


def prepare(connection: Connection, now_ns: int, name: str) -> None:
    """Make the tables in an empty database, or check that they are of this program. In the caller's transaction.

    Several may do it at once: on SQLite the transaction is exclusive, on PostgreSQL there is a lock.

    Raises:
        CatalogRefused: the tables belong to another version of the program.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})"))
    if not inspect(connection).has_table(catalog.name):
        _tables.create_all(connection)
        connection.execute(
            insert(catalog).values(
                id=1, schema_version=SCHEMA_VERSION, identity=uuid.uuid4().hex, revision=0, membership=0, settings=0
            )
        )
        connection.execute(
            insert(entry).values(
                id=ROOT_ID,
                parent_id=0,
                name="",
                kind="directory",
                created_ns=now_ns,
                modified_ns=now_ns,
                version_floor=0,
                version=0,
                size_bytes=0,
                metadata="{}",
                pinned=False,
                persisted="not_needed",
                sequence=0,
            )
        )
        if connection.dialect.name == "postgresql":
            # The root's id was given, not drawn.
            connection.execute(text("SELECT setval(pg_get_serial_sequence('tier_entry', 'id'), 1)"))
        return
    found = connection.execute(select(catalog.c.schema_version)).scalar_one_or_none()
    if found != SCHEMA_VERSION:
        newer = found is not None and found > SCHEMA_VERSION
        remedy = (
            "update this program" if newer else "it was made by an unfinished or older one: start with a new database"
        )
        raise CatalogRefused(
            f"the catalog {name} has schema {found}, and this program knows schema {SCHEMA_VERSION}: {remedy}"
        )
