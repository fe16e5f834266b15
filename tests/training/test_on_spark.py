"""The Spark pool and the Spark ingest, on one embedded Spark: equal to what happens without it."""

from __future__ import annotations

import itertools
import os
import signal
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

import coproc.spark
from coproc.errors import ConfigError, DataError, Diverged, ServerError
from coproc.ingest import ingest_frame, ingest_table, open_partition, read_parquet
from coproc.pools.base import quiet, require_slots
from coproc.pools.spark import SparkPool
from storage_tier import TierClient
from storage_tier.filesystem import TierFileSystem


@pytest.fixture
def pool(spark):
    return SparkPool(spark)


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


def ingest(frame, destination, pool, **changes):
    wanted = {"partitions_count": 2, "features": "features", "label": "label", **changes}
    return ingest_frame(frame, destination, run_job=pool.map_in_arrow, **wanted)


def all_rows(ingested):
    """(features, labels) of all partitions, in an order of their own content."""
    parts = [open_partition(ingested.destination, each.partition) for each in ingested.partitions]
    features = np.concatenate([part.features.astype(np.float32) for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    order = np.lexsort((*features.T, labels))
    return features[order], labels[order]


COUNT, WIDTH = 41, 5


def numbers(kind):
    if kind == "bytes":
        return np.random.default_rng(0).integers(0, 256, (COUNT, WIDTH)).astype(np.uint8)
    return np.random.default_rng(0).normal(size=(COUNT, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("kind", ["array", "fixed", "bytes", "vector", "scalars"])
def test_every_kind_of_column_gives_the_rows_it_holds(kind, spark, pool, destination, tmp_path):
    values = numbers("bytes" if kind in ("fixed", "bytes") else "floats")
    labels = np.arange(COUNT) % 3
    names = "features"
    columns = {"label": labels}
    if kind == "array":
        columns["features"] = pa.array(list(values), pa.list_(pa.float32()))
    elif kind == "fixed":
        columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), WIDTH)
    elif kind == "bytes":
        columns["features"] = pa.array([row.tobytes() for row in values])
    else:
        names = [f"x{i}" for i in range(WIDTH)]
        columns |= {name: values[:, i] for i, name in enumerate(names)}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    frame = read_parquet(spark, path)
    if kind == "vector":
        from pyspark.ml.feature import VectorAssembler

        frame = VectorAssembler(inputCols=names, outputCol="features").transform(frame)
        names = "features"
    ingested = ingest(frame, destination, pool, features=names)

    features, found = all_rows(ingested)
    order = np.lexsort((*values.astype(np.float32).T, labels))
    np.testing.assert_array_equal(features, values[order])
    np.testing.assert_array_equal(found, labels[order])
    assert ingested.features_dtype == values.dtype.name
    assert (ingested.width, ingested.classes, ingested.rows_count) == (WIDTH, 3, COUNT)
    assert abs(ingested.partitions[0].rows - ingested.partitions[1].rows) <= 1

    if kind != "vector":  # without Spark: the same rows, and the same facts of them
        with TierClient(destination.address) as tier:
            tier.delete_prefix(f"/runs/{destination.run}")
        without = ingest_table(path, destination, partitions_count=2, features=names, label="label")
        np.testing.assert_array_equal(all_rows(without)[0], features)
        assert (without.width, without.classes) == (ingested.width, ingested.classes)
        assert without.features_dtype == ingested.features_dtype


def frame_of(spark, count=20, bad=None):
    rows = [(float(i), float(2 * i), i % 2) for i in range(count)]
    if bad is not None:
        rows[bad[0]] = bad[1]
    return spark.createDataFrame(rows, "a float, b float, label int")


def test_a_partition_is_a_function_of_its_rows(spark, pool, destination):
    frame = frame_of(spark)
    first = ingest(frame, destination, pool, features=["a", "b"])
    assert ingest(frame, destination, pool, features=["a", "b"]) == first
    with pytest.raises(DataError, match="the DataFrame gave other rows when a part of it was read a second"):
        ingest(frame_of(spark, 20, (3, (0.5, 0.5, 1))), destination, pool, features=["a", "b"])


def test_bad_rows_are_named_by_their_place_in_the_file(spark, pool, destination, tmp_path):
    values = numbers("floats")
    values[17, 2] = np.nan
    path = tmp_path / "holes.parquet"
    columns = {"features": pa.array(list(values), pa.list_(pa.float32())), "label": np.arange(COUNT) % 2}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=r"^row 17 \(counted from 0\) of holes\.parquet: feature 2 .* nan"):
        ingest(read_parquet(spark, path), destination, pool)


def test_bad_data_gets_a_sentence(spark, pool, destination, tmp_path):
    runs = itertools.count()

    def fresh():
        return replace(destination, run=f"{destination.run}-{next(runs)}")

    with pytest.raises(
        DataError, match=r"there is no column 'c'; the columns of the DataFrame are 'a', 'b', 'label': .* --features"
    ):
        ingest(frame_of(spark), fresh(), pool, features=["a", "c"])
    with pytest.raises(DataError, match=r"partition \d of the DataFrame: column 'b' is null"):
        ingest(frame_of(spark, 20, (3, (0.5, None, 1))), fresh(), pool, features=["a", "b"])
    with pytest.raises(DataError, match="text"):
        ingest(spark.createDataFrame([("x", 1)], "features string, label int"), fresh(), pool)
    with pytest.raises(DataError, match="every label in column 'label' of the DataFrame is 1"):
        ingest(frame_of(spark).filter("label = 1"), fresh(), pool, features=["a", "b"])
    with pytest.raises(DataError, match="2 rows for 3 workers"):
        ingest(frame_of(spark, 2), fresh(), pool, features=["a", "b"], partitions_count=3)
    with pytest.raises(DataError, match="the DataFrame has no rows"):
        ingest(frame_of(spark).limit(0), fresh(), pool, features=["a", "b"])
    with pytest.raises(DataError, match="there is no file or folder"):
        read_parquet(spark, tmp_path / "nowhere.parquet")
    (tmp_path / "words.parquet").write_text("words")
    with pytest.raises(DataError, match=r"words\.parquet cannot be read as Parquet"):
        read_parquet(spark, tmp_path / "words.parquet")


# -- the pool


def rows_of(batches):
    return [value for batch in batches for value in batch.column(0).to_pylist()]


def one_row(**columns):
    return pa.RecordBatch.from_pylist([columns])


def test_slots_are_those_of_the_cluster(pool):
    assert pool.slots == 2
    with pytest.raises(ConfigError, match="all 3 workers"):
        require_slots(pool, 3)


def test_tasks_run_at_the_same_time_with_one_thread_each(spark, pool, tmp_path):
    def body(batches):
        import pathlib
        import time

        (number,) = [value for batch in batches for value in batch.column(0).to_pylist()]
        (pathlib.Path(folder) / str(number)).write_text("here")
        deadline = time.monotonic() + 30
        while not (pathlib.Path(folder) / str(1 - number)).exists():  # each waits for the other
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield pa.RecordBatch.from_pylist([{"threads": os.environ["OMP_NUM_THREADS"]}])

    folder = str(tmp_path)
    rows = pool.map_in_arrow(spark.range(0, 2, 1, numPartitions=2), body, "threads string")
    assert [row["threads"] for row in rows] == ["1", "1"]


def test_a_task_whose_process_is_killed_is_run_again(spark, pool, tmp_path):
    def body(batches):
        from pyspark import TaskContext

        attempt = TaskContext.get().attemptNumber()
        if attempt < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in batches:
            pass
        yield pa.RecordBatch.from_pylist([{"attempt": attempt}])

    rows = pool.map_in_arrow(spark.range(0, 1, 1, numPartitions=1), body, "attempt long")
    assert rows[0]["attempt"] == 2


def test_a_task_that_leaves_its_input_keeps_its_process(spark, pool):
    def body(batches):
        next(batches)
        yield pa.RecordBatch.from_pylist([{"pid": os.getpid()}])

    frame = spark.range(0, 50_000, 1, numPartitions=1)
    pids = {pool.map_in_arrow(frame, body, "pid long")[0]["pid"] for _ in range(3)}
    assert len(pids) == 1


def test_errors_arrive_as_sentences(spark, pool):
    def refuse(batches):
        raise DataError("row 3 is wrong")
        yield

    def break_down(batches):
        return 1 / 0
        yield

    with pytest.raises(DataError, match=r"^row 3 is wrong$"):
        pool.map_in_arrow(spark.range(1), refuse, "x long")
    with pytest.raises(ServerError, match=r"^ZeroDivisionError: division by zero$"):
        pool.map_in_arrow(spark.range(1), break_down, "x long")
    with pytest.raises(ServerError, match=r"^a Spark job failed: "):
        pool.map_in_arrow(spark.range(1).selectExpr("assert_true(id > 5)"), lambda batches: batches, "x long")


def test_a_stop_cancels_the_job(spark, pool, tmp_path):
    def body(batches):
        import pathlib
        import time

        pathlib.Path(started).touch()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.05)
        yield from batches

    started = str(tmp_path / "started")
    rows = pool.map_in_arrow(spark.range(1), body, "id long", stop=lambda: os.path.exists(started))
    assert rows == []


