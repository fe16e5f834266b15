"""One pass over the data writes each partition as a file of the tier; every later task maps its file.

Through Spark (`ingest_frame`) the executors read, cut and write; without it (`ingest_table`) this process
does, with pyarrow. Both obey the same rule: a partition's file is a function of its rows, so that a task
that Spark runs again finds written what it wants to write, or says that the rows are not the same.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coproc.data.base import ColumnPlan, Kind, Rows, Summary
from coproc.data.partition import Metadata, Partition, encode
from coproc.data.rows import plan_columns, read
from coproc.errors import ConfigError, DataError
from storage_tier import TierClient
from storage_tier.errors import PathExists
from storage_tier.wire import trust

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

# Added to a frame for the pass; nobody's columns have such names.
ORDER_COLUMN = "__coproc_order"
ROW_COLUMN = "__coproc_row"
FILE_COLUMN = "__coproc_file"

MAGIC = b"PAR1"
CAUSE_LENGTH = 400

FACT_COLUMNS = "partition long, facts string"

Body = Callable[[Iterator["pa.RecordBatch"]], Iterator["pa.RecordBatch"]]


@dataclass(frozen=True)
class Destination:
    """Where the partitions of a run go. Plain values, so that it travels in a task."""

    address: str
    """Address of the tier."""
    run: str
    token: str | None = None
    tls_authority: str | None = None
    """A PEM file of whom to trust, on every host that opens it, where the servers speak TLS."""

    def path(self, partition: int) -> str:
        """Of a partition's file: /runs/RUN/data/00003."""
        return f"/runs/{self.run}/data/{partition:05d}"

    def open(self) -> TierClient:
        """A client of the tier; connects at its first call."""
        return TierClient(self.address, token=self.token, tls=trust(self.tls_authority))


@dataclass(frozen=True)
class PartitionFacts:
    """What the driver has to know of one partition."""

    partition: int
    rows: int
    width: int
    label_min: float
    label_max: float
    features_dtype: str
    fingerprint: str

    @classmethod
    def of(cls, partition: int, rows: Rows, metadata: Metadata) -> PartitionFacts:
        summary = Summary.of(rows)
        return cls(
            partition,
            summary.rows,
            summary.width,
            summary.label_min,
            summary.label_max,
            str(metadata["features_dtype"]),
            str(metadata["fingerprint"]),
        )

    @property
    def summary(self) -> Summary:
        return Summary(self.rows, self.width, self.label_min, self.label_max)


@dataclass(frozen=True)
class Ingested:
    """The data of a run, as it lies in the tier."""

    destination: Destination
    columns: ColumnPlan
    origin: str
    """Where the rows came from, for messages."""
    partitions: tuple[PartitionFacts, ...]
    """In order; a partition may be empty."""
    width: int
    """Features a row."""
    classes: int | None
    """Classes to tell apart; None for a regression."""

    @property
    def rows_count(self) -> int:
        return sum(part.rows for part in self.partitions)

    @property
    def features_dtype(self) -> str:
        """uint8 if every partition has bytes, else float32."""
        kinds = {part.features_dtype for part in self.partitions if part.rows}
        return "uint8" if kinds == {"uint8"} else "float32"

    def remove(self) -> int:
        """Remove the run's files from the tier; returns how many. Idempotent."""
        with self.destination.open() as tier:
            return tier.delete_prefix(f"/runs/{self.destination.run}")


def ingest_table(
    data: str | os.PathLike[str] | pa.Table,
    destination: Destination,
    *,
    partitions_count: int,
    features: str | Sequence[str],
    label: str,
    kind: Kind = "classification",
    seed: int = 0,
) -> Ingested:
    """Write a Parquet file (or folder of them), or a table, as partitions, from this process.

    All rows are in this process's memory for a moment. Rows are dealt in a random order that is a function of
    the seed and of their number.

    Raises:
        DataError: no such file or column, or rows that cannot be trained on; nothing stays in the tier.
        OutOfMemory: the tier is too small.
    """
    origin, table = open_table(data, features, label)
    columns = plan_columns(table.schema, features, label, kind, origin=origin)
    rows = read(table.to_batches(), columns, origin)
    _require_enough(len(rows), partitions_count, origin)
    # Words of a bit generator, not its permutation: those are the same in every version of numpy.
    words = np.random.Philox(np.random.SeedSequence((seed, len(rows)))).random_raw(len(rows))
    order = np.argsort(words, kind="stable")
    facts = []
    with destination.open() as tier:
        for partition, chosen in enumerate(np.array_split(order, partitions_count)):
            part = Rows(rows.features[chosen], rows.labels[chosen])
            metadata = put_partition(tier, destination.path(partition), part, origin)
            facts.append(PartitionFacts.of(partition, part, metadata))
    return _ingested(destination, columns, origin, facts)


