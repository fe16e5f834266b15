"""Descriptions of blocks and files to and from the wire's messages. Pure; what comes in is checked on the way."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from storage_tier.errors import InvalidRequest, ServerFailed
from storage_tier.file_info import (
    AttachmentInfo,
    Explanation,
    FileInfo,
    FileMetadata,
    FilesStatus,
    FileValue,
    Holder,
    Kind,
    MountInfo,
    Persisted,
)
from storage_tier.headers import MAX_METADATA_BYTES, BlockInfo, Metadata
from storage_tier.v1 import files_pb2, tier_pb2

KIND_TO_WIRE: dict[Kind, files_pb2.FileKind] = {
    "file": files_pb2.FILE_KIND_FILE,
    "directory": files_pb2.FILE_KIND_DIRECTORY,
    "mount": files_pb2.FILE_KIND_MOUNT,
}
PERSISTED_TO_WIRE: dict[Persisted, files_pb2.Persisted] = {
    "not_needed": files_pb2.PERSISTED_NOT_NEEDED,
    "waiting": files_pb2.PERSISTED_WAITING,
    "done": files_pb2.PERSISTED_DONE,
}
_KIND_FROM_WIRE = {number: name for name, number in KIND_TO_WIRE.items()}
_PERSISTED_FROM_WIRE = {number: name for name, number in PERSISTED_TO_WIRE.items()}


def metadata_to_wire(metadata: Metadata) -> dict[str, tier_pb2.MetadataValue]:
    """Metadata as messages."""
    return {
        name: tier_pb2.MetadataValue(number=value) if isinstance(value, int) else tier_pb2.MetadataValue(text=value)
        for name, value in metadata.items()
    }


def info_to_wire(info: BlockInfo) -> tier_pb2.BlockInfo:
    """A block's description as a message."""
    return tier_pb2.BlockInfo(
        path=info.path,
        size_bytes=info.size_bytes,
        offset_bytes=info.offset_bytes,
        created_ns=info.created_ns,
        metadata=metadata_to_wire(info.metadata),
    )


def values_to_wire(metadata: FileMetadata) -> dict[str, files_pb2.Value]:
    """A file's metadata as messages.

    Raises:
        InvalidRequest: a name that is not a string, a value that no file keeps, or more than is kept.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidRequest(f"metadata must be a mapping of names to values, and {metadata!r:.80} was given")
    items = {}
    for name, value in metadata.items():
        if not isinstance(name, str):
            raise InvalidRequest(f"metadata has the name {name!r:.80}: names must be strings")
        try:
            items[name] = _value_to_wire(value)
        except (TypeError, ValueError) as error:  # a type of no kind, too large an integer, not UTF-8
            raise InvalidRequest(
                f"metadata {name!r:.80} is a {type(value).__name__} that cannot be kept ({error}): strings, 64-bit "
                "integers, floats, bools and None are"
            ) from None
    # The server counts exactly. Here it is enough that no message becomes too large to be sent.
    size = sum(len(name) + (len(value) if isinstance(value, str) else 1) for name, value in metadata.items())
    if size > MAX_METADATA_BYTES:
        raise InvalidRequest(f"metadata of {size:,} bytes: at most {MAX_METADATA_BYTES:,} are kept")
    return items


def _value_to_wire(value: FileValue) -> files_pb2.Value:
    if isinstance(value, str):
        return files_pb2.Value(text=value)
    if isinstance(value, bool):  # before the integers, which it is one of
        return files_pb2.Value(truth=value)
    if isinstance(value, int):
        return files_pb2.Value(number=value)
    if isinstance(value, float):
        return files_pb2.Value(real=value)
    if value is None:
        return files_pb2.Value()
    raise TypeError("it is of no kind that files keep")


def values_from_wire(metadata: Mapping[str, files_pb2.Value]) -> dict[str, FileValue]:
    """A file's metadata out of messages."""
    items: dict[str, FileValue] = {}
    for name, value in metadata.items():
        kind = value.WhichOneof("value")
        items[name] = None if kind is None else getattr(value, kind)
    return items


