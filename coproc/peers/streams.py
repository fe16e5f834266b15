"""Raw streams between equal peers: who is where, by small files of the tier; then one TCP connection a pair.

One thread moves the bytes of all of them, both ways at the same time, each as far as its socket goes. What is received
is a *script*: an iterator of the buffers that a peer's bytes fill, one after the other. No pickle; a peer shows the
run's secret before anything else.
"""

from __future__ import annotations

import hmac
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from coproc.errors import CoprocError, Timeout, WorkerLost
from coproc.pools.base import failure_in, failure_text
from storage_tier import TierClient
from storage_tier.errors import PathExists, PathNotFound
from storage_tier.wire import parse_address

# What a peer says first: the secret, and who it is.
_HELLO = struct.Struct("<32sI")
_HELLO_S = 2.0
_LOOK_S = 0.02
_FAILED = "failed"
# Seconds until a silent host is asked, from one question to the next, and how many are left unanswered.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))

Script = Iterator[memoryview]


class Meeting:
    """The way of one peer to a stream to each of the others; `join` goes on where it was left. Close it in the end."""

    def __init__(self, tier: TierClient, address: str, directory: str, secret: str, peer: int, peers: int) -> None:
        """Does no I/O.

        Args:
            address: of the tier.
            directory: of this meeting, in the tier; each peer comes to it once.
            secret: 32 letters.
        """
        self._tier = tier
        self._address = address
        self._directory = directory
        self._secret = secret.encode()
        self._peer = peer
        self._others = [other for other in range(peers) if other != peer]
        self._listening: socket.socket | None = None
        self.sockets: dict[int, socket.socket] = {}

    def join(self, timeout_s: float) -> None:
        """Have a stream to each peer in `sockets`.

        Raises:
            WorkerLost: one has come before, or is gone: nobody can meet here any more. Or what a peer failed with.
            Timeout: somebody is not there yet; call again.
        """
        deadline = time.monotonic() + timeout_s
        if self._listening is None:
            self._register()
        addresses = self._addresses(deadline)
        for other in self._others:
            if other < self._peer and other not in self.sockets:
                self._connect(other, addresses[other])
        while len(self.sockets) < len(self._others):
            if time.monotonic() >= deadline:
                raise self._missing(set(self.sockets))
            self.check()
            self._accept()
        self._stop_listening()

    def _register(self) -> None:
        # Where this host is seen from the tier's, the others see it too.
        host, port = parse_address(self._address)[0]
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(where)
            own = probe.getsockname()[0]
        listening = socket.create_server((own, 0), family=family)
        listening.settimeout(_LOOK_S)
        facts = {"host": own, "port": listening.getsockname()[1]}
        try:
            self._tier.put(f"{self._directory}/{self._peer:05d}", b"", facts)
            self._listening = listening
        except PathExists:
            lost = WorkerLost(f"an attempt of worker {self._peer} died among its peers: all of them begin again")
            self.give_up(lost)
            raise lost from None
        finally:
            if self._listening is None:
                listening.close()

    def _addresses(self, deadline: float) -> dict[int, tuple[str, int]]:
        while True:
            there = {int(file.path.rpartition("/")[2]): file.metadata for file in self._listed()}
            if len(there) > len(self._others):
                return {peer: (str(facts["host"]), int(facts["port"] or 0)) for peer, facts in there.items()}
            if time.monotonic() >= deadline:
                raise self._missing(set(there))
            time.sleep(_LOOK_S)

    def _listed(self) -> list[Any]:
        files = self._tier.list(self._directory)
        for file in files:
            if file.path.endswith(_FAILED):
                raise self._failure(file.metadata)
        return files

    def _missing(self, there: set[int]) -> Timeout:
        away = [str(other) for other in self._others if other not in there]
        return Timeout(f"worker {self._peer} waits for a stream to worker{'s'[: len(away) > 1]} {', '.join(away)}")

    def _connect(self, other: int, address: tuple[str, int]) -> None:
        stream: socket.socket | None = None
        try:
            stream = socket.create_connection(address, timeout=_HELLO_S)
            stream.sendall(_HELLO.pack(self._secret, self._peer))
        except OSError as error:
            if stream is not None:
                stream.close()
            raise self.lost(other, f"it does not answer at {address[0]}:{address[1]} ({error})") from None
        self._keep(other, stream)

    def _accept(self) -> None:
        assert self._listening is not None
        try:
            stream, _ = self._listening.accept()
        except TimeoutError:
            return
        stream.settimeout(_HELLO_S)
        try:
            hello = stream.recv(_HELLO.size, socket.MSG_WAITALL)
        except OSError:
            hello = b""
        secret, other = _HELLO.unpack(hello) if len(hello) == _HELLO.size else (b"", -1)
        if not hmac.compare_digest(secret, self._secret) or other not in self._others or other in self.sockets:
            stream.close()  # a stranger
            return
        self._keep(other, stream)

    def _keep(self, other: int, stream: socket.socket) -> None:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A host that is gone says nothing.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            stream.setsockopt(socket.IPPROTO_TCP, option, value)
        stream.setblocking(False)
        self.sockets[other] = stream

    def give_up(self, error: BaseException) -> None:
        """Leave word why this peer fails, unless another one did; whoever misses it finds that."""
        try:
            self._tier.put(f"{self._directory}/{_FAILED}", b"", {"failure": failure_text(error)})
        except PathExists:
            return

    def check(self) -> None:
        """Raises what a peer has left word of, if one has."""
        try:
            raise self._failure(self._tier.stat(f"{self._directory}/{_FAILED}").metadata)
        except PathNotFound:
            return

    def _failure(self, facts: Mapping[str, Any]) -> CoprocError:
        return failure_in(str(facts["failure"])) or WorkerLost("a peer has left, and its word cannot be read")

    def lost(self, other: int, why: str) -> CoprocError:
        """The error for a peer that is gone: its own, where it has left word."""
        try:
            self.check()
        except CoprocError as error:
            return error
        return WorkerLost(f"worker {self._peer} lost worker {other}: {why}")

    def close(self) -> None:
        """Close all streams. Idempotent."""
        self._stop_listening()
        for stream in self.sockets.values():
            stream.close()

    def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.close()