def ingest_frame(
    frame: DataFrame,
    destination: Destination,
    *,
    partitions_count: int,
    features: str | Sequence[str],
    label: str,
    run_job: Callable[[DataFrame, Body, str], list[Any]],
    kind: Kind = "classification",
    origin: str = "the DataFrame",
) -> Ingested:
    """Write a Spark DataFrame as partitions, in one job whose tasks write straight into the tier.

    Rows are dealt round-robin by Spark; within a partition their order is that of a hash of their content, so
    that it does not depend on which shuffle block came first.

    Args:
        run_job: `SparkPool.map_in_arrow`, or what does the same.

    Raises:
        As `ingest_table`.
    """
    from pyspark.sql import functions as sql

    names = [features] if isinstance(features, str) else list(features)
    columns = plan_columns(_arrow_schema(frame, [*names, label]), features, label, kind, origin=origin)
    wanted = [sql.col(f"`{name}`") for name in dict.fromkeys([*names, label])]
    tracked = [sql.col(name) for name in (FILE_COLUMN, ROW_COLUMN) if name in frame.columns]
    dealt = frame.select(*wanted, *tracked, sql.xxhash64(*wanted).alias(ORDER_COLUMN)).repartition(partitions_count)
    found = run_job(dealt, partition_body(destination, columns, origin), FACT_COLUMNS)
    answers = {int(row["partition"]): json.loads(row["facts"]) for row in found}
    for number in sorted(answers):
        if "refused" in answers[number]:
            raise DataError(answers[number]["refused"])
    facts = {number: PartitionFacts(**answer) for number, answer in answers.items()}
    _require_enough(sum(each.rows for each in facts.values()), partitions_count, origin)
    # Of a frame that Spark knows to be empty it runs no task: then there are no facts at all.
    return _ingested(destination, columns, origin, [facts[number] for number in sorted(facts)])


def read_parquet(session: SparkSession, path: str | os.PathLike[str]) -> DataFrame:
    """A Parquet file or folder as a frame whose rows know their file and number, for messages.

    Raises:
        DataError: there is none, or it is no Parquet.
    """
    from py4j.protocol import Py4JError  # type: ignore[import-untyped]
    from pyspark.errors import PySparkException
    from pyspark.sql import functions as sql

    require_file(path)
    where = os.fspath(path)
    try:
        frame = session.read.parquet(where if "://" in where else os.path.abspath(where))
        return frame.select(
            "*",
            sql.col("_metadata.file_name").alias(FILE_COLUMN),
            sql.col("_metadata.row_index").alias(ROW_COLUMN),
        )
    except (PySparkException, Py4JError) as error:
        causes = re.findall(r"^Caused by: [\w.$]+: (.*)", str(error), re.MULTILINE)
        cause = (causes or str(error).splitlines())[-1 if causes else 0]
        raise _no_parquet(where, cause) from None


def open_table(
    data: str | os.PathLike[str] | pa.Table, features: str | Sequence[str], label: str
) -> tuple[str, pa.Table]:
    """(where it comes from, the named columns of it) of a Parquet file or folder, or of a table.

    Raises:
        DataError: no such file or column, or no Parquet.
    """
    import pyarrow as pa
    import pyarrow.dataset

    names = list(dict.fromkeys([*([features] if isinstance(features, str) else features), label]))
    if isinstance(data, pa.Table):
        require_columns(data.schema, features, label, "the table")
        return "the table", data.select(names)
    require_file(data)
    origin = os.fspath(data)
    try:
        source = pyarrow.dataset.dataset(origin, format="parquet")
        name = Path(origin).name or origin
        require_columns(source.schema, features, label, name)
        return name, source.to_table(columns=names)
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _no_parquet(origin, str(error).splitlines()[0]) from None


def require_file(path: str | os.PathLike[str]) -> None:
    """Refuse a path of this host that cannot be data, before anything is started; URLs are not looked at.

    Raises:
        DataError: nothing is there, a folder without files, a file that does not begin as Parquet does.
    """
    where = os.fspath(path)
    if "://" in where:
        return
    if not Path(path).exists():
        raise DataError(f"there is no file or folder {where} (looked in {Path.cwd()}): check the path")
    if Path(path).is_dir():
        # What begins so is a note of whoever wrote the folder: neither Spark nor pyarrow reads it.
        if not any(each.is_file() and each.name[0] not in "._" for each in Path(path).rglob("*")):
            raise DataError(f"the folder {where} has no Parquet files: name a Parquet file, or a folder that has some")
        return
    try:
        with open(path, "rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}; check who may read it") from None
    if head != MAGIC:
        begins = f"it begins with {head!r}, and Parquet with {MAGIC!r}" if head else "it is empty"
        raise _no_parquet(where, begins)


def require_columns(schema: pa.Schema, features: str | Sequence[str], label: str, origin: str) -> None:
    """Raises DataError if a column is missing, or cannot be one whatever the task is."""
    plan_columns(schema, features, label, "regression", origin=origin)


