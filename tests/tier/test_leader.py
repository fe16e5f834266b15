"""One thread serves all connections, until one of them holds it up."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from storage_tier.server import leader
from storage_tier.server.leader import LeaderFollowers

TIMEOUT_S = 20.0


class Wire:
    """Both ends of a connection; the server's takes a byte and does what `acts` says of it, then sends it back."""

    def __init__(self, acts: dict[bytes, Callable[[], None]]) -> None:
        self.client, self.server = socket.socketpair()
        self.client.settimeout(TIMEOUT_S)
        self.acts = acts
        self.at_work = threading.Lock()
        self.threads: list[int] = []
        self.closed = threading.Event()

    def fileno(self) -> int:
        return self.server.fileno()

    def close(self) -> None:
        self.server.close()
        self.closed.set()

    def serve(self) -> bool:
        assert self.at_work.acquire(blocking=False), "served twice at once"
        try:
            self.threads.append(threading.get_ident())
            byte = self.server.recv(1)
            if not byte:
                return False
            self.acts.get(byte, lambda: None)()
            self.server.sendall(byte)
            return True
        finally:
            self.at_work.release()

    def ask(self, byte: bytes = b".") -> bytes:
        self.client.sendall(byte)
        return self.client.recv(1)


class Room:
    """A leader with its connections."""

    def __init__(self, hold: ExitStack) -> None:
        self.hold = hold
        self.leader: LeaderFollowers[Wire] = LeaderFollowers(Wire.serve, "test leader")
        self.leader.start()

    def wire(self, **acts: Callable[[], None]) -> Wire:
        wire = Wire({name.encode(): act for name, act in acts.items()})
        self.hold.callback(wire.client.close)
        self.hold.callback(wire.server.close)
        self.leader.watch(wire)
        return wire


@pytest.fixture
def room() -> Iterator[Room]:
    with ExitStack() as hold:
        room = Room(hold)
        yield room
        room.leader.stop(TIMEOUT_S)
    assert not [thread for thread in threading.enumerate() if thread.name == "test leader"]


def test_quick_calls_of_all_connections_are_done_by_one_thread(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "_LONG_S", TIMEOUT_S)  # a slow machine makes no call long
    wires = [room.wire() for _ in range(20)]
    for _ in range(10):
        for wire in wires:
            wire.client.sendall(b".")
        assert [wire.client.recv(1) for wire in wires] == [b"."] * len(wires)
    assert len({thread for wire in wires for thread in wire.threads}) == 1


def test_others_go_on_while_calls_take_long(room: Room) -> None:
    go_on = threading.Event()
    slow = [room.wire(s=lambda: _wait(go_on)) for _ in range(5)]
    for wire in slow:
        wire.client.sendall(b"s")
    quick = room.wire()
    assert [quick.ask() for _ in range(100)] == [b"."] * 100
    go_on.set()
    assert [wire.client.recv(1) for wire in slow] == [b"s"] * 5
    assert [wire.ask() for wire in slow] == [b"."] * 5


def test_who_leaves_the_lead_holds_nobody_up(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "_LONG_S", TIMEOUT_S)  # nobody takes the lead away
    go_on = threading.Event()

    def leave() -> None:
        room.leader.leave_lead()
        room.leader.leave_lead()  # no more to leave, and not what another has meanwhile
        _wait(go_on)

    slow, quick = room.wire(s=leave), room.wire()
    slow.client.sendall(b"s")
    assert [quick.ask() for _ in range(100)] == [b"."] * 100
    go_on.set()
    assert slow.client.recv(1) == b"s"


def test_what_was_found_ready_beside_a_long_call_is_served_by_the_next_leader(room: Room) -> None:
    began, go_on = threading.Event(), threading.Event()
    wires = [room.wire(a=lambda: (began.set(), _wait(go_on))[1], b=lambda: None) for _ in range(10)]
    # All are ready before the first of them is served.
    with room.leader._lock:
        for wire in wires:
            wire.client.sendall(b"b")
        wires[0].client.sendall(b"a")
    assert began.wait(TIMEOUT_S)
    assert [wire.client.recv(1) for wire in wires] == [b"b"] * 10
    go_on.set()
    assert wires[0].client.recv(1) == b"a"


def test_a_connection_that_ends_or_fails_is_closed_and_the_others_go_on(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("of a call")

    ends, fails, stays = room.wire(), room.wire(f=fail), room.wire()
    ends.client.close()
    fails.client.sendall(b"f")
    assert fails.client.recv(1) == b""
    assert ends.closed.wait(TIMEOUT_S)
    assert "of a call" in caplog.text
    assert stays.ask() == b"."
    # Their numbers are free for others.
    assert [room.wire().ask() for _ in range(5)] == [b"."] * 5


def test_threads_that_nobody_needs_end(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "_SPARE_S", 0.01)
    go_on = threading.Event()
    slow = [room.wire(s=lambda: _wait(go_on)) for _ in range(5)]
    for wire in slow:
        wire.client.sendall(b"s")
    quick = room.wire()
    assert quick.ask() == b"."
    go_on.set()
    assert [wire.client.recv(1) for wire in slow] == [b"s"] * 5
    spare = [thread for thread in threading.enumerate() if thread.name == "test leader"]
    gone = 0
    while gone < len(spare) - 2:  # all but who leads and who looks after it
        assert quick.ask() == b"."
        gone = sum(not thread.is_alive() for thread in spare)


def test_without_threads_connections_wait(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, tried = threading.Event(), threading.Event()
    slow, quick = room.wire(s=lambda: _wait(go_on)), room.wire()

    def refuse(target: Callable[[], None]) -> None:
        tried.set()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(room.leader, "_begin", refuse)
    slow.client.sendall(b"s")
    assert tried.wait(TIMEOUT_S)
    quick.client.sendall(b".")
    go_on.set()
    assert slow.client.recv(1) == b"s"
    assert quick.client.recv(1) == b"."
    assert "no thread to be had" in caplog.text


def test_each_call_is_answered_once_whatever_takes_long(room: Room) -> None:
    chance = random.Random(7)
    pause = threading.Event()  # never set: a wait of some milliseconds
    wires = [room.wire(s=lambda: (pause.wait(chance.random() * 0.006), None)[1]) for _ in range(24)]

    def use(mine: list[Wire], seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(150):
            asked = [(wire, b"s" if chance.random() < 0.05 else b".") for wire in chance.sample(mine, 3)]
            for wire, byte in asked:
                wire.client.sendall(byte)
            for wire, byte in asked:
                assert wire.client.recv(1) == byte

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(use, wires[at::4], at) for at in range(4)]:
            done.result(60)


def test_stop_waits_for_the_call_at_work_and_is_idempotent() -> None:
    with ExitStack() as hold:
        room = Room(hold)
        began, go_on = threading.Event(), threading.Event()
        wire = room.wire(s=lambda: (began.set(), _wait(go_on))[1])
        wire.client.sendall(b"s")
        assert began.wait(TIMEOUT_S)
        stopping = threading.Thread(target=room.leader.stop, args=(TIMEOUT_S,))
        stopping.start()
        go_on.set()
        stopping.join(TIMEOUT_S)
        assert wire.client.recv(1) == b"s"
        room.leader.stop(TIMEOUT_S)


def _wait(event: threading.Event) -> None:
    assert event.wait(TIMEOUT_S)
