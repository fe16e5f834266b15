"""The tier as a file system of fsspec: `tier://HOST:PORT/path`."""

from __future__ import annotations

from storage_tier.filesystem.filesystem import TierFileSystem as TierFileSystem
