"""The tables of a catalog, looked at past the program."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import create_engine, text


def check_whole(url: str) -> None:
    """Ask the tables, not the program: one tree, no row without its place, no name twice."""
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, parent_id, name, kind, block_id, version FROM tier_entry")).all()
        mounts = set(connection.execute(text("SELECT entry_id FROM tier_mount")).scalars())
        observed = set(connection.execute(text("SELECT entry_id FROM tier_observer")).scalars())
        revision = connection.execute(text("SELECT revision FROM tier_catalog")).scalar_one()
    engine.dispose()
    kinds = {row.id: row.kind for row in rows}
    parents = {row.id: row.parent_id for row in rows}
    assert parents[1] == 0
    for row in rows:
        if row.id != 1:
            assert kinds.get(row.parent_id) in ("directory", "mount"), f"{row} has no directory"
            assert row.name
        steps, at = 0, row.id
        while at != 1:
            at, steps = parents[at], steps + 1
            assert steps <= len(rows), f"{row} is in a circle"
        assert (row.version > 0) == (row.kind == "file")
        assert row.version <= revision
    assert max(Counter((row.parent_id, row.name) for row in rows).values()) == 1
    assert mounts == {row.id for row in rows if row.kind == "mount"}
    assert observed <= {row.id for row in rows if row.kind != "file"}
