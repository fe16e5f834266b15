"""The line, when the other side is not what it should be: a sentence, and harm to nobody."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_tier import errors
from storage_tier.client import TierClient
from storage_tier.client.connection import Connection
from storage_tier.line import ANSWER, FAILED, FINE, MAGIC, REQUEST, TICKET_BYTES, WELCOME, LineDown, Lines
from storage_tier.server.line import Call, LineServer, Raw
from storage_tier.server.peers import RpcPeers
from storage_tier.v1 import files_pb2 as pb
from storage_tier.v1 import tier_pb2
from storage_tier.wire import TlsServer

from .contents import content
from .line_talk import ASK, MIB, TICKET, made_certificate, soon

# ---- a server that is not what it should be


def scripted(script: Callable[[socket.socket], None]) -> Iterator[Lines]:
    """Lines to a server that does as the script says with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock, contextlib.suppress(OSError):
                        script(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        lines = Lines("the peer", listener.getsockname(), TICKET, None)
        try:
            yield lines
        finally:
            lines.close()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def greet(sock: socket.socket) -> None:
    assert sock.recv(1000) == MAGIC + TICKET
    sock.sendall(WELCOME)


def answer(sock: socket.socket, head: bytes, rest: bytes = b"") -> None:
    greet(sock)
    sock.recv(1000)
    sock.sendall(head + rest)


@pytest.mark.parametrize(
    ("script", "error", "match"),
    [
        (lambda sock: None, LineDown, "127"),
        (lambda sock: sock.sendall(b"HTTP/1.1 400\r\n"), LineDown, "127"),
        (greet, errors.Unreachable, "no server answers at the peer any more"),
        (lambda sock: answer(sock, ANSWER.pack(FINE, 10, 0), b"12345"), errors.Unreachable, "the peer"),
        (lambda sock: answer(sock, ANSWER.pack(FINE, 1 << 30, 0)), errors.ServerFailed, "no answer"),
        (lambda sock: answer(sock, ANSWER.pack(FAILED, 5, 5), b"X\0aaaBBBBB"), errors.ServerFailed, "no answer"),
        (lambda sock: answer(sock, ANSWER.pack(FAILED, 14, 0), b"PathExists\0so."), errors.PathExists, "^so.$"),
        (lambda sock: answer(sock, ANSWER.pack(FAILED, 6, 0), b"New\0so"), errors.ServerFailed, "^so$"),
        (lambda sock: answer(sock, ANSWER.pack(FAILED, 3, 0), b"New"), errors.ServerFailed, "^$"),
        (lambda sock: answer(sock, ANSWER.pack(FINE, 3, 0), b"\xff\xff\xff"), errors.ServerFailed, "no answer"),
    ],
)
def test_a_server_that_speaks_nonsense(script: Callable[[socket.socket], None], error: type, match: str) -> None:
    with contextlib.contextmanager(scripted)(script) as lines, pytest.raises(error, match=match):
        lines.call(*ASK, soon())


def test_each_call_waits_as_long_as_it_may_itself() -> None:
    def script(sock: socket.socket) -> None:
        answer(sock, ANSWER.pack(FINE, 0, 0))
        sock.recv(1000)
        gone.wait(0.3)
        sock.sendall(ANSWER.pack(FINE, 0, 0))
        sock.recv(1000)
        gone.wait(10)

    gone = threading.Event()
    with contextlib.contextmanager(scripted)(script) as lines:
        lines.call(*ASK, soon(0.1))
        (stream,) = lines._idle
        lines.call(*ASK, soon(10.0))
        assert list(lines._idle) == [stream]
        began_s = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            lines.call(*ASK, soon(0.1))
        assert time.monotonic() - began_s < 5
        assert not lines._idle, "its answer may still come"
        gone.set()


def test_a_server_that_stops_in_the_middle_of_the_bytes() -> None:
    script = lambda sock: answer(sock, ANSWER.pack(FINE, 0, 1000), b"x" * 999)  # noqa: E731
    with (
        contextlib.contextmanager(scripted)(script) as lines,
        pytest.raises(errors.Unreachable),
        lines.exchange(*ASK, soon()) as incoming,
    ):
        incoming.into(memoryview(bytearray(1000)))


def test_a_server_that_is_silent() -> None:
    gone = threading.Event()

    def script(sock: socket.socket) -> None:
        greet(sock)
        gone.wait(10)

    def halfway(sock: socket.socket) -> None:
        answer(sock, ANSWER.pack(FINE, 0, 1000), b"x" * 999)
        gone.wait(10)

    with contextlib.contextmanager(scripted)(script) as lines:
        with pytest.raises(errors.DeadlineExceeded, match="the peer in the time given"):
            lines.call(*ASK, soon(0.2))
        gone.set()
    gone.clear()
    with contextlib.contextmanager(scripted)(halfway) as lines:
        with (
            pytest.raises(errors.DeadlineExceeded, match="the peer in the time given"),
            lines.exchange(*ASK, soon(0.3)) as incoming,
        ):
            incoming.into(memoryview(bytearray(1000)))
        gone.set()


def test_a_block_of_a_peer_goes_into_a_file(shared_server: object, tmp_path: Path) -> None:
    values = content(4, 3 * MIB + 17)
    with TierClient(shared_server.address) as client:
        client.delete_prefix("/")
        client.put("/file", values)
    blocks = shared_server.directory / "blocks"
    (block,) = (path for path in blocks.rglob("*") if path.is_file())
    path = f"/{block.relative_to(blocks)}"
    peers = RpcPeers()
    try:
        for near, alone in ((True, False), (False, False), (False, True)):
            with contextlib.closing(Connection(shared_server.address, None, None, near, None)) as connection:
                if alone:
                    way = connection._connect(soon())
                    way.greet(soon())
                    way._lines = None
                peers._peers[shared_server.address] = connection
                with (tmp_path / "bytes").open("wb", buffering=0) as file:
                    got_bytes = peers.fetch(shared_server.address, path, file.fileno(), 100, 10.0)
                assert got_bytes == len(values)
                assert (tmp_path / "bytes").read_bytes() == bytes(100) + values.tobytes()
                with (tmp_path / "bytes").open("rb") as file, pytest.raises(OSError, match="Bad file") as caught:
                    peers.fetch(shared_server.address, path, file.fileno(), 0, 10.0)
                assert not isinstance(caught.value, errors.TierError), "it is the file's, not the server's"
    finally:
        peers.close()


# ---- a client that is not what it should be


def dial(directory: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(str(directory / ".tmp-line"))
    return sock


@pytest.mark.parametrize("greeting", [b"x" * 44, MAGIC + b"\0" * TICKET_BYTES, b"GET / HTTP/1.1\r\n" * 4])
def test_without_the_ticket_there_is_no_answer(shared_server: object, greeting: bytes) -> None:
    with TierClient(shared_server.address, near=False) as client, dial(shared_server.directory) as unix:
        host, port = client._connection.hello(soon()).line
        with socket.create_connection((host, port), 10) as tcp:
            for sock in (unix, tcp):
                sock.sendall(greeting)
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(1) == b""
        assert client.status().server_id


Head = st.builds(
    REQUEST.pack, st.integers(0, 255), st.integers(0, 2000), st.sampled_from([0, 3, 1 << 31]), st.sampled_from([0, 5])
)
Name = st.sampled_from([b"PutFile", b"SendFile", b"ReadFile", b"Stat", b"Nothing", b""])


@settings(max_examples=60)
@given(st.binary(max_size=80) | st.builds(lambda *parts: b"".join(parts), Head, Name, st.binary(max_size=80)))
def test_any_bytes_harm_nobody(shared_server: object, noise: bytes) -> None:
    from storage_tier.host import proof_of
    from storage_tier.line import TICKET_OF

    ticket = proof_of((shared_server.directory / "nonce").read_bytes(), TICKET_OF)
    with dial(shared_server.directory) as sock:
        sock.sendall(MAGIC + ticket)
        assert sock.recv(1) == WELCOME
        sock.sendall(noise)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass
    with TierClient(shared_server.address) as client:
        client.delete_prefix("/")
        assert client.status().reservation_count == 0


def test_a_refused_file_costs_neither_the_line_nor_the_next_call(shared_server: object) -> None:
    with TierClient(shared_server.address, near=False) as client:
        client.delete_prefix("/")
        client.put("/a", bytes(2 * MIB))
        lines = client._connection._connect(soon())._lines
        (used,) = lines._idle
        for _ in range(2):
            with pytest.raises(errors.PathExists):
                client.put("/a", bytes(2 * MIB))
            with pytest.raises(errors.OutOfMemory):
                client.put("/b", bytes(100 * MIB))
        assert list(lines._idle) == [used], "the same connection still"
        assert client.stat("/a").size_bytes == 2 * MIB
        with client._connection.read("ReadFile", pb.ReadFileRequest(path="/a"), soon()):
            pass  # its bytes are not taken
        assert list(lines._idle) == []
        assert client.stat("/a").size_bytes == 2 * MIB


def test_a_client_that_leaves_in_the_middle_of_its_bytes_publishes_nothing(shared_server: object) -> None:
    def half() -> Iterator[memoryview]:
        yield memoryview(bytes(1000))
        raise KeyboardInterrupt

    with TierClient(shared_server.address, near=False) as client:
        client.delete_prefix("/")
        lines = client._connection._connect(soon())._lines
        begin = pb.SendFileBegin(path="/half", size_bytes=2000)
        for name in ("SendFile", "StageFile"):
            with (
                pytest.raises(KeyboardInterrupt),
                lines.exchange(name, begin, pb.SendFileResponse, soon(), half(), 2000),
            ):
                pass
        for _ in range(1000):
            status = client.status()
            if status.reservation_count == 0:
                break
            select.select([], [], [], 0.01)
        assert (status.reservation_count, status.memory_used_bytes) == (0, 0)
        client.put("/half", b"now whole")
        for wrong_bytes in (1999, 2001):
            for name in ("SendFile", "StageFile"):
                with (
                    pytest.raises(errors.InvalidRequest, match="2,000"),
                    lines.exchange(
                        name, begin, pb.SendFileResponse, soon(), [memoryview(bytes(wrong_bytes))], wrong_bytes
                    ),
                ):
                    pass
        assert client.status().reservation_count == 0


@pytest.fixture(params=["unix", "tcp", "tls"])
def stalling(
    request: pytest.FixtureRequest, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[socket.socket, threading.Event]]:
    """A greeted connection to a server that waits for nobody longer than a second, and whether its call has ended."""
    monkeypatch.setattr("storage_tier.server.line._STALLED_S", 1)
    ended = threading.Event()

    def pieces() -> Generator[bytes, None, None]:
        try:
            yield bytes(64 * MIB)  # more than the sockets hold
        finally:
            ended.set()

    def give(question: object, context: object, raw: object) -> tuple[object, Raw]:
        return tier_pb2.StatusResponse(), Raw(None, 0, 64 * MIB, pieces())

    tls = TlsServer(*made_certificate(tmp_path)) if request.param == "tls" else None
    with LineServer(TICKET, max_calls=1) as server:
        port = server.bind(directory / ".tmp-line", "127.0.0.1", 0, tls)
        server.start({"Status": Call(tier_pb2.StatusRequest, give)})
        sock = dial(directory) if request.param == "unix" else socket.create_connection(("127.0.0.1", port), 10)
        if tls is not None:
            context = ssl.create_default_context(cafile=tls.certificate)
            sock = context.wrap_socket(sock, server_hostname="tier")
        with sock:
            sock.settimeout(10)
            sock.sendall(MAGIC + TICKET)
            assert sock.recv(1) == WELCOME
            yield sock, ended


def test_who_stops_in_the_middle_of_a_request_is_not_waited_for(stalling: tuple) -> None:
    sock, _ = stalling
    sock.sendall(REQUEST.pack(6, 1000, 0, 0)[:5])
    with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
        assert sock.recv(1) == b""


def test_who_takes_nothing_of_an_answer_is_not_waited_for(stalling: tuple) -> None:
    sock, ended = stalling
    sock.sendall(REQUEST.pack(6, 1000, 0, 0) + b"Status")
    assert ended.wait(10), "what the call holds, it holds no longer"
