"""From the settings and the facts of the data to a plan: pure, and every impossible one is refused here."""

from __future__ import annotations

from coproc import grads
from coproc.errors import ConfigError
from coproc.ingest import Destination, Ingested
from coproc.modes.base import Capabilities, ExchangeSpec
from coproc.training.base import Plan, TrainConfig
from coproc.worker import DataSpec, WorkerTask

BYTES_SCALE = 255.0


def make_plan(config: TrainConfig, ingested: Ingested, run: str) -> Plan:
    """The plan for these data.

    Raises:
        ConfigError: settings that do not fit each other or the data.
    """
    outputs = ingested.classes if config.loss == "softmax" and ingested.classes else 1
    backend = grads.create(
        {
            "backend": "mlp",
            "inputs": ingested.width,
            "hidden": list(config.hidden),
            "outputs": outputs,
            "activation": config.activation,
            "loss": config.loss,
            "dropout": config.dropout,
        }
    )
    rows = tuple(part.rows for part in ingested.partitions)
    own = [-(-count // (config.batch_size * config.n_send)) for count in rows]
    # In a synchronous round everybody takes part: shorter partitions skip until the longest is through.
    pushes = [max(own)] * len(own) if config.consistency == "bsp" else own
    automatic = BYTES_SCALE if ingested.features_dtype == "uint8" else 1.0
    return Plan(
        config=config,
        run=run,
        backend=backend,
        scale=automatic if config.scale is None else config.scale,
        partition_rows=rows,
        pushes_per_epoch=tuple(pushes),
    )


def require_mode(config: TrainConfig, capabilities: Capabilities) -> None:
    """Raises ConfigError if the mode cannot do what the plan needs."""
    if config.consistency not in capabilities.consistencies:
        raise ConfigError(
            f"the mode {config.mode!r} can be {', '.join(sorted(capabilities.consistencies))}, not {config.consistency}"
        )


def tasks_of_group(
    plan: Plan, exchange: ExchangeSpec, destination: Destination, epoch: int, group: int
) -> list[WorkerTask]:
    """The tasks of one group of an epoch (0-based), one for each worker that has something to do in it."""
    config = plan.config
    tasks = []
    for worker, pushes in enumerate(plan.pushes_per_epoch):
        until = plan.until_step(worker, epoch, group)
        before = plan.until_step(worker, epoch, group - 1) if group else epoch * pushes
        if until == before:
            continue
        data = DataSpec(
            address=destination.address,
            path=destination.path(worker),
            token=destination.token,
            batch_size=config.batch_size,
            seed=config.seed,
            scale=plan.scale,
        )
        tasks.append(
            WorkerTask(
                run=plan.run,
                worker=worker,
                exchange=exchange,
                backend=plan.backend.spec(),
                data=data,
                pushes_per_epoch=pushes,
                until_step=until,
                end_step=config.epochs * pushes,
                n_fetch=config.batches_per_fetch,
                n_send=config.n_send,
                # Nobody may wait for a worker that has no task: with bounded staleness the fast ones would.
                leave_after_task=config.consistency == "ssp",
            )
        )
    return tasks
