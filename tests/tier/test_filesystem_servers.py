"""The filesystem over servers: no copies, other processes, deaths, and the tools that use it."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from pyarrow.fs import FileSelector, FileType, FSSpecHandler, PyFileSystem

from coproc import LocalCluster
from storage_tier.errors import MountConflict, OutOfMemory, Unauthenticated, Unreachable
from storage_tier.filesystem import TierFileSystem

# As the entry point does where the package is installed.
fsspec.register_implementation("tier", TierFileSystem, clobber=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1, memory_bytes=256 << 20) as made:
        yield made


@pytest.fixture
def fs(cluster: LocalCluster) -> Iterator[TierFileSystem]:
    """The module's tier, empty."""
    made = TierFileSystem(address=cluster.address, skip_instance_cache=True)
    made.rm("/", recursive=True)
    yield made
    made.close()
    # Tools make instances of their own from URLs.
    for other in TierFileSystem._cache.values():
        other.close()
    TierFileSystem.clear_instance_cache()


def url(fs: TierFileSystem, path: str) -> str:
    return fs.unstrip_protocol(path)


def table(rows: int = 100_000) -> pa.Table:
    return pa.table(
        {"id": np.arange(rows), "value": np.sqrt(np.arange(rows)), "part": np.arange(rows, dtype=np.int32) % 3}
    )


# ---- no copies


def in_shared_memory(address: int, size_bytes: int) -> bool:
    """Whether these bytes are those of a file in /dev/shm, mapped by this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        low, high = (int(part, 16) for part in span.split("-"))
        if low <= address and address + size_bytes <= high:
            return bool(name) and name[0].startswith("/dev/shm/")
    return False


def test_pyarrow_reads_the_memory_of_the_server(fs: TierFileSystem) -> None:
    rows = table()
    with fs.open("/t.arrow", "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    arrow = PyFileSystem(FSSpecHandler(fs))
    with arrow.open_input_file("/t.arrow") as source:
        whole = source.read_buffer()
        assert in_shared_memory(whole.address, whole.size)
        found = pa.ipc.open_file(source).read_all()
    with arrow.open_input_stream("/t.arrow") as source:
        part = source.read_buffer(1000)
        assert in_shared_memory(part.address, part.size)
    assert found.equals(rows)
    buffers = [buffer for column in found.columns for chunk in column.chunks for buffer in chunk.buffers() if buffer]
    assert buffers
    assert all(in_shared_memory(buffer.address, buffer.size) for buffer in buffers)
    assert not in_shared_memory(rows["id"].chunk(0).buffers()[1].address, 8)
    # What holds on to the bytes keeps them, also when name and server's interest are gone.
    fs.rm("/t.arrow")
    assert found.equals(rows)


def test_numpy_reads_the_memory_of_the_server(fs: TierFileSystem) -> None:
    values = np.arange(1_000_000, dtype=np.float32)
    fs.pipe("/v", values)
    with fs.open("/v") as file:
        array = np.frombuffer(file.getbuffer(), np.float32)
    assert in_shared_memory(array.ctypes.data, array.nbytes)
    assert np.array_equal(array, values)
    assert not array.flags.writeable


def test_from_another_host_it_is_a_copy(fs: TierFileSystem) -> None:
    values = np.arange(1_000_000, dtype=np.float32)
    far = TierFileSystem(address=fs.address, near=False, skip_instance_cache=True)
    with far.open("/v", "wb") as file:
        for at in range(0, len(values), 99_999):
            file.write(values[at : at + 99_999])
    with far.open("/v") as file:
        array = np.frombuffer(file.getbuffer(), np.float32)
    assert not in_shared_memory(array.ctypes.data, array.nbytes)
    assert np.array_equal(array, values)
    far.close()


# ---- tools


def test_pyarrow_filesystem(fs: TierFileSystem) -> None:
    arrow = PyFileSystem(FSSpecHandler(fs))
    arrow.create_dir("/d/e", recursive=True)
    arrow.create_dir("/d/e")
    with arrow.open_output_stream("/d/a") as sink:
        sink.write(b"123")
    info = arrow.get_file_info("/d/a")
    assert (info.type, info.size) == (FileType.File, 3)
    assert info.mtime.timestamp() == pytest.approx(fs.modified("/d/a").timestamp())
    assert arrow.get_file_info("/none").type == FileType.NotFound
    names = [(one.path, one.type) for one in arrow.get_file_info(FileSelector("/d", recursive=True))]
    assert names == [("/d/a", FileType.File), ("/d/e", FileType.Directory)]
    arrow.copy_file("/d/a", "/d/b")
    arrow.move("/d/b", "/d/c")
    arrow.delete_file("/d/a")
    arrow.delete_dir("/d/e")
    assert fs.find("/", withdirs=True) == ["/", "/d", "/d/c"]
    arrow.delete_dir_contents("/d")
    assert fs.ls("/d") == []
    with pytest.raises(OSError, match="appended"):
        arrow.open_append_stream("/d/c")
    assert arrow.equals(PyFileSystem(FSSpecHandler(pickle.loads(pickle.dumps(fs)))))


def test_parquet(fs: TierFileSystem) -> None:
    rows = table()
    pa.parquet.write_table(rows, "/t.parquet", filesystem=fs)
    assert pa.parquet.read_table("/t.parquet", filesystem=fs).equals(rows)
    assert pa.parquet.read_table("/t.parquet", filesystem=fs, columns=["part"]).equals(rows.select(["part"]))
    # As pyarrow writes the URLs of filesystems that it does not know itself.
    assert pa.parquet.read_table(f"fsspec+{url(fs, '/t.parquet')}").equals(rows)


DATASET = """
import os, pickle, sys
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

