"""One partition of the training data as one block of bytes, and a few numbers that say what is in it.

    features, row after row | zeros up to 64 bytes | labels | zeros up to 64 bytes

The block is the partition: every task of a run maps it and reads it in place. The fingerprint is over the
content, so a partition that was ingested again with other rows is noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coproc.data.base import FEATURE_TYPES, LABEL_TYPES, Rows
from coproc.errors import DataError

FORMAT = "coproc-partition"
FORMAT_VERSION = 1

# A cache line, and all that vector loads ask for.
ALIGN_BYTES = 64

Metadata = dict[str, Any]


def encode(features: NDArray[Any], labels: NDArray[Any]) -> tuple[list[memoryview], Metadata]:
    """The bytes of a partition as buffers to be written one after the other, and its metadata (JSON values).

    Arrays that already are contiguous uint8 or float32 (labels: int32 or float32) are not copied: the buffers
    are views of them. Of others, bools become uint8, other features float32 rounded to nearest; labels become
    int32 if they are integers, else float32.

    No rows at all are a partition too; then d may be 0, for nobody knows it.

    Raises:
        DataError: not an (N, d) and an (N,) array of numbers, or a number that int32 or float32 cannot hold.
    """
    rows = Rows(_stored(features, FEATURE_TYPES, "features"), _stored(labels, LABEL_TYPES, "labels"))
    if len(rows) and not rows.features.shape[1]:
        raise DataError("a row must have at least one feature; these have none")
    labels_offset = _aligned(rows.features.nbytes)
    size_bytes = _aligned(labels_offset + rows.labels.nbytes)
    parts = [_bytes(rows.features), _bytes(rows.labels)]
    metadata: Metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "rows": len(rows),
        "width": rows.features.shape[1],
        "features_dtype": rows.features.dtype.name,
        "features_offset_bytes": 0,
        "labels_dtype": rows.labels.dtype.name,
        "labels_offset_bytes": labels_offset,
        "size_bytes": size_bytes,
        "fingerprint": fingerprint(rows),
    }
    gap = memoryview(bytes(labels_offset - rows.features.nbytes))
    tail = memoryview(bytes(size_bytes - labels_offset - rows.labels.nbytes))
    return [part for part in (parts[0], gap, parts[1], tail) if part.nbytes], metadata


def fingerprint(rows: Rows) -> str:
    """32 hexadecimal digits over types, shapes and content (BLAKE2b, about 1 GB/s)."""
    shape = f"{rows.features.dtype.name} {rows.features.shape} {rows.labels.dtype.name}"
    digest = hashlib.blake2b(shape.encode(), digest_size=16)
    digest.update(_bytes(rows.features))
    digest.update(_bytes(rows.labels))
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Partition(Rows):
    """Rows in the bytes of a block. The arrays are read-only views, which keep the buffer alive."""

    metadata: Metadata
    """As `encode` gave it."""

    @classmethod
    def open(cls, buffer: Any, metadata: Mapping[str, Any]) -> Self:
        """The partition that lies in `buffer` (anything with the buffer protocol). Copies nothing.

        The content itself is not checked against its fingerprint; `verify` does that.

        Raises:
            DataError: the metadata is not a partition's, or does not fit the buffer.
        """
        known = _checked(metadata)
        block = memoryview(buffer).cast("B")
        if block.nbytes < known["size_bytes"]:
            raise DataError(
                f"a partition of {known['size_bytes']} bytes was expected, the block has {block.nbytes}: "
                "it was cut short, or belongs to other metadata"
            )
        count, width = known["rows"], known["width"]
        arrays = [
            np.frombuffer(block, known[f"{part}_dtype"], size, known[f"{part}_offset_bytes"])
            for part, size in (("features", count * width), ("labels", count))
        ]
        for array in arrays:
            array.flags.writeable = False
        return cls(arrays[0].reshape(count, width), arrays[1], known)

    @property
    def fingerprint(self) -> str:
        """Of the content, as written in the metadata."""
        return str(self.metadata["fingerprint"])

    def verify(self) -> None:
        """Read all rows and compare them with the fingerprint.

        Raises:
            DataError: they are not the rows that were written.
        """
        found = fingerprint(self)
        if found != self.fingerprint:
            raise DataError(
                f"the rows of this partition have fingerprint {found}, and had {self.fingerprint} when they "
                "were written: the block was damaged, or the rows were ingested again and differ"
            )


def _checked(metadata: Mapping[str, Any]) -> Metadata:
    """A copy of `metadata` in which every number is possible."""
    if metadata.get("format") != FORMAT or metadata.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"this is no partition that this version can read: expected format {FORMAT!r} {FORMAT_VERSION}, "
            f"found {metadata.get('format')!r} {metadata.get('format_version')!r}"
        )
    sizes = ("rows", "width", "features_offset_bytes", "labels_offset_bytes", "size_bytes")
    for key in sizes:
        value = metadata.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise DataError(f"the metadata of a partition has {key} = {value!r}, which is no possible size")
    for key, types in (("features_dtype", FEATURE_TYPES), ("labels_dtype", LABEL_TYPES)):
        if metadata.get(key) not in types:
            raise DataError(f"the metadata of a partition has {key} = {metadata.get(key)!r}, not {' or '.join(types)}")
    if not isinstance(metadata.get("fingerprint"), str):
        raise DataError("the metadata of a partition has no fingerprint")
    known = dict(metadata)
    features_end = known["features_offset_bytes"] + (
        known["rows"] * known["width"] * np.dtype(known["features_dtype"]).itemsize
    )
    labels_end = known["labels_offset_bytes"] + known["rows"] * np.dtype(known["labels_dtype"]).itemsize
    aligned = not (known["features_offset_bytes"] % ALIGN_BYTES or known["labels_offset_bytes"] % ALIGN_BYTES)
    if not (aligned and features_end <= known["labels_offset_bytes"] and labels_end <= known["size_bytes"]):
        raise DataError(
            f"the metadata of a partition contradicts itself: {known['rows']} rows of {known['width']} "
            f"{known['features_dtype']} features do not fit the places it names"
        )
    return known


def _stored(values: NDArray[Any], types: Sequence[str], what: str) -> NDArray[Any]:
    """`values` in the first of `types` that holds them; the same array where nothing is to be done."""
    if values.dtype.kind not in "buif":
        raise DataError(f"{what} must be numbers, not {values.dtype}")
    if values.dtype.name not in types:
        whole = values.dtype.kind in ("b" if what == "features" else "bui")
        kind = np.dtype(types[0] if whole else types[1])
        limit: Any = np.iinfo(kind) if whole else np.finfo(kind)
        finite = values if values.dtype.kind != "f" else values[np.isfinite(values)]
        if finite.size and kind.name != "uint8" and (finite.min() < limit.min or finite.max() > limit.max):
            raise DataError(f"{what} from {finite.min()} to {finite.max()} do not fit in {kind}")
        values = values.astype(kind)
    return np.ascontiguousarray(values)


def _bytes(array: NDArray[Any]) -> memoryview:
    # An array without elements cannot be cast by memoryview.
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES
