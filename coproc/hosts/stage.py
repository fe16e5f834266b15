"""What a run trains on that itself runs on the first of several emulated hosts: servers and workers on all of them.

    with Stage(workers=4, servers=4) as stage:
        config = TrainConfig(address=stage.address, token=stage.token, parts=True, pool="processes", workers=4)
        train(config, rows, pool=stage.pool)

Servers and workers are real processes, as on hosts of their own. They find each other by addresses only: nothing of one
host's memory is seen on another, which is looked at before anything starts.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from coproc.cluster import LocalServer
from coproc.errors import ConfigError, ServerError
from coproc.hosts.base import Among, moved
from coproc.pools.processes import ProcessPool
from coproc.tasks import WorkerReport, WorkerTask
from coproc.worker import never

_TIMEOUT_S = 20.0
CATALOG_NOTE = "The servers' catalog is an SQLite file that all hosts see, in place of a PostgreSQL of their network."


class Stage:
    """Servers on the first hosts, one each, and a pool of workers, of which worker w runs on host w % hosts.

    Starts at once; a context manager, at whose end all of it is gone. The processes end with this one, however it ends.

    Args:
        workers: slots of the pool.
        servers: at most one a host.
        among: the hosts; None: those that this process runs among.
        memory_bytes: budget of each server; None: most of its host's.

    Raises:
        ConfigError: more servers than hosts, or no hosts. ServerError: hosts share memory, or a server did not start.
    """

    def __init__(
        self, workers: int, servers: int = 1, *, among: Among | None = None, memory_bytes: int | None = None
    ) -> None:
        self.among = among or Among.around()
        hosts = self.among.hosts
        require_servers(servers, len(hosts))
        require_own_memory(self.among)
        self.token = secrets.token_hex(16)
        self.notes = [*self.among.notes, *([CATALOG_NOTE] if servers > 1 else [])]
        shared = Path(self.among.shared)
        environment = {**os.environ, "COPROC_TOKEN": self.token}
        with ExitStack() as stack:
            self._servers = [
                LocalServer(
                    Path(f"/dev/shm/coproc-host-{host.number}"),
                    environment,
                    memory_bytes,
                    shared / "catalog.sqlite",
                    host=host.address,
                    log=shared / f"server-{host.number}.log",
                    prefix=host.prefix(),
                )
                for host in hosts[:servers]
            ]
            for server in self._servers:
                stack.callback(server.kill)
                server.launch()
            for server in self._servers:
                server.await_ready()
            self.pool = Workers(workers, self.among)
            stack.callback(self.pool.close)
            self._stack = stack.pop_all()

    @property
    def address(self) -> str:
        """Of all servers."""
        return "coproc://" + ",".join(server.address for server in self._servers)

    def link(self) -> dict[str, dict[str, int]]:
        """Bytes that have come to and gone from each host since the first task began, with all headers.

        {"0": {"in_bytes", "out_bytes"}, …}: of everything, rows of the data and the driver's questions too. Nothing,
        where no task has begun.
        """
        before = self.pool.counted
        return {} if before is None else moved(before, self.among.counters())

    def close(self) -> None:
        """End servers and workers. Idempotent."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Workers(ProcessPool):
    """The pool of a stage: it looks at the links when its first task begins."""

    def __init__(self, slots: int, among: Among) -> None:
        super().__init__(slots, places=[host.prefix() for host in among.hosts])
        self._among = among
        self.counted: list[dict[str, int]] | None = None

    def run(self, tasks: Sequence[WorkerTask], *, stop: Callable[[], bool] = never) -> list[WorkerReport]:
        if self.counted is None:
            self.counted = self._among.counters()
        return super().run(tasks, stop=stop)


def require_servers(servers: int, hosts: int) -> None:
    """Raises ConfigError if there are more servers than hosts, or none."""
    if not 1 <= servers <= hosts:
        raise ConfigError(f"each server has a host of its own: 1 to {hosts} servers, not {servers}")


def require_own_memory(among: Among) -> None:
    """Raises ServerError if what one host has in /dev/shm is seen on another, or here."""
    name = f"/dev/shm/seen-{secrets.token_hex(8)}"
    for host in among.hosts:
        told = _shell(host.prefix(), f"ls {name}-* 2>/dev/null; : > {name}-{host.number}")
        if told:
            raise ServerError(
                f"emulated host {host.number} sees the shared memory of another one: {' '.join(told.split())}"
            )
    for host in among.hosts:
        _shell(host.prefix(), f"rm {name}-{host.number}")


def _shell(prefix: list[str], script: str) -> str:
    done = subprocess.run(
        [*prefix, "sh", "-c", script], capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise ServerError(f"nothing can be run on an emulated host: {done.stderr.strip()}")
    return done.stdout
