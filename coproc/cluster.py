"""An embedded cluster: real server processes on this host, owned by this process and gone with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from coproc.errors import ConfigError, CoprocError, OutOfMemory, Timeout

_PREFIX = f"coproc-local-{os.getuid()}-"
_SHARED_MEMORY = Path("/dev/shm")
# Starting an interpreter and importing the compiler takes half a second on an idle machine, seconds on a busy one.
_START_TIMEOUT_S = 60.0
# A directory without an owner for this long is not being made any more.
_MAKING_S = 60.0


class LocalServer:
    """One server process of a `LocalCluster`."""

    def __init__(
        self,
        directory: Path,
        environment: dict[str, str],
        memory_bytes: int | None,
        catalog: Path,
        *,
        host: str = "127.0.0.1",
        log: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Starts nothing.

        Args:
            host: the address that it serves at.
            log: a file; None: beside its directory.
            prefix: what its process is started by, to run somewhere else.
        """
        self._directory = directory
        self._catalog = catalog
        self._host = host
        self._prefix = prefix
        self.environment = environment
        """Variables of the process; a change counts from the next restart on."""
        self._memory_bytes = memory_bytes
        self._log = log or directory.with_name(directory.name + ".log")
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    @property
    def pid(self) -> int:
        """Process number of the running server.

        Raises:
            CoprocError: it is not running.
        """
        if self._process is None:
            raise CoprocError("this server is not running; restart() starts it")
        return self._process.pid

    @property
    def address(self) -> str:
        """HOST:PORT; the same after a restart."""
        return f"{self._host}:{self.port}"

    def launch(self) -> None:
        """Start its process; `await_ready` must follow."""
        command = [
            *self._prefix, sys.executable, "-m", "coproc.server.main", "--dir", str(self._directory),
            "--host", self._host, "--port", str(self.port),
            "--parent-pid", str(os.getpid()), "--catalog", str(self._catalog),
        ]  # fmt: skip
        if self._memory_bytes is not None:
            command += ["--memory-bytes", str(self._memory_bytes)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment,
                # Ctrl-C is for the parent, which then ends its servers.
                start_new_session=True,
            )

    def await_ready(self) -> None:
        """Wait until it serves.

        Raises:
            OutOfMemory, Timeout, CoprocError: it does not; with the end of its log.
        """
        process = self._process
        assert process is not None
        assert process.stdout is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        line = ""
        while not line.startswith("ready "):
            left_s = deadline - time.monotonic()
            readable, _, _ = select.select([process.stdout], [], [], max(0.0, left_s))
            if not readable:
                self.kill()
                raise Timeout(
                    f"a server did not start in {_START_TIMEOUT_S:g} s; the end of its log: {self._log_end()}"
                )
            line = process.stdout.readline()
            if not line:
                process.wait(timeout=10)
                self._forget()
                said = self._log_end()
                raise (OutOfMemory if "memory" in said else CoprocError)(f"a server could not start: {said}")
        self.port = int(line.rsplit(":", 1)[1])

    def _log_end(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return lines[-1].removeprefix("error: ") if lines else "(it is empty)"

    def wait(self, timeout_s: float) -> int:
        """Wait until the process ends by itself; its exit status, negative for a signal.

        Raises:
            Timeout: it goes on.
        """
        if self._process is None:
            raise CoprocError("this server is not running; restart() starts it")
        try:
            status = self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise Timeout(f"server {self.address} still runs after {timeout_s:g} s") from None
        self._forget()
        return status

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Its memory stays. Nothing if it isn't running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._forget()

    def restart(self) -> None:
        """Start it again on the same port and memory, stopping it first if it runs; returns when it serves."""
        self.stop()
        self.launch()
        self.await_ready()

    def stop(self, timeout_s: float = 30.0) -> None:
        """SIGTERM, and wait until it is gone; SIGKILL if that takes too long. Its memory stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=30)
            self._forget()

    def _forget(self) -> None:
        assert self._process is not None
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None


class LocalCluster:
    """`servers` real server processes on this host, on free loopback ports. Starts at once; a context manager.

    The servers end when this process ends, however it ends, and their memory is given back; what a machine-wide
    kill left behind is removed by the next `LocalCluster` of the same user.

    Args:
        servers: how many processes.
        memory_bytes: budget of each; by default 0.8 of what is free in /dev/shm, divided by their number.
        token: what clients must show; None asks for none (only this host can reach them).
        directory: where to put the servers' memory; by default a new directory in /dev/shm.
        environment: variables to add to the servers' environment.

    Raises:
        OutOfMemory: /dev/shm is too small; the sentence has the sizes and the fix.
    """

    def __init__(
        self,
        servers: int = 1,
        *,
        memory_bytes: int | None = None,
        token: str | None = None,
        directory: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        if not 1 <= servers <= 64:
            raise ConfigError(f"a local cluster has 1 to 64 servers, not {servers}")
        remove_abandoned()
        parent = directory or _SHARED_MEMORY
        self._directory = parent / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._directory.mkdir(mode=0o700, parents=True)
        self._owner = own(self._directory)
        self.token = token
        variables = {**os.environ, **(environment or {})}
        variables.pop("COPROC_TOKEN", None)
        if token is not None:
            variables["COPROC_TOKEN"] = token
        if memory_bytes is None and servers > 1:
            room = os.statvfs(self._directory)
            memory_bytes = int(0.8 * room.f_bavail * room.f_frsize / servers)
        # One namespace: any server answers for any path.
        catalog = self._directory / "catalog.sqlite"
        self.servers = [
            LocalServer(self._directory / f"server-{n}", dict(variables), memory_bytes, catalog) for n in range(servers)
        ]
        try:
            for server in self.servers:
                server.launch()
            for server in self.servers:
                server.await_ready()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """What `connect` takes: all servers."""
        return "coproc://" + ",".join(server.address for server in self.servers)

    def close(self) -> None:
        """Stop the servers and give their memory back. Idempotent."""
        for server in self.servers:
            server.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def own(directory: Path) -> int:
    """Mark a new directory as this process's; it is until the returned descriptor is closed, if only by a kill."""
    owner = os.open(directory / "owner.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(owner, fcntl.LOCK_EX)
    # It appears under its name only when it is locked, or another process's clean-up could get in between.
    (directory / "owner.new").rename(directory / "owner")
    return owner


def remove_abandoned(parent: Path = _SHARED_MEMORY, prefix: str = _PREFIX) -> None:
    """Remove the directories `prefix`* in `parent` whose owner (see `own`) is gone: killed before it removed them.

    By default the memory of this user's local clusters. What cannot be removed is left.
    """
    for directory in parent.glob(f"{prefix}*"):
        try:
            owner = os.open(directory / "owner", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            # Being made at this moment, or removed: made ones have it within microseconds.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - directory.stat().st_mtime >= _MAKING_S:
                    shutil.rmtree(directory, ignore_errors=True)
            continue
        except OSError:  # another user's, or something else of this name
            continue
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(owner)
