"""The tier as an fsspec filesystem: `tier://HOST:PORT/path`, for every tool that speaks fsspec.

    fs = fsspec.filesystem("tier", host="127.0.0.1", port=4711)
    fs = TierFileSystem(address="coproc://a:4711,b:4711", token="...")
    pandas.read_parquet("tier://127.0.0.1:4711/tables/t.parquet")

Nothing is cached: a listing is what the catalog says at that moment, and reading maps the server's memory when it is on
this host, so there is nothing that a cache could save. Errors are those of `storage_tier.errors`, which are the builtin
ones too (FileNotFoundError, FileExistsError, ...).
"""

from __future__ import annotations

import mmap
import os
import posixpath
from collections.abc import Callable
from glob import has_magic
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.utils import isfilelike

from storage_tier.errors import InvalidRequest, MountConflict, PathExists, PathIsDirectory, Unsupported
from storage_tier.file_info import FileMetadata
from storage_tier.filesystem.lookup import TierLookup
from storage_tier.filesystem.reader import WHOLE_BYTES, Pieces, TierReader
from storage_tier.filesystem.transaction import TierTransaction
from storage_tier.filesystem.writer import CompressedWriter, TextWriter, TierWriter

# Large enough that a progress callback costs nothing, small enough that it moves.
COPY_BYTES = 16 << 20


