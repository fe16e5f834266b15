"""Arrow record batches, as Spark and Parquet give them, become rows; or a sentence says why not.

Features may be one column of lists, of bytes, or of Spark ML vectors (dense and sparse), or several columns
of numbers. What lies row after row in Arrow's memory is taken as it lies. Whole numbers within 0..255 are
kept as bytes whatever their Arrow type (Spark widens uint8 to smallint). That is decided over all batches of
a call; two partitions that decide differently train alike, as both are multiplied by the same float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from coproc.data.base import ColumnPlan, Encoding, Kind, Rows
from coproc.errors import DataError

# The fields of Spark's VectorUDT: type 0 is sparse, 1 is dense.
VECTOR_FIELDS = ("type", "size", "indices", "values")

# What to do about a label that does not go with the loss.
NUMBER_CLASSES = "number the classes 0, 1, 2, … first, in pandas with pandas.factorize(frame[{label!r}])[0]"
REGRESSION = "or train a regression with --loss squared"

LABEL_KINDS = {
    "classification": "a class id 0, 1, 2, ...",
    "binary": "0 or 1",
    "regression": "a finite number",
}


def plan_columns(
    schema: pa.Schema,
    features: str | Sequence[str],
    label: str,
    kind: Kind = "classification",
    classes: int | None = None,
    origin: str = "the data",
) -> ColumnPlan:
    """How to read `features` (one column of lists, bytes or vectors, or several of numbers) and `label`.

    `origin` says in messages whose columns these are.

    Raises:
        DataError: a column is missing, or of a type that cannot be one.
    """
    if kind not in get_args(Kind):
        raise DataError(f"the kind of task must be one of {', '.join(get_args(Kind))}, not {kind!r}")
    names = (features,) if isinstance(features, str) else tuple(features)
    if not names:
        raise DataError(f"no feature column was named; {_columns(schema, origin)}: name some with --features")
    if label in names:
        raise DataError(
            f"column {label!r} cannot be both label and feature: leave it out of --features, or name another "
            "with --label"
        )
    types = {name: _type_of(schema, name, "--features", origin) for name in names}
    types[label] = _type_of(schema, label, "--label", origin)
    if not _is_number(types[label]):
        text = NUMBER_CLASSES.format(label=label) if _is_text(types[label]) else "name another with --label"
        raise DataError(
            f"label column {label!r} of {origin} holds {_words(types[label])}, but numbers are needed: {text}"
        )
    if kind == "binary":
        classes = 2
    elif kind == "regression":
        classes = None
    width: int | None = len(names)
    first = types[names[0]]
    encoding: Encoding = "scalars"
    if not _is_number(first) and len(names) == 1:
        encoding = _encoding(names[0], first, origin)
        fixed_list, fixed_bytes = pa.types.is_fixed_size_list(first), pa.types.is_fixed_size_binary(first)
        width = first.list_size if fixed_list else first.byte_width if fixed_bytes else None
    else:
        for name in names:
            if not _is_number(types[name]):
                raise DataError(
                    f"feature column {name!r} holds {_words(types[name])}, but each of several feature "
                    f"columns must hold one number a row: leave it out of --features, or make it numbers in {origin}"
                )
    return ColumnPlan(names, label, kind, encoding, width, classes)


def read(batches: Iterable[pa.RecordBatch], plan: ColumnPlan, origin: str = "the data") -> Rows:
    """All rows of `batches`. One batch of a type that is stored as it is gives views of Arrow's memory.

    `origin` says in messages where the rows come from; rows are counted from 0 over all batches. No batches
    at all give 0 rows of the plan's width, or of 0 where that is unknown.

    Raises:
        DataError: a null, NaN or infinity, rows of different lengths, a label that is none.
    """
    features: list[NDArray[Any]] = []
    labels: list[NDArray[Any]] = []
    width, start, as_bytes = plan.width, 0, True
    for batch in batches:
        if not batch.num_rows:
            continue
        place = _Place(origin, start, plan)
        part = _features_of(batch, plan, place, width)
        width = part.shape[1]
        as_bytes = as_bytes and part.dtype.kind in "bui" and _fits_bytes(part)
        features.append(_compact(part, place, as_bytes))
        labels.append(_labels_of(_column(batch, plan.label), plan, place))
        start += batch.num_rows
    kind = np.dtype(np.uint8 if as_bytes and features else np.float32)
    if not features:
        labels_kind = np.float32 if plan.kind == "regression" else np.int32
        return Rows(np.empty((0, width or 0), kind), np.empty(0, labels_kind))
    if len(features) == 1:
        return Rows(features[0].astype(kind, copy=False), labels[0])
    return Rows(np.concatenate(features, dtype=kind), np.concatenate(labels))


def read_features(batch: pa.RecordBatch, plan: ColumnPlan, origin: str = "the data") -> NDArray[Any]:
    """The features (n, d) alone, uint8 or float32: for rows to predict, which need no label.

    Raises:
        DataError: a null, NaN or infinity, rows of different lengths.
    """
    place = _Place(origin, 0, plan)
    if not batch.num_rows:
        return np.empty((0, plan.width or 0), np.float32)
    part = _features_of(batch, plan, place, plan.width)
    return _compact(part, place, part.dtype.kind in "bui" and _fits_bytes(part))


# ---------------------------------------- types and sentences


@dataclass(frozen=True)
class _Place:
    """Where a batch is, for messages."""

    origin: str
    start: int
    plan: ColumnPlan

    def refuse(self, row: int, found: str) -> NoReturn:
        raise DataError(f"row {self.start + row} (counted from 0) of {self.origin}: {found}")

    def feature(self, index: int) -> str:
        names = self.plan.features
        return f"column {names[index]!r}" if len(names) > 1 else f"feature {index} of column {names[0]!r}"


def _columns(schema: pa.Schema, origin: str, shown_count: int = 20) -> str:
    if not schema.names:
        return f"{origin} has no columns"
    shown = ", ".join(repr(name) for name in schema.names[:shown_count])
    more = len(schema.names) - shown_count
    return f"the columns of {origin} are {shown}" + (f" and {more} more" if more > 0 else "")


def _type_of(schema: pa.Schema, name: str, option: str, origin: str) -> Any:
    found = [field.type for field in schema if field.name == name]
    if len(found) != 1:
        what = "there is no column" if not found else f"there are {len(found)} columns named"
        do = "name others with" if found else "name another with"
        raise DataError(f"{what} {name!r}; {_columns(schema, origin)}: {do} {option}")
    return _plain(found[0])


def _plain(kind: Any) -> Any:
    """The type of the values, without dictionary or extension around it."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return _plain(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _is_number(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind))


