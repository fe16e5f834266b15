"""One server's store: its directory and lock, reservations, restarts, deletion."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_tier.directory import remove_directory
from storage_tier.errors import (
    BlockExists,
    BlockNotFound,
    CorruptBlock,
    DirectoryInUse,
    DirectoryRefused,
    InvalidPath,
    InvalidRequest,
    OutOfMemory,
    ReservationLost,
)
from storage_tier.host import is_near, proof_of
from storage_tier.tier import Tier
from storage_tier.writer import BlockWriter

HOLD = """
import sys
from pathlib import Path
from storage_tier.tier import Tier

with Tier(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def link(tier: Tier, path: str, content: bytes, **metadata: str | int) -> None:
    """What a near writer does by itself."""
    with BlockWriter(tier.blocks_directory, path, metadata) as writer:
        writer.write(content)


# ---- the directory


def test_the_directory_is_private_and_owned_by_one(directory: Path) -> None:
    directory.chmod(0o755)
    with Tier(directory) as tier:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(tier.nonce_path.stat().st_mode) == 0o600
        with pytest.raises(DirectoryInUse, match=f"in use by the server with process id {os.getpid()}"):
            Tier(directory)
        with pytest.raises(DirectoryInUse):
            remove_directory(directory)
    Tier(directory).close()


def test_a_killed_owner_leaves_the_directory_free(directory: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(DirectoryInUse, match=str(owner.pid)):
            Tier(directory)
        owner.kill()
    with Tier(directory) as tier:
        assert tier.epoch == 2


def test_identity_is_kept_and_each_start_counts(directory: Path) -> None:
    seen = set()
    for start in (1, 2, 3):
        with Tier(directory) as tier:
            assert tier.epoch == start
            seen.add((tier.server_id, tier.nonce))
    assert len({server_id for server_id, _ in seen}) == 1
    assert len(seen) == 3, "each start has a nonce of its own"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"server_id": "x", "epoch": 1}', '{"epoch": 1}'])
def test_a_damaged_identity_is_a_sentence(directory: Path, content: str) -> None:
    (directory / "identity.json").write_text(content)
    with pytest.raises(DirectoryRefused, match=r"identity\.json cannot be read"):
        Tier(directory)


def test_a_directory_with_other_files_is_not_taken(directory: Path) -> None:
    (directory / "thesis.tex").write_text("years of work")
    (directory / "lock").write_text("somebody else's")
    directory.chmod(0o755)
    with pytest.raises(DirectoryRefused, match=r"not a tier's directory.*thesis\.tex"):
        Tier(directory)
    with pytest.raises(DirectoryRefused):
        remove_directory(directory)
    assert sorted(os.listdir(directory)) == ["lock", "thesis.tex"]
    assert (directory / "lock").read_text() == "somebody else's"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


def test_a_directory_that_cannot_be_is_a_sentence(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "file").touch()
    for bad in (
        directory / "file",
        directory / "file" / "below",
        directory / "\udcff",
        directory / ("x" * 300),
    ):
        with pytest.raises(DirectoryRefused, match="cannot be a tier's directory"):
            Tier(bad)
    assert os.listdir(directory) == ["file"]
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(DirectoryRefused, match="belongs to user"):
        Tier(directory / "own")


def test_a_start_removes_temporaries_and_nothing_else(directory: Path) -> None:
    with Tier(directory) as tier:
        tier.put("/a", 1, [b"x"])
        (directory / ".tmp-nonce-1-ab").write_text("half")
        (directory / "models").mkdir()
        (directory / "models" / "region").write_text("kept")
        (directory / "blocks" / "empty" / "empty").mkdir(parents=True)
    with Tier(directory) as tier:
        assert list(tier.blocks) == ["/a"]
        assert not (directory / ".tmp-nonce-1-ab").exists()
        assert os.listdir(directory / "blocks") == ["a"]
        assert (directory / "models" / "region").read_text() == "kept"


def test_wipe_leaves_an_empty_tier_that_goes_on(tier: Tier) -> None:
    tier.put("/a/b", 5, [b"12345"])
    tier.reserve("/c", 5000)
    (tier.directory / "models").mkdir()
    (tier.directory / "models" / "region").touch()
    tier.wipe()
    assert sorted(os.listdir(tier.directory)) == ["blocks", "identity.json", "lock", "nonce"]
    assert (tier.budget.used_bytes, tier.blocks) == (0, {})
    tier.put("/a/b", 5, [b"12345"])
    with tier.open("/a/b") as block:
        assert block.data == b"12345"


def test_remove_takes_the_directory_and_leaves_no_trace(directory: Path) -> None:
    own = directory / "tier"
    with Tier(own) as tier:
        tier.put("/a", 1, [b"x"])
    remove_directory(own)
    assert not own.exists()
    remove_directory(own)


def test_more_memory_than_there_is_is_refused(directory: Path) -> None:
    with pytest.raises(OutOfMemory, match="--shm-size"):
        Tier(directory, 1 << 50)
    with Tier(directory) as tier:
        assert 0 < tier.budget.limit_bytes < 1 << 50


# ---- the nonce


def test_near_is_who_reads_the_nonce(tier: Tier, directory: Path) -> None:
    path, proof = tier.nonce_path, proof_of(tier.nonce, b"challenge")
    assert is_near(path, proof, b"challenge")
    assert not is_near(path, proof, b"another")
    assert not is_near(path, tier.nonce)
    assert not is_near(directory / "missing", proof, b"challenge")
    assert not is_near("/nowhere\0", proof, b"challenge")
    assert not is_near(directory, proof, b"challenge")
    (directory / "models").mkdir()
    link_path, pipe, longer = (directory / "models" / name for name in ("link", "pipe", "longer"))
    link_path.symlink_to(path)
    os.mkfifo(pipe)
    longer.write_bytes(tier.nonce + b"x")
    for other in (link_path, pipe, longer):
        assert not is_near(other, proof, b"challenge")
    assert tier.nonce not in proof


def test_without_a_server_nobody_is_near(directory: Path) -> None:
    with Tier(directory) as tier:
        proof = proof_of(tier.nonce)
        assert is_near(tier.nonce_path, proof)
    assert not is_near(tier.nonce_path, proof)


# ---- put and restart


def test_put_takes_what_was_announced_or_nothing(tier: Tier) -> None:
    assert tier.put("/a", 6, iter([b"abc", b"", b"def"]), {"x": 1}).metadata == {"x": 1}
    for buffers in ([b"123"], [b"1234", b"56"]):
        with pytest.raises(InvalidRequest, match="5 bytes were announced"):
            tier.put("/b", 5, buffers)
    with pytest.raises(InvalidRequest, match="-1 bytes"):
        tier.put("/b", -1, [])
    with pytest.raises(InvalidPath):
        tier.put("/b/../c", 0, [])
    with pytest.raises(BlockExists):
        tier.put("/a", 1, [b"x"])

    def broken() -> object:
        yield b"123"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tier.put("/b", 5, broken())
    assert list(tier.blocks) == ["/a"]
    assert tier.budget.used_bytes == 2 * 4096
    assert tier.status().reservation_count == 0


def test_a_restart_rebuilds_from_the_headers(directory: Path) -> None:
    with Tier(directory) as tier:
        for number in range(20):
            tier.put(f"/runs/{number % 3}/{number:05}", number, [bytes(number)], {"number": number})
        assert tier.delete_blocks(["/runs/0/00000"]) == 1
        before, used_bytes = tier.blocks, tier.budget.used_bytes
        (tier.blocks_directory / "noise").write_bytes(os.urandom(100))
    with Tier(directory) as tier:
        assert tier.blocks == before
        assert tier.budget.used_bytes == used_bytes
        status = tier.status()
        assert (status.block_count, status.damaged_count) == (19, 1)
        assert "noise" in status.damaged[0]
        there = sorted(path for path in tier.blocks if path.startswith("/runs/1/"))
        assert there == [f"/runs/1/{number:05}" for number in range(1, 20, 3)]


def test_the_budget_refuses_and_readers_go_on(tier: Tier) -> None:
    tier.put("/a", 40 << 20, [bytes(40 << 20)])
    with pytest.raises(OutOfMemory, match=r"/b .* asks for 30\.0 MiB.*64\.0 MiB 40\.0 MiB are in use"):
        tier.put("/b", 30 << 20, [bytes(30 << 20)])
    with tier.open("/a") as block:
        assert block.size_bytes == 40 << 20
    assert tier.delete_blocks(["/a"]) == 1
    tier.put("/b", 30 << 20, [bytes(30 << 20)])


# ---- reservations: what near writers do


def test_a_near_write(tier: Tier) -> None:
    reservation = tier.reserve("/a", 5000)
    assert tier.budget.used_bytes == 8192
    link(tier, "/a", b"near", worker=3)
    info = tier.commit(reservation.id)
    assert (info.size_bytes, info.metadata) == (4, {"worker": 3})
    assert info.file_bytes == 4100
    assert tier.budget.used_bytes == info.memory_bytes == 8192
    with pytest.raises(ReservationLost):
        tier.commit(reservation.id)
    tier.abort(reservation.id)
    assert tier.budget.used_bytes == 8192


def test_a_reservation_given_back(tier: Tier) -> None:
    reservation = tier.reserve("/a", 5000)
    tier.abort(reservation.id)
    tier.abort(reservation.id)
    assert tier.budget.used_bytes == 0
    tier.reserve("/a", 5000)
    with pytest.raises(InvalidRequest):
        tier.reserve("/b", 0)


def test_commit_without_a_link_publishes_nothing(tier: Tier) -> None:
    reservation = tier.reserve("/a", 5000)
    with pytest.raises(BlockNotFound, match="no block /a"):
        tier.commit(reservation.id)
    assert (tier.blocks, tier.budget.used_bytes) == ({}, 0)


def test_commit_of_something_else_is_not_served(tier: Tier) -> None:
    for path, make in (
        ("/noise", lambda file: file.write_bytes(os.urandom(5000))),
        ("/copied", lambda file: shutil.copy(tier.local_path("/true"), file)),
    ):
        if not tier.local_path("/true").exists():
            link(tier, "/true", b"x")
        reservation = tier.reserve(path, 5000)
        make(tier.local_path(path))
        with pytest.raises(CorruptBlock):
            tier.commit(reservation.id)
        assert path not in tier.blocks
        with pytest.raises(CorruptBlock):
            tier.open(path)
        assert tier.delete_blocks([path]) == 1
    assert tier.status().reservation_count == 0


def test_more_than_reserved_and_more_than_there_is_is_deleted(tier: Tier) -> None:
    reservation = tier.reserve("/a", 5000)
    link(tier, "/a", bytes(65 << 20))
    with pytest.raises(OutOfMemory):
        tier.commit(reservation.id)
    assert not tier.local_path("/a").exists()
    assert (tier.blocks, tier.budget.used_bytes) == ({}, 0)


def test_a_reservation_that_ran_out_gives_its_memory_back(tier: Tier) -> None:
    lost = tier.reserve("/a", 5000, ttl_s=0)
    assert tier.status().memory_used_bytes == 0
    with pytest.raises(ReservationLost, match="ran out"):
        tier.commit(lost.id)


@pytest.mark.parametrize("ttl_s", [0, 60])
@pytest.mark.parametrize("look", ["info", "delete", "reserve"])
def test_a_writer_that_died_after_its_link_has_published(tier: Tier, ttl_s: float, look: str) -> None:
    tier.reserve("/runs/a", 5000, ttl_s=ttl_s)
    link(tier, "/runs/a", b"linked")
    if look == "info":
        assert tier.info("/runs/a").size_bytes == 6
    elif look == "reserve":
        with pytest.raises(BlockExists):
            tier.reserve("/runs/a", 5000)
    else:
        assert tier.delete_blocks(["/runs/a"]) == 1
        assert not tier.local_path("/runs/a").exists()
        assert tier.blocks == {}


# ---- names


def test_what_is_deleted_takes_its_empty_directories_along(tier: Tier) -> None:
    there = ["/a", "/b-1", "/b/1", "/b/2/x", "/b0", "/c/1"]
    for path in there:
        tier.put(path, 0, [])
    assert sorted(tier.blocks) == there
    assert tier.delete_blocks(["/b/1", "/b/2/x"]) == 2
    assert sorted(tier.blocks) == ["/a", "/b-1", "/b0", "/c/1"]
    assert sorted(os.listdir(tier.blocks_directory)) == ["a", "b-1", "b0", "c"]
    assert tier.delete_blocks(["/b/1"]) == 0
    assert tier.delete_blocks(there) == 4
    assert tier.budget.used_bytes == 0


Names = st.sampled_from(["/a", "/b", "/a/b", "/a/b/c", "/ab", "/b/x"])
Action = st.tuples(st.sampled_from(["put", "delete", "delete_all", "restart", "link"]), Names, st.integers(0, 9))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(Action, max_size=25))
def test_the_store_is_a_dict(directory: Path, actions: list[tuple[str, str, int]]) -> None:
    """Any sequence of operations and restarts against a dict of path -> size."""
    own = directory / "own"
    remove_directory(own)
    tier, model = Tier(own, 1 << 20), dict[str, int]()

    def blocked(path: str) -> bool:
        return any(path == there or path.startswith(there + "/") or there.startswith(path + "/") for there in model)

    try:
        for verb, path, size_bytes in actions:
            if verb == "put" and blocked(path):
                with pytest.raises(BlockExists):
                    tier.put(path, size_bytes, [bytes(size_bytes)])
            elif verb == "put":
                tier.put(path, size_bytes, [bytes(size_bytes)])
                model[path] = size_bytes
            elif verb == "link" and not blocked(path):
                tier.reserve(path, 5000)
                link(tier, path, bytes(size_bytes))
                model[path] = size_bytes
            elif verb == "delete":
                assert tier.delete_blocks([path]) == (model.pop(path, None) is not None)
            elif verb == "delete_all":
                gone = [there for there in model if there == path or there.startswith(path + "/")]
                assert tier.delete_blocks(gone) == len(gone)
                for there in gone:
                    del model[there]
            elif verb == "restart":
                tier.close()
                tier = Tier(own, 1 << 20)
            # Whoever asks for a block that was linked and not committed yet finds it.
            assert {there: tier.info(there).size_bytes for there in model} == model
            assert {there: info.size_bytes for there, info in tier.blocks.items()} == model
        reserved_bytes = 8192 * tier.status().reservation_count
        assert tier.budget.used_bytes == sum(4096 * (1 + bool(size)) for size in model.values()) + reserved_bytes
        assert json.loads((own / "identity.json").read_bytes())["server_id"] == tier.server_id
    finally:
        tier.close()
