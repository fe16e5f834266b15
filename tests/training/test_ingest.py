"""Ingest without Spark: what the blocks hold, and every sentence for data that cannot be trained on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coproc.data.base import Rows
from coproc.errors import ConfigError, DataError
from coproc.ingest import ingest_table, open_partition, put_partition
from storage_tier import TierClient


def table(count=10, **columns):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(count, 3)).astype(np.float32)
    plain = {"features": pa.array(list(features), pa.list_(pa.float32())), "label": np.arange(count) % 2}
    return pa.table({**plain, **columns})


def ingest(data, destination, **changes):
    wanted = {"partitions_count": 2, "features": "features", "label": "label", **changes}
    return ingest_table(data, destination, **wanted)


def all_rows(ingested):
    """(features, labels) of all partitions, in an order of their own content."""
    parts = [open_partition(ingested.destination, each.partition) for each in ingested.partitions]
    features = np.concatenate([part.features for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    order = np.lexsort((*features.T, labels))
    return features[order], labels[order]


def test_every_row_is_in_one_partition(destination):
    data = table(11)
    ingested = ingest(data, destination, partitions_count=3)
    assert [each.rows for each in ingested.partitions] == [4, 4, 3]
    assert (ingested.rows_count, ingested.width, ingested.classes) == (11, 3, 2)
    features, labels = all_rows(ingested)
    expected = np.array(data["features"].to_pylist(), np.float32)
    order = np.lexsort((*expected.T, data["label"].to_numpy()))
    np.testing.assert_array_equal(features, expected[order])
    np.testing.assert_array_equal(labels, data["label"].to_numpy()[order])


def test_the_partitions_are_a_function_of_the_seed(destination, tier_address):
    first = ingest(table(20), destination, seed=1)
    with pytest.raises(DataError, match="not computed deterministically"):
        ingest(table(20), destination, seed=2)
    again = ingest(table(20), destination, seed=1)
    assert again == first


def test_bytes_stay_bytes(destination):
    images = np.arange(60, dtype=np.uint8).reshape(10, 6)
    data = table(features=pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 6))
    ingested = ingest(data, destination)
    assert ingested.features_dtype == "uint8"
    assert open_partition(destination, 0).features.dtype == np.uint8


def test_reads_a_parquet_file_and_a_folder(destination, tmp_path):
    pq.write_table(table(10), tmp_path / "a.parquet")
    assert ingest(str(tmp_path / "a.parquet"), destination).rows_count == 10
    pq.write_table(table(6), tmp_path / "b.parquet")
    destination.open().delete_prefix("/runs")
    assert ingest(tmp_path, destination).rows_count == 16


def test_only_the_named_columns_are_read(destination):
    data = table(note=pa.array(["x"] * 10), number=pa.array(range(10)))
    assert ingest(data, destination, features=["number"]).width == 1


def test_remove_takes_the_blocks_of_the_run_only(destination, tier_address):
    with TierClient(tier_address) as tier:
        tier.put("/runs/another/data/00000", b"x")
        ingested = ingest(table(), destination)
        assert ingested.remove() == 2
        assert ingested.remove() == 0
        assert tier.exists("/runs/another/data/00000")
        tier.delete_prefix("/runs")


def test_the_same_rows_again_are_as_good_and_others_are_not(destination, tier_address):
    rows = Rows(np.ones((4, 2), np.float32), np.array([0, 1, 0, 1], np.int32))
    with TierClient(tier_address) as tier:
        first = put_partition(tier, destination.path(0), rows, "x")
        assert put_partition(tier, destination.path(0), rows, "x") == first
        with pytest.raises(DataError, match="x gave other rows when a part of it was read a second time"):
            put_partition(tier, destination.path(0), Rows(rows.features * 2, rows.labels), "x")


def floats(*rows):
    return pa.array(list(rows), pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("columns", "changes", "words"),
    [
        (
            {},
            {"features": "pixels"},
            "there is no column 'pixels'; the columns of the table are 'features', 'label': .* --features",
        ),
        ({}, {"label": "target"}, "there is no column 'target'; .*: name another with --label"),
        ({"features": ["a"] * 3}, {}, "text"),
        ({"label": ["a", "b", "c"]}, {}, "label column 'label' of the table holds text .* number the classes 0, 1, 2"),
        ({"features": floats([1, 2], [3, float("nan")], [5, 6])}, {}, "row 1 .* feature 1 .* nan"),
        ({"features": floats([1, 2], [3, 4], [float("inf"), 6])}, {}, "row 2 .* feature 0 .* inf"),
        ({"features": floats([1, 2], [3], [5, 6])}, {}, "row 1 .* 1 features where 2"),
        ({"features": floats([1, 2], None, [5, 6])}, {}, "row 1 .* null"),
        ({"label": [0.0, 0.5, 1.0]}, {}, "row 1 .* fractional"),
        ({"label": [0, -1, 1]}, {}, "row 1 .* negative"),
        ({"label": [0, 1, 2]}, {"kind": "binary"}, "row 2 .* out of range"),
        ({"label": [0, 1, 1 << 20]}, {}, "classes"),
        ({"label": [1, 1, 1]}, {}, "every label in column 'label' of the table is 1"),
        ({"label": [float("nan"), 1.0, 1.0]}, {"kind": "regression"}, "row 0 .* finite"),
        ({}, {"partitions_count": 5}, "3 rows for 5 workers: use at most --workers 3"),
        ({}, {"label": "features"}, "both label and feature"),
    ],
)
def test_bad_data_gets_a_sentence(destination, columns, changes, words):
    with pytest.raises(DataError, match=words):
        ingest(table(3, **columns), destination, **changes)


def test_no_rows_and_no_file_get_a_sentence(destination, tmp_path):
    with pytest.raises(DataError, match="the table has no rows: there is nothing to train on"):
        ingest(table(3).slice(0, 0), destination)
    with pytest.raises(DataError, match=r"there is no file or folder nowhere\.parquet"):
        ingest("nowhere.parquet", destination)
    (tmp_path / "text.parquet").write_text("these are words")
    with pytest.raises(DataError, match=r"text\.parquet cannot be read as Parquet: it begins with b'thes'.*to_parquet"):
        ingest(tmp_path / "text.parquet", destination)
    (tmp_path / "none.parquet").touch()
    with pytest.raises(DataError, match=r"none\.parquet cannot be read as Parquet: it is empty"):
        ingest(tmp_path / "none.parquet", destination)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"cut\.parquet cannot be read as Parquet: .* write it again"):
        ingest(tmp_path / "cut.parquet", destination)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "_SUCCESS").touch()
    with pytest.raises(DataError, match="folder has no Parquet files: name a Parquet file, or a folder that has some"):
        ingest(tmp_path / "folder", destination)
    with pytest.raises(ConfigError, match="at least 1 worker"):
        ingest(table(3), destination, partitions_count=0)
