"""What an architecture must offer: a driver face (`Mode`) and a worker face (`Exchange`).

One architecture is one file of this folder. Its module has

    CAPABILITIES: Capabilities
    def start(settings: ModeSettings) -> Mode                                  # on the driver
    def open_exchange(spec: ExchangeSpec, worker: int, *, timeout_s: float) -> Exchange     # in a task

and is found by its file name: nothing else has to be changed to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from coproc.compression import Compression
from coproc.errors import ConfigError, ModelExists
from coproc.exchange import ExchangeSpec, Pulled, Spent
from coproc.folder import module_beside, names_beside, not_installed
from coproc.pools.base import Pool
from coproc.tasks import WorkerReport, WorkerTask
from coproc.worker import never

# Files of this folder that several modes are made of.
_PARTS = {"base", "driver", "vectors", "lockstep"}


@dataclass(frozen=True)
class Capabilities:
    """What an architecture can promise. A plan that needs more is refused before it starts."""

    consistencies: frozenset[str]
    """Names of the rules of consistency it knows: "bsp", "quorum", "ssp", "asp"."""

    exactly_once: bool
    """A push is in the model once, whatever worker is killed and whatever task is tried again."""

    whole_versions: bool
    """A pull is one whole version, never parts of two."""

    elastic: bool
    """Workers may come late, leave and be replaced; no gang of tasks is needed."""

    waits_for_all: Literal["always", "in groups", "never"] = "always"
    """When the synchronous workers of one job wait for each other, so that each needs a task slot at the same time:
    always; only where a group has several steps; or never, for the driver ends each round."""

    same_answer: bool = True
    """Synchronous, it gives what one process gives with the same batches."""

    checkpoints: bool = False
    """Writes checkpoints, and goes on from one."""

    compression: bool = False
    """Sends gradients and parameters with fewer bytes, if told to."""

    survives_server: bool = True
    """What was acknowledged is there after a kill of the process that has the model, and the run goes on."""

    pools: frozenset[str] = frozenset({"inline", "processes", "spark"})
    """Names of the pools that it runs on."""

    one_host: bool = False
    """Its workers and its driver have to be on one host."""

    needs: tuple[str, ...] = ()
    """Packages that the driver must have besides; the extra that brings them has the mode's name."""


@dataclass(frozen=True)
class ModeSettings:
    """What a mode starts from."""

    address: str
    """Address of the tier and its servers, as `coproc://HOST:PORT[,HOST:PORT…]`."""

    token: str | None
    """Token of that cluster."""

    model: str
    """Name of the model. Two runs with one name are refused."""

    params: Mapping[str, NDArray[np.float32]]
    """Initial tensors by name, in the order of the layout."""

    optimizer: Any
    """An optimizer of `coproc.optim`."""

    consistency: Any
    """`coproc.Bsp(workers=N)`, `coproc.Quorum(workers=N, count=C)`, `coproc.Ssp(bound=S)` or `coproc.Asp()`."""

    shards: int | None = None
    """Shards the model is cut into; None leaves it to the mode."""

    checkpoints: Any = None
    """A `coproc.Checkpoints`: when the mode is to write checkpoints by itself; None: never."""

    restore: str | None = None
    """Path in the tier of a checkpoint that the run goes on from; None: from `params`."""

    tls_authority: str | None = None
    """A PEM file of whom to trust, on every worker's host, where the servers speak TLS."""

    compression: Compression | None = None
    """Of what travels between hosts; None: it travels as it is."""

    host: str | None = None
    """Address of the driver's host that the workers reach, for what a mode starts there; None: the one on the way to
    the tier."""

    tau: int = 10
    """`localsgd`: steps of a worker from one averaging to the next."""

    combine: Literal["mean", "best"] = "mean"
    """`localsgd`: the mean of the workers' parameters, weighted by rows; or those of the smallest loss."""

    storage_url: str | None = None
    """`storage`: a folder at any URL that fsspec knows and all hosts reach; None: in the tier."""

    parts: bool = False
    """`coproc`: the model in parts, one on each server, which may then be on several hosts; see `coproc.parts` for what
    this promises less."""


@dataclass(frozen=True)
class ModeStatus:
    """What a run looks like from the model's side, for a progress display."""

    version: int
    pushes_count: int
    examples_count: int
    loss_sum: float
    """Sum of loss x examples over the pushes that told their loss."""
    loss_examples_count: int
    """Examples behind `loss_sum`."""
    staleness_mean: float
    staleness_max: int
    pushes_per_s: float


