"""Clients of several servers with little memory against a dict: one namespace, whole bytes, no leak."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import threading
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from storage_tier.errors import (
    DirectoryNotEmpty,
    OutOfMemory,
    PathExists,
    PathIsDirectory,
    PathNotDirectory,
    PathNotFound,
    VersionConflict,
)
from storage_tier.files import CommitOptions, Files

from . import files_servers
from .files_servers import Cluster, block_files, read

cluster = files_servers.cluster

NAMES = ("a", "b", "m")
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(lambda names: "/" + "/".join(names))
SERVER = st.integers(0, 1)
REFUSED = (PathExists, PathIsDirectory, PathNotDirectory, PathNotFound, DirectoryNotEmpty)


class FilesMachine(RuleBasedStateMachine):
    """The model: path -> bytes, or None for a directory. /m is a mount whose under-store must agree."""

    @initialize()
    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"coproc-test-{os.getpid()}-", dir="/dev/shm"))
        self.lake = self.directory / "lake"
        self.lake.mkdir()
        self.cluster = Cluster(self.directory)
        self.servers = [self.cluster.start("one"), self.cluster.start("two")]
        self.servers[0].mount("/m", f"file://{self.lake}", write_type="cache_through")
        self.model: dict[str, bytes | None] = {"/m": None}
        self.count = 0

    def teardown(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.close()
            shutil.rmtree(self.directory)

    # ------------------------------------------------------------------ rules

    @rule(server=SERVER, path=PATHS, exclusive=st.booleans())
    def put(self, server: int, path: str, exclusive: bool) -> None:
        self.count += 1
        content = str(self.count).encode() * 10
        file_above = any(self.model.get(above) is not None for above in _above(path))
        refused = file_above or (path in self.model and (exclusive or self.model[path] is None))
        try:
            self.servers[server].put(path, len(content), [content], CommitOptions(exclusive=exclusive))
        except REFUSED:
            assert refused, f"{path} could have been written"
            return
        assert not refused, f"{path} should have been refused"
        for above in _above(path):
            self.model[above] = None
        self.model[path] = content

    @rule(server=SERVER, path=PATHS)
    def remove(self, server: int, path: str) -> None:
        try:
            self.servers[server].remove(path)
        except REFUSED:
            assert self.model.get(path) is None
            return
        assert self.model.pop(path) is not None

    @rule(server=SERVER, path=PATHS, recursive=st.booleans())
    def remove_directory(self, server: int, path: str, recursive: bool) -> None:
        if path == "/m":
            return
        below = [other for other in self.model if other.startswith(path + "/")]
        refused = path not in self.model or self.model[path] is not None or (below and not recursive)
        try:
            self.servers[server].remove_directory(path, recursive)
        except REFUSED:
            assert refused
            return
        assert not refused
        for other in [path, *below]:
            del self.model[other]

    @rule(server=SERVER, source=PATHS, goal=PATHS, overwrite=st.booleans())
    def rename(self, server: int, source: str, goal: str, overwrite: bool) -> None:
        if _mount(source) != _mount(goal) or "/m" in (source, goal) or goal.startswith(source + "/"):
            return
        moved = {
            path: content for path, content in self.model.items() if path == source or path.startswith(source + "/")
        }
        parent = goal.rpartition("/")[0]
        refused = not moved or (parent and (parent not in self.model or self.model[parent] is not None))
        if goal in self.model and goal != source:
            same_kind = (self.model[goal] is None) == (self.model.get(source) is None)
            empty = not any(path.startswith(goal + "/") for path in self.model)
            refused = refused or not overwrite or not same_kind or not empty
        try:
            self.servers[server].rename(source, goal, overwrite)
        except REFUSED:
            assert refused or source == goal, f"{source} -> {goal}"
            return
        assert not refused, f"{source} -> {goal} should have been refused"
        for path in moved:
            del self.model[path]
        for path, content in moved.items():
            self.model[goal + path[len(source) :]] = content

    @rule(server=SERVER, source=PATHS, goal=PATHS)
    def copy(self, server: int, source: str, goal: str) -> None:
        content = self.model.get(source)
        file_above = any(self.model.get(above) is not None for above in _above(goal))
        refused = content is None or file_above or (goal in self.model and self.model[goal] is None)
        try:
            self.servers[server].copy(source, goal, overwrite=True)
        except REFUSED:
            assert refused
            return
        assert not refused
        for above in _above(goal):
            self.model[above] = None
        self.model[goal] = content

    @rule(server=SERVER, path=PATHS)
    def read_one(self, server: int, path: str) -> None:
        try:
            found = read(self.servers[server], path)
        except REFUSED:
            assert self.model.get(path) is None
            return
        assert found == self.model[path]

    @rule(server=SERVER, path=PATHS)
    def free(self, server: int, path: str) -> None:
        if self.model.get(path) is not None and path.startswith("/m/"):
            self.servers[server].free(path)

    @rule(server=SERVER)
    def restart(self, server: int) -> None:
        name = ("one", "two")[server]
        self.cluster.stop(name)
        self.servers[server] = self.cluster.start(name)

    # -------------------------------------------------------------- invariants

    @invariant()
    def the_namespace_is_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        for files in self.servers:
            found = {entry.path: entry.kind == "file" for entry in files.find("/")}
            assert found == {path: content is not None for path, content in self.model.items()}

    @invariant()
    def the_under_store_has_its_part(self) -> None:
        if not hasattr(self, "model"):
            return
        below = {
            f"/m/{path.relative_to(self.lake)}": path for path in self.lake.rglob("*") if ".tier-tmp" not in str(path)
        }
        expected = {path: content for path, content in self.model.items() if path.startswith("/m/")}
        assert {path for path, file in below.items() if file.is_file()} == {
            path for path, content in expected.items() if content is not None
        }
        for path, content in expected.items():
            if content is not None:
                assert below[path].read_bytes() == content

    @invariant()
    def nothing_leaks(self) -> None:
        if not hasattr(self, "model"):
            return
        named = {entry.block_id for entry in self.servers[0].find("/")}
        for files in self.servers:
            files._parts.chores.watch()
            assert {path.name for path in block_files(files)} <= named


def _above(path: str) -> list[str]:
    names = path.split("/")[1:]
    return ["/" + "/".join(names[:count]) for count in range(1, len(names))]


def _mount(path: str) -> bool:
    return path == "/m" or path.startswith("/m/")


TestFiles = FilesMachine.TestCase
TestFiles.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    # Each step restarts or asks real servers: to shrink a failure takes minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_a_crowd_on_three_servers_with_little_memory(cluster: Cluster) -> None:
    servers = [cluster.start(name, memory_bytes=1 << 20) for name in ("one", "two", "three")]
    (cluster.directory / "lake").mkdir()
    servers[0].mount("/lake", f"file://{cluster.directory / 'lake'}", write_type="cache_through")
    errors: list[BaseException] = []
    expected = (PathNotFound, PathExists, PathIsDirectory, PathNotDirectory, VersionConflict, OutOfMemory)

    def client(number: int) -> None:
        chance = random.Random(number)
        for turn in range(12):
            path = f"/lake/{chance.randrange(4)}"
            files: Files = servers[chance.randrange(3)]
            try:
                act = chance.randrange(6)
                if act < 2:
                    content = bytes([number]) * (100_000 + turn)
                    files.put(path, len(content), [content])
                elif act == 2:
                    files.rename(path, f"/lake/{chance.randrange(4)}", overwrite=True)
                elif act == 3:
                    assert all(entry.size_bytes >= 100_000 for entry in files.list("/lake"))
                else:
                    assert len(set(read(files, path))) == 1, "torn"
            except expected:
                pass
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [], [str(error)[:300] for error in errors]
    for files in servers:
        files._parts.chores.watch()
        assert files._parts.tier.budget.used_bytes <= 1 << 20
    named = {entry.block_id for entry in servers[0].find("/")}
    assert {path.name for files in servers for path in block_files(files)} <= named
    for entry in servers[0].list("/lake"):
        assert len(set(read(servers[2], entry.path))) == 1
