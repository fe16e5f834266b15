"""The wire: addresses, channels and the token. Both packages use it. Nothing executable crosses it."""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import grpc

from storage_tier import errors
from storage_tier.error_table import TIER_ERRORS as TIER_ERRORS
from storage_tier.error_table import ErrorTable as ErrorTable

LOG = logging.getLogger(__name__)

# A message is never larger; whatever is travels as a stream of chunks.
MAX_MESSAGE_BYTES = 8 << 20
CHUNK_BYTES = 1 << 20
TOKEN_KEY = "authorization"
SCHEMES = ("coproc", "tier")

_SIZE_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)
_CHANNEL_OPTIONS = (
    *_SIZE_OPTIONS,
    # A restarted server is found within a tenth of a second, instead of up to two minutes: it reads out models before
    # it is all there.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
    # Not a pause but the time one attempt may take: a busy host needs more than 50 ms for a handshake.
    ("grpc.min_reconnect_backoff_ms", 3000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A proxy in the environment is for the web, not for the servers of a cluster.
    ("grpc.enable_http_proxy", 0),
    # Each channel has its own connection, so that closing or breaking one leaves the others alone.
    ("grpc.use_local_subchannel_pool", 1),
)
SERVER_OPTIONS = (
    *_SIZE_OPTIONS,
    # By default a second server binds the same port and gets half of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

# The processes, this one or those that it was forked from, in which gRPC was started.
_STARTED_IN: set[int] = set()


def note_grpc() -> None:
    """Remember that this process has started gRPC."""
    _STARTED_IN.add(os.getpid())


def grpc_was_forked() -> bool:
    """Whether gRPC was started before this process was forked: calls would wait for threads of the parent."""
    return any(pid != os.getpid() for pid in _STARTED_IN)


@dataclass(frozen=True)
class TlsServer:
    """What a server shows: its certificate chain and its private key, PEM files."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """When given, clients must show a certificate of this authority."""

    def credentials(self) -> grpc.ServerCredentials:
        """Read the files now.

        Raises:
            InvalidRequest: one can't be read, or is not PEM.
        """
        key, certificate, ca = (_pem(path) for path in (self.key, self.certificate, self.client_ca))
        return grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=ca is not None)


@dataclass(frozen=True)
class TlsClient:
    """Whom a client trusts: a PEM file of authorities; None means those that gRPC ships."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    """The name to expect in the certificate, when it is not the host of the address."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files now.

        Raises:
            InvalidRequest: one can't be read, or holds nothing of the kind.
        """
        ca, key, certificate = (_pem(path) for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca, key, certificate)


def trust(authority: str | Path | None) -> TlsClient | None:
    """What a client takes as `tls`, by a PEM file of whom to trust; None where servers do not speak TLS."""
    return None if authority is None else TlsClient(Path(authority))


def _pem(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise errors.InvalidRequest(f"the TLS file {path} can't be read: {error.strerror}") from None
    if b"-----BEGIN " not in text:
        raise errors.InvalidRequest(f"the TLS file {path} is not PEM: it has no line that begins with -----BEGIN")
    return text


def parse_address(address: str) -> list[tuple[str, int]]:
    """The (host, port) pairs of 'coproc://HOST:PORT[,HOST:PORT...]'; or 'tier://'. IPv6 in brackets.

    Raises:
        InvalidAddress: with what was found.
    """
    form = "an address looks like coproc://HOST:PORT[,HOST:PORT...]"
    if not isinstance(address, str):
        raise errors.InvalidAddress(f"{address!r:.100} is not a string: {form}")
    scheme, separator, rest = address.strip().partition("://")
    if not separator or scheme not in SCHEMES:
        raise errors.InvalidAddress(f"{address!r:.100} does not begin with coproc:// or tier://: {form}")
    servers: list[tuple[str, int]] = []
    for part in rest.rstrip("/").split(","):
        host, colon, port_text = part.strip().rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise errors.InvalidAddress(f"{part!r:.100} in {address!r:.100}: an IPv6 host stands in brackets: {form}")
        if not colon or not host or any(character.isspace() or character in "/@?#" for character in host):
            raise errors.InvalidAddress(f"{part!r:.100} in {address!r:.100} is not HOST:PORT: {form}")
        if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text) < 65536):
            raise errors.InvalidAddress(f"{part!r:.100} in {address!r:.100}: the port must be 1 to 65535: {form}")
        if (host, int(port_text)) in servers:
            raise errors.InvalidAddress(f"{address!r:.100} names {part!r:.100} twice")
        servers.append((host, int(port_text)))
    return servers


def format_address(servers: Sequence[tuple[str, int]], scheme: str = "coproc") -> str:
    """The inverse of `parse_address`."""
    return f"{scheme}://" + ",".join(target(host, port) for host, port in servers)


def target(host: str, port: int) -> str:
    """'HOST:PORT', with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_token(token: str | None) -> str | None:
    """The token, if it can travel in a header.

    Raises:
        InvalidRequest: empty, or with characters other than visible ASCII.
    """
    if token is not None and (not token or not all(33 <= ord(character) < 127 for character in token)):
        raise errors.InvalidRequest("a token must be one or more visible ASCII characters without spaces")
    return token


def channel(host: str, port: int, *, token: str | None = None, tls: TlsClient | None = None) -> grpc.Channel:
    """A channel to one server. Connects at the first call; to be used in the process that made it only.

    With a token and no TLS the token travels in clear: fine on loopback and in networks of your own only.
    """
    note_grpc()
    if tls is None:
        plain = grpc.insecure_channel(target(host, port), options=_CHANNEL_OPTIONS)
    else:
        name = (("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()
        plain = grpc.secure_channel(target(host, port), tls.credentials(), options=(*_CHANNEL_OPTIONS, *name))
    if check_token(token) is None:
        return plain
    return grpc.intercept_channel(plain, _SendToken(cast(str, token)))


class _CallDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: Sequence[tuple[str, str]]
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _SendToken(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]
):
    """Adds the token to every call."""

    def __init__(self, token: str) -> None:
        self._header = (TOKEN_KEY, f"Bearer {token}")

    def _send(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or ()), self._header]
        return continuation(
            _CallDetails(
                details.method,
                details.timeout,
                metadata,
                details.credentials,
                details.wait_for_ready,
                details.compression,
            ),
            request,
        )

    intercept_unary_unary = _send
    intercept_unary_stream = _send
    intercept_stream_unary = _send
    intercept_stream_stream = _send


class AskToken(grpc.ServerInterceptor):  # type: ignore[misc]
    """Refuses every call without the right token. Health checks need none: they tell only that one serves."""

    OPEN_PREFIX = "/grpc.health.v1.Health/"

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {check_token(token)}".encode()

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        """Called by gRPC before a call's handler is chosen."""
        given = [value for key, value in details.invocation_metadata if key == TOKEN_KEY]
        shown = given[0] if len(given) == 1 else ""
        shown_bytes = shown.encode() if isinstance(shown, str) else shown
        if hmac.compare_digest(shown_bytes, self._expected) or details.method.startswith(self.OPEN_PREFIX):
            return continuation(details)
        sentence = (
            "the token is not the one this server was started with"
            if given
            else "this server asks for a token, and none was given"
        )

        def refuse(requests: Any, context: grpc.ServicerContext) -> Any:
            TIER_ERRORS.abort(context, errors.Unauthenticated(sentence))

        # Stream to stream fits every kind of call and answers before it reads.
        return grpc.stream_stream_rpc_method_handler(refuse)
