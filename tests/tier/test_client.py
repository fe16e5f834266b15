"""The client, near and far: the same calls do the same, also in other processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from storage_tier.client import TierClient
from storage_tier.client.writing import FAR_INLINE_BYTES, NEAR_INLINE_BYTES
from storage_tier.errors import (
    BytesLost,
    CorruptBlock,
    InvalidPath,
    InvalidRequest,
    OutOfMemory,
    PathExists,
    PathNotDirectory,
    PathNotFound,
    Unsupported,
    VersionConflict,
)
from storage_tier.wire import CHUNK_BYTES, channel

from .contents import content

SIZES = [0, 1, NEAR_INLINE_BYTES, NEAR_INLINE_BYTES + 1, CHUNK_BYTES - 1, FAR_INLINE_BYTES + 1, 3 * CHUNK_BYTES + 17]


# ---- the same near and far


def only_block(directory: Path) -> Path:
    """The file of the one block that a server has."""
    (file,) = (path for path in (directory / "blocks").rglob("*") if path.is_file())
    return file


@pytest.mark.parametrize("size_bytes", SIZES)
def test_put_and_open(client: TierClient, size_bytes: int) -> None:
    values = content(5, size_bytes)
    metadata = {"rows": size_bytes, "kind": "größe", "loss": 0.25, "whole": True, "note": None}
    info = client.put("/runs/r/data/5", values, metadata)
    assert (info.path, info.kind, info.size_bytes) == ("/runs/r/data/5", "file", size_bytes)
    with client.open("runs/r/data/5") as block:
        assert block.info == info == client.info("/runs/r/data/5")
        assert block.metadata == metadata
        assert block.near == client.near
        assert block.data.readonly
        assert np.array_equal(np.frombuffer(block.data, np.uint8), values)


def test_many_buffers_are_one_block(client: TierClient) -> None:
    client.put("/a", (b"head", np.arange(3, dtype=np.float32), b"", memoryview(b"tail")))
    with client.open("/a") as block:
        assert block.data == b"head" + np.arange(3, dtype=np.float32).tobytes() + b"tail"


def test_a_name_is_given_once(client: TierClient) -> None:
    client.put("/a", b"first")
    for size_bytes in SIZES[:5]:
        with pytest.raises(PathExists, match="/a already"):
            client.put("/a", bytes(size_bytes))
        with pytest.raises(PathNotDirectory, match="/a is a file"):
            client.put("/a/b", bytes(size_bytes))
    with client.open("/a") as block:
        assert block.data == b"first"
    status = client.status()
    assert (status.block_count, status.reservation_count) == (1, 0)


@pytest.mark.parametrize("size_bytes", SIZES[1:5])
def test_a_new_version_when_asked_for(client: TierClient, size_bytes: int) -> None:
    first = client.put("/a", b"first").version
    with client.open("/a") as old:
        assert client.put("/a", content(2, size_bytes), overwrite=True).version == first + 1
        assert old.data == b"first", "who has it open keeps its bytes"
    assert client.put("/a", content(3, size_bytes), expected_version=first + 1).version == first + 2
    for stale in (first + 1, 0):
        with pytest.raises(VersionConflict, match=f"version {first + 2}"):
            client.put("/a", content(4, size_bytes), expected_version=stale)
    client.put("/b", content(1, size_bytes), expected_version=0)
    with client.open("/a", version=first + 2) as block:
        assert np.array_equal(np.frombuffer(block.data, np.uint8), content(3, size_bytes))
    with pytest.raises(VersionConflict):
        client.open("/a", version=first + 1)
    with pytest.raises(VersionConflict):
        client.read("/a", 0, 1, version=first + 1)
    client.delete_prefix("/b")
    assert client.status().block_count == 1, "the replaced blocks are gone"


@pytest.mark.parametrize("pieces", [[], [0], [10, 20], [NEAR_INLINE_BYTES, 1], [1 << 20] * 5, [100_000] * 90])
def test_a_file_written_piece_by_piece(client: TierClient, pieces: list[int]) -> None:
    values = content(9, sum(pieces))
    with client.create("/a", {"n": len(pieces)}) as writer:
        at = 0
        for size_bytes in pieces:
            assert writer.write(values[at : at + size_bytes]) == size_bytes
            at += size_bytes
            assert writer.size_bytes == at
        assert not client.exists("/a")
    assert writer.info == client.stat("/a")
    with client.open("/a") as block:
        assert np.array_equal(np.frombuffer(block.data, np.uint8), values)
        assert block.metadata == {"n": len(pieces)}
    status = client.status()
    assert (status.block_count, status.reservation_count) == (1, 0)


@pytest.mark.parametrize("size_bytes", [1, 3 << 20])
def test_a_writer_that_raises_publishes_nothing(client: TierClient, size_bytes: int) -> None:
    class Oops(Exception):
        pass

    def fail() -> None:
        with writer:
            writer.write(bytes(size_bytes))
            raise Oops

    writer = client.create("/a")
    with pytest.raises(Oops):
        fail()
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"x")
    with pytest.raises(ValueError, match="not published"):
        _ = writer.info
    client.put("/a", b"")
    with pytest.raises(PathExists), client.create("/a") as writer:
        writer.write(bytes(size_bytes))
    status = client.status()
    assert (status.reservation_count, status.memory_used_bytes) == (0, 4096)


def test_a_writer_uses_the_memory_to_the_last(client: TierClient) -> None:
    def write(size_bytes: int) -> None:
        with client.create("/much") as writer:
            for _ in range(size_bytes >> 20):
                writer.write(bytes(1 << 20))

    with pytest.raises(OutOfMemory):
        write(70 << 20)
    assert client.status().memory_used_bytes == 0
    write(60 << 20)
    assert client.stat("/much").size_bytes == 60 << 20


def test_of_many_writers_of_one_name_one_wins(client: TierClient) -> None:
    def put(me: int) -> int | None:
        try:
            client.put("/a", bytes([me]) * 50_000, {"me": me})
        except PathExists:
            return None
        return me

    with ThreadPoolExecutor(8) as pool:
        (winner,) = [me for me in pool.map(put, range(8)) if me is not None]
    with client.open("/a") as block:
        assert block.metadata == {"me": winner}
        assert set(block.data) == {winner}
    status = client.status()
    assert status.reservation_count == 0
    assert status.memory_used_bytes == 4096 + -(-50_000 // 4096) * 4096


def test_list_exists_delete(client: TierClient) -> None:
    for number in range(5):
        client.put(f"/runs/a/{number}", bytes(number))
    client.put("/runs/ab", b"")
    assert [info.size_bytes for info in client.list("/runs/a")] == [0, 1, 2, 3, 4]
    assert [(info.path, info.kind) for info in client.list("/runs")] == [("/runs/a", "directory"), ("/runs/ab", "file")]
    assert len(list(client.find())) == 8
    assert client.exists("/runs/a/3")
    client.delete("/runs/a/3")
    assert not client.exists("/runs/a/3")
    assert not client.exists("/runs/ab/3")
    for call in (client.delete, client.open, client.info):
        with pytest.raises(PathNotFound, match="/runs/a/3"):
            call("/runs/a/3")
    with pytest.raises(FileNotFoundError):
        client.read("/runs/a/3", 0, 1)
    assert client.delete_prefix("/runs/a") == 4
    assert [info.path for info in client.list("/runs")] == ["/runs/ab"]
    assert client.delete_prefix("/nothing") == 0
    assert client.delete_prefix("") == 1
    assert client.list() == []


def test_a_long_list_comes_in_pages(client: TierClient) -> None:
    # Large metadata ends a page before its thousand entries.
    paths = [f"/many/{number:03}" for number in range(150)]
    for path in paths:
        client.put(path, b"", {"text": "x" * 60_000})
    assert [info.path for info in client.list("/many")] == paths
    assert [info.path for info in client.find("/")] == ["/many", *paths]


def test_ranges(client: TierClient) -> None:
    values = content(1, 2 * CHUNK_BYTES + 100)
    client.put("/a", values)
    for offset, limit in (
        (0, 1),
        (CHUNK_BYTES - 1, 2),
        (5, CHUNK_BYTES),
        (len(values) - 3, 100),
        (len(values), 1),
    ):
        assert client.read("/a", offset, limit) == values[offset : offset + limit].data
    for offset, limit in ((len(values) + 1, 1), (-1, 5), (0, 0), (0, -1)):
        with pytest.raises(InvalidRequest):
            client.read("/a", offset, limit)


def test_the_budget_refuses_and_readers_go_on(client: TierClient) -> None:
    client.put("/a", bytes(40 << 20))
    with pytest.raises(OutOfMemory, match=r"/b.* asks for 30\.0 MiB.*64\.0 MiB 40\.0 MiB are in use"):
        client.put("/b", bytes(30 << 20))
    with client.open("/a") as block:
        assert block.size_bytes == 40 << 20
    assert client.status().memory_used_bytes == 4096 + (40 << 20)
    client.delete("/a")
    client.put("/b", bytes(30 << 20))


@pytest.mark.parametrize("path", ["//", "..", "/a/../b", "/a\0", "/" + "x" * 300, "/\udcff"])
def test_bad_paths_get_a_sentence(client: TierClient, path: str) -> None:
    calls = [client.open, client.info, client.exists, client.delete, lambda path: client.put(path, b"")]
    for call in calls:
        with pytest.raises(InvalidPath):
            call(path)


def test_damaged_blocks_are_not_served(client: TierClient, shared_server: object) -> None:
    client.put("/a", b"x" * 10_000)
    os.truncate(only_block(shared_server.directory), 5000)
    with pytest.raises((CorruptBlock, BytesLost)):
        client.open("/a")
    client.delete("/a")


# ---- near


def test_near_is_shared_memory(shared_server: object) -> None:
    with TierClient(shared_server.address) as client:
        assert client.near
        client.delete_prefix("")
        client.put("/a", content(1, 1 << 20))
        with client.open("/a") as one, client.open("/a") as two:
            file = only_block(shared_server.directory)
            addresses = [np.frombuffer(block.data, np.uint8).ctypes.data for block in (one, two)]
            maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
            spans = [fields[0].split("-") for fields in maps if fields[-1] == str(file)]
            for address in addresses:
                assert any(int(low, 16) <= address < int(high, 16) for low, high in spans)


def test_a_near_reader_gets_the_newest_version_and_holds_no_other(shared_server: object) -> None:
    def held() -> set[str]:
        maps = Path("/proc/self/maps").read_text().splitlines()
        return {line.split()[5] for line in maps if f"{shared_server.directory}/blocks/" in line}

    with TierClient(shared_server.address, near=True) as client:
        client.delete_prefix("")
        client.put("/a", content(0, 1 << 20), {"n": 0})
        with client.open("/a") as first:
            (kept,) = held()
            for number in range(1, 4):
                client.put("/a", content(number, 1 << 20), {"n": number}, overwrite=True)
                for _ in range(2):
                    with client.open("/a") as file:
                        assert np.array_equal(np.frombuffer(file.data, np.uint8), content(number, 1 << 20))
                        assert (file.metadata, file.version) == ({"n": number}, first.version + number)
                        file.metadata["n"] = "changed by its reader"
                        assert len(held()) == 2
                    assert held() == {kept}
                with pytest.raises(VersionConflict):
                    client.open("/a", version=first.version)
                assert held() == {kept}
            client.delete("/a")
            with pytest.raises(PathNotFound):
                client.open("/a")
            client.put("/a", b"")
            for _ in range(2):
                with client.open("/a") as empty:
                    assert (bytes(empty.data), empty.metadata) == (b"", {})
                    empty.metadata["n"] = "changed by its reader"
            assert held() == {kept}
        assert held() == set()


def test_near_is_asked_for_and_refused(shared_server: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with TierClient(shared_server.address, near=False) as client:
        assert not client.near
    monkeypatch.setattr("storage_tier.client.way.is_near", lambda *_: False)
    with TierClient(shared_server.address) as client:
        assert not client.near
        client.delete_prefix("")
        client.put("/a", b"by bytes")
        with client.open("/a") as block:
            assert not block.near
    with (
        TierClient(shared_server.address, near=True) as client,
        pytest.raises(Unsupported, match=r"near=True.*another host"),
    ):
        client.put("/b", b"")


# ---- processes


def test_a_client_travels_as_its_arguments(shared_server: object) -> None:
    with TierClient(shared_server.address, near=False) as client:
        client.status()
        with pickle.loads(pickle.dumps(client)) as other:
            assert other.status().server_id == client.status().server_id
            assert not other.near
    with channel("127.0.0.1", shared_server.port) as given:
        client = TierClient(given)
        client.status()
        client.close()
        client.status()
        with pytest.raises(TypeError, match="channel cannot be pickled"):
            pickle.dumps(client)
        client.close()


FORK = """
import os, sys
from storage_tier.client import TierClient

client = TierClient(sys.argv[1])
pid = os.fork()
if pid == 0:
    # First use in the child, and the parent's own first use afterwards: nothing is shared.
    client.put("/fork/child", b"child")
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
client.put("/fork/parent", b"parent")
client.close()
"""


def test_a_client_made_before_a_fork(shared_server: object) -> None:
    with TierClient(shared_server.address) as client:
        client.delete_prefix("")
        subprocess.run([sys.executable, "-c", FORK, shared_server.address], check=True, timeout=60)
        assert [info.path for info in client.list("/fork")] == ["/fork/child", "/fork/parent"]


SENT = """
import pickle, sys

with pickle.load(sys.stdin.buffer) as client:
    client.put("/sent", b"x")
"""


def test_a_client_sent_to_a_process(shared_server: object) -> None:
    with TierClient(shared_server.address) as client:
        client.delete_prefix("")
        subprocess.run([sys.executable, "-c", SENT], input=pickle.dumps(client), check=True, timeout=60)
        assert client.exists("/sent")
