"""The wire: addresses, channels, the token, and one table of errors for both ends. Both packages use it.

Nothing executable crosses it. Whatever a handler raises arrives at the client as the same class with the same
sentence; what nobody foresaw arrives as INTERNAL, with type and message, and its traceback is in the server's
log.
"""

from __future__ import annotations

import functools
import hmac
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

import grpc

from storage_tier import errors

LOG = logging.getLogger(__name__)

# A message is never larger; whatever is travels as a stream of chunks.
MAX_MESSAGE_BYTES = 8 << 20
CHUNK_BYTES = 1 << 20
# Of a sentence; HTTP/2 peers refuse headers of more than 8 KiB, and each byte can become three.
MAX_SENTENCE_CHARACTERS = 1500
ERROR_CLASS_KEY = "error-class"
TOKEN_KEY = "authorization"
SCHEMES = ("coproc", "tier")

_SIZE_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)
_CHANNEL_OPTIONS = (
    *_SIZE_OPTIONS,
    # A restarted server is found within half a second, instead of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
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

F = TypeVar("F", bound=Callable[..., Any])


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
        kind = next((kind for kind in type(error).__mro__ if kind in self.codes), None)
        if kind is None:
            LOG.error("a handler failed unexpectedly", exc_info=error)
            kind = self._plain[grpc.StatusCode.INTERNAL]
            sentence = f"the server failed unexpectedly: {type(error).__name__}: {error}"
        else:
            sentence = str(error)
        context.set_trailing_metadata(((ERROR_CLASS_KEY, kind.__name__),))
        # Some messages hold what came over the wire; a lone surrogate cannot be sent.
        sentence = sentence.encode(errors="replace").decode()[:MAX_SENTENCE_CHARACTERS]
        context.abort(self.codes[kind], sentence)
        raise AssertionError("abort returned")

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
        errors.TierError: grpc.StatusCode.UNKNOWN,
    }
)
