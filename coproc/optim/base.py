"""What an optimizer is, the words its sweep is written in, and the list of all optimizers.

An optimizer is one file of this folder with one frozen dataclass and one function, its *sweep*:

    @sweep
    def sweep_sgd(gradients, weights, constants, front, back, how):
        (params,), (next_params,) = front, back
        for line in range(lines(params, how)):
            p = get(params, line, how)
            for k in range(len(gradients)):
                (rate,) = constants[k]
                p = p - rate * weighted_sum(gradients[k], weights[k], line, how)
            put(next_params, line, p, how)

It reads the front (parameters, then the state rows), writes the back, and never anything else:

    gradients   tuple over updates of tuple over members of float32 (n,): ((g0, g1),) is one round of two
                members, ((g0,), (g1,)) are two updates, one after the other
    weights     the same nesting of float32: a member's share of its round
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
import importlib
import numbers
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from coproc.errors import ConfigError

Row = NDArray[np.float32]
"""float32 (n,), C-contiguous."""
Constants = tuple[np.float32, ...]

LINE_FLOATS = 16
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# Files of this folder that hold no optimizer.
_OTHER_FILES = {"base", "compiled"}


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


Kernel = TypeVar("Kernel", bound=Callable[..., None])
_sweeps: dict[str, Callable[..., None]] = {}
"""Name of a module -> its sweep."""


def sweep(function: Kernel) -> Kernel:
    """Mark the sweep of the optimizer in the same module. Compiles nothing, returns the function as it is."""
    if "." in function.__qualname__:
        raise TypeError(f"a sweep must be a function of its module, which {function.__qualname__} is not")
    _sweeps[function.__module__] = function
    return function


# ---- optimizers


@dataclass(frozen=True, kw_only=False)
class Optimizer(ABC):
    """An update rule with its settings: a value, compared and sent by its settings. Holds no state."""

    name: ClassVar[str]
    """As it is written in a model's description; the name of its file."""
    counts_updates: ClassVar[bool] = True
    """Whether `constants` depends on the number of the update. Where not, they are computed once."""

    learning_rate: float
    """Step size; 0 or more. A schedule changes it while the model lives."""

    def __post_init__(self) -> None:
        self._number("learning_rate", least=0.0)

    @property
    def state_rows(self) -> tuple[str, ...]:
        """Names of the float32 (n,) rows it keeps beside the parameters; they start at 0."""
        return ()

    @abstractmethod
    def constants(self, step: int, learning_rate: float) -> Constants:
        """The numbers that the sweep needs for one update; computed in float64, rounded once.

        Args:
            step: 1 for the first update of the model, 2 for the second: bias corrections count with it.
            learning_rate: the one in force now, not the one at creation.
        """

    def with_learning_rate(self, learning_rate: float) -> Self:
        """The same optimizer with another learning rate."""
        return dataclasses.replace(self, learning_rate=learning_rate)

    def kernel(self) -> Callable[..., None]:
        """The sweep of this optimizer, not compiled."""
        module = type(self).__module__
        if module not in _sweeps:
            raise TypeError(f"{module} defines {type(self).__name__} but no function marked with @sweep")
        return _sweeps[module]

    def to_config(self) -> dict[str, Any]:
        """Its name and settings, as JSON values."""
        return {"name": self.name, **dataclasses.asdict(self)}

    def _number(self, field: str, *, least: float, below: float | None = None, more_than: bool = False) -> None:
        """Check a setting and make it a float: finite, at least (or more than) `least`, less than `below`."""
        value: Any = getattr(self, field)
        wanted = f"a number {'greater than' if more_than else 'of at least'} {least:g}"
        wanted += f" and less than {below:g}" if below is not None else " that float32 can hold"
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ConfigError(f"{field} of {type(self).__name__} must be {wanted}, not {value!r}")
        value = float(value)
        low_enough = value < below if below is not None else value <= _FLOAT32_MAX
        if not low_enough or not (value > least if more_than else value >= least):
            raise ConfigError(f"{field} of {type(self).__name__} must be {wanted}, not {value!r}")
        object.__setattr__(self, field, value)

    def _flag(self, field: str) -> None:
        value = getattr(self, field)
        if not isinstance(value, bool):
            raise ConfigError(f"{field} of {type(self).__name__} must be True or False, not {value!r}")


def as_constants(*values: float) -> Constants:
    """Round each to float32."""
    return tuple([np.float32(value) for value in values])


@functools.cache
def registered() -> Mapping[str, type[Optimizer]]:
    """Name -> class of every optimizer: one in each file of this folder."""
    found: dict[str, type[Optimizer]] = {}
    package = __name__.rpartition(".")[0]
    for entry in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if entry.name in _OTHER_FILES:
            continue
        module = importlib.import_module(f"{package}.{entry.name}")
        classes = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Optimizer) and value.__module__ == module.__name__
        ]
        if len(classes) != 1 or classes[0].name != entry.name:
            raise TypeError(
                f"{module.__file__} must define one Optimizer whose name is {entry.name!r}, "
                f"and defines {[(c.__name__, getattr(c, 'name', None)) for c in classes]}"
            )
        found[entry.name] = classes[0]
    return found


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
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in settings]
    if missing:
        raise ConfigError(f"optimizer {name} needs {', '.join(missing)}, which its description lacks")
    return kinds[name](**settings)


def sources() -> list[Path]:
    """The files whose text decides what a compiled sweep does: this folder's, and those of loaded sweeps."""
    files = {*Path(__file__).parent.glob("*.py")}
    files.update(Path(path) for name in _sweeps if (path := sys.modules[name].__file__))
    return sorted(files)
