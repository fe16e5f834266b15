"""Pushes and pulls by a server's line: the bytes of a vector follow the message, and stop nowhere in between.

The same calls with the same messages as by gRPC, which for Python copies each piece four times and hands it from thread
to thread. For whole vectors of float32 only: what a compression codes goes by gRPC, it is for links slower than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coproc.layout import Flat
from coproc.v1 import coproc_pb2 as pb
from coproc.wire import ERRORS, Filling, as_coproc
from storage_tier.errors import TierError
from storage_tier.line import Incoming, Lines

PUSH, PULL = "coproc.v1.Coprocessor/Push", "coproc.v1.Coprocessor/Pull"
"""Names of the calls. The message before the bytes of a push is `PushBegin`, before those of a pull `PullResponse`."""


def push(lines: Lines, begin: pb.PushBegin, gradient: Flat | None, deadline_s: float) -> pb.PushResponse:
    """Send a gradient (P,), or a step without one.

    Raises:
        LineDown: nothing was sent. Else as the server says; Unreachable, Timeout: it may be committed.
    """
    raw = [] if gradient is None else [gradient.data.cast("B")]
    with _exchange(lines, PUSH, begin, pb.PushResponse, deadline_s, raw) as incoming:
        answer: pb.PushResponse = incoming.first
        return answer


def pull(lines: Lines, request: pb.PullRequest, out: Flat, deadline_s: float) -> pb.ResponseHeader:
    """One whole version into `out` (P,); its number, and its model's epoch.

    Raises:
        LineDown: nothing was asked. Else as the server says; Unreachable, Timeout: `out` may be parts of two versions.
    """
    with _exchange(lines, PULL, request, pb.PullResponse, deadline_s) as incoming:
        filling = Filling(out, "the model")
        filling.receive(incoming)
        filling.finish()
        header: pb.ResponseHeader = incoming.first.header
        return header


@contextmanager
def _exchange(
    lines: Lines, name: str, request: Any, answer_class: Any, deadline_s: float, raw: list[memoryview] | None = None
) -> Iterator[Incoming]:
    given = raw or []
    try:
        with lines.exchange(name, request, answer_class, deadline_s, given, sum(map(len, given)), ERRORS) as incoming:
            yield incoming
    except TierError as error:
        raise as_coproc(error) from None
