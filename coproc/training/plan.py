"""From the settings and the facts of the data to a plan: pure, and every impossible one is refused here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from coproc import grads
from coproc.errors import ConfigError, OutOfMemory
from coproc.exchange import ExchangeSpec
from coproc.grads.base import Spec
from coproc.ingest import Destination, Ingested
from coproc.modes.base import Capabilities, require_packages
from coproc.shared.published import Published
from coproc.tasks import DataSpec, WorkerTask
from coproc.training.base import Plan
from coproc.training.config import ROUNDS, TrainConfig

BYTES_SCALE = 255.0

# Vectors of the model's size in the driver: what it begins with, a stream of it, a snapshot, the last good one.
DRIVER_COPIES = 4
MEMINFO = Path("/proc/meminfo")


def make_plan(
    config: TrainConfig, ingested: Ingested, run: str, compute: Callable[[Spec], Spec] = lambda spec: spec
) -> Plan:
    """The plan for these data. `compute` makes the spec of the workers' backend from the network's.

    Raises:
        ConfigError: settings that do not fit each other or the data.
        OutOfMemory: the network is larger than this machine can hold; nothing of its size was made yet.
    """
    outputs = ingested.classes if config.loss == "softmax" and ingested.classes else 1
    network = {
        "backend": "mlp",
        "inputs": ingested.width,
        "hidden": list(config.hidden),
        "outputs": outputs,
        "activation": config.activation,
        "loss": config.loss,
        "dropout": config.dropout,
    }
    backend = grads.create(compute(network))
    parameters_count = backend.layout.size
    require_memory(config, parameters_count)
    if config.shards is not None:
        try:
            backend.layout.shards(config.shards)
        except ConfigError as error:
            raise ConfigError(f"--shards {config.shards} is too many: {error}") from None
    rows = tuple(part.rows for part in ingested.partitions)
    own = [-(-count // (config.batch_size * config.n_send)) for count in rows]
    # In a synchronous round everybody takes part: shorter partitions skip until the longest is through.
    pushes = [max(own)] * len(own) if config.consistency in ROUNDS else own
    automatic = BYTES_SCALE if ingested.features_dtype == "uint8" else 1.0
    return Plan(
        config=config,
        run=run,
        backend=backend,
        scale=automatic if config.scale is None else config.scale,
        partition_rows=rows,
        pushes_per_epoch=tuple(pushes),
    )


def require_memory(config: TrainConfig, parameters_count: int) -> None:
    """Refuse a network that this machine has not the memory for, before an array of its size is asked for.

    A cluster on other hosts counts its own memory; of one that is named only the driver's part is compared.

    Raises:
        OutOfMemory: with the sizes.
    """
    available_bytes = memory_available_bytes()
    model_bytes = 4 * parameters_count
    of_driver, of_tier = _vectors_of(config)
    tier_bytes = math.ceil(of_tier * model_bytes)
    if config.mode == "coproc":
        rows = len(config.optimizer_rule().state_rows)
        tier_bytes += Published.size_bytes(parameters_count, rows, config.consistency_rule().buffers)
    if config.address is not None:
        tier_bytes = 0
    needed_bytes = (DRIVER_COPIES + of_driver) * model_bytes + tier_bytes
    if available_bytes is None or needed_bytes <= available_bytes:
        return
    where = ", or name a cluster on other hosts with --address" if tier_bytes else ""
    hidden = ",".join(str(size) for size in config.hidden) or "none"
    raise OutOfMemory(
        f"--hidden {hidden} makes a network of {parameters_count:,} parameters ({_gigabytes(model_bytes)}); to train "
        f"it takes {_gigabytes(needed_bytes)} on this machine, which has {_gigabytes(available_bytes)} of memory "
        f"available: make --hidden smaller{where}"
    )


def _vectors_of(config: TrainConfig) -> tuple[int, float]:
    """Vectors of the model's size that a mode has at the most, beside `DRIVER_COPIES`: (on the driver, in the tier).

    Of a mode that is not here none is known.
    """
    workers, optimizer = config.workers, config.optimizer_rule()
    state = len(optimizer.state_rows)
    # What the driver reads from the tier on its own host stays there; from elsewhere it comes as a copy.
    copied = config.address is not None
    match config.mode:
        case "coproc":
            # Of each worker's slots the two that large models have; `Published` has the buffers and the state.
            return 0, 2 * workers * (2 if optimizer.compensates else 1)
        case "broadcast":
            return 1 + state + 2, 0  # the model, its broadcast, the sum of gradients
        case "storage":
            from coproc.modes.storage import AT_ONCE

            read = min(workers, AT_ONCE)
            if config.storage_url is not None:
                return 1 + state + read, 0
            # The model's file, old and new; the gradients, and the means of more than a pass takes.
            return 1 + state + read * copied, 2 + workers + workers // (AT_ONCE - 1)
        case "localsgd":
            read = 1 if config.combine == "best" else workers
            # The average and the parameters of each worker; the states, old and new.
            return 2 + read * copied, 2 + workers * (1 + 2 * state)
        case "hogwild":
            return 1 + state + workers, 0  # the one vector; a gradient of each worker
        case "http":
            return 1 + state + 1 + workers, 0  # its server: the model, an answer, a gradient of each worker
        case "allreduce":
            travels = 0.5 if config.compression_rule() is not None else 1.0
            version = 1 + state + (travels if travels < 1 else 0)
            return 0, 2 * version + travels * workers  # old and new; gradients, of a group of one step
    return 0, 0


def memory_available_bytes() -> int | None:
    """What this machine could still give, as its kernel estimates it; None where it does not say."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def _gigabytes(count_bytes: int) -> str:
    return f"{count_bytes / 1e9:,.1f} GB"


