"""Several servers in this process for the tests of files: real directories in shared memory, one real catalog."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage_tier.catalog import Catalog
from storage_tier.errors import Unreachable
from storage_tier.files import Files, FilesOptions
from storage_tier.tier import Tier

# What a test waits for at most; none of them gets there.
LONG_S = 30.0
# Nothing in the background: what it does, a test calls itself.
STILL = FilesOptions(heartbeat_s=1000, watch_s=1000, retry_s=1000, sweep_s=1000, dead_after_s=1000)


class Network:
    """Peers without a wire. `down` holds the addresses that do not answer."""

    def __init__(self) -> None:
        self.servers: dict[str, Files] = {}
        self.down: set[str] = set()
        self.fetched: list[tuple[str, str]] = []
        self.before_fetch: Callable[[], None] = lambda: None

    def fetch(self, address: str, block_path: str, fd: int, offset_bytes: int, timeout_s: float) -> int:
        self.before_fetch()
        with self._server(address)._parts.tier.open(block_path) as block:
            self.fetched.append((address, block_path))
            return os.pwrite(fd, block.data, offset_bytes)

    def stream(self, address: str, block_path: str, start: int, stop: int, timeout_s: float) -> Iterator[bytes]:
        with self._server(address)._parts.tier.open(block_path) as block:
            yield bytes(block.data[start:stop])

    def load(self, address: str, path: str, version: int, timeout_s: float) -> None:
        self._server(address).ensure_local(path, version, timeout_s=timeout_s)

    def close(self) -> None:
        pass

    def _server(self, address: str) -> Files:
        if address in self.down or address not in self.servers:
            raise Unreachable(f"{address} does not answer")
        return self.servers[address]


class Cluster:
    """Starts servers over one catalog, each with a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.network = Network()
        self.catalog_url: str | Path = directory / "catalog.sqlite"
        self._open: dict[str, tuple[Tier, Catalog, Files]] = {}

    def start(
        self,
        name: str = "one",
        memory_bytes: int = 16 << 20,
        options: FilesOptions = STILL,
        spill: Path | None = None,
        spill_bytes: int | None = None,
        clock_ns: Callable[[], int] | None = None,
    ) -> Files:
        tier = Tier(self.directory / name, memory_bytes, spill, spill_bytes)
        catalog = Catalog(self.catalog_url, clock_ns=clock_ns)
        files = Files(tier, catalog, address=f"coproc://{name}:1", options=options, peers=self.network)
        self._open[name] = tier, catalog, files
        files.start()
        self.network.servers[f"coproc://{name}:1"] = files
        for _, _, other in self._open.values():
            other._parts.neighbours.refresh()
        return files

    def stop(self, name: str = "one") -> None:
        tier, catalog, files = self._open.pop(name)
        self.network.servers.pop(f"coproc://{name}:1", None)
        files.close()
        catalog.close()
        tier.close()

    def close(self) -> None:
        for name in list(self._open):
            self.stop(name)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    path = Path(tempfile.mkdtemp(prefix=f"coproc-test-{os.getpid()}-", dir="/dev/shm"))
    made = Cluster(path)
    yield made
    made.close()
    shutil.rmtree(path)


@pytest.fixture
def files(cluster: Cluster) -> Files:
    """One server."""
    return cluster.start()


def put(files: Files, path: str, content: bytes = b"content", **options: object) -> object:
    from storage_tier.files import CommitOptions

    return files.put(path, len(content), [content], CommitOptions(**options))


def read(files: Files, path: str, version: int | None = None) -> bytes:
    with files.open(path, version, timeout_s=LONG_S) as block:
        return bytes(block.data)


def block_files(files: Files) -> list[Path]:
    """All block files in memory, whether known or not."""
    return sorted(path for path in files._parts.tier.blocks_directory.rglob("*") if path.is_file())


def eventually(true: Callable[[], bool], what: str) -> None:
    """Wait for what another thread or process does."""
    deadline_s = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.005)
