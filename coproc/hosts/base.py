"""An emulated host, as its processes and those of the others know it: plain values, which a run gets as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from coproc.errors import ConfigError, ServerError

VARIABLE = "COPROC_HOSTS"
"""Of the environment: the hosts among which a process runs, on the first of them, as `Hosts.to_json`."""

DEVICE = "eth0"
"""A host's end of its link."""


@dataclass(frozen=True)
class Host:
    """A network namespace and a mount namespace."""

    number: int
    address: str
    """At which the other hosts reach it."""
    holder: int
    """Number of the process that keeps it alive."""
    temporary: str
    """Its own folder for temporary files, in its own memory."""

    def prefix(self) -> list[str]:
        """What a command is started by to run on this host. It needs root; the working directory stays."""
        enter = ["nsenter", f"--net=/proc/{self.holder}/ns/net", f"--mount=/proc/{self.holder}/ns/mnt"]
        return [*enter, f"--wd={os.getcwd()}", "--", "env", f"TMPDIR={self.temporary}"]

    def counters(self) -> dict[str, int]:
        """Bytes that have come and gone by its link since it is up: {"in_bytes", "out_bytes"}, with all headers.

        Raises:
            ServerError: the host is gone.
        """
        try:
            lines = Path(f"/proc/{self.holder}/net/dev").read_text().splitlines()
        except OSError as error:
            raise ServerError(f"emulated host {self.number} is gone: {error}") from None
        for line in lines:
            name, _, numbers = line.partition(":")
            if name.strip() == DEVICE:
                found = numbers.split()
                return {"in_bytes": int(found[0]), "out_bytes": int(found[8])}
        raise ServerError(f"emulated host {self.number} has no link {DEVICE}")


@dataclass(frozen=True)
class Among:
    """All hosts of a run."""

    hosts: tuple[Host, ...]
    shared: str
    """A folder that all of them see, for what stands in for a service of its own."""
    notes: tuple[str, ...]
    """What a reader of results has to know, in sentences."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Among:
        """What `to_json` wrote.

        Raises:
            ConfigError: something else.
        """
        try:
            parts = json.loads(text)
            hosts = tuple(Host(**each) for each in parts["hosts"])
            return cls(hosts, parts["shared"], tuple(parts["notes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{VARIABLE} is not what describes emulated hosts: {error}") from None

    @classmethod
    def around(cls) -> Among:
        """The hosts that this process runs among.

        Raises:
            ConfigError: there are none.
        """
        text = os.environ.get(VARIABLE)
        if text is None:
            raise ConfigError(
                "this process runs on no emulated host: start it by `python -m coproc.hosts.play HOSTS … -- COMMAND`"
            )
        return cls.from_json(text)

    def counters(self) -> list[dict[str, int]]:
        """Of each host."""
        return [host.counters() for host in self.hosts]


def moved(before: Sequence[dict[str, int]], after: Sequence[dict[str, int]]) -> dict[str, dict[str, int]]:
    """What went over each link between two looks, by the number of its host, as text."""
    return {
        str(number): {name: then[name] - now[name] for name in now}
        for number, (now, then) in enumerate(zip(before, after, strict=True))
    }
