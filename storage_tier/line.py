"""Calls over a socket of their own, beside gRPC: for processes in which gRPC cannot run, and for what it is slow at.

A forked child cannot use a gRPC that its parent has used, and gRPC for Python copies each byte several times and hands
each call from thread to thread. So a server also takes calls on a Unix socket in its directory and on a second TCP
port. They are the same calls with the same messages and errors; `Hello`, over gRPC, tells where, and gives a ticket
that opens the line. One call at a time on a connection, one frame each way:

    greeting  MAGIC, ticket                                                  answered with `WELCOME`
    request   REQUEST (lengths, time left), name of the method, message, raw bytes
    answer    ANSWER (kind, lengths), message or error, raw bytes

Raw bytes are those of a file: no message holds them, so nobody copies them from one.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from storage_tier.errors import DeadlineExceeded, ServerFailed, TierError, Unreachable
from storage_tier.streams import Stream, short_path, tune
from storage_tier.wire import CHUNK_BYTES, MAX_MESSAGE_BYTES, TIER_ERRORS, ErrorTable, TlsClient

MAGIC = b"tier-line 1\n"
WELCOME = b"+"
TICKET_BYTES = 32
TICKET_OF = b"line"
"""What the nonce proves to make the ticket."""
REQUEST = struct.Struct("!BIIQ")  # bytes of the name, milliseconds left, bytes of the message, raw bytes
ANSWER = struct.Struct("!BIQ")  # kind, bytes of the message, raw bytes
FINE, FAILED = 0, 1
# A port that a firewall swallows costs this once, and then gRPC is used.
CONNECT_S = 1.0
_MOST_IDLE = 16
# The time that is left is looked at so often.
_TAKE_BYTES = 8 << 20
# No server is started anew within so short a time after its answer; later the socket is looked at first.
_FRESH_S = 0.1


class LineDown(Exception):
    """No line can be had. Another way may be open."""


class Incoming:
    """An answer, and the raw bytes that follow it: to be taken once, by `into` or by iterating."""

    def __init__(self, first: Any, stream: Stream, size_bytes: int, deadline_s: float, peer: str) -> None:
        self.first = first
        """The message."""
        self.left_bytes = size_bytes
        self._stream = stream
        self._deadline_s = deadline_s
        self._peer = peer

    def into(self, view: memoryview) -> int:
        """Take all bytes into memory of the caller; returns how many there are: when it is not `len(view)`, none."""
        count = self.left_bytes
        if count == len(view):
            for at in range(0, count, _TAKE_BYTES):
                self.fill(view[at : at + _TAKE_BYTES])
        return count

    def fill(self, view: memoryview) -> None:
        """Take the next bytes, no more than are left, into memory of the caller. Copied once, by the kernel.

        Raises:
            Unreachable, DeadlineExceeded: the rest will not come.
        """
        assert len(view) <= self.left_bytes
        try:
            self._stream.limit(_left_s(self._deadline_s))
            self._stream.take_into(view)
        except (OSError, EOFError) as error:
            raise _broken(error, self._peer) from None
        self.left_bytes -= len(view)

    def __iter__(self) -> Iterator[memoryview]:
        """Piece by piece, each valid until the next."""
        buffer = memoryview(bytearray(min(CHUNK_BYTES, self.left_bytes)))
        while self.left_bytes:
            view = buffer[: self.left_bytes]
            self.fill(view)
            yield view


class Lines:
    """The connections of one process to the line of one server. Thread-safe; makes them when they are needed."""

    def __init__(self, peer: str, place: Path | tuple[str, int], ticket: bytes, tls: TlsClient | None) -> None:
        """Does no I/O.

        Args:
            peer: who is there, for sentences.
            place: of the Unix socket, or host and port.
            ticket: what `Hello` gave.
            tls: when the port speaks TLS.
        """
        self._peer = peer
        self._place = place
        self._ticket = ticket
        self._tls = tls if isinstance(place, tuple) else None
        self._context: ssl.SSLContext | None = None
        self._idle: deque[Stream] = deque()
        self._closed = False
        # A client that is dropped and not closed is no more of a leak than one with a gRPC channel would be.
        weakref.finalize(self, _close_all, self._idle)

    def call(self, name: str, request: Any, answer_class: Any, deadline_s: float) -> Any:
        """One call. Raises what the server raised.

        Raises:
            LineDown: it was not begun. Unreachable, DeadlineExceeded: it may have been done.
        """
        stream = self._get(deadline_s)
        try:
            return self._ask(stream, name, request, answer_class, deadline_s, (), 0, TIER_ERRORS).first
        finally:
            self._give_back(stream)

    @contextmanager
    def exchange(
        self,
        name: str,
        request: Any,
        answer_class: Any,
        deadline_s: float,
        raw: Iterable[memoryview] = (),
        raw_bytes: int = 0,
        errors: ErrorTable = TIER_ERRORS,
    ) -> Iterator[Incoming]:
        """One call with raw bytes in either direction. What is not taken of the answer ends the connection.

        Args:
            raw, raw_bytes: what follows the request, and how much that is.
            errors: of what the call raises, where it is of another service than the tier's; what the line itself
                refuses is an error of the tier's all the same.

        Raises:
            as `call`.
        """
        stream = self._get(deadline_s)
        try:
            incoming = self._ask(stream, name, request, answer_class, deadline_s, raw, raw_bytes, errors)
            try:
                yield incoming
            finally:
                stream.whole = incoming.left_bytes == 0
        finally:
            self._give_back(stream)

    def _ask(
        self,
        stream: Stream,
        name: str,
        request: Any,
        answer_class: Any,
        deadline_s: float,
        raw: Iterable[memoryview],
        raw_bytes: int,
        errors: ErrorTable,
    ) -> Incoming:
        stream.whole = False
        try:
            _send(stream, name, request, deadline_s, raw, raw_bytes)
            stream.limit(_left_s(deadline_s))
            kind, message_bytes, more_bytes = ANSWER.unpack(stream.take(ANSWER.size))
            if message_bytes > MAX_MESSAGE_BYTES or (kind == FAILED and more_bytes):
                raise ServerFailed(f"the server at {self._peer} answers {name} with what is no answer")
            message = stream.take(message_bytes)
        except (OSError, EOFError) as error:
            raise _broken(error, self._peer) from None
        if kind == FAILED:
            stream.whole = True
            kind_name, _, sentence = message.decode(errors="replace").partition("\0")
            known = any(kind.__name__ == kind_name for kind in errors.codes)
            (errors if known else TIER_ERRORS).raise_named(kind_name, sentence)
        try:
            first = answer_class.FromString(message)
        except DecodeError:
            raise ServerFailed(f"the server at {self._peer} answers {name} with what is no answer") from None
        stream.whole = more_bytes == 0
        return Incoming(first, stream, more_bytes, deadline_s, self._peer)

    def _give_back(self, stream: Stream) -> None:
        if stream.whole and not self._closed and len(self._idle) < _MOST_IDLE:
            stream.fresh_s = time.monotonic() + _FRESH_S
            self._idle.append(stream)
        else:
            stream.sock.close()

    def close(self) -> None:
        """Close what is idle; calls at work go on. Idempotent."""
        self._closed = True
        _close_all(self._idle)

    def _get(self, deadline_s: float) -> Stream:
        while True:
            try:
                stream = self._idle.pop()
            except IndexError:
                try:
                    return self._dial(deadline_s)
                except TimeoutError as error:
                    raise _broken(error, self._peer) from None
            if time.monotonic() < stream.fresh_s or stream.is_alive():
                return stream
            stream.sock.close()

    def _dial(self, deadline_s: float) -> Stream:
        left_s = min(CONNECT_S, _left_s(deadline_s))
        sock: socket.socket | None = None
        try:
            if isinstance(self._place, Path):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.settimeout(left_s)
                with short_path(self._place) as path:
                    sock.connect(path)
            else:
                sock = socket.create_connection(self._place, left_s)
                tune(sock)
                if self._tls is not None:
                    name = self._tls.server_name or self._place[0]
                    sock = self._trust(self._tls).wrap_socket(sock, server_hostname=name)
            sock.sendall(MAGIC + self._ticket)
            stream = Stream(sock)
            if stream.take(len(WELCOME)) != WELCOME:
                raise LineDown("it says something else")
            sock.settimeout(None)
            return stream
        except (OSError, EOFError, LineDown) as error:
            if sock is not None:
                sock.close()
            raise LineDown(f"{self._place}: {error!r:.100}") from None
        except BaseException:
            if sock is not None:
                sock.close()
            raise

    def _trust(self, tls: TlsClient) -> ssl.SSLContext:
        if self._context is None:
            context = ssl.create_default_context(cafile=tls.ca)
            if tls.certificate is not None:
                context.load_cert_chain(tls.certificate, tls.key)
            self._context = context
        return self._context


def _close_all(idle: deque[Stream]) -> None:
    while idle:
        with suppress(IndexError):
            idle.pop().sock.close()


def _broken(error: Exception, peer: str) -> TierError:
    if isinstance(error, TimeoutError | BlockingIOError):
        return DeadlineExceeded(f"no answer at {peer} in the time given")
    return Unreachable(f"no server answers at {peer} any more: it was stopped, or it died ({error!r:.100})")


def _send(
    stream: Stream, name: str, request: Any, deadline_s: float, raw: Iterable[memoryview], raw_bytes: int
) -> None:
    left_s = _left_s(deadline_s)
    message = request.SerializeToString()
    head = REQUEST.pack(len(name), min(int(left_s * 1000), 0xFFFFFFFF), len(message), raw_bytes)
    stream.send(head + name.encode() + message, left_s)
    for view in raw:
        for at in range(0, len(view), CHUNK_BYTES):
            stream.send_slowly(view[at : at + CHUNK_BYTES], _left_s(deadline_s))


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return min(left_s, 1e6)
