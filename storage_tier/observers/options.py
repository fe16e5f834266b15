"""How an observer is run, and what is shown of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from storage_tier.errors import InvalidRequest
from storage_tier.observers.base import OnFailure

State = Literal["starting", "running", "restarting", "quarantined", "detached"]

MAX_BATCH_COUNT = 256


@dataclass(frozen=True)
class ObserverOptions:
    """How an observer is run; each default has its reason. Limits are of one call, on the wall clock."""

    on_failure: OnFailure | None = None
    """What becomes of files while it does not work; None: what the observer itself says, as a rule 'open'."""
    start_limit_s: float = 60.0
    """Imports of large libraries on a busy host."""
    pre_commit_limit_s: float = 5.0
    """A writer waits: enough for a header, not for a pass over the data on a busy host."""
    resolve_limit_s: float = 30.0
    """A reader waits; it may have to copy a model."""
    post_commit_limit_s: float = 60.0
    """Nobody waits; it may read all files of its batch."""
    memory_bytes: int = 1 << 30
    """Of its own; maps of files of the tier do not count."""
    batch_count: int = 256
    """The most files of one `post_commit`."""
    queue_count: int = 4096
    """The most files that are queued in memory, some 1 KiB each."""
    restart_delays_s: tuple[float, ...] = (1.0, 4.0, 16.0)
    """After a failure, until the next start; after the last of them it stays quarantined."""

    def __post_init__(self) -> None:
        if self.on_failure not in (None, *get_args(OnFailure)):
            raise InvalidRequest(f"on_failure is 'open' or 'closed', and {self.on_failure!r:.40} was given")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            kinds = int if isinstance(least, int) else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value < math.inf:
                raise InvalidRequest(f"{name} is a number from {least:g} on, and {value!r:.40} was given")
        if self.batch_count > MAX_BATCH_COUNT:
            raise InvalidRequest(f"batch_count is {MAX_BATCH_COUNT} at most, and {self.batch_count} was given")
        delays = self.restart_delays_s
        if not isinstance(delays, tuple) or not all(isinstance(d, int | float) and 0 <= d < math.inf for d in delays):
            raise InvalidRequest(f"restart_delays_s is a list of seconds, and {delays!r:.80} was given")

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> ObserverOptions:
        """From a JSON object.

        Raises:
            InvalidRequest: an unknown name, or a value that cannot work.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise InvalidRequest(f"there is no option {unknown[0]!r:.60} of an observer: there are {', '.join(known)}")
        values = dict(given)
        if isinstance(values.get("restart_delays_s"), list):
            values["restart_delays_s"] = tuple(values["restart_delays_s"])
        return cls(**values)


_LEAST: dict[str, float] = {
    "start_limit_s": 0.01,
    "pre_commit_limit_s": 0.001,
    "resolve_limit_s": 0.001,
    "post_commit_limit_s": 0.001,
    "memory_bytes": 32 << 20,
    "batch_count": 1,
    "queue_count": 1,
}


@dataclass(frozen=True)
class AttachmentState:
    """What `status` shows of an attachment."""

    id: str
    directory: str
    name: str
    parameters: Mapping[str, Any]
    state: State
    hooks: tuple[str, ...]
    on_failure: OnFailure
    pid: int | None
    queued_count: int
    behind: bool
    """Whether there is more in the catalog than is queued."""
    cursor: int | None
    """All commits up to this sequence are acknowledged."""
    checked_count: int
    """Files that `pre_commit` has looked at."""
    vetoed_count: int
    delivered_count: int
    """Files that `post_commit` has acknowledged."""
    resolved_count: int
    missed_count: int
    """Files that it was not told of: more were committed than the queue holds, and nothing replays them."""
    failure_count: int
    failure: str
    """The last failure, as a sentence; '' when there was none."""
    traceback: str
    """Of the last failure; where there is none, what the process printed last."""
    output: str
    """The end of what its process has printed, its log included."""
