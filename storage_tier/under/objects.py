"""Any filesystem that fsspec knows as an under-store: s3://bucket/prefix, memory://, gs://, sftp://, ...

Only verbs that take one path as it is: fsspec's rm, mv, copy, get and put expand "*", "?" and "[" in names, so
that removing the object 'a*' would remove all that begin with a. Nothing is believed from a cache.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import has_magic
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.dircache import DirCache
from fsspec.spec import AbstractFileSystem

from storage_tier.errors import InvalidPath, TierError, UnderChanged, UnderFailed, UnderNotFound
from storage_tier.under import s3
from storage_tier.under.base import (
    TEMPORARY_NAME,
    Infos,
    Reader,
    Sink,
    Traits,
    UnderInfo,
    age_of_temporary_s,
    can_be_named,
    check_same,
    not_empty,
)
from storage_tier.under.calls import Call
from storage_tier.under.entries import info_of
from storage_tier.under.transfers import (
    copy_and_remove,
    move,
    publish_by_move,
    ranges,
    remove,
    remove_tree,
    stream,
    upload_parts,
)

# An object of these appears whole when its upload is complete, and directories are only parts of names.
UPLOADS_WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory"})
# What a filesystem would not take for a part of a name.
_RESERVED = {"s3": ["?versionId="], "s3a": ["?versionId="], "http": ["?", "#", "%"], "https": ["?", "#", "%"]}
# Up to this size an object goes up in one request, by one copy in memory; a larger one in parts, where that works.
ONE_REQUEST_BYTES = 64 << 20


class ObjectBackend:
    """A root in an fsspec filesystem."""

    def __init__(self, protocol: str, make: Callable[[], tuple[AbstractFileSystem, str]]) -> None:
        """Make the first instance. Some libraries connect when that is done: call it where it may hang.

        Args:
            make: a new instance and the root's path in it; called again for filesystems that aren't thread-safe.
        """
        self._protocol = protocol
        self._make = make
        self._lock = threading.Lock()
        first, root = make()
        self._root: str = str(first._strip_protocol(root)).rstrip("/")
        # fsspec makes an instance a thread of those that aren't asynchronous: they keep one connection.
        self._shared = _uncached(first) if isinstance(first, AsyncFileSystem) or protocol == "memory" else None
        self._free = [] if self._shared is not None else [_uncached(first)]
        self._flat = protocol in UPLOADS_WHOLE
        self._moves = type(first).mv is not AbstractFileSystem.mv
        self.traits = _describe(protocol, self._moves)

    def check(self) -> None:
        with self._filesystem() as fs:
            try:
                found = fs.ls(self._root, detail=True)
            except FileNotFoundError:
                if not self._flat:
                    raise UnderNotFound("there is no such directory: make it, or mount another one") from None
                self._check_bucket(fs)
                return
            if [entry["name"].strip("/") for entry in found if entry["type"] == "file"] == [self._root.strip("/")]:
                raise UnderNotFound("it is an object, not a directory: mount what it lies in")

    def info(self, path: str) -> UnderInfo:
        with self._filesystem() as fs:
            if path and self._protocol in s3.PROTOCOLS:
                return info_of(path, s3.look(fs, self._full(path)))
            return self._info(fs, path)

    def list(self, path: str) -> tuple[list[UnderInfo], int]:
        full = self._full(path)
        with self._filesystem() as fs:
            try:
                entries = fs.ls(full, detail=True)
            except FileNotFoundError:
                if path or not self._flat:
                    raise
                entries = []
            strip = fs._strip_protocol
            if len(entries) == 1 and entries[0]["type"] == "file" and strip(entries[0]["name"]) == full:
                raise UnderFailed("it is a file, not a directory")
            found: dict[str, UnderInfo] = {}
            left_out_count = 0
            for entry in entries:
                name = strip(entry["name"]).removeprefix(full).removeprefix("/")
                if not name or name == TEMPORARY_NAME:  # "dir/" is an object that stands for the directory
                    continue
                if not self._nameable(name) or entry["type"] not in ("file", "directory"):
                    left_out_count += 1
                    continue
                info = info_of(f"{path}/{name}", entry)
                # S3 can have an object "a" beside "a/b"; then `info` says that "a" is the object, and so do we.
                if name not in found or found[name].is_directory:
                    found[name] = info
            return list(found.values()), left_out_count

    def find(self, path: str, limit: int) -> Infos | None:
        if self._protocol not in s3.PROTOCOLS:
            return None
        full = self._full(path)
        with self._filesystem() as fs:
            entries, more = next(s3.pages(fs, full, limit))
        return None if more else self._tree(path, full, entries)

    def read(self, path: str, start: int, stop: int | None, stamp: str | None, sink: Sink, call: Call) -> UnderInfo:
        full = self._full(path)
        with self._filesystem() as fs:
            info = self._info(fs, path)
            if info.is_directory:
                raise UnderFailed("it is a directory")
            check_same(path, stamp, info.stamp, "is not the object that was asked for")
            end = info.size_bytes if stop is None else min(stop, info.size_bytes)
            sink.expect(end - start)
            pieces = stream(fs, full, start, end) if self._shared is None else ranges(fs, full, start, end)
            done = start
            for piece in pieces:
                if not piece or done + len(piece) > end:
                    raise UnderChanged("it has another length than a moment ago")
                sink.write(call, done - start, piece)
                call.moved()
                done += len(piece)
            if done < end:
                raise UnderChanged("it became shorter while it was read")
            # Several requests make up one object only if it was the same one before and after.
            check_same(path, info.stamp, self._info(fs, path).stamp, "changed while it was read")
            return info

    def publish(self, path: str, source: Reader, call: Call) -> UnderInfo:
        full, answer = self._full(path), None
        with self._filesystem() as fs:
            if not self._flat:
                give_name = move if self._moves else copy_and_remove
                publish_by_move(fs, self._root, full, source, call, give_name)
            elif source.size_bytes <= ONE_REQUEST_BYTES or self._protocol not in s3.PROTOCOLS:
                content = source.read(0, source.size_bytes)
                call.moved()
                answer = fs.pipe_file(full, content)
            else:
                upload_parts(fs, full, source, call)
            if self._protocol in s3.PROTOCOLS and isinstance(answer, dict) and answer.get("ETag"):
                # It says what it has made of these bytes: no look afterwards, which may find another's.
                return info_of(path, {"type": "file", "size": source.size_bytes, "ETag": answer["ETag"]})
            info = self._info(fs, path)
            if info.is_directory:
                raise UnderFailed("there is a directory of this name")
            if info.size_bytes != source.size_bytes:
                raise UnderChanged(
                    f"{source.size_bytes:,} bytes were published, and now it has {info.size_bytes:,}: "
                    "somebody else writes there too"
                )
            return info

    def remove(self, path: str) -> None:
        with self._filesystem() as fs:
            remove(fs, self._full(path))

    def rename(self, source: str, target: str, call: Call) -> None:
        old, new = self._full(source), self._full(target)
        with self._filesystem() as fs:
            info = self._info(fs, source)
            if not self._flat:
                fs.makedirs(fs._parent(new), exist_ok=True)
                # Some libraries hand a move on to one that expands names.
                if self._moves and not has_magic(old):
                    move(fs, old, new)
                    return
            if self._protocol in s3.PROTOCOLS:
                _rename_in_s3(fs, old, new, info, call)
                return
            names = fs.find(old) if info.is_directory else [old]
            for name in names:
                call.moved()
                fs.cp_file(name, new + name[len(old) :])
            for name in names:  # only now: until all of the new are there, all of the old are
                call.moved()
                remove(fs, name)
            if info.is_directory and self.traits.directories:
                remove_tree(fs, old, new)

    def make_directory(self, path: str) -> None:
        if self.traits.directories:
            with self._filesystem() as fs:
                fs.makedirs(self._full(path), exist_ok=True)

    def remove_directory(self, path: str) -> None:
        full = self._full(path)
        with self._filesystem() as fs:
            if self._protocol in s3.PROTOCOLS:
                entries, _ = next(s3.pages(fs, full, 2))
                if any(entry["name"] != full + "/" for entry in entries):
                    raise not_empty(path)
                if entries:  # some tools keep an object "dir/" for an empty directory
                    fs.rm_file(full + "/")
                return
            if not self.traits.directories:
                with contextlib.suppress(FileNotFoundError):
                    if any(entry["name"].rstrip("/") != full for entry in fs.ls(full, detail=True)):
                        raise not_empty(path)
                return
            _remove_one_directory(fs, full, path)

    def remove_tree(self, path: str, call: Call) -> None:
        full = self._full(path)
        with self._filesystem() as fs:
            if self._protocol in s3.PROTOCOLS:
                more = True
                while more:
                    entries, more = next(s3.pages(fs, full))
                    s3.remove_all(fs, [entry["name"] for entry in entries], call)
                return
            try:
                found = fs.find(full, withdirs=True, detail=True)
            except FileNotFoundError:
                return
            for name, entry in found.items():
                if entry["type"] != "directory":
                    call.moved()
                    remove(fs, name)
            if self.traits.directories:
                directories = {full, *(name for name, entry in found.items() if entry["type"] == "directory")}
                for name in sorted(directories, key=len, reverse=True):
                    call.moved()
                    _remove_one_directory(fs, name, path)

    def clean(self, older_than_s: float) -> int:
        directory = f"{self._root}/{TEMPORARY_NAME}"
        with self._filesystem() as fs:
            removed_count = s3.abort_uploads(fs, self._root, older_than_s) if self._protocol in s3.PROTOCOLS else 0
            try:
                entries = fs.ls(directory, detail=True)
            except FileNotFoundError:
                return removed_count
            for entry in entries:
                age_s = age_of_temporary_s(entry["name"].rpartition("/")[2])
                if age_s is not None and age_s >= older_than_s:
                    remove(fs, fs._strip_protocol(entry["name"]))
                    removed_count += 1
            return removed_count

    def close(self) -> None:
        with self._lock:
            closing = [*self._free, *([] if self._shared is None else [self._shared])]
            self._free = []
        for fs in closing:
            session = getattr(fs, "_s3creator", None)
            if session is not None:  # s3fs closes its connections only when it is collected
                fs.close_session(fs.loop, session)
            elif self._shared is None and callable(getattr(fs, "close", None)):
                fs.close()

    # ---------------------------------------------------------------- inside

    def _full(self, path: str) -> str:
        if mark := self._reserved(path):
            raise InvalidPath(f"{path} cannot be below {self._protocol}://, where {mark!r} has a meaning of its own")
        return (self._root + path) or "/"

    def _reserved(self, name: str) -> str:
        return next((mark for mark in _RESERVED.get(self._protocol, ()) if mark in name), "")

    def _nameable(self, name: str) -> bool:
        return can_be_named(name) and not self._reserved(name)

    @contextmanager
    def _filesystem(self) -> Iterator[AbstractFileSystem]:
        """The instance that all share, or one that is this call's alone. After an odd error it is not used again."""
        if self._shared is not None:
            yield self._shared
            return
        with self._lock:
            fs = self._free.pop() if self._free else None
        if fs is None:
            fs = _uncached(self._make()[0])
        fs.invalidate_cache()
        try:
            yield fs
        except (FileNotFoundError, FileExistsError, PermissionError, TierError):
            self._give_back(fs)
            raise
        self._give_back(fs)

    def _give_back(self, fs: AbstractFileSystem) -> None:
        with self._lock:
            self._free.append(fs)

    def _info(self, fs: AbstractFileSystem, path: str) -> UnderInfo:
        if not path and self._flat:
            return UnderInfo("", True, 0, "")
        return info_of(path, fs.info(self._full(path)))

    def _check_bucket(self, fs: AbstractFileSystem) -> None:
        """Nothing is below the root, which is fine; whether its bucket exists is asked for by itself."""
        if self._protocol == "memory":
            return
        bucket = self._root.partition("/")[0]
        try:
            fs.info(bucket)
        except FileNotFoundError:
            raise UnderNotFound(f"there is no bucket {bucket!r}: make it, or correct the URL") from None
        except PermissionError:
            # It was allowed to list below the prefix, or that would have been refused: all that is needed.
            return

    def _tree(self, path: str, full: str, entries: Iterable[Mapping[str, Any]]) -> Infos:
        """Objects of a flat store as what lies below `path`: with the directories that their names are made of."""
        files: dict[str, UnderInfo] = {}
        directories: set[str] = set()
        for entry in entries:
            *above, name = entry["name"].removeprefix(full).removeprefix("/").split("/")
            if (not path and (above or [name])[0] == TEMPORARY_NAME) or not all(map(self._nameable, above)):
                continue
            places = ["/".join([path, *above[:count]]) for count in range(1, len(above) + 1)]
            # S3 can have an object "a" beside "a/b"; then `info` says that "a" is the object, and so do we.
            if any(place in files for place in places):
                continue
            directories.update(places)
            if self._nameable(name):  # "dir/" is an object that stands for the directory
                files["/".join([path, *above, name])] = info_of("/".join([path, *above, name]), entry)
        return [UnderInfo(place, True, 0, "") for place in directories - files.keys()] + list(files.values())