class Streams:
    """What goes to each peer and comes from it, on the sockets of a `Meeting`. Used by one thread."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting
        self._out: dict[int, deque[memoryview]] = {peer: deque() for peer in meeting.sockets}
        self._into: dict[int, memoryview] = {}
        self._scripts: dict[int, Script] = {}
        self._selector = selectors.DefaultSelector()
        self._wanted: dict[int, int] = {}

    def send(self, peer: int, *parts: Any) -> None:
        """Queue what goes to a peer; the memory must stay as it is until `move` is back."""
        self._out[peer].extend(view for part in parts if (view := memoryview(part).cast("B")))

    def move(self, scripts: Mapping[int, Script], timeout_s: float) -> None:
        """Move bytes until all that was queued is sent, and every script has come to its end. Scripts may send, too.

        What a peer sends beyond its script waits for the next call.

        Raises:
            WorkerLost: a stream broke, or none has moved for `timeout_s`. What a script raises.
        """
        self._scripts = dict(scripts)
        for peer in list(self._scripts):
            self._next(peer)
        while waited := self._interests():
            for peer, events in self._ready(waited, timeout_s):
                try:
                    if events & selectors.EVENT_WRITE:
                        self._push(peer)
                    if events & selectors.EVENT_READ:
                        self._fill(peer)
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise self._meeting.lost(peer, f"its stream broke ({error})") from None

    def _interests(self) -> dict[int, int]:
        """Tell the selector what is wanted of each stream; those of which something is."""
        for peer, stream in self._meeting.sockets.items():
            wanted = selectors.EVENT_READ if peer in self._into else 0
            wanted |= selectors.EVENT_WRITE if self._out[peer] else 0
            had = self._wanted.get(peer, 0)
            if wanted and not had:
                self._selector.register(stream, wanted, peer)
            elif had and not wanted:
                self._selector.unregister(stream)
            elif wanted != had:
                self._selector.modify(stream, wanted, peer)
            self._wanted[peer] = wanted
        return {peer: wanted for peer, wanted in self._wanted.items() if wanted}

    def _ready(self, waited: Mapping[int, int], timeout_s: float) -> list[tuple[int, int]]:
        ready = self._selector.select(timeout_s)
        if not ready:
            other = next(iter(waited))
            raise self._meeting.lost(other, f"nothing came or went for {timeout_s:.0f} s")
        return [(key.data, events) for key, events in ready]

    def _push(self, peer: int) -> None:
        queue = self._out[peer]
        sent = self._meeting.sockets[peer].sendmsg(list(queue)[:16])
        while sent:
            if sent < len(queue[0]):
                queue[0] = queue[0][sent:]
                return
            sent -= len(queue.popleft())

    def _fill(self, peer: int) -> None:
        into = self._into[peer]
        count = self._meeting.sockets[peer].recv_into(into)
        if not count:
            raise ConnectionResetError("it has closed the stream")
        if count < len(into):
            self._into[peer] = into[count:]
        else:
            self._next(peer)

    def _next(self, peer: int) -> None:
        """The next buffer of a peer's script."""
        self._into.pop(peer, None)
        for view in self._scripts[peer]:
            if len(view):
                self._into[peer] = view.cast("B")
                return

    def close(self) -> None:
        """Let go of the streams, which the meeting closes. Idempotent."""
        self._selector.close()
