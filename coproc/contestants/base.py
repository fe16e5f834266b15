"""What a contestant of a comparison is that is no mode of the project.

One contestant is one file of this folder. Its module has

    NEEDS: tuple[str, ...]      # packages
    EXTRA: str                  # the extra, or extras, that bring them
    SUMMARY: str
    def check(point: Point) -> None                                     # raises ConfigError; starts nothing
    def run(point: Point, prepared: Prepared, tell: Tell) -> Run        # blocks

and is found by its file name.
"""

from __future__ import annotations

from typing import Any

from coproc.errors import ConfigError
from coproc.folder import module_beside, names_beside, not_installed
from coproc.trials.base import Point

# Files of this folder that several contestants are made of.
_PARTS = {"base", "work", "course"}

# Settings of a point that modes have; the others are those of any training.
_OF_MODES = (
    *("servers", "consistency", "bound", "quorum", "n_send", "prefetch", "group_size", "tau", "combine", "preset"),
    *("compression", "storage_url", "master", "hosts", "link", "delay", "emulate_compute", "slow_host"),
)


def names() -> list[str]:
    """Names of all contestants: the files of this folder that are one."""
    return names_beside(__file__, _PARTS)


def load(name: str) -> Any:
    """The module of the contestant `name`. None imports its packages before it runs.

    Raises:
        ConfigError: there is no such file.
    """
    return module_beside(__name__, "contestant", name, names())


def lacking(contestant: Any) -> str | None:
    """The sentence, with the install line, for a module whose packages are not installed here; None: they are."""
    missing = not_installed(contestant.NEEDS)
    if not missing:
        return None
    name = contestant.__name__.rpartition(".")[2]
    return f"the contestant {name!r} needs {' and '.join(missing)}: pip install 'coproc[{contestant.EXTRA}]'"


def require_packages(name: str) -> None:
    """Raises ConfigError, with the install line, where a contestant's packages are not installed here."""
    sentence = lacking(load(name))
    if sentence is not None:
        raise ConfigError(sentence)


def refuse(point: Point, *own: str) -> None:
    """Refuse settings that only modes have a use for; those in `own` the contestant has one for, or goes without.

    Raises:
        ConfigError: with all of them.
    """
    plain = Point(point.contestant)
    told = [
        f"{name} {getattr(point, name)}"
        for name in _OF_MODES
        if name not in own and getattr(point, name) != getattr(plain, name)
    ]
    if told:
        raise ConfigError(f"the contestant {point.contestant!r} has no use for {', '.join(told)}: leave it out")
