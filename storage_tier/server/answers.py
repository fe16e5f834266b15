"""What the file layer gives and takes, as messages. Pure; what comes in is checked on the way."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import grpc

from storage_tier.catalog.entries import Entry
from storage_tier.catalog.observers import Attached
from storage_tier.errors import InvalidRequest
from storage_tier.files.base import CommitOptions, Holder
from storage_tier.messages import KIND_TO_WIRE, PERSISTED_TO_WIRE, values_from_wire, values_to_wire
from storage_tier.under.redact import safe_url
from storage_tier.under.write_type import WriteType
from storage_tier.v1 import files_pb2 as pb

MAX_PAGE_COUNT = 1000
# Metadata may be 64 KiB a file: a page ends here even when it has few entries.
MAX_PAGE_BYTES = 1 << 20
# What a call may take whose caller sets no deadline.
DEFAULT_TIMEOUT_S = 60.0
# Left of a caller's deadline for a sentence to come back.
MARGIN_S = 0.25


def file_to_wire(entry: Entry, locations: tuple[str, ...] = ()) -> pb.FileInfo:
    """An entry of the catalog as a message."""
    return pb.FileInfo(
        path=entry.path,
        kind=KIND_TO_WIRE[entry.kind],
        version=entry.version,
        size_bytes=entry.size_bytes,
        created_ns=entry.created_ns,
        modified_ns=entry.modified_ns,
        metadata=values_to_wire(entry.metadata) if entry.metadata else None,
        pinned=entry.pinned,
        persisted=PERSISTED_TO_WIRE[entry.persisted],
        expires_ns=entry.expires_ns,
        locations=locations,
    )


def options_from_wire(message: pb.CommitOptions) -> CommitOptions:
    """How a file is to be committed.

    Raises:
        InvalidRequest: a value that cannot work.
    """
    return CommitOptions(
        exclusive=not message.overwrite,
        expected_version=message.expected_version if message.HasField("expected_version") else None,
        parents=not message.existing_parents,
        metadata=values_from_wire(message.metadata) if message.metadata else None,
        ttl_s=ttl_s_from_wire(message.ttl_ms) if message.HasField("ttl_ms") else None,
        pinned=message.pinned if message.HasField("pinned") else None,
        write_type=write_type_from_wire(message.write_type),
    )


def ttl_s_from_wire(ttl_ms: int) -> float | None:
    """A time to live in seconds; None for no end.

    Raises:
        InvalidRequest: it is over at once.
    """
    if ttl_ms == 0:
        raise InvalidRequest("a time to live of 0 seconds: remove the file")
    return ttl_ms / 1000 if ttl_ms > 0 else None


def write_type_from_wire(name: str) -> WriteType | None:
    """A write type by its name; None for ''.

    Raises:
        InvalidRequest: there is none of this name.
    """
    try:
        return WriteType(name) if name else None
    except ValueError:
        known = ", ".join(kind.value for kind in WriteType)
        raise InvalidRequest(f"a write type is one of {known}, and {name!r:.40} was given") from None


def version_of(request: pb.OpenFileRequest | pb.ReadFileRequest) -> int | None:
    """The version that is asked for; None for the newest."""
    return request.version if request.HasField("version") else None


def timeout_s_of(context: grpc.ServicerContext) -> float:
    """How long a call may wait, so that its caller is still there for the answer."""
    left_s = context.time_remaining()
    if left_s is None or left_s > 1e9:
        return DEFAULT_TIMEOUT_S
    return float(max(left_s - MARGIN_S, left_s / 2, 0.0))


def page_count(wanted_count: int) -> int:
    """How many entries a page has at most.

    Raises:
        InvalidRequest: fewer than none are wanted.
    """
    if wanted_count < 0:
        raise InvalidRequest(f"a page cannot have {wanted_count} entries")
    return min(wanted_count or MAX_PAGE_COUNT, MAX_PAGE_COUNT)


def page_to_wire(found: list[Entry], count: int) -> list[pb.FileInfo]:
    """The first entries, at most `count`, and as many as fit into a message."""
    page: list[pb.FileInfo] = []
    page_bytes = 0
    for entry in found[:count]:
        message = file_to_wire(entry)
        page_bytes += message.ByteSize()
        if page and page_bytes > MAX_PAGE_BYTES:
            break
        page.append(message)
    return page


def object_from_json(text: str, of: str) -> dict[str, Any] | None:
    """A JSON object; None for ''.

    Raises:
        InvalidRequest: it is none.
    """
    if not text:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{of} must be a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{of} must be a JSON object, and a {type(found).__name__} was given")
    return found


def holder_to_wire(holder: Holder) -> pb.Holder:
    """A server as a message."""
    silent_ms = int(holder.silent_s * 1000) if math.isfinite(holder.silent_s) else -1
    return pb.Holder(
        server_id=holder.server_id,
        address=holder.address,
        here=holder.here,
        silent_ms=silent_ms,
        level=holder.level or "",
    )


def mount_to_wire(path: str, url: str, write_type: str) -> pb.MountInfo:
    """A mount as a message, without secrets."""
    return pb.MountInfo(path=path, url=safe_url(url), write_type=write_type)


def attachment_to_wire(attached: Attached, state: Mapping[str, Any] | None) -> pb.AttachmentInfo:
    """An attachment as a message, with how it does on this server if it runs here."""
    known = state or {}
    return pb.AttachmentInfo(
        directory=attached.directory,
        name=attached.name,
        observer=attached.observer,
        parameters_json=json.dumps(dict(attached.parameters)),
        state=str(known.get("state", "")),
        failure=str(known.get("failure", "")),
        traceback=str(known.get("traceback", "")) or attached.failure or "",
        delivered_count=int(known.get("delivered_count", 0)),
        queued_count=int(known.get("queued_count", 0)),
    )


def begin_of(requests: Iterator[pb.SendFileRequest]) -> pb.SendFileBegin:
    """What a stream of bytes begins with.

    Raises:
        InvalidRequest: it does not.
    """
    first = next(requests, None)
    if first is None or first.WhichOneof("part") != "begin":
        raise InvalidRequest("the first message of SendFile must say what begins: path, size, options")
    return first.begin


def chunks_of(requests: Iterator[pb.SendFileRequest]) -> Iterator[bytes]:
    """The bytes of a stream that has begun.

    Raises:
        InvalidRequest: it begins again.
    """
    for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidRequest("after the first message of SendFile nothing but chunks may come")
        yield request.chunk