# -- whole trainings


def test_trains_on_a_frame(spark, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    values = (rng.normal(size=(200, 3)) + 3 * labels[:, None]).astype(np.float32)
    rows = [([float(x) for x in row], int(label)) for row, label in zip(values, labels, strict=True)]
    frame = spark.createDataFrame(rows, "features array<float>, label int")
    result = coproc.spark.train(
        frame,
        features="features",
        label="label",
        validation=frame.limit(50),
        output=tmp_path,
        hidden=(8,),
        epochs=8,
        batch_size=16,
        group_size=4,
        learning_rate=0.02,
    )
    assert [row["examples"] for row in result.history] == [200] * 8
    assert result.history[-1]["accuracy"] > 0.9
    assert result.history[-1]["measured_on"] == "validation"
    assert set(load_file(tmp_path / "model.safetensors")) == set(result.params)
    assert spark.range(3).count() == 3  # the caller's session is as it was


def test_more_synchronous_workers_than_slots_are_refused(spark):
    frame = frame_of(spark)
    with pytest.raises(ConfigError, match=r"needs all 3 workers to run at once.* has 2 slots"):
        coproc.spark.train(frame, features=["a", "b"], label="label", workers=3)
    with pytest.raises(ConfigError, match="settings are those of TrainConfig"):
        coproc.spark.train(frame, features=["a", "b"], label="label", wrkers=2)


def test_asynchronous_workers_may_be_more_than_slots(spark):
    result = coproc.spark.train(
        frame_of(spark), features=["a", "b"], label="label", workers=3, consistency="ssp", epochs=2, hidden=()
    )
    assert [row["examples"] for row in result.history] == [20, 20]


def test_divergence_on_spark_is_a_sentence(spark):
    frame = spark.range(64).selectExpr("float(id * 1000) as x", "float(id) as y")
    with pytest.raises(Diverged, match=r"^training diverged: worker \d found at step \d+"):
        coproc.spark.train(
            frame, features=["x"], label="y", loss="squared", optimizer="sgd", learning_rate=1.0, batch_size=8
        )


def test_each_process_of_executors_opens_files_of_the_tier(spark, pool, tier_address):
    fs = TierFileSystem(address=tier_address, skip_instance_cache=True)
    fs.pipe("/spark/numbers", np.arange(10, dtype=np.int64))

    def copy(batches):
        for batch in batches:
            for number in batch["id"].to_pylist():
                with fs.open("/spark/numbers") as numbers, fs.open(f"/spark/out/{number}", "wb") as out:
                    out.write(np.frombuffer(numbers.getbuffer(), np.int64)[number])
            yield pa.record_batch({"pid": [os.getpid()], "near": [fs.client.near]})

    told = pool.map_in_arrow(spark.range(4, numPartitions=2), copy, "pid long, near boolean")
    assert {row["near"] for row in told} == {True}
    assert os.getpid() not in {row["pid"] for row in told}
    assert [np.frombuffer(fs.cat(f"/spark/out/{number}"), np.int64)[0] for number in range(4)] == [0, 1, 2, 3]
    fs.close()
