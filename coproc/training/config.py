"""The settings of a training: what each is by default and why, and what cannot be together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from coproc import optim
from coproc.compression import Compression, as_compression, from_config
from coproc.consistency import MOST_BSP_WORKERS, Asp, Bsp, Consistency, Quorum, Ssp
from coproc.data.base import Kind
from coproc.errors import ConfigError
from coproc.grads.mlp import ACTIVATIONS
from coproc.shared.control import MAX_WORKERS
from coproc.spec import Checkpoints, check_name

ConsistencyName = Literal["bsp", "quorum", "ssp", "asp"]
# Those in which all workers take part in each round.
ROUNDS = ("bsp", "quorum")
PoolName = Literal["spark", "processes", "inline"]

# What the field uses where nothing is known about the data; the loss then says whether it was too much. An
# optimizer that is not here has the default of its own class, or none.
LEARNING_RATES = {"sgd": 0.1, "momentum": 0.05, "adam": 1e-3, "adamw": 1e-3, "ftrl": 0.1}

# Share of the first learning rate by the share of the epochs that is over, 0 to (epochs - 1) / epochs.
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda over: 1 - over,
    "cosine": lambda over: (1 + math.cos(math.pi * over)) / 2,
    "constant": lambda over: 1.0,
}

# The output columns and the kind of labels that each loss goes with; softmax takes the number of classes.
LOSS_KINDS: Mapping[str, Kind] = {
    "softmax": "classification",
    "logistic": "binary",
    "squared": "regression",
}


COUNTS = ("epochs", "batch_size", "workers", "n_send", "n_fetch", "group_size", "tau", "servers", "shards")

DEFAULT_CHECKPOINT_S = 60.0

# Of bounded staleness: enough that a hiccup of one worker stops nobody, few enough that gradients stay fresh.
DEFAULT_BOUND = 4

# What is so where neither the settings nor their preset say otherwise.
PLAIN: Mapping[str, Any] = {"mode": "coproc", "consistency": "bsp", "n_send": 1}

# Default of settings that a preset may set. No object has it: each is filled in with the preset's value, or of PLAIN.
_NOT_GIVEN: Any = None

# Named ways to train; --n-fetch is as many as --n-send in each.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Dean et al., "Large Scale Distributed Deep Networks" (NIPS 2012), who took 1 and 1; 5 and 5 are tensorspark's.
    "downpour": {"consistency": "asp", "n_send": 5},
    # Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server" (NIPS 2013).
    "ssp": {"consistency": "ssp", "bound": 3, "n_send": 1},
    "bsp": {"consistency": "bsp", "n_send": 1},
    # Niu et al., "Hogwild!" (NIPS 2011): see `coproc.modes.hogwild`.
    "hogwild": {"mode": "hogwild", "consistency": "asp", "n_send": 1},
}

# Settings that only some modes have a use for.
MODES_OF: Mapping[str, tuple[str, ...]] = {
    "tau": ("localsgd",),
    "combine": ("localsgd",),
    "storage_url": ("storage",),
    "driver_host": ("http",),
    "parts": ("coproc",),
    "prefetch": ("coproc", "http"),
    # The others descend onto the parameters that they have, whatever a gradient was computed on.
    "delay_compensation": ("coproc",),
}


# Modes in which a group is a job, whatever its size.
AUTOMATIC = ("coproc", "http", "hogwild")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Every default can be kept; each says why it is what it is."""

    features: str | tuple[str, ...] = "features"
    """One column of lists, vectors or bytes, or several of numbers."""

    label: str = "label"

    hidden: tuple[int, ...] = (256,)
    """Sizes of the hidden layers; () is a linear model. One layer of 256 trains in seconds; on images of
    handwriting 1024,1024 gets 2 percent more of them right, in ten times the time."""

    activation: str = "relu"

    loss: str = "softmax"
    """softmax: classes 0, 1, 2, …; logistic: 0 or 1; squared: numbers. Most tables of labels are classes."""

    dropout: float = 0.0
    """Share of hidden activations left out. 0: a few epochs overfit little, and it slows learning down."""

    epochs: int = 5

    batch_size: int = 128
    """Rows a gradient: below it, matrix products are too small to be quick; above, more epochs are needed."""

    workers: int = 2
    """Gradient workers = partitions of the data."""

    optimizer: str = "adam"
    """The one that needs its learning rate tuned least."""

    learning_rate: float | None = None
    """None: 0.001 for adam and adamw, 0.05 for momentum, 0.1 for sgd and ftrl, else the optimizer's own default."""

    schedule: str = "linear"
    """How the learning rate goes on from epoch to epoch: linear, falling to a last one of rate / epochs;
    cosine; or constant. Measured on images of digits, a falling rate is worth half a percent of accuracy."""

    delay_compensation: float | None = None
    """coproc, not synchronous: how much a gradient is corrected for what the model has moved since it was pulled
    (DC-ASGD's lambda; `coproc.optim.Optimizer.delay_compensation`); None: not at all."""

    preset: str | None = None
    """downpour, ssp, bsp or hogwild: what the method of that name has for `mode`, `consistency`, `bound` and `n_send`.
    What is given besides wins."""

    consistency: ConsistencyName = _NOT_GIVEN
    """None: bsp. Synchronous: gives the same model for the same seed, whatever the machine does meanwhile."""

    bound: int | None = None
    """ssp: how many steps the fastest worker may be ahead of the slowest; None: 4. The others have none."""

    quorum: int | None = None
    """quorum: gradients that close a round without the others."""

    grace_s: float = 0.0
    """quorum: seconds that a round stays open for the others."""

    late: Literal["drop", "carry"] = "drop"
    """quorum: what comes after its round: only counted, or part of the round that is open then."""

    n_send: int = _NOT_GIVEN
    """Batches summed into one push. None: 1; in shared memory a push costs less than a batch."""

    n_fetch: int | None = None
    """Batches from one pull to the next; None: as many as `n_send`."""

    prefetch: bool | None = None
    """asp, on servers of other hosts: the next parameters come while a gradient is computed and pushed, and are one
    push older for it; `coproc.prefetch`."""

    group_size: int | Literal["auto"] | None = None
    """Pushes a task before it ends and another continues; None: an epoch, so that tasks are few. auto: so many that
    scheduling takes 5 to 10 percent of the time at the most (`coproc.training.groups`)."""

    compression: Compression | str | Mapping[str, Any] | None = None
    """Of gradients and parameters between hosts: bf16, fp16, int8, topk, one of `coproc.compression`, or its config;
    None: all bytes. On the servers' host nothing travels, and it changes nothing. What is left out of a push is in the
    worker's next one; the last of a task sends all, and the first pull gets all, so a group wants many pushes. A worker
    that is killed takes what it has left out along."""

    scale: float | None = None
    """Features are divided by it; None: 255 if they are bytes, else 1."""

    seed: int = 0

    pool: PoolName = "spark"

    mode: str = _NOT_GIVEN
    """The architecture: a file of `coproc.modes`; None: coproc."""

    tau: int | None = None
    """localsgd: steps of a worker from one averaging to the next; None: 10."""

    combine: Literal["mean", "best"] | None = None
    """localsgd: the mean of the workers' parameters, weighted by rows; or those of the smallest loss; None: the
    mean."""

    storage_url: str | None = None
    """storage: a folder at any URL that fsspec knows and all hosts reach; None: in the tier."""

    driver_host: str | None = None
    """http: the address of the driver's host at which the workers reach its server; None: the one on the way to the
    tier."""

    servers: int = 1
    """Servers of the embedded cluster: one saturates the memory of one host."""

    shards: int | None = None
    """Shards of the model; None: one a server."""

    parts: bool | None = None
    """coproc: the model in parts, one on each server, for servers on several hosts; `coproc.parts` says what this
    promises less."""

    address: str | None = None
    """A cluster that runs already; None: an embedded one."""

    token: str | None = None

    tls_authority: str | None = None
    """A PEM file of whom to trust, where its servers speak TLS; the same path on every worker's host."""

    model: str | None = None
    """Name of the model in the cluster; None: a new one for each run."""

    checkpoints: str | None = None
    """Where checkpoints go: any URL that fsspec knows and the servers reach; None: into the output directory, where the
    cluster is an embedded one."""

    checkpoint_every: int | None = None
    """Versions from one checkpoint to the next."""

    checkpoint_s: float | None = None
    """Seconds from one to the next; None, without `checkpoint_every`: a minute, which is then the most that is lost."""

    checkpoint_keep: int = 2
    """So many stay: one more than is needed, should the newest be damaged."""

    def __post_init__(self) -> None:
        self._take_preset()
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str) and value < 1:
                raise ConfigError(f"{_flag(name)} must be at least 1, not {value}")
        for size in self.hidden:
            if size < 1:
                raise ConfigError(f"--hidden sizes must be at least 1, not {size}; leave out a layer instead")
        if self.tls_authority is not None and self.address is None:
            raise ConfigError("--tls-authority goes with --address: an embedded cluster has no TLS")
        if self.seed < 0:
            raise ConfigError(f"--seed must be at least 0, not {self.seed}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(
                f"--dropout is the share of hidden activations left out: at least 0 and below 1, not {self.dropout}"
            )
        if self.scale is not None and not (np.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"--scale is what features are divided by: above 0, not {self.scale}")
        if self.learning_rate is not None and not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"--learning-rate must be a number above 0, not {self.learning_rate}")
        _one_of("--loss", self.loss, LOSS_KINDS)
        _one_of("--activation", self.activation, ACTIVATIONS)
        _one_of("--optimizer", self.optimizer, sorted(optim.registered()))
        _one_of("--schedule", self.schedule, SCHEDULES)
        _one_of("--consistency", self.consistency, ("bsp", "quorum", "ssp", "asp"))
        _one_of("--pool", self.pool, ("spark", "processes", "inline"))
        self._check_mode()
        if self.bound is not None and self.consistency != "ssp":
            raise ConfigError(
                f"--bound {self.bound} goes with --consistency ssp, not with {self.consistency}, which has no bound: "
                "leave it out, or use ssp"
            )
        if self.bound is not None and self.bound < 0:
            raise ConfigError(f"--bound must be at least 0, not {self.bound}")
        if self.consistency == "quorum":
            if self.quorum is None:
                raise ConfigError(
                    f"--consistency quorum needs --quorum: 1 to {self.workers} gradients that close a round"
                )
        elif self.quorum is not None or self.grace_s or self.late != "drop":
            raise ConfigError(
                f"--quorum, --grace-s and --late go with --consistency quorum, not with {self.consistency}"
            )
        most = MOST_BSP_WORKERS if self.consistency in ROUNDS else MAX_WORKERS
        if self.workers > most:
            raise ConfigError(
                f"--workers can be at most {most} with --consistency {self.consistency}, not {self.workers}"
            )
        if self.model is not None:
            try:
                check_name(self.model)
            except ConfigError as error:
                raise ConfigError(f"--model {self.model!r:.200}: {error}") from None
        self.consistency_rule()
        self.compression_rule()
        self._check_rate()
        self.checkpoint_rule()
        if self.consistency in ROUNDS and self.batches_per_fetch != self.n_send:
            raise ConfigError(
                f"{self.consistency} computes every gradient on the newest version: --n-fetch must equal --n-send, not "
                f"{self.batches_per_fetch} and {self.n_send}; use --consistency ssp or asp for other rhythms"
            )

    @property
    def batches_per_fetch(self) -> int:
        return self.n_send if self.n_fetch is None else self.n_fetch

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        if self.learning_rate is not None:
            return self.learning_rate
        default = LEARNING_RATES.get(self.optimizer, _own_rate(self.optimizer))
        if default is None:
            raise ConfigError(f"--optimizer {self.optimizer} has no learning rate of its own: give --learning-rate")
        return default

    def rate_of(self, epoch: int) -> float:
        """The learning rate of an epoch; 0 is the first."""
        return self.rate * SCHEDULES[self.schedule](epoch / self.epochs)

    @property
    def kind(self) -> Kind:
        """What the labels are, by the loss."""
        return LOSS_KINDS[self.loss]

    def consistency_rule(self) -> Consistency:
        """The rule of consistency as the cluster takes it."""
        if self.consistency == "bsp":
            return Bsp(workers=self.workers)
        if self.consistency == "quorum":
            assert self.quorum is not None
            return Quorum(workers=self.workers, count=self.quorum, grace_s=self.grace_s, late=self.late)
        if self.consistency == "asp":
            return Asp()
        return Ssp(bound=DEFAULT_BOUND if self.bound is None else self.bound)

    def compression_rule(self) -> Compression | None:
        """The compression as the cluster takes it."""
        given = self.compression
        try:
            return from_config(given) if isinstance(given, Mapping) else as_compression(given)
        except ConfigError as error:
            raise ConfigError(f"--compression: {error}") from None

    def checkpoint_rule(self) -> Checkpoints:
        """When the cluster writes checkpoints, where it has a place for them."""
        every_s = self.checkpoint_s
        if every_s is None and self.checkpoint_every is None:
            every_s = DEFAULT_CHECKPOINT_S
        try:
            return Checkpoints(self.checkpoint_every, every_s, self.checkpoint_keep)
        except ConfigError as error:
            raise ConfigError(f"--checkpoint-every, --checkpoint-s, --checkpoint-keep: {error}") from None

    def optimizer_rule(self) -> optim.Optimizer:
        """The optimizer as the cluster takes it."""
        more = {} if self.delay_compensation is None else {"delay_compensation": self.delay_compensation}
        return optim.from_config({"name": self.optimizer, "learning_rate": self.rate, **more})

    def mode_settings(self) -> dict[str, Any]:
        """Those fields of `ModeSettings` that only this mode has a use for and that were given."""
        own = {
            "tau": self.tau,
            "combine": self.combine,
            "storage_url": self.storage_url,
            "host": self.driver_host,
            "parts": self.parts,
        }
        return {name: value for name, value in own.items() if value is not None}

    def _take_preset(self) -> None:
        """Fill in what was not given."""
        values = dict(PLAIN)
        if self.preset is not None:
            _one_of("--preset", self.preset, PRESETS)
            values |= PRESETS[self.preset]
        if self.consistency not in (None, values["consistency"]):
            values.pop("bound", None)  # it belongs to the rule that is not taken
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check_mode(self) -> None:
        for name, modes in MODES_OF.items():
            if getattr(self, name) is not None and self.mode not in modes:
                raise ConfigError(f"{_flag(name)} goes with --mode {' or '.join(modes)}, not with {self.mode}")
        if isinstance(self.group_size, str):
            if self.group_size != "auto":
                raise ConfigError(f"--group-size is a number of pushes or auto, not {self.group_size!r:.100}")
            if self.mode not in AUTOMATIC:
                raise ConfigError(f"--group-size auto goes with --mode {' or '.join(AUTOMATIC)}, not with {self.mode}")
        if self.combine is not None:
            _one_of("--combine", self.combine, ("mean", "best"))
        if self.parts and (self.consistency == "quorum" or self.shards is not None):
            raise ConfigError(
                "--parts goes with one part a server, without --shards, and not with --consistency quorum"
            )
        if self.prefetch and (self.consistency != "asp" or self.batches_per_fetch != self.n_send):
            raise ConfigError(
                "--prefetch goes with --consistency asp and as many --n-fetch as --n-send: it pulls once a push, and "
                "waits for nobody"
            )
        if self.prefetch and self.delay_compensation is not None:
            raise ConfigError(
                "--delay-compensation does not go with --prefetch: who pushes has not read the parameters"
            )
        if self.delay_compensation is not None and self.consistency == "bsp":
            raise ConfigError("--delay-compensation goes with --consistency quorum, ssp or asp: bsp has no delays")

    def _check_rate(self) -> None:
        rate = self.rate
        try:
            self.optimizer_rule()
        except ConfigError as error:
            raise ConfigError(f"--optimizer {self.optimizer} with --learning-rate {rate:g}: {error}") from None

    def to_json_values(self) -> dict[str, Any]:
        """All settings but the token."""
        compression = self.compression_rule()
        told = None if compression is None else compression.to_config()
        return {**{name: value for name, value in asdict(self).items() if name != "token"}, "compression": told}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _own_rate(optimizer: str) -> float | None:
    """The default learning rate of the optimizer's class, if it has one."""
    found = {field.name: field.default for field in fields(optim.registered()[optimizer])}.get("learning_rate")
    return float(found) if found is not None and found is not MISSING else None


def _one_of(flag: str, value: str, names: Any) -> None:
    if value not in names:
        raise ConfigError(f"{flag} must be one of {', '.join(names)}, not {value!r}")
