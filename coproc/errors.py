"""Every error of coproc; each message is a sentence: what was expected, what was found, who, what to do.

CoprocError
 +-- ConfigError          a setting or argument that cannot work
 +-- DataError            rows that cannot be trained on
 |    +-- DataLost        they were in the tier, and are not any more
 +-- CorruptCheckpoint    a file that is no whole checkpoint
 +-- Unsupported          asked for what this version or this machine cannot do
 +-- ModelNotFound        no model of this name (or no longer)
 +-- ModelExists          the name is taken
 +-- PushRejected         a gradient that cannot be admitted: not finite, wrong shape, a step out of turn
 +-- LeaseExpired         the slots or the view of this attempt were taken back
 +-- WorkerLost           a synchronous round waits for a worker that is gone
 +-- Diverged             the loss is not finite any more
 +-- OutOfMemory          the tier's memory budget or the shared memory is used up
 +-- Timeout              something did not happen in the time given (also a TimeoutError)
 +-- Unreachable          no server answers
 +-- Unauthenticated      the token is missing or wrong
 +-- ServerError          a server failed in a way it did not foresee; its log has the traceback
"""

from __future__ import annotations

import operator


class CoprocError(Exception):
    """Root of all errors of this package."""


class ConfigError(CoprocError, ValueError):
    """A setting or argument that cannot work."""


class DataError(CoprocError, ValueError):
    """Rows that cannot be trained on."""


class DataLost(DataError):
    """Rows that were in the tier, and went with the memory of a host."""


class CorruptCheckpoint(CoprocError, ValueError):
    """A file that is no whole checkpoint: cut, altered, or something else."""


class Unsupported(CoprocError):
    """Asked for what this version or this machine cannot do."""


class ModelNotFound(CoprocError, LookupError):
    """No model of this name, or no longer."""


class ModelExists(CoprocError):
    """The name of the model is taken."""


class PushRejected(CoprocError, ValueError):
    """A gradient that cannot be admitted. It was not acknowledged; nothing changed."""


class LeaseExpired(CoprocError):
    """The slots of this attempt were taken back. What was acknowledged stays; join again to go on."""


class WorkerLost(CoprocError):
    """A synchronous round waits for a worker that is gone, longer than its patience."""


class Diverged(CoprocError):
    """The loss is not finite any more."""


class OutOfMemory(CoprocError, MemoryError):
    """The tier's memory budget or the shared memory is used up."""


class Timeout(CoprocError, TimeoutError):
    """Something did not happen in the time given."""


class Unreachable(CoprocError, ConnectionError):
    """No server answers at this address."""


class Unauthenticated(CoprocError, PermissionError):
    """The token is missing or wrong."""


class ServerError(CoprocError):
    """A server failed in a way it did not foresee; its log has the traceback."""


def whole(what: str, value: object, least: int, most: int) -> int:
    """`value`, if it is a whole number from `least` to `most`; a bool is none.

    Raises:
        ConfigError: with what was found.
    """
    if type(value) is int and least <= value <= most:  # nearly always, and some calls are made for each gradient
        return value
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        raise ConfigError(f"{what} must be a whole number from {least} to {most}, not {value!r:.100}")
    return number
