"""Blocks: whole or not there, sealed, self-describing; whatever lies in the directory, reading it is safe."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_tier import headers
from storage_tier.blocks import Block, delete_file, read_info, scan
from storage_tier.errors import (
    BlockExists,
    BlockNotFound,
    CorruptBlock,
    InvalidPath,
    InvalidRequest,
    OutOfMemory,
    Unsupported,
)
from storage_tier.headers import BlockInfo, clean_path, clean_prefix, is_below, pack_header, parse_header
from storage_tier.writer import BlockWriter, flat_views


def write(root: Path, path: str, *buffers: object, **metadata: str | int) -> BlockInfo:
    with BlockWriter(root, path, metadata) as writer:
        writer.write(*buffers)
        return writer.commit()


def files(root: Path) -> list[str]:
    return sorted(str(file.relative_to(root)) for file in root.rglob("*") if not file.is_dir())


# ---- write and read


def test_what_is_written_is_read_back(directory: Path) -> None:
    values = np.arange(100_003, dtype=np.float32)
    info = write(directory, "/runs/a/00003", b"head", values, b"", worker=3, note="grün")
    assert info.size_bytes == 4 + values.nbytes
    assert info.offset_bytes % 4096 == 0
    with Block.map(directory / "runs/a/00003", "/runs/a/00003") as block:
        assert block.info == info == read_info(directory / "runs/a/00003")
        assert (block.path, block.size_bytes) == ("/runs/a/00003", info.size_bytes)
        assert block.metadata == {"worker": 3, "note": "grün"}
        assert block.data[:4] == b"head"
        assert np.array_equal(np.frombuffer(block.data, np.float32, offset=4), values)


def test_a_map_is_no_copy_and_read_only(directory: Path) -> None:
    write(directory, "/a", np.arange(1 << 20, dtype=np.float32))
    block = Block.map(directory / "a")
    array = np.frombuffer(block.data, np.float32)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    lows_highs = [fields[0].split("-") for fields in maps if fields[-1] == str(directory / "a")]
    inside = [int(low, 16) <= array.ctypes.data < int(high, 16) for low, high in lows_highs]
    assert inside == [True]
    assert array.ctypes.data % 4096 == 0
    assert not array.flags.writeable
    with pytest.raises(TypeError):
        block.data[0] = 1
    block.close()
    block.close()
    assert array[-1] == (1 << 20) - 1, "an array outlives its block"
    with pytest.raises(ValueError, match="closed"):
        _ = block.data


def test_an_empty_block(directory: Path) -> None:
    assert write(directory, "/empty").size_bytes == 0
    with Block.map(directory / "empty") as block:
        assert block.data.nbytes == 0
        assert block.metadata == {}


def test_large_metadata_moves_the_payload(directory: Path) -> None:
    info = write(directory, "/a", b"payload", text="x" * 60_000)
    assert info.offset_bytes > 60_000
    with Block.map(directory / "a") as block:
        assert block.data == b"payload"
        assert block.metadata == {"text": "x" * 60_000}


def test_deleting_takes_only_the_name(directory: Path) -> None:
    write(directory, "/a/b/c", b"stays")
    block = Block.map(directory / "a/b/c")
    assert delete_file(directory, "/a/b/c")
    assert block.data == b"stays"
    block.close()
    assert not delete_file(directory, "/a/b/c")
    assert os.listdir(directory) == [], "empty directories go with their last block"


def test_many_small_buffers_are_one_block(directory: Path) -> None:
    write(directory, "/a", *(bytes([i % 251]) * (i % 5) for i in range(5000)))
    with Block.map(directory / "a") as block:
        assert block.data == b"".join(bytes([i % 251]) * (i % 5) for i in range(5000))


# ---- nothing half


def test_a_writer_that_raises_publishes_nothing(directory: Path) -> None:
    def fail() -> None:
        with BlockWriter(directory, "/a/b") as writer:
            writer.write(b"x" * 100_000)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert os.listdir(directory) == []
    assert scan(directory) == ([], [])


def test_a_name_is_given_once(directory: Path) -> None:
    write(directory, "/a", b"first")
    with pytest.raises(BlockExists, match=r"exists already.*delete it first"):
        write(directory, "/a", b"second")
    with pytest.raises(BlockExists, match="/a is a block"):
        write(directory, "/a/below", b"")
    write(directory, "/folder/x", b"")
    with pytest.raises(BlockExists, match="blocks below it"):
        write(directory, "/folder", b"")
    with Block.map(directory / "a") as block:
        assert block.data == b"first"
    assert files(directory) == ["a", "folder/x"]


RACE = """
import sys
from pathlib import Path
from storage_tier.errors import BlockExists
from storage_tier.writer import BlockWriter

root, me = Path(sys.argv[1]), int(sys.argv[2])
sys.stdin.readline()
won = 0
for turn in range(200):
    try:
        with BlockWriter(root, f"/race/{turn}", {"me": me}) as writer:
            writer.write(bytes([me]) * 10_000)
            writer.commit()
        won += 1
    except BlockExists:
        pass
