"""Several hosts on one machine: emulated ones, each with its own network and shared memory, and links that are shaped.

    with Hosts(4, "1gbit") as hosts:                        # namespaces.py: needs root and iproute2
        subprocess.run([*hosts.among.hosts[0].prefix(), "python", "program.py"])

A comparison starts a run by `command(point)`, which plays the hosts and runs it on the first of them; there, `Stage`
(stage.py) is what the run trains on: servers and workers on all hosts.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from coproc.errors import ConfigError

if TYPE_CHECKING:
    from coproc.trials.base import Point


def command(point: Point) -> list[str]:
    """What the program of a run is started by, so that it runs on the first of the point's hosts.

    Raises:
        ConfigError: the point names no link.
    """
    if point.hosts is None or point.link is None:
        raise ConfigError("a run on several hosts says how many, and by which links (--hosts 4 --link 1gbit)")
    delay = [] if point.delay is None else [point.delay]
    return [sys.executable, "-m", "coproc.hosts.play", str(point.hosts), point.link, *delay, "--"]
