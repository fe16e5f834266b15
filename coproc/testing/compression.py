"""What every compression must do: `CompressionSuite`, to be inherited by a test class.

Run over each compression of the folder with its default settings, and over `CASES` besides: a new file is tested by
being there. A compression says itself how much of a value it may lose (`Compression.most_lost`); the suite holds it to
that, and looks that it is never more than the value: then what error feedback keeps does not grow without bounds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coproc.compression import Compression, Replica, Residual, Sending, from_config, registered
from coproc.compression.base import PIECE_FLOATS, pieces
from coproc.errors import ConfigError
from coproc.layout import Flat

CASES: list[tuple[str, dict[str, Any]]] = [
    ("topk", {"fraction": 0.25}),
    ("topk", {"fraction": 1.0}),
    ("topk", {"fraction": 1e-9}),
]
# One value, the ends of blocks of 4,096 and 65,536 values, a whole piece.
SIZES = [1, 100, 4096, 4097, 65_537, PIECE_FLOATS]
# A vector of two pieces and a bit: a stream with an end that is short.
SIZE = 2 * PIECE_FLOATS + 1001
GUARD = 16
MOST = np.finfo(np.float32).max
LEAST = np.finfo(np.float32).smallest_subnormal


def every() -> list[Any]:
    """All compressions, as parameters of a test."""
    found: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in registered()] + CASES
    return [
        pytest.param(from_config({"name": name, **settings}), id="-".join([name, *map(str, settings.values())]))
        for name, settings in found
    ]


def inputs(size: int) -> dict[str, Flat]:
    """Finite vectors (size,) of every kind, by name."""
    random = np.random.default_rng(size)
    normal = random.standard_normal(size)
    kinds: dict[str, Any] = {
        "zeros": np.zeros(size),
        "minus zeros": np.full(size, -0.0),
        "equal": np.full(size, -0.3),
        "normal": normal,
        "small": normal * 1e-7,
        "of all sizes": normal * 10.0 ** random.uniform(-37, 37, size),
        "one large": np.where(np.arange(size) == size // 2, 1e30, normal),
        "subnormal": normal * 1e-40,
        "the largest": np.where(normal > 0, MOST, -MOST),
        "near the largest": normal / 4 * MOST,
        "the smallest": np.where(normal > 0, LEAST, -LEAST),
        "whole": np.rint(normal * 3),
    }
    return {name: np.clip(values, -MOST, MOST).astype(np.float32) for name, values in kinds.items()}


def pushed(compression: Compression, residual: Residual, gradient: Flat) -> Flat:
    """What the other end has of a gradient after one push that is not acknowledged yet."""
    return unpacked(compression, Sending(residual, gradient), np.empty_like(gradient))


def unpacked(compression: Compression, parts: Any, into: Flat, *, add: bool = False) -> Flat:
    """Put a stream of parts into a vector, as the plainest receiver would."""
    start = 0
    for data, coded in parts:
        stop = min(start + PIECE_FLOATS, into.size)
        piece = np.empty(stop - start, np.float32)
        if coded:
            compression.decode(data, piece)
        else:
            piece[:] = np.frombuffer(data, np.float32)
        into[start:stop] = into[start:stop] + piece if add and coded else piece
        start = stop
    assert start == into.size
    return into


def pull(server: Replica, client: Replica, params: Flat) -> None:
    """One pull, from begin to end."""
    number, parts = server.sending(params, client.number)
    client.receiving(number, client.number)
    unpacked(client.compression, parts, client.values, add=True)
    client.complete()
    assert client.number == server.number == number


def gradients(steps: int, size: int = SIZE) -> Iterator[Flat]:
    """Gradients (size,) of a few layers of very different sizes, with a part that does not change."""
    random = np.random.default_rng(1)
    layers = np.repeat([1.0, 1e-4, 30.0], [size // 3, size // 3, size - 2 * (size // 3)])
    steady = random.standard_normal(size)
    for _ in range(steps):
        yield ((steady + random.standard_normal(size)) * layers).astype(np.float32)


class CompressionSuite:
    """Inherit, in a file that pytest collects."""

    @pytest.fixture(params=every())
    def compression(self, request: pytest.FixtureRequest) -> Compression:
        found: Compression = request.param
        return found

    # ------------------------------------------------------- a piece

    @pytest.mark.parametrize("size", SIZES)
    def test_a_piece_comes_back_within_what_may_be_lost(self, compression: Compression, size: int) -> None:
        for kind, values in inputs(size).items():
            before, decoded = values.copy(), np.full(size, np.nan, np.float32)
            data = compression.encode(values, decoded)
            assert len(data) == compression.encoded_bytes(size), kind
            assert data == compression.encode(values, np.empty_like(values)), f"{kind}: other bytes the second time"
            np.testing.assert_array_equal(values, before)
            out = np.full(size + 2 * GUARD, 7, np.float32)
            compression.decode(data, out[GUARD:-GUARD])
            assert out[GUARD:-GUARD].tobytes() == decoded.tobytes(), f"{kind}: the sender believes something else"
            assert (out[:GUARD] == 7).all()
            assert (out[-GUARD:] == 7).all()
            assert np.isfinite(decoded).all(), kind
            lost = np.abs(values.astype(np.float64) - decoded)
            most = compression.most_lost(values)
            worst = int(np.argmax(lost - most))
            assert lost[worst] <= most[worst], f"{kind}: {values[worst]} came as {decoded[worst]}"
            assert (most <= np.abs(values.astype(np.float64))).all(), f"{kind}: may lose more than there is"

    def test_zeros_stay_zeros_and_some_of_anything_else_arrives(self, compression: Compression) -> None:
        for kind, values in inputs(5000).items():
            decoded = np.empty_like(values)
            compression.encode(values, decoded)
            assert (decoded[values == 0] == 0).all(), kind
            if np.abs(values).max() > 1e-30:
                assert decoded.any(), kind

    def test_it_has_fewer_bytes(self, compression: Compression) -> None:
        size = PIECE_FLOATS
        wholly = getattr(compression, "fraction", 0) == 1.0
        assert compression.encoded_bytes(size) < (6.1 if wholly else 2.1) * size

    @given(st.data())
    def test_values_drawn_at_random(self, data: st.DataObject) -> None:
        compression = from_config({"name": data.draw(st.sampled_from(sorted(registered())))})
        floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
        values = np.array(data.draw(st.lists(floats, min_size=1, max_size=40)), np.float32)
        decoded = np.empty_like(values)
        compression.decode(compression.encode(values, np.empty_like(values)), decoded)
        lost = np.abs(values.astype(np.float64) - decoded)
        assert (lost <= compression.most_lost(values)).all()

    # ------------------------------------------------------- hostile bytes

    @pytest.mark.parametrize("size", [1, 100, 5000, 65_537])
    def test_another_number_of_bytes_is_refused(self, compression: Compression, size: int) -> None:
        right = compression.encoded_bytes(size)
        for wrong in {0, 1, right - 1, right + 1, 2 * right, 4 * size + 1} - {right}:
            with pytest.raises(ConfigError, match=rf"{right:,} bytes in {compression.name}"):
                compression.decode(bytes(wrong), np.empty(size, np.float32))

    @given(st.data())
    def test_any_bytes_are_refused_or_stay_in_their_place(self, data: st.DataObject) -> None:
        compression = from_config({"name": data.draw(st.sampled_from(sorted(registered())))})
        size = data.draw(st.integers(1, 300))
        count = compression.encoded_bytes(size)
        sent = data.draw(st.one_of(st.binary(min_size=count, max_size=count), st.binary(max_size=2 * count)))
        out = np.full(size + 2 * GUARD, 7, np.float32)
        try:
            compression.decode(sent, out[GUARD:-GUARD])
        except ConfigError:
            pass
        else:
            assert len(sent) == count
        assert (out[:GUARD] == 7).all()
        assert (out[-GUARD:] == 7).all()

    # ------------------------------------------------------- error feedback

    def test_what_arrives_of_all_pushes_is_what_was_pushed(self, compression: Compression) -> None:
        """Sum of decoded + residual = sum of gradients: nothing is lost, but for the rounding of float32 sums."""
        residual = Residual(compression, SIZE)
        there, here, rounding = (np.zeros(SIZE, np.float64) for _ in range(3))
        for step, gradient in enumerate(gradients(12)):
            residual.begin(step)
            before = residual.kept.copy()
            there += pushed(compression, residual, gradient)
            residual.answered(step, False, False, "lease")
            here += gradient
            rounding += 2.0**-23 * (np.abs(gradient) + np.abs(residual.kept))
        assert (np.abs(here - there - residual.kept) <= rounding).all()
        for at in pieces(SIZE):
            most = compression.most_lost((gradient + before)[at])
            assert (np.abs(residual.kept[at]) <= most * (1 + 2.0**-20)).all(), "more is left out than one step may lose"

    def test_a_flush_leaves_nothing_out(self, compression: Compression) -> None:
        residual = Residual(compression, SIZE)
        there, here = np.zeros(SIZE, np.float64), np.zeros(SIZE, np.float64)
        for step, gradient in enumerate(gradients(3)):
            parts = Sending(residual, gradient, everything=step == 2)
            there += unpacked(compression, parts, np.empty(SIZE, np.float32))
            residual.answered(step, False, False, "lease")
            here += gradient
        assert not residual.kept.any()
        np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-4)

    def test_differences_bring_the_client_to_the_parameters(self, compression: Compression) -> None:
        """With pushes stopped, what is still different is less with each pull, and at last nothing at all."""
        most_pulls = 6 * 4 * PIECE_FLOATS // compression.encoded_bytes(PIECE_FLOATS)
        first, last = gradients(2, 70_000)
        server, client = Replica(compression, first.size), Replica(compression, last.size)
        pull(server, client, first)
        assert client.values.tobytes() == first.tobytes(), "the first pull is not exact"
        different = np.inf
        for _ in range(most_pulls if most_pulls < 1000 else 5):
            pull(server, client, last)
            assert client.values.tobytes() == server.values.tobytes()
            before, different = different, float(np.linalg.norm(client.values.astype(np.float64) - last))
            assert different < before
            if different == 0:
                break
        else:
            assert most_pulls > 1000, f"after {most_pulls} pulls still {different} are different"

    # ------------------------------------------------------- as a value

    def test_it_travels_as_json(self, compression: Compression) -> None:
        assert from_config(json.loads(json.dumps(compression.to_config()))) == compression
        assert hash(compression) == hash(from_config(compression.to_config()))

    def test_an_unknown_setting_is_refused(self, compression: Compression) -> None:
        with pytest.raises(ConfigError, match=f"compression {compression.name} has no setting level"):
            from_config({**compression.to_config(), "level": 9})
