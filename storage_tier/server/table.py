"""The table of a gRPC server's methods: looked up when one is called, so that the server can answer before it is full.

gRPC takes no registered method after its start. Here services come when they are ready. Until then a few methods may be
answered early, and calls of all others wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import grpc

Early = Callable[[bytes], Iterable[bytes] | None]
"""Answers one request, both as they travel; None: this one has to wait for the whole server."""

# The whole server is there within seconds, or it has failed and ended.
_WAIT_S = 60.0


class Table(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Services are added as to a `grpc.Server`. Until `open` all calls wait that are not answered early."""

    def __init__(self) -> None:
        self._methods: dict[str, grpc.RpcMethodHandler] = {}
        self._generic: list[grpc.GenericRpcHandler] = []
        self._early: Mapping[str, Early] = {}
        self._open = False
        self._decided = threading.Event()
        """It is open, or never will be."""

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """As of a `grpc.Server`."""
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        """As of a `grpc.Server`: these are looked at first."""
        self._methods.update({f"/{service}/{method}": handler for method, handler in handlers.items()})

    def answer_early(self, early: Mapping[str, Early]) -> None:
        """These methods, by full name ('/storage_tier.v1.Tier/Status'), until `open`."""
        self._early = early

    def open(self) -> None:
        """All services are there: calls that wait go on."""
        self._open = True
        self._decided.set()

    def close(self) -> None:
        """Calls that still wait end as Unavailable. Idempotent."""
        self._decided.set()

    def service(self, details: Any) -> grpc.RpcMethodHandler | None:
        """Called by gRPC to find a method; on the thread that takes all calls, so it never waits."""
        return self._find(details) if self._open else grpc.stream_stream_rpc_method_handler(self._before(details))

    def _find(self, details: Any) -> grpc.RpcMethodHandler | None:
        found = self._methods.get(details.method)
        return found or next(filter(None, (handler.service(details) for handler in self._generic)), None)

    def _before(self, details: Any) -> Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]:
        """What a call does that came before `open`. Stream to stream fits every kind of method."""

        def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            early = self._early.get(details.method)
            if early is not None:
                request = next(requests, None)
                if request is None:
                    return
                answers = early(request)
                if answers is not None:
                    yield from answers
                    return
                requests = chain([request], requests)
            left_s = context.time_remaining()
            decided = self._decided.wait(_WAIT_S if left_s is None else min(left_s, _WAIT_S))
            if not self._open:
                code = grpc.StatusCode.UNAVAILABLE if decided else grpc.StatusCode.DEADLINE_EXCEEDED
                context.abort(code, "this server has just started and does not serve yet")
            handler = self._find(details)
            if handler is None:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            yield from _answers(handler, requests, context)

        return answer


def _answers(
    handler: grpc.RpcMethodHandler, requests: Iterator[bytes], context: grpc.ServicerContext
) -> Iterator[bytes]:
    """What gRPC does with a handler that it has found itself."""
    read, write = handler.request_deserializer or bytes, handler.response_serializer or bytes

    def arguments() -> Iterator[Any]:
        for request in requests:
            try:
                argument = read(request)
            except Exception as error:  # whatever a deserializer raises, for bytes that a stranger has sent
                context.abort(grpc.StatusCode.INTERNAL, f"the request cannot be read: {error}")
            yield argument

    given: Any = arguments()
    if not handler.request_streaming:
        given = next(given, None)
        if given is None:
            return
    if handler.response_streaming:
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        yield from map(write, behaviour(given, context))
    else:
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        yield write(behaviour(given, context))
