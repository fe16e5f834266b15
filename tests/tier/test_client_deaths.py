"""Clients and servers that die: nothing acknowledged is lost, nothing half is seen."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from storage_tier.blocks import scan
from storage_tier.client import TierClient
from storage_tier.errors import Unreachable
from storage_tier.wire import channel

from .contents import content


def test_a_restarted_server_has_the_same_blocks(serve: Callable[..., object]) -> None:
    server = serve()
    with TierClient(server.address) as near, TierClient(server.address, near=False) as far:
        near.put("/a", content(1, 100_000))
        far.put("/b", content(2, 100_000))
        held = near.open("/a")
        server.kill()
        with pytest.raises(Unreachable):
            near.info("/a")
        assert np.array_equal(np.frombuffer(held.data, np.uint8), content(1, 100_000)), "maps outlive servers"
        held.close()
        server.start()
        for client in (near, far):
            for path, number in (("/a", 1), ("/b", 2)):
                with wait_for(client).open(path) as block:
                    assert np.array_equal(np.frombuffer(block.data, np.uint8), content(number, 100_000))
            assert client.epoch == 2
        assert near.near
        near.put("/c", b"after")
        far.put("/d", b"after")
        assert near.status().block_count == 4


def test_another_server_at_the_same_address(serve: Callable[..., object]) -> None:
    server = serve()
    with TierClient(server.address) as client:
        client.put("/a", b"one")
        first_id = client.status().server_id
        server.kill()
        server.directory /= "other"
        server.start()
        wait_for(client)
        assert client.status().server_id != first_id
        for path in ("/a", "/b"):
            client.put(path, b"two")
        with client.open("/a") as block:
            assert block.data == b"two"
            assert block.near
        # From the first server's answer straight into the second's, without a word in between.
        stale = client._connection.hello(float("inf"))
        server.kill()
        server.directory = server.directory.parent
        server.start()
        with TierClient(server.address) as other:
            wait_for(other)
        wait_for(client)
        client._connection._connect(float("inf")).hello = stale
        with client.open("/a") as block:
            assert block.data == b"one"
        client._connection._connect(float("inf")).hello = stale
        client.put("/c", b"three")
        assert client.info("/c").size_bytes == 5
        assert client.epoch == 2


def test_damage_is_told_over_the_wire_whatever_its_name(serve: Callable[..., object]) -> None:
    server = serve()
    server.kill()
    (server.directory / "blocks" / os.fsdecode(b"\xff\xfe")).write_bytes(b"x")
    server.start()
    with TierClient(server.address) as client:
        status = client.status()
    assert status.damaged_count == 1
    assert "is not a whole block" in status.damaged[0]


def wait_for(client: TierClient) -> TierClient:
    """Until the server answers again; the channel tries by itself every 50 to 500 ms."""
    for _ in range(200):
        try:
            client.status(timeout_s=10)
        except Unreachable:
            select.select([], [], [], 0.05)
        else:
            return client
    raise AssertionError("the server did not come back")


def test_a_server_that_was_gone_for_long_is_found_within_a_second(serve: Callable[..., object]) -> None:
    server = serve()
    with TierClient(server.address) as client:
        client.status()
        server.kill()
        for _ in range(20):  # time for the pauses between tries to grow
            with pytest.raises(Unreachable):
                client.status(timeout_s=10)
            select.select([], [], [], 0.1)
        server.start()
        began = time.monotonic()
        wait_for(client)
        assert time.monotonic() - began < 1.5


def test_a_commit_that_finds_another_start_of_the_server(serve: Callable[..., object]) -> None:
    server = serve()
    with TierClient(server.address) as client:
        call = client._connection.call

        def restart_first(name: str, request: object, deadline_s: float, again: bool = False) -> object:
            if name == "CommitFile":
                client._connection.call = call
                server.kill()
                server.start()
                wait_for(client)
            return call(name, request, deadline_s, again)

        client._connection.call = restart_first
        values = content(1, 300_000)
        assert client.put("/a", values).size_bytes == 300_000
        with client.open("/a") as block:
            assert np.array_equal(np.frombuffer(block.data, np.uint8), values)
        assert client.status().block_count == 1, "what was linked before the restart is gone"


WRITE = """
import sys
import numpy as np
from storage_tier.client import TierClient
from storage_tier.errors import PathExists

def content(number, size_bytes):
    return ((np.arange(size_bytes, dtype=np.uint32) * 31 + number * 7) % 251).astype(np.uint8)

