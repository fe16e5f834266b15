"""The ways to one server: the line where there is one (`storage_tier.line`), else gRPC. And who answers there."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.message_factory import GetMessageClass

from storage_tier.errors import Unreachable, Unsupported
from storage_tier.file_info import FileInfo
from storage_tier.host import NONCE_NAME, is_near, proof_of
from storage_tier.line import TICKET_OF, Incoming, LineDown, Lines
from storage_tier.messages import file_from_wire
from storage_tier.v1 import files_pb2, files_pb2_grpc, tier_pb2, tier_pb2_grpc
from storage_tier.wire import CHUNK_BYTES, TIER_ERRORS, TlsClient, channel, grpc_was_forked


@dataclass(frozen=True)
class Hello:
    """Who answers."""

    server_id: str
    epoch: int
    directory: Path
    """The folder on its host that it proved to own."""
    near: bool
    line: Path | tuple[str, int] | None = None
    """Where it takes calls without gRPC, and"""
    ticket: bytes = b""
    """what opens that."""


# The last `Hello` of each server, for children: those can use a line that the parent knows, and nothing else.
_KNOWN: dict[Any, Hello] = {}
_ANSWERS: dict[str, Any] = {
    method.name: GetMessageClass(method.output_type)
    for service in (tier_pb2.DESCRIPTOR.services_by_name["Tier"], files_pb2.DESCRIPTOR.services_by_name["Files"])
    for method in service.methods
}


class Opened(NamedTuple):
    """The answer to `OpenFile`, taken apart."""

    header: tier_pb2.ResponseHeader
    info: FileInfo
    """Shared by all who get this answer: who hands it out copies the metadata."""
    local_path: str
    block_path: str

    @classmethod
    def of(cls, message: files_pb2.OpenFileResponse) -> Opened:
        return cls(message.header, file_from_wire(message.file), message.local_path, message.block_path)


class _OpenedAnswers:
    """A file that is opened again and again is answered by the same bytes, which mean the same."""

    @staticmethod
    @lru_cache(64)
    def FromString(message: bytes) -> Opened:
        return Opened.of(files_pb2.OpenFileResponse.FromString(message))


_ANSWERS["OpenFile"] = _OpenedAnswers


class Streamed:
    """The answers of a call that has many, as an `Incoming`."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers
        self.first = next(answers)

    def into(self, view: memoryview) -> int:
        at = 0
        for chunk in self:
            end = at + len(chunk)
            if end <= len(view):
                view[at:end] = chunk
            at = end
            if at > len(view):
                break
        return at

    def __iter__(self) -> Iterator[bytes]:
        for answer in self._answers:
            yield answer.chunk


