"""The filesystem in several processes: sent, forked, counting together, killed."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from coproc import LocalCluster
from storage_tier.filesystem import TierFileSystem

from . import filesystem_cluster

cluster = filesystem_cluster.cluster
fs = filesystem_cluster.fs


CHILD = """
import os, pickle, sys
fs = pickle.load(sys.stdin.buffer)
with fs.open("/sent", "wb") as file:
    file.write(b"%d" % os.getpid())
print(fs.cat("/here").decode(), end="")
"""


def test_it_travels_to_a_process(fs: TierFileSystem) -> None:
    fs.pipe("/here", b"from the parent")
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=pickle.dumps(fs), capture_output=True, check=True, timeout=60
    )
    assert done.stdout == b"from the parent"
    assert int(fs.cat("/sent")) != os.getpid()


FORGET = """
import gc, sys
import fsspec
from storage_tier.filesystem import TierFileSystem

one = TierFileSystem(address=sys.argv[1], skip_instance_cache=True)
one.pipe("/a", b"x" * 1_000_000)
file = one.open("/a")
del one
gc.collect()
assert file.read(1) == b"x" and file.fs.cat("/a")
del file
gc.collect()
TierFileSystem(address=sys.argv[1], near=False).cat("/a")
"""


def test_nobody_has_to_close_one(fs: TierFileSystem) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", FORGET, fs.address], check=True, timeout=60, stderr=subprocess.PIPE
    )
    assert done.stderr == b""


FORK = """
import gc, os, sys
from storage_tier.filesystem import TierFileSystem

fs = TierFileSystem(address=sys.argv[1])
used = sys.argv[2] == "used"
if used:
    fs.pipe("/before", b"before")
    reader = fs.open("/before")
half = fs.open("/half", "wb")
half.write(b"x")
pid = os.fork()
if pid == 0:
    status = 1
    try:
        fs.pipe("/child", b"child" * 100_000)
        if used:
            assert fs.cat("/before") == reader.read() == b"before"
            assert fs.ls("/", detail=False) == ["/before", "/child"]
        try:
            half.close()
        except ValueError as error:
            assert "only that can publish it" in str(error), error
            status = 0
        del half
        gc.collect()
    finally:
        os._exit(status)
assert os.waitpid(pid, 0)[1] == 0
half.write(b"y" * 1_000_000)
half.close()
fs.pipe("/parent", b"parent")
fs.close()
"""


@pytest.mark.parametrize("when", ["used", "unused"])
def test_both_sides_of_a_fork(fs: TierFileSystem, when: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", FORK, fs.address, when], check=True, timeout=60)
    assert fs.find("/") == ["/before"] * (when == "used") + ["/child", "/half", "/parent"]
    assert fs.cat("/half") == b"x" + b"y" * 1_000_000


ADD = """
import pickle, sys
from storage_tier.errors import VersionConflict

def add_up(fs, count):
    while count:
        with fs.open("/sum") as file:
            value, version = int(file.read()), file.version
        try:
            fs.pipe_file("/sum", b"%d" % (value + 1), expected_version=version)
        except VersionConflict:
            continue
        count -= 1
    fs.close()

if __name__ == "__main__":
    add_up(pickle.load(sys.stdin.buffer), 15)
"""


def test_processes_and_threads_count_together(fs: TierFileSystem) -> None:
    fs.pipe("/sum", b"0")
    others = [TierFileSystem(address=fs.address, near=near, skip_instance_cache=True) for near in (None, False)]
    here: dict[str, Any] = {"__name__": "here"}
    exec(ADD, here)

    def there(other: TierFileSystem) -> None:
        subprocess.run([sys.executable, "-c", ADD], input=pickle.dumps(other), check=True, timeout=60)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(there, other) for other in others]
        running += [pool.submit(here["add_up"], other, 15) for other in others]
        for one in running:
            one.result(60)
    assert fs.cat("/sum") == b"60"


KILLED = """
import sys
from storage_tier.filesystem import TierFileSystem

fs = TierFileSystem(address=sys.argv[1])
first, second = fs.open("/kill/a", "wb"), fs.open("/kill/b", "w")
first.write(b"x" * 3_000_000)
second.write("y" * 3_000_000)
print("written", flush=True)
sys.stdin.read()
"""


def test_a_killed_writer_leaves_nothing() -> None:
    with LocalCluster(1, memory_bytes=64 << 20) as cluster:
        fs = TierFileSystem(address=cluster.address, skip_instance_cache=True)
        used_bytes = fs.client.status().memory_used_bytes
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, fs.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout.readline() == b"written\n"
            writer.send_signal(signal.SIGKILL)
        assert fs.find("/", withdirs=True) == ["/"]
        # What it had reserved ends with its reservation; a restart ends all of them at once.
        cluster.servers[0].restart()
        fs.close()
        assert fs.client.status().memory_used_bytes == used_bytes
        assert fs.find("/", withdirs=True) == ["/"]
        fs.close()
