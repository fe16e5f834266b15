"""Run a command on the first of several emulated hosts: `python -m coproc.hosts.play HOSTS LINK [DELAY] -- COMMAND…`.

    python -m coproc.hosts.play 4 1gbit -- coprocessor …

The command has this process's standard streams, and `COPROC_HOSTS` in its environment, by which it finds the other
hosts (`coproc.hosts.base.Among.around`). The hosts are gone when it ends, or when this process does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from coproc.errors import CoprocError
from coproc.hosts.base import VARIABLE
from coproc.hosts.namespaces import Hosts
from coproc.pools.base import python_path

USAGE = "usage: python -m coproc.hosts.play HOSTS LINK [DELAY] -- COMMAND…"
_PR_SET_PDEATHSIG = 1


def play(count: int, link: str, delay: str | None, command: Sequence[str]) -> int:
    """The command's exit status, negative for a signal. SIGTERM and Ctrl-C are passed on to it.

    Raises:
        ConfigError, ServerError: as `Hosts`.
    """
    with Hosts(count, link, delay) as hosts:
        environment = {**os.environ, VARIABLE: hosts.among.to_json(), "PYTHONPATH": python_path()}
        full = [*hosts.among.hosts[0].prefix(), *command]
        with subprocess.Popen(full, env=environment, preexec_fn=_end_with_parent) as process:
            signal.signal(signal.SIGTERM, lambda *_: process.terminate())
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:  # the command has had it too: it ends by itself
                    continue


def _end_with_parent() -> None:
    """In the child, before the command: have the kernel kill it when this process, which has one thread, is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: Sequence[str]) -> int:
    """Run as told by the command line; the exit status."""
    own, dashes, command = list(arguments), "--", []
    if dashes in own:
        at = own.index(dashes)
        own, command = own[:at], own[at + 1 :]
    if len(own) not in (2, 3) or not own[0].isdigit() or not command:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        status = play(int(own[0]), own[1], own[2] if len(own) == 3 else None, command)
    except CoprocError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
