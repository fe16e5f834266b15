"""A connected socket that is read in exact pieces: what a line is made of, at either end."""

from __future__ import annotations

import math
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# A message of a small call with all before it fits, so that one system call reads it.
BUFFER_BYTES = 64 << 10
_TIMEVAL = struct.Struct("ll")


class Stream:
    """A socket that is read in exact pieces. Not thread-safe."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._begin = self._end = 0
        self.fresh_s = 0.0
        """Until then its owner takes the other end for alive."""
        self.whole = True
        """Whether the last answer was taken to its end."""
        self._limit_ms = -1
        self._plain = not isinstance(sock, ssl.SSLSocket)

    def limit(self, left_s: float) -> None:
        """Wait no longer for the next bytes: then `BlockingIOError`, of TLS `TimeoutError`."""
        if not self._plain:
            self.sock.settimeout(left_s)
            return
        # A timeout of Python's costs one more system call each time.
        limit_ms = math.ceil(left_s * 1000)
        if limit_ms != self._limit_ms:
            timeval = _TIMEVAL.pack(limit_ms // 1000, limit_ms % 1000 * 1000)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self._limit_ms = limit_ms

    def send(self, content: bytes, left_s: float) -> None:
        """Send all of a message. One system call, unless the other end is slow.

        Raises:
            TimeoutError, OSError.
        """
        sent_bytes = 0
        if self._plain:
            with suppress(BlockingIOError):
                sent_bytes = self.sock.send(content, socket.MSG_DONTWAIT)
        if sent_bytes < len(content):
            self.send_slowly(memoryview(content)[sent_bytes:], left_s)

    def send_slowly(self, view: memoryview, left_s: float) -> None:
        """The same of a lot of bytes, where waiting is the rule."""
        self.sock.settimeout(left_s)
        self.sock.sendall(view)
        self.sock.settimeout(None)

    def is_alive(self) -> bool:
        """Whether it may still be used while it is idle: the other end says nothing unasked, but for its end."""
        self.sock.settimeout(0)
        try:
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            self.sock.settimeout(None)
            return True
        except OSError:
            return False
        return False

    def holds_bytes(self) -> bool:
        """Whether bytes have been taken from the socket that nobody has taken from here."""
        return self._end > self._begin or (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0)

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            EOFError: the other end closed before. OSError.
        """
        if self._end - self._begin < count:
            if count > BUFFER_BYTES:
                whole = bytearray(count)
                self.take_into(memoryview(whole))
                return bytes(whole)
            self._fill(count)
        begin = self._begin
        self._begin = begin + count
        return bytes(self._buffer[begin : self._begin])

    def take_into(self, view: memoryview) -> None:
        """Fill `view` with the next bytes. What is not in the buffer yet is copied once, by the kernel."""
        at = min(self._end - self._begin, len(view))
        view[:at] = self._buffer[self._begin : self._begin + at]
        self._begin += at
        while at < len(view):
            got_bytes = self.sock.recv_into(view[at:])
            if not got_bytes:
                raise EOFError
            at += got_bytes

    def _fill(self, count: int) -> None:
        held = self._buffer[self._begin : self._end]
        if self._begin:
            held_bytes = bytes(held)
            self._buffer[: len(held_bytes)] = held_bytes
            self._begin, self._end = 0, len(held_bytes)
        while self._end < count:
            got_bytes = self.sock.recv_into(self._buffer[self._end :])
            if not got_bytes:
                raise EOFError
            self._end += got_bytes


def tune(sock: socket.socket) -> None:
    """Small frames leave at once; a peer that vanished without a word is noticed within a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A path of a Unix socket that fits: they have at most 107 bytes."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
