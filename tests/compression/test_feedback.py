"""What is left out is sent once: after lost answers, twins, refusals, and streams that break off."""

from __future__ import annotations

import numpy as np
import pytest

from coproc import compression
from coproc.compression import Int8, Replica, Residual, Sending, TopK
from coproc.compression.base import PIECE_FLOATS
from coproc.errors import ConfigError
from coproc.testing.compression import pull, unpacked

SIZE = PIECE_FLOATS + 777
G = np.random.default_rng(3).standard_normal(SIZE).astype(np.float32)


def send(residual, gradient=G):
    return list(Sending(residual, gradient))


@pytest.fixture
def residual():
    made = Residual(TopK(0.1), SIZE)
    made.begin(0)
    send(made)
    made.answered(0, False, False, "a")
    assert made.kept.any()
    return made


def test_the_same_step_sent_again_has_the_same_bytes(residual):
    kept = residual.kept.copy()
    once = send(residual)
    residual.doubt(1, "a")
    residual.begin(1)
    assert send(residual) == once
    np.testing.assert_array_equal(residual.kept, kept)


@pytest.mark.parametrize(
    ("doubts", "duplicate", "own", "lease", "counted"),
    [
        ([], False, False, "a", True),  # plain
        ([], True, False, "a", False),  # a twin was first
        (["a"], True, True, "a", True),  # the answer was lost
        (["a"], True, False, "a", False),  # a twin was first, and the answer that said so was lost
        (["a"], False, False, "a", True),  # it had not come through
        (["a"], True, False, "b", True),  # the server was restarted after it was committed
        (["a", "b"], True, False, "b", True),
        (["a"], False, False, "b", True),  # the server was restarted before
    ],
)
def test_the_residual_follows_what_is_in_the_model(residual, doubts, duplicate, own, lease, counted):
    before = residual.kept.copy()
    residual.begin(1)
    for doubted in doubts:
        send(residual)
        residual.doubt(1, doubted)
    send(residual)
    after = residual.next.copy()
    residual.answered(1, duplicate, own, lease)
    np.testing.assert_array_equal(residual.kept, after if counted else before)
    residual.begin(2)
    np.testing.assert_array_equal(residual.kept, after if counted else before)


def test_a_step_that_was_never_answered_is_there_when_a_later_one_is_pushed(residual):
    send(residual)
    residual.doubt(1, "a")
    after = residual.next.copy()
    residual.begin(2)
    np.testing.assert_array_equal(residual.kept, after)
    residual.begin(3)
    np.testing.assert_array_equal(residual.kept, after)


def test_a_stream_that_has_ended_changes_nothing_more(residual):
    broken = Sending(residual, G)
    parts = iter(broken)
    next(parts)
    broken.end()
    assert not broken.handed_over
    whole = Sending(residual, G)
    list(whole)
    assert whole.handed_over
    after = residual.next.copy()
    assert list(parts) == []
    np.testing.assert_array_equal(residual.next, after)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_travels_as_it_is_and_leaves_nothing_behind(residual, bad):
    kept = residual.kept.copy()
    gradient = G.copy()
    gradient[5] = bad
    parts = send(residual, gradient)
    assert [coded for _, coded in parts] == [False, True]
    there = unpacked(residual.compression, parts, np.empty(SIZE, np.float32))
    np.testing.assert_array_equal(there[5], bad)
    assert np.isfinite(residual.next).all()
    np.testing.assert_array_equal(residual.kept, kept)


def pair():
    return Replica(Int8(), SIZE), Replica(Int8(), SIZE)


def coded(server, params, held):
    return [coded for _, coded in server.sending(params, held)[1]]


def test_a_pull_that_breaks_off_is_followed_by_a_whole_one():
    server, client = pair()
    pull(server, client, G)
    _, parts = server.sending(2 * G, client.number)
    assert next(parts)[1]
    parts.close()
    assert server.number == 0
    client.receiving(3, client.number)
    assert client.number == 0
    assert coded(server, 2 * G, client.number) == [False, False]


def test_another_number_than_the_servers_is_followed_by_a_whole_one():
    server, client = pair()
    for held in (0, 1, 2, 99, -1):
        pull(server, client, G)
        assert coded(server, G, held if held != client.number else held + 1) == [False, False]
    pull(server, client, G)
    assert coded(server, G, client.number) == [True, True]