class TierFileSystem(TierLookup):
    """The files of a tier. Any server of the address answers for any path.

    Making one does no I/O; each process connects by itself at its first call, so it can be pickled and used on both
    sides of a fork. Thread-safe, but for transactions, which are the instance's: all that any thread writes by it
    while one is open belongs to it (fsspec gives each thread an instance of its own).
    """

    transaction_type = TierTransaction

    # ----------------------------------------------------------------- reading

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: Any = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Open a version for reading, or a new one for writing.

        Args:
            path: a path or URL.
            mode: r, w or x, with b or t. x publishes only where nothing is, w the next version of what is there.
                Nobody can append or write in place: versions never change.
            compression: a name of fsspec's, or 'infer'.
            kwargs: reading, `version`: this one and no other; writing, `expected_version`: only as the successor of
                this one (0: of none), `metadata`: names to strings and numbers; encoding, errors, newline of text.

        Raises:
            PathNotFound, PathExists (x), PathIsDirectory, InvalidPath, Unsupported;
            VersionConflict: it has another version.
        """
        if mode.replace("t", "") not in ("w", "wb", "x", "xb"):
            return super().open(path, mode, block_size, cache_options, compression, **kwargs)
        text_options = {name: kwargs.pop(name) for name in ("encoding", "errors", "newline") if name in kwargs}
        made: Any = super().open(path, mode[0] + "b", block_size, cache_options, **kwargs)
        compression = get_compression(self._strip_protocol(path), compression)
        if compression is not None:
            made = CompressedWriter(compr[compression](made, mode="w"), made)
        return made if "b" in mode else TextWriter(made, **text_options)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,
        *,
        version: int | None = None,
        expected_version: int | None = None,
        metadata: FileMetadata | None = None,
        **kwargs: Any,
    ) -> TierReader | TierWriter:
        if mode == "rb":
            return TierReader(self, path, self._opened(path, version))
        if mode not in ("wb", "xb"):
            raise Unsupported(
                f"{path} cannot be opened with mode {mode!r}: a version of a file never changes, so nothing is "
                "appended or written in place. Read it and write a new version, or write more files into a directory."
            )
        if version is not None:
            raise InvalidRequest(f"{path} is opened for writing, where version= means nothing: give expected_version=")
        if mode == "xb" and self.exists(path):
            # Early, to spare the caller the work; what counts is the commit.
            raise PathExists(f"there is something at {path} already, and mode 'xb' publishes only where nothing is")
        return TierWriter(
            self,
            path,
            exclusive=mode == "xb",
            expected_version=expected_version,
            metadata=metadata,
            autocommit=autocommit,
        )

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, version: int | None = None, **kwargs: Any
    ) -> bytes:
        """The bytes of a file, or a slice of them: one copy. From another host no more than the slice is fetched."""
        path = self._strip_protocol(path)
        if not (start is None and end is None) and not self.client.near:
            size_bytes = self.client.stat(path, timeout_s=self.timeout_s).size_bytes
            begin, end, _ = slice(start, end).indices(size_bytes)
            if begin >= end:
                return b""
            return bytes(self.client.read(path, begin, end - begin, version=version, timeout_s=self.timeout_s))
        with self.client.open(path, version=version, timeout_s=self.timeout_s) as opened:
            return bytes(opened.data[start:end])

    def get_file(
        self, rpath: str, lpath: Any = None, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **kwargs: Any
    ) -> None:
        """Write a file's bytes into a local one, out of the tier's memory. A directory becomes an empty one."""
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        try:
            source = self.open(rpath, "rb", **kwargs)
        except PathIsDirectory:
            if outfile is not None:
                raise
            os.makedirs(lpath, exist_ok=True)
            return
        with source:
            callback.set_size(source.size)
            if outfile is not None:
                _pour(source, outfile, callback)
                return
            os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
            with open(lpath, "wb") as made:
                _pour(source, made, callback)

    # ----------------------------------------------------------------- writing

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        """Publish a buffer as a file: one copy. mode='create': only where nothing is, however many try it at once."""
        if self._intrans:
            with self._open_for(path, mode, **kwargs) as target:
                target.write(value)
            return
        exclusive = _exclusive(mode)
        self.client.put(
            self._strip_protocol(path),
            value,
            kwargs.get("metadata"),
            exclusive=exclusive,
            overwrite=not exclusive,
            expected_version=kwargs.get("expected_version"),
            timeout_s=self.timeout_s,
        )

    def put_file(
        self,
        lpath: str,
        rpath: str,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **kwargs: Any,
    ) -> None:
        """Publish a local file's bytes: one copy. A local directory becomes a directory."""
        if os.path.isdir(lpath):
            self.makedirs(rpath, exist_ok=True)
            return
        with open(lpath, "rb", buffering=0) as source, self._open_for(rpath, mode, **kwargs) as target:
            callback.set_size(os.fstat(source.fileno()).st_size)
            # Page-aligned, and written again and again: no allocation a piece.
            with mmap.mmap(-1, COPY_BYTES) as piece, memoryview(piece) as view:
                while count := source.readinto(view):
                    callback.relative_update(target.write(view[:count]))

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        """Publish an empty version; with `truncate=False` make the file if it is not there, and refuse else.

        Raises:
            Unsupported: a version is never newer than its commit.
        """
        if truncate:
            self.pipe_file(path, b"", **kwargs)
            return
        try:
            self.pipe_file(path, b"", mode="create", **kwargs)
        except FileExistsError:
            raise Unsupported(
                f"{self._strip_protocol(path)} exists, and the time of a version is that of its commit: it cannot be "
                "touched without writing it anew"
            ) from None

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a directory.

        Raises:
            PathExists, PathNotFound (no parent, and not `create_parents`), PathNotDirectory.
        """
        self.client.make_directory(
            self._strip_protocol(path), parents=create_parents, exist_ok=False, timeout_s=self.timeout_s
        )

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and what is missing above it."""
        self.client.make_directory(
            self._strip_protocol(path), parents=True, exist_ok=exist_ok, timeout_s=self.timeout_s
        )

    def rmdir(self, path: str) -> None:
        """Remove an empty directory.

        Raises:
            DirectoryNotEmpty, PathNotDirectory, PathNotFound.
        """
        self.client.remove_directory(self._strip_protocol(path), timeout_s=self.timeout_s)

    def rm_file(self, path: str) -> None:
        """Remove a file. Who has it open keeps its bytes."""
        self.client.remove(self._strip_protocol(path), timeout_s=self.timeout_s)

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, and with `recursive` directories: each directory as a whole, in one act.

        With `maxdepth` one by one, and a directory that has deeper ones is refused when its turn comes.

        Raises:
            PathNotFound, PathIsDirectory (without `recursive`), DirectoryNotEmpty (`maxdepth`), MountConflict.
        """
        if recursive and maxdepth is not None:
            for one in reversed(self.expand_path(path, recursive=True, maxdepth=maxdepth)):
                try:
                    self.rm_file(one)
                except PathIsDirectory:
                    self.rmdir(one)
            return
        for one in reversed(self.expand_path(path)):
            self._remove(one, recursive)

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Rename: a file or a whole directory, at once, in place of a file that may be at the target.

        Into a directory that exists, or a target with a slash at its end. Several (a list, a pattern) one by one. From
        one under-store to another it is not one act: each file is copied, then removed, if it is the same still.

        Raises:
            PathNotFound, PathExists, DirectoryNotEmpty, PathIsDirectory; MountConflict: what moves is, or has in it, a
            mount point; VersionConflict: a file was changed while it was moved, so it is at both places.
        """
        if isinstance(path1, str) and not has_magic(path1):
            moves = [(self._strip_protocol(path1), path2)]
        elif isinstance(path2, str):
            moves = [(one, f"{path2}/") for one in self.expand_path(path1)]
        else:
            moves = list(zip(map(self._strip_protocol, path1), path2, strict=True))
        for source, given in moves:
            target = self._strip_protocol(given)
            if target != source and (given.endswith("/") or self.isdir(target)):
                target = posixpath.join(target, posixpath.basename(source))
            try:
                self._with_parents(self.client.rename, source, target)
            except MountConflict:
                self._move_by_copy(source, target)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Publish a file's bytes at another path, too: no byte moves. A directory becomes an empty one.

        Raises:
            PathNotFound, PathIsDirectory (the target).
        """
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        try:
            self._with_parents(self.client.copy, source, target)
        except PathIsDirectory:
            if not self.isdir(source):
                raise
            self.makedirs(target, exist_ok=True)

    def _open_for(self, path: str, mode: str, **kwargs: Any) -> Any:
        return self.open(path, "xb" if _exclusive(mode) else "wb", **kwargs)

    def _remove(self, path: str, recursive: bool) -> None:
        if recursive and path == self.root_marker:
            for child in self.ls(path, detail=False):
                self._remove(child, recursive=True)
            return
        try:
            self.rm_file(path)
        except PathIsDirectory:
            if not recursive:
                raise
            self.client.remove_directory(path, recursive=True, timeout_s=self.timeout_s)

    def _opened(self, path: str, version: int | None) -> Any:
        if not self.client.near:
            info = self.client.stat(path, locations=True, timeout_s=self.timeout_s)
            # What no server has in memory is made or loaded first, and only then has a version to hold on to.
            if info.size_bytes > WHOLE_BYTES and info.locations and version in (None, info.version):
                return Pieces(self.client, info, self.timeout_s)
        return self.client.open(path, version=version, timeout_s=self.timeout_s)

    def _move_by_copy(self, source: str, target: str) -> None:
        found = self.find(source, withdirs=True, detail=True)
        kinds = {name: info["kind"] for name, info in found.items()}
        if "mount" in [*kinds.values(), (self._look(target) or {}).get("kind")]:
            raise MountConflict(f"{source} cannot be moved to {target}: a mount point is moved by unmount and mount")
        if kinds[source] == "directory":
            self.makedirs(target)
        for name, kind in kinds.items():
            there = target + name[len(source) :]
            if kind == "directory":
                self.makedirs(there, exist_ok=True)
                continue
            version = self.info(name)["version"]
            if not version:
                # Only the under-store has it; once it is here it has a version.
                self.cat_file(name, 0, 1)
                version = self.info(name)["version"]
            self._with_parents(self.client.copy, name, there)
            self.client.remove(name, expected_version=version or None, timeout_s=self.timeout_s)
        for name in sorted(kinds, key=len, reverse=True):
            if kinds[name] == "directory":
                self.rmdir(name)

    def _with_parents(self, act: Callable[..., Any], source: str, target: str) -> None:
        """Rename or copy; directories that are missing above the target are made, as `open` makes them."""
        try:
            act(source, target, overwrite=True, timeout_s=self.timeout_s)
        except FileNotFoundError:
            self.info(source)
            self.makedirs(self._parent(target), exist_ok=True)
            act(source, target, overwrite=True, timeout_s=self.timeout_s)


def _exclusive(mode: str) -> bool:
    if mode not in ("overwrite", "create"):
        raise InvalidRequest(f"mode is 'overwrite' or 'create', and {mode!r} was given")
    return mode == "create"


def _pour(source: TierReader, target: Any, callback: Any) -> None:
    while piece := source.read_buffer(COPY_BYTES):
        target.write(piece)
        callback.relative_update(len(piece))
