"""How a server reaches the others: as a client of their services, with the token and the trust of the cluster."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

from storage_tier.client.connection import Connection
from storage_tier.errors import ServerFailed, Unreachable
from storage_tier.v1 import files_pb2, tier_pb2
from storage_tier.wire import TlsClient


class RpcPeers:
    """The `Peers` of `Files`. Thread-safe; one connection a peer, made at its first use."""

    def __init__(self, token: str | None = None, tls: TlsClient | None = None) -> None:
        """Does no I/O.

        Args:
            token: what all servers of the cluster were started with.
            tls: when they speak TLS.
        """
        self._token = token
        self._tls = tls
        self._lock = threading.Lock()
        self._peers: dict[str, Connection] = {}
        self._closed = False

    def fetch(self, address: str, block_path: str, fd: int, offset_bytes: int, timeout_s: float) -> int:
        """Write the payload of a peer's block into `fd`, from `offset_bytes` on; returns its bytes.

        Raises:
            BlockNotFound, CorruptBlock; Unreachable, DeadlineExceeded; ServerFailed: it sent fewer or more bytes.
        """
        request = tier_pb2.ReadBlockRequest(path=block_path)
        with self._peer(address).read("ReadBlock", request, time.monotonic() + timeout_s) as incoming:
            want_bytes = int(incoming.first.block.size_bytes)
            at = 0
            for piece in incoming:
                if at + len(piece) > want_bytes:
                    break
                _write_all(fd, piece, offset_bytes + at)
                at += len(piece)
            else:
                if at == want_bytes:
                    return at
        raise ServerFailed(f"the server at {address} sent other than the {want_bytes:,} bytes of {block_path}")

    def stream(
        self, address: str, block_path: str, start: int, stop: int, timeout_s: float
    ) -> Iterator[bytes | memoryview]:
        """A range of the payload of a peer's block, piece by piece, each valid until the next.

        Raises:
            BlockNotFound, CorruptBlock; Unreachable, DeadlineExceeded.
        """
        request = tier_pb2.ReadBlockRequest(path=block_path, offset_bytes=start, limit_bytes=stop - start)
        with self._peer(address).read("ReadBlock", request, time.monotonic() + timeout_s) as incoming:
            yield from incoming

    def load(self, address: str, path: str, version: int, timeout_s: float) -> None:
        """Have a peer get a file's bytes to itself.

        Raises:
            whatever that raises there; Unreachable, DeadlineExceeded.
        """
        request = files_pb2.OpenFileRequest(path=path, version=version)
        self._peer(address).call("OpenFile", request, time.monotonic() + timeout_s)

    def close(self) -> None:
        """Let connections go. Idempotent."""
        with self._lock:
            self._closed = True
            peers, self._peers = self._peers, {}
        for peer in peers.values():
            peer.close()

    def _peer(self, address: str) -> Connection:
        with self._lock:
            if self._closed:
                raise Unreachable(f"the server at {address} is not asked any more: this one ends")
            peer = self._peers.get(address)
            if peer is None:
                peer = self._peers[address] = Connection(address, self._token, self._tls, near=None, server_index=0)
            return peer


def _write_all(fd: int, piece: bytes | memoryview, offset_bytes: int) -> None:
    view = memoryview(piece)
    while len(view):
        written_bytes = os.pwrite(fd, view, offset_bytes)
        view, offset_bytes = view[written_bytes:], offset_bytes + written_bytes
