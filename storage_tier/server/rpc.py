"""One gRPC server for any number of services.

One port. Loopback unless told otherwise. Health and reflection are always there.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc

from storage_tier.errors import AddressInUse
from storage_tier.server.table import Early, Table
from storage_tier.wire import SERVER_OPTIONS, AskToken, TlsServer, check_token, note_grpc, target

DEFAULT_MAX_WORKERS = 16


class RpcServer:
    """A gRPC server: `add` services, `start`, `stop`. Its threads share an interpreter: no busy loops."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        tls: TlsServer | None = None,
        max_workers: int = DEFAULT_MAX_WORKERS,
    ) -> None:
        """Nothing is bound before `start`.

        Args:
            host: the interface; '0.0.0.0' for all of them (give a token then).
            port: 0 lets the system choose.
            token: when given, every call but health checks must show it.
            tls: when given, nothing but TLS is spoken.
            max_workers: calls served at once; a stream takes one for as long as it lasts, the others wait.
        """
        self.host = host
        self.port = port
        note_grpc()
        self._token = check_token(token)
        self._tls = tls
        self._pool = ThreadPoolExecutor(max_workers, thread_name_prefix="rpc")
        self._server = grpc.server(
            self._pool,
            interceptors=() if token is None else (AskToken(token),),
            options=SERVER_OPTIONS,
        )
        self._table = Table()
        self._server.add_generic_rpc_handlers((self._table,))
        self._services: list[str] = []
        self._health: Any = None
        self._bound = False
        self._begun = False
        self._stopped = False

    def add(self, register: Callable[[grpc.Server], None], service_name: str | None = None) -> None:
        """Add a service before `start`: `register` is called with what takes handlers as a gRPC server.

        Args:
            register: as a rule `lambda server: add_XServicer_to_server(servicer, server)`.
            service_name: its full name ('storage_tier.v1.Tier'), which health and reflection then know.
        """
        register(self._table)
        if service_name is not None:
            self._services.append(service_name)

    def bind(self) -> int:
        """Take the port, and serve nobody yet; returns it. For who has to know it before. Idempotent.

        Raises:
            AddressInUse: another process listens there, or the host is none of this machine's.
        """
        if self._bound:
            return self.port
        # Asked beforehand, for gRPC would write its own idea of it to standard error first.
        if self.port and (reason := _why_not(self.host, self.port)):
            raise AddressInUse(reason)
        where = target(self.host, self.port)
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(where)
            else:
                self.port = self._server.add_secure_port(where, self._tls.credentials())
        except RuntimeError as error:
            raise AddressInUse(_why_not(self.host, self.port) or f"{where} cannot be bound: {error}") from None
        self._bound = True
        return self.port

    def begin(self, early: Mapping[str, Early]) -> int:
        """Bind, and answer `early` methods (by full name). Calls of others wait for `start`, a minute at most.

        Returns the port; does not block. The token and TLS are asked for as later. Idempotent.

        Raises:
            AddressInUse: as `bind`.
        """
        if not self._begun:
            self.bind()
            self._table.answer_early(early)
            self._server.start()
            self._begun = True
        return self.port

    def start(self) -> int:
        """Bind and serve; returns the port. Does not block.

        Raises:
            AddressInUse: as `bind`.
        """
        # Only a server needs these two.
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection

        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._table)
        names = [*self._services, health.SERVICE_NAME]
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._table)
        self.begin({})
        for name in ("", *names):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._table.open()
        return self.port

    def stop(self, grace_s: float = 1.0) -> None:
        """Take no more calls, give those at work `grace_s` seconds, then cancel them. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        if self._health is not None:
            self._health.enter_graceful_shutdown()
        self._table.close()
        self._server.stop(grace_s).wait(timeout=grace_s + 5.0)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _why_not(host: str, port: int) -> str | None:
    """Why the address cannot be bound, as a sentence; None when it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return (
            f"{target(host, port)} cannot be listened on: {error.strerror or error}. Stop the process that "
            "does, or choose another port (0 takes a free one) or host"
        )
    return None
