"""Talking on a line: a ticket, a question, a time to wait."""

from __future__ import annotations

import time

from storage_tier.line import TICKET_BYTES
from storage_tier.v1 import tier_pb2

TICKET = bytes(range(TICKET_BYTES))
MIB = 1 << 20


def soon(timeout_s: float = 10.0) -> float:
    return time.monotonic() + timeout_s


ASK = ("Status", tier_pb2.StatusRequest(), tier_pb2.StatusResponse)
