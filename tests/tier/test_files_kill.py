"""kill -9 between every two durable acts: then every committed file is whole, none is half there, nothing leaks."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_tier import probe
from storage_tier.errors import PathNotFound
from storage_tier.files import Files

from . import files_servers
from .files_servers import LONG_S, Cluster, block_files, eventually, put, read

cluster = files_servers.cluster
pytest_plugins = ["tests.tier.postgres"]

BEFORE, AFTER = b"before" * 50_000, b"after!" * 50_000

# A process that has imported everything, and forks for each case a server that does one thing and is killed in it.
SERVERS = """
import os, signal, sys, traceback
from pathlib import Path
from storage_tier import probe
from storage_tier.catalog import Catalog
from storage_tier.files import CommitOptions, Files, FilesOptions
from storage_tier.tier import Tier
from storage_tier.under import files as _, store as _
from storage_tier.under.write_type import WriteType
from storage_tier.writer import BlockWriter

AFTER = b"after!" * 50_000
STILL = FilesOptions(heartbeat_s=1000, watch_s=1000, retry_s=1000, sweep_s=1000, dead_after_s=1000)

def act(directory, spill, what, point, catalog):
    tier = Tier(directory / "one", (2 if what.startswith("all") else 1) << 20, spill if what == "spill" else None)
    files = Files(tier, Catalog(catalog), address="coproc://one:1", options=STILL)
    files.start()

    def near(path):
        made = files.create(path, 4096 + len(AFTER))
        with BlockWriter(made.directory, made.block_path) as writer:
            writer.write(AFTER)
        files.commit(made.id)

    def all(*paths, **options):
        made = [files.create(path, 4096 + len(AFTER)) for path in paths]
        for one in made:
            with BlockWriter(one.directory, one.block_path) as writer:
                writer.write(AFTER)
        files.commit_all([(one.id, CommitOptions(**options)) for one in made])

    def put(path, **options):
        files.put(path, len(AFTER), [AFTER], CommitOptions(**options))

    def fill():
        for number in range(4):
            files.put(f"/new/{number}", 300_000, [bytes([number]) * 300_000])

    acts = {
        "near": lambda: near("/a"),
        "all": lambda: all("/a", "/new/a"),
        "all through": lambda: all("/lake/a", "/lake/new"),
        "put": lambda: put("/a"),
        "new": lambda: put("/new/a"),
        "through": lambda: put("/lake/a", write_type=WriteType.CACHE_THROUGH),
        "only through": lambda: put("/lake/a", write_type=WriteType.THROUGH),
        "async": lambda: (put("/lake/a", write_type=WriteType.ASYNC_THROUGH), files.persist("/lake/a", 30)),
        "rename": lambda: files.rename("/a", "/b"),
        "rename over": lambda: files.rename("/a", "/c", overwrite=True),
        "rename below": lambda: files.rename("/lake/a", "/lake/b"),
        "copy": lambda: files.copy("/a", "/b"),
        "remove": lambda: files.remove("/a"),
        "remove below": lambda: files.remove("/lake/a"),
        "load": lambda: files.ensure_local("/lake/strange"),
        "reload": lambda: (files.free("/lake/a"), files.ensure_local("/lake/a")),
        "free": lambda: files.free("/lake/a"),
        "evict": lambda: put("/new/b"),
        "spill": fill,
    }
    probe.watch(point, lambda: os.kill(os.getpid(), signal.SIGKILL))
    acts[what]()

for line in sys.stdin:
    directory, spill, what, point, catalog = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        try:
            act(Path(directory), Path(spill), what, point, catalog)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

