"""Real servers in processes of their own, and connections to them."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest

from coproc import optim
from coproc.http.client import Connection, Served
from coproc.layout import ParamLayout


@pytest.fixture
def serve():
    """`serve(size, workers=2, …)`: a server of a vector of zeros with learning rate 1; by default in lockstep."""
    with contextlib.ExitStack() as stack:

        def start(size=4, *, workers=2, least=None, most=None):
            served = Served(
                ParamLayout.of({"w": (size,)}),
                np.zeros(size, np.float32),
                optim.SGD(1.0),
                workers=workers,
                min_updates=least or workers or 1,
                max_updates=most or workers or 1,
            )
            stack.callback(served.close)
            started.append(served)
            return served

        started = []
        yield start
        for served in started:
            if not served._log.closed:
                said = os.pread(served._log.fileno(), 10_000, 0).decode()
                assert not said, f"the server has written a log: {said}"


@pytest.fixture
def connect():
    """`connect(served)`: a connection of its own."""
    with contextlib.ExitStack() as stack:

        def to(served, token=None):
            connection = Connection(served.address, token or served.token)
            stack.callback(connection.close)
            return connection

        yield to
