"""The driver: from data and settings to a trained model, whatever pool computes and wherever the cluster is.

result = train(TrainConfig(hidden=(1024, 1024)), "train.parquet", validation="test.parquet")
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from coproc.client import connect
from coproc.cluster import LocalCluster
from coproc.data.base import ColumnPlan, Rows
from coproc.data.rows import read
from coproc.errors import ConfigError, CoprocError, DataError, Diverged
from coproc.grads.base import GradientBackend
from coproc.ingest import (
    Destination,
    Ingested,
    ingest_frame,
    ingest_table,
    open_partition,
    open_table,
    read_parquet,
    require_file,
)
from coproc.modes.base import ModeSettings, load, taken
from coproc.pools.base import Pool, require_slots
from coproc.training.base import EpochRow, Flat, Plan, Progress, Result, TrainConfig
from coproc.training.fit import Fit, Outcome
from coproc.training.output import MODEL, Output, checksum, versions
from coproc.training.plan import make_plan, require_mode, tasks_of_group
from coproc.wire import as_coproc
from coproc.worker import never
from storage_tier.errors import TierError
from storage_tier.wire import trust

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

# A path, an Arrow table, or a Spark DataFrame. Told apart when used: neither library is imported for that.
Data: TypeAlias = Any

__all__ = ["EpochRow", "Progress", "Result", "TrainConfig", "train"]

# Without validation data this many rows of the training data say how good the model is.
SAMPLE_ROWS = 2000


def silent(progress: Progress) -> None:
    """The default of `on_progress`."""


def train(
    config: TrainConfig,
    data: Data,
    *,
    validation: Data | None = None,
    output: str | os.PathLike[str] | None = None,
    session: SparkSession | None = None,
    on_progress: Callable[[Progress], None] = silent,
    stop: Callable[[], bool] = never,
) -> Result:
    """Train a network on `data`; blocks until it is trained, stopped, or has failed.

    Starts what is missing (servers, Spark) and ends what it started. The run's partitions and its model are
    removed from the cluster at the end, however it ends.

    Args:
        data: a Parquet file or folder, an Arrow table, or (pool `spark`) a DataFrame.
        validation: the same kinds; measured after each epoch on the driver.
        output: a directory for model.safetensors, history.jsonl and run.json.
        session: the Spark to use; None: the DataFrame's, else the active one, else an embedded one.
        on_progress: called a few times a second, from another thread.
        stop: asked a few times a second; True ends the training with the newest version.

    Raises:
        ConfigError, DataError: settings or data that cannot work, before training.
        Diverged: the loss is not finite any more; the last good version is in `output`.
        CoprocError: any other failure, in a sentence.
    """
    try:
        with contextlib.ExitStack() as stack:
            run = Run(config, data, validation, output, session, on_progress, stop, stack)
            try:
                return run.train()
            finally:
                if run.output is not None:
                    run.output.discard()
    except TierError as error:
        raise as_coproc(error) from error


class Run:
    """The parts of one training, opened in order on a stack that closes them in reverse."""

    def __init__(
        self,
        config: TrainConfig,
        data: Data,
        validation: Data | None,
        output: str | os.PathLike[str] | None,
        session: SparkSession | None,
        on_progress: Callable[[Progress], None],
        stop: Callable[[], bool],
        stack: contextlib.ExitStack,
    ) -> None:
        self.config = config
        self.data = data
        self.validation = validation
        self.session = session
        self.on_progress = on_progress
        self.stop = stop
        self.stack = stack
        self.run = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self.began = time.monotonic()
        # Everything that can be refused without starting anything is refused first.
        self.mode_module = load(config.mode)
        require_mode(config, self.mode_module.CAPABILITIES)
        for given in (data, validation):
            if isinstance(given, str | os.PathLike):
                require_file(given)
        self.output = Output(output) if output is not None else None

    def train(self) -> Result:
        config = self.config
        address, token = self._cluster()
        pool = self._pool()
        if config.consistency == "bsp":
            require_slots(pool, config.workers)
        self._tell("reading the data")
        destination = Destination(address, self.run, token, config.tls_authority)
        self.stack.callback(self._remove_data, destination)
        ingested = self._ingest(pool, destination)
        plan = make_plan(config, ingested, self.run)
        evaluate, measured_on = self._measure(ingested, plan)
        self._tell("creating the model")
        initial = plan.backend.init(config.seed)
        mode = self.mode_module.start(
            ModeSettings(
                address=address,
                token=token,
                model=config.model or f"train-{self.run}",
                params=plan.backend.layout.views(initial),
                optimizer=config.optimizer_rule(),
                consistency=config.consistency_rule(),
                shards=config.shards,
                tls_authority=config.tls_authority,
            )
        )
        self.stack.callback(mode.close)
        outcome = Outcome(initial)
        fit = Fit(
            plan=plan,
            mode=mode,
            pool=pool,
            tasks_of=lambda epoch, group: tasks_of_group(plan, mode.exchange_spec(), destination, epoch, group),
            evaluate=evaluate,
            measured_on=measured_on,
            on_progress=self.on_progress,
            on_row=self.output.row if self.output else lambda row: None,
            stop=self.stop,
        )
        failure: CoprocError | None = None
        try:
            fit.run(outcome)
        except CoprocError as error:
            failure = error
        problem = failure or outcome.diverged
        result = self._result(plan, ingested, outcome, str(problem) if problem is not None else None)
        if outcome.diverged is not None:
            raise Diverged(f"{outcome.diverged}. {_kept(outcome, result.output)}") from outcome.diverged
        if failure is not None:
            raise failure
        return result

    def _tell(self, phase: str) -> None:
        self.on_progress(Progress(phase, epochs=self.config.epochs))

    def _cluster(self) -> tuple[str, str | None]:
        """(address, token) of the cluster that was named, or of an embedded one."""
        config = self.config
        if config.address is not None:
            self._tell(f"connecting to {config.address}")
            # Asked now: a wrong address, a wrong token, a taken name are to be said before Spark starts.
            with connect(config.address, token=config.token, tls=trust(config.tls_authority)) as client:
                if config.model is not None and config.model in client.models():
                    raise taken(config.model, config.address, config.token)
            return config.address, config.token
        self._tell("starting the cluster")
        token = config.token or secrets.token_hex(16)
        cluster = LocalCluster(config.servers, token=token)
        self.stack.callback(cluster.close)
        return cluster.address, token

    def _pool(self) -> Pool:
        config = self.config
        pool: Pool
        if config.pool == "spark":
            pool = self._spark_pool()
        elif config.pool == "processes":
            from coproc.pools.processes import ProcessPool

            pool = ProcessPool(config.workers)
        else:
            from coproc.pools.inline import InlinePool

            pool = InlinePool()
        self.stack.callback(pool.close)
        return pool

    def _spark_pool(self) -> Pool:
        session = self.session or (self.data.sparkSession if _is_frame(self.data) else _active_session())
        if session is None:
            # Said before the imports, which take long, too.
            self._tell("starting Spark")
        from coproc.pools.session import LocalSpark, require_pyspark

        require_pyspark()
        from coproc.pools.spark import SparkPool

        if session is not None:
            self._require_reachable(session)
            return SparkPool(session)
        local = LocalSpark(self.config.workers)
        return SparkPool(local.session, on_close=local.close)

    def _require_reachable(self, session: SparkSession) -> None:
        """Refuse an embedded cluster where executors on other hosts would look for it in vain."""
        master = session.conf.get("spark.master", None) or ""
        if self.config.address is None and not re.match(r"local|spark://(127\.|localhost)|$", master):
            raise ConfigError(
                f"the executors of {master} may be on other hosts and cannot reach a cluster that is "
                "embedded in this process: start one with `coprocessor serve --host …` where they reach it, and "
                "name its address"
            )

    def _ingest(self, pool: Pool, destination: Destination) -> Ingested:
        config, data = self.config, self.data
        if config.pool != "spark" and _is_frame(data):
            raise ConfigError(f"a DataFrame needs --pool spark, not {config.pool!r}")
        if config.pool != "spark" or _is_table(data):
            return ingest_table(
                data,
                destination,
                partitions_count=config.workers,
                features=config.features,
                label=config.label,
                kind=config.kind,
                seed=config.seed,
            )
        spark: Any = pool
        return ingest_frame(
            data if _is_frame(data) else read_parquet(spark.session, data),
            destination,
            partitions_count=config.workers,
            features=config.features,
            label=config.label,
            kind=config.kind,
            run_job=spark.map_in_arrow,
            origin="the DataFrame" if _is_frame(data) else os.path.basename(os.fspath(data)),
        )

    def _measure(self, ingested: Ingested, plan: Plan) -> tuple[Callable[[Flat], Mapping[str, float]], str]:
        """(what measures a version, on which rows)."""
        if self.validation is not None:
            rows = self._validation_rows(ingested)
            return _evaluator(plan.backend, rows, plan.scale), "validation"
        fullest = max(ingested.partitions, key=lambda part: part.rows)
        partition = open_partition(ingested.destination, fullest.partition)
        sample = Rows(partition.features[:SAMPLE_ROWS], partition.labels[:SAMPLE_ROWS])
        return _evaluator(plan.backend, sample, plan.scale), "training sample"

    def _validation_rows(self, ingested: Ingested) -> Rows:
        config, columns = self.config, ingested.columns
        # A label that the training data do not have cannot be predicted, so it is refused.
        columns = dataclasses.replace(columns, classes=ingested.classes, width=ingested.width)
        if _is_frame(self.validation):
            frame: Any = self.validation
            table = frame.select(*dict.fromkeys([*columns.features, columns.label])).toArrow()
            origin = "the validation DataFrame"
        else:
            source: Any = self.validation
            origin, table = open_table(source, config.features, config.label)
        rows = read(table.to_batches(), _encoded_as(columns, table, config, origin), f"{origin} (validation)")
        if not len(rows):
            raise DataError(f"{origin} has no rows: leave out --validation, or give it some")
        return rows

    def _result(self, plan: Plan, ingested: Ingested, outcome: Outcome, error: str | None) -> Result:
        config = self.config
        params = {name: tensor.copy() for name, tensor in plan.backend.layout.views(outcome.flat).items()}
        history = [row.to_json_values() for row in outcome.history]
        wall_s = time.monotonic() - self.began
        if self.output is not None:
            facts = {
                "format": "coproc",
                "backend": json.dumps(plan.backend.spec()),
                "scale": json.dumps(plan.scale),
                "classes": json.dumps(ingested.classes),
                "version": str(outcome.version),
                "run": self.run,
            }
            self.output.model(params, facts)
            self.output.run(
                {
                    "run": self.run,
                    "config": config.to_json_values(),
                    "backend": plan.backend.spec(),
                    "learning_rate": config.rate,
                    "scale": plan.scale,
                    "data": {
                        "origin": ingested.origin,
                        "rows": ingested.rows_count,
                        "width": ingested.width,
                        "classes": ingested.classes,
                        "partitions": [dataclasses.asdict(part) for part in ingested.partitions],
                    },
                    "parameters": plan.backend.layout.size,
                    "version": outcome.version,
                    "epochs_done": outcome.epochs_done,
                    "final": history[-1] if history else None,
                    "interrupted": outcome.interrupted,
                    "error": error,
                    "checksum": checksum(outcome.flat),
                    "wall_s": wall_s,
                    "versions": versions(),
                }
            )
        return Result(
            params=params,
            history=history,
            version=outcome.version,
            backend=plan.backend,
            scale=plan.scale,
            output=str(self.output.directory) if self.output else None,
            run=self.run,
            wall_s=wall_s,
            interrupted=outcome.interrupted,
        )

    def _remove_data(self, destination: Destination) -> None:
        """At the end: also when a failed ingest left some of it. An unreachable tier has its own cleaning."""
        with contextlib.suppress(TierError), destination.open() as tier:
            tier.delete_prefix(f"/runs/{self.run}")


def _evaluator(backend: GradientBackend, rows: Rows, scale: float) -> Callable[[Flat], Mapping[str, float]]:
    return lambda flat: backend.evaluate(flat, rows.features, rows.labels, scale=scale)


def _encoded_as(columns: ColumnPlan, table: pa.Table, config: TrainConfig, origin: str) -> ColumnPlan:
    """The plan of the training columns for a table that may have them in other types."""
    from coproc.data.rows import plan_columns

    own = plan_columns(table.schema, config.features, config.label, config.kind, columns.classes, origin)
    return dataclasses.replace(own, classes=columns.classes, width=columns.width)


def _kept(outcome: Outcome, output: str | None) -> str:
    what = (
        f"The last good version ({outcome.version}, of the end of epoch {outcome.epochs_done})"
        if outcome.epochs_done
        else "No epoch was finished; what the training began with (version 0)"
    )
    return f"{what} is in {os.path.join(output, MODEL)}" if output else f"{what} was not saved: give --output"


def _is_frame(data: Any) -> bool:
    """A Spark DataFrame, classic or Connect, without importing pyspark."""
    return hasattr(data, "sparkSession") and hasattr(data, "mapInArrow")


def _active_session() -> SparkSession | None:
    """The Spark that this thread uses already. Where pyspark was not imported there is none."""
    loaded: Any = sys.modules.get("pyspark.sql")
    session: SparkSession | None = loaded.SparkSession.getActiveSession() if loaded is not None else None
    return session


def _is_table(data: Any) -> bool:
    return hasattr(data, "to_batches") and hasattr(data, "column_names")
