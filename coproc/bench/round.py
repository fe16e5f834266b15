"""round: a synchronous round of two worker processes and one server, against a loop over the same bytes.

*born in the slot*: from the last commit to the last waiter awake: the server sums both gradients, descends,
publishes and wakes. The denominator reads and writes the same rows, past the caches where the sweep does too, and
imports nothing of the project.

*with a copy*: from the last worker's start, gradients in memory of their own, to the last waiter awake; against
gloo's all_reduce of the same bytes between the same two processes, where PyTorch is installed, and over the same span
against the parameter server of Ray's documentation, where Ray is. Ray's processes run only while it is compared.
"""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Callable

import numpy as np

import coproc
from coproc import optim
from coproc.bench import ray_peers, streams
from coproc.bench.base import Options, Ratio, Result, time_ratio
from coproc.bench.peers import Peer, peers, together

NAME = "round"

# The networks of the talk this project comes from: images, particles, molecules.
SIZES = (1_863_690, 8_454_145, 14_305_295)
QUICK_SIZES = (65_536,)
AT_MOST = {14_305_295: 1.3}
OF_GLOO_AT_MOST = {14_305_295: 1 / 4}
OF_RAY_AT_MOST = {14_305_295: 1 / 6}

ROUND, STREAM, COPIED, GLOO = "round", "stream loop", "round with a copy", "gloo all_reduce"
RAY = "Ray parameter server"


def run(options: Options) -> list[Result]:
    """All sizes, SGD and Adam; about a minute, and one more with Ray."""
    results: list[Result] = []
    with peers(2) as workers, coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        with_gloo = importlib.util.find_spec("torch") is not None
        if with_gloo:
            port = _free_port()
            for rank, worker in enumerate(workers):
                worker.ask("join_gloo", port=port, rank=rank)
            for worker in workers:
                worker.answer()
        for size in QUICK_SIZES if options.quick else SIZES:
            for optimizer in (optim.SGD(learning_rate=1e-3), optim.Adam(learning_rate=1e-3)):
                model = client.create_model(
                    f"round-{optimizer.name}-{size}",
                    params={"w": np.zeros(size, np.float32)},
                    optimizer=optimizer,
                    consistency=coproc.Bsp(workers=2),
                )
                for number, worker in enumerate(workers):
                    worker.call("join", address=cluster.address, model=model.name, worker=number)
                results += _measure(optimizer, size, workers, with_gloo, options)
                together(workers, "leave")
                model.delete()
        if with_gloo:
            together(workers, "leave_gloo")
    return results


def _measure(
    optimizer: optim.Optimizer, size: int, workers: list[Peer], with_gloo: bool, options: Options
) -> list[Result]:
    contestants = {ROUND: lambda: _round(workers), STREAM: _stream(optimizer, size)}
    if optimizer.name == "sgd":
        together(workers, "make", size=size)
        contestants[COPIED] = lambda: _span(together(workers, "round_with_copy"))
        if with_gloo:
            contestants[GLOO] = lambda: _span(together(workers, "all_reduce"))
    taken = _turns(contestants, options)
    ratios = {ROUND: _limited(taken, ROUND, STREAM, size, AT_MOST, options)}
    if GLOO in taken:
        ratios[COPIED] = _limited(taken, COPIED, GLOO, size, OF_GLOO_AT_MOST, options)
    case = f"{optimizer.name}, {size / 1e6:.3g} M, two workers"
    results = [Result(NAME, case, name, "s", times, ratios.get(name, ())) for name, times in taken.items()]
    if optimizer.name == "sgd" and ray_peers.is_installed():
        with ray_peers.parameter_server(size) as theirs:
            contestants = {COPIED: contestants[COPIED], RAY: lambda: _span(theirs.round())}
            taken = _turns(contestants, options)
        case += ", beside Ray"
        ratio = _limited(taken, COPIED, RAY, size, OF_RAY_AT_MOST, options)
        results.append(Result(NAME, case, COPIED, "s", taken[COPIED], ratio))
        results.append(Result(NAME, case, RAY, "s", taken[RAY]))
    return results


def _limited(
    taken: dict[str, tuple[float, ...]], ours: str, theirs: str, size: int, limits: dict[int, float], options: Options
) -> tuple[Ratio, ...]:
    limit = None if options.quick else limits.get(size)
    return (time_ratio(taken[ours], taken[theirs], theirs, at_most=limit),)


def _turns(contestants: dict[str, Callable[[], float]], options: Options) -> dict[str, tuple[float, ...]]:
    """Each tells its own seconds; in turns, the first rounds thrown away."""
    rounds, warm_up = (3 if options.quick else options.rounds), 3
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warm_up + rounds):
        for name, call in contestants.items():
            taken_s = call()
            if number >= warm_up:
                taken[name].append(taken_s)
    return {name: tuple(times) for name, times in taken.items()}


def _span(stamps: list[list[int]]) -> float:
    """Seconds from the last beginning to the last end."""
    return (max(end for _, end in stamps) - max(begin for begin, _ in stamps)) / 1e9


def _round(workers: list[Peer]) -> float:
    together(workers, "fill")
    return _span(together(workers, "round"))


def _stream(optimizer: optim.Optimizer, size: int) -> Callable[[], float]:
    """A loop over the rows of the sweep: parameters and state in and out, two gradients in."""
    count = 1 + len(optimizer.state_rows)
    front, back, gradients = (tuple(streams.rows(n, size)) for n in (count, count, 2))
    loop = streams.out_of_place_streamed if size >= optim.STREAM_FROM else streams.out_of_place

    def call() -> float:
        begun = time.perf_counter()
        loop(front, gradients, np.float32(0), back)
        return time.perf_counter() - begun

    return call


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
