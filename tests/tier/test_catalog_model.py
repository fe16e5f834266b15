"""The namespace against a dict; several processes against each other; death in the middle of a write."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import create_engine, text

from storage_tier.catalog import Catalog
from storage_tier.catalog.errors import (
    DirectoryNotEmpty,
    PathExists,
    PathIsDirectory,
    PathNotDirectory,
    PathNotFound,
    VersionConflict,
)
from storage_tier.errors import InvalidRequest, TierError

pytest_plugins = ["tests.tier.postgres"]

NUMBERS = itertools.count()


def check_whole(url: str) -> None:
    """Ask the tables, not the program: one tree, no row without its place, no name twice."""
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, parent_id, name, kind, block_id, version FROM tier_entry")).all()
        mounts = set(connection.execute(text("SELECT entry_id FROM tier_mount")).scalars())
        observed = set(connection.execute(text("SELECT entry_id FROM tier_observer")).scalars())
        revision = connection.execute(text("SELECT revision FROM tier_catalog")).scalar_one()
    engine.dispose()
    kinds = {row.id: row.kind for row in rows}
    parents = {row.id: row.parent_id for row in rows}
    assert parents[1] == 0
    for row in rows:
        if row.id != 1:
            assert kinds.get(row.parent_id) in ("directory", "mount"), f"{row} has no directory"
            assert row.name
        steps, at = 0, row.id
        while at != 1:
            at, steps = parents[at], steps + 1
            assert steps <= len(rows), f"{row} is in a circle"
        assert (row.version > 0) == (row.kind == "file")
        assert row.version <= revision
    assert max(Counter((row.parent_id, row.name) for row in rows).values()) == 1
    assert mounts == {row.id for row in rows if row.kind == "mount"}
    assert observed <= {row.id for row in rows if row.kind != "file"}


# ------------------------------------------------------------------ against a dict


@dataclass(frozen=True)
class File:
    block_id: str
    version: int = 0


DIRECTORY = File("", -1)
# A path by what is there: the one with this number, or a name in it. Paths by chance alone almost never meet.
# And a.b sorts before a/b as text, behind it as a path.
PLACES = st.tuples(st.integers(0, 15), st.sampled_from(["", "", "a", "a.b"]))
MOSTLY = st.sampled_from([True, True, True, False])


class Model:
    """The namespace as a dict of paths. Raises what the catalog should raise."""

    def __init__(self) -> None:
        self.entries: dict[str, File] = {"": DIRECTORY}

    def below(self, path: str) -> list[str]:
        return [other for other in self.entries if other.startswith(path + "/")]

    def blocks(self) -> set[str]:
        return {file.block_id for file in self.entries.values()} - {""}

    def existing(self, path: str) -> File:
        self.parent(path)
        if path not in self.entries:
            raise PathNotFound
        return self.entries[path]

    def parent(self, path: str, make: bool = False) -> None:
        names = path.split("/")[1:-1]
        missing = []
        for depth in range(1, len(names) + 1):
            above = "/" + "/".join(names[:depth])
            if above not in self.entries:
                missing.append(above)
            elif self.entries[above] != DIRECTORY:
                raise PathNotDirectory
        if missing and not make:
            raise PathNotFound
        self.entries.update(dict.fromkeys(missing, DIRECTORY))

    def make_directory(self, path: str, parents: bool, exist_ok: bool) -> None:
        if path in self.entries:
            if self.entries[path] != DIRECTORY or not exist_ok:
                raise PathExists
            return
        self.parent(path, parents)
        self.entries[path] = DIRECTORY

    def commit(self, path: str, block_id: str, exclusive: bool, expected: int | None, parents: bool) -> None:
        found = self.entries.get(path)
        if found == DIRECTORY:
            raise PathIsDirectory
        if found and exclusive:
            raise PathExists
        if expected is not None and expected != (found.version if found else 0):
            raise VersionConflict
        self.parent(path, parents)
        self.entries[path] = File(block_id)

    def copy(self, source: str, target: str, overwrite: bool) -> None:
        file = self.existing(source)
        if file == DIRECTORY:
            raise PathIsDirectory
        if source != target:
            self.commit(target, file.block_id, not overwrite, None, False)

    def remove(self, path: str) -> None:
        if self.existing(path) == DIRECTORY:
            raise PathIsDirectory
        del self.entries[path]

    def remove_directory(self, path: str, recursive: bool) -> None:
        if self.existing(path) != DIRECTORY:
            raise PathNotDirectory
        if self.below(path) and not recursive:
            raise DirectoryNotEmpty
        for gone in [path, *self.below(path)]:
            del self.entries[gone]

    def rename(self, source: str, target: str, overwrite: bool) -> None:
        moved = self.existing(source)
        if source == target:
            return
        if moved == DIRECTORY and target.startswith(source + "/"):
            raise InvalidRequest
        self.parent(target)
        found = self.entries.get(target)
        if found:
            if not overwrite:
                raise PathExists
            if found == DIRECTORY and moved != DIRECTORY:
                raise PathIsDirectory
            if found != DIRECTORY and moved == DIRECTORY:
                raise PathNotDirectory
            if self.below(target):
                raise DirectoryNotEmpty
        for old in [source, *self.below(source)]:
            self.entries[target + old.removeprefix(source)] = self.entries.pop(old)
        if moved != DIRECTORY:
            self.entries[target] = replace(moved, version=0)


class AgainstADict(RuleBasedStateMachine):
    """Each example has a directory of its own as its root."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.catalog = catalog
        self.root = f"/example-{next(NUMBERS)}"
        catalog.namespace.make_directory(self.root)
        self.model = Model()
        self.highest: dict[str, int] = {}
        """The highest version that a commit has given each path."""

    def both(self, name: str, paths: list[str], model: tuple = (), **arguments: object) -> None:
        """Do it to both, and compare."""
        before = self.model.blocks()
        model_before = dict(self.model.entries)
        expected: type[Exception] | None = None
        try:
            getattr(self.model, name)(*paths, *model)
        except TierError as error:
            expected = type(error)
            self.model.entries = model_before
        raised: TierError | None = None
        try:
            answer = getattr(self.catalog.namespace, name)(*(self.root + path for path in paths), **arguments)
        except TierError as error:
            raised = error
        assert (type(raised) if raised else None) is expected, f"{raised!r}"
        if raised:
            return
        released = getattr(answer, "released", answer if isinstance(answer, tuple) else ())
        assert {block.block_id for block in released} == before - self.model.blocks()
        target = paths[-1]
        if (
            name in ("commit", "copy", "rename")
            and (len(paths) == 1 or paths[0] != target)
            and not answer.entry.is_directory
        ):
            version = answer.entry.version
            assert version > self.highest.get(target, 0), "a version was given twice"
            self.highest[target] = version
            self.model.entries[target] = replace(self.model.entries[target], version=version)
        elif name == "rename" and paths[0] != target:
            # The files in it bring their versions along.
            for path in self.model.below(target):
                self.highest[path] = max(self.highest.get(path, 0), self.model.entries[path].version)

    def path(self, place: tuple[int, str]) -> str:
        number, name = place
        paths = sorted(self.model.entries)
        path = paths[number % len(paths)]
        if not path or (name and path.count("/") < 3):
            path += f"/{name or 'a'}"
        return path

    @initialize()
    def begin_with_something(self) -> None:
        self.both("make_directory", ["/a/b"], (True, False), parents=True)
        for path in ("/a/a", "/a/b/a", "/b"):
            self.committed(path, False, None, False)

    def committed(self, path: str, exclusive: bool, expected: int | None, parents: bool) -> None:
        block_id = f"block-{next(NUMBERS)}"
        how = {"exclusive": exclusive, "expected_version": expected, "parents": parents}
        model = (block_id, exclusive, expected, parents)
        self.both("commit", [path], model, block_id=block_id, size_bytes=1, **how)

    @rule(place=PLACES, parents=st.booleans(), exist_ok=st.booleans())
    def make_directory(self, place: tuple[int, str], parents: bool, exist_ok: bool) -> None:
        self.both("make_directory", [self.path(place)], (parents, exist_ok), parents=parents, exist_ok=exist_ok)

    @rule(place=PLACES, exclusive=st.booleans(), parents=st.booleans(), more=st.sampled_from(["", "/x/y"]))
    def create(self, place: tuple[int, str], exclusive: bool, parents: bool, more: str) -> None:
        path = self.path(place)
        self.committed(path + more if path.count("/") < 2 else path, exclusive, None, parents)

    @rule(place=PLACES, off_by=st.sampled_from([0, 0, 0, -1, 1]))
    def compare_and_swap(self, place: tuple[int, str], off_by: int) -> None:
        path = self.path(place)
        file = self.model.entries.get(path)
        self.committed(path, False, max(0, (file.version if file else 0) + off_by), False)

    @rule(source=PLACES, to=PLACES, overwrite=MOSTLY)
    def copy(self, source: tuple[int, str], to: tuple[int, str], overwrite: bool) -> None:
        self.both("copy", [self.path(source), self.path(to)], (overwrite,), overwrite=overwrite)

    @rule(place=PLACES)
    def remove(self, place: tuple[int, str]) -> None:
        self.both("remove", [self.path(place)])

    @rule(place=PLACES, recursive=st.booleans())
    def remove_directory(self, place: tuple[int, str], recursive: bool) -> None:
        self.both("remove_directory", [self.path(place)], (recursive,), recursive=recursive)

    @rule(source=PLACES, to=PLACES, overwrite=MOSTLY)
    def rename(self, source: tuple[int, str], to: tuple[int, str], overwrite: bool) -> None:
        self.both("rename", [self.path(source), self.path(to)], (overwrite,), overwrite=overwrite)

    @rule(place=PLACES)
    def stat(self, place: tuple[int, str]) -> None:
        path = self.path(place)
        assert self.catalog.namespace.exists(self.root + path) == (path in self.model.entries)

    @invariant()
    def same_tree(self) -> None:
        found = {}
        order = []
        for entry in self.catalog.namespace.find(self.root):
            order.append(entry.path.split("/"))
            path = entry.path.removeprefix(self.root)
            found[path] = DIRECTORY if entry.is_directory else File(entry.block_id, entry.version)
        assert order == sorted(order)
        assert found == {path: file for path, file in self.model.entries.items() if path}


