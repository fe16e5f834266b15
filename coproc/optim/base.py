"""What an optimizer is, the words its sweep is written in, and the list of all optimizers.

An optimizer is one file of this folder with one frozen dataclass and one function, its *sweep*:

    @sweep
    def sweep_sgd(gradients, weights, constants, front, back, how):
        (params,), (next_params,) = front, back
        for line in range(lines(params, how)):
            p = get(params, line, how)
            for k in range(len(gradients)):
                (rate,) = constants[k]
                p = p - rate * gradient(gradients[k], weights[k], p, line, how)
            put(next_params, line, p, how)

It reads the front (parameters, then the state rows), writes the back, and never anything else:

    gradients   tuple over updates of tuple over members of float32 (n,): ((g0, g1),) is one round of two
                members, ((g0,), (g1,)) are two updates, one after the other. Of an optimizer that compensates
                delays each member has two rows, ((g0, g1, b0, b1),): the bases are the parameters that the
                gradients were computed on
    weights     tuple over updates of what `Optimizer.weights` gives: the members' shares of their round, what
                becomes of their sum, and how much each is compensated
    constants   tuple over updates of what `Optimizer.constants` gives
    front       (params, *state), float32 (n,) each
    back        the same, other buffers; or the front itself: then the sweep is in place
    how         handed on to these words

A line is sixteen floats, so the state stays in registers for all updates. Arithmetic is + - * /, `np.sqrt`
and `clip`, all of it in float32: a number that is not among the constants (a literal) would be float64 and
is refused when the sweep is compiled. Run without compiling, a sweep is plain numpy and gives the same bits.
An ``if`` may ask for ``len(front)`` only: that is decided when the sweep is compiled.

This module imports no numba: optimizers are named by clients, and compiled by servers (see `compiled`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from coproc import schedules
from coproc.errors import ConfigError
from coproc.folder import one_in_each_file
from coproc.schedules import Schedule

Row = NDArray[np.float32]
"""float32 (n,), C-contiguous."""
Constants = tuple[np.float32, ...]
Weights = Any
"""(share, ...) of the members of an update; or ((share, ...), limit, decay): their sum is clipped to -limit ... limit,
then decay * parameters are added; or ((share, ...), limit, decay, (delay, ...)): before they are summed, each gradient
is compensated by delay * (parameters - base) * gradient^2."""

LINE_FLOATS = 16
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# Files of this folder that hold no optimizer.
_OTHER_FILES = {"base", "compiled", "norms"}


# ---- the words of a sweep; `compiled` gives them their meaning in compiled code


def lines(row: Row, how: int | None) -> int:
    """How many lines a row has; the last may be short. If `how` is an int, how many whole lines."""
    return -(-row.size // LINE_FLOATS) if how is None else row.size // LINE_FLOATS


def get(row: Row, line: int, how: int | None) -> Row:
    """A line of a row, by value."""
    return row[line * LINE_FLOATS : (line + 1) * LINE_FLOATS].copy()


def put(row: Row, line: int, value: Row, how: int | None) -> None:
    """Store a line. Compiled: plainly if `how` is None; past the caches if it is an int."""
    row[line * LINE_FLOATS : (line + 1) * LINE_FLOATS] = value


def weighted_sum(rows: tuple[Row, ...], weights: Constants, line: int, how: int | None) -> Row:
    """``weights[0] * rows[0] + weights[1] * rows[1] + ...`` of a line, summed from left to right."""
    total = weights[0] * get(rows[0], line, how)
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total = total + weight * get(row, line, how)
    return total


def clip(value: Row, limit: np.float32) -> Row:
    """The nearest in -limit to limit, lane by lane; what is not a number stays so."""
    value = np.where(value < -limit, -limit, value)
    return np.where(value > limit, limit, value)


def compensated_sum(
    rows: tuple[Row, ...],
    bases: tuple[Row, ...],
    shares: Constants,
    delays: Constants,
    params: Row,
    line: int,
    how: int | None,
) -> Row:
    """``shares[0] * (rows[0] + delays[0] * (params - bases[0]) * rows[0] * rows[0]) + ...`` of a line, likewise.

    From left to right, so that a difference of 0 gives 0 however large the gradient is.
    """
    total: Row | None = None
    for row, base, share, delay in zip(rows, bases, shares, delays, strict=True):
        g = get(row, line, how)
        term = share * (g + delay * (params - get(base, line, how)) * g * g)
        total = term if total is None else total + term
    assert total is not None
    return total


def summed(rows: tuple[Row, ...], weights: Weights, params: Row, line: int, how: int | None) -> Row:
    """The members of an update, a line of them, at the line `params` of parameters: each compensated, then summed."""
    shares, _, delays = split(weights)
    if not delays:
        return weighted_sum(rows, shares, line, how)
    return compensated_sum(rows[: len(shares)], rows[len(shares) :], shares, delays, params, line, how)


def gradient(rows: tuple[Row, ...], weights: Weights, params: Row, line: int, how: int | None) -> Row:
    """The gradient of an update, a line of it, at the line `params` of parameters: summed, clipped, with its decay."""
    total = summed(rows, weights, params, line, how)
    _, shape, _ = split(weights)
    if not shape:
        return total
    limit, decay = shape
    return clip(total, limit) + decay * params


def split(weights: Weights) -> tuple[Constants, Constants, Constants]:
    """The shares of the members; (limit, decay) where there are such, or (); the members' delays, or ()."""
    if isinstance(weights[0], tuple):
        shares, limit, decay, *rest = weights
        return shares, (limit, decay), rest[0] if rest else ()
    return weights, (), ()