class Way:
    """To one server, in the process that made it. Thread-safe."""

    def __init__(
        self,
        peer: str,
        server: tuple[str, int] | None,
        given: grpc.Channel | None,
        token: str | None,
        tls: TlsClient | None,
        near: bool | None,
    ) -> None:
        """Does no I/O. Either `server`, or `given`: a channel that the caller closes. The rest as `TierClient`."""
        self.peer = peer
        self.hello: Hello | None = None
        """None when nobody was asked yet, or another start of the server was noticed."""
        self._server = server
        self._tls = tls
        self._wanted = near
        self._key = (peer, token, tls)
        self._lines: Lines | None = None
        self._channel = given
        # In a process that was forked from one that has used gRPC there is none.
        if server is not None and not grpc_was_forked():
            self._channel = channel(*server, token=token, tls=tls)
        self._methods: dict[str, Callable[..., Any]] = {}
        if self._channel is not None:
            self._methods.update(vars(tier_pb2_grpc.TierStub(self._channel)))
            self._methods.update(vars(files_pb2_grpc.FilesStub(self._channel)))

    @property
    def is_near(self) -> bool:
        """Whether it is known to share memory with this process."""
        return self.hello is not None and self.hello.near

    def close(self) -> None:
        """Let all go that was made for it. Idempotent."""
        self.close_sockets()
        if self._channel is not None and self._server is not None:
            self._channel.close()

    def close_sockets(self) -> None:
        """What alone may be closed in another process than that which made it."""
        if self._lines is not None:
            self._lines.close()

    # -------------------------------------------------------------------- calls

    def call(self, name: str, request: Any, deadline_s: float) -> Any:
        """One call of either service, by its name; of `OpenFile` the answer is an `Opened`."""
        for lines in self._each_line(deadline_s):
            try:
                return lines.call(name, request, _ANSWERS[name], deadline_s)
            except LineDown:
                continue
        with TIER_ERRORS.translated(self.peer):
            answer = self._methods[name](request, timeout=remaining_s(deadline_s))
        return Opened.of(answer) if name == "OpenFile" else answer

    @contextmanager
    def read(self, name: str, request: Any, deadline_s: float) -> Iterator[Incoming | Streamed]:
        """A call that is answered by a message and many bytes; when the block ends before they do, it is cancelled."""
        with ExitStack() as opened:
            yield self._begin(name, request, deadline_s, opened)

    def _begin(self, name: str, request: Any, deadline_s: float, opened: ExitStack) -> Incoming | Streamed:
        for lines in self._each_line(deadline_s):
            with suppress(LineDown):
                return opened.enter_context(lines.exchange(name, request, _ANSWERS[name], deadline_s))
        opened.enter_context(TIER_ERRORS.translated(self.peer))
        answers = self._methods[name](request, timeout=remaining_s(deadline_s))
        opened.callback(answers.cancel)
        return Streamed(answers)

    def send(self, name: str, begin: Any, views: Sequence[memoryview], deadline_s: float) -> Any:
        """A call with a message that says what begins, and many bytes."""
        raw_bytes = sum(len(view) for view in views)
        for lines in self._each_line(deadline_s):
            with (
                suppress(LineDown),
                lines.exchange(name, begin, _ANSWERS[name], deadline_s, views, raw_bytes) as incoming,
            ):
                return incoming.first
        with TIER_ERRORS.translated(self.peer):
            return self._methods[name](_requests(begin, views), timeout=remaining_s(deadline_s))

    # ----------------------------------------------------------------- greeting

    def greet(self, deadline_s: float) -> Hello:
        """Who is there; a round trip when it is not known.

        Raises:
            Unsupported: near was asked for, and it is not; or only gRPC leads there, and it cannot be used (a fork).
        """
        hello = self.hello
        if hello is None:
            hello = self._ask(deadline_s)
            self._turn_to(hello)
        return hello

    def new_lines(self, deadline_s: float) -> Lines | None:
        """Lines to who answers now, that the caller closes; None where there are none. A round trip."""
        return self._lines_of(self._ask(deadline_s))

    def _lines_of(self, hello: Hello) -> Lines | None:
        if hello.line is None or self._server is None:
            return None
        return Lines(self.peer, hello.line, hello.ticket, self._tls)

    def _turn_to(self, hello: Hello) -> None:
        before, self._lines = self._lines, None
        if before is not None:
            before.close()
        self._lines = self._lines_of(hello)
        self.hello = hello

    def _each_line(self, deadline_s: float) -> Iterator[Lines]:
        """The ways to try before gRPC: that which is known, and, when it is closed, what the server says now."""
        if self._server is None:
            return
        before = self.greet(deadline_s)
        lines = self._lines
        if lines is None:
            return
        yield lines
        hello = self._ask(deadline_s)
        self._turn_to(hello)
        if self._lines is not None and hello != before:
            yield self._lines
        # The server is there, and nothing but its own port is open from here.
        closed, self._lines = self._lines, None
        if closed is not None:
            closed.close()

    def _ask(self, deadline_s: float) -> Hello:
        challenge = secrets.token_bytes(32)
        request = tier_pb2.HelloRequest(challenge=challenge)
        if self._channel is None:
            response = self._ask_line(request, deadline_s)
        else:
            with TIER_ERRORS.translated(self.peer):
                response = self._methods["Hello"](request, timeout=remaining_s(deadline_s))
        near = self._wanted is not False and is_near(response.nonce_path, response.proof, challenge)
        if self._wanted and not near:
            raise Unsupported(
                f"near=True, and this process cannot read the nonce of the server at {self.peer} "
                f"({response.nonce_path}): it runs on another host, in another container, or as another user"
            )
        # The proof is about the folder that holds the nonce, so that is the only folder to be trusted.
        directory = Path(os.path.abspath(response.nonce_path)).parent
        line: Path | tuple[str, int] | None = None
        if near and response.line_path and Path(response.line_path).parent == directory:
            line = Path(response.line_path)
        elif response.line_port and self._server is not None:
            line = self._server[0], response.line_port
        hello = Hello(response.header.server_id, response.header.epoch, directory, near, line, response.line_ticket)
        known = _KNOWN.get(self._key)
        if known is None or near or not known.near or known.directory != directory:
            _KNOWN[self._key] = hello  # one that is near leads further than one that is not
        return hello

    def _ask_line(self, request: tier_pb2.HelloRequest, deadline_s: float) -> Any:
        """The same where gRPC cannot be used: over a line that was known before the fork."""
        known = _KNOWN.get(self._key)
        if known is None or known.line is None:
            raise Unsupported(forked(self.peer))
        tickets = [known.ticket]
        if known.near:
            # It may have been started anew; who can read its nonce needs nobody to tell him the ticket.
            with suppress(OSError):
                tickets.append(proof_of((known.directory / NONCE_NAME).read_bytes(), TICKET_OF))
        for ticket in tickets:
            with closing(Lines(self.peer, known.line, ticket, self._tls)) as lines, suppress(LineDown):
                return lines.call("Hello", request, tier_pb2.HelloResponse, deadline_s)
        raise Unreachable(
            f"no server answers at {self.peer}: it is not running, or it was started anew. In the second case "
            "only a process that was not forked from one which had used gRPC finds it again: start such processes by "
            "spawn (multiprocessing.get_context('spawn'))"
        )


def forked(peer: str) -> str:
    """Why nobody can be asked here, as a sentence."""
    return (
        "this process was forked from one that had used gRPC, which does not work in the child, and the server at "
        f"{peer} is not known from before the fork. Start processes by spawn "
        "(multiprocessing.get_context('spawn')), or use the server by this address once before the fork, or for the "
        "first time after it"
    )


def _requests(begin: files_pb2.SendFileBegin, views: Sequence[memoryview]) -> Iterator[files_pb2.SendFileRequest]:
    yield files_pb2.SendFileRequest(begin=begin)
    for view in views:
        for at in range(0, len(view), CHUNK_BYTES):
            yield files_pb2.SendFileRequest(chunk=bytes(view[at : at + CHUNK_BYTES]))


def remaining_s(deadline_s: float) -> float:
    """What is left until a moment of the monotonic clock; gRPC takes 0 for a deadline that has passed."""
    return max(0.0, deadline_s - time.monotonic())
