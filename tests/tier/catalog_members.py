"""Catalogs in the names of servers."""

from __future__ import annotations

from storage_tier.catalog import Catalog


def opened(url: str, server_id: str, **how: object) -> Catalog:
    """The catalog, open in the name of a server."""
    catalog = Catalog(url, **how)
    catalog.members.register(server_id, f"coproc://{server_id}")
    return catalog