def file_from_wire(message: files_pb2.FileInfo) -> FileInfo:
    """A file's description out of a message.

    Raises:
        ServerFailed: no file can be like this.
    """
    kind = _KIND_FROM_WIRE.get(message.kind)
    if kind is None or message.size_bytes < 0 or not message.path.startswith("/"):
        raise ServerFailed(
            f"the server describes {message.path!r:.200} as of kind {message.kind} with {message.size_bytes:,} bytes: "
            "is it another version?"
        )
    return FileInfo(
        path=message.path,
        kind=kind,
        version=message.version,
        size_bytes=message.size_bytes,
        created_ns=message.created_ns,
        modified_ns=message.modified_ns,
        metadata=values_from_wire(message.metadata) if message.metadata else {},
        pinned=message.pinned,
        persisted=_PERSISTED_FROM_WIRE.get(message.persisted, "not_needed"),
        expires_ns=message.expires_ns if message.HasField("expires_ns") else None,
        locations=tuple(message.locations),
    )


def commit_options(
    metadata: FileMetadata | None = None,
    *,
    overwrite: bool = False,
    expected_version: int | None = None,
    ttl_s: float | None = None,
    pinned: bool | None = None,
    write_type: str | None = None,
) -> files_pb2.CommitOptions:
    """How a file is to be committed, as a message.

    Raises:
        InvalidRequest: a value that cannot work.
    """
    if expected_version is not None and (
        not isinstance(expected_version, int) or expected_version not in range(1 << 63)
    ):
        raise InvalidRequest(f"a version is a number from 0 on, and {expected_version!r:.40} was expected")
    return files_pb2.CommitOptions(
        overwrite=overwrite or expected_version is not None,
        expected_version=expected_version,
        metadata=values_to_wire(metadata) if metadata else None,
        ttl_ms=ttl_to_wire(ttl_s) if ttl_s is not None else None,
        pinned=pinned,
        write_type=write_type or "",
    )


def ttl_to_wire(ttl_s: float) -> int:
    """A time to live in milliseconds.

    Raises:
        InvalidRequest: not a number above 0, or one beyond a thousand years.
    """
    if not isinstance(ttl_s, int | float) or not 0 < ttl_s < 3.2e10:
        raise InvalidRequest(f"a time to live is a number of seconds above 0, and {ttl_s!r:.40} was given")
    return max(1, int(ttl_s * 1000))


def json_object(values: Mapping[str, Any] | None, of: str) -> str:
    """A mapping as JSON, '' for none.

    Raises:
        InvalidRequest: it is no mapping, or holds what JSON cannot.
    """
    if values is None:
        return ""
    try:
        if not isinstance(values, Mapping):
            raise TypeError(f"it is a {type(values).__name__}")
        return json.dumps(dict(values), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{of} must be a mapping that JSON can hold: {error}") from None


def holder_from_wire(message: files_pb2.Holder) -> Holder:
    """A server out of a message."""
    silent_s = message.silent_ms / 1000 if message.silent_ms >= 0 else math.inf
    return Holder(message.server_id, message.address, message.here, silent_s, message.level)


def explanation_from_wire(path: str, message: files_pb2.ExplainResponse) -> Explanation:
    """An explanation out of a message."""
    return Explanation(
        path=path,
        info=file_from_wire(message.file) if message.HasField("file") else None,
        block_id=message.block_id,
        route=message.route,  # type: ignore[arg-type]
        holders=tuple(holder_from_wire(holder) for holder in message.holders),
        under_url=message.under_url,
        sentences=tuple(message.sentences),
    )


def mount_from_wire(message: files_pb2.MountInfo) -> MountInfo:
    """A mount out of a message."""
    return MountInfo(message.path, message.url, message.write_type)  # type: ignore[arg-type]


def attachment_from_wire(message: files_pb2.AttachmentInfo) -> AttachmentInfo:
    """An attachment out of a message."""
    return AttachmentInfo(
        directory=message.directory,
        name=message.name,
        observer=message.observer,
        parameters=json.loads(message.parameters_json) if message.parameters_json else {},
        state=message.state,
        failure=message.failure,
        traceback=message.traceback,
        delivered_count=message.delivered_count,
        queued_count=message.queued_count,
    )


def files_status_from_wire(message: files_pb2.FilesStatusResponse) -> FilesStatus:
    """The state of a server's files out of a message."""
    return FilesStatus(
        server_id=message.header.server_id,
        address=message.address,
        catalog_revision=message.catalog_revision,
        members=tuple(holder_from_wire(member) for member in message.members),
        failure=message.failure,
        evicted_count=message.evicted_count,
        spilled_count=message.spilled_count,
        spilled_bytes=message.spilled_bytes,
        fetched_count=message.fetched_count,
        loaded_count=message.loaded_count,
        persister=json.loads(message.persister_json or "{}"),
    )
