"""What `TierFileSystem.open` returns for writing: a new version of a file.

A version is published when its file is closed, whole or not at all, and only if the block that wrote it ended well.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal

from storage_tier.errors import InvalidRequest
from storage_tier.file_info import FileMetadata
from storage_tier.filesystem.lookup import TierLookup, describe

LOG = logging.getLogger(__name__)


class TierWriter(io.BufferedIOBase):
    """A new version of a file, in the making. `close` publishes it whole; nobody ever sees a part.

    Nothing is published, and nothing is left behind, when the `with` block raises, when it is closed because an
    exception is on its way out (what wraps it often only closes it), when it is collected unclosed, or when the process
    dies. Not thread-safe.
    """

    def __init__(
        self,
        fs: TierLookup,
        path: str,
        *,
        exclusive: bool = False,
        expected_version: int | None = None,
        metadata: FileMetadata | None = None,
        autocommit: bool = True,
    ) -> None:
        self._state: Literal["open", "sealed", "published", "discarded"] = "discarded"
        self.fs = fs
        self.path = path
        self.mode = "xb" if exclusive else "wb"
        self.autocommit = autocommit
        self.is_conditional = exclusive or expected_version is not None
        """Whether it is published only where nothing is, or over a certain version."""
        # Does nothing yet: small files travel in one request when they are published.
        self._writer = fs.client.create(
            path,
            metadata,
            exclusive=exclusive,
            overwrite=not exclusive,
            expected_version=expected_version,
            timeout_s=fs.timeout_s,
        )
        self._details: dict[str, Any] | None = None
        self._pid = os.getpid()
        # What was on its way out already when this began is none of this file's business.
        self._earlier_error = sys.exception()
        self._state = "open"

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._writer.size_bytes

    @property
    def is_discarded(self) -> bool:
        """Whether it was closed, and will not be published."""
        return self._state == "discarded"

    @property
    def full_name(self) -> str:
        """The URL."""
        return self.fs.unstrip_protocol(self.path)

    def info(self) -> dict[str, Any]:
        """What was published, as `TierFileSystem.info`.

        Raises:
            ValueError: nothing was, or not yet.
        """
        if self._details is None:
            raise ValueError(f"{self.path} is not published (it is {self._state}): there is nothing to tell about it")
        return self._details

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check()
        return self._writer.size_bytes

    def write(self, data: Any, /) -> int:
        """Append a buffer. Returns its bytes. On the server's host one copy, by the kernel, into its memory.

        Raises:
            OutOfMemory: the tier is full; the file can only be discarded. InvalidRequest: not a contiguous buffer.
        """
        self._check()
        return self._writer.write(data)

    def flush(self) -> None:
        """Does nothing: no part of a file is ever visible."""
        self._check()

    def close(self) -> None:
        """Publish, or in a transaction seal until it ends. Idempotent.

        Raises:
            PathExists, VersionConflict, PathIsDirectory, Vetoed, OutOfMemory, ...: nothing was published.
            Unreachable, DeadlineExceeded: it may have been published.
        """
        if self.closed:
            return
        error = sys.exception()
        if error is not None and error is not self._earlier_error:
            LOG.warning("%s is not published: it was closed on the way out of %s", self.path, type(error).__name__)
            self.discard()
            return
        if os.getpid() != self._pid:
            self.discard()
            raise InvalidRequest(f"{self.path} was opened for writing in process {self._pid}: only that can publish it")
        try:
            self._state = "sealed"
            if self.autocommit:
                self.commit()
        finally:
            super().close()

    def commit(self) -> None:
        """Publish what `close` sealed (`autocommit=False`). Once; after `discard` it does nothing.

        Raises:
            as `close`; InvalidRequest: it is still open.
        """
        commit_all([self])

    def discard(self) -> None:
        """Close without publishing. Idempotent; after a publication it does nothing."""
        if self._state in ("open", "sealed"):
            self._state = "discarded"
            # In a forked child the memory that was reserved is still the parent's.
            if os.getpid() == self._pid:
                self._writer.abort()
        self._earlier_error = None
        super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        if getattr(self, "_state", "discarded") == "open":
            warnings.warn(
                f"{self.path} was never closed, so it is not published", ResourceWarning, stacklevel=2, source=self
            )
            self.discard()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(f"{self.path} is open for writing and cannot be pickled: pickle the filesystem and the path")

    def __repr__(self) -> str:
        return f"<TierWriter {self.path} ({self._state})>"

    def _check(self) -> None:
        if self.closed:
            raise ValueError(f"the file {self.path} is closed")


def commit_all(files: Sequence[TierWriter]) -> None:
    """Publish what `close` sealed, of one filesystem and of different paths: all or none, at one moment. Once.

    Raises:
        as `TierWriter.close`, for the first that is refused, and then all are discarded; InvalidRequest: one is open.
    """
    for file in files:
        if file._state == "open":
            raise InvalidRequest(f"{file.path} is still open, so it cannot be published: close it first")
    sealed = [file for file in files if file._state == "sealed"]
    if not sealed:
        return
    try:
        if len(sealed) == 1:
            infos = [sealed[0]._writer.commit()]
        else:
            fs = sealed[0].fs
            infos = fs.client.commit_all([file._writer for file in sealed], timeout_s=fs.timeout_s)
    except BaseException:
        for file in sealed:
            file.discard()
        raise
    for file, info in zip(sealed, infos, strict=True):
        file._details = describe(info)
        file._state = "published"


class CompressedWriter(io.BufferedIOBase):
    """A compressor over a writer, closed together: most compressors leave open what they write into."""

    def __init__(self, compressor: Any, writer: TierWriter) -> None:
        self._compressor = compressor
        self._writer = writer

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._compressor.write(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Does nothing: no part of a file is ever visible."""

    def close(self) -> None:
        """Write what the compressor holds back, and publish as `TierWriter.close`."""
        if self.closed:
            return
        try:
            self._compressor.close()
        finally:
            # If that failed, its error is on its way out now, and nothing is published.
            self._writer.close()
            super().close()

    def discard(self) -> None:
        """Close without publishing."""
        if not self.closed:
            # The compressor writes its end when it is closed; nobody will see it.
            self._compressor.close()
            self._writer.discard()
            super().close()

    __exit__ = TierWriter.__exit__

    def __del__(self) -> None:
        self._writer.discard()


class TextWriter(io.TextIOWrapper):
    """Text over a writer. Only `close` and a `with` block that ends well publish it, not the end of its life."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
        super().__exit__(kind, error, traceback)

    def __del__(self) -> None:
        self._discard()

    def _discard(self) -> None:
        # Then it is closed as well, and what it still holds back goes nowhere.
        self.buffer.discard()  # type: ignore[attr-defined]
