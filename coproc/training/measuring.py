"""What a version is measured on after each epoch: the validation rows, else a sample of the training rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from coproc.data.base import ColumnPlan, Rows
from coproc.data.rows import read
from coproc.errors import DataError
from coproc.grads.base import GradientBackend
from coproc.ingest import Ingested, open_partition, open_table
from coproc.training.base import Flat, Plan
from coproc.training.config import TrainConfig
from coproc.training.opening import is_frame

if TYPE_CHECKING:
    import pyarrow as pa

# Without validation data this many rows of the training data say how good the model is.
SAMPLE_ROWS = 2000


def measure(
    config: TrainConfig, validation: Any, ingested: Ingested, plan: Plan
) -> tuple[Callable[[Flat], Mapping[str, float]], str]:
    """(what measures a version, on which rows)."""
    if validation is not None:
        rows = _validation_rows(config, validation, ingested)
        return _evaluator(plan.backend, rows, plan.scale), "validation"
    fullest = max(ingested.partitions, key=lambda part: part.rows)
    partition = open_partition(ingested.destination, fullest.partition)
    sample = Rows(partition.features[:SAMPLE_ROWS], partition.labels[:SAMPLE_ROWS])
    return _evaluator(plan.backend, sample, plan.scale), "training sample"


def _validation_rows(config: TrainConfig, validation: Any, ingested: Ingested) -> Rows:
    columns = ingested.columns
    # A label that the training data do not have cannot be predicted, so it is refused.
    columns = dataclasses.replace(columns, classes=ingested.classes, width=ingested.width)
    if is_frame(validation):
        frame = validation
        table = frame.select(*dict.fromkeys([*columns.features, columns.label])).toArrow()
        origin = "the validation DataFrame"
    else:
        origin, table = open_table(validation, config.features, config.label)
    rows = read(table.to_batches(), _encoded_as(columns, table, config, origin), f"{origin} (validation)")
    if not len(rows):
        raise DataError(f"{origin} has no rows: leave out --validation, or give it some")
    return rows


def _evaluator(backend: GradientBackend, rows: Rows, scale: float) -> Callable[[Flat], Mapping[str, float]]:
    return lambda flat: backend.evaluate(flat, rows.features, rows.labels, scale=scale)


def _encoded_as(columns: ColumnPlan, table: pa.Table, config: TrainConfig, origin: str) -> ColumnPlan:
    """The plan of the training columns for a table that may have them in other types."""
    from coproc.data.rows import plan_columns

    own = plan_columns(table.schema, config.features, config.label, config.kind, columns.classes, origin)
    return dataclasses.replace(own, classes=columns.classes, width=columns.width)
