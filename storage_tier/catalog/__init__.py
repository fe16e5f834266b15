"""The namespace and everything that all servers must agree on, in SQLite or PostgreSQL."""

from __future__ import annotations

from storage_tier.catalog.catalog import Catalog
from storage_tier.catalog.changes import KEEP, Changed, NewFile
from storage_tier.catalog.database import SettingsChanged
from storage_tier.catalog.entries import Entry, Metadata, Persisted, Released
from storage_tier.catalog.members import Member
from storage_tier.catalog.mounts import Mount
from storage_tier.catalog.observers import Attached
from storage_tier.catalog.replicas import Reconciled, Use

__all__ = [
    "KEEP",
    "Attached",
    "Catalog",
    "Changed",
    "Entry",
    "Member",
    "Metadata",
    "Mount",
    "NewFile",
    "Persisted",
    "Reconciled",
    "Released",
    "SettingsChanged",
    "Use",
]
