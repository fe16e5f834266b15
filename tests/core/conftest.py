"""One cluster for the tests of a module; models are named after the test."""

from __future__ import annotations

import gc
import os
import re
import tempfile
from pathlib import Path

import pytest

import coproc


@pytest.fixture(scope="module")
def cluster():
    with coproc.LocalCluster(servers=2, memory_bytes=1 << 30) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with coproc.connect(cluster.address) as client:
        yield client


@pytest.fixture
def far(cluster):
    """A client that never uses shared memory, as on another host."""
    with coproc.connect(cluster.address, near=False) as client:
        yield client


@pytest.fixture
def name(request):
    return re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")


@pytest.fixture
def directory():
    """Shared memory for a model that stands still."""
    with tempfile.TemporaryDirectory(prefix=f"coproc-test-turns-{os.getpid()}-", dir="/dev/shm") as name:
        yield Path(name)
        gc.collect()
