"""What a model is, as plain values: the contents of its `spec.json`, and what servers tell each other and clients."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from coproc import consistency, optim
from coproc.consistency import Consistency
from coproc.errors import ConfigError, whole
from coproc.layout import ParamLayout
from coproc.optim import Optimizer
from coproc.shared.published import Published

# Far beyond use, and sums of them fit in 64 bits.
MOST_EXAMPLES = 1 << 31
MOST_STEPS = 1 << 53

_IDENTITY = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_name(name: object) -> str:
    """A model's name, if it can be one: it becomes the name of a directory.

    Raises:
        ConfigError: anything but 1 to 128 letters, digits, dots, dashes and underscores, a letter or digit first.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"a model's name is 1 to 128 letters, digits, dots, dashes or underscores, not {name!r:.200}")
    return name


def check_identity(identity: object) -> str:
    """A model's identity, if it can be one: it becomes part of a directory's name.

    Raises:
        ConfigError: anything but 16 hexadecimal digits.
    """
    if not isinstance(identity, str) or not _IDENTITY.fullmatch(identity):
        raise ConfigError(f"a model's identity is 16 hexadecimal digits, not {identity!r:.200}")
    return identity


@dataclass(frozen=True)
class ShardPlace:
    """Where a contiguous range [lo, hi) of the flat vector is stored and descended."""

    lo: int
    hi: int
    server: str
    """host:port of the server that owns it."""
    path: str
    """Its region, for who is on that host."""


@dataclass(frozen=True)
class Checkpoints:
    """When the servers of a model write a checkpoint by themselves, and how many of them they keep.

    Whichever comes first, and never twice of one version. The server looks a few times a second.
    """

    every_versions: int | None = None
    """After so many versions since the last one."""
    every_s: float | None = None
    """After so many seconds since the last one."""
    keep: int = 3
    """So many stay, the newest; one more was made whole by the time an old one goes. A second one is there if the
    newest was damaged, a third if training went wrong before it was seen."""

    def __post_init__(self) -> None:
        if self.every_versions is None and self.every_s is None:
            raise ConfigError("checkpoints need every_versions or every_s")
        if self.every_versions is not None:
            whole("every_versions of checkpoints", self.every_versions, 1, MOST_STEPS)
        if self.every_s is not None and not (isinstance(self.every_s, int | float) and 0 < self.every_s < float("inf")):
            raise ConfigError(f"every_s of checkpoints must be a number of seconds above 0, not {self.every_s!r}")
        whole("keep of checkpoints", self.keep, 1, 1_000_000)

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Checkpoints:
        """What `to_json` wrote.

        Raises:
            ConfigError: not such a text, or a value that cannot be.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"not a rule for checkpoints: {error}") from None


@dataclass(frozen=True)
class ModelSpec:
    """A model's fixed facts. Equal on all servers."""

    name: str
    layout: ParamLayout
    optimizer: Optimizer
    consistency: Consistency
    slots: int
    """Gradients one attempt may have in flight."""
    buffers: int
    """Parameter buffers of each shard."""
    identity: str = ""
    """Tells it from earlier and later models of its name: 16 hexadecimal digits, given by the sequencer."""
    home: str = ""
    """Directory of the model on its sequencer (the server of shard 0)."""
    shards: tuple[ShardPlace, ...] = ()
    not_finite: Literal["reject", "skip"] = "reject"
    """What becomes of a gradient with NaN or infinity: `PushRejected`; or its step has none, which is counted."""
    checkpoints: Checkpoints | None = None
    """None: only when somebody asks for one."""
    memory_limit_bytes: int | None = None
    """The most that it may take on each server, with the slots of its workers; None: what the server has."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.identity:
            check_identity(self.identity)
        if not 1 <= self.slots <= 64:
            raise ConfigError(f"slots must be 1 to 64, not {self.slots}")
        if not 2 <= self.buffers <= 16:
            raise ConfigError(f"buffers must be 2 to 16, not {self.buffers}")
        if self.not_finite not in ("reject", "skip"):
            raise ConfigError(f'not_finite must be "reject" or "skip", not {self.not_finite!r:.100}')
        if self.memory_limit_bytes is not None:
            whole("memory_limit_bytes", self.memory_limit_bytes, 1, 1 << 60)

    @property
    def folder(self) -> str:
        """Name of the model's directory on each of its servers: never given twice."""
        return f"{self.name}~{check_identity(self.identity)}"

    @property
    def control_path(self) -> Path:
        return Path(self.home) / "control"

    @property
    def sums_path(self) -> Path:
        """Where shards tell each other what they measured; there if `sums_count` is not 0 and there are several."""
        return Path(self.home) / "sums"

    @property
    def sums_count(self) -> int:
        """Numbers that each shard measures before it sweeps an update."""
        if isinstance(self.optimizer, optim.Layerwise):
            return 2 * len(self.layout.shapes)
        return 0 if self.optimizer.clip_norm is None else 1

    @property
    def base_at(self) -> int:
        """Floats from the beginning of a slot to its base, where it has one; a multiple of a cache line."""
        return -(-self.layout.size // optim.LINE_FLOATS) * optim.LINE_FLOATS

    @property
    def slot_floats(self) -> int:
        """Floats of a slot: a gradient; where delays are compensated also its base, what it was computed on."""
        size = self.layout.size
        return self.base_at + size if self.optimizer.compensates else size

    def seat_path(self, seat: int, generation: int) -> Path:
        """The region of a seat; a seat that is given again gets a region of its own."""
        return Path(self.home) / "seats" / f"{seat:03d}-{generation}"

    def memory_bytes(self, server: str) -> int:
        """What the shards of `server` take, without the workers' slots."""
        rows = len(self.optimizer.state_rows)
        return sum(
            Published.size_bytes(place.hi - place.lo, rows, self.buffers)
            for place in self.shards
            if place.server == server
        )

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json.dumps(
            {
                "name": self.name,
                "tensors": {name: list(shape) for name, shape in self.layout.shapes.items()},
                "parameters": self.layout.size,
                "optimizer": self.optimizer.to_config(),
                "consistency": self.consistency.to_config(),
                "slots": self.slots,
                "buffers": self.buffers,
                "identity": self.identity,
                "home": self.home,
                "shards": [vars(place) for place in self.shards],
                "not_finite": self.not_finite,
                "checkpoints": None if self.checkpoints is None else asdict(self.checkpoints),
                "memory_limit_bytes": self.memory_limit_bytes,
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """The spec that `to_json` or a client wrote; slots and buffers are the consistency's where it says nothing.

        Raises:
            ConfigError: not such a text, or a value that cannot be.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            rule = consistency.from_config(raw["consistency"])
            return cls(
                name=raw["name"],
                layout=ParamLayout({name: tuple(shape) for name, shape in raw["tensors"].items()}),
                optimizer=optim.from_config(raw["optimizer"]),
                consistency=rule,
                slots=int(raw.get("slots", rule.slots)),
                buffers=int(raw.get("buffers", rule.buffers)),
                identity=str(raw.get("identity", "")),
                home=str(raw.get("home", "")),
                shards=tuple(ShardPlace(**place) for place in raw.get("shards", ())),
                not_finite=raw.get("not_finite", "reject"),
                checkpoints=None if raw.get("checkpoints") is None else Checkpoints(**raw["checkpoints"]),
                memory_limit_bytes=raw.get("memory_limit_bytes"),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"not the description of a model: {type(error).__name__} {error}") from None
