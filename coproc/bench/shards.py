"""shards: what a push costs each of two servers that share a model, against one server that has all of it.

Processor time of a server's threads, as the kernel counts it, a push; and the bytes that its sweeps move, from the
passes that each shard has published. Not wall-clock time: the servers of one host share its memory. The worker waits
for each version, in rounds of its own, so that all servers sweep with all cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import coproc
from coproc import optim
from coproc.bench.base import Options, Ratio, Result
from coproc.bench.peers import Peer, peers
from coproc.near import NearModel

NAME = "shards"

SIZE, QUICK_SIZE = 14_305_295, 1 << 20
# The ranges of two shards are cut at multiples of a line.
BYTES_AT_MOST = 0.501
BUSY_AT_MOST = 0.6
PUSHES, QUICK_PUSHES = 10, 2


def run(options: Options) -> list[Result]:
    """SGD and Adam; about a minute."""
    size = QUICK_SIZE if options.quick else SIZE
    optimizers = [optim.SGD(learning_rate=1e-3), optim.Adam(learning_rate=1e-3)]
    with peers(2) as workers:
        return [
            result
            for optimizer in optimizers[: 1 if options.quick else None]
            for result in _measure(optimizer, size, workers, options)
        ]


@dataclass(frozen=True)
class _Cost:
    """Of one push, for one server."""

    busy_s: float
    swept_bytes: float


def _measure(optimizer: optim.Optimizer, size: int, workers: list[Peer], options: Options) -> list[Result]:
    rounds, pushes = (1, QUICK_PUSHES) if options.quick else (options.rounds, PUSHES)
    warm_up = 0 if options.quick else 1
    costs: dict[int, list[list[_Cost]]] = {1: [], 2: []}
    with ExitStack() as stack:
        setups = {
            servers: stack.enter_context(_setup(servers, optimizer, size, worker))
            for servers, worker in zip(costs, workers, strict=True)
        }
        for turn in range(warm_up + rounds):
            for servers, setup in setups.items():
                cost = setup.push(pushes)
                if turn >= warm_up:
                    costs[servers].append(cost)
    case = f"{optimizer.name}, {size / 1e6:.3g} M, a push"
    results: list[Result] = []
    for servers, rounds_costs in costs.items():
        for number in range(servers):
            busy = tuple([cost[number].busy_s for cost in rounds_costs])
            swept = tuple([cost[number].swept_bytes for cost in rounds_costs])
            name = "one server" if servers == 1 else f"server {number + 1} of 2"
            busy_ratios: tuple[Ratio, ...] = ()
            swept_ratios: tuple[Ratio, ...] = ()
            if servers == 2:
                alone = [cost[0] for cost in costs[1]]
                busy_ratios = (_share("time", busy, [cost.busy_s for cost in alone], BUSY_AT_MOST, options),)
                swept_ratios = (_share("bytes", swept, [cost.swept_bytes for cost in alone], BYTES_AT_MOST, options),)
            results.append(Result(NAME, case, f"{name}: busy", "s", busy, busy_ratios))
            megabytes = tuple([each / 1e6 for each in swept])
            results.append(Result(NAME, case, f"{name}: swept", "MB", megabytes, swept_ratios))
    return results


def _share(what: str, ours: tuple[float, ...], theirs: list[float], at_most: float, options: Options) -> Ratio:
    shares = tuple([mine / whole for mine, whole in zip(ours, theirs, strict=True)])
    return Ratio("one server", what, shares, at_most=None if options.quick else at_most)


class _Setup:
    """A cluster with one model, and one worker process that pushes to it."""

    def __init__(self, cluster: coproc.LocalCluster, near: NearModel, worker: Peer) -> None:
        self._cluster = cluster
        self._near = near
        self._worker = worker
        optimizer = near.spec.optimizer
        # A pass reads and writes parameters and state, and reads a gradient.
        self._pass_bytes = [4 * (hi - lo) * (3 + 2 * len(optimizer.state_rows)) for lo, hi in near.ranges]

    def push(self, count: int) -> list[_Cost]:
        """Push and wait for the version, `count` times, so that a version is a pass: the cost of each server a push."""
        busy = [-_busy_s(server.pid) for server in self._cluster.servers]
        passes = [-shard.version for shard in self._near.shards]
        self._worker.call("push_and_see", count=count)
        return [
            _Cost(
                (busy[number] + _busy_s(server.pid)) / count,
                (passes[number] + shard.version) * self._pass_bytes[number] / count,
            )
            for number, (server, shard) in enumerate(zip(self._cluster.servers, self._near.shards, strict=True))
        ]


@contextmanager
def _setup(servers: int, optimizer: optim.Optimizer, size: int, worker: Peer) -> Iterator[_Setup]:
    with coproc.LocalCluster(servers) as cluster, coproc.connect(cluster.address) as client:
        model = client.create_model(
            "shards",
            params={"w": np.zeros(size, np.float32)},
            optimizer=optimizer,
            consistency=coproc.Bsp(workers=1),
        )
        worker.call("join", address=cluster.address, model=model.name, worker=0)
        near = NearModel(model.spec)
        try:
            yield _Setup(cluster, near, worker)
        finally:
            near.close()
            worker.call("leave")


def _busy_s(pid: int) -> float:
    """Processor time of all threads of a process, from the scheduler's own count in ns."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
