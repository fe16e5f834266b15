"""The driver: from data and settings to a trained model, whatever pool computes and wherever the cluster is.

result = train(TrainConfig(hidden=(1024, 1024)), "train.parquet", validation="test.parquet")
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from coproc.client import connect
from coproc.cluster import LocalCluster
from coproc.errors import ConfigError, CoprocError, CorruptCheckpoint, DataError, Diverged
from coproc.grads.base import Spec
from coproc.ingest import (
    Destination,
    Ingested,
    ingest_frame,
    ingest_table,
    read_parquet,
    require_file,
)
from coproc.modes.base import Costs, Mode, ModeSettings, load, taken
from coproc.pools.base import Pool, require_slots
from coproc.training.base import EpochRow, Group, Plan, Progress, Result
from coproc.training.config import TrainConfig
from coproc.training.fit import Fit, Outcome
from coproc.training.measuring import measure
from coproc.training.opening import is_frame, is_table, open_pool
from coproc.training.output import MODEL, Output, checksum, versions
from coproc.training.plan import make_plan, require_mode, tasks_of_group, waits_for_all
from coproc.training.resume import (
    Place,
    check_data,
    check_settings,
    history_before,
    identity_of,
    own_name,
    recorded,
    require_own,
    take_over,
)
from coproc.wire import as_coproc
from coproc.worker import never
from storage_tier.errors import TierError
from storage_tier.wire import trust

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# A path, an Arrow table, or a Spark DataFrame. Told apart when used: neither library is imported for that.
Data: TypeAlias = Any

__all__ = ["Costs", "EpochRow", "Group", "Progress", "Result", "TrainConfig", "train"]

CHECKPOINT_TIMEOUT_S = 60.0


def silent(progress: Progress) -> None:
    """The default of `on_progress`."""


def as_it_is(spec: Spec) -> Spec:
    """The default of `compute`."""
    return spec


def train(
    config: TrainConfig,
    data: Data,
    *,
    validation: Data | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    session: SparkSession | None = None,
    pool: Pool | None = None,
    compute: Callable[[Spec], Spec] = as_it_is,
    on_progress: Callable[[Progress], None] = silent,
    on_group: Callable[[Group], None] | None = None,
    on_end: Callable[[Costs], None] | None = None,
    stop: Callable[[], bool] = never,
) -> Result:
    """Train a network on `data`; blocks until it is trained, stopped, or has failed.

    Starts what is missing (servers, Spark) and ends what it started. The run's partitions and its model are
    removed from the cluster at the end, however it ends.

    Args:
        data: a Parquet file or folder, an Arrow table, or (pool `spark`) a DataFrame.
        validation: the same kinds; measured after each epoch on the driver.
        output: a directory for model.safetensors, history.jsonl and run.json; of an embedded cluster also for
            checkpoints.
        resume: go on with the run that was begun there, from its newest checkpoint, with the settings and data that it
            had (`coproc.training.resume.config_of`). A synchronous run ends with the bits of one that went through.
        session: the Spark to use; None: the DataFrame's, else the active one, else an embedded one.
        pool: what the workers run on, of the kind that `config.pool` names; it stays open. None: one of its own.
        compute: from the spec of the network's gradient backend to that of the one which the workers are to use, of the
            same layout.
        on_progress: called a few times a second, from another thread.
        on_group: called after each group of tasks, whose reports then tell every push.
        on_end: called once with what training has cost, unless it failed: also where it was stopped, or diverged.
        stop: asked a few times a second; True ends the training with the newest version.

    Raises:
        ConfigError, DataError: settings or data that cannot work, before training.
        Diverged: the loss is not finite any more; the last good version is in `output`.
        CoprocError: any other failure, in a sentence.
    """
    try:
        with contextlib.ExitStack() as stack:
            run = Run(config, data, validation, output, resume, on_progress, on_group, on_end, stop, stack)
            run.session, run.pool, run.compute = session, pool, compute
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
        resume: bool,
        on_progress: Callable[[Progress], None],
        on_group: Callable[[Group], None] | None,
        on_end: Callable[[Costs], None] | None,
        stop: Callable[[], bool],
        stack: contextlib.ExitStack,
    ) -> None:
        self.config = config
        self.data = data
        self.validation = validation
        self.session: SparkSession | None = None
        self.pool: Pool | None = None
        """Somebody else's."""
        self.compute: Callable[[Spec], Spec] = as_it_is
        self.on_progress = on_progress
        self.on_group = on_group
        self.on_end = on_end
        self.stop = stop
        self.stack = stack
        self.run = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self.before: Mapping[str, Any] | None = None
        """What the run that is resumed has written of itself."""
        self.history: list[dict[str, Any]] = []
        """Rows of its epochs that were over."""
        self.began = time.monotonic()
        # Everything that can be refused without starting anything is refused first.
        self.mode_module = load(config.mode)
        require_mode(config, self.mode_module.CAPABILITIES)
        if config.storage_url is not None:
            _require_url(config.storage_url)
        for given in (data, validation):
            if isinstance(given, str | os.PathLike):
                require_file(given)
        if resume:
            if output is None:
                raise ConfigError("to resume a run, name the output directory that it was given")
            self.before = recorded(output)
            check_settings(self.before, config)
            self.run = self.before["run"]
        self.model = config.model or own_name(self.run)
        self.identity = ""
        """Of the model, where it is known."""
        self.output = Output(output, resume) if output is not None else None
        self.checkpoints = self._checkpoints_url()

    def train(self) -> Result:
        config = self.config
        address, token = self._cluster()
        pool = self.pool
        if pool is None:
            pool = open_pool(config, self.data, self.session, self._tell)
            self.stack.callback(pool.close)
        elif pool.name != config.pool:
            raise ConfigError(f"the pool that was given is of the kind {pool.name!r}, and --pool says {config.pool}")
        able = self.mode_module.CAPABILITIES
        if waits_for_all(config, able):
            in_groups = able.waits_for_all == "in groups"
            require_slots(pool, config.workers, "--group-size 1" if in_groups else "--consistency asp")
        self._tell("reading the data")
        destination = Destination(address, self.run, token, config.tls_authority)
        self.stack.callback(self._remove_data, destination)
        if self.before is not None:
            self._remove_data(destination)  # what the run has left in a cluster that lives on
        ingested = self._ingest(pool, destination)
        if self.before is not None:
            check_data(self.before, ingested)

        def bring_back() -> None:
            self._tell("reading the data again: the memory that had it was lost")
            self._remove_data(destination)
            if self._ingest(pool, destination).partitions != ingested.partitions:
                raise DataError("the data have changed since the run began, and what it had of them was lost")

        plan = make_plan(config, ingested, self.run, self.compute)
        evaluate, measured_on = measure(config, self.validation, ingested, plan)
        self._tell("creating the model")
        initial = plan.backend.init(config.seed)
        place = self._place(destination)
        mode, first_epoch = self._begin(
            plan,
            place,
            ModeSettings(
                address=address,
                token=token,
                model=self.model,
                params=plan.backend.layout.views(initial),
                optimizer=config.optimizer_rule(),
                consistency=config.consistency_rule(),
                shards=config.shards,
                tls_authority=config.tls_authority,
                compression=config.compression_rule(),
                checkpoints=config.checkpoint_rule() if place is not None else None,
                **config.mode_settings(),
            ),
        )
        self.stack.callback(mode.close)
        outcome = Outcome(initial)
        if self.output is not None:
            if self.before is not None:
                first_epoch = self._go_on(self.output, mode, outcome, first_epoch)
            with destination.open() as tier:
                self.identity = identity_of(tier, self.model)
            self.output.run(self._facts(plan, ingested))
        fit = Fit(
            plan=plan,
            mode=mode,
            pool=pool,
            tasks_of=lambda epoch, begin, end: tasks_of_group(
                plan, mode.exchange_spec(), destination, epoch, begin, end, trace=self.on_group is not None
            ),
            evaluate=evaluate,
            measured_on=measured_on,
            on_progress=self.on_progress,
            on_row=self.output.row if self.output else lambda row: None,
            stop=self.stop,
            bring_back=bring_back,
            on_group=self.on_group,
            first_epoch=first_epoch,
        )
        failure: CoprocError | None = None
        try:
            fit.run(outcome)
        except CoprocError as error:
            failure = error
        if failure is None and self.on_end is not None:
            self.on_end(mode.costs())
        if place is not None and (failure is not None or outcome.interrupted):
            with contextlib.suppress(CoprocError):  # its servers may be what has failed; then the one before is there
                mode.checkpoint(timeout_s=CHECKPOINT_TIMEOUT_S)
        problem = failure or outcome.diverged
        result = self._result(plan, ingested, outcome, str(problem) if problem is not None else None)
        if outcome.diverged is not None:
            raise Diverged(f"{outcome.diverged}. {_kept(outcome, result.output)}") from outcome.diverged
        if failure is not None:
            raise failure
        return result

    def _checkpoints_url(self) -> str | None:
        """Where checkpoints go, if anywhere."""
        config = self.config
        able = self.mode_module.CAPABILITIES.checkpoints and not config.parts
        asked = config.checkpoints is not None or self.before is not None
        if asked and not able:
            what = f"the mode {config.mode!r}" + (" with --parts" if config.parts else "")
            raise ConfigError(f"{what} writes no checkpoints: leave out --checkpoints and --resume")
        url = config.checkpoints
        if url is None and able and self.output is not None and config.address is None:
            url = self.output.checkpoints_url()
        if url is None and self.before is not None:
            url = self.before.get("checkpoints")
        if url is None and (config.checkpoint_every is not None or config.checkpoint_s is not None):
            raise ConfigError("--checkpoint-every and --checkpoint-s need a place: give --output, or --checkpoints URL")
        return url

    def _place(self, destination: Destination) -> Place | None:
        if self.checkpoints is None:
            return None
        place = Place(destination.open(), self.model, self.checkpoints, again=self.before is not None)
        self.stack.callback(place.close)
        return place

    def _begin(self, plan: Plan, place: Place | None, settings: ModeSettings) -> tuple[Mode, int]:
        """(the model, new or from the newest whole checkpoint; the epoch, 0 the first, that is open)."""
        if self.before is None:
            return self.mode_module.start(settings), 0
        if place is None:
            raise ConfigError(
                f"run {self.run} wrote no checkpoints. If its model is still there, name a place for one "
                "(--checkpoints URL), and it goes on from what the model is now"
            )
        take_over(settings)
        broken = ""
        for path in place.newest_first():
            try:
                first_epoch = place.epoch_of(path, plan)
                return self.mode_module.start(dataclasses.replace(settings, restore=path)), first_epoch
            except CorruptCheckpoint as error:
                broken = broken or f". The newest cannot be used: {error}"
        raise ConfigError(f"this run has no whole checkpoint in {self.checkpoints} to go on from{broken}")

    def _go_on(self, output: Output, mode: Mode, outcome: Outcome, first_epoch: int) -> int:
        """The run as it was when the checkpoint was taken; the epoch that it goes on with.

        One that was over and has no row yet is gone through once more: nothing is left to push, and it is measured.
        """
        outcome.keep(mode.snapshot(timeout_s=CHECKPOINT_TIMEOUT_S))
        self.history = history_before(output.directory, first_epoch)
        outcome.epochs_done = len(self.history)
        output.begin_history(self.history)
        return len(self.history)

    def _tell(self, phase: str) -> None:
        self.on_progress(Progress(phase, epochs=self.config.epochs))

    def _cluster(self) -> tuple[str, str | None]:
        """(address, token) of the cluster that was named, or of an embedded one."""
        config = self.config
        if config.address is not None:
            self._tell(f"connecting to {config.address}")
            # Asked now: a wrong address, a wrong token, a taken name are to be said before Spark starts.
            with connect(config.address, token=config.token, tls=trust(config.tls_authority)) as client:
                if self.before is not None:
                    require_own(client, self.model, self.before, config)
                elif config.model is not None and config.model in client.models():
                    raise taken(config.model, config.address, config.token)
            return config.address, config.token
        self._tell("starting the cluster")
        token = config.token or secrets.token_hex(16)
        cluster = LocalCluster(config.servers, token=token)
        self.stack.callback(cluster.close)
        return cluster.address, token

    def _ingest(self, pool: Pool, destination: Destination) -> Ingested:
        config, data = self.config, self.data
        if config.pool != "spark" and is_frame(data):
            raise ConfigError(f"a DataFrame needs --pool spark, not {config.pool!r}")
        if config.pool != "spark" or is_table(data):
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
            data if is_frame(data) else read_parquet(spark.session, data),
            destination,
            partitions_count=config.workers,
            features=config.features,
            label=config.label,
            kind=config.kind,
            run_job=spark.map_in_arrow,
            origin="the DataFrame" if is_frame(data) else os.path.basename(os.fspath(data)),
        )

    def _result(self, plan: Plan, ingested: Ingested, outcome: Outcome, error: str | None) -> Result:
        params = {name: tensor.copy() for name, tensor in plan.backend.layout.views(outcome.flat).items()}
        history = [*self.history, *(row.to_json_values() for row in outcome.history)]
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
                    **self._facts(plan, ingested),
                    "version": outcome.version,
                    "epochs_done": outcome.epochs_done,
                    "final": history[-1] if history else None,
                    "interrupted": outcome.interrupted,
                    "error": error,
                    "checksum": checksum(outcome.flat),
                    "wall_s": wall_s,
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

    def _facts(self, plan: Plan, ingested: Ingested) -> dict[str, Any]:
        """What is known before the first step: a run is resumed by it."""
        config = self.config
        return {
            "run": self.run,
            "identity": self.identity,
            "config": config.to_json_values(),
            "backend": plan.backend.spec(),
            "learning_rate": config.rate,
            "scale": plan.scale,
            "data": {
                "origin": ingested.origin,
                "source": _path_of(self.data),
                "validation": _path_of(self.validation),
                "rows": ingested.rows_count,
                "width": ingested.width,
                "classes": ingested.classes,
                "partitions": [dataclasses.asdict(part) for part in ingested.partitions],
            },
            "parameters": plan.backend.layout.size,
            "checkpoints": self.checkpoints,
            "versions": versions(),
        }

    def _remove_data(self, destination: Destination) -> None:
        """At the end: also when a failed ingest left some of it. An unreachable tier has its own cleaning."""
        with contextlib.suppress(TierError), destination.open() as tier:
            tier.delete_prefix(f"/runs/{self.run}")


def _kept(outcome: Outcome, output: str | None) -> str:
    what = (
        f"The last good version ({outcome.version}, of the end of epoch {outcome.epochs_done})"
        if outcome.epochs_done
        else "No epoch was finished; what the training began with (version 0)"
    )
    return f"{what} is in {os.path.join(output, MODEL)}" if output else f"{what} was not saved: give --output"


def _require_url(url: str) -> None:
    """Raises ConfigError if fsspec has nothing here that opens it."""
    from fsspec.core import url_to_fs

    try:
        url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"--storage-url {url!r:.200} cannot be opened: {error}") from None


def _path_of(data: Any) -> str | None:
    """Where data that lie in a file are."""
    return os.path.abspath(data) if isinstance(data, str | os.PathLike) else None
