"""Copies past the caches are copies, wherever rows begin and end."""

from __future__ import annotations

import numpy as np
import pytest

from coproc.server.copying import copy_all

LARGE = 1 << 18


@pytest.mark.parametrize("size", [0, 1, 15, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE + 17])
@pytest.mark.parametrize(("to", "of"), [(0, 0), (1, 0), (0, 1), (7, 5), (15, 15)])
def test_all_of_a_row_and_nothing_beside_it(size, to, of):
    source = np.random.default_rng(1).standard_normal(size + 32).astype(np.float32)
    target = np.full(size + 32, np.nan, np.float32)
    copy_all([(target[to : to + size], source[of : of + size])])
    np.testing.assert_array_equal(target[to : to + size], source[of : of + size])
    assert np.isnan(target[:to]).all()
    assert np.isnan(target[to + size :]).all()


def test_many_rows_at_once():
    source = np.random.default_rng(2).standard_normal((5, LARGE + 3)).astype(np.float32)
    target = np.empty_like(source)
    copy_all(zip(target, source, strict=True))
    np.testing.assert_array_equal(target, source)
