"""Two filesystems of one tier: of servers in processes, and of a dictionary."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coproc import LocalCluster
from storage_tier.filesystem import TierFileSystem

from .fake_client import TREES, FakeTierClient, Tree


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Everything is tested on servers and in a dictionary; what looks or reaches into the tier, in the dictionary."""
    if "where" in metafunc.fixturenames:
        inside = "tree" in metafunc.function.__code__.co_varnames[: metafunc.function.__code__.co_argcount]
        metafunc.parametrize("where", ["fake"] if inside else ["fake", "servers"])


@pytest.fixture
def tree() -> Iterator[Tree]:
    """The tier in a dictionary."""
    yield TREES["coproc://fake:1"]
    TREES.clear()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2, memory_bytes=256 << 20) as made:
        yield made


@pytest.fixture
def clients(where: str, request: pytest.FixtureRequest) -> Iterator[tuple[TierFileSystem, TierFileSystem]]:
    """Two of the same tier: one near, one of another server and far. The tier is empty."""
    if where == "fake":
        request.getfixturevalue("tree")
        request.getfixturevalue("monkeypatch").setattr("storage_tier.client.TierClient", FakeTierClient)
        yield tuple(TierFileSystem("fake", 1, near=near, skip_instance_cache=True) for near in (None, False))
        return
    one, two = (int(server.address.rpartition(":")[2]) for server in request.getfixturevalue("cluster").servers)
    near = TierFileSystem("127.0.0.1", one, skip_instance_cache=True)
    far = TierFileSystem("127.0.0.1", two, near=False, skip_instance_cache=True)
    near.rm("/", recursive=True)
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def fs(clients: tuple[TierFileSystem, TierFileSystem]) -> TierFileSystem:
    return clients[0]


@pytest.fixture
def other(clients: tuple[TierFileSystem, TierFileSystem]) -> TierFileSystem:
    """Another client of the same tier."""
    return clients[1]


class Broken(Exception):
    """What goes wrong in a block."""


def raise_in_text(fs: TierFileSystem) -> None:
    with fs.open("/a", "w") as file:
        file.write("half")
        raise Broken
