"""One cluster and, where a mode asks for it, one Spark for the tests of a module."""

from __future__ import annotations

import pytest

import coproc
from coproc.pools.session import LocalSpark
from coproc.pools.spark import SparkPool
from coproc.testing.works import Ground


@pytest.fixture(scope="module")
def cluster():
    with coproc.LocalCluster(memory_bytes=1 << 30, token="secret") as cluster:
        with coproc.connect(cluster.address, token="secret") as client:
            client.models()
        yield cluster


@pytest.fixture(scope="module")
def spark():
    """An embedded Spark with 3 task slots."""
    local = LocalSpark(3, memory="1g")
    # The first job opens connections that the session keeps: they are the fixture's, not the first test's.
    SparkPool(local.session).map_in_arrow(local.session.range(3), lambda batches: batches, "id long")
    yield local.session
    local.close()


@pytest.fixture
def ground(cluster, request):
    return Ground(cluster.address, spark=lambda: request.getfixturevalue("spark"), token="secret")
