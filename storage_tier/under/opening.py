"""From a URL and its options to a backend, or a sentence that says what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsspec.core import split_protocol, url_to_fs
from fsspec.registry import get_filesystem_class
from fsspec.spec import AbstractFileSystem

from storage_tier.errors import InvalidRequest, Unsupported
from storage_tier.under.base import Backend
from storage_tier.under.files import FileBackend
from storage_tier.under.objects import ObjectBackend
from storage_tier.under.redact import Redactor, safe_url

_LOCAL = ("file", "local")
# What they read may be old while what they tell about it is new.
_CACHES = ("simplecache", "filecache", "blockcache", "cached")
_EXTRAS = {"s3": "coproc[s3]", "s3a": "coproc[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


def protocol_of(url: str, shown: str) -> str:
    """The protocol of a URL that can be the root of a mount.

    Raises:
        InvalidRequest: it is no URL, or none of a root; the sentence names it as `shown`.
    """
    if not isinstance(url, str) or "://" not in url or "\0" in url:
        raise InvalidRequest(f"a mount needs a URL such as file:///data or s3://bucket/prefix, and {shown!r} was given")
    protocol = str(split_protocol(url.split("::")[0])[0] or url.split("::")[0])
    root = url.split("://", 1)[1]
    if any(segment in ("..", ".") for segment in root.split("/")):
        raise InvalidRequest(f"{shown} has '.' or '..' in it: write where it leads")
    if protocol in _CACHES:
        raise InvalidRequest(
            f"{shown}: leave {protocol}:: out, the tier is a cache itself, and one below it could be old"
        )
    if protocol in _LOCAL and not root.startswith("/"):
        raise InvalidRequest(f"{shown} is not an absolute path: write file:///data, with three slashes")
    if protocol in ("s3", "s3a", "gs", "gcs") and not root.strip("/"):
        raise InvalidRequest(f"{shown} names no bucket: write {protocol}://bucket or {protocol}://bucket/prefix")
    return protocol


def open_backend(url: str, options: Mapping[str, Any], protocol: str, redactor: Redactor) -> Backend:
    """The backend of a URL that `protocol_of` has accepted. Some libraries connect when they are made.

    Raises:
        InvalidRequest: an unknown protocol, or options that it does not take. Unsupported: a package is missing.
    """
    shown = safe_url(url)
    if protocol in _LOCAL:
        if options:
            raise InvalidRequest(f"{shown}: file: takes no options, and {sorted(options)} were given")
        return FileBackend(Path(url.split("://", 1)[1]))
    try:
        get_filesystem_class(protocol)
    except ValueError:
        raise InvalidRequest(
            f"{shown}: no filesystem is known for {protocol}://; those known are file, s3, memory and "
            "whatever fsspec has (fsspec.available_protocols())"
        ) from None
    except ImportError as error:
        install = _EXTRAS.get(protocol)
        remedy = f"pip install '{install}' on the server's host" if install else str(error)
        raise Unsupported(f"{shown}: {protocol}:// needs a package that is not installed: {remedy}") from None

    def make() -> tuple[AbstractFileSystem, str]:
        # An instance of our own: fsspec would keep a shared one, with its passwords, for ever.
        made, root = url_to_fs(url, **{**options, "skip_instance_cache": True})
        return made, root

    try:
        return ObjectBackend(protocol, make)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"{shown} cannot be opened with the options {sorted(options)}: {redactor.clean(str(error))}"
        ) from None