def require_mode(config: TrainConfig, capabilities: Capabilities) -> None:
    """Raises ConfigError if the mode cannot do what the plan needs."""
    if config.consistency not in capabilities.consistencies:
        raise ConfigError(
            f"the mode {config.mode!r} can be {', '.join(sorted(capabilities.consistencies))}, not {config.consistency}"
        )
    if config.compression_rule() is not None and not capabilities.compression:
        raise ConfigError(f"the mode {config.mode!r} has no compression: leave out --compression")
    if config.pool not in capabilities.pools:
        raise ConfigError(
            f"the mode {config.mode!r} runs on --pool {' or '.join(sorted(capabilities.pools))}, not {config.pool}"
        )
    require_packages(config.mode, capabilities)


def waits_for_all(config: TrainConfig, capabilities: Capabilities) -> bool:
    """Whether the workers of a job wait for each other, so that all need a task slot at the same time."""
    if config.consistency not in ROUNDS or capabilities.waits_for_all == "never":
        return False
    return capabilities.waits_for_all == "always" or config.group_size != 1


def tasks_of_group(
    plan: Plan,
    exchange: ExchangeSpec,
    destination: Destination,
    epoch: int,
    begin: int,
    end: int,
    *,
    trace: bool = False,
) -> list[WorkerTask]:
    """The tasks of a group that goes from push `begin` to push `end` of an epoch (all 0-based).

    One for each worker that has something to do in it.
    """
    config = plan.config
    # Nobody may wait for a worker that has no task. With bounded staleness the fast ones would; and where only the last
    # ones are late, their rounds would never have a quorum of several.
    late_alone = config.quorum is not None and 1 < config.quorum < config.workers
    leave_after_task = config.consistency == "ssp" or late_alone
    tasks = []
    for worker, pushes in enumerate(plan.pushes_per_epoch):
        until = plan.until_step(worker, epoch, end)
        if until == plan.until_step(worker, epoch, begin):
            continue
        data = DataSpec(
            address=destination.address,
            path=destination.path(worker),
            token=destination.token,
            tls_authority=destination.tls_authority,
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
                prefetch=bool(config.prefetch),
                trace=trace,
                leave_after_task=leave_after_task,
            )
        )
    return tasks
