"""fsspec's own suites, against every way in which a tier can hold a path."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator
from typing import Any

import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

from coproc import LocalCluster
from storage_tier.client import TierClient
from storage_tier.filesystem import TierFileSystem

from .s3_endpoint import S3Endpoint, s3_server  # noqa: F401


class Suites(
    AbstractCopyTests, AbstractGetTests, AbstractPutTests, AbstractOpenTests, AbstractPipeTests, AbstractFixtures
):
    """All five."""

    @pytest.fixture
    def fs_path(self) -> str:
        return "/tests"


def slow(test: Any) -> Any:
    """A copy of a test that only runs with --slow."""
    copy = types.FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__)
    copy.pytestmark = [*test.pytestmark, pytest.mark.slow.mark]
    return copy


class Elsewhere(Suites):
    """All five. The 96 patterns are resolved by the filesystem alone, wherever the files are: with --slow only."""

    test_copy_glob_edge_cases = slow(AbstractCopyTests.test_copy_glob_edge_cases)
    test_get_glob_edge_cases = slow(AbstractGetTests.test_get_glob_edge_cases)
    test_put_glob_edge_cases = slow(AbstractPutTests.test_put_glob_edge_cases)


class Rotating(TierFileSystem):
    """Asks another server each time."""

    @property
    def client(self) -> TierClient:
        return next(self._turns)

    @client.setter
    def client(self, made: TierClient) -> None:
        self.clients = [TierClient(self.address, server_index=index) for index in range(self.address.count(",") + 1)]
        self._turns = itertools.cycle(self.clients)


class TestOneServer(Suites):
    @pytest.fixture(scope="class")
    @classmethod
    def fs(cls) -> Iterator[TierFileSystem]:
        with LocalCluster(1, memory_bytes=64 << 20) as cluster:
            fs = TierFileSystem(address=cluster.address, skip_instance_cache=True)
            # Connects here, so that the connection is the class's.
            assert fs.ls("/") == []
            yield fs
            fs.close()


class TestFromAnotherHost(Elsewhere):
    @pytest.fixture(scope="class")
    @classmethod
    def fs(cls) -> Iterator[TierFileSystem]:
        with LocalCluster(1, memory_bytes=64 << 20) as cluster:
            fs = TierFileSystem(address=cluster.address, near=False, skip_instance_cache=True)
            assert fs.ls("/") == []
            yield fs
            fs.close()


class TestThreeServers(Elsewhere):
    @pytest.fixture(scope="class")
    @classmethod
    def fs(cls) -> Iterator[TierFileSystem]:
        with LocalCluster(3, memory_bytes=64 << 20) as cluster:
            fs = Rotating(address=cluster.address, skip_instance_cache=True)
            fs.pipe("/seen", b"by all")
            assert [client.open("/seen").data for client in fs.clients] == [b"by all"] * 3
            yield fs
            for client in fs.clients:
                client.close()


class TestAfterARestart(Elsewhere):
    @pytest.fixture(scope="class")
    @classmethod
    def fs(cls) -> Iterator[TierFileSystem]:
        with LocalCluster(2, memory_bytes=64 << 20) as cluster:
            fs = TierFileSystem(address=cluster.address, skip_instance_cache=True)
            fs.pipe("/tests/before/a", b"from before")
            for server in cluster.servers:
                server.kill()
            for server in cluster.servers:
                server.restart()
            assert fs.cat("/tests/before/a") == b"from before"
            yield fs
            assert fs.cat("/tests/before/a") == b"from before"
            fs.close()


class TestBelowAnS3Mount(Elsewhere):
    @pytest.fixture(scope="class")
    @classmethod
    def fs(cls, s3_server: S3Endpoint) -> Iterator[TierFileSystem]:  # noqa: F811
        bucket = s3_server.make_bucket()
        with LocalCluster(1, memory_bytes=64 << 20) as cluster:
            fs = TierFileSystem(address=cluster.address, skip_instance_cache=True)
            fs.client.mount("/lake", f"s3://{bucket}/tier", s3_server.options, "cache_through")
            fs.pipe("/lake/kept/a", b"through")
            assert s3_server.get(bucket, "tier/kept/a") == b"through"
            yield fs
            assert s3_server.get(bucket, "tier/kept/a") == b"through"
            fs.close()
        s3_server.forget()

    @pytest.fixture
    def fs_path(self) -> str:
        return "/lake/tests"
