"""Directories in shared memory, and a tier server in a process that can be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage_tier.client import TierClient
from storage_tier.tier import Tier

SERVE = """
import sys
from pathlib import Path
from storage_tier.server import TierServer
from storage_tier.tier import Tier
from storage_tier.wire import TlsClient, TlsServer

directory, port, memory_bytes, token, certificate, key, catalog, spill = sys.argv[1:]
tls = TlsServer(Path(certificate), Path(key)) if certificate else None
trust = TlsClient(Path(certificate), server_name="tier") if certificate else None
with Tier(Path(directory), int(memory_bytes), Path(spill) if spill else None) as tier:
    with TierServer(
        tier, catalog=catalog or None, port=int(port), token=token or None, tls=tls, trust=trust
    ) as server:
        print(server.start(), flush=True)
        sys.stdin.read()
"""


class TierProcess:
    """A tier server process over one directory."""

    def __init__(
        self,
        directory: Path,
        memory_bytes: int = 64 << 20,
        token: str = "",
        certificate: str = "",
        key: str = "",
        catalog: str = "",
        spill: str = "",
    ) -> None:
        self.directory = directory
        self.port = 0
        self._rest = [str(memory_bytes), token, certificate, key, catalog, spill]
        self.start()

    @property
    def address(self) -> str:
        return f"coproc://127.0.0.1:{self.port}"

    def start(self) -> None:
        """On the same port as before, if there was one."""
        command = [sys.executable, "-c", SERVE, str(self.directory), str(self.port), *self._rest]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line, f"the server ended with {self.process.wait(30)}"
        self.port = int(line)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=30)

    def stop(self) -> int:
        """By closing its standard input."""
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory in shared memory."""
    path = Path(tempfile.mkdtemp(prefix=f"coproc-test-{os.getpid()}-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def tier(directory: Path) -> Iterator[Tier]:
    """A store without a server, with a budget of 64 MiB."""
    with Tier(directory, 64 << 20) as made:
        yield made


@pytest.fixture
def serve(directory: Path) -> Iterator[Callable[..., TierProcess]]:
    """`serve(token=...)` starts a server of the test's own; it is ended with the test."""
    started: list[TierProcess] = []

    def start(**arguments: object) -> TierProcess:
        started.append(TierProcess(**{"directory": directory, **arguments}))
        return started[-1]

    yield start
    for server in started:
        if server.process.returncode is None:
            assert server.stop() == 0


@pytest.fixture(scope="module")
def shared_server() -> Iterator[TierProcess]:
    """One server for a whole module."""
    path = Path(tempfile.mkdtemp(prefix=f"coproc-test-{os.getpid()}-", dir="/dev/shm"))
    server = TierProcess(path)
    yield server
    assert server.stop() == 0
    shutil.rmtree(path)


@pytest.fixture(params=["near", "far"])
def client(request: pytest.FixtureRequest, shared_server: TierProcess) -> Iterator[TierClient]:
    """A client of the module's server, by shared memory and by bytes; the tier is empty."""
    with TierClient(shared_server.address, near=request.param == "near") as made:
        made.delete_prefix("")
        yield made