KILLS = [
    *[("near", point) for point in ("commit.seal.before", "commit.seal.after", "commit.catalog.before")],
    *[("all", f"commit.{where}") for where in ("seal.before", "catalog.before", "catalog.after")],
    *[("all through", f"commit.{where}") for where in ("publish.after", "catalog.before", "catalog.after")],
    *[("put", point) for point in ("commit.seal.after", "commit.catalog.after", "release.before", "release.after")],
    *[("new", point) for point in ("commit.catalog.before", "commit.catalog.after")],
    *[("through", f"persist.publish.{when}") for when in ("before", "after")],
    *[("through", f"commit.{where}") for where in ("publish.after", "catalog.before", "catalog.after")],
    *[("only through", f"commit.{where}") for where in ("publish.after", "catalog.after")],
    *[("only through", f"evict.{where}") for where in ("catalog.before", "catalog.after", "delete.after")],
    *[("async", f"persist.{where}") for where in ("publish.before", "publish.after", "catalog.after")],
    ("rename", "rename.catalog.after"),
    *[("rename over", point) for point in ("rename.catalog.after", "release.before", "release.after")],
    *[("rename below", f"rename.{where}") for where in ("under.before", "under.after", "catalog.after")],
    *[("copy", f"commit.catalog.{when}") for when in ("before", "after")],
    ("remove", "remove.catalog.after"),
    *[("remove below", f"remove.{where}") for where in ("under.before", "under.after", "catalog.after")],
    *[("load", f"fetch.{where}") for where in ("link.after", "catalog.after")],
    *[("reload", f"fetch.{where}") for where in ("link.after", "catalog.after")],
    *[("free", f"evict.{where}") for where in ("catalog.before", "catalog.after", "delete.after")],
    *[("evict", f"evict.{where}") for where in ("catalog.before", "catalog.after", "delete.after")],
    *[("spill", f"spill.{where}") for where in ("link.after", "delete.after")],
]

# The transaction is another; what is around it is not.
POSTGRES_KILLS = [
    *[("near", f"commit.catalog.{when}") for when in ("before", "after")],
    ("all", "commit.catalog.after"),
    ("through", "commit.catalog.before"),
    ("rename over", "rename.catalog.after"),
    ("remove", "remove.catalog.after"),
    ("load", "fetch.link.after"),
    ("evict", "evict.catalog.after"),
]

# What may be at a path after its scenario; None: nothing. Everything else is as before.
ALLOWED = {
    "near": {"/a": {BEFORE, AFTER}},
    "all": {"/a": {BEFORE, AFTER}, "/new/a": {None, AFTER}},
    "all through": {"/lake/a": {BEFORE, AFTER}, "/lake/new": {None, AFTER}},
    "put": {"/a": {BEFORE, AFTER}},
    "new": {"/new/a": {None, AFTER}},
    "through": {"/lake/a": {BEFORE, AFTER}},
    "only through": {"/lake/a": {BEFORE, AFTER}},
    "async": {"/lake/a": {BEFORE, AFTER}},
    "rename": {"/a": {BEFORE, None}, "/b": {BEFORE, None}},
    "rename over": {"/a": {BEFORE, None}, "/c": {BEFORE, AFTER}},
    "rename below": {"/lake/a": {BEFORE, None}, "/lake/b": {BEFORE, None}},
    "copy": {"/b": {BEFORE, None}},
    "remove": {"/a": {BEFORE, None}},
    "remove below": {"/lake/a": {BEFORE, None}},
    "evict": {"/new/b": {AFTER, None}},
    "spill": {f"/new/{number}": {bytes([number]) * 300_000, None} for number in range(4)},
}


def test_every_point_is_killed_at() -> None:
    assert {point for _, point in KILLS} == set(probe.POINTS)


@pytest.fixture(scope="module")
def servers() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.communicate(timeout=LONG_S)


@pytest.mark.parametrize(("what", "point"), KILLS)
def test_killed(cluster: Cluster, servers: subprocess.Popen[str], tmp_path: Path, what: str, point: str) -> None:
    _check_killed(cluster, servers, tmp_path, what, point)


@pytest.mark.parametrize(("what", "point"), POSTGRES_KILLS)
def test_killed_over_postgresql(
    cluster: Cluster, postgres_url: str, servers: subprocess.Popen[str], tmp_path: Path, what: str, point: str
) -> None:
    cluster.catalog_url = postgres_url
    _check_killed(cluster, servers, tmp_path, what, point)
    cluster.close()  # before its database is emptied