def test_parameters_that_are_not_finite_arrive_as_they_are():
    server, client = pair()
    pull(server, client, G)
    params = G.copy()
    params[[3, SIZE - 1]] = np.nan, np.inf
    for _ in range(2):
        pull(server, client, params)
        np.testing.assert_array_equal(client.values[[3, SIZE - 1]], params[[3, SIZE - 1]])
    pull(server, client, G)
    np.testing.assert_array_equal(client.values, G)


def test_a_difference_larger_than_float32_is_sent_as_the_parameters():
    server, client = pair()
    large = np.full(SIZE, 3e38, np.float32)
    pull(server, client, large)
    pull(server, client, -large)
    np.testing.assert_array_equal(client.values, -large)


# ---- names


def test_names_and_values():
    assert compression.as_compression(None) is None
    assert compression.as_compression("none") is None
    assert compression.as_compression("topk") == TopK(fraction=0.01)
    assert compression.as_compression(TopK(0.5)) == TopK(fraction=0.5)
    assert {"fp16", "bf16", "int8", "topk"} <= set(compression.registered())


@pytest.mark.parametrize("name", ["gzip", "", "base", "feedback", "os.system", "BF16"])
def test_an_unknown_name_is_refused_with_those_there_are(name):
    with pytest.raises(ConfigError, match="there are none, bf16, fp16, int8, topk"):
        compression.as_compression(name)


@pytest.mark.parametrize("value", [7, b"bf16", {"name": "bf16"}, TopK])
def test_what_is_no_compression_is_refused(value):
    with pytest.raises(ConfigError, match="must be a name or one of"):
        compression.as_compression(value)


@pytest.mark.parametrize("config", [None, [], "bf16", {}, {"name": None}, {"name": ["bf16"]}, {"fraction": 1}])
def test_what_describes_none_is_refused(config):
    with pytest.raises(ConfigError):
        compression.from_config(config)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, np.nan, np.inf, "1", None, True])
def test_a_fraction_that_cannot_be_is_refused(fraction):
    with pytest.raises(ConfigError, match="greater than 0 and at most 1"):
        TopK(fraction)


# ---- hostile bytes that only one compression knows


def topk(places, values, size=100):
    return np.array(places, "<u2").tobytes() + np.array(values, "<f4").tobytes(), np.empty(size, np.float32)


def test_topk_refuses_places_that_are_repeated_descend_or_are_not_there():
    code = TopK(0.03)
    code.decode(*topk([0, 5, 99], [1, 2, 3]))
    for places in ([5, 5, 6], [6, 5, 7], [0, 1, 100], [0, 1, 65_535]):
        with pytest.raises(ConfigError, match="must ascend from 0 to at most 99"):
            code.decode(*topk(places, [1, 2, 3]))


def test_fp16_writes_halves_as_numpy_does():
    every = np.arange(1 << 16, dtype=np.uint16)
    halves = every[(every & 0x7FFF) < 0x7C00].view(np.float16)
    values = halves.astype(np.float32)
    code = compression.FP16()
    decoded = np.empty_like(values)
    ones = np.ones(-(-values.size // 4096), np.float32)
    code.decode(ones.tobytes() + halves.tobytes(), decoded)
    assert decoded.tobytes() == values.tobytes()
    random = np.random.default_rng(2).standard_normal(4096).astype(np.float32)
    data = code.encode(random, np.empty_like(random))
    halves = (random / np.frombuffer(data[:4], np.float32)).astype(np.float16)
    assert data[4:] == halves.tobytes()


@pytest.mark.parametrize("half", [np.inf, -np.inf, np.nan])
def test_fp16_refuses_halves_that_are_not_finite(half):
    data = np.float32(1).tobytes() + np.array([1, half], np.float16).tobytes()
    with pytest.raises(ConfigError, match="not finite"):
        compression.FP16().decode(data, np.empty(2, np.float32))


@pytest.mark.parametrize("name", ["int8", "fp16"])
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0])
def test_a_scale_that_is_no_number_is_refused(name, scale):
    code = compression.as_compression(name)
    values = np.ones(5000, np.float32)
    data = bytearray(code.encode(values, np.empty_like(values)))
    data[4:8] = np.float32(scale).tobytes()
    with pytest.raises(ConfigError, match="scale of a block"):
        code.decode(bytes(data), values)
