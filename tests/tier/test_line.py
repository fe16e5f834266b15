"""Calls without gRPC: what opens a line, what ends it, and that all goes by gRPC alone where there is none."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_tier import errors
from storage_tier.client import TierClient
from storage_tier.client.connection import Connection
from storage_tier.line import ANSWER, FAILED, FINE, MAGIC, REQUEST, TICKET_BYTES, WELCOME, LineDown, Lines
from storage_tier.server.line import NOTHING, Call, LineServer
from storage_tier.server.peers import RpcPeers
from storage_tier.v1 import files_pb2 as pb
from storage_tier.v1 import tier_pb2

TICKET = bytes(range(TICKET_BYTES))
MIB = 1 << 20


def content(number: int, size_bytes: int) -> np.ndarray:
    """The bytes of file `number` in closed form."""
    return ((np.arange(size_bytes, dtype=np.uint32) * 31 + number * 7) % 251).astype(np.uint8)


def soon(timeout_s: float = 10.0) -> float:
    return time.monotonic() + timeout_s


# ---- both wires do the same


def grpc_alone(client: TierClient) -> TierClient:
    """The client, as if nothing but the server's own port were open."""
    way = client._connection._connect(soon())
    way.greet(soon())
    assert way._lines is not None
    way._lines.close()
    way._lines = None
    return client