def _is_list(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _words(kind: Any) -> str:
    if _is_list(kind) and _is_text(_plain(kind.value_type)):
        return f"lists of text ({kind})"
    return f"text ({kind})" if _is_text(kind) else f"{kind} values"


def _encoding(name: str, kind: Any, origin: str) -> Encoding:
    types = pa.types
    if _is_list(kind) and _is_number(_plain(kind.value_type)):
        return "list"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return "bytes"
    if types.is_struct(kind) and {field.name for field in kind} == set(VECTOR_FIELDS):
        return "vector"
    raise DataError(
        f"feature column {name!r} holds {_words(kind)}, but numbers, lists of numbers, bytes or Spark ML "
        f"vectors are needed: name another with --features, or make it numbers in {origin}"
    )


# ---------------------------------------- columns


def _column(batch: pa.RecordBatch, name: str) -> Any:
    index = batch.schema.get_field_index(name)
    if index < 0:
        raise DataError(f"there is no single column {name!r} in a batch; {_columns(batch.schema, 'the batch')}")
    array = batch.column(index)
    while True:
        if isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        elif isinstance(array, pa.ExtensionArray):
            array = array.storage
        else:
            return array


def _no_nulls(array: Any, place: _Place, name: str) -> None:
    if array.null_count:
        row = first_true(array.is_null().to_numpy(zero_copy_only=False))
        place.refuse(row, f"column {name!r} is null; drop such rows or fill them")


def _values(array: Any) -> NDArray[Any]:
    """Numbers of an Arrow array without nulls; a view where numpy has the type."""
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def _labels_of(array: Any, plan: ColumnPlan, place: _Place) -> NDArray[Any]:
    _no_nulls(array, place, plan.label)
    values = _values(array)

    def refuse_first(wrong: NDArray[np.bool_], why: str, do: str) -> None:
        if wrong.any():
            row = first_true(wrong)
            expected = LABEL_KINDS[plan.kind]
            place.refuse(row, f"label {values[row]} in column {plan.label!r} {why}; expected {expected}: {do}")

    if plan.kind == "regression":
        with np.errstate(over="ignore"):
            targets = values.astype(np.float32, copy=False)
        refuse_first(~np.isfinite(targets), "is not a finite float32", "drop such rows, or scale the label")
        return targets
    renumber = f"{NUMBER_CLASSES.format(label=plan.label)}, {REGRESSION}"
    if values.dtype.kind == "f":
        refuse_first(~np.isfinite(values), "is not a number", "drop such rows or fill them")
        refuse_first(values != np.floor(values), "is fractional", renumber)
    if values.dtype.kind != "b":
        refuse_first(values < 0, "is negative", renumber)
        limit = plan.classes or np.iinfo(np.int32).max
        if plan.kind == "binary":
            do = "train several classes with --loss softmax, " + REGRESSION
        elif plan.classes:
            do = "the training data have no such class; drop such rows, or train on data that have it"
        else:
            do = renumber
        refuse_first(values >= limit, f"is out of range: labels must be below {limit}", do)
    return values.astype(np.int32, copy=False)


def _features_of(batch: pa.RecordBatch, plan: ColumnPlan, place: _Place, width: int | None) -> NDArray[Any]:
    """(n, d) of whatever number type the column has; a view where it lies row after row."""
    columns = [_column(batch, name) for name in plan.features]
    for name, array in zip(plan.features, columns, strict=True):
        _no_nulls(array, place, name)
    if plan.encoding == "scalars":
        parts = [_values(array) for array in columns]
        return parts[0].reshape(-1, 1) if len(parts) == 1 else _side_by_side(parts)
    if plan.encoding == "vector":
        return _vectors(columns[0], place, width)
    lists = _bytes_as_lists(columns[0]) if plan.encoding == "bytes" else _lists(columns[0])
    return _even(*lists, place, width)


def _side_by_side(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    small = all(part.dtype.kind in "bui" and _fits_bytes(part) for part in parts)
    # float64 where a column has it, so that what overflows float32 is noticed with its row.
    kind = np.dtype(np.uint8) if small else np.result_type(np.float32, *parts)
    rows = np.empty((len(parts[0]), len(parts)), kind)
    for index, part in enumerate(parts):
        rows[:, index] = part
    return rows


def _lists(array: Any) -> tuple[NDArray[Any], Any]:
    """(offsets (n + 1,) from 0, the values' Arrow array) of a column of lists."""
    values = array.flatten()
    if pa.types.is_fixed_size_list(array.type):
        return np.arange(len(array) + 1) * array.type.list_size, values
    offsets = array.offsets.to_numpy()
    return offsets - offsets[0], values


def _bytes_as_lists(array: Any) -> tuple[NDArray[Any], Any]:
    count, first = len(array), array.offset
    buffers = array.buffers()
    if pa.types.is_fixed_size_binary(array.type):
        size = array.type.byte_width
        offsets = (np.arange(count + 1) + first) * size
    else:
        kind = np.int64 if pa.types.is_large_binary(array.type) else np.int32
        offsets = np.frombuffer(buffers[1], kind)[first : first + count + 1]
    start, stop = int(offsets[0]), int(offsets[-1])
    data = buffers[-1].slice(start, stop - start) if stop > start else pa.py_buffer(b"")
    return offsets - start, pa.Array.from_buffers(pa.uint8(), stop - start, [None, data])


def _even(offsets: NDArray[Any], values: Any, place: _Place, width: int | None) -> NDArray[Any]:
    """The values as (n, d), if every row has d = `width` of them (None: the first row's) and none is null."""
    lengths = np.diff(offsets)
    width = _agreed(lengths, place, width)
    if values.null_count:
        row, index = divmod(first_true(values.is_null().to_numpy(zero_copy_only=False)), width)
        place.refuse(row, f"{place.feature(index)} is null; drop such rows or fill them")
    return _values(values).reshape(len(lengths), width)


def _agreed(lengths: NDArray[Any], place: _Place, width: int | None) -> int:
    """The length that all rows have, or a DataError that names the first row with another."""
    width = int(lengths[0]) if width is None else width
    uneven = lengths != width
    if uneven.any():
        row = first_true(uneven)
        place.refuse(row, f"it has {lengths[row]} features where {width} are expected; pad such rows or drop them")
    if not width:
        place.refuse(0, "it has no features; every row needs at least one: drop such rows or fill them")
    return width


def _vectors(array: Any, place: _Place, width: int | None) -> NDArray[Any]:
    """(n, d) of Spark ML vectors: dense ones have `values` only, sparse ones `size` and `indices` too."""
    fields = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
    sparse = fields["type"].to_numpy(zero_copy_only=False) == 0
    offsets, values = _lists(fields["values"])
    if not sparse.any():
        return _even(offsets, values, place, width)
    counts = np.diff(offsets)
    sizes = fields["size"].fill_null(0).to_numpy(zero_copy_only=False)
    width = _agreed(np.where(sparse, sizes, counts), place, width)
    row_of = np.repeat(np.arange(len(array)), counts)
    if values.null_count:
        row = int(row_of[first_true(values.is_null().to_numpy(zero_copy_only=False))])
        place.refuse(row, "a value of its vector is null; drop such rows or fill them")
    # Dense vectors have a null for indices, which counts nothing and is not in flatten().
    indices = fields["indices"]
    unequal = pc.list_value_length(indices).fill_null(0).to_numpy() != np.where(sparse, counts, 0)
    if unequal.any():
        place.refuse(first_true(unequal), "its sparse vector has another number of indices than of values")
    column_of = np.arange(len(row_of)) - np.repeat(offsets[:-1], counts)
    column_of[np.repeat(sparse, counts)] = _values(indices.flatten())
    outside = (column_of < 0) | (column_of >= width)
    if outside.any():
        row = int(row_of[first_true(outside)])
        place.refuse(row, f"its sparse vector has an index outside its size of {width}")
    dense = np.zeros((len(array), width), np.float64)
    dense[row_of, column_of] = _values(values)
    return dense


# ---------------------------------------- storage


def _fits_bytes(part: NDArray[Any]) -> bool:
    return part.dtype.kind == "b" or part.dtype == np.uint8 or bool(part.min() >= 0 and part.max() <= 255)


def _compact(part: NDArray[Any], place: _Place, as_bytes: bool) -> NDArray[Any]:
    """`part` as uint8 or float32; the same array where it is one already.

    A part before the first that does not fit in bytes is made float32 at the end, which loses nothing.
    """
    if as_bytes or part.dtype == np.uint8:
        return part.astype(np.uint8, copy=False)
    with np.errstate(over="ignore"):
        stored = part.astype(np.float32, copy=False)
    finite = np.isfinite(stored)
    if not finite.all():
        row, index = divmod(first_true(~finite.reshape(-1)), part.shape[1])
        value = part[row, index]
        why = "too large for float32" if np.isfinite(value) else "not a finite number"
        place.refuse(row, f"{place.feature(index)} is {value}, {why}; drop such rows or fill them")
    return stored


def first_true(flags: NDArray[np.bool_]) -> int:
    """The index of the first True; there must be one."""
    return int(flags.argmax())