@dataclass
class Costs:
    """What training has cost so far: bytes of gradients and parameters, as they travelled, without headers.

    Of tasks that died and were run again: the last attempt. Snapshots are not counted: they are no part of a step.
    """

    jobs_count: int = 0
    """On the pool."""
    driver_in_bytes: int = 0
    driver_out_bytes: int = 0
    worker_in_bytes: int = 0
    """Of all workers together, and so below."""
    worker_out_bytes: int = 0
    server_in_bytes: int = 0
    """Of all servers together, those of files too: whoever has what others read."""
    server_out_bytes: int = 0
    local_bytes: int = 0
    """Of the workers' bytes: through the memory of one host, nothing on a wire. What is read as a view counts whole,
    though nothing moves."""
    update_s: float = 0.0
    """Seconds of descents, by whoever does them, added up: of shards and slices that descend at the same time, all."""

    def add(self, spent: Spent) -> None:
        """Add what one task has spent."""
        self.worker_in_bytes += spent.in_bytes
        self.worker_out_bytes += spent.out_bytes
        self.local_bytes += spent.local_bytes
        self.update_s += spent.update_s

    def through_files(self) -> Costs:
        """The same, where servers keep all that workers and driver give, as files, until others read it."""
        return replace(
            self,
            server_in_bytes=self.worker_out_bytes + self.driver_out_bytes,
            server_out_bytes=self.worker_in_bytes + self.driver_in_bytes,
        )


@runtime_checkable
class Mode(Protocol):
    """Driver face: one run's model in one architecture."""

    @property
    def capabilities(self) -> Capabilities: ...

    def exchange_spec(self) -> ExchangeSpec:
        """What a task needs to open its exchange."""
        ...

    def run(self, pool: Pool, tasks: Sequence[WorkerTask], *, stop: Callable[[], bool] = never) -> list[WorkerReport]:
        """Train one group: what these tasks say, on `pool`; the reports in the order of the tasks. Blocks.

        Where workers meet the model by themselves, that is `pool.run`; where the driver has a part in each step, it
        is several jobs.

        Raises:
            As `Pool.run`.
        """
        ...

    def snapshot(self, *, timeout_s: float) -> Pulled:
        """One whole version that contains what was acknowledged before the call. A copy: it stays."""
        ...

    def checkpoint(self, *, timeout_s: float) -> None:
        """Write a checkpoint now. Only where the capabilities say so."""
        ...

    def set_learning_rate(self, learning_rate: float) -> None:
        """Descend with another learning rate from the next gradient on. Called between groups of tasks."""
        ...

    def status(self) -> ModeStatus | None:
        """Counters of the run so far, or None where the mode has none. One round trip at most."""
        ...

    def costs(self) -> Costs:
        """What all groups have cost so far. One round trip at most."""
        ...

    def close(self) -> None:
        """Remove the model and everything the mode started. Idempotent."""
        ...


def names() -> list[str]:
    """Names of all modes: the files of this folder that are one."""
    return names_beside(__file__, _PARTS)


def load(name: str) -> Any:
    """The module of the mode `name`.

    Raises:
        ConfigError: there is no such file.
    """
    return module_beside(__name__, "mode", name, names())


def require_packages(name: str, capabilities: Capabilities) -> None:
    """Raises ConfigError, with the install line, where a mode's packages are not installed here."""
    lacking = not_installed(capabilities.needs)
    if lacking:
        raise ConfigError(f"the mode {name!r} needs {' and '.join(lacking)}: pip install 'coproc[{name}]'")


def taken(model: str, address: str, token: str | None) -> ModelExists:
    """The error for a name that another run's model has; with how to free it."""
    return ModelExists(
        f"there is a model {model!r} at {address} already, of another run that goes on or was left: choose another "
        f"name with --model, or delete that one: {deletion(model, address, token)}"
    )


def deletion(model: str, address: str, token: str | None) -> str:
    """The command that deletes a model that was left."""
    imports, given = ("coproc, os", ", token=os.environ['COPROC_TOKEN']") if token is not None else ("coproc", "")
    return f"python -c \"import {imports}; coproc.connect('{address}'{given}).model('{model}').delete()\""
