"""What an architecture must offer: a driver face (`Mode`) and a worker face (`Exchange`).

One architecture is one file of this folder. Its module has

    CAPABILITIES: Capabilities
    def start(settings: ModeSettings) -> Mode                                  # on the driver
    def open_exchange(spec: ExchangeSpec, worker: int, *, timeout_s: float) -> Exchange     # in a task

and is found by its file name: nothing else has to be changed to add one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from coproc.errors import ConfigError, ModelExists

Flat = NDArray[np.float32]


@dataclass(frozen=True)
class Capabilities:
    """What an architecture can promise. A plan that needs more is refused before it starts."""

    consistencies: frozenset[str]
    """Names of the rules of consistency it knows: "bsp", "quorum", "ssp", "asp"."""

    exactly_once: bool
    """A push is in the model once, whatever is retried or killed."""

    whole_versions: bool
    """A pull is one whole version, never parts of two."""

    elastic: bool
    """Workers may come late, leave and be replaced; no gang of tasks is needed."""

    checkpoints: bool = False
    """Writes checkpoints, and goes on from one."""


@dataclass(frozen=True)
class ExchangeSpec:
    """How a task opens its exchange. Names and numbers only: it travels as JSON."""

    mode: str
    """Name of the mode's file."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the mode's `open_exchange` needs: addresses, a token, the model's name."""


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


class Pulled(Protocol):
    """One whole version of the model, as a worker sees it."""

    @property
    def version(self) -> int: ...

    @property
    def flat(self) -> Flat:
        """The parameters (P,), read-only. May be a view that is valid only until the worker's next push."""
        ...


class Pushed(Protocol):
    """The receipt of one push."""

    @property
    def step(self) -> int: ...

    @property
    def duplicate(self) -> bool:
        """Another attempt's push of this step is in the model, not this one."""
        ...

    @property
    def version_read(self) -> int: ...


class Exchange(Protocol):
    """Worker face: one attempt's connection to the model. Used by one thread."""

    @property
    def next_step(self) -> int:
        """The step to continue from: where this worker, in whatever attempt, has got to."""
        ...

    @property
    def version(self) -> int:
        """The newest version of the model there is now. Cheap: no copy, no wait."""
        ...

    def pull(self, *, timeout_s: float) -> Pulled:
        """The newest version this worker may read now; waits while the rule of consistency says so."""
        ...

    def gradient(self, *, timeout_s: float) -> Flat:
        """The vector (P,) in which the next gradient is born; waits for a free one. Overwrite all of it."""
        ...

    def push(self, *, step: int, examples: int, loss: float, timeout_s: float) -> Pushed:
        """Commit what is in `gradient()`, finite and the mean over `examples` examples. Returns when acknowledged."""
        ...

    def skip(self, *, step: int, timeout_s: float) -> None:
        """Take part in this step without a gradient."""
        ...

    def leave(self) -> None:
        """End of this worker's data, for now: nobody waits for it any more."""
        ...

    def close(self) -> None:
        """Give everything back; the worker stays a member, another task may continue it. Idempotent."""
        ...

    def abort(self) -> None:
        """As `close`, now and without a promise that anything was sent. Idempotent."""
        ...


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


@runtime_checkable
class Mode(Protocol):
    """Driver face: one run's model in one architecture."""

    @property
    def capabilities(self) -> Capabilities: ...

    def exchange_spec(self) -> ExchangeSpec:
        """What a task needs to open its exchange."""
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

    def close(self) -> None:
        """Remove the model and everything the mode started. Idempotent."""
        ...


def names() -> list[str]:
    """Names of all modes: the files of this folder."""
    folder = str(Path(__file__).parent)
    return sorted(module.name for module in pkgutil.iter_modules([folder]) if module.name != "base")


def load(name: str) -> Any:
    """The module of the mode `name`.

    Raises:
        ConfigError: there is no such file.
    """
    if name not in names():
        raise ConfigError(f"there is no mode {name!r}; the modes are {', '.join(names())}")
    return importlib.import_module(f"coproc.modes.{name}")


def taken(model: str, address: str, token: str | None) -> ModelExists:
    """The error for a name that another run's model has; with how to free it."""
    imports, given = ("coproc, os", ", token=os.environ['COPROC_TOKEN']") if token is not None else ("coproc", "")
    delete = f"import {imports}; coproc.connect('{address}'{given}).model('{model}').delete()"
    return ModelExists(
        f"there is a model {model!r} at {address} already, of another run that goes on or was left: choose another "
        f'name with --model, or delete that one: python -c "{delete}"'
    )


def open_exchange(spec: ExchangeSpec, worker: int, *, timeout_s: float) -> Exchange:
    """Join the run described by `spec` as `worker`. One or two round trips."""
    exchange: Exchange = load(spec.mode).open_exchange(spec, worker, timeout_s=timeout_s)
    return exchange
