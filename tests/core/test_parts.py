"""Messages of Push and Pull that are written and read by hand are those of protobuf."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from coproc import wire
from coproc.compression.feedback import Part
from coproc.errors import ConfigError
from coproc.v1 import coproc_pb2 as pb

KINDS = [
    (pb.PushRequest, wire._PUSH_CHUNK),
    (pb.PushPullRequest, wire._PUSH_CHUNK),
    (pb.PullResponse, wire._PULL_CHUNK),
    (pb.PushPullResponse, wire._PULL_CHUNK),
]


@pytest.mark.parametrize("length", [1, 2, 127, 128, 16_383, 16_384, 1 << 20, (1 << 21) + 5])
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize(("kind", "tag"), KINDS)
def test_a_part_is_the_message_of_protobuf(kind, tag, coded, length):
    data = bytes(range(256)) * (length // 256 + 1)
    data = data[:length]
    written = wire._written(Part(memoryview(data), coded), tag)
    assert written == kind(**{"coded" if coded else "chunk": data}).SerializeToString()
    assert wire._read(written, kind, tag) == (data, coded)


def test_a_part_without_bytes_is_one_too():
    for kind, tag in KINDS:
        assert kind.FromString(wire._written(Part(b"", True), tag)).coded == b""
        assert wire._read(wire._written(Part(b"", True), tag), kind, tag) == (b"", True)


@pytest.mark.parametrize(("length", "count"), [(0, 1), (1, 1), (wire._SMALL_BYTES, 1), (wire._SMALL_BYTES + 1, 2)])
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("more", [[], [Part(b"more", False)]])
def test_a_small_part_goes_with_the_message_before_it(length, count, coded, more):
    begin = pb.PushPullBegin(min_version=5)
    sent = [Part(bytes(length), coded), *more]
    messages = list(wire.led(pb.PushPullRequest(begin=begin), sent))
    assert len(messages) == count + len(more)
    assert messages[0].begin == begin
    assert [part for part in wire.parts(messages) if part.data] == [part for part in sent if part.data]
    assert list(wire.led(pb.PushPullRequest(begin=begin), [])) == [pb.PushPullRequest(begin=begin)]


def fields():
    chunk = st.builds(lambda data, coded: ("coded" if coded else "chunk", data), st.binary(max_size=300), st.booleans())
    return st.lists(st.one_of(chunk, st.just(("begin", pb.PushBegin(step=5)))), max_size=3)


@given(fields())
def test_what_else_protobuf_may_write_is_read_as_by_protobuf(given_fields):
    """Several fields in one message: the last one counts."""
    written = b"".join(pb.PushRequest(**{name: value}).SerializeToString() for name, value in given_fields)
    [part] = wire.parts([wire._read(written, pb.PushRequest, wire._PUSH_CHUNK)])
    message = pb.PushRequest.FromString(written)
    assert part.data == (message.coded or message.chunk)
    assert not part.data or part.coded == (message.WhichOneof("part") == "coded")


@given(st.binary(max_size=50))
@example(bytes([wire._PUSH_CHUNK]))
@example(bytes([wire._PUSH_CHUNK, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]))
@example(bytes([wire._CODED, 5, 1, 2]))
def test_any_bytes_are_read_as_by_protobuf_or_refused(data):
    try:
        expected = pb.PushRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            wire._read(data, pb.PushRequest, wire._PUSH_CHUNK)
        return
    [part] = wire.parts([wire._read(data, pb.PushRequest, wire._PUSH_CHUNK)])
    assert part.data == (expected.coded or expected.chunk)


def test_a_vector_takes_no_more_and_no_less_than_it_has():
    out = np.zeros(10, np.float32)
    filling = wire.Filling(out, "it")
    filling.add(memoryview(np.arange(10, dtype=np.float32)).cast("B")[:13])
    with pytest.raises(ConfigError, match="only 13 were sent"):
        filling.finish()
    with pytest.raises(ConfigError, match="more than that"):
        filling.add(bytes(28))
    filling.add(memoryview(np.arange(10, dtype=np.float32)).cast("B")[13:])
    filling.finish()
    np.testing.assert_array_equal(out, np.arange(10))
    assert not filling.finite, "a value that comes in two pieces is not looked at here"


@pytest.mark.parametrize(("value", "finite"), [(1e30, True), (np.inf, False), (np.nan, False)])
def test_a_vector_knows_whether_it_is_finite(value, finite):
    values = np.ones(10, np.float32)
    values[7] = value
    filling = wire.Filling(np.zeros(10, np.float32), "it")
    for part in wire.plain_parts(values):
        filling.add(part.data)
    assert filling.finite == finite
