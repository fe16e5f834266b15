"""storage_tier: a memory tier that looks like a filesystem; it knows bytes and versions, never gradients."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Before anybody imports grpc: its handlers around a fork close descriptors of the parent's pollers, and a driver forks
# to start Spark's JVM. Nothing here uses a channel across a fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

if TYPE_CHECKING:
    from storage_tier.blocks import Block, BlockInfo
    from storage_tier.client import TierClient
    from storage_tier.errors import TierError

__all__ = ["Block", "BlockInfo", "TierClient", "TierError"]

# Each name is loaded when it is first asked for: importing the package opens no library that is not needed.
_HOMES = {
    "Block": "storage_tier.blocks",
    "BlockInfo": "storage_tier.blocks",
    "TierClient": "storage_tier.client",
    "TierError": "storage_tier.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'storage_tier' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