def _remove_one_directory(fs: AbstractFileSystem, full: str, path: str) -> None:
    """Remove a directory that has to be empty; `path` is the one that is removed, this or above it.

    Raises:
        DirectoryNotEmpty.
    """
    with contextlib.suppress(FileNotFoundError):
        try:
            fs.rmdir(full)
        except OSError:
            # Some say why, others (SFTP) only that it failed.
            if fs.ls(full, detail=False):
                raise not_empty(path) from None
            raise


def _rename_in_s3(fs: AbstractFileSystem, old: str, new: str, info: UnderInfo, call: Call) -> None:
    sizes = {old: info.size_bytes}
    if info.is_directory:
        sizes = {entry["name"]: entry["size"] for entries, _ in s3.pages(fs, old) for entry in entries}
    for name, size_bytes in sizes.items():
        call.moved()
        s3.copy(fs, name, new + name[len(old) :], size_bytes)
    # Only now: until all of the new are there, all of the old are.
    s3.remove_all(fs, list(sizes), call)


def _uncached(fs: AbstractFileSystem) -> AbstractFileSystem:
    """A listing that began before an object was published may end after it: it must never be remembered."""
    if isinstance(getattr(fs, "dircache", None), DirCache):
        fs.dircache = DirCache(use_listings_cache=False)
    return fs


def _describe(protocol: str, moves: bool) -> Traits:
    if protocol == "memory":
        note = "Objects appear whole. They live in the server's process and end with it."
        return Traits(whole=True, atomic_rename=False, directories=True, note=note)
    if protocol in UPLOADS_WHOLE:
        note = "Objects appear whole when their upload is complete; a rename is a copy and a removal."
        return Traits(whole=True, atomic_rename=False, directories=False, note=note)
    if moves:
        note = (
            "Objects are uploaded under another name and moved; while one is replaced, readers beside the tier may "
            "find none for a moment."
        )
        return Traits(whole=True, atomic_rename=True, directories=True, note=note)
    note = (
        "This filesystem can't move: objects are uploaded under another name and copied, and readers beside the tier "
        "may see a part of one meanwhile."
    )
    return Traits(whole=False, atomic_rename=False, directories=True, note=note)
