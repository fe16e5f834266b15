"""What an under-store says: few kinds of errors out of many, and never a secret."""

from __future__ import annotations

import errno
import logging
import socket
import traceback

import fsspec
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from fsspec import AbstractFileSystem
from fsspec.exceptions import FSTimeoutError
from s3fs.errors import translate_boto_error

from storage_tier import errors
from storage_tier.errors import (
    InvalidPath,
    TierError,
    UnderError,
    UnderFailed,
    UnderFull,
    UnderNotFound,
    UnderRefused,
    UnderUnreachable,
)
from storage_tier.under.failures import classify, translate
from storage_tier.under.redact import Redactor, safe_url
from storage_tier.under.store import UnderStore

SECRETS = ["hunter2hunter2", "s3cr3t/+=", "tok.en-value", "p@ss%20word", "nested-secret", "x9"]
OPTIONS = {
    "key": SECRETS[0],
    "secret": SECRETS[1],
    "token": {"any": [SECRETS[2]]},
    "password": SECRETS[3],
    "client_kwargs": {"aws_secret_access_key": SECRETS[4], "region_name": "us-east-1"},
    "pin": SECRETS[5],
    "endpoint_url": "http://user:inurl@127.0.0.1:1",
}


class Leaky(AbstractFileSystem):
    """Tells all that it knows in each of its errors."""

    protocol = "leaky"
    cachable = False

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def ls(self, path: str, detail: bool = True, **kwargs: object) -> list[object]:
        raise self.error()

    info = mkdir = makedirs = rm_file = cp_file = _open = rmdir = ls

    def error(self) -> Exception:
        raise ConnectionError(f"no answer to {self.options} for leaky://me:inurl2@host/?sig=inquery {SECRETS}")


class Sealed(Leaky):
    protocol = "sealed"

    def __init__(self, **options: object) -> None:
        raise TypeError(f"unexpected {options}")


for kind in (Leaky, Sealed):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)


def client_error(code: str, status: int) -> ClientError:
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "PutObject")


class HttpError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__("http")
        self.status = status


