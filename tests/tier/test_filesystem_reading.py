"""What fsspec's suites leave out of reading: seeking, slices, refusals, and what is built on it."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest

from storage_tier.errors import Unreachable, VersionConflict
from storage_tier.filesystem import TierFileSystem
from storage_tier.filesystem.reader import TierReader

from . import filesystem_clients
from .fake_client import FakeTierClient, Tree

clients = filesystem_clients.clients
cluster = filesystem_clients.cluster
fs = filesystem_clients.fs
other = filesystem_clients.other
pytest_generate_tests = filesystem_clients.pytest_generate_tests
tree = filesystem_clients.tree


# ---- reading


def test_reading_is_that_of_a_builtin_file(fs: TierFileSystem) -> None:
    content = b"first\n\nthird, without end" + b"x" * 20_000 + b"\nlast"
    fs.pipe("/a", content)
    for act in (
        lambda file: file.read(),
        lambda file: [file.read(3), file.read(0), file.read(4), file.tell(), file.read(None)],
        lambda file: file.readlines(),
        lambda file: list(file),
        lambda file: [file.readline(), file.readline(2), file.readline(-1), file.readline(), file.readline()],
        lambda file: [file.seek(-4, 2), file.read(), file.read(), file.read(1)],
        lambda file: [file.seek(2), file.seek(3, 1), file.tell(), file.read(2)],
        lambda file: [file.seek(len(content) + 9), file.read(), file.readline(), file.tell(), file.seek(0, 1)],
        lambda file: [file.readinto(memoryview(bytearray(4))), file.tell(), file.read1(5), file.read1()],
        lambda file: [file.readable(), file.seekable(), file.closed],
    ):
        with fs.open("/a") as ours, io.BytesIO(content) as theirs:
            assert act(ours) == act(theirs)
    with fs.open("/a") as file:
        target = np.zeros(3, np.uint16)
        assert file.readinto(target) == 6
        assert target.tobytes() == b"first\n"
        for offset, whence in ((-1, 0), (-len(content) - 1, 2), (0, 7)):
            with pytest.raises(ValueError):  # noqa: PT011
                file.seek(offset, whence)
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
        assert file.full_name == fs.unstrip_protocol("/a")
    for act in (file.read, file.tell, file.readline, file.read_buffer, file.getbuffer, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            act()
    with fs.open("/w", "wb") as writer:
        for act in (writer.read, writer.readline, lambda: writer.seek(0)):
            with pytest.raises(io.UnsupportedOperation):
                act()


def test_buffers_are_slices_that_outlive_the_file(fs: TierFileSystem) -> None:
    fs.pipe("/a", b"0123456789")
    with fs.open("/a") as file:
        file.seek(2)
        middle, rest, none = file.read_buffer(3), file.read_buffer(), file.read_buffer(1)
        whole = file.getbuffer()
    assert (middle, rest, none, whole) == (b"234", b"56789", b"", b"0123456789")
    assert all(view.readonly for view in (middle, rest, whole))


def test_slices(fs: TierFileSystem, other: TierFileSystem) -> None:
    content = bytes(range(100))
    fs.pipe("/a", content)
    bounds = [(None, None), (0, 10), (90, 200), (-5, None), (None, -5), (-10, -5), (50, 40), (100, 101), (300, None)]
    for start, end in bounds:
        assert fs.cat_file("/a", start, end) == content[start:end]
        assert other.cat_file("/a", start, end) == content[start:end]
    assert fs.cat_ranges(["/a", "/a", "/none"], 0, [1, 2, 3], on_error="return")[:2] == [b"\0", b"\0\1"]
    assert (fs.head("/a", 3), fs.tail("/a", 2)) == (content[:3], content[-2:])
    assert fs.read_block("/a", 10, 5) == content[10:15]


def test_of_a_large_file_of_another_host_comes_what_is_read(
    fs: TierFileSystem, other: TierFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = np.random.default_rng(0).integers(0, 255, (20 << 20) + 5, np.uint8).tobytes()
    fs.pipe("/a", content)
    fetched: list[int] = []
    read = type(other.client).read

    def counted(client: object, path: str, offset: int, limit: int, **how: object) -> memoryview:
        fetched.append(limit)
        return read(client, path, offset, limit, **how)

    monkeypatch.setattr(type(other.client), "read", counted)
    with other.open("/a") as file:
        assert (file.size, fetched) == (len(content), [])
        file.seek(-4, 2)
        assert file.read() == content[-4:]
        assert fetched == [5]
        file.seek((4 << 20) - 3)
        middle = file.read_buffer(6)
        assert middle == content[(4 << 20) - 3 : (4 << 20) + 3]
        assert fetched == [5, 8 << 20]
        assert file.readline() == content[(4 << 20) + 3 :].partition(b"\n")[0] + b"\n"
        with pickle.loads(pickle.dumps(file)) as again:
            assert again.tell() == file.tell()
            again.fs.close()
        assert fetched == [5, 8 << 20]
        assert file.getbuffer() == content
        assert sum(fetched) == len(content), "nothing comes twice"
        whole = file.getbuffer()
    assert whole == content
    assert whole.readonly
    assert middle == content[(4 << 20) - 3 : (4 << 20) + 3]
    with other.open("/a") as file:
        assert file.read(1) == content[:1]
        fs.pipe("/a", b"x" * len(content))
        assert file.read(1) == content[1:2], "it is here"
        with pytest.raises(VersionConflict):
            file.read()
    TierFileSystem.clear_instance_cache()


def test_a_reader_travels(fs: TierFileSystem) -> None:
    fs.pipe("/a", b"0123456789")
    with fs.open("/a") as file:
        file.seek(4)
        with pickle.loads(pickle.dumps(file)) as again:
            assert isinstance(again, TierReader)
            assert again.read() == b"456789"
        fs.pipe("/a", b"new")
        with pytest.raises(VersionConflict):
            pickle.loads(pickle.dumps(file))
        # Unpickled, a filesystem is one for all in this thread, as fsspec has it.
        again.fs.close()
        TierFileSystem.clear_instance_cache()
    with fs.open("/b", "wb") as writer, pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(writer)


# ---- trouble


def test_an_unreachable_server_is_no_empty_directory(
    fs: TierFileSystem, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.pipe("/d/a", b"x")

    def gone(*_: object, **__: object) -> None:
        raise Unreachable("no server answers")

    for name in ("stat", "list", "find", "remove"):
        monkeypatch.setattr(FakeTierClient, name, gone)
    for act in (
        lambda: fs.exists("/d/a"),
        lambda: fs.isfile("/d/a"),
        lambda: fs.isdir("/d"),
        lambda: fs.find("/d"),
        lambda: fs.find("/d", maxdepth=1),
        lambda: list(fs.walk("/d")),
        lambda: fs.glob("/d/*"),
        lambda: fs.du("/d"),
        lambda: fs.rm("/d", recursive=True),
        lambda: fs.copy("/d", "/e", recursive=True),
        lambda: fs.get("/d", "/nowhere", recursive=True),
    ):
        with pytest.raises(Unreachable):
            act()
    told: list[OSError] = []
    assert list(fs.walk("/d", on_error=told.append)) == []
    assert len(told) == 1


# ---- other faces


def test_a_mapping(fs: TierFileSystem) -> None:
    for root in ("/m", "tier://fake:1/m/", ""):
        mapping = fs.get_mapper(root)
        mapping["a"] = b"1"
        mapping["d/b"] = b"2"
        assert sorted(mapping) == ["a", "d/b"]
        assert mapping["d/b"] == b"2"
        assert mapping.getitems(["a", "d/b"]) == {"a": b"1", "d/b": b"2"}
        assert "a" in mapping
        assert "none" not in mapping
        assert "d" not in mapping
        with pytest.raises(KeyError):
            mapping["none"]
        del mapping["a"]
        assert list(mapping) == ["d/b"]
        mapping.clear()
        assert list(mapping) == []
        fs.rm("/", recursive=True)


def test_up_and_down(fs: TierFileSystem, tmp_path: Path) -> None:
    content = np.arange(20_000_000 // 4, dtype=np.uint32).tobytes()
    (tmp_path / "a").write_bytes(content)
    moved: list[int] = []

    class Progress(fsspec.Callback):
        def relative_update(self, inc: int = 1) -> None:
            moved.append(inc)

    fs.put_file(str(tmp_path / "a"), "/deep/a", callback=Progress())
    assert fs.cat("/deep/a") == content
    assert sum(moved) == len(content)
    with pytest.raises(FileExistsError):
        fs.put_file(str(tmp_path / "a"), "/deep/a", mode="create")
    moved.clear()
    fs.get_file("/deep/a", str(tmp_path / "new" / "b"), callback=Progress())
    assert (tmp_path / "new" / "b").read_bytes() == content
    assert sum(moved) == len(content)
    out = io.BytesIO()
    fs.get_file("/deep/a", out)
    assert out.getvalue() == content
    fs.get_file("/deep", str(tmp_path / "dir"))
    assert (tmp_path / "dir").is_dir()
    with pytest.raises(FileNotFoundError):
        fs.get_file("/none", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
