"""Regions and words: whole or not at all, alive as long as their holder, and seen by other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path

import numpy as np
import pytest

from storage_tier.errors import CorruptRegion, OutOfMemory, RegionNotFound
from storage_tier.regions import HEADER_BYTES, Region, align
from storage_tier.words import WORD_CODE, Words, fence


@pytest.fixture
def directory():
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix=f"coproc-test-region-{os.getpid()}-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def test_what_one_map_writes_another_reads(directory):
    made = Region.create(directory / "r", 8192, "test")
    other = Region.open(directory / "r")
    assert (other.size_bytes, other.kind) == (8192, "test")
    assert not other.array(0, np.float32, 2048).any()
    made.array(64, np.float32, 10)[:] = np.arange(10)
    np.testing.assert_array_equal(other.array(64, np.float32, 10), np.arange(10))
    assert os.stat(directory / "r").st_blocks * 512 >= 8192
    made.close()
    other.close()
    other.close()


def test_a_name_is_given_once_and_a_full_tmpfs_leaves_nothing(directory):
    region = Region.create(directory / "r", 4096, "test")
    with pytest.raises(FileExistsError):
        Region.create(directory / "r", 4096, "test")
    room = os.statvfs(directory)
    with pytest.raises(OutOfMemory, match=r"are free\. Make the shared memory larger"):
        Region.create(directory / "large", room.f_bavail * room.f_frsize + (1 << 30), "test")
    assert [path.name for path in directory.iterdir()] == ["r"]
    region.close()


@pytest.mark.parametrize("damage", ["cut", "long", "magic", "empty", "short"])
def test_what_is_no_whole_region_is_refused(directory, damage):
    path = directory / "r"
    Region.create(path, 4096, "test").close()
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[:-1], "long": data + b"x", "magic": b"X" + data[1:], "empty": b"", "short": data[:100]}[damage]
    )
    with pytest.raises(CorruptRegion):
        Region.open(path)
    with pytest.raises(RegionNotFound):
        Region.open(directory / "nobody")


HOLDER = """
import sys
from pathlib import Path
from storage_tier.regions import Region
region = Region.open(Path(sys.argv[1]))
region.hold()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_region_is_held_until_its_holder_dies(directory):
    region = Region.create(directory / "r", 4096, "test")
    assert not region.is_held()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(region.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    assert region.is_held()
    with pytest.raises(BlockingIOError):
        region.hold()
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdin.close()
    process.stdout.close()
    assert not region.is_held()
    region.hold()
    assert region.is_held()
    region.close()


def test_views_outlive_close_and_unlink(directory):
    region = Region.create(directory / "r", 4096, "test")
    view = region.array(0, np.int64, 4)
    region.unlink()
    region.close()
    view[:] = 5
    assert view.sum() == 20


@pytest.mark.parametrize(("size", "to", "expected"), [(0, 64, 0), (1, 64, 64), (64, 64, 64), (65, 4096, 4096)])
def test_align(size, to, expected):
    assert align(size, to) == expected


def words(directory, count=64):
    region = Region.create(directory / f"w{count}", 4096, "test")
    return region, region.words(0, count)


def test_words_are_whole_signed_64_bits(directory):
    region, w = words(directory)
    for value in (0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF):
        w.store(5, value)
        assert w.load(5) == value
    w.store_row(8, array(WORD_CODE, range(4)))
    assert w.row(8, 4) == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        w.load(64)
    with pytest.raises(ValueError, match="multiple of 8"):
        region.words(4, 1)
    fence()
    w.release()
    region.close()


def test_a_wait_ends_by_a_ring_a_changed_bell_or_time(directory):
    region, w = words(directory)
    began = time.monotonic()
    w.wait(0, w.load(0), 0.05)
    assert 0.04 < time.monotonic() - began < 5
    began = time.monotonic()
    w.wait(0, w.load(0) + 1, 30)
    w.wait(0, w.load(0), -1)
    assert time.monotonic() - began < 5
    awake = threading.Event()

    def sleeper():
        seen = w.load(0)
        ready.set()
        while w.load(0) == seen:
            w.wait(0, seen, 30)
        awake.set()

    ready = threading.Event()
    thread = threading.Thread(target=sleeper)
    thread.start()
    assert ready.wait(30)
    w.ring(0)
    assert awake.wait(30)
    thread.join(30)
    region.close()


WRITER = """
import sys
from pathlib import Path
from storage_tier.regions import Region
words = Region.open(Path(sys.argv[1])).words(0, 16)
ones = -1
while not words.load(8):
    words.store(0, 0)
    words.store(0, ones)
"""


def test_a_word_never_tears_between_processes(directory):
    region, w = words(directory, 16)
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(region.path)])
    seen = set()
    deadline = time.monotonic() + 30
    while seen != {0, -1} and time.monotonic() < deadline:
        seen.update(w.load(0) for _ in range(100_000))
    w.store(8, 1)
    assert process.wait(timeout=30) == 0
    assert seen == {0, -1}
    region.close()


def test_words_ask_for_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="need Linux"):
        Words(bytearray(64), 0, 8)


def test_the_header_leaves_the_payload_on_a_page():
    assert HEADER_BYTES % 4096 == 0
