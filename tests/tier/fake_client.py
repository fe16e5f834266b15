"""A tier in a dictionary, with the face of `TierClient`: for tests of the filesystem over it that need no server.

Every client of an address sees the same tier. What it answers and refuses is what the catalog answers and refuses.
"""

from __future__ import annotations

import itertools
import posixpath
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from storage_tier.catalog.paths import split
from storage_tier.errors import (
    DirectoryNotEmpty,
    InvalidRequest,
    PathExists,
    PathIsDirectory,
    PathNotDirectory,
    PathNotFound,
    VersionConflict,
)
from storage_tier.file_info import FileInfo
from storage_tier.writer import flat_views


@dataclass
class Tree:
    """One tier."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    entries: dict[str, FileInfo] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.entries["/"] = directory("/")


TREES: defaultdict[str, Tree] = defaultdict(Tree)


def directory(path: str) -> FileInfo:
    now_ns = time.time_ns()
    return FileInfo(path, "directory", 0, 0, now_ns, now_ns)


class View:
    """An open file."""

    def __init__(self, info: FileInfo, content: bytes) -> None:
        self.info = info
        self.data = memoryview(content)

    def close(self) -> None:
        self.data = memoryview(b"")

    def __enter__(self) -> View:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Writer:
    """A file in the making."""

    def __init__(self, client: FakeTierClient, path: str, metadata: Any, how: Mapping[str, Any]) -> None:
        self.client, self.path, self.metadata, self.how = client, path, metadata, how
        self.parts: list[bytes] = []
        self.ended = ""
        client.tree.calls.append("create")

    def write(self, *buffers: Any) -> int:
        assert not self.ended
        views = flat_views(buffers)
        self.parts += [bytes(view) for view in views]
        return sum(len(view) for view in views)

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.parts))

    def commit(self) -> FileInfo:
        assert not self.ended
        self.ended = "commit"
        return self.client._commit(self.path, b"".join(self.parts), self.metadata, **self.how)

    def abort(self) -> None:
        self.ended = self.ended or "abort"
        self.client.tree.calls.append("abort")


class FakeTierClient:
    """See the module."""

    def __init__(self, address: str, token: object = None, tls: object = None, near: bool | None = None) -> None:
        self.address = address
        self.near = near is not False

    @property
    def tree(self) -> Tree:
        return TREES[self.address]

    def close(self) -> None:
        pass

    def put(self, path: str, buffers: Any, metadata: Any = None, *, timeout_s: float = 60, **how: Any) -> FileInfo:
        self.tree.calls.append("put")
        return self._commit(path, b"".join(flat_views(buffers)), metadata, **how)

    def create(self, path: str, metadata: Any = None, *, timeout_s: float = 60, **how: Any) -> Writer:
        split(path)
        return Writer(self, path, metadata, how)

    def commit_all(self, writers: Sequence[Writer], *, timeout_s: float = 60) -> list[FileInfo]:
        self.tree.calls.append("commit_all")
        with self.tree.lock:
            before = dict(self.tree.entries), dict(self.tree.contents)
            try:
                return [writer.commit() for writer in writers]
            except BaseException:
                self.tree.entries, self.tree.contents = before
                raise

    def open(self, path: str, *, version: int | None = None, timeout_s: float = 60) -> View:
        with self.tree.lock:
            info = self._existing(path)
            if info.kind != "file":
                raise PathIsDirectory(f"{path} is a {info.kind}")
            if version is not None and version != info.version:
                raise VersionConflict(f"{path} has version {info.version}")
            return View(info, self.tree.contents[path])

    def read(
        self, path: str, offset_bytes: int, limit_bytes: int, *, version: int | None = None, timeout_s: float = 60
    ) -> memoryview:
        self.tree.calls.append("read")
        with self.open(path, version=version) as view:
            return view.data[offset_bytes : offset_bytes + limit_bytes]

    def stat(self, path: str, *, locations: bool = False, timeout_s: float = 60) -> FileInfo:
        self.tree.calls.append("stat")
        with self.tree.lock:
            info = self._existing(path)
        return replace(info, locations=("127.0.0.1:1",)) if locations and info.kind == "file" else info

    info = stat

    def list(self, path: str, *, timeout_s: float = 60) -> list[FileInfo]:
        with self.tree.lock:
            self._directory(path)
            return [one for one in self._below(path) if posixpath.dirname(one.path) == path]

    def find(self, path: str, *, timeout_s: float = 60) -> Iterator[FileInfo]:
        with self.tree.lock:
            self._directory(path)
            yield from self._below(path)

    def make_directory(
        self, path: str, parents: bool = True, exist_ok: bool = True, *, timeout_s: float = 60
    ) -> FileInfo:
        with self.tree.lock:
            split(path)
            found = self.tree.entries.get(path)
            if found is not None:
                if found.kind == "file" or not exist_ok:
                    raise PathExists(f"there is a {found.kind} at {path} already")
                return found
            self._parents(path, parents)
            self.tree.entries[path] = directory(path)
            return self.tree.entries[path]

    def remove(self, path: str, *, expected_version: int | None = None, timeout_s: float = 60) -> None:
        with self.tree.lock:
            found = self._existing(path)
            if found.kind != "file":
                raise PathIsDirectory(f"{path} is a directory, and only a file was to be removed")
            if expected_version not in (None, found.version):
                raise VersionConflict(f"{path} has another version")
            del self.tree.entries[path], self.tree.contents[path]

    def remove_directory(self, path: str, recursive: bool = False, *, timeout_s: float = 60) -> None:
        with self.tree.lock:
            self._directory(path)
            if path == "/":
                raise InvalidRequest("the root cannot be removed")
            below = self._below(path)
            if below and not recursive:
                raise DirectoryNotEmpty(f"{path} is not empty")
            for one in [path, *(info.path for info in below)]:
                del self.tree.entries[one]
                self.tree.contents.pop(one, None)

    def rename(self, source: str, target: str, overwrite: bool = False, *, timeout_s: float = 60) -> FileInfo:
        self.tree.calls.append("rename")
        with self.tree.lock:
            moved = self._existing(source)
            split(target)
            if source == target:
                return moved
            if moved.kind != "file" and target.startswith(f"{source}/"):
                raise InvalidRequest(f"{source} cannot be moved into itself")
            self._parents(target, make=False)
            there = self.tree.entries.get(target)
            if there is not None:
                if not overwrite:
                    raise PathExists(f"there is a {there.kind} at {target} already")
                if there.kind != "file" and moved.kind == "file":
                    raise PathIsDirectory(f"{target} is a directory")
                if there.kind == "file" and moved.kind != "file":
                    raise PathNotDirectory(f"{target} is a file")
                if there.kind != "file" and self._below(target):
                    raise DirectoryNotEmpty(f"{target} is not empty")
            for one in [moved, *self._below(source)]:
                path = target + one.path[len(source) :]
                self.tree.entries[path] = replace(self.tree.entries.pop(one.path), path=path)
                if one.kind == "file":
                    self.tree.contents[path] = self.tree.contents.pop(one.path)
            if moved.kind == "file":
                self.tree.entries[target] = replace(self.tree.entries[target], version=next(self.tree.versions))
            return self.tree.entries[target]

    def copy(self, source: str, target: str, overwrite: bool = False, *, timeout_s: float = 60) -> FileInfo:
        self.tree.calls.append("copy")
        with self.tree.lock:
            found = self._existing(source)
            if found.kind != "file":
                raise PathIsDirectory(f"{source} is a directory, and only files are copied")
            self._parents(target, make=False)
            return self._commit(target, self.tree.contents[source], found.metadata, overwrite=overwrite)

    def _commit(
        self,
        path: str,
        content: bytes,
        metadata: Any,
        exclusive: bool = True,
        overwrite: bool = False,
        expected_version: int | None = None,
    ) -> FileInfo:
        with self.tree.lock:
            split(path)
            found = self.tree.entries.get(path)
            if found is not None and found.kind != "file":
                raise PathIsDirectory(f"{path} is a directory")
            if found is not None and not overwrite:
                raise PathExists(f"there is a file at {path} already")
            if expected_version is not None and expected_version != (found.version if found else 0):
                raise VersionConflict(f"{path} has another version")
            self._parents(path, make=True)
            now_ns = time.time_ns()
            made = FileInfo(
                path,
                "file",
                next(self.tree.versions),
                len(content),
                found.created_ns if found else now_ns,
                now_ns,
                dict(metadata or {}),
            )
            self.tree.entries[path] = made
            self.tree.contents[path] = content
            return made

    def _parents(self, path: str, make: bool) -> None:
        parent = posixpath.dirname(path)
        found = self.tree.entries.get(parent)
        if found is None:
            if not make:
                raise PathNotFound(f"there is no directory {parent}")
            self._parents(parent, make)
            self.tree.entries[parent] = directory(parent)
        elif found.kind == "file":
            raise PathNotDirectory(f"{parent} is a file")

    def _existing(self, path: str) -> FileInfo:
        split(path)
        if path not in self.tree.entries:
            parent = posixpath.dirname(path)
            while parent not in self.tree.entries:
                parent = posixpath.dirname(parent)
            if self.tree.entries[parent].kind == "file":
                raise PathNotDirectory(f"{parent} is a file, so {path} cannot exist")
            raise PathNotFound(f"there is nothing at {path}")
        return self.tree.entries[path]

    def _directory(self, path: str) -> None:
        if self._existing(path).kind == "file":
            raise PathNotDirectory(f"{path} is a file, and a directory is needed")

    def _below(self, path: str) -> list[FileInfo]:
        prefix = path if path == "/" else f"{path}/"
        found = [info for name, info in self.tree.entries.items() if name.startswith(prefix) and name != path]
        return sorted(found, key=lambda info: info.path.split("/"))
