"""From what hundreds of libraries raise to the few errors of an under-store. Pure."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from storage_tier.errors import (
    TierError,
    UnderError,
    UnderFailed,
    UnderFull,
    UnderNotFound,
    UnderRefused,
    UnderUnreachable,
)
from storage_tier.under.redact import Redactor

_ERRNOS: dict[int, type[UnderError]] = {
    errno.ENOENT: UnderNotFound,
    **dict.fromkeys([errno.EACCES, errno.EPERM, errno.EROFS], UnderRefused),
    **dict.fromkeys([errno.ENOSPC, errno.EDQUOT], UnderFull),
    # EIO and EREMOTEIO are what s3fs makes of "internal error", EBUSY of "slow down".
    **dict.fromkeys([errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN, errno.EINTR], UnderUnreachable),
    **dict.fromkeys([errno.ETIMEDOUT, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM], UnderUnreachable),
    **dict.fromkeys([errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE], UnderUnreachable),
    **dict.fromkeys([errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN], UnderUnreachable),
}
# Codes in an answer of S3 that s3fs maps to nothing in particular.
_CODES: list[tuple[re.Pattern[str], type[UnderError]]] = [
    (re.compile(r"StorageFull|Quota|InsufficientStorage|507"), UnderFull),
    (re.compile(r"SlowDown|Unavailable|Timeout|Throttl|RequestLimit|InternalError|429|50[0234]"), UnderUnreachable),
]
# Names of exception classes: libraries that may not be installed cannot be imported to ask.
_NAMES: list[tuple[re.Pattern[str], type[UnderError]]] = [
    (re.compile("Credential|Authenticat|Unauthori|Forbidden|AccessDenied|PermissionDenied|TokenRetriev"), UnderRefused),
    (re.compile("NotFound|NoSuch"), UnderNotFound),
    (re.compile("Timeout|TimedOut|Connect|Unavailable|HTTPClientError|ClientPayload"), UnderUnreachable),
    (re.compile("IncompleteRead|ResponseParser|gaierror|EOFError|SSHException"), UnderUnreachable),
]
_STATUSES: dict[int | None, type[UnderError]] = {
    401: UnderRefused,
    403: UnderRefused,
    404: UnderNotFound,
    410: UnderNotFound,
    507: UnderFull,
}

_ADVICE: dict[type[UnderError], str] = {
    UnderNotFound: "is not there",
    UnderRefused: "was refused: check the credentials and the rights of the mount",
    UnderFull: "found no room: free some there, or raise the quota",
    UnderUnreachable: "was not answered: the filesystem below may be down, busy or too slow; it can be tried again",
    UnderFailed: "failed",
}


def translate(error: Exception, what: str, redactor: Redactor) -> TierError:
    """The error to raise, without cause: the original may carry secrets.

    Args:
        what: what was tried on what, for the sentence: "s3://b: publishing /a".
    """
    if isinstance(error, UnderError):  # raised by a backend, which does not know its own name
        return type(error)(f"{what}: {redactor.clean(str(error))}")
    if isinstance(error, TierError):
        return error
    kind = classify(error)
    told = redactor.clean(_text(error))
    name = type(error).__name__
    return kind(f"{what} {_ADVICE[kind]} ({name}{': ' if told else ''}{told}).")


def classify(error: BaseException) -> type[UnderError]:
    """The kind of an error: by the code of an answer in it or its causes, else by type, number, status and name."""
    links = list(_chain(error))
    for link in links:
        for pattern, coded in _CODES:
            if pattern.search(_code(link)):
                return coded
    return next((kind for link in links if (kind := _kind(link)) is not None), UnderFailed)


def _kind(error: BaseException) -> type[UnderError] | None:
    if isinstance(error, FileNotFoundError):
        return UnderNotFound
    if isinstance(error, PermissionError):
        return UnderRefused
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return _ERRNOS[error.errno]
    if isinstance(error, ConnectionError | TimeoutError | MemoryError):
        return UnderUnreachable
    status = _status(error)
    if status in _STATUSES:
        return _STATUSES[status]
    if status is not None and (status == 429 or status >= 500):
        return UnderUnreachable
    names = [base.__name__ for base in type(error).__mro__]
    return next((kind for pattern, kind in _NAMES if any(map(pattern.search, names))), None)


def _code(error: BaseException) -> str:
    """The code in an answer of S3, as botocore keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict) and isinstance(response.get("Error"), dict):
        return str(response["Error"].get("Code", ""))
    return ""


def _status(error: BaseException) -> int | None:
    for name in ("status", "status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
            return value
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _text(error: BaseException) -> str:
    """What the error tells, without the number that Python puts before it."""
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return str(error)
