"""What the measurements count by themselves: shares of a limit, pages once, processor time, a contestant's work."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from coproc.bench import latency, memory, ray_peers, shards
from coproc.bench.limits import within
from coproc.errors import CoprocError
from storage_tier.regions import Region


def test_a_limit_is_kept_by_the_median():
    (ratio,) = within([1.0, 2.0, 9.0], 2.0, "2 s", True)
    assert ratio.samples == (0.5, 1.0, 4.5)
    assert ratio.kept
    (ratio,) = within([1.0, 2.1, 9.0], 2.0, "2 s", True)
    assert ratio.kept is False
    (ratio,) = within([100.0, 300.0], [100.0, 200.0], "each its own", True, least=True)
    assert ratio.samples == (1.0, 1.5)
    assert ratio.kept
    assert within([1.0], 2.0, "2 s", False) == ()


def test_a_page_of_a_file_is_counted_once():
    """Mapped by the process and in the directory, whether the file had its name when it was mapped or got it later."""
    size = 96 << 20  # much beside what else this process may take or give back meanwhile
    directory = Path(f"/dev/shm/coproc-test-{os.getpid()}-counting")
    directory.mkdir()
    regions = []
    try:
        before = memory._taken_bytes(os.getpid(), directory)
        regions.append(Region.create(directory / "named", size, "test"))
        regions.append(Region.allocate(directory, size, "test"))
        alone = memory._taken_bytes(os.getpid(), directory) - before
        regions[1].link(directory / "linked")
        both = memory._taken_bytes(os.getpid(), directory) - before
    finally:
        for region in regions:
            region.close()
        shutil.rmtree(directory)
    # The second has no name yet, and is the process's; then it has one, and is the directory's.
    assert alone == pytest.approx(2 * size, abs=size / 2)
    assert both == pytest.approx(2 * size, abs=size / 2)


def test_processor_time_is_that_of_all_threads():
    begun_s, seen_s = time.process_time(), shards._busy_s(os.getpid())
    while time.process_time() - begun_s < 0.2:
        pass
    assert shards._busy_s(os.getpid()) - seen_s == pytest.approx(0.2, abs=0.1)


def test_a_far_stream_that_pauses_says_nothing(monkeypatch):
    class Far:
        def ask(self, method, until_ns):
            self.until_ns = until_ns

        def answer(self):
            return [[0, 1], [self.until_ns - self.short_ns - 1, self.until_ns - self.short_ns]]

    monkeypatch.setattr(latency, "_open_loop", lambda *_: [1e-4])
    far = Far()
    far.short_ns = 0
    late, bytes_per_s = latency._beside_far([], None, 10, far, 1000)
    assert late == [1e-4]
    assert bytes_per_s == pytest.approx(2000 / (far.until_ns / 1e9))
    far.short_ns = 600_000_000  # it ended before the last push was due
    with pytest.raises(CoprocError, match="under way"):
        latency._beside_far([], None, 10, far, 1000)


def test_rays_server_descends_with_the_mean():
    server = ray_peers._Server(3)
    gradients = [np.array([1, 2, 3], np.float32), np.array([3, 2, 1], np.float32), np.array([2, 2, 2], np.float32)]
    for _ in range(2):
        weights = server.apply_gradients(*gradients)
    np.testing.assert_allclose(weights, np.full(3, -2 * 2e-3), rtol=1e-6)
    worker = ray_peers._Worker(3)
    np.testing.assert_array_equal(worker.compute_gradients(weights), np.full(3, 1e-3, np.float32))
    begun_ns, received_ns = worker.receive(weights)
    assert begun_ns <= received_ns