def _check_killed(cluster: Cluster, servers: subprocess.Popen[str], tmp_path: Path, what: str, point: str) -> None:
    catalog = str(cluster.catalog_url)
    catalog = catalog if "://" in catalog else f"sqlite:///{catalog}"
    lake, spill = tmp_path / "lake", cluster.directory / "disk"
    lake.mkdir()
    _prepare(cluster.start(memory_bytes=1 << 20), lake, what)
    cluster.stop()

    servers.stdin.write("\t".join([str(cluster.directory), str(spill), what, point, catalog]) + "\n")
    servers.stdin.flush()
    assert int(servers.stdout.readline()) == -signal.SIGKILL, f"it never came to {point}"

    files = cluster.start(memory_bytes=2 << 20, spill=spill if what == "spill" else None)
    allowed = {"/c": {AFTER}, "/lake/a": {BEFORE}, "/lake/strange": {b"strange"}, "/a": {BEFORE}}
    if what in ("evict", "spill"):
        del allowed["/c"], allowed["/a"]
    if what == "evict":
        allowed.update({"/lake/x": {BEFORE}, "/lake/y": {BEFORE}})
    allowed.update(ALLOWED.get(what, {}))
    for path, contents in allowed.items():
        assert _content(files, path) in contents, path
    pair = ("/a", "/b") if what == "rename" else ("/lake/a", "/lake/b") if what == "rename below" else None
    if pair:
        assert any(_content(files, path) == BEFORE for path in pair), "it is at one of them at least"
    if what == "all":
        assert (
            (_content(files, "/a") == AFTER)
            == (_content(files, "/new/a") == AFTER)
            == (point == "commit.catalog.after")
        )
    known = {entry.path for entry in files.find("/") if entry.kind == "file"}
    assert known <= set(allowed)

    files._parts.persisting.submit_waiting()
    eventually(lambda: files.status().persister.pending_count == 0, "what waited is persisted")
    for path in known:
        entry = files.stat(path)
        if path.startswith("/lake/") and entry.persisted == "done":
            assert (lake / path.removeprefix("/lake/")).read_bytes() == _content(files, path)
    _check_nothing_leaks(files, lake, spill)


def _prepare(files: Files, lake: Path, what: str) -> None:
    (lake / "strange").write_bytes(b"strange")
    files.mount("/lake", f"file://{lake}", write_type="cache_through")
    put(files, "/lake/a", BEFORE)
    if what not in ("evict", "spill"):
        put(files, "/a", BEFORE)
        put(files, "/c", AFTER)
    if what == "evict":
        files.ensure_local("/lake/strange")
        put(files, "/lake/x", BEFORE)
        put(files, "/lake/y", BEFORE)


def _content(files: Files, path: str) -> bytes | None:
    try:
        return read(files, path)
    except PathNotFound:
        return None


def _check_nothing_leaks(files: Files, lake: Path, spill: Path) -> None:
    here = [*files._parts.tier.blocks, *files._parts.tier.spilled]
    assert len(here) == len(set(here)), "a block is on one level"
    named = {entry.block_id for entry in files.find("/") if entry.block_id}
    spilled = [path for path in spill.rglob("*") if path.is_file()] if spill.exists() else []
    on_disk = [path.name for path in (*block_files(files), *spilled)]
    assert sorted(on_disk) == sorted(path.rpartition("/")[2] for path in here)
    assert set(on_disk) <= named, "bytes without a name"
    assert files._parts.tier.budget.used_bytes == sum(info.memory_bytes for info in files._parts.tier.blocks.values())
    assert files._parts.catalog.replicas.reconcile([path.rpartition("/")[2] for path in here]) == ((), ())
    assert [path for path in lake.rglob(".tier-tmp/*") if path.is_file()] == []
    assert {path.name for path in files._parts.tier.directory.iterdir()} <= {
        "lock",
        "identity.json",
        "nonce",
        "blocks",
    }
