"""Block descriptions to and from the wire's messages. Pure; what comes in is checked on the way."""

from __future__ import annotations

from collections.abc import Mapping

from storage_tier.errors import InvalidRequest
from storage_tier.headers import BlockInfo, Metadata, MetadataItem, clean_metadata, clean_path
from storage_tier.v1 import tier_pb2


def metadata_to_wire(metadata: Metadata) -> dict[str, tier_pb2.MetadataValue]:
    """Metadata as messages."""
    return {
        name: tier_pb2.MetadataValue(number=value) if isinstance(value, int) else tier_pb2.MetadataValue(text=value)
        for name, value in metadata.items()
    }


def metadata_from_wire(metadata: Mapping[str, tier_pb2.MetadataValue]) -> dict[str, MetadataItem]:
    """Metadata out of messages.

    Raises:
        InvalidRequest: an item without a value, or more than is kept.
    """
    items: dict[str, MetadataItem] = {}
    for name, value in metadata.items():
        kind = value.WhichOneof("value")
        if kind is None:
            raise InvalidRequest(f"metadata {name!r:.60} came without a value")
        items[name] = value.text if kind == "text" else value.number
    return clean_metadata(items)


def info_to_wire(info: BlockInfo) -> tier_pb2.BlockInfo:
    """A block's description as a message."""
    return tier_pb2.BlockInfo(
        path=info.path,
        size_bytes=info.size_bytes,
        offset_bytes=info.offset_bytes,
        created_ns=info.created_ns,
        metadata=metadata_to_wire(info.metadata),
    )


def info_from_wire(message: tier_pb2.BlockInfo) -> BlockInfo:
    """A block's description out of a message.

    Raises:
        InvalidPath, InvalidRequest: no block can be like this.
    """
    if message.size_bytes < 0 or message.offset_bytes < 0:
        raise InvalidRequest(f"a block of {message.size_bytes:,} bytes at {message.offset_bytes:,} cannot be")
    return BlockInfo(
        path=clean_path(message.path),
        size_bytes=message.size_bytes,
        offset_bytes=message.offset_bytes,
        created_ns=message.created_ns,
        metadata=metadata_from_wire(message.metadata),
    )
