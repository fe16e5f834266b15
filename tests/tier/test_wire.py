"""Addresses, the token, TLS, the table of errors, and what a server does with bytes that are no messages."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_tier import errors
from storage_tier.client import TierClient
from storage_tier.line import TICKET_BYTES
from storage_tier.server.line import Call, LineServer, unary_calls
from storage_tier.server.rpc import RpcServer
from storage_tier.v1 import files_pb2, files_pb2_grpc, tier_pb2, tier_pb2_grpc
from storage_tier.wire import TIER_ERRORS, ErrorTable, TlsClient, channel, format_address, parse_address

from .line_talk import made_certificate

# ---- addresses


def test_addresses() -> None:
    assert parse_address("coproc://127.0.0.1:7000") == [("127.0.0.1", 7000)]
    assert parse_address(" tier://a:1,b.c:2,[::1]:3/ ") == [("a", 1), ("b.c", 2), ("::1", 3)]
    for servers in ([("a", 1)], [("::1", 1), ("x", 65535)]):
        assert parse_address(format_address(servers)) == servers


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "localhost:70",
            "http://a:1",
            "coproc://",
            "coproc://a",
            "coproc://a:",
            "coproc://:1",
            "coproc:/a:1",
        ),
        *(
            "coproc://a:0",
            "coproc://a:65536",
            "coproc://a:-1",
            "coproc://a:x",
            "coproc://a:٣",
            "coproc://a:1,",
        ),
        *("coproc://a:1,a:1", "coproc://::1:5", "coproc://a b:1", "coproc://u@a:1", "coproc://a/b:1"),
        *(7, None, b"coproc://a:1"),
    ],
)
def test_bad_addresses_get_a_sentence(address: object) -> None:
    with pytest.raises(errors.InvalidAddress, match=r"coproc://|twice"):
        parse_address(address)


@given(st.text(max_size=30))
def test_any_address_is_servers_or_a_sentence(text: str) -> None:
    for address in (text, f"coproc://{text}"):
        try:
            servers = parse_address(address)
        except errors.InvalidAddress:
            continue
        assert servers
        assert all(host and 0 < port < 65536 for host, port in servers)


# ---- token and TLS


def test_the_token_is_asked_for(serve: Callable[..., object]) -> None:
    server = serve(token="right-token")
    with TierClient(server.address, token="right-token") as client:
        client.put("/a", b"x")
    for token, said in (
        ("wrong-token", "not the one"),
        (None, "none was given"),
        ("right-tokenx", "not the one"),
    ):
        for near in (None, False):
            with TierClient(server.address, token=token, near=near) as client:
                for call in (
                    client.status,
                    lambda c=client: c.put("/b", b"x"),
                    lambda c=client: c.open("/a"),
                ):
                    with pytest.raises(errors.Unauthenticated, match=said):
                        call()
    with channel("127.0.0.1", server.port) as plain:
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        health = health_pb2_grpc.HealthStub(plain)
        for name in ("", "storage_tier.v1.Tier", "storage_tier.v1.Files"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("token", ["", "a b", "ü", "a\n"])
def test_a_token_that_cannot_travel_is_refused(token: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="token"):
        TierClient("coproc://127.0.0.1:1", token=token)


def test_tls(serve: Callable[..., object], tmp_path: Path) -> None:
    certificate, key = made_certificate(tmp_path)
    server = serve(token="right-token", certificate=str(certificate), key=str(key))
    tls = TlsClient(ca=certificate, server_name="tier")
    with TierClient(server.address, token="right-token", tls=tls, near=False) as client:
        assert client.status().block_count == 0
        # The line speaks TLS, too: from here on there is no gRPC to turn to.
        client._connection._connect(float("inf"))._methods.clear()
        client.put("/a", b"x" * 3_000_000)
        with client.open("/a") as block:
            assert block.data == b"x" * 3_000_000
    with (
        TierClient(server.address, token="wrong", tls=tls) as client,
        pytest.raises(errors.Unauthenticated, match="not the one"),
    ):
        client.status()
    for untrusting in (None, TlsClient(server_name="tier"), TlsClient(ca=certificate)):
        with (
            TierClient(server.address, token="right-token", tls=untrusting) as client,
            pytest.raises(errors.Unreachable),
        ):
            client.status()


# ---- servers that are not there


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it
        port = taken.getsockname()[1]
        with TierClient(f"coproc://127.0.0.1:{port}") as client:
            began = time.monotonic()
            with pytest.raises(errors.Unreachable, match=rf"no server answers at 127\.0\.0\.1:{port}: it is not"):
                client.status(timeout_s=20)
            assert time.monotonic() - began < 10, "refused is known at once"


def test_somebody_listens_and_says_nothing() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        TierClient(f"tier://127.0.0.1:{mute.getsockname()[1]}") as client,
    ):
        for call in (client.status, lambda timeout_s: client.open("/a", timeout_s=timeout_s)):
            with pytest.raises((errors.DeadlineExceeded, errors.Unreachable), match=r"answer"):
                call(timeout_s=0.3)


def test_a_port_in_use_is_a_sentence(shared_server: object, capfd: pytest.CaptureFixture[str]) -> None:
    server = RpcServer(port=shared_server.port)
    with pytest.raises(errors.AddressInUse, match=rf"127\.0\.0\.1:{shared_server.port} cannot be listened on: Address"):
        server.start()
    server.stop()
    server = RpcServer(host="203.0.113.7")
    with pytest.raises(errors.AddressInUse, match=r"203\.0\.113\.7:0 cannot be listened on"):
        server.start()
    server.stop()


def test_stop_is_idempotent_and_ends_the_threads() -> None:
    server = RpcServer()
    assert server.start() == server.port > 0
    server.stop()
    server.stop()
    with TierClient(f"coproc://127.0.0.1:{server.port}") as client, pytest.raises(errors.Unreachable):
        client.status()


def test_reflection_names_the_services(shared_server: object) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with channel("127.0.0.1", shared_server.port) as plain:
        stub = reflection_pb2_grpc.ServerReflectionStub(plain)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        (answer,) = stub.ServerReflectionInfo(asked, timeout=10)
        names = {service.name for service in answer.list_services_response.service}
        assert {"storage_tier.v1.Tier", "storage_tier.v1.Files", "grpc.health.v1.Health"} <= names


# ---- the table of errors


class Failing(tier_pb2_grpc.TierServicer, files_pb2_grpc.FilesServicer):
    """Raises what the test put there."""

    def __init__(self) -> None:
        self.error: BaseException = ValueError()

        self.line_port = 0

    @TIER_ERRORS.handler
    def Hello(self, request: object, context: object) -> object:
        return tier_pb2.HelloResponse(line_port=self.line_port, line_ticket=TICKET)

    @TIER_ERRORS.handler
    def Status(self, request: object, context: object) -> object:
        raise self.error

    @TIER_ERRORS.handler
    def ReadFile(self, request: object, context: object) -> Iterator[object]:
        file = files_pb2.FileInfo(path="/a", kind=files_pb2.FILE_KIND_FILE, size_bytes=3)
        yield files_pb2.ReadFileResponse(file=file)
        raise self.error


TICKET = b"t" * TICKET_BYTES


@pytest.fixture(params=["grpc", "line"])
def failing(request: pytest.FixtureRequest, directory: Path) -> Iterator[tuple[Failing, TierClient]]:
    service = Failing()
    line = LineServer(TICKET, max_calls=2)
    if request.param == "line":
        service.line_port = line.bind(directory / "line", "127.0.0.1", 0, None)

        def read(request: object, context: object, raw: object) -> object:
            raise service.error

        line.start(
            {
                **unary_calls(service, tier_pb2.DESCRIPTOR.services_by_name["Tier"]),
                "ReadFile": Call(files_pb2.ReadFileRequest, read),
            }
        )
    with line, RpcServer() as server:
        server.add(lambda made: tier_pb2_grpc.add_TierServicer_to_server(service, made))
        server.add(lambda made: files_pb2_grpc.add_FilesServicer_to_server(service, made))
        with TierClient(f"coproc://127.0.0.1:{server.start()}", near=False) as client:
            yield service, client


def tree(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(found for below in kind.__subclasses__() for found in tree(below))]


def test_every_class_travels_as_itself(failing: tuple[Failing, TierClient]) -> None:
    service, client = failing
    kinds = [kind for kind in tree(errors.TierError) if kind.__module__ == errors.__name__]
    assert set(kinds) == set(TIER_ERRORS.codes)
    for kind in kinds:
        service.error = kind("Größe: 3 expected,\n2 found")
        with pytest.raises(errors.TierError) as caught:
            client.status()
        assert type(caught.value) is kind
        assert str(caught.value) == "Größe: 3 expected,\n2 found"
        with pytest.raises(errors.TierError) as caught:
            client.read("/a", 0, 3)
        assert type(caught.value) is kind


def test_a_subclass_travels_as_its_nearest_base(failing: tuple[Failing, TierClient]) -> None:
    class OddBlock(errors.CorruptBlock):
        pass

    service, client = failing
    service.error = OddBlock("odd")
    with pytest.raises(errors.CorruptBlock, match="odd"):
        client.status()


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("by\udcff zero"), KeyError("k"), grpc.RpcError("inner"), RuntimeError("x" * 100_000)],
    ids=["plain", "key", "rpc", "long"],
)
def test_what_nobody_foresaw_is_internal_and_logged(
    failing: tuple[Failing, TierClient], caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    service, client = failing
    service.error = error
    with pytest.raises(errors.ServerFailed, match=rf"failed unexpectedly: {type(error).__name__}"):
        client.status()
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert logged
    assert logged[0].exc_info[1] is error


def test_what_grpc_says_itself_is_typed_too(failing: tuple[Failing, TierClient]) -> None:
    _, client = failing
    with pytest.raises(errors.ServerFailed, match="another version"):
        client.delete("/a")


def test_a_table_must_be_whole_and_clear() -> None:
    with pytest.raises(ValueError, match="no class for UNAVAILABLE"):
        ErrorTable({errors.ServerFailed: grpc.StatusCode.INTERNAL})
    twin = type("ServerFailed", (Exception,), {})
    with pytest.raises(ValueError, match="same name"):
        ErrorTable({**TIER_ERRORS.codes, twin: grpc.StatusCode.INTERNAL})


# ---- bytes that are no messages

METHODS = [
    *tier_pb2.DESCRIPTOR.services_by_name["Tier"].methods,
    *files_pb2.DESCRIPTOR.services_by_name["Files"].methods,
]


@settings(max_examples=150)
@given(st.sampled_from(METHODS), st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_any_bytes_get_an_answer_or_an_error(shared_server: object, method: object, messages: list[bytes]) -> None:
    with channel("127.0.0.1", shared_server.port) as plain:
        path = f"/{method.containing_service.full_name}/{method.name}"
        streams = plain.stream_stream if method.client_streaming else plain.unary_stream
        given_messages = iter(messages) if method.client_streaming else messages[0]
        with_errors = streams(path)(given_messages, timeout=10)
        with contextlib.suppress(grpc.RpcError):
            list(with_errors)
        assert with_errors.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert shared_server.process.poll() is None


def test_nobody_changes_blocks_behind_the_catalog() -> None:
    methods = tier_pb2.DESCRIPTOR.services_by_name["Tier"].methods
    assert [method.name for method in methods] == ["Hello", "Status", "ReadBlock"]


Text = st.sampled_from(["/a", "/a/b", "", "../x", "/\x00", "x" * 3000, "/ü"])
Number = st.sampled_from([0, 1, -1, 5, 1 << 40, (1 << 63) - 1, -(1 << 63)])
Requests = st.builds(tier_pb2.ReadBlockRequest, path=Text, offset_bytes=Number, limit_bytes=Number)


@settings(max_examples=150)
@given(Requests)
def test_any_messages_get_an_answer_or_a_typed_error(shared_server: object, wanted: object) -> None:
    with channel("127.0.0.1", shared_server.port) as plain:
        found: errors.TierError | None = None
        try:
            with TIER_ERRORS.translated():
                list(tier_pb2_grpc.TierStub(plain).ReadBlock(wanted, timeout=10))
        except errors.TierError as error:
            found = error
    assert not isinstance(found, errors.ServerFailed | errors.Unreachable | errors.DeadlineExceeded), found
    assert shared_server.process.poll() is None
