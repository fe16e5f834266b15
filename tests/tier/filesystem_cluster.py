"""A filesystem of a server of the test module's own."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pytest

from coproc import LocalCluster
from storage_tier.filesystem import TierFileSystem

# As the entry point does where the package is installed.
fsspec.register_implementation("tier", TierFileSystem, clobber=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1, memory_bytes=256 << 20) as made:
        yield made


@pytest.fixture
def fs(cluster: LocalCluster) -> Iterator[TierFileSystem]:
    """The module's tier, empty."""
    made = TierFileSystem(address=cluster.address, skip_instance_cache=True)
    made.rm("/", recursive=True)
    yield made
    made.close()
    # Tools make instances of their own from URLs.
    for other in TierFileSystem._cache.values():
        other.close()
    TierFileSystem.clear_instance_cache()
