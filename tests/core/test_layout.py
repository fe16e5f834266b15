"""The flat vector: views without copies, shards on cache lines, exact refusals, and the look for what is not finite."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coproc.errors import ConfigError
from coproc.layout import ParamLayout, all_finite

LAYOUT = ParamLayout.of({"a": (2, 3), "b": (4,), "c": ()})


def test_views_share_memory_and_follow_each_other():
    flat = np.arange(11, dtype=np.float32)
    views = LAYOUT.views(flat)
    assert [view.shape for view in views.values()] == [(2, 3), (4,), ()]
    views["b"][:] = -1
    views["c"][...] = -2
    np.testing.assert_array_equal(flat, [0, 1, 2, 3, 4, 5, -1, -1, -1, -1, -2])
    flat.flags.writeable = False
    assert not LAYOUT.views(flat)["a"].flags.writeable


@given(st.integers(1, 5000), st.integers(1, 64))
def test_shards_cover_the_vector_on_cache_lines(size, count):
    layout = ParamLayout.of({"w": (size,)})
    lines = -(-size // 16)
    if count > lines:
        with pytest.raises(ConfigError, match=f"1 to {lines} shards"):
            layout.shards(count)
        return
    shards = layout.shards(count)
    assert shards[0][0] == 0
    assert shards[-1][1] == size
    assert all(a[1] == b[0] for a, b in pairwise(shards))
    assert all(lo % 16 == 0 and hi > lo for lo, hi in shards)
    sizes = [-(-(hi - lo) // 16) for lo, hi in shards]
    assert max(sizes) - min(sizes) <= 1


def test_the_fingerprint_tells_names_shapes_and_order_apart():
    layouts = [{"a": (2, 3), "b": (4,)}, {"b": (4,), "a": (2, 3)}, {"a": (3, 2), "b": (4,)}, {"a": (2, 3), "x": (4,)}]
    assert len({ParamLayout.of(layout).fingerprint for layout in layouts}) == 4
    assert ParamLayout.of(layouts[0]).fingerprint == ParamLayout.of(dict(layouts[0])).fingerprint


@pytest.mark.parametrize(
    "tensors", [{}, {"": (1,)}, {"a": (0,)}, {"a": (-1,)}, {"x" * 300: (1,)}], ids=lambda t: str(t)[:20]
)
def test_what_is_no_layout_is_refused(tensors):
    with pytest.raises(ConfigError):
        ParamLayout.of(tensors)


def test_fill_converts_and_refuses_before_it_writes():
    flat = np.full(11, 7, np.float32)
    good = {"a": np.ones((2, 3), np.float64), "b": np.arange(4), "c": np.float16(5)}
    for bad in ({**good, "d": np.ones(1)}, {"a": good["a"]}, {**good, "b": np.ones(5)}):
        with pytest.raises(ConfigError):
            LAYOUT.fill(flat, bad)
    assert (flat == 7).all()
    assert LAYOUT.fill(flat, good)
    np.testing.assert_array_equal(flat, [1, 1, 1, 1, 1, 1, 0, 1, 2, 3, 5])


@pytest.mark.parametrize("size", [5, 1 << 18, (1 << 18) + 1, 700_001])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_copy_sees_what_is_not_finite_anywhere(size, bad):
    layout = ParamLayout.of({"w": (size,)})
    source, flat = np.full(size, 1e30, np.float32), np.empty(size, np.float32)
    assert layout.fill(flat, {"w": source})  # the squares overflow, the numbers do not
    for at in (0, size // 2, size - 1):
        spoiled = source.copy()
        spoiled[at] = bad
        assert not layout.fill(flat, {"w": spoiled})
        np.testing.assert_array_equal(flat, spoiled)
        assert not all_finite(spoiled)
