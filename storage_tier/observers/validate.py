"""`validate`: files must have the wanted tensors or columns, or they are not committed.

    attach /models/demo/gradients validate {"tensors": {"w": {"dtype": "F32", "shape": [784, null]}}}
    attach /runs/a/data           validate {"columns": {"x": "list<item: float>", "label": "int64"}}

Only headers are read: the JSON of safetensors, the schema and the message or footer offsets of Arrow and Parquet. A
header that lies, is cut or is too long is a veto like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from storage_tier.errors import InvalidRequest
from storage_tier.observers.base import Context, Observer, OnFailure, OpenFile, Veto
from storage_tier.observers.parameters import Parameters, is_text
from storage_tier.observers.safetensors_header import BITS, NotSafetensors, Tensor, read_header

Check = Callable[[OpenFile], str | None]
"""What is wrong with a file, to go after 'it'; None when nothing is."""

MAX_NAMES_SHOWN = 5


class Validate(Observer):
    """Vetoes files whose schema is not the wanted one.

    Parameters:
        tensors: {name: {"dtype": "F32", "shape": [784, null]}} for safetensors files; either may be left out, null is
            any size, {} any tensor.
        columns: {name: type} for Arrow files and streams and for Parquet, types as pyarrow writes them ('int64',
            'list<item: float>'); null is any type. Exactly one of `tensors` and `columns` is given.
        files: a pattern of names, '*.safetensors'; other files pass. By default every file is looked at.
        extra: 'refuse' (the default) or 'allow' other tensors or columns.
        metadata: names that a safetensors file's own metadata or the metadata of the commit have to have.
    """

    # Files that nobody has looked at must not come in unnoticed.
    on_failure: OnFailure = "closed"

    def __init__(self, check: Check, pattern: str, what: str) -> None:
        self._check = check
        self._pattern = pattern
        self._what = what

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Validate:
        given = Parameters("validate", parameters)
        tensors = given.take("tensors", None, _tensors_wanted, "{name: {dtype, shape}} with known dtypes")
        columns = given.take("columns", None, _columns_wanted, "{name: type}")
        pattern = given.take("files", "*", is_text, "a pattern of names")
        extra = given.take("extra", "refuse", lambda value: value in ("refuse", "allow"), "'refuse' or 'allow'")
        metadata = given.take("metadata", [], _names, "a list of names")
        given.done()
        if (tensors is None) == (columns is None):
            raise InvalidRequest("validate needs either tensors (of safetensors) or columns (of Arrow or Parquet)")
        if tensors is not None:
            return cls(_tensor_check(tensors, extra == "allow", metadata), pattern, "a safetensors file")
        return cls(_column_check(columns, extra == "allow", metadata), pattern, "an Arrow or Parquet file")

    def pre_commit(self, context: Context, file: OpenFile) -> Veto | None:
        if not fnmatchcase(file.path.rpartition("/")[2], self._pattern):
            return None
        complaint = self._check(file)
        if complaint is None:
            return None
        return Veto(f"{file.path} is not {self._what} as {context.env.directory} takes them: it {complaint}")


def _tensor_check(wanted: Mapping[str, Mapping[str, Any]], allow_extra: bool, metadata: list[str]) -> Check:
    def check(file: OpenFile) -> str | None:
        try:
            found, own = read_header(file.data)
        except NotSafetensors as error:
            return str(error)
        return (
            _wrong_names(wanted, found, allow_extra, "tensor")
            or _first(_wrong_tensor(name, wanted[name], found[name]) for name in wanted)
            or _lacks(metadata, {*own, *file.metadata})
        )

    return check


def _column_check(wanted: Mapping[str, str | None], allow_extra: bool, metadata: list[str]) -> Check:
    # A quarter of a second, and only here.
    from storage_tier.observers.arrow_header import NotArrow, read_schema

    def check(file: OpenFile) -> str | None:
        try:
            columns = read_schema(file.data)
        except NotArrow as error:
            return str(error)
        found = dict(columns)
        if len(found) != len(columns):
            return "has two columns of one name"
        return (
            _wrong_names(wanted, found, allow_extra, "column")
            or _first(
                f"has column {name!r:.80} of type {found[name]:.200}, and {kind} is wanted"
                for name, kind in wanted.items()
                if kind not in (None, found[name])
            )
            or _lacks(metadata, file.metadata)
        )

    return check


def _first(complaints: Iterable[str | None]) -> str | None:
    return next(filter(None, complaints), None)


def _lacks(wanted: list[str], found: Container[str]) -> str | None:
    return _first(f"lacks {name!r:.80} in its metadata" for name in wanted if name not in found)


def _wrong_names(wanted: Mapping[str, Any], found: Mapping[str, Any], allow_extra: bool, what: str) -> str | None:
    missing = sorted(set(wanted) - set(found))
    if missing:
        return f"lacks the {what} {_show(missing)}; it has {_show(sorted(found)) or 'none'}"
    extra = sorted(set(found) - set(wanted))
    if extra and not allow_extra:
        return f"has the {what} {_show(extra)}, which nobody wants"
    return None


def _wrong_tensor(name: str, wanted: Mapping[str, Any], found: Tensor) -> str | None:
    dtype, shape = wanted.get("dtype"), wanted.get("shape")
    if dtype is not None and found.dtype != dtype:
        return f"has tensor {name!r:.80} of dtype {found.dtype}, and {dtype} is wanted"
    if shape is None:
        return None
    fits = len(shape) == len(found.shape) and all(
        size in (None, other) for size, other in zip(shape, found.shape, strict=True)
    )
    return None if fits else f"has tensor {name!r:.80} of shape {list(found.shape)}, and {_shape(shape)} is wanted"


def _shape(shape: list[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def _show(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN:,} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(f"{name!r:.80}" for name in names[:MAX_NAMES_SHOWN]) + more


def _tensors_wanted(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry, dict)
        and set(entry) <= {"dtype", "shape"}
        and entry.get("dtype") in (None, *BITS)
        and (entry.get("shape") is None or _sizes(entry["shape"]))
        for entry in value.values()
    )


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0) for size in value
    )


def _columns_wanted(value: Any) -> bool:
    return isinstance(value, dict) and all(kind is None or isinstance(kind, str) for kind in value.values())


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(is_text(name) for name in value)