def collect(sums: NDArray[np.float64], row: int, value: Row) -> None:
    """Add the squares of a line's lanes to those of a row of `sums` (rows, 16): a word of functions that measure.

    In float64, so that where a range is cut changes no more than the last bit of a sum.
    """
    sums[row, : value.size] += value.astype(np.float64) ** 2


Kernel = TypeVar("Kernel", bound=Callable[..., None])
_sweeps: dict[str, Callable[..., None]] = {}
"""Name of a module -> its sweep."""


def sweep(function: Kernel) -> Kernel:
    """Mark the sweep of the optimizer in the same module. Compiles nothing, returns the function as it is."""
    if "." in function.__qualname__:
        raise TypeError(f"a sweep must be a function of its module, which {function.__qualname__} is not")
    _sweeps[function.__module__] = function
    return function


_measures: dict[str, Callable[..., None]] = {}


def measure(function: Kernel) -> Kernel:
    """Mark what measures for the `Layerwise` optimizer in the same module: as a sweep that collects and puts nothing.

    Called as ``(gradients, weights, constants, front, sums, None)`` with one update, of one tensor or a part of it.
    """
    _measures[function.__module__] = function
    return function


# ---- optimizers


@dataclass(frozen=True)
class Optimizer(ABC):
    """An update rule with its settings: a value, compared and sent by its settings. Holds no state."""

    name: ClassVar[str]
    """As it is written in a model's description; the name of its file."""
    counts_updates: ClassVar[bool] = True
    """Whether `constants` depends on the number of the update. Where not, they are computed once."""

    # Their sweeps have a decay of their own, beside the gradient.
    decouples_decay: ClassVar[bool] = False

    learning_rate: float | Schedule
    """Step size, 0 or more; or its course (`coproc.schedules`)."""

    weight_decay: float = field(default=0.0, kw_only=True)
    """Times the parameters, it is added to the gradient: a penalty on the square of their norm."""
    clip_value: float | None = field(default=None, kw_only=True)
    """Each element of a gradient is brought into -clip_value ... clip_value."""
    clip_norm: float | None = field(default=None, kw_only=True)
    """A gradient whose Euclidean norm, over all of the model, is larger is scaled down to this norm (Pascanu et al.,
    "On the difficulty of training recurrent neural networks", 2013)."""
    staleness: Literal["ignore", "inverse"] = field(default="ignore", kw_only=True)
    """"inverse": the rate of an update is divided by how many versions old the parameters of its gradient were (Zhang
    et al., "Staleness-aware async-SGD", 2016). Of a round, by the mean of its members."""
    delay_compensation: float = field(default=0.0, kw_only=True)
    """Times (p - b) * g * g it is added to a gradient g that was computed on parameters b and is descended onto p: to
    first order the gradient at p, with g * g in place of the Hessian's diagonal (Zheng et al., "Asynchronous Stochastic
    Gradient Descent with Delay Compensation", ICML 2017: lambda of its DC-ASGD-c). Before anything else is done with
    the gradient: of a round, with each of its members; its norm and its clipping are of what comes out.

    b is what its worker has pulled last, kept in the second half of its slot: slots are twice as large, and a pull is
    always a copy. With a compression it is what came out at the worker. A gradient of a worker that has pulled nothing
    is taken as it is; so is one of a worker on another host that has not pulled since it lost its lease (because its
    server was restarted, or because it was silent for long)."""

    def __post_init__(self) -> None:
        if not isinstance(self.learning_rate, Schedule):
            self._number("learning_rate", least=0.0)
        self._number("weight_decay", least=0.0)
        self._number("delay_compensation", least=0.0)
        for name in ("clip_value", "clip_norm"):
            if getattr(self, name) is not None:
                self._number(name, least=0.0, more_than=True)
        if self.staleness not in ("ignore", "inverse"):
            raise ConfigError(
                f'staleness of {type(self).__name__} must be "ignore" or "inverse", not {self.staleness!r}'
            )

    @property
    def base_rate(self) -> float:
        """The learning rate at creation, without its course."""
        rate = self.learning_rate
        return rate.base if isinstance(rate, Schedule) else rate

    def rate_at(self, update: int, base_rate: float) -> float:
        """The learning rate of update 1, 2, 3, ... where `base_rate` is in force."""
        rate = self.learning_rate
        return base_rate * rate.factor(update) if isinstance(rate, Schedule) else base_rate

    @property
    def varies(self) -> bool:
        """Whether constants differ from update to update at the same base rate."""
        return self.counts_updates or isinstance(self.learning_rate, Schedule)

    @property
    def is_plain(self) -> bool:
        """Whether an update needs nothing but its constants and its members' shares."""
        decays = self.weight_decay != 0 and not self.decouples_decay
        by_age = self.staleness != "ignore" or self.compensates
        return not decays and self.clip_value is None and self.clip_norm is None and not by_age

    @property
    def compensates(self) -> bool:
        """Whether each member of an update has a second row: its base."""
        return self.delay_compensation != 0

    def combined(self, shares: Sequence[float], losses: Sequence[float]) -> Sequence[float]:
        """The shares of an update's members by their examples, and what each told of its loss (NaN: nothing) -> shares.

        As they are; another rule of combining is an optimizer that overrides this.
        """
        return shares

    def weights(
        self, shares: Sequence[float | np.float32], scale: float = 1.0, based: Sequence[bool] | None = None
    ) -> Weights:
        """What the sweep needs of one update's members besides their gradients.

        Args:
            shares: each member's share of the update; they add up to 1.
            scale: what clipping by the norm multiplies the gradient by.
            based: where delays are compensated, whether each member's base is known. By default all are.
        """
        rounded = tuple([np.float32(share * scale) for share in shares])
        decay = 0.0 if self.decouples_decay else self.weight_decay
        if decay == 0 and self.clip_value is None and not self.compensates:
            return rounded
        shaped = rounded, np.float32(math.inf if self.clip_value is None else self.clip_value), np.float32(decay)
        if not self.compensates:
            return shaped
        known = [True] * len(rounded) if based is None else based
        return *shaped, as_constants(*[self.delay_compensation * each for each in known])

    @property
    def state_rows(self) -> tuple[str, ...]:
        """Names of the float32 (n,) rows it keeps beside the parameters; they start at 0."""
        return ()

    @abstractmethod
    def constants(self, step: int, learning_rate: float) -> Constants:
        """The numbers that the sweep needs for one update; computed in float64, rounded once.

        Args:
            step: 1 for the first update of the model, 2 for the second: bias corrections count with it.
            learning_rate: of this update, not the one at creation.
        """

    def with_learning_rate(self, learning_rate: float) -> Self:
        """The same optimizer with another learning rate; a schedule keeps its course."""
        rate = self.learning_rate
        again = rate.with_learning_rate(learning_rate) if isinstance(rate, Schedule) else learning_rate
        return dataclasses.replace(self, learning_rate=again)

    def kernel(self) -> Callable[..., None]:
        """The sweep of this optimizer, not compiled."""
        module = type(self).__module__
        if module not in _sweeps:
            raise TypeError(f"{module} defines {type(self).__name__} but no function marked with @sweep")
        return _sweeps[module]

    def to_config(self) -> dict[str, Any]:
        """Its name and settings, as JSON values. What is common to all optimizers only where it is set."""
        common = {entry.name: entry.default for entry in dataclasses.fields(Optimizer) if entry.kw_only}
        config: dict[str, Any] = {"name": self.name}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if not (entry.default == common.get(entry.name, dataclasses.MISSING) == value):
                config[entry.name] = value.to_config() if isinstance(value, Schedule) else value
        return config

    def _number(self, name: str, *, least: float, below: float | None = None, more_than: bool = False) -> None:
        """Check a setting and make it a float: finite, at least (or more than) `least`, less than `below`."""
        value: Any = getattr(self, name)
        wanted = f"a number {'greater than' if more_than else 'of at least'} {least:g}"
        wanted += f" and less than {below:g}" if below is not None else " that float32 can hold"
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ConfigError(f"{name} of {type(self).__name__} must be {wanted}, not {value!r}")
        value = float(value)
        low_enough = value < below if below is not None else value <= _FLOAT32_MAX
        if not low_enough or not (value > least if more_than else value >= least):
            raise ConfigError(f"{name} of {type(self).__name__} must be {wanted}, not {value!r}")
        object.__setattr__(self, name, value)

    def _flag(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, bool):
            raise ConfigError(f"{name} of {type(self).__name__} must be True or False, not {value!r}")


