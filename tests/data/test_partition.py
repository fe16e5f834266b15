"""A partition's bytes come back as they were, and what cannot be is refused with a sentence."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coproc.data.partition import Partition, encode
from coproc.errors import DataError


def _block(features: Any, labels: Any) -> tuple[bytes, dict[str, Any]]:
    buffers, metadata = encode(np.asarray(features), np.asarray(labels))
    return b"".join(buffers), metadata


@given(
    count=st.integers(0, 40),
    width=st.integers(1, 70),
    features=st.sampled_from(["uint8", "float32"]),
    labels=st.sampled_from(["int32", "float32"]),
)
def test_what_is_stored_comes_back(count: int, width: int, features: str, labels: str) -> None:
    random = np.random.default_rng([count, width])
    rows = random.integers(0, 256, (count, width)).astype(features)
    targets = random.integers(0, 10, count).astype(labels)
    block, metadata = _block(rows, targets)
    assert len(block) == metadata["size_bytes"]
    assert len(block) % 64 == 0
    assert metadata["labels_offset_bytes"] % 64 == 0
    partition = Partition.open(block, metadata)
    assert partition.features.dtype == features
    assert partition.labels.dtype == labels
    np.testing.assert_array_equal(partition.features, rows)
    np.testing.assert_array_equal(partition.labels, targets)
    assert len(partition) == count
    partition.verify()


def test_encoding_arrays_that_are_stored_as_they_are_copies_nothing() -> None:
    features, labels = np.zeros((5, 3), np.uint8), np.zeros(5, np.int32)
    buffers, _ = encode(features, labels)
    assert np.shares_memory(np.frombuffer(buffers[0], np.uint8), features)
    assert any(np.shares_memory(np.frombuffer(each, np.uint8), labels) for each in buffers)


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("bool", "uint8"),
        ("int16", "float32"),
        ("int64", "float32"),
        ("float16", "float32"),
        ("float64", "float32"),
    ],
)
def test_other_numbers_become_what_is_stored(kind: str, stored: str) -> None:
    features = np.array([[0, 1], [1, 1]], kind)
    block, metadata = _block(features, np.array([3, 4]))
    partition = Partition.open(block, metadata)
    assert partition.features.dtype == stored
    np.testing.assert_array_equal(partition.features, features)
    assert partition.labels.dtype == np.int32
    assert Partition.open(*_block(features, np.array([0.5, 1]))).labels.dtype == np.float32


def test_features_in_another_memory_order_come_back() -> None:
    features = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))[:, ::2]
    np.testing.assert_array_equal(Partition.open(*_block(features, np.zeros(3, np.int32))).features, features)


@pytest.mark.parametrize(
    ("features", "labels", "sentence"),
    [
        (np.zeros((2, 2)), np.array([0, 1 << 40]), "labels from 0 to 1099511627776 do not fit in int32"),
        (np.array([[1e300], [0]]), np.zeros(2), "features from 0.0 to 1e\\+300 do not fit in float32"),
        (np.array([["a"], ["b"]]), np.zeros(2), "features must be numbers"),
        (np.zeros(2), np.zeros(2), "features must be two-dimensional"),
        (np.zeros((2, 2)), np.zeros(3), r"labels must be .* of shape \(2,\)"),
        (np.zeros((2, 0)), np.zeros(2), "at least one feature"),
    ],
)
def test_what_cannot_be_stored_is_a_sentence(features: Any, labels: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        encode(features, labels)


def test_views_of_a_mapped_file_are_not_copies_and_cannot_be_written(tmp_path: Path) -> None:
    block, metadata = _block(np.ones((100, 7), np.float32), np.zeros(100, np.int32))
    path = tmp_path / "00000"
    path.write_bytes(block)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        partition = Partition.open(mapped, metadata)
        assert not partition.features.flags.owndata
        assert not partition.features.flags.writeable
        assert not partition.labels.flags.writeable
        assert partition.features.sum() == 700
        del partition


def test_a_writable_buffer_cannot_be_written_through_the_views() -> None:
    block, metadata = _block(np.ones((2, 2), np.uint8), np.zeros(2, np.int32))
    partition = Partition.open(bytearray(block), metadata)
    with pytest.raises(ValueError, match="read-only"):
        partition.features[0, 0] = 1


def test_the_fingerprint_is_of_the_content() -> None:
    features, labels = np.arange(6, dtype=np.uint8).reshape(2, 3), np.array([0, 1], np.int32)
    base = encode(features, labels)[1]["fingerprint"]
    assert encode(features.copy(), labels.copy())[1]["fingerprint"] == base
    others = [
        encode(features[::-1], labels)[1],
        encode(features, labels[::-1])[1],
        encode(features.reshape(3, 2), np.array([0, 1, 0], np.int32))[1],
        encode(features.astype(np.float32), labels)[1],
    ]
    assert len({base, *(each["fingerprint"] for each in others)}) == 5


@pytest.mark.parametrize("where", [0, 5, 64])
def test_a_damaged_block_is_noticed(where: int) -> None:
    block, metadata = _block(np.ones((2, 3), np.uint8), np.zeros(2, np.int32))
    damaged = bytearray(block)
    damaged[where] ^= 4
    partition = Partition.open(damaged, metadata)
    with pytest.raises(DataError, match="damaged, or the rows were ingested again"):
        partition.verify()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "parquet"}, "expected format 'coproc-partition' 1, found 'parquet' 1"),
        ({"format_version": 2}, "found 'coproc-partition' 2"),
        ({"rows": -1}, "rows = -1"),
        ({"rows": "2"}, "rows = '2'"),
        ({"rows": None}, "rows = None"),
        ({"rows": 1000}, "contradicts itself: 1000 rows"),
        ({"width": 1 << 62}, "contradicts itself"),
        ({"features_dtype": "object"}, "features_dtype = 'object', not uint8 or float32"),
        ({"labels_dtype": "float64"}, "labels_dtype = 'float64'"),
        ({"labels_offset_bytes": 0}, "contradicts itself"),
        ({"labels_offset_bytes": 96}, "contradicts itself"),
        ({"features_offset_bytes": 4}, "contradicts itself"),
        ({"size_bytes": 1 << 20}, "a partition of 1048576 bytes was expected, the block has 128"),
        ({"fingerprint": 3}, "no fingerprint"),
    ],
)
def test_metadata_that_cannot_be_is_a_sentence(change: dict[str, Any], sentence: str) -> None:
    block, metadata = _block(np.ones((2, 3), np.uint8), np.zeros(2, np.int32))
    with pytest.raises(DataError, match=sentence):
        Partition.open(block, {**metadata, **change})


def test_a_block_that_was_cut_short_is_a_sentence() -> None:
    block, metadata = _block(np.ones((2, 3), np.uint8), np.zeros(2, np.int32))
    with pytest.raises(DataError, match="128 bytes was expected, the block has 64"):
        Partition.open(block[:64], metadata)


def test_no_rows_are_a_partition_too() -> None:
    for width in (0, 3):
        block, metadata = _block(np.empty((0, width), np.float32), np.empty(0, np.int32))
        partition = Partition.open(block, metadata)
        assert partition.features.shape == (0, width)
        partition.verify()
