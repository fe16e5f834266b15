"""What every pool of workers offers, and how a worker's failure travels back as a sentence."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import coproc.errors
from coproc.errors import ConfigError, CoprocError, ServerError
from coproc.tasks import WorkerReport, WorkerTask
from coproc.wire import as_coproc
from coproc.worker import never, run_worker
from storage_tier.errors import TierError

# A worker is one unit of parallelism: several BLAS threads in each would fight for the same cores.
# Read by the libraries when they are loaded, so it must be in the environment before numpy is imported.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
}

# A task that dies (killed, out of memory) is started again this often, as Spark's spark.task.maxFailures = 4.
ATTEMPT_LIMIT = 4

_FAILURE = re.compile(r"coproc-failure (\{.*\})")


class Pool(Protocol):
    """Runs tasks, several at a time. Used by one driver thread."""

    name: str

    @property
    def slots(self) -> int | None:
        """Tasks that can run at the same time; None where nobody knows beforehand (dynamic allocation)."""
        ...

    def run(self, tasks: Sequence[WorkerTask], *, stop: Callable[[], bool] = never) -> list[WorkerReport]:
        """Run all tasks and wait for them; the reports are in the order of the tasks.

        A task whose process dies is started again, up to 4 attempts; its next attempt continues where the
        model says. When one task fails for good the others are stopped.

        Args:
            stop: asked a few times a second; True ends all tasks early, with `stopped` in their reports.

        Raises:
            CoprocError: the first failure, as the worker raised it.
        """
        ...

    def call(self, function: str, arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Call a function of the project in a task for each of `arguments`; what they return, in that order.

        A task whose process dies is called again, up to 4 times in all, and may have died at any point: what it does
        has to bear that.

        Args:
            function: "module:name" below `coproc.`; it takes and returns what JSON can say. Small: no vectors.
            arguments: its keyword arguments, for each task.

        Raises:
            CoprocError: the first failure, as the function raised it.
        """
        ...

    def close(self) -> None:
        """End every process this pool started. Idempotent."""
        ...


def require_slots(pool: Pool, workers_count: int, otherwise: str = "--consistency asp") -> None:
    """Refuse a plan whose workers wait for each other but cannot all run at once.

    Args:
        otherwise: the setting with which they do not.

    Raises:
        ConfigError: more workers than slots, with both numbers.
    """
    slots = pool.slots
    if slots is not None and workers_count > slots:
        fewer = f"--workers {slots}, more slots," if slots else "executors, of which none has registered yet,"
        raise ConfigError(
            f"synchronous training needs all {workers_count} workers to run at once, and the pool "
            f"{pool.name!r} has {slots} slot{'s' if slots != 1 else ''}: they would wait for each "
            f"other for ever. Use {fewer} or {otherwise}"
        )


def call_text(function: str, arguments: Mapping[str, Any]) -> str:
    """A call as a task's line. A `WorkerTask` is its own."""
    return json.dumps({"function": function, "arguments": arguments}, separators=(",", ":"))


def perform(text: str, stop: Callable[[], bool] = never, run_task: Callable[..., WorkerReport] = run_worker) -> str:
    """Do what a task's line says, in this thread; the answer as a line of JSON.

    Args:
        run_task: `run_task(task, stop=…)` does a `WorkerTask`.

    Raises:
        ConfigError: a function that is not of this project; else what was raised in there.
    """
    told = json.loads(text)
    if "function" not in told:
        return run_task(WorkerTask.from_json(text), stop=stop).to_json()
    module, _, name = str(told["function"]).partition(":")
    function: Any = getattr(importlib.import_module(module), name, None) if module.startswith("coproc.") else None
    if getattr(function, "__module__", None) != module:  # what a module of the project has imported is not its own
        raise ConfigError(f"a task calls functions of coproc, as coproc.module:name, and not {told['function']!r:.100}")
    return json.dumps(function(**told["arguments"]))


def failure_text(error: BaseException) -> str:
    """`error` as one line that `failure_in` understands, wherever it is quoted."""
    if isinstance(error, TierError):
        error = as_coproc(error)
    if not isinstance(error, CoprocError):
        error = ServerError(f"{type(error).__name__}: {error}")
    return "coproc-failure " + json.dumps({"kind": type(error).__name__, "message": str(error)})


def failure_in(text: str) -> CoprocError | None:
    """The failure quoted anywhere in `text` (a stack wall, a log), or None."""
    found = _FAILURE.search(text)
    if found is None:
        return None
    try:
        parts = json.loads(found.group(1))
        kind = getattr(coproc.errors, str(parts["kind"]), ServerError)
        message = str(parts["message"])
    except (ValueError, KeyError, TypeError):
        return None
    if not (isinstance(kind, type) and issubclass(kind, CoprocError)):
        kind = ServerError
    return kind(message)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Around calls of pyspark: it warns at every call about pandas, which is not used here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PySpark does not yet fully support", FutureWarning)
        yield


def python_path() -> str:
    """PYTHONPATH with which another interpreter finds this very package first."""
    here = str(Path(coproc.errors.__file__).resolve().parent.parent)
    rest = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != here]
    return os.pathsep.join([here, *rest])
