"""Emulated hosts: namespaces, each with its own network, /dev/shm and folder for temporary files, around one switch.

Nothing of it is outside: the switch has a namespace of its own too. Each namespace lives as long as a process that
holds it, which ends when its standard input does, and the kernel sees to that however the process ends that started it.
With the last of its processes a namespace goes, and with it its links and its memory. So nothing has to be cleaned up
after a kill, but the shared folder, which the next one removes.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from coproc.cluster import own, remove_abandoned
from coproc.errors import ConfigError, ServerError
from coproc.hosts.base import DEVICE, Among, Host
from coproc.hosts.links import NO_NETEM, TIMEOUT_S, has_netem, require_tools, shaped
from coproc.trials.rates import delay_of, rate_of

PREFIX = "coproc-hosts-"
MOST = 64
_BRIDGE = "switch"
# What of this machine's memory the hosts may take together.
_MEMORY_SHARE = 0.8

# Mounts made here are seen nowhere else. The folder for temporary files lies in what has just been mounted.
_HOLD = """
mount --make-rprivate / && mount -t tmpfs -o size={size},mode=1777 tmpfs /dev/shm && mkdir -m 1777 {temporary} &&
ip link set lo up && echo up && exec cat
"""
_SWITCH = f"ip link add {_BRIDGE} type bridge forward_delay 0 && ip link set {_BRIDGE} up && echo up && exec cat"


class Hosts:
    """Emulated hosts, up when this is made; a context manager, at whose end they are gone.

    Args:
        count: how many; 1 to 64.
        link: the rate of each host's link, each way: "1gbit".
        delay: from one host to another, one way: "0.2ms"; None: none. Needs a kernel with netem; where it has none,
            `among.notes` says so.

    Raises:
        ConfigError: a number, a rate or a delay that cannot be; no root; programs that are missing.
        ServerError: the kernel refused something, in its words.
    """

    def __init__(self, count: int, link: str, delay: str | None = None) -> None:
        require_hosts(count)
        bytes_per_s, delay_s = rate_of(link), delay_of(delay) if delay is not None else 0.0
        require_tools()
        notes = [f"{count} hosts are emulated on one machine, each way of each link with {link}."]
        if delay_s and has_netem():
            notes.append(f"A packet takes {delay} from one host to another.")
        elif delay_s:
            notes.append(NO_NETEM)
            delay_s = 0.0
        self._holders: list[subprocess.Popen[str]] = []
        with ExitStack() as made:
            made.callback(self.close)
            parent = Path(tempfile.gettempdir())
            remove_abandoned(parent, PREFIX)
            self._shared = parent / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
            self._shared.mkdir(mode=0o700)
            self._owner = own(self._shared)
            self.among = Among(self._made(count, bytes_per_s, delay_s), str(self._shared), tuple(notes))
            made.pop_all()

    def _made(self, count: int, bytes_per_s: float, delay_s: float) -> tuple[Host, ...]:
        switch = self._hold(_SWITCH, "--net")
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        size = int(_MEMORY_SHARE * memory_bytes / count)
        hosts = []
        for number in range(count):
            temporary = f"/dev/shm/temporary-{number}"
            holder = self._hold(_HOLD.format(size=size, temporary=temporary), "--net", "--mount")
            hosts.append(Host(number, f"10.77.{number // 250}.{number % 250 + 1}", holder, temporary))
        links = []
        for host in hosts:
            links += [
                f"link add port{host.number} type veth peer name {DEVICE} netns {host.holder}",
                f"link set port{host.number} master {_BRIDGE} up",
            ]
        _batch(switch, "ip", links)
        # What a host sends is shaped where it leaves the host, what it gets where it leaves the switch.
        _batch(switch, "tc", [line for host in hosts for line in shaped(f"port{host.number}", bytes_per_s)])
        for host in hosts:
            _batch(host.holder, "ip", [f"addr add {host.address}/16 dev {DEVICE}", f"link set {DEVICE} up"])
            _batch(host.holder, "tc", shaped(DEVICE, bytes_per_s, delay_s))
        return tuple(hosts)

    def _hold(self, script: str, *namespaces: str) -> int:
        """Number of a new process that holds new namespaces, once its script is through."""
        holder = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for whoever runs here
        )
        self._holders.append(holder)
        assert holder.stdout is not None
        assert holder.stderr is not None
        readable, _, _ = select.select([holder.stdout], [], [], TIMEOUT_S)
        if not readable or holder.stdout.readline() != "up\n":
            holder.kill()
            said = (holder.stderr.read().strip().splitlines() or ["it says nothing"])[-1]
            raise ServerError(f"an emulated host did not come up: {said}")
        return holder.pid

    def close(self) -> None:
        """End what holds the hosts. Processes that still run there keep theirs until they end. Idempotent."""
        for holder in self._holders:
            holder.kill()
        deadline = time.monotonic() + TIMEOUT_S
        for holder in self._holders:
            holder.wait(max(0.0, deadline - time.monotonic()))
            for pipe in (holder.stdin, holder.stdout, holder.stderr):
                if pipe is not None:
                    pipe.close()
        self._holders.clear()
        shared = getattr(self, "_shared", None)
        if shared is not None:
            shutil.rmtree(shared, ignore_errors=True)
        owner, self._owner = getattr(self, "_owner", -1), -1
        if owner >= 0:
            os.close(owner)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def require_hosts(count: int) -> None:
    """Raises ConfigError if there cannot be so many."""
    if not 1 <= count <= MOST:
        raise ConfigError(f"there can be 1 to {MOST} emulated hosts, not {count}")


def _batch(holder: int, program: str, lines: Sequence[str]) -> None:
    """Lines of `ip` or `tc` in the network of a process.

    Raises:
        ServerError: one is refused; what the program says.
    """
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{holder}/ns/net", "--", program, "-batch", "-"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if done.returncode:
        raise ServerError(f"{program} refuses to set up emulated hosts: {' '.join(done.stderr.split())}")
