"""The project's own mode with its model in parts: the conformance suite, on three servers."""

from __future__ import annotations

import functools

import pytest

import coproc
from coproc.modes.coproc import IN_PARTS
from coproc.testing.modes import ModeTests
from coproc.testing.works import Ground, Training


@pytest.fixture(scope="module")
def cluster():
    with coproc.LocalCluster(servers=3, memory_bytes=1 << 28) as cluster:
        yield cluster


class TestInParts(ModeTests):
    modes = ("coproc",)
    training = functools.partial(Training, parts=True)

    @classmethod
    def able(cls, mode):
        return IN_PARTS

    @pytest.fixture
    def ground(self, cluster, request):
        return Ground(cluster.address, spark=lambda: request.getfixturevalue("spark"))
