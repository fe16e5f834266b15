"""Messages between a server and the process of an observer: a JSON object and a few descriptors.

bytes 0-3   'TOB1'
bytes 4-7   length of the rest, little-endian
rest        JSON, UTF-8

Descriptors travel beside the first byte (SCM_RIGHTS). Nothing executable ever crosses. Who reads trusts
nothing: what is not a frame is `BadFrame`, and whatever came with it is closed.
"""

from __future__ import annotations

import array
import json
import math
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_MAGIC = b"TOB1"
_PREFIX = struct.Struct("<4sI")
# A page of a listing or a batch of commits: 256 files whose metadata may have 64 KiB, six characters a byte.
MAX_FRAME_BYTES = 128 << 20
MAX_DESCRIPTOR_COUNT = 4
# A message as a rule; one side sends only after the other, so that what comes at once is one message.
_FIRST_BYTES = 1 << 16
# Plain numbers: an operation on flags of `socket` takes as long as a system call.
_SEND_FLAGS = int(socket.MSG_DONTWAIT) | int(socket.MSG_NOSIGNAL)
_RECEIVE_FLAGS = int(socket.MSG_DONTWAIT) | int(socket.MSG_CMSG_CLOEXEC)
_TRUNCATED = int(socket.MSG_CTRUNC)
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_INT_BYTES = array.array("i").itemsize

_DESCRIPTORS_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTOR_COUNT * _INT_BYTES)

Header = dict[str, Any]


class BadFrame(Exception):
    """What came is not a message of this protocol."""


class Ended(Exception):
    """The other side is gone."""


class Late(Exception):
    """The time is up."""


Wait = Callable[[socket.socket, int, float], None]
"""Wait until a socket is ready for an event of `poll`, at most until a moment of the monotonic clock, or `Late`."""


def wait_ready(connection: socket.socket, event: int, deadline_s: float) -> None:
    """The plain `Wait`."""
    poller = select.poll()
    poller.register(connection, event)
    left_ms = (deadline_s - time.monotonic()) * 1000
    if not poller.poll(None if left_ms == math.inf else max(0.0, left_ms)):
        raise Late


def send(
    connection: socket.socket,
    header: Header,
    descriptors: Sequence[int] = (),
    deadline_s: float = math.inf,
    wait: Wait = wait_ready,
) -> None:
    """Send one frame. The descriptors stay the caller's.

    Raises:
        Ended, Late; BadFrame: it is too long to send.
    """
    body = _ENCODE(header).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise BadFrame(f"a message of {len(body):,} bytes, and {MAX_FRAME_BYTES:,} are allowed")
    rest = memoryview(_PREFIX.pack(_MAGIC, len(body)) + body)
    beside: list[tuple[int, int, Any]] = []
    if descriptors:
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    while rest:
        try:
            sent_bytes = connection.sendmsg([rest], beside, _SEND_FLAGS)
        except BlockingIOError:
            wait(connection, select.POLLOUT, deadline_s)
            continue
        except OSError as error:
            raise Ended from error
        rest, beside = rest[sent_bytes:], []


def receive(
    connection: socket.socket,
    deadline_s: float = math.inf,
    wait: Wait = wait_ready,
    limit_bytes: int = MAX_FRAME_BYTES,
) -> tuple[Header, list[int]]:
    """Receive one frame. The descriptors, close-on-exec, are the caller's to close.

    Raises:
        Ended, Late; BadFrame: not a frame, too long, too many descriptors, not a JSON object.
    """
    descriptors: list[int] = []
    try:
        read = bytearray()
        while len(read) < _PREFIX.size:
            read += _read(connection, _FIRST_BYTES, descriptors, deadline_s, wait)
        magic, length_bytes = _PREFIX.unpack_from(read)
        end = _PREFIX.size + length_bytes
        if magic != _MAGIC or length_bytes > limit_bytes:
            raise BadFrame(f"bytes that begin no message: {bytes(read[:16])!r}")
        while len(read) < end:
            read += _read(connection, min(end - len(read), 1 << 20), None, deadline_s, wait)
        if len(read) > end:
            raise BadFrame("more than one message at once")
        try:
            header = json.loads(read[_PREFIX.size :])
        except (ValueError, RecursionError) as error:
            raise BadFrame(f"a message that is not JSON: {error}") from None
        if not isinstance(header, dict):
            raise BadFrame(f"a message that is a {type(header).__name__} and not an object")
    except BaseException:
        close_all(descriptors)
        raise
    return header, descriptors


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that came with a frame."""
    for descriptor in descriptors:
        os.close(descriptor)


def _read(
    connection: socket.socket, limit_bytes: int, descriptors: list[int] | None, deadline_s: float, wait: Wait
) -> bytes:
    """What there is, at least a byte. Without `descriptors` the kernel closes those that come."""
    room_bytes = 0 if descriptors is None else _DESCRIPTORS_BYTES
    while True:
        try:
            part, beside, state, _ = connection.recvmsg(limit_bytes, room_bytes, _RECEIVE_FLAGS)
        except BlockingIOError:
            wait(connection, select.POLLIN, deadline_s)
            continue
        except OSError as error:
            raise Ended from error
        for level, kind, payload in beside:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and descriptors is not None:
                whole_bytes = len(payload) - len(payload) % _INT_BYTES
                descriptors.extend(array.array("i", payload[:whole_bytes]))
        if descriptors is not None and state & _TRUNCATED:
            raise BadFrame(f"a message with more than {MAX_DESCRIPTOR_COUNT} descriptors")
        if not part:
            raise Ended
        return part
