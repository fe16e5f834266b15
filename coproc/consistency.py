"""What a worker may read, and when a gradient may be descended: synchronous, bounded staleness, asynchronous.

Pure settings; `coproc.descent` obeys them. A worker's *round* (its clock) is its step plus the offset that it was
given when it joined.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from coproc.errors import ConfigError, whole

# All of them take part at once, each with a seat of its own, and seats are 512 with those of readers.
MOST_BSP_WORKERS = 480


@dataclass(frozen=True)
class Consistency:
    """Base of the three; use `Bsp`, `Ssp` or `Asp`."""

    name: ClassVar[str]
    buffers: ClassVar[int]
    """How many parameter buffers a shard needs, so that readers rarely stand in the way of the next version."""
    slots: ClassVar[int]
    """How many gradients one attempt may have in flight."""

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values from which `from_config` makes an equal object."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Bsp(Consistency):
    """Bulk synchronous: round r is descended once, when each of `workers` has given its gradient or has left.

    Gradients are averaged weighted by examples, in the order of worker numbers, so a run repeats bit for bit.
    Valiant, "A bridging model for parallel computation", 1990.
    """

    name: ClassVar[str] = "bsp"
    buffers: ClassVar[int] = 3
    slots: ClassVar[int] = 2

    workers: int
    """Workers are numbered 0 .. workers-1; all of them take part in each round until they leave."""

    on_loss: Literal["wait", "close"] = "wait"
    """A worker with no live attempt: wait for the next one and fail after `patience_s`, or let it leave."""

    patience_s: float = 300.0
    """How long a round waits for a worker that has no live attempt."""

    def __post_init__(self) -> None:
        whole("workers of Bsp", self.workers, 1, MOST_BSP_WORKERS)
        if self.on_loss not in ("wait", "close"):
            raise ConfigError(f'on_loss must be "wait" or "close", not {self.on_loss!r}')
        if not isinstance(self.patience_s, int | float) or not self.patience_s > 0:
            raise ConfigError(f"patience_s must be a number above 0, not {self.patience_s!r}")


@dataclass(frozen=True)
class Ssp(Consistency):
    """Stale synchronous parallel: every gradient is descended at once; the fastest waits for the slowest.

    A worker at round c reads only when every joined worker's pushes before round c - `bound` are in what it
    reads. Ho et al., "More effective distributed ML via a stale synchronous parallel parameter server", 2013.
    """

    name: ClassVar[str] = "ssp"
    buffers: ClassVar[int] = 4
    slots: ClassVar[int] = 8

    bound: int
    """How many rounds the fastest may be ahead of the slowest; 0 is lockstep without averaging."""

    def __post_init__(self) -> None:
        whole("the bound of Ssp", self.bound, 0, 1 << 40)


@dataclass(frozen=True)
class Asp(Consistency):
    """Asynchronous: every gradient is descended at once and nobody waits (Dean et al., Downpour SGD, 2012)."""

    name: ClassVar[str] = "asp"
    buffers: ClassVar[int] = 4
    slots: ClassVar[int] = 8


_BY_NAME: dict[str, type[Consistency]] = {c.name: c for c in (Bsp, Ssp, Asp)}


def from_config(config: dict[str, Any]) -> Consistency:
    """The consistency that `to_config` described.

    Raises:
        ConfigError: an unknown name or key.
    """
    settings = dict(config)
    kind = _BY_NAME.get(settings.pop("name", None))
    if kind is None:
        raise ConfigError(f"consistency must be one of {sorted(_BY_NAME)}, not {config.get('name')!r}")
    try:
        return kind(**settings)
    except TypeError as error:
        raise ConfigError(f"consistency {kind.name}: {error}") from None
