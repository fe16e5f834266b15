"""A whole server of a tier: its blocks, its files, its catalog, its way to the others, and one port for all of it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import grpc

from storage_tier.catalog import Catalog
from storage_tier.errors import AddressInUse
from storage_tier.files import Files, FilesOptions
from storage_tier.host import TEMPORARY_PREFIX, proof_of
from storage_tier.line import TICKET_OF
from storage_tier.server.blocks import TierService
from storage_tier.server.files import FileService
from storage_tier.server.line import Call, LineServer
from storage_tier.server.peers import RpcPeers
from storage_tier.server.rpc import DEFAULT_MAX_WORKERS, RpcServer
from storage_tier.tier import Tier
from storage_tier.wire import TlsClient, TlsServer, format_address, target

CATALOG_NAME = "catalog.sqlite"
# The next start removes what a killed server has left.
LINE_NAME = TEMPORARY_PREFIX + "line"


class TierServer:
    """Serves one tier until `close`. Other services may be added to its port before `start`."""

    def __init__(
        self,
        tier: Tier,
        *,
        catalog: str | Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        line_port: int = 0,
        advertise: str | None = None,
        token: str | None = None,
        tls: TlsServer | None = None,
        trust: TlsClient | None = None,
        max_workers: int = DEFAULT_MAX_WORKERS,
        options: FilesOptions | None = None,
        rpc: RpcServer | None = None,
    ) -> None:
        """Take the port and open the catalog. Nobody is served, and nothing changed in the catalog, before `start`.

        Args:
            tier: stays the caller's, to be closed after this.
            catalog: URL or SQLite file that all servers share; None: a file in the tier's directory.
            host: the interface; '0.0.0.0' for all of them (give a token then).
            port: 0 lets the system choose.
            line_port: a second one, for the bytes of files and for small calls; 0 lets the system choose. Who cannot
                reach it does all by the first, slower.
            advertise: the host by which others reach it; None: `host`, or this machine's name for all interfaces.
            token: what clients and the other servers must show.
            tls: when given, nothing but TLS is spoken.
            trust: how the other servers are recognised, where TLS is spoken.
            max_workers: calls served at once.
            rpc: made of the same host, port, token, tls and max_workers; may have begun; stopped with this. None: new.

        Raises:
            AddressInUse, InvalidRequest, CatalogRefused, Unreachable, DeadlineExceeded.
        """
        with ExitStack() as opened:
            self._rpc = rpc or RpcServer(host, port, token, tls, max_workers)
            opened.callback(self._rpc.stop)
            # Before the catalog hears of this server: two cannot have one address.
            self.port = self._rpc.bind()
            self.address = format_address([(advertise or reachable(host), self.port)])
            database = opened.enter_context(Catalog(tier.directory / CATALOG_NAME if catalog is None else catalog))
            peers = RpcPeers(token, trust)
            opened.callback(peers.close)
            self.files = Files(tier, database, address=self.address, peers=peers, options=options)
            opened.callback(self.files.close)
            blocks, files = TierService(tier), FileService(tier, self.files)
            self._rpc.add(blocks.register, blocks.NAME)
            self._rpc.add(files.register, files.NAME)
            self._calls = {**blocks.line_calls(), **files.line_calls()}
            self._line = LineServer(proof_of(tier.nonce, TICKET_OF), max_workers)
            opened.callback(self._line.stop, 0.0)
            path = tier.directory / LINE_NAME
            try:
                blocks.line_port = self._line.bind(path, host, line_port, tls)
            except OSError as error:
                raise AddressInUse(f"{target(host, line_port)} or {path} cannot be bound: {error}") from None
            blocks.line_path = str(path)
            self._opened = opened.pop_all()

    def add(self, register: Callable[[grpc.Server], None], service_name: str | None = None) -> None:
        """As `RpcServer.add`."""
        self._rpc.add(register, service_name)

    def add_calls(self, calls: Mapping[str, Call]) -> None:
        """Have the line take calls of another service too, by names that are its own. Before `start`."""
        assert not self._calls.keys() & calls.keys()
        self._calls.update(calls)

    def start(self) -> int:
        """Join the catalog, make it and the blocks agree, and serve; returns the port. Does not block.

        Raises:
            as the catalog.
        """
        self.files.start()
        self._line.start(self._calls)
        return self._rpc.start()

    def stop(self, grace_s: float = 1.0) -> None:
        """Take no more calls, give those at work `grace_s` seconds. Idempotent."""
        self._rpc.stop(grace_s)
        self._line.stop(grace_s)

    def close(self) -> None:
        """Stop, and let go of everything. Idempotent; all files stay."""
        self.stop()
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def reachable(host: str) -> str:
    """The host by which others reach who listens on `host`."""
    return socket.gethostname() if host in ("0.0.0.0", "::") else host