def test_the_namespace_behaves_like_a_dict(catalog: Catalog, catalog_url: str) -> None:
    # PostgreSQL's round trips take ten times as long, and the rules are the same.
    examples = settings().max_examples if catalog_url.startswith("sqlite") else settings().max_examples // 6
    run_state_machine_as_test(
        lambda: AgainstADict(catalog), settings=settings(max_examples=examples, stateful_step_count=40)
    )
    check_whole(catalog_url)


def test_a_long_walk_by_chance(catalog: Catalog, catalog_url: str) -> None:
    """The same against the same dict, with every step as likely as any other: it comes to where few examples do."""
    chance = random.Random(20)
    walk = AgainstADict(catalog)
    walk.begin_with_something()

    def place() -> tuple[int, str]:
        return chance.randrange(16), chance.choice(["", "", "a", "a.b"])

    for _ in range(2000 if catalog_url.startswith("sqlite") else 300):
        coin, rare = chance.random() < 0.5, chance.random() < 0.2
        step = chance.choice(["create", "swap", "make", "copy", "remove", "remove", "rename", "rename", "rmdir"])
        if step == "create":
            walk.create(place(), rare, coin, "/x/y" if rare else "")
        elif step == "swap":
            walk.compare_and_swap(place(), rare)
        elif step == "make":
            walk.make_directory(place(), coin, rare)
        elif step == "copy":
            walk.copy(place(), place(), not rare)
        elif step == "remove":
            walk.remove(place())
        elif step == "rename":
            walk.rename(place(), place(), not rare)
        else:
            walk.remove_directory(place(), rare)
        walk.same_tree()
    check_whole(catalog_url)


