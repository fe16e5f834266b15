"""One table of errors for both ends of the wire: what a handler raises arrives as the same class and sentence.

What nobody foresaw arrives as INTERNAL, with type and message, and its traceback is in the server's log.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar, cast

import grpc

from storage_tier import errors

LOG = logging.getLogger(__name__)

# Of a sentence; HTTP/2 peers refuse headers of more than 8 KiB, and each byte can become three.
MAX_SENTENCE_CHARACTERS = 1500
ERROR_CLASS_KEY = "error-class"

F = TypeVar("F", bound=Callable[..., Any])


class ErrorTable:
    """Which error class travels as which gRPC status, both ways.

    The class name goes in the trailing metadata `error-class`, so that one status may stand for several
    classes. What comes without a name (from gRPC itself, or a proxy) becomes the *first* class of its status.
    A class that is not in the table travels as its nearest base that is.
    """

    REQUIRED = (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
    )

    def __init__(self, codes: Mapping[type[Exception], grpc.StatusCode]) -> None:
        """`codes` must have a class for each status of `REQUIRED`; else, or for equal names, `ValueError`."""
        self.codes = dict(codes)
        self._by_name = {kind.__name__: kind for kind in self.codes}
        if len(self._by_name) != len(self.codes):
            raise ValueError("two error classes of one table have the same name")
        self._plain: dict[grpc.StatusCode, type[Exception]] = {}
        for kind, code in self.codes.items():
            self._plain.setdefault(code, kind)
        missing = [code.name for code in self.REQUIRED if code not in self._plain]
        if missing:
            raise ValueError(f"the error table has no class for {', '.join(missing)}")

    def abort(self, context: grpc.ServicerContext, error: BaseException) -> NoReturn:
        """End a call with the status of `error`. For handlers; raises out of them, as gRPC wants it.

        An error that is not in the table is logged with its traceback and becomes INTERNAL with type and
        message.
        """
        kind, sentence = self.describe(error)
        context.set_trailing_metadata(((ERROR_CLASS_KEY, kind.__name__),))
        context.abort(self.codes[kind], sentence)
        raise AssertionError("abort returned")

    def describe(self, error: BaseException) -> tuple[type[Exception], str]:
        """The class as which an error travels, and its sentence. One that is not in the table is logged."""
        kind = next((kind for kind in type(error).__mro__ if kind in self.codes), None)
        if kind is None:
            LOG.error("a handler failed unexpectedly", exc_info=error)
            kind = self._plain[grpc.StatusCode.INTERNAL]
            sentence = f"the server failed unexpectedly: {type(error).__name__}: {error}"
        else:
            sentence = str(error)
        # Some messages hold what came over the wire; a lone surrogate cannot be sent.
        return kind, sentence.encode(errors="replace").decode()[:MAX_SENTENCE_CHARACTERS]

    def raise_named(self, name: str, sentence: str) -> NoReturn:
        """Raise what `describe` described."""
        raise self._by_name.get(name, self._plain[grpc.StatusCode.INTERNAL])(sentence) from None

    def raise_from(self, error: grpc.RpcError, peer: str = "") -> NoReturn:
        """Raise on the client what was raised on the server, or what gRPC itself found.

        `peer` is named in the sentence.
        """
        code, details = error.code(), error.details() or ""
        name = next((value for key, value in error.trailing_metadata() or () if key == ERROR_CLASS_KEY), None)
        kind = self._by_name.get(str(name))
        if kind is not None:
            raise kind(details) from None
        where = f" at {peer}" if peer else ""
        internal = self._plain[grpc.StatusCode.INTERNAL]
        if code == grpc.StatusCode.UNAVAILABLE:
            raise self._plain[code](
                f"no server answers{where}: it is not running, still starting, not reachable from here, or one side "
                f"speaks TLS and the other does not ({details})"
            ) from None
        if code == grpc.StatusCode.CANCELLED:
            raise self._plain[grpc.StatusCode.UNAVAILABLE](f"the call{where} was cancelled ({details})") from None
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise self._plain[code](f"no answer{where} in the time given ({details})") from None
        if code == grpc.StatusCode.UNAUTHENTICATED:
            raise self._plain[code](f"refused{where}: {details}") from None
        if code == grpc.StatusCode.UNIMPLEMENTED:
            raise internal(f"the server{where} does not know this call: is it another version? ({details})") from None
        raise internal(f"the call{where} failed with {code.name}: {details}") from None

    @contextmanager
    def translated(self, peer: str = "") -> Iterator[None]:
        """Turns a gRPC error inside the `with` block into the typed one."""
        try:
            yield
        except grpc.RpcError as error:
            self.raise_from(error, peer)
        except ValueError as error:
            # What gRPC says of a channel that its owner has closed, perhaps while this call was waiting.
            if "channel" not in str(error).lower():
                raise
            raise self._plain[grpc.StatusCode.UNAVAILABLE](
                f"the connection{f' to {peer}' if peer else ''} was closed by this process"
            ) from None

    def handler(self, method: F) -> F:
        """Decorator of a servicer's method (unary or generator): whatever it raises goes through `abort`."""
        if inspect.isgeneratorfunction(method):

            @functools.wraps(method)
            def stream(servicer: Any, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                try:
                    yield from method(servicer, request, context)
                except Exception as error:
                    self._end(context, error)

            return cast(F, stream)

        @functools.wraps(method)
        def unary(servicer: Any, request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return method(servicer, request, context)
            except Exception as error:
                self._end(context, error)

        return cast(F, unary)

    def _end(self, context: grpc.ServicerContext, error: Exception) -> NoReturn:
        if isinstance(error, grpc.RpcError) and not context.is_active():
            # The client hung up in the middle of its stream; there is nobody left to tell.
            LOG.debug("a client left during %s", error)
            raise error
        self.abort(context, error)


TIER_ERRORS = ErrorTable(
    {
        errors.ServerFailed: grpc.StatusCode.INTERNAL,
        errors.Unreachable: grpc.StatusCode.UNAVAILABLE,
        errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
        errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
        errors.InvalidPath: grpc.StatusCode.INVALID_ARGUMENT,
        errors.InvalidAddress: grpc.StatusCode.INVALID_ARGUMENT,
        errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
        errors.BlockNotFound: grpc.StatusCode.NOT_FOUND,
        errors.RegionNotFound: grpc.StatusCode.NOT_FOUND,
        errors.BlockExists: grpc.StatusCode.ALREADY_EXISTS,
        errors.CorruptBlock: grpc.StatusCode.DATA_LOSS,
        errors.CorruptRegion: grpc.StatusCode.DATA_LOSS,
        errors.ReservationLost: grpc.StatusCode.FAILED_PRECONDITION,
        errors.DirectoryInUse: grpc.StatusCode.FAILED_PRECONDITION,
        errors.DirectoryRefused: grpc.StatusCode.FAILED_PRECONDITION,
        errors.AddressInUse: grpc.StatusCode.FAILED_PRECONDITION,
        errors.Unsupported: grpc.StatusCode.FAILED_PRECONDITION,
        errors.OutOfMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.PathNotFound: grpc.StatusCode.NOT_FOUND,
        errors.PathExists: grpc.StatusCode.ALREADY_EXISTS,
        errors.PathIsDirectory: grpc.StatusCode.FAILED_PRECONDITION,
        errors.PathNotDirectory: grpc.StatusCode.FAILED_PRECONDITION,
        errors.DirectoryNotEmpty: grpc.StatusCode.FAILED_PRECONDITION,
        errors.VersionConflict: grpc.StatusCode.ABORTED,
        errors.MountConflict: grpc.StatusCode.FAILED_PRECONDITION,
        errors.Fenced: grpc.StatusCode.FAILED_PRECONDITION,
        errors.CatalogRefused: grpc.StatusCode.FAILED_PRECONDITION,
        errors.BytesLost: grpc.StatusCode.DATA_LOSS,
        errors.NotMounted: grpc.StatusCode.FAILED_PRECONDITION,
        errors.Vetoed: grpc.StatusCode.PERMISSION_DENIED,
        errors.ObserverFailed: grpc.StatusCode.FAILED_PRECONDITION,
        errors.ObserverNotFound: grpc.StatusCode.NOT_FOUND,
        errors.UnderNotFound: grpc.StatusCode.NOT_FOUND,
        errors.UnderRefused: grpc.StatusCode.PERMISSION_DENIED,
        errors.UnderFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.UnderUnreachable: grpc.StatusCode.UNAVAILABLE,
        errors.UnderChanged: grpc.StatusCode.ABORTED,
        errors.UnderFailed: grpc.StatusCode.UNKNOWN,
        errors.UnderError: grpc.StatusCode.UNKNOWN,
        errors.TierError: grpc.StatusCode.UNKNOWN,
    }
)
