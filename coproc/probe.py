"""Named points before and after each durable act, where a test may kill the process.

Outside tests nothing is armed and `hit` costs one comparison. A test arms a point through the environment of
the process it starts: ``COPROC_FAILPOINT="log.append.after:3"`` kills with SIGKILL at the third hit.
"""

from __future__ import annotations

import os
import signal

POINTS = frozenset(
    {
        "log.append.before",
        "log.append.after",
        "push.commit.before",
        "push.commit.after",
        "push.claim.before",
        "sweep.before",
        "sweep.middle",
        "publish.before",
        "publish.after",
        "release.before",
        "release.after",
    }
)


class _Armed:
    def __init__(self, name: str, hits_left: int) -> None:
        self.name = name
        self.hits_left = hits_left


def _read(text: str | None) -> _Armed | None:
    if not text:
        return None
    name, _, count = text.partition(":")
    if name not in POINTS:
        raise ValueError(f"COPROC_FAILPOINT names {name!r}; the points are {sorted(POINTS)}")
    return _Armed(name, int(count or 1))


_armed = _read(os.environ.get("COPROC_FAILPOINT"))


def hit(name: str) -> None:
    """Die here with SIGKILL if a test has armed this point and its count is reached; else do nothing."""
    if _armed is not None and _armed.name == name:
        _armed.hits_left -= 1
        if _armed.hits_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def armed() -> bool:
    """Whether a test has armed any point in this process."""
    return _armed is not None
