"""What a client asks of the servers that moves no bytes: the namespace, the life of blocks, mounts, observers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from storage_tier.client.connection import Connection
from storage_tier.errors import PathNotDirectory, PathNotFound, ServerFailed
from storage_tier.file_info import AttachmentInfo, Explanation, FileInfo, FilesStatus, MountInfo, WriteTypeName
from storage_tier.headers import clean_path
from storage_tier.messages import (
    attachment_from_wire,
    explanation_from_wire,
    file_from_wire,
    files_status_from_wire,
    json_object,
    mount_from_wire,
    ttl_to_wire,
)
from storage_tier.tier import TierStatus
from storage_tier.v1 import files_pb2 as pb
from storage_tier.v1 import tier_pb2

# Generous on purpose: a wait that ends wrongly costs more than one that ends late.
DEFAULT_TIMEOUT_S = 60.0

# Inside of `Verbs` the name `list` is its method.
Listing = list[FileInfo]
Mounted = list[MountInfo]
Attachments = list[AttachmentInfo]


def whole_path(path: str) -> str:
    """The one form of a file's path: '/a/b', '/' for the root. A slash is added before and taken from the end.

    Raises:
        InvalidPath: '.' or '..' or an empty name, NUL or another control character, not UTF-8, too long.
    """
    if isinstance(path, str) and path in ("", "/"):
        return "/"
    return clean_path(path.removesuffix("/") if isinstance(path, str) else path)


class Verbs:
    """Each a round trip or a few, over the connection of a `TierClient`, which these are a part of."""

    _connection: Connection

    def _ask(self, name: str, request: Any, timeout_s: float, again: bool = False) -> Any:
        return self._connection.call(name, request, time.monotonic() + timeout_s, again)

    def stat(self, path: str, *, locations: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S) -> FileInfo:
        """What is at a path. One round trip.

        Args:
            locations: tell the addresses of the servers that hold the bytes, too.

        Raises:
            PathNotFound, PathNotDirectory; those of the under-store and of observers.
        """
        request = pb.StatFileRequest(path=whole_path(path), locations=locations)
        return file_from_wire(self._ask("Stat", request, timeout_s, again=True).file)

    info = stat

    def exists(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """Whether something is at a path. One round trip."""
        try:
            self.stat(path, timeout_s=timeout_s)
        except (PathNotFound, PathNotDirectory):
            return False
        return True

    def list(self, path: str = "/", *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Listing:
        """The entries of a directory, by name in byte order. A round trip a thousand.

        Raises:
            PathNotFound, PathNotDirectory; those of the under-store.
        """
        path, deadline_s = whole_path(path), time.monotonic() + timeout_s
        found: Listing = []
        after_name = ""
        while True:
            request = pb.ListFilesRequest(path=path, after_name=after_name)
            response = self._connection.call("List", request, deadline_s, again=True)
            found += [file_from_wire(message) for message in response.files]
            if not response.next_after_name:
                return found
            if response.next_after_name == after_name:
                raise ServerFailed(f"the server at {self._connection.peer} lists {path} in circles")
            after_name = response.next_after_name

    def find(self, path: str = "/", *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Iterator[FileInfo]:
        """All that is below a directory, each directory before what is in it. Asks page by page, as it is consumed.

        What changes between two pages may come twice or not at all. `timeout_s` is of each page.

        Raises:
            PathNotFound, PathNotDirectory; those of the under-store.
        """
        path, after_path = whole_path(path), ""
        while True:
            request = pb.FindFilesRequest(path=path, after_path=after_path)
            response = self._ask("Find", request, timeout_s, again=True)
            yield from map(file_from_wire, response.files)
            if not response.next_after_path:
                return
            if response.next_after_path == after_path:
                raise ServerFailed(f"the server at {self._connection.peer} finds {path} in circles")
            after_path = response.next_after_path

    def explain(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Explanation:
        """Where a file's bytes are, which way a read from the server would take, and why no better one."""
        path = whole_path(path)
        return explanation_from_wire(path, self._ask("Explain", pb.ExplainRequest(path=path), timeout_s, again=True))

    # --------------------------------------------------------------- namespace

    def make_directory(
        self, path: str, parents: bool = True, exist_ok: bool = True, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> FileInfo:
        """Make a directory.

        Raises:
            PathExists, PathNotFound (no parent), PathNotDirectory; those of the under-store.
        """
        request = pb.MakeDirectoryRequest(path=whole_path(path), parents=parents, exist_ok=exist_ok)
        return file_from_wire(self._ask("MakeDirectory", request, timeout_s).file)

    def remove(self, path: str, *, expected_version: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Remove a file. Who has it open keeps its bytes.

        Raises:
            PathNotFound, PathIsDirectory, PathNotDirectory, VersionConflict; those of the under-store.
        """
        self._ask("Remove", pb.RemoveRequest(path=whole_path(path), expected_version=expected_version), timeout_s)

    delete = remove

    def remove_directory(self, path: str, recursive: bool = False, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Remove a directory, with `recursive` and all that is below it.

        Raises:
            DirectoryNotEmpty, MountConflict, PathNotFound, PathNotDirectory; those of the under-store.
        """
        self._ask("RemoveDirectory", pb.RemoveDirectoryRequest(path=whole_path(path), recursive=recursive), timeout_s)

    def delete_prefix(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Remove the file or the directory with all below it; how many files those were. '' means all. Not atomic.

        Nothing there is no error.
        """
        path = whole_path(path)
        try:
            info = self.stat(path, timeout_s=timeout_s)
            if info.kind == "file":
                self.remove(path, timeout_s=timeout_s)
                return 1
            count = sum(found.kind == "file" for found in self.find(path, timeout_s=timeout_s))
            if path != "/":
                self.remove_directory(path, recursive=True, timeout_s=timeout_s)
                return count
            for found in self.list("/", timeout_s=timeout_s):
                self.delete_prefix(found.path, timeout_s=timeout_s)
            return count
        except (PathNotFound, PathNotDirectory):
            return 0

    def rename(
        self, source: str, target: str, overwrite: bool = False, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> FileInfo:
        """Give a file or a whole directory another path. Atomic.

        Args:
            overwrite: a file may take the place of a file, a directory that of an empty directory.

        Raises:
            PathExists, PathNotFound, PathIsDirectory, PathNotDirectory, DirectoryNotEmpty, MountConflict,
            InvalidRequest, Vetoed; those of the under-store.
        """
        request = pb.RenameRequest(source=whole_path(source), target=whole_path(target), overwrite=overwrite)
        return file_from_wire(self._ask("Rename", request, timeout_s).file)

    def copy(
        self, source: str, target: str, overwrite: bool = False, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> FileInfo:
        """Publish the bytes of a file at another path too, with its metadata. No bytes move.

        Raises:
            PathExists, PathNotFound, PathIsDirectory, PathNotDirectory, Vetoed; those of the under-store.
        """
        request = pb.CopyRequest(source=whole_path(source), target=whole_path(target), overwrite=overwrite)
        return file_from_wire(self._ask("Copy", request, timeout_s).file)

    # -------------------------------------------------------------- block life

    def pin(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> FileInfo:
        """Never evict a file's bytes, until `unpin`."""
        return file_from_wire(self._ask("Change", pb.ChangeRequest(path=whole_path(path), pinned=True), timeout_s).file)

    def unpin(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> FileInfo:
        """The inverse of `pin`."""
        request = pb.ChangeRequest(path=whole_path(path), pinned=False)
        return file_from_wire(self._ask("Change", request, timeout_s).file)

    def set_ttl(self, path: str, ttl_s: float | None, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> FileInfo:
        """Remove a file in so many seconds from now; None: never."""
        request = pb.ChangeRequest(path=whole_path(path), ttl_ms=-1 if ttl_s is None else ttl_to_wire(ttl_s))
        return file_from_wire(self._ask("Change", request, timeout_s).file)

    def persist(self, path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> FileInfo:
        """Return when the under-store has a file.

        Raises:
            NotMounted, PathNotFound; DeadlineExceeded: it is tried on.
        """
        return file_from_wire(self._ask("Persist", pb.PersistRequest(path=whole_path(path)), timeout_s).file)

    def free(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """Drop the server's copy of a file's bytes; whether there was one. Nothing is lost.

        Raises:
            InvalidRequest: it is pinned, open, or nowhere else; PathNotFound, PathIsDirectory.
        """
        return bool(self._ask("Free", pb.FreeRequest(path=whole_path(path)), timeout_s).freed)

    def replicate(self, path: str, count: int, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> tuple[str, ...]:
        """Have a file's bytes on so many servers; returns the ids of all that have them."""
        request = pb.ReplicateRequest(path=whole_path(path), server_count=count)
        return tuple(self._ask("Replicate", request, timeout_s).server_ids)

    # ---------------------------------------------------- mounts and observers

    def mount(
        self,
        path: str,
        url: str,
        options: Mapping[str, Any] | None = None,
        write_type: WriteTypeName | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> MountInfo:
        """Make a path the place of an under-store that fsspec knows, after a real look at it from the server.

        Args:
            path: nothing, or an empty directory, must be there.
            options: for its filesystem; secrets stay with the servers.
            write_type: of files written below it; None for 'async_through'.

        Raises:
            MountConflict, PathExists, DirectoryNotEmpty; InvalidRequest, Unsupported; those of the under-store.
        """
        text = json_object(options, "options of a mount")
        request = pb.MountRequest(path=whole_path(path), url=url, options_json=text, write_type=write_type or "")
        return mount_from_wire(self._ask("Mount", request, timeout_s).mount)

    def unmount(self, path: str, discard: bool = False, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Take a mount point away; the under-store keeps what it has.

        Raises:
            DirectoryNotEmpty: files are only in memory, and they are not to be discarded; MountConflict.
        """
        self._ask("Unmount", pb.UnmountRequest(path=whole_path(path), discard=discard), timeout_s)

    def mounts(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Mounted:
        """All mount points, by path."""
        response = self._ask("ListMounts", pb.ListMountsRequest(), timeout_s, again=True)
        return [mount_from_wire(message) for message in response.mounts]

    def attach(
        self,
        directory: str,
        observer: str,
        parameters: Mapping[str, Any] | None = None,
        name: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> AttachmentInfo:
        """Hang an observer on a directory, by its name in the servers' registry. Blocks until it has started.

        Raises:
            PathExists: the name is taken there; PathNotFound, PathNotDirectory, InvalidRequest, ObserverFailed.
        """
        text = json_object(parameters, "parameters of an observer")
        request = pb.AttachRequest(
            directory=whole_path(directory), observer=observer, parameters_json=text, name=name or ""
        )
        return attachment_from_wire(self._ask("Attach", request, timeout_s).attachment)

    def detach(self, directory: str, name: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Take an observer off a directory.

        Raises:
            PathNotFound, PathNotDirectory.
        """
        self._ask("Detach", pb.DetachRequest(directory=whole_path(directory), name=name), timeout_s)

    def attachments(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Attachments:
        """All observers by directory and name, and how they fare on the asked server."""
        response = self._ask("ListAttachments", pb.ListAttachmentsRequest(), timeout_s, again=True)
        return [attachment_from_wire(message) for message in response.attachments]

    # ------------------------------------------------------------------ status

    def status(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> TierStatus:
        """Memory, blocks and damage of the server."""
        response = self._ask("Status", tier_pb2.StatusRequest(), timeout_s)
        return TierStatus(
            server_id=response.header.server_id,
            epoch=response.header.epoch,
            directory=response.directory,
            memory_used_bytes=response.memory_used_bytes,
            memory_limit_bytes=response.memory_limit_bytes,
            block_count=response.block_count,
            block_bytes=response.block_bytes,
            reservation_count=response.reservation_count,
            started_ns=response.started_ns,
            damaged_count=response.damaged_count,
            damaged=tuple(response.damaged),
        )

    def files_status(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> FilesStatus:
        """What the server does with files: its peers, what was evicted, fetched, loaded, and what hinders it."""
        return files_status_from_wire(self._ask("FilesStatus", pb.FilesStatusRequest(), timeout_s))