# ------------------------------------------------------------------ several processes

PRELUDE = """
import itertools, os, random, sys
from storage_tier.catalog import Catalog
from storage_tier.catalog.errors import *
from storage_tier.errors import TierError
url, server_id = sys.argv[1:3]
catalog = Catalog(url, timeout_s=60.0)
catalog.members.register(server_id, "")
namespace = catalog.namespace
numbers = itertools.count()
def block():
    return f"{server_id}-{os.getpid()}-{next(numbers)}"
print("ready", flush=True)
sys.stdin.readline()
"""


@contextmanager
def processes(url: str, code: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Several servers that run `code`, all from the same moment."""
    command = [sys.executable, "-c", PRELUDE + code, url]
    started = [
        subprocess.Popen([*command, f"p{number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(count)
    ]
    try:
        for process in started:
            assert process.stdout.readline() == "ready\n"
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def outputs(started: list[subprocess.Popen[str]]) -> list[str]:
    answers = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started)
    return answers


def test_one_of_several_wins(catalog: Catalog, catalog_url: str) -> None:
    """Exclusive creation, compare and swap, and rename: each has one winner a time, and the losers know."""
    rounds = 15
    namespace = catalog.namespace
    namespace.commit("/counter", "c0", 1)
    for number in range(rounds):
        namespace.commit(f"/token-{number}", f"token-{number}", 1)
    code = f"""
for number in range({rounds}):
    won = []
    for name, attempt in {{
        "exclusive": lambda: namespace.commit(f"/x-{{number}}", block(), 1, exclusive=True),
        "directory": lambda: namespace.make_directory(f"/d-{{number}}"),
        "rename": lambda: namespace.rename(f"/token-{{number}}", f"/{{server_id}}-{{number}}"),
    }}.items():
        try:
            attempt()
            print(name, number)
        except (PathExists, PathNotFound):
            pass
    while True:
        found = namespace.stat("/counter")
        try:
            namespace.commit("/counter", block(), found.size_bytes + 1, expected_version=found.version)
            break
        except VersionConflict:
            pass
"""
    with processes(catalog_url, code, 3) as started:
        lines = [line for output in outputs(started) for line in output.splitlines()]
    wins = Counter(lines)
    expected = {f"{name} {number}" for name in ("exclusive", "directory", "rename") for number in range(rounds)}
    assert wins == dict.fromkeys(expected, 1)
    counter = namespace.stat("/counter")
    assert (counter.size_bytes, counter.version) == (1 + 3 * rounds, 1 + 3 * rounds), "an increment was lost"
    assert len([entry for entry in namespace.list("/") if entry.block_id and "token" in entry.block_id]) == rounds
    check_whole(catalog_url)


def test_directories_moved_under_each_other_never_make_a_circle(catalog: Catalog, catalog_url: str) -> None:
    namespace = catalog.namespace
    for name in "abcd":
        namespace.commit(f"/{name}/file", f"file-{name}", 1, parents=True)
    code = """
random.seed(server_id)
for _ in range(60):
    directories = ["", *(entry.path for entry in namespace.find("/") if entry.is_directory)]
    source, target = random.choice(directories[1:]), random.choice(directories)
    try:
        namespace.rename(source, f"{target}/{source[-1]}")
    except TierError:
        pass
"""
    with processes(catalog_url, code, 3) as started:
        outputs(started)
    check_whole(catalog_url)
    blocks = sorted(entry.block_id for entry in namespace.find("/") if entry.block_id)
    assert blocks == [f"file-{name}" for name in "abcd"]
    assert catalog.revision() > 20


# Each round makes /pairs/N/left and right together, moves the pair, replaces one, and removes an older pair.
WRITES = """
for number in itertools.count():
    with catalog.together():
        for side in ("left", "right"):
            namespace.commit(f"/{server_id}/{number}/{side}", block(), 1, parents=True, persisted="done")
    namespace.rename(f"/{server_id}/{number}", f"/{server_id}/moved-{number}")
    with catalog.together():
        for side in ("left", "right"):
            namespace.commit(f"/{server_id}/moved-{number}/{side}", block(), 2)
    if number > 5:
        namespace.remove_directory(f"/{server_id}/moved-{number - 5}", recursive=True)
    print(number, flush=True)
"""


def test_killed_in_the_middle_of_writes(catalog: Catalog, catalog_url: str) -> None:
    namespace = catalog.namespace
    for attempt in range(3):
        with processes(catalog_url, WRITES, 2) as started:
            acknowledged = 0
            while acknowledged < attempt * 2 + 1:
                acknowledged = int(started[0].stdout.readline())
            # Wherever each of them is now.
            for process in started:
                process.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *map(int, started[0].stdout.read().split())])
        check_whole(catalog_url)
        for number in range(max(0, acknowledged - 4), acknowledged + 1):
            assert namespace.stat(f"/p0/moved-{number}/left").size_bytes == 2, "an acknowledged write is lost"
        for server_id in ("p0", "p1"):
            if not namespace.exists(f"/{server_id}"):
                continue
            for pair in namespace.list(f"/{server_id}"):
                sides = namespace.list(pair.path)
                assert [side.path.split("/")[-1] for side in sides] == ["left", "right"]
                assert sides[0].size_bytes == sides[1].size_bytes, "half of what happens together"
            # The next start finds what was released and not dropped: nothing but what entries name stays.
            with Catalog(catalog_url) as restarted:
                restarted.members.register(server_id, "")
                named = {side.block_id for side in namespace.find(f"/{server_id}") if side.block_id}
                orphans = restarted.replicas.orphans(count=100_000)
                assert not named & set(orphans)
                restarted.replicas.drop(orphans)
                assert restarted.replicas.reconcile(named) == ((), ())
                restarted.namespace.remove_directory(f"/{server_id}", recursive=True)
                restarted.replicas.drop(restarted.replicas.orphans(count=100_000))
                assert restarted.replicas.locations(named) == dict.fromkeys(named, ())
    engine = create_engine(catalog_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM tier_replica")).scalar_one() == 0, "a replica leaked"
    engine.dispose()


def test_a_stopped_process_that_wakes_up_is_fenced(catalog: Catalog, catalog_url: str) -> None:
    """It was silent, was taken for dead, a newer one took its name: not one write of the old one gets through."""
    code = """
for number in itertools.count():
    try:
        namespace.commit("/log", block(), number)
        print(number, flush=True)
    except Fenced as error:
        print("fenced", error, flush=True)
        break
"""
    with processes(catalog_url, code, 1) as (old,):
        while int(old.stdout.readline()) < 5:
            pass
        with Catalog(catalog_url, timeout_s=60.0) as new:
            assert new.members.register("p0", "").epoch == 2
            found = new.namespace.stat("/log")
            new.namespace.commit("/log", "new", 1000, expected_version=found.version)
            rest = old.communicate(timeout=60)[0].splitlines()
            assert rest[-1].startswith("fenced the server p0 has epoch 2")
            assert new.namespace.stat("/log").block_id == "new"
            assert new.namespace.stat("/log").version == found.version + 1