print(won)
"""


def test_of_racing_processes_one_wins_each_name(directory: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(directory), str(me)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in (1, 2, 3)
    ]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sum(won) == 200
    found, damaged = scan(directory)
    assert len(found) == 200
    assert not damaged
    for info in found:
        with Block.map(directory / info.path[1:]) as block:
            assert set(block.data) == {info.metadata["me"]}


KILLED = """
import sys
from pathlib import Path
from storage_tier.writer import BlockWriter

writer = BlockWriter(Path(sys.argv[1]), "/a/b")
writer.write(b"x" * 5_000_000)
print("written", flush=True)
sys.stdin.read()
"""


def test_a_writer_killed_before_its_link_leaves_nothing(directory: Path) -> None:
    def used_bytes() -> int:
        room = os.statvfs(directory)
        return (room.f_blocks - room.f_bfree) * room.f_frsize

    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"written\n"
        held_bytes = used_bytes()
        assert os.listdir(directory) == []
        child.send_signal(signal.SIGKILL)
    assert os.listdir(directory) == []
    assert used_bytes() <= held_bytes - 4_000_000, "the memory is free again"


def test_empty_directories_are_in_nobodys_way(directory: Path) -> None:
    # What a writer leaves that is killed after mkdir and before its link.
    (directory / "a" / "b" / "c").mkdir(parents=True)
    write(directory, "/a/b", b"x")
    assert files(directory) == ["a/b"]
    with pytest.raises(BlockExists, match="blocks below it"):
        write(directory, "/a", b"x")


def test_names_made_and_deleted_at_once_never_fail(directory: Path) -> None:
    def make(worker: int) -> None:
        for turn in range(200):
            write(directory, f"/deep/er/{worker}-{turn}", b"x")
            assert delete_file(directory, f"/deep/er/{worker}-{turn}")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(make, worker) for worker in range(4)]:
            done.result(60)
    assert files(directory) == []


def test_a_full_file_system_is_a_sentence(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with BlockWriter(directory, "/a") as writer:
        monkeypatch.setattr(os, "writev", full)
        with pytest.raises(OutOfMemory, match=r"/a: 9 bytes more do not fit.*are free.*--shm-size"):
            writer.write(b"nine byte")
        writer.abort()
    assert files(directory) == []


def test_a_file_system_without_unnamed_files_is_a_sentence(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "open", lacking)
    with pytest.raises(Unsupported, match=r"O_TMPFILE.*/dev/shm"):
        BlockWriter(directory, "/a")


# ---- names, metadata, buffers


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "//", "a//b", "/a/", "../a", "/a/../b", "/a/./b", "a\0b", "a\nb", "x" * 256, "/y" * 1100),
        *("/\udcff", "/é" * 700, None, 3, b"/a"),
    ],
)
def test_bad_paths_get_a_sentence(path: object) -> None:
    with pytest.raises(InvalidPath, match=r"."):
        clean_path(path)


def test_good_paths_have_one_form() -> None:
    assert clean_path("runs/a b/Größe.x") == clean_path("/runs/a b/Größe.x") == "/runs/a b/Größe.x"
    assert clean_path("/" + "x" * 255) == "/" + "x" * 255
    assert clean_prefix("") == clean_prefix("/") == ""
    assert clean_prefix("/a/") == clean_prefix("a") == "/a"
    with pytest.raises(InvalidPath):
        clean_prefix("//")


@given(st.text(max_size=40))
def test_a_cleaned_path_stays_inside(text: str) -> None:
    try:
        cleaned = clean_path(text)
    except InvalidPath:
        return
    assert clean_path(cleaned) == cleaned
    assert os.path.normpath("/root" + cleaned).startswith("/root/")
    assert is_below(cleaned, "")
    assert is_below(cleaned, clean_prefix(os.path.dirname(cleaned)))


def test_a_prefix_ends_at_a_segment() -> None:
    assert is_below("/a", "/a")
    assert is_below("/a/b", "/a")
    assert not is_below("/ab", "/a")


@pytest.mark.parametrize(
    "metadata",
    [
        *({"a": 1.5}, {"a": None}, {"a": True}, {"a": b"x"}, {1: "x"}, {"a": 1 << 63}, {"a": "\udcff"}),
        *([("a", 1)], {"a": "x" * 70_000}),
    ],
)
def test_bad_metadata_gets_a_sentence(metadata: object) -> None:
    with pytest.raises(InvalidRequest, match="metadata"):
        headers.clean_metadata(metadata)


@pytest.mark.parametrize(
    "buffers",
    ["text", ["text"], 3, [3], np.zeros((4, 4))[:, ::2], np.zeros(3, "M8[s]")],
    ids=["text", "texts", "number", "numbers", "strided", "dates"],
)
def test_bad_buffers_get_a_sentence(buffers: object) -> None:
    with pytest.raises(InvalidRequest, match="buffer"):
        flat_views(buffers)


def test_an_array_is_one_buffer_and_not_many() -> None:
    assert [len(view) for view in flat_views(np.zeros((3, 5), np.float32))] == [60]
    assert [len(view) for view in flat_views([np.zeros(3), b"", bytearray(2), np.zeros(0)])] == [24, 2]
    assert flat_views(b"") == flat_views([]) == []


# ---- damaged files


INFO = BlockInfo("/a/b", 100, 4096, 1_700_000_000_000_000_000, {"x": 1, "y": "z"})


def test_a_header_is_read_back() -> None:
    assert parse_header(pack_header(INFO) + b"rest", 4196) == INFO


@given(st.binary(max_size=300), st.integers(0, 1 << 40))
def test_any_bytes_are_a_block_or_a_sentence(head: bytes, file_bytes: int) -> None:
    with pytest.raises(CorruptBlock, match=r"."):
        parse_header(head, file_bytes)


@given(st.data())
def test_any_change_of_a_header_is_found(data: st.DataObject) -> None:
    packed = bytearray(pack_header(INFO))
    # Bytes 48 to 63 are padding.
    position = data.draw(st.integers(0, len(packed) - 1).filter(lambda at: not 48 <= at < 64))
    packed[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptBlock):
        parse_header(bytes(packed), 4196)


@given(
    st.dictionaries(
        st.sampled_from(["path", "payload_bytes", "payload_offset", "created_ns", "metadata"]),
        st.none() | st.integers(-(1 << 70), 1 << 70) | st.text() | st.lists(st.integers()) | st.floats(),
    )
)
def test_a_header_with_a_right_checksum_may_still_lie(fields: dict[str, object]) -> None:
    import hashlib
    import json

    content = json.dumps(fields).encode()
    head = headers.PRELUDE.pack(b"TIERBLK1", 1, len(content), hashlib.sha256(content).digest()) + content
    with pytest.raises(CorruptBlock):
        parse_header(head, 4196)


@pytest.mark.parametrize("number", ["1", "007", "-1", "1.0", str(1 << 63), "9" * 5000, ""])
def test_headers_of_the_usual_form_are_read_no_less_strictly(number: str) -> None:
    for path in ("/a/b", "/a/../b", "/a\x01", "/\xff", '/a"b'):
        text = f'{{"path":"{path}","payload_bytes":{number},"payload_offset":8192,"created_ns":5,"metadata":{{}}}}'
        header = text.encode("latin-1")
        head = headers.PRELUDE.pack(b"TIERBLK1", 1, len(header), hashlib.sha256(header).digest()) + header
        if (path, number) == ("/a/b", "1"):
            assert parse_header(head, 8193) == BlockInfo("/a/b", 1, 8192, 5, {})
        else:
            with pytest.raises(CorruptBlock):
                parse_header(head, 8193)


def test_a_header_that_was_read_before_is_read_again_when_the_file_was_touched(directory: Path) -> None:
    for name in ("/a", "/b"):
        write(directory, name, b"x" * 10)
        for _ in range(2):
            with Block.map(directory / name[1:], name) as block:
                assert block.data == b"x" * 10
    with (directory / "a").open("r+b") as file:  # as nobody but the owner can
        file.seek(70)
        file.write(b"!")
    with pytest.raises(CorruptBlock):
        Block.map(directory / "a", "/a")
    os.rename(directory / "b", directory / "a")
    with pytest.raises(CorruptBlock, match="should be /a and says it is /b"):
        Block.map(directory / "a", "/a")


def test_damaged_files_are_reported_and_not_listed(directory: Path) -> None:
    good = write(directory, "/good/1", b"x" * 10)
    write(directory, "/cut", b"x" * 10)
    os.truncate(directory / "cut", 4100)
    write(directory, "/longer", b"x" * 10)
    with (directory / "longer").open("ab") as file:
        file.write(b"more")
    write(directory, "/moved", b"x")
    (directory / "moved").rename(directory / "elsewhere")
    (directory / "text").write_text("hello")
    (directory / "none").touch()
    (directory / "link").symlink_to(directory / "good/1")
    (directory / "folder link").symlink_to(directory / "good")
    os.mkfifo(directory / "pipe")
    Path(os.fsdecode(os.fsencode(directory) + b"/\xff\xfe")).write_bytes(b"name")
    found, damaged = scan(directory)
    assert found == [good]
    for name in ("cut", "longer", "elsewhere", "text", "none", "link", "folder link", "pipe", "not a whole"):
        assert any(name in sentence for sentence in damaged), name
    assert len(damaged) == 9
    for name in ("cut", "text", "none", "link", "pipe"):
        with pytest.raises(CorruptBlock):
            Block.map(directory / name)
    with pytest.raises(CorruptBlock, match="should be /x"):
        Block.map(directory / "good/1", "/x")
    with pytest.raises(BlockNotFound):
        Block.map(directory / "missing")
