"""Arrow rows in every form that Spark and Parquet give become the same arrays; bad rows become a sentence."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coproc.data.base import Rows, Summary
from coproc.data.rows import plan_columns, read, read_features
from coproc.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"

# As Spark ML's VectorUDT travels.
VECTOR = pa.struct(
    [
        pa.field("type", pa.int8(), nullable=False),
        pa.field("size", pa.int32()),
        pa.field("indices", pa.list_(pa.field("element", pa.int32(), nullable=False))),
        pa.field("values", pa.list_(pa.field("element", pa.float64(), nullable=False))),
    ]
)

GRID = [[0, 1, 2], [3, 4, 255]]


def _table(features: Any, labels: Any = None, **others: Any) -> pa.Table:
    column = features if isinstance(features, pa.Array | pa.ChunkedArray) else pa.array(features)
    if labels is None:
        labels = [i % 2 for i in range(len(column))]
    return pa.table({"features": column, "label": labels, **others})


def _read(table: pa.Table, kind: Any = "classification", features: Any = "features", **more: Any) -> Rows:
    return read(table.to_batches(), plan_columns(table.schema, features, "label", kind, **more), "rows.parquet")


def _dense(values: Sequence[float]) -> dict[str, Any]:
    return {"type": 1, "size": None, "indices": None, "values": list(values)}


def _sparse(size: int, entries: dict[int, float]) -> dict[str, Any]:
    return {"type": 0, "size": size, "indices": list(entries), "values": list(entries.values())}


FORMS = {
    "list of int16": pa.array(GRID, pa.list_(pa.int16())),
    "list of uint8": pa.array(GRID, pa.list_(pa.uint8())),
    "list of int64": pa.array(GRID, pa.list_(pa.int64())),
    "large list of int32": pa.array(GRID, pa.large_list(pa.int32())),
    "fixed list of uint8": pa.array(GRID, pa.list_(pa.uint8(), 3)),
    "list of float": pa.array(GRID, pa.list_(pa.float32())),
    "list of double": pa.array(GRID, pa.list_(pa.float64())),
    "fixed list of double": pa.array(GRID, pa.list_(pa.float64(), 3)),
    "list of decimal": pa.array([[Decimal(x) for x in row] for row in GRID], pa.list_(pa.decimal128(10, 2))),
    "binary": pa.array([bytes(row) for row in GRID], pa.binary()),
    "large binary": pa.array([bytes(row) for row in GRID], pa.large_binary()),
    "fixed binary": pa.array([bytes(row) for row in GRID], pa.binary(3)),
    "dense vectors": pa.array([_dense(row) for row in GRID], VECTOR),
    "sparse vectors": pa.array([_sparse(3, {1: 1, 2: 2}), _sparse(3, {0: 3, 1: 4, 2: 255})], VECTOR),
    "both vectors": pa.array([_sparse(3, {2: 2, 1: 1}), _dense(GRID[1])], VECTOR),
}
FLOATS = {"list of float", "list of double", "fixed list of double", "list of decimal"}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(form: str) -> None:
    rows = _read(_table(FORMS[form]))
    np.testing.assert_array_equal(rows.features, GRID)
    assert rows.features.dtype == ("float32" if form in FLOATS or "vectors" in form else "uint8")
    assert rows.labels.tolist() == [0, 1]
    assert rows.labels.dtype == np.int32


@pytest.mark.parametrize("form", FORMS)
def test_a_slice_of_a_column_gives_its_own_rows(form: str) -> None:
    column = pa.concat_arrays([FORMS[form]] * 3)
    table = _table(column, labels=list(range(6)))
    for start, count in ((1, 3), (2, 4), (5, 1)):
        rows = _read(table.slice(start, count))
        np.testing.assert_array_equal(rows.features, (GRID * 3)[start : start + count])
        assert rows.labels.tolist() == list(range(start, start + count))


def test_several_columns_of_numbers_are_features_side_by_side() -> None:
    columns = {
        "a": pa.array([0, 3], pa.int64()),
        "b": pa.array([True, False]),
        "c": pa.array([2, 255], pa.uint8()),
    }
    table = pa.table({**columns, "label": [0, 1]})
    rows = _read(table, features=["a", "b", "c"])
    assert rows.features.tolist() == [[0, 1, 2], [3, 0, 255]]
    assert rows.features.dtype == np.uint8
    table = table.append_column("d", pa.array([0.5, -1.0]))
    rows = _read(table, features=["a", "d"])
    assert rows.features.tolist() == [[0, 0.5], [3, -1]]
    assert rows.features.dtype == np.float32
    assert _read(table, features="a").features.tolist() == [[0], [3]]


def test_a_dictionary_column_is_its_values() -> None:
    table = pa.table({"a": pa.array([5, 7, 5]).dictionary_encode(), "label": [0, 1, 1]})
    assert _read(table, features=["a"]).features.tolist() == [[5], [7], [5]]


@pytest.mark.parametrize("form", ["list of uint8", "fixed list of uint8", "list of float", "binary"])
def test_one_batch_that_is_stored_as_it_lies_is_not_copied(form: str) -> None:
    column = FORMS[form]
    rows = _read(_table(column))
    start = rows.features.ctypes.data
    inside = [b for b in _buffers(column) if b.address <= start < b.address + b.size]
    assert inside


def _buffers(column: Any) -> list[Any]:
    return [buffer for buffer in column.buffers() if buffer is not None]


@pytest.mark.parametrize(("largest", "kind"), [(255, "uint8"), (256, "float32"), (-1, "float32")])
def test_whether_whole_numbers_are_bytes_is_decided_over_all_batches(largest: int, kind: str) -> None:
    column = pa.chunked_array([[[1, 2]], [[largest, 3]], [[4, 5]]], pa.list_(pa.int16()))
    rows = _read(_table(column))
    assert rows.features.dtype == kind
    assert rows.features.tolist() == [[1, 2], [largest, 3], [4, 5]]
    assert rows.labels.tolist() == [0, 1, 0]


def test_labels_of_a_regression_are_floats_and_of_a_classification_ids() -> None:
    table = _table(FORMS["binary"], labels=[1.0, 4.0])
    assert _read(table).labels.dtype == np.int32
    assert _read(table, "regression").labels.tolist() == [1.0, 4.0]
    assert _read(table, "regression").labels.dtype == np.float32
    assert _read(_table(FORMS["binary"], labels=[True, False]), "binary").labels.tolist() == [1, 0]
    assert _read(_table(FORMS["binary"], labels=pa.array([1, 0], pa.uint8())), "binary").labels.tolist() == [
        1,
        0,
    ]


def _many(row: Any, kind: Any = None) -> pa.Table:
    """Three good rows in two batches, then a fourth as given: row 3."""
    good = [[1.0, 2.0]] * 3
    column = pa.chunked_array([pa.array(good[:2], kind), pa.array([*good[2:], row], kind)])
    return pa.table({"features": column, "label": [0, 1, 0, 1]})


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            _many([1.0, float("nan")]),
            r"row 3 \(.*\) of rows.parquet: feature 1 of column 'features' is nan, not",
        ),
        (_many([float("-inf"), 0.0]), "row 3 .*feature 0 of column 'features' is -inf, not a finite number"),
        (_many([1e300, 0.0]), "row 3 .*1e\\+300, too large for float32"),
        (_many([1.0, None]), "row 3 .*feature 1 of column 'features' is null"),
        (_many(None), "row 3 .*column 'features' is null; drop such rows"),
        (_many([1.0, 2.0, 3.0]), "row 3 .*it has 3 features where 2 are expected"),
        (_many([1.0]), "row 3 .*it has 1 features where 2"),
        (_many([]), "row 3 .*it has 0 features where 2"),
        (
            _table([[], []]).cast(pa.schema({"features": pa.list_(pa.int8()), "label": pa.int64()})),
            "row 0 .*no fea",
        ),
        (_table(pa.array([b"ab", b"abc"])), "row 1 .*it has 3 features where 2"),
        (_table(pa.array([b"", b""])), "row 0 .*it has no features"),
        (_table(pa.array([_dense([1, 2]), _dense([1])], VECTOR)), "row 1 .*it has 1 features where 2"),
        (_table(pa.array([_sparse(4, {1: 1}), _dense([1])], VECTOR)), "row 1 .*it has 1 features where 4"),
        (
            _table(pa.array([_dense([1, 2]), _sparse(2, {2: 1})], VECTOR)),
            "row 1 .*index outside its size of 2",
        ),
        (
            _table(pa.array([_dense([1, 2]), {**_sparse(2, {1: 1}), "indices": [0, 1]}], VECTOR)),
            "row 1 .*indices",
        ),
        (_table(pa.array([_dense([1, 2]), {**_dense([1, 2]), "indices": [0, 1]}], VECTOR)), None),
        (
            _table(pa.array([_dense([1, 2]), _sparse(2, {1: float("nan")})], VECTOR)),
            "row 1 .*feature 1 .* is nan",
        ),
    ],
)
def test_features_that_cannot_be_are_a_sentence_with_their_row(table: pa.Table, sentence: str | None) -> None:
    if sentence is None:
        assert _read(table).features.tolist() == [[1, 2], [1, 2]]
        return
    with pytest.raises(DataError, match=sentence):
        _read(table)


def test_a_scalar_column_is_named_with_its_row() -> None:
    table = pa.table({"a": [1.0, 2.0], "b": [1.0, float("inf")], "c": [1, None], "label": [0, 1]})
    with pytest.raises(DataError, match=r"row 1 .*column 'b' is inf"):
        _read(table, features=["a", "b"])
    with pytest.raises(DataError, match=r"row 1 .*column 'c' is null"):
        _read(table, features=["a", "c"])


@pytest.mark.parametrize(
    ("labels", "kind", "classes", "sentence"),
    [
        (
            [0, -1],
            "classification",
            None,
            r"row 1 \(.*\) of rows.parquet: label -1 in column 'label' is negative",
        ),
        ([0, 1.5], "classification", None, "label 1.5 .* is fractional; expected a class id 0, 1, 2.* --loss squared"),
        ([0, float("nan")], "classification", None, "label nan .* is not a number"),
        ([0, 10], "classification", 10, "label 10 .* is out of range: labels must be below 10.* have no such class"),
        ([0, 1 << 40], "classification", None, "out of range"),
        ([0, None], "classification", None, "row 1 .*column 'label' is null"),
        ([0, 2], "binary", None, "row 1 .*label 2 .* below 2; expected 0 or 1: .* --loss softmax"),
        ([1, -1], "binary", None, "row 1 .*label -1 .* is negative; expected 0 or 1"),
        ([0, float("inf")], "regression", None, "label inf .* is not a finite float32"),
        ([0, 1e300], "regression", None, "label 1e\\+300 .* is not a finite float32"),
        ([0, None], "regression", None, "row 1 .*column 'label' is null"),
    ],
)
def test_labels_that_cannot_be_are_a_sentence_with_their_row(
    labels: list[Any], kind: str, classes: int | None, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        _read(_table(FORMS["binary"], labels=labels), kind, classes=classes)


@pytest.mark.parametrize(
    ("features", "label", "kind", "sentence"),
    [
        (
            "pixels",
            "label",
            "classification",
            "there is no column 'pixels'; the columns of the data are 'features', 'label', 'name'.* --features",
        ),
        ("features", "class", "classification", "there is no column 'class'; .*: name another with --label"),
        (["x", "nothing"], "label", "classification", "there is no column 'nothing'"),
        (
            "name",
            "label",
            "classification",
            r"feature column 'name' holds text \(string\), but numbers, lists",
        ),
        (["x", "name"], "label", "classification", "feature column 'name' holds text .* one number a row"),
        (
            ["x", "features"],
            "label",
            "classification",
            "feature column 'features' holds list<.* one number a row",
        ),
        ("words", "label", "classification", "feature column 'words' holds lists of text"),
        (
            "features",
            "name",
            "classification",
            r"label column 'name' of the data holds text \(string\), but numbers are needed: number the classes 0, 1",
        ),
        ("features", "day", "classification", "label column 'day' of the data holds date32"),
        ("day", "label", "regression", "feature column 'day' holds date32"),
        ("point", "label", "regression", "feature column 'point' holds struct"),
        ("label", "label", "classification", "'label' cannot be both label and feature"),
        ([], "label", "classification", "no feature column was named"),
        ("features", "label", "ranking", "one of classification, binary, regression, not 'ranking'"),
    ],
)
def test_columns_that_cannot_be_are_a_sentence(features: Any, label: str, kind: Any, sentence: str) -> None:
    schema = pa.schema(
        {
            "features": pa.list_(pa.float32()),
            "label": pa.int32(),
            "name": pa.string(),
            "x": pa.float64(),
            "words": pa.list_(pa.string()),
            "day": pa.date32(),
            "point": pa.struct({"x": pa.float32()}),
        }
    )
    with pytest.raises(DataError, match=sentence):
        plan_columns(schema, features, label, kind)


def test_of_many_columns_the_first_are_named_and_twins_are_refused() -> None:
    schema = pa.schema([(f"c{i}", pa.int8()) for i in range(784)])
    with pytest.raises(DataError, match=r"'c19' and 764 more: name another with --features$"):
        plan_columns(schema, "pixels", "c0")
    twins = pa.schema([("x", pa.int8()), ("x", pa.int8()), ("label", pa.int8())])
    with pytest.raises(DataError, match="there are 2 columns named 'x'"):
        plan_columns(twins, "x", "label")


def test_no_rows_and_empty_batches() -> None:
    table = _table(FORMS["fixed list of uint8"])
    plan = plan_columns(table.schema, "features", "label")
    assert read([], plan).features.shape == (0, 3)
    empty = table.slice(0, 0).to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    rows = read([*empty, *table.to_batches(), *empty], plan)
    assert rows.features.tolist() == GRID
    open_width = plan_columns(_table(FORMS["binary"]).schema, "features", "label", "regression")
    assert read([], open_width).features.shape == (0, 0)
    assert read([], open_width).labels.dtype == np.float32


def test_rows_to_predict_need_no_label() -> None:
    table = _table(FORMS["list of int16"])
    plan = plan_columns(table.schema, "features", "label")
    (batch,) = table.drop_columns(["label"]).to_batches()
    assert read_features(batch, plan).tolist() == GRID
    assert read_features(batch.slice(0, 0), plan).shape == (0, 0)
    with pytest.raises(DataError, match="no single column 'label'"):
        read([batch], plan)


def test_a_plan_travels() -> None:
    plan = plan_columns(_table(FORMS["binary"]).schema, "features", "label", "binary")
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan.classes == 2


def test_what_all_partitions_have_together_decides_the_classes() -> None:
    plan = plan_columns(_table(FORMS["binary"]).schema, "features", "label")
    parts = [Summary.of(_read(_table(FORMS["binary"], labels=labels))) for labels in ([0, 0], [3, 1], [2, 2])]
    parts.append(Summary.of(read([], plan)))
    assert json.loads(json.dumps(asdict(parts[1]))) == asdict(parts[1])
    whole = Summary.over(parts)
    assert (whole.rows, whole.width, whole.classes(plan)) == (6, 3, 4)
    ten = plan_columns(_table(FORMS["binary"]).schema, "features", "label", classes=10)
    assert whole.classes(ten) == 10
    number = plan_columns(_table(FORMS["binary"]).schema, "features", "label", "regression")
    assert parts[0].classes(number) is None
    with pytest.raises(
        DataError,
        match=r"every label in column 'label' of rows is 0: .* two classes; check that --label .* --loss squared",
    ):
        parts[0].classes(plan, "rows")
    with pytest.raises(DataError, match="rows has no rows: there is nothing to train on"):
        Summary.over(parts[3:]).classes(plan, "rows")
    with pytest.raises(DataError, match="go up to 70000, and at most 65536 classes"):
        Summary(2, 3, 0, 70_000).classes(plan)
    with pytest.raises(DataError, match="3 features in one partition and 4 in another"):
        Summary.over([*parts, Summary(1, 4, 0, 0)])


def _real(name: str, stand_in: pa.Table) -> pa.Table:
    """A real file where it is at hand, else rows of the same types."""
    path = SHARED / name
    return pq.read_table(path) if path.exists() else stand_in


def test_real_images_stay_bytes() -> None:
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(1568) % 256, pa.uint8()), 784)
    table = _real("mnist_test.parquet", _table(pixels, pa.array([0, 9], pa.uint8())))
    rows = _read(table)
    assert rows.features.shape == (len(table), 784)
    assert rows.features.dtype == np.uint8
    assert Summary.of(rows).classes(plan_columns(table.schema, "features", "label")) == 10
    # As Spark hands the same column to a task.
    widened = table.set_column(
        table.schema.get_field_index("features"),
        "features",
        pa.chunked_array([c.cast(pa.list_(pa.int16())) for c in table["features"].chunks]),
    )
    np.testing.assert_array_equal(_read(widened).features, rows.features)
    assert _read(widened).features.dtype == np.uint8


def test_real_floats_and_a_text_column() -> None:
    numbers = pa.FixedSizeListArray.from_arrays(pa.array(np.linspace(-1, 1, 56), pa.float32()), 28)
    stand_in = _table(numbers, pa.array([0, 1], pa.float32()), source=pa.array(["a", "b"]).dictionary_encode())
    table = _real("higgs_test.parquet", stand_in)
    rows = _read(table, "binary")
    assert rows.features.shape == (len(table), 28)
    assert rows.features.dtype == np.float32
    assert set(np.unique(rows.labels)) == {0, 1}
    with pytest.raises(DataError, match="column 'source' holds text"):
        _read(table, features="source")
