"""The service `storage_tier.v1.Files` over the file layer of a server. It decides nothing and keeps no state."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc

from storage_tier.blocks import Block
from storage_tier.catalog.changes import KEEP
from storage_tier.catalog.entries import Entry
from storage_tier.catalog.observers import Attached
from storage_tier.errors import BlockNotFound, InvalidRequest, OutOfMemory, ServerFailed
from storage_tier.files import Files
from storage_tier.files.base import CommitOptions, Reservation, block_path_of
from storage_tier.headers import payload_offset_bytes
from storage_tier.server.answers import (
    attachment_to_wire,
    begin_of,
    chunks_of,
    file_to_wire,
    holder_to_wire,
    mount_to_wire,
    object_from_json,
    options_from_wire,
    page_count,
    page_to_wire,
    timeout_s_of,
    ttl_s_from_wire,
    version_of,
    write_type_from_wire,
)
from storage_tier.server.blocks import range_of
from storage_tier.server.line import NOTHING, Call, Raw, unary_calls
from storage_tier.tier import Tier
from storage_tier.under.redact import safe_url
from storage_tier.v1 import files_pb2 as pb
from storage_tier.v1 import files_pb2_grpc, tier_pb2
from storage_tier.wire import TIER_ERRORS
from storage_tier.writer import BlockWriter

MAX_CONTENT_BYTES = 4 << 20
_OPEN_TRIES = 16
# Answers of `OpenFile` that are kept, by path.
_REMEMBERED_COUNT = 256
# All blocks' names have one length, and their headers no metadata: the payload begins at the same place in each.
OFFSET_BYTES = payload_offset_bytes(block_path_of("0" * 32), {})


class FileService(files_pb2_grpc.FilesServicer):
    """Errors travel by `TIER_ERRORS`. How long a call may wait is its deadline."""

    NAME = "storage_tier.v1.Files"

    def __init__(self, tier: Tier, files: Files) -> None:
        self._tier = tier
        self._files = files
        self._header = tier_pb2.ResponseHeader(server_id=tier.server_id, epoch=tier.epoch)
        self._opened: dict[str, tuple[Entry, Path | None, pb.OpenFileResponse]] = {}

    def register(self, server: grpc.Server) -> None:
        """For `RpcServer.add(service.register, service.NAME)`."""
        files_pb2_grpc.add_FilesServicer_to_server(self, server)

    def line_calls(self) -> dict[str, Call]:
        """The same methods for the line."""
        return {
            **unary_calls(self, pb.DESCRIPTOR.services_by_name["Files"]),
            "ReadFile": Call(pb.ReadFileRequest, lambda request, context, _: self._read(request, context)),
            "SendFile": Call(pb.SendFileBegin, lambda begin, _, raw: (self._send(begin, iter(raw)), NOTHING)),
            "StageFile": Call(pb.SendFileBegin, lambda begin, _, raw: (self._stage(begin, iter(raw)), NOTHING)),
        }

    # ------------------------------------------------------------------- write

    @TIER_ERRORS.handler
    def PutFile(self, request: pb.PutFileRequest, context: grpc.ServicerContext) -> pb.PutFileResponse:
        if len(request.content) > MAX_CONTENT_BYTES:
            raise InvalidRequest(
                f"{len(request.content):,} bytes in one message, and at most {MAX_CONTENT_BYTES:,} go: use SendFile"
            )
        options = options_from_wire(request.options)
        entry = self._files.put(request.path, len(request.content), (request.content,), options)
        return pb.PutFileResponse(header=self._header, file=file_to_wire(entry))

    @TIER_ERRORS.handler
    def SendFile(self, requests: Iterator[pb.SendFileRequest], context: grpc.ServicerContext) -> pb.SendFileResponse:
        return self._send(begin_of(requests), chunks_of(requests))

    def _send(self, begin: pb.SendFileBegin, chunks: Iterator[Any]) -> pb.SendFileResponse:
        entry = self._files.put(begin.path, begin.size_bytes, chunks, options_from_wire(begin.options))
        return pb.SendFileResponse(header=self._header, file=file_to_wire(entry))

    @TIER_ERRORS.handler
    def StageFile(self, requests: Iterator[pb.SendFileRequest], context: grpc.ServicerContext) -> pb.StageFileResponse:
        return self._stage(begin_of(requests), chunks_of(requests))

    def _stage(self, begin: pb.SendFileBegin, chunks: Iterator[Any]) -> pb.StageFileResponse:
        """What a near client does by itself: a block of its bytes, linked under a reservation."""
        reserved = self._reserve(begin.path, begin.size_bytes, options_from_wire(begin.options))
        try:
            with BlockWriter(reserved.directory, reserved.block_path) as writer:
                for chunk in chunks:
                    if writer.size_bytes + len(chunk) > begin.size_bytes:
                        break
                    writer.write(chunk)
                else:
                    if writer.size_bytes == begin.size_bytes:
                        writer.commit()
                        return pb.StageFileResponse(
                            header=self._header, reservation_id=reserved.id, ttl_ms=int(reserved.ttl_s * 1000)
                        )
                writer.abort()
            raise InvalidRequest(f"{begin.path}: other than the {begin.size_bytes:,} bytes came that were announced")
        except BaseException:
            self._files.abort(reserved.id)
            raise

    @TIER_ERRORS.handler
    def CreateFile(self, request: pb.CreateFileRequest, context: grpc.ServicerContext) -> pb.CreateFileResponse:
        reserved = self._reserve(request.path, request.size_bytes, options_from_wire(request.options))
        return pb.CreateFileResponse(
            header=self._header,
            reservation_id=reserved.id,
            directory=str(reserved.directory),
            block_path=reserved.block_path,
            ttl_ms=int(reserved.ttl_s * 1000),
        )

    def _reserve(self, path: str, size_bytes: int, options: CommitOptions) -> Reservation:
        if size_bytes < 0:
            raise InvalidRequest(f"{path!r:.200}: a file cannot have {size_bytes:,} bytes")
        return self._files.create(path, OFFSET_BYTES + size_bytes, options)

    @TIER_ERRORS.handler
    def CommitFile(self, request: pb.CommitFileRequest, context: grpc.ServicerContext) -> pb.CommitFileResponse:
        entry = self._files.commit(request.reservation_id, options_from_wire(request.options))
        return pb.CommitFileResponse(header=self._header, file=file_to_wire(entry))

    @TIER_ERRORS.handler
    def CommitFiles(self, request: pb.CommitFilesRequest, context: grpc.ServicerContext) -> pb.CommitFilesResponse:
        entries = self._files.commit_all(
            [(commit.reservation_id, options_from_wire(commit.options)) for commit in request.commits]
        )
        return pb.CommitFilesResponse(header=self._header, files=[file_to_wire(entry) for entry in entries])

    @TIER_ERRORS.handler
    def AbortFile(self, request: pb.AbortFileRequest, context: grpc.ServicerContext) -> pb.AbortFileResponse:
        self._files.abort(request.reservation_id)
        return pb.AbortFileResponse(header=self._header)

    # -------------------------------------------------------------------- read

    @TIER_ERRORS.handler
    def OpenFile(self, request: pb.OpenFileRequest, context: grpc.ServicerContext) -> pb.OpenFileResponse:
        found = self._files.ensure_local(request.path, version_of(request), timeout_s=timeout_s_of(context))
        entry, file, answer = self._opened.get(request.path, (None, None, None))
        # The catalog and the tier give the same objects as long as nothing has changed.
        if answer is None or entry is not found.entry or file is not found.file:
            answer = pb.OpenFileResponse(
                header=self._header,
                file=file_to_wire(found.entry),
                local_path="" if found.file is None else str(found.file),
                block_path=found.block_path or "",
            )
            if len(self._opened) >= _REMEMBERED_COUNT:
                self._opened.clear()
            self._opened[request.path] = (found.entry, found.file, answer)
        return answer

    @TIER_ERRORS.handler
    def ReadFile(self, request: pb.ReadFileRequest, context: grpc.ServicerContext) -> Iterator[pb.ReadFileResponse]:
        first, raw = self._read(request, context)
        with raw:
            yield first
            for chunk in raw.chunks():
                yield pb.ReadFileResponse(chunk=bytes(chunk))

    def _read(self, request: pb.ReadFileRequest, context: Any) -> tuple[pb.ReadFileResponse, Raw]:
        """The first answer, and the bytes that follow."""
        deadline_s = time.monotonic() + timeout_s_of(context)
        try:
            entry, block = self._open(request, deadline_s)
        except OutOfMemory:
            found = self._files.pass_through(
                request.path, version_of(request), timeout_s=max(0.0, deadline_s - time.monotonic())
            )
            if found is None:
                raise
            start, end = range_of(request, found.entry.path, found.entry.size_bytes)
            first = pb.ReadFileResponse(header=self._header, file=file_to_wire(found.entry))
            return first, Raw(None, start, end, found.pieces(start, end))
        try:
            start, end = range_of(request, entry.path, entry.size_bytes)
            first = pb.ReadFileResponse(header=self._header, file=file_to_wire(entry))
            return first, Raw(block, start, end)
        except BaseException:
            if block is not None:
                block.close()
            raise

    def _open(self, request: pb.ReadFileRequest, deadline_s: float) -> tuple[Entry, Block | None]:
        """A version and the bytes of just that version."""
        for _ in range(_OPEN_TRIES):
            timeout_s = max(0.0, deadline_s - time.monotonic())
            located = self._files.ensure_local(request.path, version_of(request), timeout_s=timeout_s)
            if located.file is None:
                return located.entry, None
            try:
                return located.entry, Block.map(located.file, located.block_path)
            except BlockNotFound:
                continue  # replaced, or moved to the second level between the two
        raise ServerFailed(f"{request.path} was replaced or moved {_OPEN_TRIES} times in a row while it was opened")

    @TIER_ERRORS.handler
    def Stat(self, request: pb.StatFileRequest, context: grpc.ServicerContext) -> pb.StatFileResponse:
        entry = self._files.stat(request.path)
        locations: tuple[str, ...] = ()
        if request.locations and entry.block_id is not None:
            found = self._files.explain(request.path)
            entry = found.entry or entry
            locations = tuple(holder.address for holder in found.holders if holder.address)
        return pb.StatFileResponse(header=self._header, file=file_to_wire(entry, locations))

    @TIER_ERRORS.handler
    def List(self, request: pb.ListFilesRequest, context: grpc.ServicerContext) -> pb.ListFilesResponse:
        count = page_count(request.page_count)
        # One more than the page tells whether there is a next one.
        found = self._files.list(request.path, request.after_name, count + 1)
        page = page_to_wire(found, count)
        after = page[-1].path.rpartition("/")[2] if len(page) < len(found) else ""
        return pb.ListFilesResponse(header=self._header, files=page, next_after_name=after)

    @TIER_ERRORS.handler
    def Find(self, request: pb.FindFilesRequest, context: grpc.ServicerContext) -> pb.FindFilesResponse:
        count = page_count(request.page_count)
        found = self._files.find(request.path, request.after_path or None, count)
        page = page_to_wire(found, count)
        more = len(page) < len(found) or len(found) == count
        return pb.FindFilesResponse(header=self._header, files=page, next_after_path=page[-1].path if more else "")

    @TIER_ERRORS.handler
    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        found = self._files.explain(request.path)
        entry = found.entry
        return pb.ExplainResponse(
            header=self._header,
            file=None if entry is None else file_to_wire(entry),
            block_id=(entry.block_id or "") if entry is not None else "",
            route=found.route,
            holders=[holder_to_wire(holder) for holder in found.holders],
            under_url=safe_url(found.under_url) if found.under_url else "",
            sentences=found.sentences,
        )

    # --------------------------------------------------------------- namespace

    @TIER_ERRORS.handler
    def MakeDirectory(
        self, request: pb.MakeDirectoryRequest, context: grpc.ServicerContext
    ) -> pb.MakeDirectoryResponse:
        entry = self._files.make_directory(request.path, request.parents, request.exist_ok)
        return pb.MakeDirectoryResponse(header=self._header, file=file_to_wire(entry))

    @TIER_ERRORS.handler
    def Remove(self, request: pb.RemoveRequest, context: grpc.ServicerContext) -> pb.RemoveResponse:
        self._files.remove(request.path, request.expected_version if request.HasField("expected_version") else None)
        return pb.RemoveResponse(header=self._header)

    @TIER_ERRORS.handler
    def RemoveDirectory(
        self, request: pb.RemoveDirectoryRequest, context: grpc.ServicerContext
    ) -> pb.RemoveDirectoryResponse:
        self._files.remove_directory(request.path, request.recursive)
        return pb.RemoveDirectoryResponse(header=self._header)

    @TIER_ERRORS.handler
    def Rename(self, request: pb.RenameRequest, context: grpc.ServicerContext) -> pb.RenameResponse:
        entry = self._files.rename(request.source, request.target, request.overwrite, timeout_s=timeout_s_of(context))
        return pb.RenameResponse(header=self._header, file=file_to_wire(entry))

    @TIER_ERRORS.handler
    def Copy(self, request: pb.CopyRequest, context: grpc.ServicerContext) -> pb.CopyResponse:
        entry = self._files.copy(request.source, request.target, request.overwrite, timeout_s=timeout_s_of(context))
        return pb.CopyResponse(header=self._header, file=file_to_wire(entry))

    # -------------------------------------------------------------- block life

    @TIER_ERRORS.handler
    def Change(self, request: pb.ChangeRequest, context: grpc.ServicerContext) -> pb.ChangeResponse:
        entry = self._files.change(
            request.path,
            pinned=request.pinned if request.HasField("pinned") else KEEP,
            ttl_s=ttl_s_from_wire(request.ttl_ms) if request.HasField("ttl_ms") else KEEP,
        )
        return pb.ChangeResponse(header=self._header, file=file_to_wire(entry))

    @TIER_ERRORS.handler
    def Persist(self, request: pb.PersistRequest, context: grpc.ServicerContext) -> pb.PersistResponse:
        entry = self._files.persist(request.path, timeout_s=timeout_s_of(context))
        return pb.PersistResponse(header=self._header, file=file_to_wire(entry))

    @TIER_ERRORS.handler
    def Free(self, request: pb.FreeRequest, context: grpc.ServicerContext) -> pb.FreeResponse:
        return pb.FreeResponse(header=self._header, freed=self._files.free(request.path))

    @TIER_ERRORS.handler
    def Replicate(self, request: pb.ReplicateRequest, context: grpc.ServicerContext) -> pb.ReplicateResponse:
        server_ids = self._files.replicate(request.path, request.server_count, timeout_s=timeout_s_of(context))
        return pb.ReplicateResponse(header=self._header, server_ids=server_ids)

    # ---------------------------------------------------- mounts and observers

    @TIER_ERRORS.handler
    def Mount(self, request: pb.MountRequest, context: grpc.ServicerContext) -> pb.MountResponse:
        options = object_from_json(request.options_json, "options of a mount")
        made = self._files.mount(request.path, request.url, options, write_type_from_wire(request.write_type))
        return pb.MountResponse(header=self._header, mount=mount_to_wire(made.path, made.url, made.write_type))

    @TIER_ERRORS.handler
    def Unmount(self, request: pb.UnmountRequest, context: grpc.ServicerContext) -> pb.UnmountResponse:
        self._files.unmount(request.path, request.discard)
        return pb.UnmountResponse(header=self._header)

    @TIER_ERRORS.handler
    def ListMounts(self, request: pb.ListMountsRequest, context: grpc.ServicerContext) -> pb.ListMountsResponse:
        mounts = [mount_to_wire(mount.path, mount.url, mount.write_type) for mount in self._files.mounts()]
        return pb.ListMountsResponse(header=self._header, mounts=mounts)

    @TIER_ERRORS.handler
    def Attach(self, request: pb.AttachRequest, context: grpc.ServicerContext) -> pb.AttachResponse:
        parameters = object_from_json(request.parameters_json, "parameters of an observer")
        made = self._files.attach(request.directory, request.observer, parameters, request.name or None)
        return pb.AttachResponse(
            header=self._header, attachment=attachment_to_wire(made, self._states().get(_key(made)))
        )

    @TIER_ERRORS.handler
    def Detach(self, request: pb.DetachRequest, context: grpc.ServicerContext) -> pb.DetachResponse:
        self._files.detach(request.directory, request.name)
        return pb.DetachResponse(header=self._header)

    @TIER_ERRORS.handler
    def ListAttachments(
        self, request: pb.ListAttachmentsRequest, context: grpc.ServicerContext
    ) -> pb.ListAttachmentsResponse:
        states = self._states()
        found = [attachment_to_wire(one, states.get(_key(one))) for one in self._files.attachments()]
        return pb.ListAttachmentsResponse(header=self._header, attachments=found)

    def _states(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        """How the observers do on this server, by directory and name."""
        return {(str(one["directory"]), str(one["called"])): one for one in self._files.status().attachments}

    @TIER_ERRORS.handler
    def FilesStatus(self, request: pb.FilesStatusRequest, context: grpc.ServicerContext) -> pb.FilesStatusResponse:
        status = self._files.status()
        return pb.FilesStatusResponse(
            header=self._header,
            address=status.address,
            catalog_revision=status.catalog_revision,
            members=[holder_to_wire(member) for member in status.members],
            failure=status.failure,
            evicted_count=status.evicted_count,
            spilled_count=status.spilled_count,
            spilled_bytes=status.spilled_bytes,
            fetched_count=status.fetched_count,
            loaded_count=status.loaded_count,
            persister_json=json.dumps(asdict(status.persister), default=str),
        )


def _key(attached: Attached) -> tuple[str, str]:
    return attached.directory, attached.name
