"""The filesystem over mounts, servers that die, several servers and refusals."""

from __future__ import annotations

import re
from pathlib import Path

import fsspec
import numpy as np
import pytest

from coproc import LocalCluster
from storage_tier.errors import MountConflict, OutOfMemory, Unauthenticated, Unreachable
from storage_tier.filesystem import TierFileSystem

from . import filesystem_cluster

cluster = filesystem_cluster.cluster
fs = filesystem_cluster.fs


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
