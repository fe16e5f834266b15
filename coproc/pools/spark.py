"""Workers as plain, elastic Spark tasks: an RDD of their numbers, no barrier, no gang.

What travels to a task is its number and a few hundred bytes of JSON; rows and parameters are in the tier. A
task that dies is retried by Spark, and continues where the model says. Spark Connect has no RDDs: there it is
`spark.range(n).mapInArrow(task)`, which is a query to be planned each time, 100 ms instead of 50.
"""

from __future__ import annotations

import contextlib
import functools
import json
import queue
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from coproc.errors import ServerError, Unsupported
from coproc.layout import Flat
from coproc.pools.base import call_text, failure_in, failure_text, perform, quiet
from coproc.tasks import WorkerReport, WorkerTask
from coproc.worker import never, run_worker

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

Body = Callable[[Iterator["pa.RecordBatch"]], Iterator["pa.RecordBatch"]]
ANSWER_COLUMNS = "task long, answer string"

LOOK_S = 0.1

# Spark kills the Python workers of a cancelled job only after some seconds.
CANCEL_GRACE_S = 15.0


class SparkPool:
    """Runs tasks on a Spark session that somebody else started."""

    name = "spark"

    def __init__(self, session: SparkSession, on_close: Callable[[], None] | None = None) -> None:
        """`on_close` is called by `close`: it ends a session that was started for this pool."""
        self.session = session
        self._on_close = on_close

    @property
    def slots(self) -> int | None:
        """Task slots of all executors there are now; None with dynamic allocation and on Spark Connect."""
        if self.session.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
            return None
        try:
            context: Any = self.session.sparkContext._jsc.sc()
            profile = context.resourceProfileManager().defaultResourceProfile()
            return int(context.maxNumConcurrentTasks(profile))
        except Exception:
            # Connect has no JVM in reach; a plan that cannot work then ends in the server's timeout.
            return None

    def run(self, tasks: Sequence[WorkerTask], *, stop: Callable[[], bool] = never) -> list[WorkerReport]:
        """As `Pool.run`. A stop cancels the job: a task in progress is then missing from the reports."""
        return [WorkerReport.from_json(answer) for answer in self._do([task.to_json() for task in tasks], stop)]

    def call(self, function: str, arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
        """As `Pool.call`. One job."""
        return [json.loads(answer) for answer in self._do([call_text(function, each) for each in arguments], never)]

    def _do(self, texts: Sequence[str], stop: Callable[[], bool]) -> list[str]:
        """The answers to tasks' lines, in their order; one job."""
        return self.each(len(texts), functools.partial(_perform, list(texts)), stop=stop) if texts else []

    def each(self, count: int, body: Callable[[int], str], *, stop: Callable[[], bool] = never) -> list[str]:
        """What `body` returns for 0, 1, ... `count` - 1, each called in a task of its own: one job. Texts, small ones.

        Those of tasks that a stop has ended are missing.

        Raises:
            CoprocError: as `map_in_arrow`.
        """
        try:
            context = self.session.sparkContext
        except Exception:  # Spark Connect
            frame = self.session.range(0, count, 1, numPartitions=count)
            rows = self.map_in_arrow(frame, in_arrow(body), ANSWER_COLUMNS, stop=stop)
            by_task = {int(row["task"]): str(row["answer"]) for row in rows}
            return [by_task[number] for number in sorted(by_task)]
        with quiet():
            numbers: Any = context.parallelize(range(count), count)
            return run_job(self.session, numbers.map(functools.partial(_in_words, body)).collect, stop)

    def aggregate(
        self,
        vector: Flat,
        function: Callable[[Flat, str, Callable[[WorkerTask], WorkerReport]], tuple[Flat | None, str]],
        arguments: Sequence[str],
        *,
        stop: Callable[[], bool] = never,
    ) -> tuple[Flat | None, list[str], int]:
        """Broadcast `vector` and call `function(vector, argument, run_task)` in a task for each argument: one job.

        The vectors that come out are added up by Spark's `treeAggregate`, of depth 2, and the broadcast is destroyed,
        everywhere, before this returns.

        Returns:
            The sum, None if there was no vector; the texts that came out, in order, [] when it was stopped; the bytes
            of vectors that came to this process.

        Raises:
            Unsupported: this session has no broadcasts. CoprocError: as `map_in_arrow`.
        """
        try:
            context = self.session.sparkContext
        except Exception:
            raise Unsupported("Spark Connect has no broadcasts: use a classic session, or another mode") from None
        add, texts = Add(), list(arguments)
        with quiet():
            sent: Any = context.broadcast(vector)
            try:
                # None and not a vector of zeros: that would travel with the code of every task (SPARK-18471).
                numbers: Any = context.parallelize(range(len(texts)), len(texts))
                one = functools.partial(_part, sent, function, texts)
                found = run_job(self.session, lambda: [numbers.treeAggregate(None, one, add)], stop)
            finally:
                sent.destroy(blocking=True)
        if not found:
            return None, [], 0
        part: Part = found[0]
        return part.total, [part.answers[number] for number in range(len(texts))], part.size_bytes + add.bytes

    def map_in_arrow(self, frame: DataFrame, body: Body, schema: str, *, stop: Callable[[], bool] = never) -> list[Any]:
        """Run `body` over each partition of `frame` and collect the rows it yields; few and small ones.

        An iterator that `body` leaves half read is drained. [] when it was stopped.

        Raises:
            CoprocError: what `body` raised, as it raised it; ServerError for any other failure of the job.
        """
        job_id = uuid.uuid4().hex
        return run_job(self.session, lambda: frame.mapInArrow(guarded(job_id, body), schema).collect(), stop)

    def close(self) -> None:
        """End what was started for this pool. Idempotent."""
        if self._on_close is not None:
            self._on_close()
            self._on_close = None


def run_job(session: SparkSession, job: Callable[[], list[Any]], stop: Callable[[], bool] = never) -> list[Any]:
    """Run `job` and wait; a stop, or an exception in this thread, cancels it. [] when it was stopped.

    Raises:
        CoprocError: the failure of a task, as it was raised there.
        ServerError: any other failure of the job, in a sentence.
    """
    tag = f"coproc-{uuid.uuid4().hex}"
    outcome: queue.SimpleQueue[list[Any] | BaseException] = queue.SimpleQueue()

    def collect() -> None:
        try:
            # Tags belong to the thread: its job can be cancelled without touching any other.
            add_tag(tag)
            outcome.put(job())
        except BaseException as error:  # raised again in the caller's thread, below
            outcome.put(error)

    add_tag, cancel = tagging(session)
    with quiet():
        from pyspark.util import InheritableThread

        # It gives its connection to the JVM back when it ends; a thread of Python's own would keep it.
        thread = InheritableThread(target=collect, session=session, name="spark-job", daemon=True)
        thread.start()
        stopped = False
        try:
            while thread.is_alive() or outcome.empty():
                thread.join(LOOK_S)
                if stop() and not stopped:
                    stopped = True
                    cancel(tag)
        except BaseException:
            with contextlib.suppress(Exception):  # the one that is on its way says more
                cancel(tag)
            thread.join(CANCEL_GRACE_S)
            raise
    result = outcome.get()
    if isinstance(result, list):
        return result
    if stopped:
        return []
    raise sentence(result) from None


def tagging(session: SparkSession) -> tuple[Callable[[str], object], Callable[[str], object]]:
    """(tag the jobs of this thread, cancel the jobs with a tag) of a session."""
    try:
        context = session.sparkContext
    except Exception:  # Spark Connect, which has no context
        return session.addTag, session.interruptTag
    # A classic session's own tags do not reach mapInArrow (Spark 4.3); those of its jobs do.
    return context.addJobTag, context.cancelJobsWithTag


def sentence(error: BaseException) -> BaseException:
    """What a failed job says, without the stack walls of two languages."""
    text = str(error)
    failure = failure_in(text)
    if failure is not None:
        return failure
    if not isinstance(error, Exception):
        return error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("\t", "  "))]
    first = next((line for line in lines if "Error" in line or "Exception" in line), lines[0] if lines else "")
    return ServerError(f"a Spark job failed: {(first or type(error).__name__)[:500]}")


