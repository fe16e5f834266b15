"""The namespace against a dict."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

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

from .catalog_tables import check_whole

pytest_plugins = ["tests.tier.postgres"]
NUMBERS = itertools.count()


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
