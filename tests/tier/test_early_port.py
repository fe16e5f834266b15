"""A port that is open before its services are there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from storage_tier.error_table import TIER_ERRORS
from storage_tier.server.rpc import RpcServer
from storage_tier.v1 import tier_pb2, tier_pb2_grpc
from storage_tier.wire import channel

STATUS = "/storage_tier.v1.Tier/Status"


class Service(tier_pb2_grpc.TierServicer):
    @TIER_ERRORS.handler
    def Status(self, request: object, context: object) -> object:
        return tier_pb2.StatusResponse(directory="whole")

    @TIER_ERRORS.handler
    def ReadBlock(self, request: tier_pb2.ReadBlockRequest, context: object) -> Iterator[object]:
        yield from (tier_pb2.ReadBlockResponse(chunk=part) for part in (b"a", request.path.encode()))


@pytest.fixture
def server() -> Iterator[RpcServer]:
    with RpcServer() as server:
        yield server


class Seen:
    """Answers early what the test says, and tells that it was asked."""

    def __init__(self, answer: list[bytes] | None) -> None:
        self._answer = answer
        self.asked = threading.Event()

    def __call__(self, request: bytes) -> list[bytes] | None:
        self.asked.set()
        return self._answer


def status(port: int, timeout_s: float = 20) -> str:
    with channel("127.0.0.1", port) as plain:
        return tier_pb2_grpc.TierStub(plain).Status(tier_pb2.StatusRequest(), timeout=timeout_s).directory


def test_an_early_answer_until_the_service_is_there(server: RpcServer) -> None:
    port = server.begin({STATUS: Seen([tier_pb2.StatusResponse(directory="early").SerializeToString()])})
    assert status(port) == "early"
    server.add(lambda made: tier_pb2_grpc.add_TierServicer_to_server(Service(), made), "storage_tier.v1.Tier")
    assert status(port) == "early"
    assert server.start() == port
    assert status(port) == "whole"


def test_what_has_to_wait_goes_on_with_its_request(server: RpcServer) -> None:
    first = Seen(None)
    port = server.begin({STATUS: first, "/storage_tier.v1.Tier/ReadBlock": (second := Seen(None))})

    def read() -> list[bytes]:
        with channel("127.0.0.1", port) as plain:
            answers = tier_pb2_grpc.TierStub(plain).ReadBlock(tier_pb2.ReadBlockRequest(path="/p"), timeout=20)
            return [answer.chunk for answer in answers]

    with ThreadPoolExecutor(2) as threads:
        asked, read_ = threads.submit(status, port), threads.submit(read)
        assert first.asked.wait(20)
        assert second.asked.wait(20)
        server.add(lambda made: tier_pb2_grpc.add_TierServicer_to_server(Service(), made))
        assert not asked.done()
        server.start()
        assert asked.result(20) == "whole"
        assert read_.result(20) == [b"a", b"/p"]


def test_a_wait_ends_with_its_call_and_with_the_server(server: RpcServer) -> None:
    early = Seen(None)
    port = server.begin({STATUS: early})
    with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
        status(port, 0.2)
    early.asked.clear()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(status, port)
        assert early.asked.wait(20)
        server.stop()
        with pytest.raises(grpc.RpcError, match="does not serve yet"):
            asked.result(20)
