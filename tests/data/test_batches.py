"""Batches are a function of (seed, epoch, partition, k), cover each row once an epoch, and are scaled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coproc.data.base import Rows
from coproc.data.batches import Batches
from coproc.errors import ConfigError, DataError


def _rows(count: int, width: int = 3, kind: str = "float32") -> Rows:
    """Rows that say which they are, in every feature and in the label."""
    numbers = np.arange(count) % 251
    return Rows(np.repeat(numbers[:, None], width, axis=1).astype(kind), np.arange(count, dtype=np.int32))


@given(count=st.integers(0, 60), batch_size=st.integers(1, 70), epoch=st.integers(0, 3))
def test_an_epoch_has_every_row_once(count: int, batch_size: int, epoch: int) -> None:
    batches = Batches(_rows(count), batch_size, seed=1, partition_index=0)
    seen: list[int] = []
    sizes = []
    for batch in batches.epoch(epoch):
        assert batch.features.dtype == np.float32
        np.testing.assert_array_equal(batch.features[:, 0], batch.labels)
        seen += batch.labels.tolist()
        sizes.append(len(batch.labels))
    assert sorted(seen) == list(range(count))
    assert len(sizes) == batches.steps_per_epoch
    assert all(size == batch_size for size in sizes[:-1])
    assert [batches.examples(k, k + 1) for k in range(len(sizes))] == sizes
    assert batches.examples(0, len(sizes) + 5) == count


def test_a_batch_does_not_depend_on_what_was_read_before() -> None:
    rows = _rows(100)
    one, other = (Batches(rows, 16, seed=9, partition_index=4) for _ in range(2))
    list(one.epoch(0))
    list(one.epoch(3))
    expected = other.batch(1, 2)
    found = one.batch(1, 2)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.features, expected.features)
    assert found.key == expected.key == (9, 1, 4, 2)


def test_each_of_seed_epoch_and_partition_gives_another_order() -> None:
    rows = _rows(100)
    orders = {
        tuple(Batches(rows, 100, seed, partition).batch(epoch, 0).labels.tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
        for partition in (0, 1)
    }
    assert len(orders) == 8


def test_the_order_is_written_down_here_so_that_a_change_is_noticed() -> None:
    # A task that continues on another host, or after an upgrade, must go on in the order it began with.
    assert Batches(_rows(8), 8, seed=1, partition_index=2).order(3).tolist() == [6, 4, 3, 5, 2, 1, 7, 0]


def test_bytes_are_scaled_to_the_same_floats_as_floats_are() -> None:
    as_bytes = Batches(_rows(251, kind="uint8"), 100, 0, 0, scale=255).batch(0, 1)
    first = as_bytes.features.copy()
    as_floats = Batches(_rows(251, kind="float32"), 100, 0, 0, scale=255).batch(0, 1)
    assert first.tobytes() == as_floats.features.tobytes()
    np.testing.assert_allclose(first[:, 0], as_bytes.labels / 255, rtol=1e-6)


def test_the_rows_are_not_changed_and_the_buffers_are_reused() -> None:
    rows = _rows(20)
    before = rows.features.copy()
    batches = Batches(rows, 8, 0, 0, scale=2)
    first = batches.batch(0, 0).features
    assert np.shares_memory(first, batches.batch(0, 1).features)
    assert not np.shares_memory(first, rows.features)
    np.testing.assert_array_equal(rows.features, before)


def test_a_batch_that_does_not_exist_is_a_sentence() -> None:
    batches = Batches(_rows(20), 8, 0, partition_index=5)
    for epoch, k in ((0, 3), (0, -1), (-1, 0)):
        with pytest.raises(DataError, match=r"partition 5 has 3 batches an epoch \(20 rows\)"):
            batches.batch(epoch, k)
    with pytest.raises(DataError, match="0 batches an epoch"):
        Batches(_rows(0), 8, 0, 5).batch(0, 0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"batch_size": 1.5}, "batch_size .* not 1.5"),
        ({"seed": -1}, "seed must be .* at least 0, not -1"),
        ({"partition_index": -2}, "partition_index .* not -2"),
        ({"scale": 0}, "scale .* above 0, not 0"),
        ({"scale": float("nan")}, "scale .* not nan"),
    ],
)
def test_a_setting_that_cannot_work_is_a_sentence(change: dict[str, int], sentence: str) -> None:
    settings = {"batch_size": 8, "seed": 0, "partition_index": 0, "scale": 1, **change}
    with pytest.raises(ConfigError, match=sentence):
        Batches(_rows(20), **settings)
