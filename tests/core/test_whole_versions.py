"""No torn reads: a reader under writers at full speed sees whole versions only, over any number of shards."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import coproc

SIZE = 300_000


# A process that reads for so many seconds; it says how many versions it has seen.
READER = """
import sys
import time
import coproc
address, name, worker, near, reads_s = sys.argv[1:]
near = None if near == "near" else False
with coproc.connect(address, near=near) as client, client.model(name).join(int(worker)) as reader:
    newest, seen, end = -1, 0, time.monotonic() + float(reads_s)
    while time.monotonic() < end:
        snapshot = reader.pull(timeout_s=60)
        assert snapshot.version >= newest, f"version {snapshot.version} after {newest}"
        assert (snapshot.flat == -snapshot.version).all(), f"version {snapshot.version} is torn"
        seen += snapshot.version > newest
        newest = snapshot.version
print(seen)
"""


class Writer:
    """A worker that pushes ones until it is stopped: version v is the vector -v."""

    def __init__(self, model, worker):
        self._stop = threading.Event()
        self.failure = None
        self._thread = threading.Thread(target=self._work, args=(model, worker))
        self._thread.start()

    def _work(self, model, worker):
        try:
            with model.join(worker) as attempt:
                while not self._stop.is_set():
                    attempt.gradient(timeout_s=60)[:] = 1
                    attempt.push(timeout_s=60)
        except BaseException as error:
            self.failure = error

    def stop(self):
        self._stop.set()
        self._thread.join(60)
        assert self.failure is None, self.failure


def check(snapshot):
    assert (snapshot.flat == -snapshot.version).all()


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("copy", [False, True], ids=["view", "copy"])
@pytest.mark.parametrize("consistency", [coproc.Asp(), coproc.Ssp(bound=1_000_000)], ids=["asp", "ssp"])
def test_a_workers_pull_is_one_version(client, name, shards, copy, consistency):
    model = client.create_model(
        name,
        params={"w": np.zeros(SIZE, np.float32)},
        optimizer=coproc.optim.SGD(learning_rate=1.0),
        consistency=consistency,
        shards=shards,
    )
    writers = [Writer(model, 0), Writer(model, 1)]
    seen = set()
    with model.join(worker=2) as reader:
        reader.pull(min_version=1, timeout_s=60)
        deadline = time.monotonic() + 60
        while len(seen) < 20 and time.monotonic() < deadline:
            snapshot = reader.pull(copy=copy)
            for _ in range(3):  # a view lasts while it is used
                check(snapshot)
            seen.add(snapshot.version)
    for writer in writers:
        writer.stop()
    assert len(seen) == 20
    model.delete()


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("where", ["near", "far"])
def test_a_snapshot_is_one_version(client, far, name, shards, where):
    model = {"near": client, "far": far}[where].create_model(
        name,
        params={"w": np.zeros(SIZE, np.float32)},
        optimizer=coproc.optim.SGD(learning_rate=1.0),
        shards=shards,
    )
    writer = Writer(client.model(name), 0)
    versions = []
    for _ in range(20):
        snapshot = model.snapshot(timeout_s=60)
        check(snapshot)
        versions.append(snapshot.version)
    writer.stop()
    assert versions == sorted(versions)
    assert versions[-1] > versions[0]
    model.delete()


def test_many_readers_hold_views_and_nobody_stands_still(client, name):
    """More leased views than buffers: the server says copy-only, versions go on."""
    model = client.create_model(
        name, params={"w": np.zeros(SIZE, np.float32)}, optimizer=coproc.optim.SGD(learning_rate=1.0)
    )
    with model.join(worker=0) as writer:
        readers, held = [], []
        for version in range(1, 9):
            writer.push({"w": np.ones(SIZE)})
            reader = model.join(worker=version)
            readers.append(reader)
            held.append(reader.pull(min_version=version, timeout_s=10))
        for snapshot in held:
            check(snapshot)
        assert [snapshot.version for snapshot in held] == list(range(1, 9))
        for reader in readers:
            reader.close()
    model.delete()


@pytest.mark.parametrize("shards", [1, 2])
def test_a_bsp_view_is_stable_until_the_workers_next_push(client, name, shards):
    model = client.create_model(
        name,
        params={"w": np.zeros(SIZE, np.float32)},
        optimizer=coproc.optim.SGD(learning_rate=1.0),
        consistency=coproc.Bsp(workers=2),
        shards=shards,
    )
    with model.join(worker=0) as slow, model.join(worker=1) as quick:
        for _ in range(20):
            snapshot = slow.pull()
            quick.pull()
            quick.push({"w": np.ones(SIZE)})
            check(snapshot)
            slow.push({"w": np.ones(SIZE)})
    model.delete()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shards", [1, 2])
def test_readers_and_writers_at_full_speed_for_a_minute(client, cluster, name, shards):
    model = client.create_model(
        name,
        params={"w": np.zeros(SIZE, np.float32)},
        optimizer=coproc.optim.SGD(learning_rate=1.0),
        shards=shards,
    )
    writers = [Writer(model, 0), Writer(model, 1)]
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, cluster.address, name, str(worker), near, "60"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for worker, near in ((2, "near"), (3, "near"), (4, "far"))
    ]
    seen = [reader.communicate(timeout=200)[0] for reader in readers]
    for writer in writers:
        writer.stop()
    assert [reader.returncode for reader in readers] == [0, 0, 0]
    assert min(map(int, seen)) > 100
    model.delete()
