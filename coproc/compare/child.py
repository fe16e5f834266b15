"""One run of one point, in a process of its own: `python -m coproc.compare.child`.

It reads a line of JSON from its standard input, {"point": …, "data": folder, "repeat": k, "began_s": when it was
started, of the monotonic clock}, and writes lines to its standard output: {"progress": …}, and at last {"row": …} or
{"error": …}. Whatever else libraries print goes to standard error. When its standard input ends, whoever wanted the
result is gone, and it ends with the processes of its group, if it leads one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coproc.compare.grid import is_mode, slots, train_config
from coproc.contestants import base as contestants
from coproc.errors import CoprocError
from coproc.hosts.trial import Arrangement
from coproc.modes.base import Costs
from coproc.training import train
from coproc.training.base import Group, Progress, Result
from coproc.training.output import checksum, versions
from coproc.trials.base import Point, Run, Tell
from coproc.trials.record import row_of
from coproc.trials.workloads import Prepared, prepare
from storage_tier.errors import TierError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Where measuring tells nothing.
FEW_ROWS = 100
# As long as the numbers of a clock of microseconds.
DIGITS = 7


def trial(point: Point, data: Path, repeat: int, began_s: float, tell: Tell) -> dict[str, Any]:
    """Run a point, and tell its row; what only an observer can know is not in it yet. Blocks.

    Raises:
        CoprocError: it cannot run, or failed.
    """
    tell("reading the data")
    prepared = prepare(point, data)
    if point.emulate_compute and prepared.test is not None:
        # Nothing is learned, so that measuring it is for nothing.
        prepared = replace(prepared, test=prepared.test.slice(0, FEW_ROWS))
    run = (
        run_mode(point, prepared, tell)
        if is_mode(point)
        else contestants.load(point.contestant).run(point, prepared, tell)
    )
    row = row_of(point, repeat)
    row |= {
        "wall_s": time.monotonic() - began_s,
        "startup_s": run.groups[0][2] - began_s if run.groups else None,
        "groups": [[epoch, group, *_rounded(times)] for epoch, group, *times in run.groups],
        "samples": [
            [worker, step, *_rounded(times), examples, loss, staleness]
            for worker, step, *times, examples, loss, staleness in run.samples
        ],
        "epochs": run.epochs,
        "costs": run.costs,
        "memory": run.memory,
        "parameters": run.parameters,
        "version": run.version,
        "checksum": run.checksum,
        "versions": dict(run.versions),
        "notes": run.notes,
        "link": run.link,
        "origin": prepared.origin,
    }
    return row


def run_mode(point: Point, prepared: Prepared, tell: Tell) -> Run:
    """Train with the mode that the point names, as `coprocessor train` does.

    Raises:
        CoprocError: as `train`.
    """
    groups: list[Group] = []
    costs: list[Costs] = []
    reached = threading.Event()
    rounds = len(prepared.train) / point.workers / point.batch_size

    def on_progress(now: Progress) -> None:
        row = now.row
        if row is not None and _enough(point, row.metrics):
            reached.set()
        steps = rounds * (now.epoch - 1 + now.done) if now.epoch else 0.0
        tell(now.phase, epoch=now.epoch, steps=steps, loss=now.loss if math.isfinite(now.loss) else None)

    with contextlib.ExitStack() as stack:
        if point.hosts is not None:
            tell("starting hosts")
        arranged = stack.enter_context(Arrangement(point, train_config(point)))
        session = None
        if point.master is not None:
            tell("starting Spark")
            session = _spark(point, stack)

        def on_group(group: Group) -> None:
            arranged.on_group(group)
            groups.append(group)

        result = train(
            arranged.config,
            prepared.train,
            validation=prepared.test,
            session=session,
            pool=arranged.pool,
            compute=arranged.compute,
            on_progress=on_progress,
            on_group=on_group,
            on_end=costs.append,
            stop=reached.is_set,
        )
        arranged.check(costs[-1])
    run = Run(
        groups=[(each.epoch, each.group, each.began_s, each.ended_s) for each in groups],
        samples=[
            (report.worker, *sample[:-1])
            for group in groups
            for report in group.reports
            for sample in report.samples
            if not sample.duplicate
        ],
        epochs=epochs_of(result, groups, learned=not point.emulate_compute),
        costs=asdict(costs[-1]),
        parameters=result.backend.layout.size,
        version=result.version,
        checksum=checksum(np.concatenate([tensor.reshape(-1) for tensor in result.params.values()])),
        versions=versions(),
        notes=arranged.notes,
        link=arranged.link,
    )
    if reached.is_set() and len(run.epochs) < point.epochs:
        run.notes.append(f"ended after epoch {len(run.epochs)} of {point.epochs}: its target was reached")
    return run


def _spark(point: Point, stack: contextlib.ExitStack) -> SparkSession:
    from coproc.pools.session import LocalSpark

    local = point.master is not None and point.master.startswith("local-cluster")
    spark = LocalSpark(slots(point) or point.workers, master=point.master if local else None)
    stack.callback(spark.close)
    return spark.session


def epochs_of(result: Result, groups: list[Group], *, learned: bool = True) -> list[dict[str, Any]]:
    """The history as rows of a run: training seconds are those of the groups; measures only where it `learned`."""
    trained_s, rows = 0.0, []
    spans = {
        epoch: each[-1].ended_s - each[0].began_s
        for epoch, each in ((epoch, list(own)) for epoch, own in groupby(groups, key=lambda group: group.epoch))
    }
    for told in result.history:
        trained_s += spans[told["epoch"] - 1]
        measured = {name.removeprefix("validation_"): told[name] for name in told if name.startswith("validation_")}
        if "accuracy" in told:
            measured["accuracy"] = told["accuracy"]
        row = {"epoch": told["epoch"], "train_s": trained_s}
        rows.append({**row, "train_loss": told["loss"], **measured} if learned else row)
    return rows


def _enough(point: Point, measured: Mapping[str, float]) -> bool:
    """Whether all targets are reached, and there is one."""
    loss, accuracy = point.target_loss, point.target_accuracy
    return (loss is not None or accuracy is not None) and (
        (loss is None or measured.get("loss", math.inf) <= loss)
        and (accuracy is None or measured.get("accuracy", 0.0) >= accuracy)
    )


def _rounded(times: list[float]) -> list[float]:
    return [round(each, DIGITS) for each in times]


def sentence_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, CoprocError | TierError):
        return " ".join(str(error).split())
    return " ".join(f"{type(error).__name__}: {error}".split())


def main() -> None:
    """Serve one request; see above."""
    # The results have the standard output to themselves.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with open(0, "rb", closefd=False) as given:
        request = json.loads(given.readline())
    threading.Thread(target=_end_with, args=(0,), name="lifeline", daemon=True).start()
    lock = threading.Lock()

    def write(name: str, value: object) -> None:
        with lock:
            out.write(json.dumps({name: value}, separators=(",", ":")) + "\n")

    def tell(phase: str, *, epoch: int = 0, steps: float = 0.0, loss: float | None = None) -> None:
        write("progress", {"phase": phase, "epoch": epoch, "steps": steps, "loss": loss, "moment_s": time.monotonic()})

    point = Point(**request["point"])
    try:
        row = trial(point, Path(request["data"]), request["repeat"], request["began_s"], tell)
    except Exception as error:
        if not isinstance(error, CoprocError | TierError):
            traceback.print_exc()
        write("error", sentence_of(error))
        sys.exit(1)
    write("row", row)


def _end_with(pipe: int) -> None:
    """End this process group when the other end of the pipe is closed, if only by a kill."""
    # By the descriptor: a thread that holds a lock of `sys.stdin` would stop the interpreter from ending.
    while os.read(pipe, 1):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
