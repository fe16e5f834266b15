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
    from storage_tier.client.reading import FileView
    from storage_tier.client.writing import FileWriter
    from storage_tier.errors import TierError
    from storage_tier.file_info import FileInfo
    from storage_tier.filesystem import TierFileSystem

__all__ = ["Block", "BlockInfo", "FileInfo", "FileView", "FileWriter", "TierClient", "TierError", "TierFileSystem"]

# Each name is loaded when it is first asked for: importing the package opens no library that is not needed.
_HOMES = {
    "Block": "storage_tier.blocks",
    "BlockInfo": "storage_tier.blocks",
    "FileInfo": "storage_tier.file_info",
    "FileView": "storage_tier.client.reading",
    "FileWriter": "storage_tier.client.writing",
    "TierClient": "storage_tier.client",
    "TierError": "storage_tier.errors",
    "TierFileSystem": "storage_tier.filesystem",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'storage_tier' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
