"""The links of emulated hosts: what shapes them, and whether this machine can."""

from __future__ import annotations

import functools
import shutil
import subprocess

from coproc.errors import ConfigError

# A packet of the kernel is up to 64 KB before it is cut, and a shaper may be late by some milliseconds.
_LEAST_BURST_BYTES = 1 << 17
_BURST_S = 0.002
# What may wait at a link; what is more is dropped, and TCP slows down. As long as a switch of such a link would.
_QUEUE_S = 0.025
_LEAST_QUEUE_BYTES = 1 << 19
TIMEOUT_S = 20.0

NO_NETEM = "This kernel has no netem: links have their rate, and no delay but that of this machine."


def shaped(device: str, bytes_per_s: float, delay_s: float = 0.0) -> list[str]:
    """Lines for `tc -batch` that give what `device` sends a rate, and a delay behind it."""
    burst = max(_LEAST_BURST_BYTES, int(bytes_per_s * _BURST_S))
    queue = max(_LEAST_QUEUE_BYTES, int(bytes_per_s * _QUEUE_S)) + burst
    where, lines = "root", []
    if delay_s:
        # All that is on the way is kept by it: as many packets as fit, and as large as they come.
        waiting = 1000 + int(bytes_per_s * delay_s / 1000)
        lines = [f"qdisc add dev {device} root handle 1: netem delay {delay_s * 1e6:.0f}us limit {waiting}"]
        where = "parent 1:1"
    return [*lines, f"qdisc add dev {device} {where} tbf rate {int(bytes_per_s * 8)}bit burst {burst} limit {queue}"]


@functools.cache
def require_tools() -> None:
    """Raises ConfigError, with what to do, if hosts cannot be emulated here."""
    missing = [name for name in ("ip", "tc", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"emulated hosts need {', '.join(missing)}: install iproute2 and util-linux (apt-get install iproute2)"
        )
    probe = subprocess.run(
        ["unshare", "--net", "--mount", "ip", "link", "add", "probe", "type", "veth", "peer", "name", "other"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if probe.returncode:
        said = (probe.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise ConfigError(f"emulated hosts need root, and a kernel with namespaces and veth: {said}")


def has_netem() -> bool:
    """Whether the kernel can delay packets."""
    probe = subprocess.run(
        ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"],
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    return probe.returncode == 0
