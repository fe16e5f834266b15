"""latency: a model of 4 KB on one host, asynchronous: how soon a push is visible, and how many a second are applied.

- *visible*: one process pushes and waits for the version: from the commit word to the return of `pull`.
- *applied*: four processes push as fast as their rings of eight slots allow, until the last is descended.
- *open loop*: pushes on a schedule of 5,000 a second, whatever happens; from the *scheduled* time to the moment
  another process sees the version.
"""

from __future__ import annotations

import time

import numpy as np

import coproc
from coproc.bench.base import Options, Ratio, Result
from coproc.bench.peers import Peer, peers, together

NAME = "latency"

SIZE = 1000  # float32: 4 KB
VISIBLE_AT_MOST_S = 100e-6
APPLIED_AT_LEAST = 60_000.0
OPEN_LOOP_PER_S = 5_000.0
OPEN_LOOP_P99_AT_MOST_S = 2e-3


def run(options: Options) -> list[Result]:
    """All three in turns; about half a minute."""
    rounds = 2 if options.quick else max(3, options.rounds // 3)
    count = 200 if options.quick else 5_000
    p50: list[float] = []
    p99: list[float] = []
    applied: list[float] = []
    open_p50: list[float] = []
    open_p99: list[float] = []
    with peers(4) as workers, coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        model = client.create_model(
            "latency",
            params={"w": np.zeros(SIZE, np.float32)},
            optimizer=coproc.optim.SGD(learning_rate=1e-3),
        )
        for number, worker in enumerate(workers):
            worker.call("join", address=cluster.address, model=model.name, worker=number, slots=8)
        for turn in range(rounds + 1):
            alone = _visible(workers[0], model, count)
            rate = _applied(workers, model, count)
            scheduled = _open_loop(workers, model, count)
            if turn:  # the first is thrown away
                p50.append(float(np.percentile(alone, 50)))
                p99.append(float(np.percentile(alone, 99)))
                applied.append(rate)
                open_p50.append(float(np.percentile(scheduled, 50)))
                open_p99.append(float(np.percentile(scheduled, 99)))
        together(workers, "leave")
    promised = not options.quick

    def limit(samples: list[float], value: float, *, least: bool = False) -> tuple[Ratio, ...]:
        if not promised:
            return ()
        shares = tuple(sample / value for sample in samples)
        bound = {"at_least": 1.0} if least else {"at_most": 1.0}
        shown = f"{value:,.0f}/s" if least else f"{value * 1e6:,.0f} us"
        return (Ratio(shown, "promised", shares, **bound),)

    return [
        Result(NAME, "push to visible, 1 process", "p50", "s", tuple(p50), limit(p50, VISIBLE_AT_MOST_S)),
        Result(NAME, "push to visible, 1 process", "p99", "s", tuple(p99)),
        Result(
            NAME, "4 processes, 8 slots each", "applied", "1/s", tuple(applied),
            limit(applied, APPLIED_AT_LEAST, least=True),
        ),
        Result(NAME, "open loop, 5,000/s", "p50", "s", tuple(open_p50)),
        Result(
            NAME, "open loop, 5,000/s", "p99", "s", tuple(open_p99),
            limit(open_p99, OPEN_LOOP_P99_AT_MOST_S),
        ),
    ]  # fmt: skip


def _visible(worker: Peer, model: coproc.Model, count: int) -> list[float]:
    # A version is that of this worker's step only while nobody else pushes: wait from where the model is.
    worker.call("level", version=model.snapshot().version)
    return [taken / 1e9 for taken in worker.call("push_and_see", count=count)]


def _applied(workers: list[Peer], model: coproc.Model, count: int) -> float:
    goal = model.snapshot().version + count * len(workers)
    begun = time.monotonic()
    for worker in workers:
        worker.ask("push_many", count=count)
    for worker in workers:
        worker.answer()
    snapshot = model.snapshot(timeout_s=60)
    assert snapshot.version == goal
    return count * len(workers) / (time.monotonic() - begun)


def _open_loop(workers: list[Peer], model: coproc.Model, count: int) -> list[float]:
    pusher, watcher = workers[0], workers[1]
    first = model.snapshot().version + 1
    start_ns = time.monotonic_ns() + 50_000_000
    watcher.ask("watch_versions", first=first, last=first + count - 1)
    pusher.ask("push_on_schedule", count=count, per_s=OPEN_LOOP_PER_S, start_ns=start_ns)
    pusher.answer()
    late: list[float] = []
    done = 0
    for version, seen_ns in watcher.answer():
        while done <= version - first:
            late.append((seen_ns - start_ns) / 1e9 - done / OPEN_LOOP_PER_S)
            done += 1
    return late
