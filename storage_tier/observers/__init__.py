"""Code that runs where the data is: observers on directories, each in a process of its own.

`Observer` is what one writes, `ObserverHost` what a server has.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from storage_tier.observers.base import (
    CommittedFile,
    Context,
    Environment,
    FileInfo,
    Observer,
    ObserverFailed,
    ObserverNotFound,
    OpenFile,
    ResolvedFile,
    Veto,
    Vetoed,
)

if TYPE_CHECKING:
    from storage_tier.observers.files import OpenedFile, PendingFile, TierFiles
    from storage_tier.observers.host import ObserverHost
    from storage_tier.observers.options import AttachmentState, ObserverOptions

__all__ = [
    "AttachmentState",
    "CommittedFile",
    "Context",
    "Environment",
    "FileInfo",
    "Observer",
    "ObserverFailed",
    "ObserverHost",
    "ObserverNotFound",
    "ObserverOptions",
    "OpenFile",
    "OpenedFile",
    "PendingFile",
    "ResolvedFile",
    "TierFiles",
    "Veto",
    "Vetoed",
]

# The server's side, which the process of an observer has no use for: it is to start fast.
_HOMES = {
    "AttachmentState": "options",
    "ObserverHost": "host",
    "ObserverOptions": "options",
    "OpenedFile": "files",
    "PendingFile": "files",
    "TierFiles": "files",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'storage_tier.observers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"storage_tier.observers.{_HOMES[name]}"), name)