class Layerwise(Optimizer):
    """Base of those whose step in a tensor depends on two norms over all of that tensor, wherever its parts lie."""

    @abstractmethod
    def layer_constants(self, step: int, learning_rate: float, norms: tuple[float, float], vector: bool) -> Constants:
        """As `constants`, for one tensor.

        Args:
            step, learning_rate: as there.
            norms: square roots of what was collected over the tensor: of the parameters, and of the second row.
            vector: it has one dimension: a bias, or a scale.
        """

    def constants(self, step: int, learning_rate: float) -> Constants:
        """Of a tensor whose norms are equal; for `measure`, which needs those that no norm goes into."""
        return self.layer_constants(step, learning_rate, (1.0, 1.0), False)

    def measures(self) -> Callable[..., None]:
        """The function that collects, not compiled."""
        module = type(self).__module__
        if module not in _measures:
            raise TypeError(f"{module} defines {type(self).__name__} but no function marked with @measure")
        return _measures[module]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_norm is not None:
            raise ConfigError(f"{type(self).__name__} goes by norms of layers already: clip_norm is for the others")


def as_constants(*values: float) -> Constants:
    """Round each to float32."""
    return tuple([np.float32(value) for value in values])


@functools.cache
def registered() -> Mapping[str, type[Optimizer]]:
    """Name -> class of every optimizer: one in each file of this folder."""
    return one_in_each_file(Optimizer, _OTHER_FILES)  # type: ignore[type-abstract]  # only its subclasses are made


