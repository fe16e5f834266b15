"""The server process: one tier, its models, one port.

``python -m coproc.server.main --help``; ``coproc serve`` calls `serve`.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

from coproc.errors import ConfigError, CoprocError, Unsupported
from coproc.server.early import METHOD, EarlyPulls
from coproc.wire import add_service, as_coproc
from storage_tier.errors import TierError
from storage_tier.server.rpc import RpcServer
from storage_tier.tier import Tier
from storage_tier.wire import TlsClient, TlsServer, target

log = logging.getLogger(__name__)

# A far worker that waits takes a thread for as long as it does, and all seats of a model may be far workers'.
MOST_CALLS = 600
TOKEN_VARIABLE = "COPROC_TOKEN"
CATALOG_VARIABLE = "COPROC_CATALOG"


@dataclass(frozen=True)
class ServeConfig:
    """How a server runs."""

    directory: Path
    """Its memory: a directory on tmpfs (below /dev/shm) that belongs to it alone and outlives it."""
    host: str = "127.0.0.1"
    """Loopback unless told otherwise."""
    port: int = 0
    """0 lets the system choose one."""
    memory_bytes: int | None = None
    """Budget; None: 0.8 of what is free there."""
    token: str | None = None
    """What every client must show; None asks for none, which only loopback is allowed."""
    wipe: bool = False
    """Begin empty: delete what an earlier server of this directory left."""
    certificate: Path | None = None
    """TLS: certificate chain, PEM."""
    key: Path | None = None
    """TLS: private key, PEM."""
    authority: Path | None = None
    """TLS: whom this server trusts when it talks to other servers, PEM; by default its own certificate."""
    catalog: str | None = None
    """URL of the catalog that all servers of a tier share: PostgreSQL, or an SQLite file for servers of one host; None:
    an SQLite file in `directory`, of this server alone."""
    spill: Path | None = None
    """A second level on disk, for what has no room in memory and is nowhere else; None: writers are refused then."""
    spill_bytes: int | None = None
    """The most that the second level takes; None: what the disk has."""
    line_port: int = 0
    """A second port, for bytes of files and small calls without gRPC; 0 lets the system choose. Who reaches only the
    first one uses gRPC for everything."""
    advertise: str | None = None
    """The host by which other servers reach this one; None: `host`, or this machine's name where that is all of its
    interfaces."""
    parent_pid: int | None = None
    """An embedded server ends, and gives its memory back, when this process does."""

    def __post_init__(self) -> None:
        if self.token is None and self.host not in ("127.0.0.1", "::1", "localhost"):
            raise ConfigError(
                f"a server on {self.host} can be reached by others: give it a token "
                f"({TOKEN_VARIABLE}=… or --token-file)"
            )
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("TLS needs both a certificate and a key")


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT; prints ``ready coproc://HOST:PORT`` on a line of its own when it does.

    Blocks; for the main thread. What is in memory stays there for the next server of the directory, unless this one
    is embedded and its parent has ended.

    Raises:
        CoprocError: it can't start; the sentence says why.
    """
    stop = threading.Event()
    orphaned = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if config.parent_pid is not None:
        _watch_parent(config.parent_pid, stop, orphaned)
    # Short turns: a thread that sweeps must not wait 5 ms for one that answers a call.
    sys.setswitchinterval(1e-4)
    try:
        with _coproc_errors():
            tier = Tier(config.directory, config.memory_bytes, config.spill, config.spill_bytes)
        with ExitStack() as open_, _coproc_errors():
            open_.callback(tier.close)
            if config.wipe:
                tier.wipe()
            _serve(config, tier, stop)
            if orphaned.is_set():
                tier.wipe()
    finally:
        if orphaned.is_set():
            # The directory around it is its owner's, who is gone too.
            owned = (config.directory.parent / "owner").exists()
            shutil.rmtree(config.directory.parent if owned else config.directory, ignore_errors=True)


