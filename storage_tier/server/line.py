"""The server's end of the line (`storage_tier.line`): reads calls, does them, answers."""

from __future__ import annotations

import hmac
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from storage_tier.blocks import Block
from storage_tier.errors import DeadlineExceeded, InvalidRequest, ServerFailed, TierError
from storage_tier.line import ANSWER, FAILED, FINE, MAGIC, REQUEST, TICKET_BYTES, WELCOME
from storage_tier.server.leader import LeaderFollowers
from storage_tier.streams import Stream, short_path, tune
from storage_tier.wire import CHUNK_BYTES, MAX_MESSAGE_BYTES, TIER_ERRORS, ErrorTable, TlsServer

LOG = logging.getLogger(__name__)

# Each takes 64 KiB, and a thread while it is at a long call. Who finds none free uses gRPC.
MAX_CONNECTIONS = 512
_GREETING_S = 5.0
# A client that takes no byte for so long, or sends none of what it has begun, is gone.
_STALLED_S = 60
# More bytes than these take long.
_QUICK_BYTES = 64 << 10


@dataclass(frozen=True)
class Raw:
    """Bytes that follow an answer, as a rule of an open block. A context: whoever sends them closes it."""

    block: Block | None
    """None for no bytes, or others."""
    start: int
    """In the payload."""
    end: int
    passed: Generator[bytes | memoryview, None, None] | None = None
    """Bytes that come from elsewhere while they are sent, `end - start` in all."""

    def chunks(self) -> Iterator[memoryview]:
        """The bytes, piece by piece, without a copy; each is valid until the next."""
        for piece in self.passed or ():
            for at in range(0, len(piece), CHUNK_BYTES):
                yield memoryview(piece)[at : at + CHUNK_BYTES]
        if self.block is not None:
            data = self.block.data
            for at in range(self.start, self.end, CHUNK_BYTES):
                yield data[at : min(at + CHUNK_BYTES, self.end)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.block is not None:
            self.block.close()
        if self.passed is not None:
            self.passed.close()


NOTHING = Raw(None, 0, 0)


class Taken:
    """The raw bytes of a request: to be taken once, by `fill` or by iterating. What is left is dropped."""

    def __init__(self, stream: Stream, size_bytes: int) -> None:
        self._stream = stream
        self.left_bytes = size_bytes
        self.broken = False
        """The client left in the middle."""

    def fill(self, view: memoryview) -> None:
        """Take the next bytes, no more than are left, into memory of the caller. Copied once, by the kernel.

        Raises:
            OSError, EOFError: the client left, or sent nothing for a minute.
        """
        assert len(view) <= self.left_bytes
        try:
            self._stream.take_into(view)
        except (OSError, EOFError):
            self.broken = True
            raise
        self.left_bytes -= len(view)

    def __iter__(self) -> Iterator[memoryview]:
        """Piece by piece, each valid until the next."""
        if not self.left_bytes:
            return
        buffer = memoryview(bytearray(min(CHUNK_BYTES, self.left_bytes)))
        while self.left_bytes:
            view = buffer[: self.left_bytes]
            self.fill(view)
            yield view


class Call(NamedTuple):
    """How a method is called: (request, context, raw bytes of the request) -> (answer, raw bytes of the answer)."""

    request_class: Any
    do: Callable[[Any, LineContext, Taken], tuple[Any, Raw]]
    errors: ErrorTable = TIER_ERRORS
    """What it raises, and how that travels. The tier's own errors, and so the line's, travel as such in any case."""


@dataclass(frozen=True)
class LineContext:
    """What handlers ask of a call."""

    deadline_s: float

    def time_remaining(self) -> float:
        """As gRPC's, in seconds."""
        return max(0.0, self.deadline_s - time.monotonic())


def unary_calls(service: Any, descriptor: Any) -> dict[str, Call]:
    """The methods of a service's descriptor that have no streams and that it does; errors come out as they are."""
    calls = {}
    for method in descriptor.methods:
        # Below `TIER_ERRORS.handler`; gRPC's own placeholder has none.
        plain = getattr(getattr(type(service), method.name), "__wrapped__", None)
        if plain is not None and not method.client_streaming and not method.server_streaming:
            calls[method.name] = Call(GetMessageClass(method.input_type), _unary(service, plain))
    return calls


def _unary(service: Any, plain: Callable[..., Any]) -> Callable[..., tuple[Any, Raw]]:
    return lambda request, context, raw: (plain(service, request, context), NOTHING)


class _Line:
    """One connection."""

    def __init__(self, stream: Stream, ended: Callable[[_Line], None]) -> None:
        self.stream = stream
        self.busy = False
        self._ended = ended

    def fileno(self) -> int:
        return self.stream.sock.fileno()

    def close(self) -> None:
        self.stream.sock.close()
        self._ended(self)


class LineServer:
    """Takes connections from `start` to `stop`."""

    def __init__(self, ticket: bytes, max_calls: int) -> None:
        """Opens no port.

        Args:
            ticket: what a connection must show.
            max_calls: done at once; the others wait.
        """
        assert len(ticket) == TICKET_BYTES
        self._greeting = MAGIC + ticket
        self._calls: Mapping[bytes, Call] = {}
        self._turns = threading.BoundedSemaphore(max_calls)
        self._listeners: list[socket.socket] = []
        self._leader: LeaderFollowers[_Line] = LeaderFollowers(self._serve, "line")
        self._lock = threading.Lock()
        # Told when there is one less of these.
        self._changed = threading.Condition(self._lock)
        self._arriving: set[socket.socket] = set()
        self._lines: set[_Line] = set()
        self._path: Path | None = None
        self._tls: ssl.SSLContext | None = None
        self._stopped = False

    def bind(self, path: Path, host: str, port: int, tls: TlsServer | None) -> int:
        """Take a Unix socket at `path`, of whose directory only the same user may read, and a port; returns it.

        Raises:
            OSError.
        """
        with suppress(FileNotFoundError):
            path.unlink()
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listeners.append(unix)
        with short_path(path) as name:
            unix.bind(name)
        self._path = path
        if tls is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(tls.certificate, tls.key)
            if tls.client_ca is not None:
                self._tls.load_verify_locations(tls.client_ca)
                self._tls.verify_mode = ssl.CERT_REQUIRED
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        tcp = socket.create_server(address[:2], family=family, dualstack_ipv6=both)
        self._listeners.append(tcp)
        return int(tcp.getsockname()[1])

    def start(self, calls: Mapping[str, Call]) -> None:
        """Serve. Does not block."""
        self._calls = {name.encode(): call for name, call in calls.items()}
        self._leader.start()
        for listener in self._listeners:
            listener.listen(128)
            thread = threading.Thread(target=self._accept, args=(listener,), name="line accept", daemon=True)
            thread.start()

    def stop(self, grace_s: float) -> None:
        """Take no more calls, give those at work `grace_s` seconds, then cut them off. Idempotent."""
        with self._lock:
            self._stopped = True
            for sock in [*self._arriving, *(line.stream.sock for line in self._lines if not line.busy)]:
                _shut(sock)
        for listener in self._listeners:
            _shut(listener)
            listener.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        with self._lock:
            if not self._changed.wait_for(self._is_empty, grace_s):
                for line in self._lines:
                    _shut(line.stream.sock)
                self._changed.wait_for(self._is_empty, 1.0)
        self._leader.stop(1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop(1.0)

    # ---------------------------------------------------------------- inside

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                if self._stopped:
                    return
                # Out of descriptors, or the client is gone already; the others are not to suffer for it.
                LOG.warning("a connection could not be taken", exc_info=True)
                time.sleep(0.1)
                continue
            with self._lock:
                refused = self._stopped or len(self._lines) + len(self._arriving) >= MAX_CONNECTIONS
                if not refused:
                    self._arriving.add(sock)
            if refused:
                sock.close()
            else:
                threading.Thread(target=self._greet, args=(sock,), name="line greeting", daemon=True).start()

    def _greet(self, sock: socket.socket) -> None:
        arrived, line = sock, None
        try:
            sock.settimeout(_GREETING_S)
            if sock.family != socket.AF_UNIX:
                tune(sock)
                if self._tls is not None:
                    # Takes the socket over, even where it fails.
                    sock = self._tls.wrap_socket(sock, server_side=True)
            stream = Stream(sock)
            if hmac.compare_digest(stream.take(len(self._greeting)), self._greeting):
                sock.settimeout(None)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _STALLED_S, 0))
                # Of TLS for both directions: OpenSSL goes on after a timeout of the kernel's.
                stream.limit(_STALLED_S)
                sock.sendall(WELCOME)
                line = _Line(stream, self._end)
        except (OSError, EOFError) as error:
            LOG.debug("a connection ended: %r", error)
        finally:
            with self._lock:
                self._arriving.discard(arrived)
                welcome = line is not None and not self._stopped
                if line is not None and welcome:
                    self._lines.add(line)
                self._changed.notify_all()
            if line is not None and welcome:
                self._leader.watch(line)
            else:
                sock.close()

    def _end(self, line: _Line) -> None:
        with self._lock:
            self._lines.discard(line)
            self._changed.notify_all()

    def _is_empty(self) -> bool:
        return not self._lines and not self._arriving

    def _serve(self, line: _Line) -> bool:
        """Do the calls that have come; returns whether there may be more."""
        stream = line.stream
        try:
            while self._turn_busy(line, True):
                self._answer(stream, *REQUEST.unpack(stream.take(REQUEST.size)))
                if not stream.holds_bytes():
                    return self._turn_busy(line, False)
        except (OSError, EOFError) as error:
            LOG.debug("a connection ended: %r", error)
        except TierError as error:
            LOG.warning("an answer was cut off: what passes through this server came to an end: %s", error)
        return False

    def _turn_busy(self, line: _Line, busy: bool) -> bool:
        """Whether to go on; `stop` ends at once whoever waits for a call."""
        with self._lock:
            line.busy = busy
            return not self._stopped

    def _answer(self, stream: Stream, name_bytes: int, left_ms: int, message_bytes: int, raw_bytes: int) -> None:
        deadline_s = time.monotonic() + left_ms / 1000
        if message_bytes > MAX_MESSAGE_BYTES:
            raise EOFError(f"a message of {message_bytes:,} bytes")
        name, message = stream.take(name_bytes), stream.take(message_bytes)
        if raw_bytes > _QUICK_BYTES:
            self._leader.leave_lead()
        taken = Taken(stream, raw_bytes)
        raw = NOTHING
        call = self._calls.get(name)
        try:
            try:
                if call is None:
                    raise ServerFailed(f"the server does not know this call: is it another version? ({name!r:.60})")
                if not self._turns.acquire(timeout=max(0.0, left_ms / 1000)):
                    raise DeadlineExceeded("the server was busy with other calls for all of the time given")
                try:
                    request = call.request_class.FromString(message)
                    answer, raw = call.do(request, LineContext(deadline_s), taken)
                    content, kind = answer.SerializeToString(), FINE
                finally:
                    self._turns.release()
            except DecodeError as error:
                raise InvalidRequest(f"the message of {name!r:.60} cannot be read: {error}") from None
        except Exception as error:
            if taken.broken:
                raise  # the client left in the middle of its bytes, and nobody is there to be told
            errors = TIER_ERRORS if call is None or isinstance(error, TierError) else call.errors
            described, sentence = errors.describe(error)
            content, kind = f"{described.__name__}\0{sentence}".encode(), FAILED
        with raw:
            # What a refusal has left would be taken for the next call.
            for _ in taken:
                pass
            stream.sock.sendall(ANSWER.pack(kind, len(content), raw.end - raw.start) + content)
            if raw.end - raw.start > _QUICK_BYTES:
                self._leader.leave_lead()
            # From the map by send(2): sendfile(2) hands over single pages, at two thirds of the speed on loopback.
            for chunk in raw.chunks():
                stream.sock.sendall(chunk)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
