"""Broadcast and local descent on one embedded Spark: equal to one process, killed tasks, and nothing is left."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coproc import optim
from coproc.errors import ConfigError, DataError
from coproc.pools.spark import SparkPool
from coproc.testing.works import Training, Work, one_process

from .averaging import by_hand

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
UNEQUAL = Work((9, 2, 7), epochs=2, rates=(0.1, 0.05))


def jobs_of(session):
    """Jobs that this Spark has had."""
    return session.sparkContext._jsc.sc().dagScheduler().numTotalJobs()


class Killing(SparkPool):
    """Kills the Python worker of a task in each job, before or after what it does; Spark runs it again."""

    def __init__(self, session, folder, when):
        super().__init__(session)
        self.folder, self.when = str(folder), when

    def each(self, count, body, **more):
        die = self.death()

        def killing(number):
            die("before")
            answer = body(number)
            die("after")
            return answer

        return super().each(count, killing, **more)

    def aggregate(self, vector, function, arguments, **more):
        die = self.death()

        def killing(params, argument, run_task):
            die("before")
            given = function(params, argument, run_task)
            die("after")
            return given

        return super().aggregate(vector, killing, arguments, **more)

    def death(self):
        """In a task: its end, when it is the first attempt of the second task."""
        folder, chosen = self.folder, self.when

        def die(when):
            import pathlib
            import uuid

            from pyspark import TaskContext

            context = TaskContext.get()
            if when == chosen and context.attemptNumber() == 0 and context.partitionId() == 1:
                pathlib.Path(folder, uuid.uuid4().hex).touch()
                os.kill(os.getpid(), signal.SIGKILL)

        return die


def test_broadcast_is_one_process_and_a_job_a_step(spark, ground):
    before = jobs_of(spark)
    with Training("broadcast", ground, UNEQUAL) as training:
        found = training.run(SparkPool(spark))
        np.testing.assert_allclose(found, one_process(UNEQUAL), **CLOSE)
        steps = max(UNEQUAL.pushes_per_epoch) * UNEQUAL.epochs
        costs, size_bytes = training.mode.costs(), found.nbytes
        assert jobs_of(spark) - before == costs.jobs_count == steps
        given = UNEQUAL.epochs * (3 + 2 + 1)  # workers with rows in the first, second and third step
        assert costs.worker_in_bytes == costs.worker_out_bytes == given * size_bytes
        assert costs.driver_out_bytes == steps * size_bytes
        assert costs.driver_in_bytes == given * size_bytes


def test_many_gradients_come_by_a_tree(spark, ground):
    work = Work((4,) * 9, epochs=1, rates=(0.1,))
    with Training("broadcast", ground, work) as training:
        found = training.run(SparkPool(spark))
        np.testing.assert_allclose(found, one_process(work), **CLOSE)
        assert training.mode.costs().driver_in_bytes == 3 * found.nbytes  # the square root of 9
        assert training.mode.costs().worker_out_bytes == 9 * found.nbytes


def test_local_descent_is_a_job_a_round(spark, ground):
    before = jobs_of(spark)
    with Training("localsgd", ground, UNEQUAL, tau=2) as training:
        expected, rounds = by_hand(UNEQUAL, 2, "mean")
        np.testing.assert_allclose(training.run(SparkPool(spark)), expected, **CLOSE)
        assert jobs_of(spark) - before == training.mode.costs().jobs_count == len(rounds)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("mode", ["broadcast", "localsgd", "storage"])
def test_a_killed_task_counts_once(spark, ground, tmp_path, mode, when):
    work = Work((6, 4), epochs=1, rates=(0.1,))
    pool = Killing(spark, tmp_path, when)
    with Training(mode, ground, work, tau=2) as training:
        expected = by_hand(work, 2, "mean")[0] if mode == "localsgd" else one_process(work)
        np.testing.assert_allclose(training.run(pool), expected, **CLOSE)
        assert training.mode.status().examples_count == sum(work.rows)
        assert training.mode.status().pushes_count == 3
        assert len(list(tmp_path.iterdir())) == training.mode.costs().jobs_count
    assert training.files() == []


def test_no_broadcast_is_left(spark):
    def double(vector, argument, run_task):
        return (2 * vector, argument) if argument != "c" else (None, argument)

    vector = np.arange(1 << 20, dtype=np.float32)
    for _ in range(3):
        total, texts, came_bytes = SparkPool(spark).aggregate(vector, double, ["a", "b", "c"])
        np.testing.assert_array_equal(total, 4 * vector)
        assert texts == ["a", "b", "c"]
        assert came_bytes == 2 * vector.nbytes
    assert large_files(spark) == []
    assert memory_of_blocks(spark) < vector.nbytes


def large_files(session):
    """Of everything that this Spark writes: files too large for anything but a vector."""
    folder = Path(session.sparkContext._temp_dir).parent
    assert Path(session.conf.get("spark.local.dir")) in [folder, *folder.parents]
    everywhere = Path(session.conf.get("spark.local.dir")).rglob("*")
    return [path for path in everywhere if path.is_file() and path.stat().st_size >= 1 << 20]


def memory_of_blocks(session):
    """Bytes that block managers hold in memory, as the driver knows them; pieces of broadcasts are such blocks."""
    found = session.sparkContext._jsc.sc().getExecutorMemoryStatus().valuesIterator()
    used = 0
    while found.hasNext():
        most_and_left = found.next()
        used += most_and_left._1() - most_and_left._2()
    return used


def test_a_failed_aggregation_leaves_none_and_says_why(spark):
    def refuse(vector, argument, run_task):
        raise DataError(f"no {argument}")

    vector = np.ones(1 << 20, np.float32)
    with pytest.raises(DataError, match=r"^no rows$"):
        SparkPool(spark).aggregate(vector, refuse, ["rows", "rows"])
    assert large_files(spark) == []
    assert memory_of_blocks(spark) < vector.nbytes


def test_a_stop_ends_the_aggregation(spark, tmp_path):
    started = str(tmp_path / "started")

    def wait(vector, argument, run_task):
        import pathlib
        import time

        pathlib.Path(started).touch()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.05)
        return vector, argument

    vector = np.ones(1 << 20, np.float32)
    found = SparkPool(spark).aggregate(vector, wait, ["a", "b"], stop=lambda: os.path.exists(started))
    assert found == (None, [], 0)
    assert memory_of_blocks(spark) < vector.nbytes


def test_broadcast_does_not_run_without_spark(ground):
    refused = pytest.raises(ConfigError, match=r"'broadcast' runs on the pools inline, spark, not on 'processes'")
    with Training("broadcast", ground, UNEQUAL) as training, ground.pool("processes") as pool, refused:
        training.run(pool)


def test_a_rule_that_needs_each_gradient_is_refused(ground):
    with pytest.raises(ConfigError, match="knows sums of gradients only, and average needs each"):
        Training("broadcast", ground, replace(UNEQUAL, optimizer=optim.Average()))