def _no_parquet(where: str, cause: str) -> DataError:
    shown = textwrap.shorten(cause.rstrip("."), CAUSE_LENGTH, placeholder=" …")
    return DataError(
        f"{where} cannot be read as Parquet: {shown}; if it was damaged write it again; if it is CSV convert it, in "
        "pandas with pandas.read_csv('FILE.csv').to_parquet('FILE.parquet')"
    )


def open_partition(destination: Destination, partition: int) -> Partition:
    """A partition as it lies in the tier: near a view of its memory, far a copy.

    Raises:
        DataError: the file is no partition.
    """
    with destination.open() as tier:
        file = tier.open(destination.path(partition))
        # Arrays over the file's data keep it mapped as long as they live.
        return Partition.open(file.data, file.metadata)


def put_partition(tier: TierClient, path: str, rows: Rows, origin: str) -> Metadata:
    """Write rows as the file `path`; that it is there already, with the same rows, is as good.

    Raises:
        DataError: it is there with other rows.
    """
    buffers, metadata = encode(rows.features, rows.labels)
    try:
        tier.put(path, buffers, metadata)
    except PathExists:
        there = tier.stat(path).metadata.get("fingerprint")
        if there != metadata["fingerprint"]:
            raise DataError(
                f"{origin} gave other rows when a part of it was read a second time ({path} has "
                f"fingerprint {there}, the new rows have {metadata['fingerprint']}): it is not computed "
                "deterministically (a sample without a seed, a limit without an order, a random column?); "
                "write it to Parquet first"
            ) from None
    return metadata


def partition_body(destination: Destination, columns: ColumnPlan, origin: str) -> Body:
    """The body of the ingest job: a partition's batches in, its file written, its facts out."""

    def body(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        partition = context.partitionId()
        kept = [batch for batch in batches if batch.num_rows]
        try:
            rows = _read_tracked(kept, columns, partition, origin)
            if kept:
                keys = np.concatenate([batch.column(ORDER_COLUMN).to_numpy() for batch in kept])
                order: NDArray[np.intp] = np.argsort(keys, kind="stable")
                rows = Rows(rows.features[order], rows.labels[order])
            with destination.open() as tier:
                metadata = put_partition(tier, destination.path(partition), rows, origin)
            facts = asdict(PartitionFacts.of(partition, rows, metadata))
        except DataError as error:
            # An answer and no exception: Spark would read the same bad rows three times more.
            facts = {"refused": str(error)}
        schema = pa.schema([("partition", pa.int64()), ("facts", pa.string())])
        yield pa.RecordBatch.from_pylist([{"partition": partition, "facts": json.dumps(facts)}], schema=schema)

    return body


def _read_tracked(batches: Sequence[pa.RecordBatch], columns: ColumnPlan, partition: int, origin: str) -> Rows:
    """As `read`; a refused row is named by its place in its file, where the frame knows it."""
    dealt = f"partition {partition} of {origin}"
    if not batches:
        width = columns.width or 1
        kind = np.float32 if columns.kind == "regression" else np.int32
        return Rows(np.empty((0, width), np.float32), np.empty(0, kind))
    try:
        return read(batches, columns, dealt)
    except DataError as error:
        found = re.match(rf"row (\d+) \(counted from 0\) of {re.escape(dealt)}", str(error))
        if found is None or ROW_COLUMN not in batches[0].schema.names:
            raise
        import pyarrow as pa

        row = pa.Table.from_batches(list(batches)).slice(int(found.group(1)), 1).to_pylist()[0]
        place = f"row {row[ROW_COLUMN]} (counted from 0) of {row[FILE_COLUMN]}"
        raise DataError(place + str(error)[found.end() :]) from None


def _require_enough(rows_count: int, partitions_count: int, origin: str) -> None:
    if partitions_count < 1:
        raise ConfigError(f"there must be at least 1 worker, not {partitions_count}")
    if 0 < rows_count < partitions_count:
        raise DataError(
            f"{origin} has {rows_count} row{'s' if rows_count != 1 else ''} for {partitions_count} workers: "
            f"use at most --workers {rows_count}"
        )


def _ingested(destination: Destination, columns: ColumnPlan, origin: str, facts: Sequence[PartitionFacts]) -> Ingested:
    summary = Summary.over(each.summary for each in facts)
    classes = summary.classes(columns, origin)
    return Ingested(destination, columns, origin, tuple(facts), summary.width, classes)


def _arrow_schema(frame: DataFrame, names: Sequence[str]) -> pa.Schema:
    """The named columns as Arrow sees them; the others, of whatever type, only by their names."""
    import pyarrow as pa
    from pyspark.sql.pandas.types import to_arrow_schema
    from pyspark.sql.types import StructType

    own = [field for field in frame.schema.fields if field.name not in (FILE_COLUMN, ROW_COLUMN)]
    wanted = to_arrow_schema(StructType([field for field in own if field.name in names]))
    kinds = {field.name: field for field in wanted}
    return pa.schema([kinds.get(field.name, pa.field(field.name, pa.null())) for field in own])
