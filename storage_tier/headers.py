"""A block's name, metadata and header. Pure: nothing here touches a file.

offset 0    magic, format version, length and SHA-256 of the header    64 bytes
offset 64   header: JSON with path, payload size and offset, created_ns, metadata
offset n    payload, n a multiple of 4096, to the end of the file
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storage_tier.errors import CorruptBlock, InvalidPath, InvalidRequest, TierError

FORMAT_VERSION = 1
PAGE_BYTES = 4096
MAX_HEADER_BYTES = 1 << 20
MAX_METADATA_BYTES = 64 << 10
MAX_PATH_BYTES = 2048
MAX_SEGMENT_BYTES = 255
MAX_PAYLOAD_BYTES = 1 << 50

_MAGIC = b"TIERBLK1"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What nearly all paths are: then one look tells that nothing is wrong with them.
_PLAIN = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.=+,@%~-]+)+")
PRELUDE = struct.Struct("<8sII32s16x")  # magic, format version, header bytes, SHA-256 of the header
# What nearly all headers are (`_header_json`): these are read without a parser.
_PLAIN_HEADER = re.compile(
    rb'{"path":"([^"\\]+)","payload_bytes":(0|[1-9]\d*),"payload_offset":(0|[1-9]\d*),'
    rb'"created_ns":(0|[1-9]\d*),"metadata":{}}'
)
_INT64 = range(-(1 << 63), 1 << 63)
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

MetadataItem = str | int
Metadata = Mapping[str, MetadataItem]


@dataclass(frozen=True)
class BlockInfo:
    """What a block's header says."""

    path: str
    """Name in the tier, with a leading slash."""
    size_bytes: int
    """Size of the payload."""
    offset_bytes: int
    """Where the payload begins in the file: a multiple of 4096."""
    created_ns: int
    """When it was written, in nanoseconds since 1970."""
    metadata: Metadata = field(default_factory=dict)
    """What the writer attached: strings and 64-bit integers by name."""

    @property
    def file_bytes(self) -> int:
        """Size of the whole file, header included."""
        return self.offset_bytes + self.size_bytes

    @property
    def memory_bytes(self) -> int:
        """The memory that the file takes, in whole pages: what a budget is charged."""
        return whole_pages(self.file_bytes)


def clean_path(path: str) -> str:
    """The one form of a block's path: '/a/b'. A missing leading slash is added.

    Raises:
        InvalidPath: empty, '.' or '..' or an empty segment, NUL or other control characters, not UTF-8,
            a segment over 255 bytes, more than 2048 bytes in all.
    """
    if not isinstance(path, str):
        raise InvalidPath(f"a path must be a string like '/runs/a/00003', and {path!r} was given")
    if len(path) <= MAX_SEGMENT_BYTES and _PLAIN.fullmatch(path):
        return path
    segments = path.removeprefix("/").split("/")
    for segment in segments:
        if segment in ("", ".", ".."):
            what = f"the segment {segment!r}" if segment else "an empty segment"
            raise InvalidPath(f"{_show(path)} has {what}: a path looks like '/runs/a/00003'")
        if _CONTROL.search(segment):
            raise InvalidPath(f"{_show(path)} has a control character: they are not allowed in paths")
        try:
            segment_bytes = len(segment.encode())
        except UnicodeEncodeError:
            raise InvalidPath(f"{_show(path)} cannot be written as UTF-8") from None
        if segment_bytes > MAX_SEGMENT_BYTES:
            raise InvalidPath(
                f"{_show(path)} has a segment of {segment_bytes:,} bytes, and {MAX_SEGMENT_BYTES} are allowed"
            )
    cleaned = "/" + "/".join(segments)
    if len(cleaned.encode()) > MAX_PATH_BYTES:
        raise InvalidPath(
            f"{_show(path)} has {len(cleaned.encode()):,} bytes, and {MAX_PATH_BYTES:,} are allowed in a path"
        )
    return cleaned


def clean_prefix(prefix: str) -> str:
    """The one form of a prefix: '' for everything, else a path. It ends at a segment: '/a' is none of '/ab'.

    Raises:
        InvalidPath: as `clean_path`.
    """
    if isinstance(prefix, str) and prefix.strip("/") == "" and len(prefix) <= 1:
        return ""
    return clean_path(prefix.removesuffix("/") if isinstance(prefix, str) else prefix)


def is_below(path: str, prefix: str) -> bool:
    """Whether a clean path is the block `prefix` itself or lies below it."""
    return not prefix or path == prefix or path.startswith(prefix + "/")