address, near, first = sys.argv[1], sys.argv[2] == "near", int(sys.argv[3])
client = TierClient(address, near=near)
for number in range(first, first + 10_000):
    try:
        client.put(f"/kill/{number:06}", content(number, 20_000 + 60_000 * (number % 3)), {"number": number})
    except PathExists:
        continue
    print(number, flush=True)
"""


@pytest.mark.parametrize("near", ["near", "far"])
def test_killed_writers_lose_nothing_acknowledged_and_leave_nothing_half(
    serve: Callable[..., object], near: str
) -> None:
    server = serve()
    moments = random.Random(7)
    acknowledged: list[int] = []
    first = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE, server.address, near, str(first)], stdout=subprocess.PIPE, text=True
        ) as writer:
            lines = [writer.stdout.readline()]
            # Killed at any moment of the next writes, between or inside of them.
            select.select([], [], [], moments.uniform(0.0, 0.03))
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.read().splitlines()
        acknowledged += [int(line) for line in lines if line.strip()]
        first = acknowledged[-1] + 1
    with TierClient(server.address) as client:
        blocks = client.list("/kill")
        there = {int(info.metadata["number"]) for info in blocks}
        assert set(acknowledged) <= there
        assert len(there - set(acknowledged)) <= 6, "at most the one in flight, whole"
        for info in blocks:
            number = int(info.metadata["number"])
            with client.open(info.path) as block:
                assert np.array_equal(
                    np.frombuffer(block.data, np.uint8), content(number, 20_000 + 60_000 * (number % 3))
                )
        assert client.delete_prefix("/kill") == len(blocks)
    # What a writer linked and did not live to tell of is nobody's file, and goes when its reservation ends, or now:
    server.stop()
    server.start()
    assert scan(server.directory / "blocks") == ([], [])
    assert os.listdir(server.directory / "blocks") == []


def test_a_killed_server_loses_nothing_acknowledged(serve: Callable[..., object]) -> None:
    server = serve()
    moments = random.Random(11)
    acknowledged: set[int] = set()
    for turn in range(3):
        with TierClient(server.address, near=turn % 2 == 0) as client, ThreadPoolExecutor(1) as pool:

            def write(client: TierClient = client, turn: int = turn) -> None:
                for number in range(turn * 10_000, turn * 10_000 + 10_000):
                    try:
                        client.put(f"/kill/{number:06}", content(number, 50_000), {"number": number})
                    except Unreachable:
                        return
                    acknowledged.add(number)

            wait_for(client)
            writing = pool.submit(write)
            select.select([], [], [], moments.uniform(0.05, 0.15))
            server.kill()
            writing.result(60)
        server.start()
    assert len(acknowledged) > 3
    with TierClient(server.address) as client:
        blocks = wait_for(client).list("/kill")
        assert acknowledged <= {int(info.metadata["number"]) for info in blocks}
        assert client.status().damaged_count == 0
        for info in blocks:
            with client.open(info.path) as block:
                expected = content(int(info.metadata["number"]), 50_000)
                assert np.array_equal(np.frombuffer(block.data, np.uint8), expected)
        assert client.status().memory_used_bytes == len(blocks) * (4096 + 13 * 4096)


def wait_until(client: TierClient, reservation_count: int) -> object:
    for _ in range(1000):
        status = client.status()
        if status.reservation_count == reservation_count:
            return status
        select.select([], [], [], 0.01)
    raise AssertionError(f"{status}")


def test_a_far_writer_that_dies_in_its_stream_publishes_nothing(client: TierClient, shared_server: object) -> None:
    from storage_tier.v1 import files_pb2, files_pb2_grpc

    with channel("127.0.0.1", shared_server.port) as plain:
        begin = files_pb2.SendFileBegin(path="/half", size_bytes=100)

        gone = threading.Event()

        def half() -> object:
            yield files_pb2.SendFileRequest(begin=begin)
            yield files_pb2.SendFileRequest(chunk=b"x" * 50)
            gone.wait(20)

        call = files_pb2_grpc.FilesStub(plain).SendFile.future(half(), timeout=20)
        wait_until(client, reservation_count=1)
        call.cancel()
        gone.set()
    status = wait_until(client, reservation_count=0)
    assert (status.reservation_count, status.block_count, status.memory_used_bytes) == (0, 0, 0)
    client.put("/half", b"now whole")
