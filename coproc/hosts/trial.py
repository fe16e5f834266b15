"""How a point's run is arranged: where its servers and workers are, and what computes its gradients.

    with Arrangement(point, train_config(point)) as arranged:
        train(arranged.config, …, pool=arranged.pool, compute=arranged.compute, on_group=arranged.on_group)
    arranged.check(costs)

A point without hosts and with real compute is arranged as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Self

from coproc.errors import ConfigError, ServerError
from coproc.grads.base import Spec
from coproc.hosts.namespaces import require_hosts
from coproc.hosts.stage import Stage, require_servers
from coproc.modes.base import Costs, load
from coproc.pools.base import Pool
from coproc.training import as_it_is
from coproc.training.base import Group
from coproc.training.config import TrainConfig
from coproc.trials.base import Point
from coproc.trials.calibration import BATCHES, emulated
from coproc.trials.rates import delay_of, rate_of

# Of what the links have carried, this share is enough to cover what is said to have travelled.
_CARRIED = 0.98


def require(point: Point) -> None:
    """Refuse hosts, or emulated compute, that a point cannot have.

    Raises:
        ConfigError: more servers than hosts, a link or a delay that cannot be; a mode of one host; a mode that needs
            Spark, which runs on no emulated host; slow hosts that compute for real.
    """
    if point.slow_host is not None and not point.emulate_compute:
        raise ConfigError("slow_host is of emulated compute: set emulate_compute (--emulate-compute) too")
    if point.hosts is None:
        if point.link is not None or point.delay is not None:
            raise ConfigError("link and delay are of emulated hosts: say how many, by hosts (--hosts)")
        return
    if point.link is None:
        raise ConfigError("emulated hosts have a link each: say which, as link = '1gbit' (--link)")
    require_hosts(point.hosts)
    rate_of(point.link)
    if point.delay is not None:
        delay_of(point.delay)
    require_servers(point.servers, point.hosts)
    able = load(point.contestant).CAPABILITIES
    if able.one_host and point.hosts > 1:
        raise ConfigError(f"the mode {point.contestant!r} is for workers of one host: leave out the hosts (--hosts)")
    pools = able.pools
    if "processes" not in pools:
        raise ConfigError(
            f"the mode {point.contestant!r} runs on the pool {' or '.join(sorted(pools))} only, and on emulated hosts "
            "workers are plain processes"
        )


class Arrangement:
    """A context manager: servers and workers on emulated hosts are up within it."""

    def __init__(self, point: Point, config: TrainConfig) -> None:
        """`config` is the point's own.

        Raises:
            ConfigError: the point asks for hosts, and this process is on none; see `coproc.hosts.command`.
            ServerError: they share memory, or a server did not start.
        """
        self._point = point
        self._stage = None if point.hosts is None else Stage(point.workers, point.servers)
        self.config = config
        self.pool: Pool | None = None
        self.compute: Callable[[Spec], Spec] = as_it_is
        self.notes: list[str] = []
        """What a reader of the results has to know."""
        self.link: dict[str, dict[str, int]] | None = None
        """Bytes by each host's link from the beginning of the first group to the end of the last one."""
        if self._stage is not None:
            self._on_hosts(self._stage)
        if point.emulate_compute:
            self.compute = self._wait

    def _on_hosts(self, stage: Stage) -> None:
        # One model over servers that share no memory is a model in parts.
        parts = self.config.mode == "coproc" and self._point.servers > 1
        self.config = dataclasses.replace(
            self.config,
            address=stage.address,
            token=stage.token,
            pool="processes",
            parts=True if parts else self.config.parts,
        )
        self.pool = stage.pool
        self.notes += stage.notes
        self.notes.append("Each worker is a process of its host; Spark is not at work.")
        if parts:
            self.notes.append("The model is in parts, one on each server (--parts).")

    def _wait(self, spec: Spec) -> Spec:
        point = self._point
        factor = point.slow_host or 1.0
        slow = tuple(range(0, point.workers, point.hosts or point.workers)) if factor != 1.0 else ()
        told = emulated(spec, point.batch_size, slow, factor)
        self.notes.append(
            f"Compute is emulated: a gradient is a wait of {1e3 * told['seconds']:.1f} ms, the fastest of {BATCHES} "
            "real ones on one thread of this machine, and nothing is learned."
        )
        if slow:
            self.notes.append(f"The workers of the first host wait {factor:g} times as long.")
        return told

    def on_group(self, group: Group) -> None:
        """To be called after each group."""
        if self._stage is not None:
            self.link = self._stage.link()

    def check(self, costs: Costs) -> None:
        """Raises ServerError if less went over the links than is said to have gone to other hosts."""
        if self.link is None:
            return
        carried = sum(each["out_bytes"] for each in self.link.values())
        # What one worker sends may be what another gets: either is a lower bound.
        said = max(costs.worker_out_bytes, costs.worker_in_bytes) - costs.local_bytes
        if carried < _CARRIED * said:
            raise ServerError(
                f"{said:,} bytes went from host to host, it is said, and the links have carried {carried:,}: something "
                "went by shared memory"
            )

    def close(self) -> None:
        """End what was started. Idempotent."""
        if self._stage is not None:
            self._stage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
