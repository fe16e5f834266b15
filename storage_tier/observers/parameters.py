"""Reading an observer's parameters: each has a name, a check and a sentence; an unknown name is an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from storage_tier.errors import InvalidRequest


class Parameters:
    """The parameters given to one observer; `take` each of them, then `done`."""

    def __init__(self, observer: str, given: Mapping[str, Any]) -> None:
        self._observer = observer
        self._given = dict(given)
        self._known: list[str] = []

    def take(self, name: str, default: Any, check: Callable[[Any], bool], wanted: str) -> Any:
        """One parameter, or its default.

        Raises:
            InvalidRequest: `check` refuses it; `wanted` completes 'it is '.
        """
        self._known.append(name)
        if name not in self._given:
            return default
        value = self._given.pop(name)
        if not check(value):
            # As it was typed, which parameters mostly are.
            text = value if isinstance(value, str) else json.dumps(value)
            raise InvalidRequest(f"{name} of {self._observer} is {wanted}, and {name}={text:.80} was given")
        return value

    def done(self) -> None:
        """All that are known were taken.

        Raises:
            InvalidRequest: another was given.
        """
        for name in self._given:
            raise InvalidRequest(f"{self._observer} has no parameter {name!r:.60}: it has {', '.join(self._known)}")


def is_text(value: Any) -> bool:
    """A string with something in it."""
    return isinstance(value, str) and bool(value)


def is_count(value: Any) -> bool:
    """1, 2, 3, ..."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