@pytest.mark.parametrize("size_bytes", [0, 1, MIB, 3 * MIB + 17])
@pytest.mark.parametrize("near", [True, False])
def test_all_goes_by_grpc_alone_too(shared_server: object, size_bytes: int, near: bool) -> None:
    values = content(3, size_bytes)
    with TierClient(shared_server.address, near=near) as client, TierClient(shared_server.address, near=near) as other:
        grpc_alone(client)
        client.delete_prefix("/")
        client.put("/a", values, {"k": 1})
        with client.create("/b") as writer:
            writer.write(values)
        for reader in (client, other):
            assert [info.path for info in reader.list("/")] == ["/a", "/b"]
            for path in ("/a", "/b"):
                with reader.open(path) as file:
                    assert np.array_equal(np.frombuffer(file.data, np.uint8), values)
                assert reader.read(path, size_bytes // 2, 100) == values[size_bytes // 2 :][:100].data
            with pytest.raises(errors.PathExists):
                reader.put("/a", values)
        assert client._connection._connect(soon())._lines is None


def test_where_only_the_servers_own_port_is_open(shared_server: object, monkeypatch: pytest.MonkeyPatch) -> None:
    dialled = []

    def blocked(self: Lines, deadline_s: float) -> object:
        dialled.append(self._place)
        raise LineDown("blocked")

    monkeypatch.setattr(Lines, "_dial", blocked)
    with TierClient(shared_server.address, near=False) as client:
        client.delete_prefix("/")
        client.put("/a", content(1, 3 * MIB))
        with client.open("/a") as file:
            assert np.array_equal(np.frombuffer(file.data, np.uint8), content(1, 3 * MIB))
    assert len(dialled) == 1, "tried once a start of the server"


def test_no_call_of_a_client_goes_by_grpc_but_the_first(shared_server: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for near in (True, False):
        with TierClient(shared_server.address, near=near) as client:
            client.delete_prefix("/")
            client._connection._connect(soon())._methods.clear()
            client.put("/a", content(1, 3 * MIB))
            client.put("/b", b"x")
            client.open("/a").close()
            client.read("/a", 5, 5)
            with client.create("/c") as writer:
                writer.write(bytes(MIB))
            client.commit_all([client.create("/d"), client.create("/e")])
            assert len(client.list("/")) == 5


def test_a_small_operation_is_one_call(shared_server: object, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    ask = Lines._ask

    def counted(self: Lines, stream: object, name: str, *rest: object) -> object:
        names.append(name)
        return ask(self, stream, name, *rest)

    monkeypatch.setattr(Lines, "_ask", counted)
    for near in (True, False):
        with TierClient(shared_server.address, near=near) as client:
            client.delete_prefix("/")
            names.clear()
            client.put("/a", bytes(1000))
            with client.create("/b") as writer:
                writer.write(bytes(1000))
            client.stat("/a")
            client.open("/a").close()
            client.delete("/a")
            assert names == ["PutFile", "PutFile", "Stat", "OpenFile" if near else "ReadFile", "Remove"]
            assert len(client._connection._connect(soon())._lines._idle) == 1, "all by one connection"


def test_a_time_that_is_over(client: TierClient) -> None:
    for idle in (False, True):
        with pytest.raises(errors.DeadlineExceeded):
            client.stat("/a", timeout_s=0)
        with pytest.raises(errors.DeadlineExceeded):
            client.read("/a", 0, 1, timeout_s=0)
        if not idle:
            client.put("/a", b"x")


# ---- several files at once


def started(client: TierClient, path: str, number: int, size_bytes: int, **options: object) -> object:
    writer = client.create(path, {"n": number}, **options)
    writer.write(content(number, size_bytes))
    return writer


@pytest.mark.parametrize("alone", [False, True])
def test_several_files_are_published_at_once_or_not_at_all(client: TierClient, alone: bool) -> None:
    if alone:
        grpc_alone(client)
    sizes = [0, 10, 100_000, 3 * MIB]
    writers = [started(client, f"/t/{number}", number, size) for number, size in enumerate(sizes)]
    assert not client.exists("/t")
    infos = client.commit_all(writers)
    assert [writer.info for writer in writers] == infos
    for number, (info, size_bytes) in enumerate(zip(infos, sizes, strict=True)):
        assert (info.path, info.size_bytes, info.metadata) == (f"/t/{number}", size_bytes, {"n": number})
        with client.open(info.path) as file:
            assert np.array_equal(np.frombuffer(file.data, np.uint8), content(number, size_bytes))
    used_bytes = client.status().memory_used_bytes

    writers = [
        started(client, "/t/0", 7, 50, overwrite=True),
        started(client, "/t/new", 8, 100_000),
        started(client, "/t/3", 9, 1000),  # is there
    ]
    with pytest.raises(errors.PathExists, match="/t/3"):
        client.commit_all(writers)
    assert not client.exists("/t/new")
    assert client.stat("/t/0") == infos[0]
    for writer in writers:
        with pytest.raises(ValueError, match="closed"):
            writer.write(b"x")
    status = client.status()
    assert (status.reservation_count, status.block_count, status.memory_used_bytes) == (0, 4, used_bytes)
    assert client.commit_all([]) == []
    with TierClient(client._arguments[0]) as other, pytest.raises(errors.InvalidRequest, match="another client"):
        client.commit_all([other.create("/o")])


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


ASK = ("Status", tier_pb2.StatusRequest(), tier_pb2.StatusResponse)


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


# ---- the server's end


@pytest.fixture
def lines(directory: Path) -> Iterator[tuple[LineServer, Callable[[], Lines], threading.Event, threading.Event]]:
    """A server whose one call waits for the event."""
    event, began = threading.Event(), threading.Event()

    def wait(request: object, context: object, raw: object) -> tuple[object, object]:
        began.set()
        event.wait(10)
        return tier_pb2.StatusResponse(block_count=7), NOTHING

    with LineServer(TICKET, max_calls=1) as server:
        server.bind(directory / "line", "127.0.0.1", 0, None)
        server.start({"Status": Call(tier_pb2.StatusRequest, wait)})
        made: list[Lines] = []

        def make() -> Lines:
            made.append(Lines("here", directory / "line", TICKET, None))
            return made[-1]

        yield server, make, event, began
        event.set()
        for one in made:
            one.close()


def test_who_waits_for_a_turn_waits_no_longer_than_asked(lines: tuple) -> None:
    _, make, event, began = lines
    answers: list[object] = []
    first = threading.Thread(target=lambda: answers.append(make().call(*ASK, soon())))
    first.start()
    assert began.wait(10)
    with pytest.raises(errors.DeadlineExceeded):
        make().call(*ASK, soon(0.3))
    event.set()
    first.join(10)
    assert [one.block_count for one in answers] == [7]


def test_stop_lets_a_call_at_work_end_and_takes_no_more(lines: tuple, directory: Path) -> None:
    server, make, event, began = lines
    event.set()
    idle = make()
    idle.call(*ASK, soon())
    event.clear()
    began.clear()
    answers: list[object] = []
    working = threading.Thread(target=lambda: answers.append(make().call(*ASK, soon())))
    working.start()
    assert began.wait(10)
    threading.Timer(0.1, event.set).start()
    server.stop(10.0)
    working.join(10)
    assert [one.block_count for one in answers] == [7]
    assert not server._threads
    assert not (directory / "line").exists()
    with pytest.raises(LineDown):
        idle.call(*ASK, soon())
    server.stop(1.0)


def test_a_long_directory(directory: Path) -> None:
    deep = directory / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with LineServer(TICKET, max_calls=1) as server:
        server.bind(deep / "line", "127.0.0.1", 0, None)
        server.start({"Status": Call(tier_pb2.StatusRequest, lambda *_: (tier_pb2.StatusResponse(), NOTHING))})
        with contextlib.closing(Lines("here", deep / "line", TICKET, None)) as made:
            made.call(*ASK, soon())


# ---- forks

FORK = """
import os, signal, sys
from storage_tier.client import TierClient

address, near, rest = sys.argv[1], sys.argv[2] == "near", sys.argv[3]
client = TierClient(address, near=near)
client.put("/fork/parent", bytes(3_000_000))
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        # The parent's client, and one that the child makes: both work.
        for mine in (client, TierClient(address), TierClient(address, near=False)):
            with mine.open("/fork/parent") as file:
                assert file.size_bytes == 3_000_000 and not any(file.data)
            mine.put(f"/fork/{number}", bytes(2_000_000), overwrite=True)
            assert mine.stat(f"/fork/{number}").size_bytes == 2_000_000
        if os.fork() == 0:
            client.put(f"/fork/grandchild-{number}", b"x")
            os._exit(0)
        assert os.wait()[1] == 0
        if rest == "exit":
            sys.exit(0)  # all is collected
        os._exit(0)
    children.append(pid)
    client.stat("/fork/parent")
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
client.put("/fork/after", b"x")
"""


@pytest.mark.parametrize(("near", "rest"), [("near", "exit"), ("far", "_exit")])
def test_a_child_uses_the_client_of_its_parent(shared_server: object, near: str, rest: str) -> None:
    with TierClient(shared_server.address) as client:
        client.delete_prefix("")
        command = [sys.executable, "-c", FORK, shared_server.address, near, rest]
        subprocess.run(command, check=True, timeout=60)
        names = [info.path.removeprefix("/fork/") for info in client.list("/fork")]
        assert names == ["0", "1", "2", "after", "grandchild-0", "grandchild-1", "grandchild-2", "parent"]


STRANGER = """
import os, signal, sys
from storage_tier.client import TierClient
from storage_tier.errors import Unsupported
from storage_tier.wire import channel

known, other = sys.argv[1:]
client, unused = TierClient(known), TierClient(other)
given = TierClient(channel("127.0.0.1", int(other.rpartition(":")[2])))
client.status(), given.status()
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    client.status()
    for stranger in (unused, TierClient(other), given, TierClient(known, token="x")):
        try:
            stranger.status(timeout_s=5)
        except Unsupported as error:
            assert "forked" in str(error) and "spawn" in str(error), error
        else:
            raise AssertionError(stranger)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
unused.status()
"""


def test_a_child_is_told_what_it_cannot_reach(shared_server: object, serve: Callable[..., object]) -> None:
    command = [sys.executable, "-c", STRANGER, shared_server.address, serve().address]
    subprocess.run(command, check=True, timeout=60)


RESTART = """
import os, signal, sys
from storage_tier.client import TierClient

clients = [TierClient(sys.argv[1], near=True), TierClient(sys.argv[1], near=False)]
for client in clients:
    client.put("/a", b"x", overwrite=True)
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    for client in clients:
        client.stat("/a")
    print("ready", flush=True)
    sys.stdin.readline()
    for client in clients:
        print(client.stat("/a").path, flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_child_whose_server_is_started_anew(serve: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    with subprocess.Popen(
        [sys.executable, "-c", RESTART, server.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "ready\n"
        server.kill()
        assert (server.directory / ".tmp-line").exists()
        server.start()
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.read() == "/a\n/a\n", "who can read the nonce finds it again"
        assert parent.wait(60) == 0
    with TierClient(server.address, near=False) as far:
        far.stat("/a")
        monkeypatch.setattr("storage_tier.client.way.grpc_was_forked", lambda: True)
        with TierClient(server.address, near=False) as child:
            child.stat("/a")
            assert server.stop() == 0
            with pytest.raises(errors.Unreachable, match=r"started anew.*spawn"):
                child.stat("/a")
    assert not (server.directory / ".tmp-line").exists()
