"""How a server reaches the others, given to `Files` by who knows how: over RPC, or in a test by a call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from storage_tier.errors import Unreachable


class Peers(Protocol):
    """The other servers, by their addresses. Called from several threads; every call blocks at most `timeout_s`."""

    def fetch(self, address: str, block_path: str, fd: int, offset_bytes: int, timeout_s: float) -> int:
        """Write the payload of a peer's block into `fd`, from `offset_bytes` on (`os.pwrite`); returns its bytes.

        The descriptor stays the caller's, who drops the file when this raises.

        Raises:
            BlockNotFound: the peer has it no more. Unreachable, DeadlineExceeded: it does not answer.
            OutOfMemory: no room in the file system of `fd` (a raw `OSError` with ENOSPC is fine too).
        """

    def stream(
        self, address: str, block_path: str, start: int, stop: int, timeout_s: float
    ) -> Iterator[bytes | memoryview]:
        """A range of the payload of a peer's block, piece by piece, each valid until the next.

        Raises:
            BlockNotFound, CorruptBlock; Unreachable, DeadlineExceeded.
        """

    def load(self, address: str, path: str, version: int, timeout_s: float) -> None:
        """Have a peer get a file's bytes to itself: its `Files.ensure_local(path, version, timeout_s=…)`.

        Raises:
            whatever that raises; Unreachable, DeadlineExceeded.
        """

    def close(self) -> None:
        """Let connections go. Idempotent."""


class NoPeers:
    """For a server that is alone."""

    def fetch(self, address: str, block_path: str, fd: int, offset_bytes: int, timeout_s: float) -> int:
        raise Unreachable(f"the server at {address} cannot be asked: this one was started without a way to others")

    def stream(
        self, address: str, block_path: str, start: int, stop: int, timeout_s: float
    ) -> Iterator[bytes | memoryview]:
        raise Unreachable(f"the server at {address} cannot be asked: this one was started without a way to others")

    def load(self, address: str, path: str, version: int, timeout_s: float) -> None:
        raise Unreachable(f"the server at {address} cannot be asked: this one was started without a way to others")

    def close(self) -> None:
        pass