fs = pickle.load(sys.stdin.buffer)
rows = pa.table({"id": np.arange(90_000), "part": np.arange(90_000, dtype=np.int32) % 3})
ds.write_dataset(rows, "/set", format="parquet", partitioning=["part"], filesystem=fs)
found = ds.dataset("/set", filesystem=fs, partitioning=["part"])
assert found.count_rows() == len(rows)
assert found.to_table(filter=ds.field("part") == 1)["id"].to_pylist() == list(range(1, 90_000, 3))
fs.close()
# Arrow's threads may give the last buffers back after this, and a Python that is ending aborts then (as with any
# filesystem that is written in Python).
os._exit(0)
"""


def test_datasets(fs: TierFileSystem) -> None:
    # In a process of its own, for its threads are Arrow's: Python never forgets those that have called it.
    subprocess.run([sys.executable, "-c", DATASET], input=pickle.dumps(fs), check=True, timeout=60)
    assert [path.split("/")[2] for path in fs.find("/set")] == ["0", "1", "2"]


def test_a_table_that_ends_in_an_error_is_not_published(fs: TierFileSystem) -> None:
    rows = table()

    def write() -> None:
        with fs.open("/bad", "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
            writer.write_table(rows.select(["id"]))

    def write_by_pyarrow() -> None:
        with PyFileSystem(FSSpecHandler(fs)).open_output_stream("/bad") as sink:
            sink.write(b"half")
            raise ArithmeticError

    with pytest.raises(pa.ArrowInvalid):
        write()
    with pytest.raises(ArithmeticError):
        write_by_pyarrow()
    assert fs.ls("/") == []


def test_pandas_by_url(fs: TierFileSystem) -> None:
    pandas = pytest.importorskip("pandas")
    frame = table(1000).to_pandas()
    frame.to_parquet(url(fs, "/p/t.parquet"))
    frame.to_csv(url(fs, "/p/t.csv.gz"), index=False)
    frame.to_json(url(fs, "/p/t.json"))
    assert pandas.read_parquet(url(fs, "/p/t.parquet")).equals(frame)
    assert pandas.read_csv(url(fs, "/p/t.csv.gz"))["id"].equals(frame["id"])
    assert pandas.read_json(url(fs, "/p/t.json"))["id"].equals(frame["id"])
    assert fs.ls("/p", detail=False) == ["/p/t.csv.gz", "/p/t.json", "/p/t.parquet"]

    class Refuses:
        def __str__(self) -> str:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        pandas.DataFrame({"a": [1, Refuses()]}).to_csv(url(fs, "/p/half.csv"))
    assert not fs.exists("/p/half.csv")


def test_fsspec_by_url(fs: TierFileSystem) -> None:
    with fsspec.open(url(fs, "/o/a.txt"), "w") as file:
        file.write("text")
    with fsspec.open_files(url(fs, "/o/part-*.gz"), "wb", num=3, compression="infer") as files:
        for number, file in enumerate(files):
            file.write(b"%d" % number)
    assert fs.find("/o") == ["/o/a.txt", "/o/part-0.gz", "/o/part-1.gz", "/o/part-2.gz"]
    with fsspec.open_files(url(fs, "/o/part-*.gz"), compression="infer") as files:
        assert [file.read() for file in files] == [b"0", b"1", b"2"]
    with fsspec.open(url(fs, "/o/a.zip"), "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("in.txt", b"zipped")
    with fsspec.open(f"zip://in.txt::{url(fs, '/o/a.zip')}") as file:
        assert file.read() == b"zipped"
    with fsspec.open(f"simplecache::{url(fs, '/o/a.txt')}") as file:
        assert file.read() == b"text"


# ---- mounts


def test_a_move_from_one_under_store_to_another(fs: TierFileSystem, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        fs.client.mount(f"/{name}", f"file://{tmp_path}/{name}", write_type="cache_through")
    fs.pipe("/one/a", b"a", metadata={"step": 1})
    (tmp_path / "one" / "d").mkdir()
    (tmp_path / "one" / "d" / "b").write_bytes(b"only below")
    fs.makedirs("/one/d/empty")
    fs.mv("/one/a", "/two/new/a")
    assert (fs.cat("/two/new/a"), fs.info("/two/new/a")["metadata"]) == (b"a", {"step": 1})
    fs.mv("/one/d", "/two/e", recursive=True)
    assert fs.find("/two", withdirs=True) == ["/two", "/two/e", "/two/e/b", "/two/e/empty", "/two/new", "/two/new/a"]
    assert fs.ls("/one") == []
    assert (tmp_path / "two" / "e" / "b").read_bytes() == b"only below"
    fs.mv("/two/new/a", "/two/b")
    with pytest.raises(MountConflict):
        fs.mv("/two", "/three")
    for name in ("one", "two"):
        fs.client.unmount(f"/{name}")


# ---- other processes

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


# ---- servers


def test_files_outlive_a_killed_server_and_readers_do_not_notice() -> None:
    with LocalCluster(2, memory_bytes=64 << 20) as cluster:
        fs = TierFileSystem(address=cluster.address, skip_instance_cache=True)
        second = TierFileSystem(address=f"coproc://{cluster.servers[1].address}", skip_instance_cache=True)
        values = np.arange(500_000, dtype=np.float32)
        fs.pipe("/a", values)
        version = fs.info("/a")["version"]
        # Written at one server, read through the other: its bytes come over and stay.
        assert np.array_equal(np.frombuffer(second.cat("/a"), np.float32), values)
        assert len(fs.info("/a")["location"]) == 2
        file = fs.open("/a")
        cluster.servers[0].kill()
        assert np.array_equal(np.frombuffer(file.getbuffer(), np.float32), values)
        assert second.cat_file("/a", version=version) == values.tobytes()
        assert fs.cat("/a") == values.tobytes(), "any server answers for any path"
        cluster.servers[0].restart()
        first = TierFileSystem(address=f"coproc://{cluster.servers[0].address}", skip_instance_cache=True)
        assert first.cat("/a") == values.tobytes()
        assert first.info("/a")["version"] == version
        file.close()
        for one in (fs, second, first):
            one.close()


def test_a_transaction_over_several_servers() -> None:
    with LocalCluster(3, memory_bytes=64 << 20) as cluster:
        all_fs = [
            TierFileSystem(address=f"coproc://{server.address}", skip_instance_cache=True) for server in cluster.servers
        ]
        first, second, third = all_fs
        second.pipe("/a", b"x" * 200_000)
        third.pipe("/b", b"y" * 200_000)
        with first.transaction:
            for path in ("/a", "/b", "/c"):
                with first.open(path, "wb") as file:
                    file.write(b"new" * 100_000)
            assert not second.exists("/c")
        assert all(fs.cat(path) == b"new" * 100_000 for fs in all_fs for path in ("/a", "/b", "/c"))

        def act() -> None:
            with first.transaction:
                for path in ("/a", "/b", "/d"):
                    first.pipe(path, b"newer" * 100_000)
                first.pipe_file("/e", b"mine", mode="create")
                third.pipe("/e", b"theirs")

        with pytest.raises(FileExistsError, match="/e"):
            act()
        assert all(fs.find("/") == ["/a", "/b", "/c", "/e"] for fs in all_fs)
        assert all(fs.cat(path) == b"new" * 100_000 for fs in all_fs for path in ("/a", "/b", "/c"))
        for fs in all_fs:
            fs.close()


def test_refusals() -> None:
    with LocalCluster(1, memory_bytes=8 << 20, token="right") as cluster:
        host, port = re.match(r"(.*):(\d+)", cluster.servers[0].address).groups()
        fs = fsspec.filesystem("tier", host=host, port=int(port), token="right", skip_instance_cache=True)
        with fs.open("/a", "wb") as file:
            file.write(b"x" * (4 << 20))
        before = fs.client.status().memory_used_bytes

        def fill(size_bytes: int) -> None:
            with fs.open("/b", "wb") as file:
                for _ in range(size_bytes >> 20):
                    file.write(b"x" * (1 << 20))

        for size_bytes in (6 << 20, 60 << 20):
            with pytest.raises(OutOfMemory):
                fill(size_bytes)
        assert fs.find("/") == ["/a"]
        assert fs.client.status().memory_used_bytes == before
        assert fs.cat_file("/a", 0, 3) == b"xxx"
        wrong = TierFileSystem(host, port, token="wrong", skip_instance_cache=True)
        for act in (wrong.exists, wrong.isdir, wrong.ls, wrong.open):
            with pytest.raises(Unauthenticated):
                act("/a")
        wrong.close()
        cluster.servers[0].kill()
        for act in (fs.exists, fs.isfile, fs.ls, fs.find, fs.open):
            with pytest.raises(Unreachable):
                act("/a")
        fs.close()
