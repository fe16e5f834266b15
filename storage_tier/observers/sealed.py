"""Bytes that two processes share and neither can change: sealed memfds.

A server may map one that it did not make: it can't shrink, so reading never ends in SIGBUS; it can't be
written, so what was checked is what is used.
"""

from __future__ import annotations

import fcntl
import os
from typing import Any

from storage_tier.errors import InvalidRequest

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def sealed_copy(data: Any) -> int:
    """A sealed memfd with a copy of a contiguous buffer. The caller closes it.

    Raises:
        InvalidRequest: not a contiguous buffer.
    """
    try:
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
    except (TypeError, ValueError, BufferError) as error:
        raise InvalidRequest(f"a {type(data).__name__} cannot be taken as contiguous bytes: {error}") from None
    fd = os.memfd_create("tier-observer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        while view:
            view = view[os.write(fd, view) :]
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> int:
    """Seal a memfd, whoever made it; returns its size in bytes. Sealing twice is fine.

    Raises:
        InvalidRequest: no memfd that allows it, or one that somebody has mapped for writing.
    """
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        raise InvalidRequest(
            f"a descriptor that cannot be sealed ({error.strerror}): give a memfd made with MFD_ALLOW_SEALING that "
            "is no longer mapped for writing, or bytes"
        ) from None
    return os.fstat(fd).st_size
