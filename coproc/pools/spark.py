"""Workers as plain, elastic Spark tasks: `spark.range(n).mapInArrow(task)`, no barrier, no gang.

What travels to a task is its number and a few hundred bytes of JSON; rows and parameters are in the tier. A
task that dies is retried by Spark, and continues where the model says. Works on Spark Connect too.
"""

from __future__ import annotations

import contextlib
import queue
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from coproc.errors import ServerError
from coproc.pools.base import failure_in, failure_text, quiet
from coproc.worker import WorkerReport, WorkerTask, never, run_worker

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

Body = Callable[[Iterator["pa.RecordBatch"]], Iterator["pa.RecordBatch"]]
REPORT_COLUMNS = "task long, report string"

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
        texts = [task.to_json() for task in tasks]
        if not texts:
            return []
        frame = self.session.range(0, len(texts), 1, numPartitions=len(texts))
        rows = self.map_in_arrow(frame, training_task(texts), REPORT_COLUMNS, stop=stop)
        by_task = {int(row["task"]): WorkerReport.from_json(row["report"]) for row in rows}
        return [by_task[index] for index in sorted(by_task)]

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


def training_task(texts: Sequence[str]) -> Body:
    """The body of a job whose input rows are the numbers of tasks."""

    def body(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        schema = pa.schema([("task", pa.int64()), ("report", pa.string())])
        # Drained first: nothing of the JVM waits while the task trains.
        numbers = [number for batch in batches for number in batch.column(0).to_pylist()]
        for number in numbers:
            report = run_worker(WorkerTask.from_json(texts[number])).to_json()
            yield pa.RecordBatch.from_pylist([{"task": number, "report": report}], schema=schema)

    return body


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
