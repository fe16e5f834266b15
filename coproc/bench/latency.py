"""latency: a model of 4 KB on one host, asynchronous: how soon a push is visible, and how many a second are applied.

- *visible*: one process pushes and waits for the version: from the commit word to the return of `pull`.
- *applied*: four processes push as fast as their rings of eight slots allow, until the last is descended.
- *open loop*: pushes on a schedule of 5,000 a second, whatever happens; from the *scheduled* time to the moment
  another process sees the version.
- *beside a far stream*: the same while a client that may not touch shared memory, a process of its own, pushes 57 MB
  gradients into another model of the same server without pause.
"""

from __future__ import annotations

import time

import numpy as np

import coproc
from coproc.bench.base import Options, Ratio, Result
from coproc.bench.limits import within
from coproc.bench.peers import Peer, peers, together

NAME = "latency"

SIZE = 1000  # float32: 4 KB
FAR_SIZE, QUICK_FAR_SIZE = 14_305_295, 65_536
VISIBLE_AT_MOST_S = 100e-6
APPLIED_AT_LEAST = 200_000.0
OPEN_LOOP_PER_S = 5_000.0
OPEN_LOOP_P50_AT_MOST_S = 100e-6
OPEN_LOOP_P99_AT_MOST_S = 1e-3
BESIDE_FAR_P99_AT_MOST_S = 2e-3
# Of the far stream, before the first and after the last scheduled push.
_MARGIN_S = 0.5

ALONE, APPLIED, OPEN, BESIDE = (
    "push to visible, 1 process",
    "4 processes, 8 slots each",
    "open loop, 5,000/s",
    "open loop beside a far stream",
)


def run(options: Options) -> list[Result]:
    """All four in turns; about half a minute."""
    rounds = 2 if options.quick else max(3, options.rounds // 3)
    count = 200 if options.quick else 5_000
    late: dict[str, list[list[float]]] = {ALONE: [], OPEN: [], BESIDE: []}
    applied: list[float] = []
    streamed: list[float] = []
    with peers(5) as processes, coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        workers, far = processes[:4], processes[4]
        model = client.create_model(
            "latency",
            params={"w": np.zeros(SIZE, np.float32)},
            optimizer=coproc.optim.SGD(learning_rate=1e-3),
        )
        for number, worker in enumerate(workers):
            worker.call("join", address=cluster.address, model=model.name, worker=number, slots=8)
        large = client.create_model(
            "latency-far",
            params={"w": np.zeros(QUICK_FAR_SIZE if options.quick else FAR_SIZE, np.float32)},
            optimizer=coproc.optim.SGD(learning_rate=1e-3),
        )
        far.call("join", address=cluster.address, model=large.name, worker=0, near=False)
        far.call("fill")
        for turn in range(rounds + 1):
            alone = _visible(workers[0], model, count)
            rate = _applied(workers, model, count)
            scheduled = _open_loop(workers, model, count, time.monotonic_ns() + 50_000_000)
            beside, bytes_per_s = _beside_far(workers, model, count, far, 4 * large.layout.size)
            if turn:  # the first is thrown away
                late[ALONE].append(alone)
                applied.append(rate)
                late[OPEN].append(scheduled)
                late[BESIDE].append(beside)
                streamed.append(bytes_per_s / 1e9)
        together(processes, "leave")
    promised = not options.quick

    def percentile(case: str, percent: int, at_most_s: float | None = None) -> Result:
        samples = tuple([float(np.percentile(taken, percent)) for taken in late[case]])
        ratios: tuple[Ratio, ...] = ()
        if at_most_s is not None:
            ratios = within(samples, at_most_s, f"{at_most_s * 1e6:,.0f} us", promised)
        return Result(NAME, case, f"p{percent}", "s", samples, ratios)

    least = within(applied, APPLIED_AT_LEAST, f"{APPLIED_AT_LEAST:,.0f}/s", promised, least=True)
    return [
        percentile(ALONE, 50, VISIBLE_AT_MOST_S),
        percentile(ALONE, 99),
        Result(NAME, APPLIED, "applied", "1/s", tuple(applied), least),
        percentile(OPEN, 50, OPEN_LOOP_P50_AT_MOST_S),
        percentile(OPEN, 99, OPEN_LOOP_P99_AT_MOST_S),
        percentile(BESIDE, 50),
        percentile(BESIDE, 99, BESIDE_FAR_P99_AT_MOST_S),
        Result(NAME, BESIDE, "far stream", "GB/s", tuple(streamed)),
    ]


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


def _open_loop(workers: list[Peer], model: coproc.Model, count: int, start_ns: int) -> list[float]:
    pusher, watcher = workers[0], workers[1]
    first = model.snapshot().version + 1
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


def _beside_far(
    workers: list[Peer], model: coproc.Model, count: int, far: Peer, gradient_bytes: int
) -> tuple[list[float], float]:
    """The open loop within a far stream, and what the stream carried meanwhile, in bytes a second."""
    begin_ns = time.monotonic_ns() + int(_MARGIN_S * 1e9)
    end_ns = begin_ns + int(count / OPEN_LOOP_PER_S * 1e9)
    far.ask("push_until", until_ns=end_ns + int(_MARGIN_S * 1e9))
    late = _open_loop(workers, model, count, begin_ns)
    spans = far.answer()
    if not spans[0][0] < begin_ns or not spans[-1][1] > end_ns:
        raise coproc.CoprocError("the far stream was not under way all the time; the measurement says nothing")
    return late, gradient_bytes * len(spans) / ((spans[-1][1] - spans[0][0]) / 1e9)
