"""What a worker may read, and when a gradient may be descended: in rounds, with bounded staleness, at any time.

Pure settings; `coproc.descent` obeys them. A worker's *round* (its clock) is its step plus the offset that it was
given when it joined.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any, ClassVar, Literal

from coproc.errors import ConfigError, whole

# All of them take part at once, each with a seat of its own, and seats are 512 with those of readers.
MOST_BSP_WORKERS = 480
# A day: longer is a mistake in units.
_MOST_GRACE_S = 86_400.0


@dataclass(frozen=True)
class Consistency:
    """Base of all; use `Bsp`, `Quorum`, `Ssp` or `Asp`."""

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

    @property
    def needed(self) -> int:
        """So many gradients close a round at the least, while so many workers have not left."""
        return self.workers


@dataclass(frozen=True)
class Quorum(Bsp):
    """Rounds as in `Bsp` that close without the slowest: with `count` gradients, after a grace for the others.

    A round closes when all have given, or `grace_s` seconds after its `count`-th gradient came; if fewer than `count`
    workers remain it needs all of them, so who has no more data leaves or skips. A skipped step counts as given. A
    worker whose round was closed without it is *late* when its gradient comes, and goes on in the round that is open
    then. Who joins, for the first time or again, does too. A lost worker (`on_loss`) matters where a round needs it.

    Which gradients a round has depends on who was fast: a run does not repeat bit for bit. Each step still counts once
    at most, also with twins and after a kill. The workers beyond `count` are the backup workers of Chen et al.,
    "Revisiting distributed synchronous SGD", 2016; BigDL drops its stragglers in the same way.
    """

    name: ClassVar[str] = "quorum"
    # Who is late holds an old view while rounds go on.
    buffers: ClassVar[int] = 4

    _: KW_ONLY

    count: int
    """Gradients that close a round, 1 to `workers`; the workers beyond are backups."""

    grace_s: float = 0.0
    """How long a round that has `count` gradients stays open for the others. 0: for those that are there already."""

    late: Literal["drop", "carry"] = "drop"
    """What comes late: not descended, and only counted; or part of the round that is open when it comes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("the count of Quorum", self.count, 1, self.workers)
        if not isinstance(self.grace_s, int | float) or not 0 <= self.grace_s <= _MOST_GRACE_S:
            raise ConfigError(f"grace_s must be a number from 0 to {_MOST_GRACE_S:g}, not {self.grace_s!r}")
        if self.late not in ("drop", "carry"):
            raise ConfigError(f'late must be "drop" or "carry", not {self.late!r}')

    @property
    def needed(self) -> int:
        return self.count


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


_BY_NAME: dict[str, type[Consistency]] = {c.name: c for c in (Bsp, Quorum, Ssp, Asp)}


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
