"""The table of coproc's errors on the wire, and float32 vectors as streams of chunks."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
from numpy.typing import NDArray

from coproc import errors
from coproc.layout import Flat
from storage_tier import errors as tier_errors
from storage_tier.wire import CHUNK_BYTES, ErrorTable

ERRORS = ErrorTable(
    {
        errors.ServerError: grpc.StatusCode.INTERNAL,
        errors.CoprocError: grpc.StatusCode.UNKNOWN,
        errors.Unreachable: grpc.StatusCode.UNAVAILABLE,
        errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
        errors.Timeout: grpc.StatusCode.DEADLINE_EXCEEDED,
        errors.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.PushRejected: grpc.StatusCode.INVALID_ARGUMENT,
        errors.DataError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
        errors.ModelExists: grpc.StatusCode.ALREADY_EXISTS,
        errors.OutOfMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.LeaseExpired: grpc.StatusCode.FAILED_PRECONDITION,
        errors.WorkerLost: grpc.StatusCode.ABORTED,
        errors.Diverged: grpc.StatusCode.FAILED_PRECONDITION,
        errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    }
)

_FROM_TIER: dict[type[Exception], type[errors.CoprocError]] = {
    tier_errors.OutOfMemory: errors.OutOfMemory,
    tier_errors.Unreachable: errors.Unreachable,
    tier_errors.Unauthenticated: errors.Unauthenticated,
    tier_errors.DeadlineExceeded: errors.Timeout,
    tier_errors.InvalidAddress: errors.ConfigError,
    tier_errors.InvalidRequest: errors.ConfigError,
    tier_errors.RegionNotFound: errors.ModelNotFound,
}


def as_coproc(error: tier_errors.TierError) -> errors.CoprocError:
    """The error of this package that says the same as one of the tier's."""
    kind = next((_FROM_TIER[k] for k in type(error).__mro__ if k in _FROM_TIER), errors.ServerError)
    return kind(str(error))


def chunks(flat: NDArray[np.float32]) -> Iterator[bytes]:
    """The bytes of a contiguous float32 vector in pieces of 1 MiB; each is copied once."""
    data = flat.data.cast("B")
    for start in range(0, len(data), CHUNK_BYTES):
        yield bytes(data[start : start + CHUNK_BYTES])


class Filling:
    """Receives chunks into a float32 vector (P,) that somebody else owns."""

    def __init__(self, out: Flat, what: str) -> None:
        self._data = out.data.cast("B")
        self._what = what
        self.filled_bytes = 0

    def add(self, chunk: bytes) -> None:
        """Copy the next chunk.

        Raises:
            ConfigError: more bytes than the vector has.
        """
        end = self.filled_bytes + len(chunk)
        if end > len(self._data):
            raise errors.ConfigError(f"{self._what} has {len(self._data):,} bytes; more than that were sent")
        self._data[self.filled_bytes : end] = chunk
        self.filled_bytes = end

    def finish(self) -> None:
        """Raises ConfigError if bytes are missing."""
        if self.filled_bytes != len(self._data):
            raise errors.ConfigError(
                f"{self._what} has {len(self._data):,} bytes; only {self.filled_bytes:,} were sent"
            )
