"""Rows as two arrays, which all of this folder makes or takes; where they come from; what is in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from coproc.errors import DataError

FEATURE_TYPES = ("uint8", "float32")
"""Whole numbers 0..255 stay bytes, a quarter of the memory; everything else is float32."""

LABEL_TYPES = ("int32", "float32")
"""Class ids, or the targets of a regression."""

Kind = Literal["classification", "binary", "regression"]
Encoding = Literal["list", "bytes", "vector", "scalars"]

# More classes than this are an identifier taken for a label; its network would not fit in memory.
CLASSES_MAX = 1 << 16


@dataclass(frozen=True, eq=False)
class Rows:
    """Features and labels of the same rows. May be views of memory that somebody else owns."""

    features: NDArray[Any]
    """(N, d) uint8 or float32, row after row."""
    labels: NDArray[Any]
    """(N,) int32 or float32."""

    def __post_init__(self) -> None:
        features, labels = self.features, self.labels
        if features.ndim != 2 or features.dtype.name not in FEATURE_TYPES:
            raise DataError(
                f"features must be two-dimensional {' or '.join(FEATURE_TYPES)}, "
                f"not {features.dtype} of shape {features.shape}"
            )
        if labels.shape != (len(features),) or labels.dtype.name not in LABEL_TYPES:
            raise DataError(
                f"labels must be {' or '.join(LABEL_TYPES)} of shape ({len(features)},), one a row, "
                f"not {labels.dtype} of shape {labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class ColumnPlan:
    """Which columns are features and label, and how to read them. Made once, from the schema."""

    features: tuple[str, ...]
    label: str
    kind: Kind
    encoding: Encoding
    width: int | None
    """Features a row, where the schema says it."""
    classes: int | None
    """Labels are below this; None: the data decide."""


@dataclass(frozen=True)
class Summary:
    """What must be known of all partitions together before training. JSON values, so it travels as a row."""

    rows: int = 0
    width: int = 0
    """Features a row; 0 without rows."""
    label_min: float = 0.0
    label_max: float = 0.0

    @classmethod
    def of(cls, rows: Rows) -> Summary:
        """The summary of one partition."""
        if not len(rows):
            return cls()
        labels = rows.labels
        return cls(len(rows), rows.features.shape[1], float(labels.min()), float(labels.max()))

    @classmethod
    def over(cls, parts: Iterable[Summary]) -> Summary:
        """The summary of all parts; empty ones do not count.

        Raises:
            DataError: two parts have rows of different lengths.
        """
        full = [part for part in parts if part.rows]
        if not full:
            return cls()
        widths = sorted({part.width for part in full})
        if len(widths) > 1:
            raise DataError(
                f"rows have {widths[0]} features in one partition and {widths[-1]} in another; "
                "every row needs the same number: pad the shorter rows, or drop them"
            )
        return cls(
            sum(part.rows for part in full),
            widths[0],
            min(part.label_min for part in full),
            max(part.label_max for part in full),
        )

    def classes(self, plan: ColumnPlan, origin: str = "the data") -> int | None:
        """How many classes to train; None for a regression.

        Raises:
            DataError: no rows, one class only, or too many classes.
        """
        if not self.rows:
            raise DataError(f"{origin} has no rows: there is nothing to train on; name data that have some")
        if plan.kind == "regression":
            return None
        if self.label_min == self.label_max:
            raise DataError(
                f"every label in column {plan.label!r} of {origin} is {self.label_max:.0f}: "
                "a classifier needs at least two classes; check that --label names the right column, or train a "
                "regression with --loss squared"
            )
        count = plan.classes or int(self.label_max) + 1
        if count > CLASSES_MAX:
            raise DataError(
                f"labels in column {plan.label!r} of {origin} go up to {self.label_max:.0f}, and at most "
                f"{CLASSES_MAX} classes can be: number them 0, 1, 2, ..., or train a regression with --loss squared"
            )
        return count
