"""S3 that answers with errors, stops in the middle of parts, or hangs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage_tier.errors import TierError, UnderFailed, UnderFull, UnderRefused, UnderUnreachable
from storage_tier.under import objects, transfers
from storage_tier.under.base import TEMPORARY_NAME
from storage_tier.under.store import UnderStore

from . import s3_endpoint
from .faulty_store import LONG_S, NO_RETRIES, SHORT_S, Gate, wait_until_idle
from .s3_endpoint import S3Endpoint

s3 = s3_endpoint.s3
s3_server = s3_endpoint.s3_server


@pytest.fixture
def bucket(s3: S3Endpoint) -> str:
    return s3.make_bucket()


@pytest.fixture
def store(s3: S3Endpoint, bucket: str) -> Iterator[UnderStore]:
    made = UnderStore(f"s3://{bucket}/p", {**s3.options, **NO_RETRIES}, timeout_s=LONG_S)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (("500 Internal Server Error", "InternalError"), UnderUnreachable),
        (("503 Service Unavailable", "ServiceUnavailable"), UnderUnreachable),
        (("507 Insufficient Storage", "XMinioStorageFull"), UnderFull),
        (("403 Forbidden", "QuotaExceeded"), UnderFull),
        (("403 Forbidden", "AccessDenied"), UnderRefused),
        (("403 Forbidden", "SignatureDoesNotMatch"), UnderRefused),
        (("405 Method Not Allowed", "MethodNotAllowed"), UnderRefused),
        (("400 Bad Request", "InvalidRequest"), UnderFailed),
    ],
)
def test_s3_answers_with_an_error(
    s3: S3Endpoint,
    bucket: str,
    store: UnderStore,
    answer: tuple[str, str],
    expected: type[TierError],
) -> None:
    s3.put(bucket, "p/a", b"before")
    s3.fault = lambda environ: answer if environ["REQUEST_METHOD"] == "PUT" else None
    with pytest.raises(expected, match="publishing /a") as caught:
        store.publish("/a", b"after")
    assert "answered by a test" in str(caught.value)
    assert s3.get(bucket, "p/a") == b"before"
    s3.fault = None
    store.publish("/a", b"after")
    assert s3.get(bucket, "p/a") == b"after"


@pytest.mark.parametrize("fails", ["partNumber=2", "uploadId"])
def test_s3_fails_in_the_middle_of_parts(
    s3: S3Endpoint,
    bucket: str,
    store: UnderStore,
    fails: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects, "ONE_REQUEST_BYTES", 1 << 20)
    monkeypatch.setattr(transfers, "_PART_BYTES", 5 << 20)
    s3.put(bucket, "p/a", b"before")
    verb = "PUT" if fails.startswith("part") else "POST"  # the POST completes
    s3.fault = lambda environ: (
        ("500 Internal Server Error", "InternalError")
        if environ["REQUEST_METHOD"] == verb and fails in environ["QUERY_STRING"]
        else None
    )
    with pytest.raises(UnderUnreachable):
        store.publish("/a", b"x" * (11 << 20))
    assert s3.get(bucket, "p/a") == b"before"
    assert s3.uploads(bucket) == [], "it was aborted"
    s3.fault = None
    assert store.publish("/a", b"x" * (11 << 20)).size_bytes == 11 << 20


def test_uploads_that_died(s3: S3Endpoint, bucket: str, store: UnderStore) -> None:
    for key in ("p/a", "p/b/c", "pp/a", "q"):
        s3.begin_upload(bucket, key)
    s3.put(bucket, f"p/{TEMPORARY_NAME}/1-{'0' * 32}", b"a probe of one that died")
    assert store.list() == []
    assert store.clean(older_than_s=1e12) == 0
    assert store.clean() == 3  # the endpoint says of all of them that they began in 2010
    assert s3.uploads(bucket) == ["pp/a", "q"]
    assert s3.keys(bucket) == []


def test_s3_hangs(s3: S3Endpoint, bucket: str, store: UnderStore) -> None:
    gate = Gate()
    s3.fault = lambda environ: gate() if environ["REQUEST_METHOD"] == "PUT" else None
    with pytest.raises(UnderUnreachable, match="made no progress"):
        store.publish("/a", b"first", timeout_s=SHORT_S)
    assert gate.reached.wait(LONG_S)
    with pytest.raises(UnderUnreachable, match="publishing /a hangs"):
        store.publish("/a", b"second")
    gate.opened.set()
    wait_until_idle(store)
    s3.fault = None
    store.publish("/a", b"second")
    assert s3.get(bucket, "p/a") == b"second"
