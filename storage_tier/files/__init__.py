"""The file layer of one server: paths, versions, mounts and observers over sealed blocks. No sockets."""

from __future__ import annotations

from storage_tier.files.base import (
    CommitOptions,
    Explanation,
    FilesOptions,
    FilesStatus,
    Holder,
    Located,
    MountStatus,
    Reservation,
)
from storage_tier.files.files import Files
from storage_tier.files.peers import NoPeers, Peers

__all__ = [
    "CommitOptions",
    "Explanation",
    "Files",
    "FilesOptions",
    "FilesStatus",
    "Holder",
    "Located",
    "MountStatus",
    "NoPeers",
    "Peers",
    "Reservation",
]
