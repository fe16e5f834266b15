"""The errors of the catalog, as they are drawn in `storage_tier.errors`."""

from __future__ import annotations

from storage_tier.errors import CatalogRefused as CatalogRefused
from storage_tier.errors import DirectoryNotEmpty as DirectoryNotEmpty
from storage_tier.errors import Fenced as Fenced
from storage_tier.errors import MountConflict as MountConflict
from storage_tier.errors import PathExists as PathExists
from storage_tier.errors import PathIsDirectory as PathIsDirectory
from storage_tier.errors import PathNotDirectory as PathNotDirectory
from storage_tier.errors import PathNotFound as PathNotFound
from storage_tier.errors import VersionConflict as VersionConflict