def in_arrow(body: Callable[[int], str]) -> Body:
    """The body of a job whose input rows are the numbers of tasks, each of which does this."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        schema = pa.schema([("task", pa.int64()), ("answer", pa.string())])
        # Drained first: nothing of the JVM waits while the task works.
        numbers = [number for batch in batches for number in batch.column(0).to_pylist()]
        for number in numbers:
            yield pa.RecordBatch.from_pylist([{"task": number, "answer": body(number)}], schema=schema)

    return run


def _perform(texts: Sequence[str], number: int) -> str:
    return perform(texts[number])


def _in_words(body: Callable[[int], str], number: int) -> str:
    """`body`, so that its errors arrive as a line the driver understands."""
    try:
        return body(number)
    except Exception as error:
        raise RuntimeError(failure_text(error)) from error


class Part(NamedTuple):
    """What some tasks of an aggregation gave together."""

    total: Flat | None
    answers: dict[int, str]

    @property
    def size_bytes(self) -> int:
        return 0 if self.total is None else self.total.nbytes


class Add:
    """Puts two parts together, into the first. The driver's own counts what came to the driver."""

    def __init__(self) -> None:
        self.bytes = 0
        """Of vectors that were added to others."""

    def __call__(self, left: Part, right: Part) -> Part:
        total = left.total if left.total is not None else right.total
        if left.total is not None and right.total is not None:
            total = np.add(left.total, right.total, out=left.total)
            self.bytes += right.size_bytes
        return Part(total, {**left.answers, **right.answers})


def _part(sent: Any, function: Callable[..., tuple[Flat | None, str]], texts: Sequence[str], _: None, n: int) -> Part:
    """What one task of an aggregation does: of each partition the one number."""
    try:
        total, text = function(sent.value, texts[n], run_worker)
    except Exception as error:
        raise RuntimeError(failure_text(error)) from error
    return Part(total, {n: text})


def guarded(job_id: str, body: Body) -> Body:
    """`body`, so that its errors arrive as a line the driver understands, and its input is always drained.

    A task that leaves its input costs Spark the Python process. `job_id` is in the closure so that no two
    jobs have equal plans: of a persisted one Spark would give the old rows again.
    """

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        try:
            yield from body(batches)
            for _ in batches:
                pass
        except Exception as error:
            raise RuntimeError(f"job {job_id}: {failure_text(error)}") from error

    return run
