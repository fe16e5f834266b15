"""Under-stores that cannot be opened: each is refused with a sentence."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path

import pytest

from storage_tier.errors import (
    InvalidRequest,
    TierError,
    UnderFailed,
    UnderNotFound,
    UnderRefused,
    UnderUnreachable,
    Unsupported,
)
from storage_tier.under.base import TEMPORARY_NAME
from storage_tier.under.store import UnderStore

from . import s3_endpoint
from .faulty_store import LONG_S, NO_RETRIES
from .s3_endpoint import S3Endpoint

s3 = s3_endpoint.s3
s3_server = s3_endpoint.s3_server


def refused(url: str, expected: type[TierError], says: str, options: dict[str, object] | None = None) -> str:
    with pytest.raises(expected, match=says) as caught, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(UnderStore(url, options))).check(writable=True, timeout_s=LONG_S)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected", "says"),
    [
        ("/data", InvalidRequest, "needs a URL"),
        ("", InvalidRequest, "needs a URL"),
        ("file://data", InvalidRequest, "three slashes"),
        ("file:///a/../b", InvalidRequest, "write where it leads"),
        ("file:///nowhere/at/all", UnderNotFound, "no such directory"),
        ("file:///dev/null", UnderNotFound, "not a directory"),
        ("nosuch://a/b", InvalidRequest, "no filesystem is known for nosuch"),
        ("s3://", InvalidRequest, "names no bucket"),
        ("simplecache::s3://bucket/p", InvalidRequest, "the tier is a cache itself"),
        ("faulty://nowhere", UnderNotFound, "no such directory"),
    ],
)
def test_a_root_that_cannot_be(url: str, expected: type[TierError], says: str) -> None:
    refused(url, expected, says)


def test_options_that_cannot_be(directory: Path) -> None:
    assert "hunter2" not in refused(f"file://{directory}", InvalidRequest, "takes no options", {"password": "hunter2"})
    options = {"key": "k" * 8, "secret": "hunter2", "asynchronous": "hunter2", "max_concurrency": 0}
    assert "hunter2" not in refused("s3://bucket", InvalidRequest, "max_concurrency", options)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    missing = {"class": "no_such_package.FileSystem", "err": "Install rarefs"}
    monkeypatch.setitem(registry.known_implementations, "s3", missing)
    monkeypatch.setitem(registry.known_implementations, "rare", missing)
    refused("s3://bucket", Unsupported, r"pip install 'coproc\[s3\]'")
    refused("rare://bucket", Unsupported, "Install rarefs")


def test_s3_that_cannot_be(s3: S3Endpoint) -> None:
    bucket = s3.make_bucket()
    refused("s3://no-such-bucket/p", UnderNotFound, "no bucket 'no-such-bucket'", s3.options)
    refused("s3://no-such-bucket", UnderNotFound, "no bucket", s3.options)
    wrong = {**s3.options, "key": "AKIDOFNOBODY"}
    assert "AKIDOFNOBODY" not in refused(f"s3://{bucket}", UnderRefused, "check the credentials", wrong)
    nobody = {**s3.options, **NO_RETRIES, "endpoint_url": "http://127.0.0.1:1"}
    refused(f"s3://{bucket}", UnderUnreachable, "may be down", nobody)
    s3.put(bucket, "an/object", b"")
    refused(f"s3://{bucket}/an/object", UnderNotFound, "not a directory", s3.options)
    s3.fault = lambda environ: ("403 Forbidden", "AccessDenied") if environ["REQUEST_METHOD"] == "PUT" else None
    refused(f"s3://{bucket}", UnderRefused, "check the credentials", s3.options)


def test_a_root_that_vanishes_is_not_made_anew(directory: Path) -> None:
    root = directory / "mounted"
    root.mkdir()
    store = UnderStore(f"file://{root}")
    store.check(writable=True)
    (root / TEMPORARY_NAME).rmdir()
    root.rmdir()
    with pytest.raises(UnderNotFound):
        store.publish("/d/a", b"1")
    with pytest.raises(UnderNotFound):
        store.make_directory("/d")
    assert not root.exists()
    store.close()


def test_a_closed_store(directory: Path) -> None:
    store = UnderStore(f"file://{directory}")
    store.close()
    store.close()
    with pytest.raises(UnderFailed, match="closed"):
        store.list()
