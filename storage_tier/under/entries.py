"""How fsspec describes an object: a dict with names that differ from library to library. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from storage_tier.errors import UnderFailed
from storage_tier.under.base import UnderInfo

_STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "crc32c", "generation", "version_id")
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "created", "creation_time")
_MAX_STAMP_COUNT = 100


def info_of(path: str, found: Mapping[str, Any]) -> UnderInfo:
    """What an entry of `info` or `ls` says, in one form.

    Raises:
        UnderFailed: a file without a size.
    """
    modified_ns = next((at for name in _TIMES if (at := _as_ns(found.get(name))) is not None), None)
    if found["type"] == "directory":
        return UnderInfo(path, True, 0, "", modified_ns)
    size_bytes = found.get("size")
    if size_bytes is None:
        raise UnderFailed("its size is not known, and only objects of a known size can be mounted")
    # Not the time where there is an ETag: a listing tells it finer than a look at the object.
    mark = next((found[name] for name in _STAMPS if found.get(name)), modified_ns)
    stamp = f"{str(mark).strip(chr(34))}-{size_bytes:x}"
    if len(stamp) > _MAX_STAMP_COUNT:
        stamp = hashlib.sha256(stamp.encode()).hexdigest()
    return UnderInfo(path, False, int(size_bytes), stamp, modified_ns)


def _as_ns(value: object) -> int | None:
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return int(moment.timestamp() * 1_000_000) * 1000
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value * 1_000_000) * 1000
    return None
