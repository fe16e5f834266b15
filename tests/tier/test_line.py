"""The line: it does what gRPC does, many files at once, and ends in order."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from grpc import StatusCode

from storage_tier import errors
from storage_tier.client import TierClient
from storage_tier.line import LineDown, Lines
from storage_tier.server.line import NOTHING, Call, LineServer
from storage_tier.v1 import tier_pb2
from storage_tier.wire import ErrorTable

from .contents import content
from .line_talk import ASK, MIB, TICKET, soon

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


# ---- the server's end


class Other(Exception):
    """An error of another service than the tier's."""


OTHERS = ErrorTable(
    {type(f"Other{code.name}", (Other,), {}): code for code in ErrorTable.REQUIRED} | {Other: StatusCode.UNKNOWN}
)


@pytest.fixture
def lines(directory: Path) -> Iterator[tuple[LineServer, Callable[[], Lines], threading.Event, threading.Event]]:
    """A server whose one call waits for the event."""
    event, began = threading.Event(), threading.Event()

    def fail(request: object, context: object, raw: object) -> tuple[object, object]:
        raise Other("so")

    def wait(request: object, context: object, raw: object) -> tuple[object, object]:
        began.set()
        event.wait(10)
        return tier_pb2.StatusResponse(block_count=7), NOTHING

    with LineServer(TICKET, max_calls=1) as server:
        server.bind(directory / "line", "127.0.0.1", 0, None)
        server.start(
            {
                "Status": Call(tier_pb2.StatusRequest, wait),
                "Others": Call(tier_pb2.StatusRequest, wait, OTHERS),
                "Failing": Call(tier_pb2.StatusRequest, fail, OTHERS),
            }
        )
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


def test_what_the_line_refuses_is_told_to_the_callers_of_another_service_too(lines: tuple) -> None:
    _, make, event, began = lines

    def ask(name: str, timeout_s: float, question: object = ASK[1]) -> None:
        with make().exchange(name, question, ASK[2], soon(timeout_s), errors=OTHERS):
            pass

    with pytest.raises(Other, match=r"^so$"):
        ask("Failing", 10.0)
    with pytest.raises(errors.InvalidRequest, match="cannot be read"):
        ask("Failing", 10.0, SimpleNamespace(SerializeToString=lambda: b"\xff\xff\xff"))
    first = threading.Thread(target=ask, args=("Others", 10.0))
    first.start()
    assert began.wait(10)
    # As the server says, or on a slow day before it can.
    with pytest.raises(errors.DeadlineExceeded, match=r"busy with other calls|no answer at"):
        ask("Others", 0.3)
    event.set()
    first.join(10)


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
    assert server._is_empty()
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