def clean_metadata(metadata: Metadata | None) -> dict[str, MetadataItem]:
    """A checked copy of a block's metadata.

    Raises:
        InvalidRequest: a name that is not a string, a value that is neither a string nor a 64-bit integer,
            or more than 64 KiB.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidRequest(f"metadata must be a mapping of names to values, and {metadata!r:.80} was given")
    cleaned: dict[str, MetadataItem] = {}
    total_bytes = 0
    for name, value in (metadata or {}).items():
        if not isinstance(name, str):
            raise InvalidRequest(f"metadata has the name {name!r}: names must be strings")
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise InvalidRequest(f"metadata {name!r} is a {type(value).__name__}: only strings and integers are kept")
        if isinstance(value, int) and value not in _INT64:
            raise InvalidRequest(f"metadata {name!r} does not fit into a 64-bit integer")
        try:
            total_bytes += len(name.encode()) + len(str(value).encode())
        except UnicodeEncodeError:
            raise InvalidRequest(f"metadata {name!r} cannot be written as UTF-8") from None
        cleaned[name] = str(value) if isinstance(value, str) else int(value)
    if total_bytes > MAX_METADATA_BYTES:
        raise InvalidRequest(f"metadata of {total_bytes:,} bytes: at most {MAX_METADATA_BYTES:,} are kept")
    return cleaned


def whole_pages(size_bytes: int) -> int:
    """`size_bytes` rounded up to whole pages: tmpfs gives out nothing less."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


def payload_offset_bytes(path: str, metadata: Metadata) -> int:
    """Where the payload begins, before its size is known: room for the longest header these could give."""
    if not metadata and len(path) <= MAX_SEGMENT_BYTES:
        return PAGE_BYTES  # however long the numbers are, and if each character took six bytes
    widest = BlockInfo(path, MAX_PAYLOAD_BYTES, MAX_HEADER_BYTES, _INT64[-1], metadata)
    return whole_pages(PRELUDE.size + len(_header_json(widest)))


def pack_header(info: BlockInfo) -> bytes:
    """The first bytes of a block's file, up to the end of the JSON."""
    header = _header_json(info)
    return PRELUDE.pack(_MAGIC, FORMAT_VERSION, len(header), hashlib.sha256(header).digest()) + header


def parse_header(head: bytes, file_bytes: int) -> BlockInfo:
    """The inverse of `pack_header`, over any bytes at all. `head` is the beginning of a file of `file_bytes`.

    Raises:
        CorruptBlock: not a block of this format, damaged, cut, or a size that is not the file's.
    """
    if len(head) < PRELUDE.size:
        raise CorruptBlock(f"it has {len(head)} bytes, and a block begins with {PRELUDE.size}")
    magic, version, header_bytes, digest = PRELUDE.unpack_from(head)
    if magic != _MAGIC:
        raise CorruptBlock("it does not begin as a block does")
    if version != FORMAT_VERSION:
        raise CorruptBlock(f"it has format {version}, and this program knows format {FORMAT_VERSION}")
    if header_bytes > MAX_HEADER_BYTES or PRELUDE.size + header_bytes > len(head):
        raise CorruptBlock(f"its header of {header_bytes:,} bytes is cut or too long")
    header = head[PRELUDE.size : PRELUDE.size + header_bytes]
    if hashlib.sha256(header).digest() != digest:
        raise CorruptBlock("the checksum of its header is wrong")
    try:
        plain = _PLAIN_HEADER.fullmatch(header)
        if plain is not None:
            path, *numbers = plain.groups()
            size_bytes, offset_bytes, created_ns = (_integer(int(number)) for number in numbers)
            info = BlockInfo(clean_path(path.decode()), size_bytes, offset_bytes, created_ns)
        else:
            fields = json.loads(header)
            info = BlockInfo(
                path=clean_path(fields["path"]),
                size_bytes=_integer(fields["payload_bytes"]),
                offset_bytes=_integer(fields["payload_offset"]),
                created_ns=_integer(fields["created_ns"]),
                metadata=clean_metadata(fields["metadata"]),
            )
    except (ValueError, KeyError, TypeError, RecursionError, TierError) as error:
        raise CorruptBlock(f"its header cannot be read: {type(error).__name__}: {error}") from None
    if info.offset_bytes % PAGE_BYTES or info.offset_bytes < PRELUDE.size + header_bytes:
        raise CorruptBlock(f"its payload cannot begin at {info.offset_bytes:,}")
    if info.file_bytes != file_bytes:
        raise CorruptBlock(f"its header tells of {info.file_bytes:,} bytes, and the file has {file_bytes:,}")
    return info


def block_file(root: Path, path: str) -> Path:
    """The file of a block."""
    return root / clean_path(path)[1:]


def block_name(root: Path, path: str) -> str:
    """The file of a block as text, for calls of the system: it costs a fifth of a `Path`."""
    return f"{root}{clean_path(path)}"


def _show(path: str) -> str:
    shown = repr(path)
    return shown if len(shown) <= 100 else shown[:97] + "..."


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value not in range(1 << 63):
        raise ValueError(f"{value!r:.40} is not a size or time")
    return value


def _header_json(info: BlockInfo) -> bytes:
    if not info.metadata and _PLAIN.fullmatch(info.path):
        # The same text at a third of the time: nothing in it has to be escaped.
        return (
            f'{{"path":"{info.path}","payload_bytes":{info.size_bytes},"payload_offset":{info.offset_bytes},'
            f'"created_ns":{info.created_ns},"metadata":{{}}}}'
        ).encode()
    fields = {
        "path": info.path,
        "payload_bytes": info.size_bytes,
        "payload_offset": info.offset_bytes,
        "created_ns": info.created_ns,
        "metadata": dict(info.metadata),
    }
    return _JSON.encode(fields).encode()
