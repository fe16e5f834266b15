"""The worker face of an architecture: what a task joins, pulls from and pushes to.

An architecture is one file of `coproc/modes`; a task opens the exchange of the one whose name it is given.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol

from coproc.errors import ConfigError
from coproc.layout import Flat


@dataclass(frozen=True)
class ExchangeSpec:
    """How a task opens its exchange. Names and numbers only: it travels as JSON."""

    mode: str
    """Name of the mode's file."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the mode's `open_exchange` needs: addresses, a token, the model's name."""


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


class Version(NamedTuple):
    """A `Pulled` that is no more than that."""

    version: int
    flat: Flat


class Taken(NamedTuple):
    """A `Pushed` that is no more than that."""

    step: int
    version_read: int
    duplicate: bool = False


@dataclass
class Spent:
    """What an attempt has cost: bytes of gradients and parameters, as they travelled, without headers."""

    in_bytes: int = 0
    out_bytes: int = 0
    local_bytes: int = 0
    """Of both: through the memory of one host, nothing on a wire. What is read as a view counts whole,
    though nothing moves."""
    update_s: float = 0.0
    """Seconds of descents of its own."""

    def came(self, count_bytes: int, local: bool = False) -> None:
        """Parameters were read."""
        self.in_bytes += count_bytes
        self.local_bytes += count_bytes if local else 0

    def went(self, count_bytes: int, local: bool = False) -> None:
        """A gradient was given."""
        self.out_bytes += count_bytes
        self.local_bytes += count_bytes if local else 0

    def add(self, other: Spent) -> None:
        """Add what another one has cost."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


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

    @property
    def spent(self) -> Spent:
        """What it has cost so far; after `close` too."""
        ...

    def pull(self, *, timeout_s: float) -> Pulled:
        """The newest version this worker may read now; waits while the rule of consistency says so."""
        ...

    def gradient(self, *, timeout_s: float) -> Flat:
        """The vector (P,) in which the next gradient is born; waits for a free one. Overwrite all of it."""
        ...

    def push(self, *, step: int, examples: int, loss: float, timeout_s: float, last: bool) -> Pushed:
        """Commit what is in `gradient()`, finite and the mean over `examples` examples. Returns when acknowledged.

        Args:
            last: no gradient of this attempt follows. What a compression has left out so far, which only this attempt
                has, is sent with it, and nothing is left out.
        """
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


def open_exchange(spec: ExchangeSpec, worker: int, *, timeout_s: float) -> Exchange:
    """Join the run described by `spec` as `worker`. One or two round trips.

    Raises:
        ConfigError: there is no such mode here.
    """
    name = f"coproc.modes.{spec.mode}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ConfigError(
            f"this task is of the mode {spec.mode!r}, which the coproc that is installed here does not have"
        ) from None
    exchange: Exchange = module.open_exchange(spec, worker, timeout_s=timeout_s)
    return exchange