def from_config(config: Mapping[str, Any]) -> Optimizer:
    """The optimizer that `to_config` described. Only looks names up in `registered`; executes nothing.

    Raises:
        ConfigError: an unknown optimizer, an unknown or missing setting, a value out of range.
    """
    settings = dict(config)
    name = settings.pop("name", None)
    kinds = registered()
    if not isinstance(name, str) or name not in kinds:
        raise ConfigError(f"no optimizer is called {name!r}; there are {', '.join(sorted(kinds))}")
    fields = dataclasses.fields(kinds[name])
    unknown = sorted(str(key) for key in settings if key not in {field.name for field in fields})
    if unknown:
        known = ", ".join(field.name for field in fields)
        raise ConfigError(f"optimizer {name} has no setting {', '.join(unknown)}; it has {known}")
    if isinstance(settings.get("learning_rate"), Mapping):
        settings["learning_rate"] = schedules.from_config(settings["learning_rate"])
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in settings]
    if missing:
        raise ConfigError(f"optimizer {name} needs {', '.join(missing)}, which its description lacks")
    return kinds[name](**settings)


def sources() -> list[Path]:
    """The files whose text decides what a compiled sweep does: this folder's, and those of loaded sweeps."""
    files = {*Path(__file__).parent.glob("*.py")}
    files.update(Path(path) for name in _sweeps if (path := sys.modules[name].__file__))
    return sorted(files)