def _serve(config: ServeConfig, tier: Tier, stop: threading.Event) -> None:
    tls_server = tls_client = None
    if config.certificate and config.key:
        tls_server = TlsServer(config.certificate, config.key)
        tls_client = TlsClient(config.authority or config.certificate)
    with ExitStack() as open_:
        rpc = open_.enter_context(RpcServer(config.host, config.port, config.token, tls_server, MOST_CALLS))
        early = EarlyPulls(tier.directory / "models")
        rpc.begin({METHOD: early.pull})
        # Where scipy is installed the compiler imports its linear algebra, for which there is no use here: a sixth of
        # the time that a server takes to start.
        sys.modules.setdefault("scipy.linalg", cast(ModuleType, None))
        # The compiler, the catalog and all that needs them: four times what was imported so far.
        from coproc.server.models import Models
        from coproc.server.service import CoprocessorService
        from storage_tier.server import TierServer

        early.end()
        models = Models(tier)
        open_.callback(models.close)
        models.recover()
        server = open_.enter_context(
            TierServer(
                tier,
                catalog=_catalog(config.catalog),
                host=config.host,
                port=config.port,
                line_port=config.line_port,
                advertise=config.advertise,
                token=config.token,
                tls=tls_server,
                trust=tls_client,
                max_workers=MOST_CALLS,
                rpc=rpc,
            )
        )
        service = CoprocessorService(tier, models, server.files, server.address, config.token, tls_client)
        server.add(lambda s: add_service(service, s), "coproc.v1.Coprocessor")
        server.add_calls(service.line_calls())
        port = server.start()
        service.start()
        print(f"ready coproc://{target(config.host, port)}", flush=True)
        while not stop.wait(1.0):
            service.sample()
        service.stop()
        server.stop(grace_s=1.0)
        service.close()


def _catalog(given: str | None) -> str | Path | None:
    """A URL, or the path of an SQLite file."""
    return Path(given) if given is not None and "://" not in given else given


@contextmanager
def _coproc_errors() -> Iterator[None]:
    try:
        yield
    except TierError as error:
        raise as_coproc(error) from None


def _watch_parent(pid: int, stop: threading.Event, orphaned: threading.Event) -> None:
    """Stop when process `pid` ends, however it ends."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise Unsupported(f"the parent process {pid} has ended already") from None

    def wait() -> None:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        while not stop.is_set():
            if poller.poll(1000):
                orphaned.set()
                stop.set()
        os.close(fd)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def default_directory() -> Path:
    """Where a server without --dir keeps its memory: one place a user."""
    return Path(f"/dev/shm/coproc-{os.getuid()}")


def main(arguments: list[str] | None = None) -> int:
    """Run a server as told by the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m coproc.server.main", description="A server of the memory tier, with its coprocessor."
    )
    parser.add_argument("--dir", type=Path, default=default_directory(), help="its memory, on tmpfs")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--memory-bytes", type=int)
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--wipe", action="store_true")
    parser.add_argument("--tls-certificate", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--tls-authority", type=Path)
    # Its URL may hold a password, which everybody could read in the list of processes.
    parser.add_argument("--catalog", default=os.environ.get(CATALOG_VARIABLE))
    parser.add_argument("--spill", type=Path)
    parser.add_argument("--spill-bytes", type=int)
    parser.add_argument("--line-port", type=int, default=0)
    parser.add_argument("--advertise")
    parser.add_argument("--parent-pid", type=int)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    token = given.token_file.read_text().strip() if given.token_file else os.environ.get(TOKEN_VARIABLE)
    try:
        serve(
            ServeConfig(
                directory=given.dir,
                host=given.host,
                port=given.port,
                memory_bytes=given.memory_bytes,
                token=token or None,
                wipe=given.wipe,
                certificate=given.tls_certificate,
                key=given.tls_key,
                authority=given.tls_authority,
                catalog=given.catalog,
                spill=given.spill,
                spill_bytes=given.spill_bytes,
                line_port=given.line_port,
                advertise=given.advertise,
                parent_pid=given.parent_pid,
            )
        )
    except (CoprocError, TierError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
