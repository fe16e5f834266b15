"""The parts of the tier's measurement that must not be fooled: where an array lies, and the plain contestants."""

from __future__ import annotations

import mmap
import os

import numpy as np

from coproc.bench import tier, tier_raw
from coproc.bench.tier_peers import sender


def test_an_array_without_a_copy_is_told_from_others(tmp_path):
    own = np.zeros(100_000, np.float32)
    assert not tier._lies_in_shared_file(own)
    for folder, expected in (("/dev/shm", True), (str(tmp_path), False)):
        path = f"{folder}/coproc-test-{os.getpid()}"
        tier_raw.write_fresh(path, own.data.cast("B"))
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        os.unlink(path)
        seen = np.frombuffer(mapped, np.float32)
        assert tier._lies_in_shared_file(seen) == expected
        assert not tier._lies_in_shared_file(seen.copy())
        del seen, mapped


def test_the_plain_sender_sends_all_of_it():
    into = bytearray(b"x" * 3_000_000)
    with sender(len(into)) as port:
        for _ in range(2):
            tier_raw.receive(port, memoryview(into))
            assert into.count(0) == len(into)


def test_without_ray_it_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with tier._ray(1) as ray:
        assert ray is None
