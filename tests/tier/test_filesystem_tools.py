"""The filesystem as pyarrow, pandas and numpy use it, without copies on one host."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from pyarrow.fs import FileSelector, FileType, FSSpecHandler, PyFileSystem

from storage_tier.filesystem import TierFileSystem

from . import filesystem_cluster

cluster = filesystem_cluster.cluster
fs = filesystem_cluster.fs


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
