"""The server of a tier: its blocks and its files, by gRPC and by the line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage_tier.server.serving import TierServer

__all__ = ["TierServer"]


# Loaded when it is asked for: the port alone (`storage_tier.server.rpc`) needs no catalog.
def __getattr__(name: str) -> Any:
    if name != "TierServer":
        raise AttributeError(f"module 'storage_tier.server' has no attribute {name!r}")
    from storage_tier.server.serving import TierServer

    return TierServer
