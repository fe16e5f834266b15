"""The connection of a client: which server of an address it talks to, and whether they share memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from storage_tier.client.way import Hello, Streamed, Way, forked
from storage_tier.errors import DeadlineExceeded, InvalidRequest, ServerFailed, Unreachable, Unsupported
from storage_tier.line import Incoming, Lines
from storage_tier.v1 import tier_pb2
from storage_tier.wire import TlsClient, check_token, parse_address, target

# Made before a fork. The threads of their channels do not exist in the child: closing or collecting them there can
# hang.
_OTHER_PROCESS: list[Any] = []


class Connection:
    """To one server of an address, chosen at the first call; made anew in each process. Thread-safe."""

    def __init__(
        self,
        address_or_channel: str | grpc.Channel,
        token: str | None,
        tls: TlsClient | None,
        near: bool | None,
        server_index: int | None,
    ) -> None:
        """Does no I/O. Arguments as those of `TierClient`.

        Raises:
            InvalidAddress, InvalidRequest.
        """
        self._token = check_token(token)
        self._tls = tls
        self._wanted = near
        self._given = None if isinstance(address_or_channel, str) else address_or_channel
        self._given_pid = os.getpid()
        self._servers: list[tuple[str, int]] = []
        self.peer = "the given channel"
        """Who is at the other end, for sentences."""
        if isinstance(address_or_channel, str):
            self._servers = parse_address(address_or_channel)
            if server_index is not None:
                if not 0 <= server_index < len(self._servers):
                    raise InvalidRequest(
                        f"{address_or_channel} has {len(self._servers)} servers, and no number {server_index}"
                    )
                self._servers = [self._servers[server_index]]
            self.peer = ",".join(target(*server) for server in self._servers)
        self._open: dict[int, Way] = {}  # by process id; as a rule one

    # -------------------------------------------------------------------- calls

    def call(self, name: str, request: Any, deadline_s: float, again: bool = False) -> Any:
        """One call of either service, by its name. With `again` it may be done twice, at another server then.

        Raises:
            whatever the server raised; Unreachable, DeadlineExceeded. Unsupported: gRPC cannot be used here (a fork).
        """
        for last in (not again, True):
            connected = self._connect(deadline_s)
            try:
                response = connected.call(name, request, deadline_s)
            except Unreachable:
                if not self._leave(connected) or last:
                    raise
                continue
            self._check(connected, response.header)
            return response
        raise AssertionError("unreachable")

    @contextmanager
    def read(self, name: str, request: Any, deadline_s: float) -> Iterator[Incoming | Streamed]:
        """A call that is answered by a message and many bytes; when the block ends before they do, it is cancelled."""
        connected = self._connect(deadline_s)
        try:
            with connected.read(name, request, deadline_s) as incoming:
                yield incoming
        except Unreachable:
            self._leave(connected)
            raise

    def send(self, name: str, begin: Any, views: Sequence[memoryview], deadline_s: float) -> Any:
        """A call with a message that says what begins, and many bytes."""
        connected = self._connect(deadline_s)
        try:
            response = connected.send(name, begin, views, deadline_s)
        except Unreachable:
            self._leave(connected)
            raise
        self._check(connected, response.header)
        return response

    def hello(self, deadline_s: float) -> Hello:
        """Who answers, and whether this process shares memory with it. A round trip once a connection.

        Raises:
            Unsupported: near was asked for, and it is not.
        """
        return self._connect(deadline_s).greet(deadline_s)

    def new_lines(self, deadline_s: float) -> Lines | None:
        """Lines to the server, for calls of another service of it; the caller closes them. A round trip.

        None where there are none. Raises as `call`.
        """
        return self._connect(deadline_s).new_lines(deadline_s)

    def inside(self, path: str, hello: Hello) -> Path:
        """A path that the server told, if it lies in the folder it proved to own.

        Raises:
            ServerFailed: it does not.
        """
        inside = Path(os.path.normpath(path))
        if not inside.is_relative_to(hello.directory) or not inside.is_absolute():
            raise ServerFailed(f"the server at {self.peer} names {path!r:.200}, outside of its {hello.directory}")
        return inside

    def close(self) -> None:
        """Close the connection of this process. Idempotent; a later call connects again."""
        connected = self._open.pop(os.getpid(), None)
        if connected is not None:
            connected.close()

    # --------------------------------------------------------------- connecting

    def _connect(self, deadline_s: float) -> Way:
        pid = os.getpid()
        connected = self._open.get(pid)
        if connected is not None:
            return connected
        for other in [other for other in tuple(self._open) if other != pid]:
            left = self._open.pop(other, None)
            if left is not None:
                left.close_sockets()
            _OTHER_PROCESS.append(left)
        mine = self._choose(deadline_s)
        # No lock: one held by another thread at a fork would stay held in the child.
        connected = self._open.setdefault(pid, mine)
        if connected is not mine:
            mine.close()
        return connected

    def _choose(self, deadline_s: float) -> Way:
        """The server on this host, else the first that answers. Asks nobody where there is no choice."""
        if self._given is not None:
            if os.getpid() != self._given_pid:
                raise Unsupported(forked(self.peer))
            return Way(self.peer, None, self._given, self._token, self._tls, self._wanted)
        if len(self._servers) == 1:
            return self._dial(self._servers[0])
        best: Way | None = None
        problems: list[str] = []
        for server in self._servers:
            candidate = self._dial(server)
            try:
                candidate.greet(deadline_s)
            except (Unreachable, DeadlineExceeded, Unsupported) as error:
                problems.append(str(error))
                candidate.close()
                continue
            except BaseException:
                candidate.close()
                if best is not None:
                    best.close()
                raise
            better, worse = (candidate, best) if best is None or candidate.is_near else (best, candidate)
            if worse is not None:
                worse.close()
            best = better
            if best.is_near or self._wanted is False:
                break
        if best is None:
            raise Unreachable(f"none of the {len(self._servers)} servers can be used: {'; '.join(problems)}")
        return best

    def _dial(self, server: tuple[str, int]) -> Way:
        return Way(target(*server), server, None, self._token, self._tls, self._wanted)

    def _leave(self, connected: Way) -> bool:
        """Whether there is another server to turn to, after this one did not answer."""
        if len(self._servers) < 2:
            return False
        pid = os.getpid()
        if self._open.get(pid) is connected:
            self._open.pop(pid, None)
            connected.close()
        return True

    def _check(self, connected: Way, header: tier_pb2.ResponseHeader) -> None:
        hello = connected.hello
        if hello is not None and (hello.epoch != header.epoch or hello.server_id != header.server_id):
            # Another start of the server, or another server: whether it is near is to be found out anew.
            connected.hello = None