class DefaultCredentialsError(Exception):
    """As google.auth has it."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError("/a"), UnderNotFound),
        (OSError(errno.ENOENT, "x"), UnderNotFound),
        (client_error("NoSuchBucket", 404), UnderFailed),  # as it comes from s3fs it is a FileNotFoundError
        (translate_boto_error(client_error("NoSuchBucket", 404)), UnderNotFound),
        (HttpError(404), UnderNotFound),
        (PermissionError("x"), UnderRefused),
        (OSError(errno.EROFS, "x"), UnderRefused),
        (NoCredentialsError(), UnderRefused),
        (DefaultCredentialsError(), UnderRefused),
        (translate_boto_error(client_error("InvalidAccessKeyId", 403)), UnderRefused),
        (HttpError(401), UnderRefused),
        (OSError(errno.ENOSPC, "x"), UnderFull),
        (HttpError(507), UnderFull),
        (translate_boto_error(client_error("QuotaExceeded", 403)), UnderFull),
        (TimeoutError(), UnderUnreachable),
        (FSTimeoutError(), UnderUnreachable),
        (ConnectionResetError(), UnderUnreachable),
        (socket.gaierror(-2, "Name or service not known"), UnderUnreachable),
        (EndpointConnectionError(endpoint_url="http://x"), UnderUnreachable),
        (ReadTimeoutError(endpoint_url="http://x"), UnderUnreachable),
        (translate_boto_error(client_error("SlowDown", 503)), UnderUnreachable),
        (translate_boto_error(client_error("SomethingNew", 500)), UnderUnreachable),
        (HttpError(503), UnderUnreachable),
        (EOFError(), UnderUnreachable),
        (IsADirectoryError(errno.EISDIR, "x"), UnderFailed),
        (OSError(errno.EINVAL, "x"), UnderFailed),
        (NotImplementedError(), UnderFailed),
        (ValueError("quota 503 SlowDown in a path"), UnderFailed),
        (KeyError("x"), UnderFailed),
    ],
    ids=repr,
)
def test_kinds(error: Exception, expected: type[UnderError]) -> None:
    assert classify(error) is expected


def test_a_cause_decides_where_its_error_does_not() -> None:
    error = RuntimeError("wrapped")
    error.__cause__ = PermissionError("x")
    assert classify(error) is UnderRefused
    error.__cause__.__cause__ = error  # a ring
    assert classify(RuntimeError("x")) is UnderFailed
    assert classify(error) is UnderRefused


def test_sentences() -> None:
    said = translate(OSError(errno.ENOSPC, "No space left on device"), "s3://b: publishing /a", Redactor("", {}))
    assert str(said).startswith("s3://b: publishing /a found no room: free some there")
    assert "(OSError: No space left on device)" in str(said)
    path_error = InvalidPath("/a is no path")
    assert translate(path_error, "x", Redactor("", {})) is path_error


def test_each_kind_says_whether_to_try_again() -> None:
    kinds = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, UnderError)]
    told = {kind.__name__: kind.retryable for kind in kinds}
    assert told == {
        "UnderError": False,
        "UnderNotFound": False,
        "UnderRefused": False,
        "UnderFull": True,
        "UnderUnreachable": True,
        "UnderChanged": True,
        "UnderFailed": False,
    }
    assert all(issubclass(kind, TierError) and str(kind("a sentence")) == "a sentence" for kind in kinds)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("ftp://me:pw@host:21/a", "ftp://***@host:21/a"),
        ("ftp://me:p@w@host/a", "ftp://***@host/a"),
        ("https://host/a?sig=abc&x=1", "https://host/a?***"),
        ("simplecache::ftp://me:pw@host/a", "simplecache::ftp://***@host/a"),
        ("file:///a?b@c", "file:///a?b@c"),
    ],
)
def test_a_url_as_it_is_shown(url: str, shown: str) -> None:
    assert safe_url(url) == shown


def test_what_a_redactor_hides() -> None:
    redactor = Redactor("leaky://me:inurl2@host/?sig=inquery", OPTIONS)
    for secret in [*SECRETS, "p@ss word", "inurl", "inurl2", "inquery"]:
        assert secret not in redactor.clean(f"a({secret})b '{secret}' {secret!r}")
    assert redactor.clean("us-east-1 x91 the bucket") == "us-east-1 x91 the bucket", (
        "harmless, or only a part of a word"
    )
    for leak in [
        "password=abcdef",
        "secret: abcdef",
        "Authorization: Bearer abcdef",
        '"token": "abcdef"',
        "&sig=abcdef",
    ]:
        assert "abcdef" not in redactor.clean(leak)
    assert redactor.clean("a\n  b\tc") == "a b c"
    assert len(redactor.clean("word " * 1000)) == 300


@pytest.mark.parametrize("protocol", ["leaky", "sealed"])
def test_no_secret_is_ever_said(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="storage_tier")
    store = UnderStore(f"{protocol}://me:inurl2@host/root?sig=inquery", OPTIONS)
    said = [repr(store), str(store), store.url]
    for verb in [
        store.check,
        store.list,
        lambda: store.check(writable=True),
        lambda: store.info("/a"),
        lambda: store.publish("/a", b""),
        lambda: store.read_range("/a", 0, 1),
        lambda: store.remove("/a"),
        lambda: store.rename("/a", "/b"),
        lambda: store.make_directory("/a"),
        lambda: store.remove_directory("/a"),
        store.clean,
    ]:
        with pytest.raises(TierError) as caught:
            verb()
        error: BaseException | None = caught.value
        assert error.__cause__ is None
        assert error.__context__ is None, "a logger that shows contexts would show the original"
        said += [str(error), repr(error), "".join(traceback.format_exception(error)), str(store.status())]
    said += caplog.messages
    store.close()
    for secret in [*SECRETS, "inurl", "inquery"]:
        assert [text for text in said if secret in text] == []
