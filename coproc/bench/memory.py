"""memory: what a server takes, against what it must: buffers and state of its model, slots of its workers, and a rest.

What it takes is its process and its files in shared memory, counted once: the shares of all pages that the kernel
charges to the process (Pss), but for those of the files, and the pages of the files.

    limit = K x parameters + 2 x state + slots + 250 MB

K is the number of a model's parameter buffers. That is 3 in `Bsp`, where 2 would do while everybody lives: a stopped
twin holds an old version, and with 2 buffers it would stop everybody. Where nobody waits for others it is 4.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

import coproc
from coproc import optim
from coproc.bench.base import Options, Ratio, Result
from coproc.bench.limits import within
from coproc.bench.peers import Peer, peers, together
from coproc.consistency import Consistency
from coproc.spec import ModelSpec

NAME = "memory"

SIZE, QUICK_SIZE = 14_305_295, 65_536
REST_BYTES = 250e6
WORKERS, QUICK_WORKERS = (2, 8), (2, 3)
# But for their slots, more workers take no more than what an allocator leaves: less than another copy of anything.
MORE_SLOTS_AT_MOST = 0.9
PUSHES = 2

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ ([0-9a-f]+):([0-9a-f]+) (\d+)")


def run(options: Options) -> list[Result]:
    """In rounds and asynchronous, SGD and Adam, with few workers and with many; about a minute."""
    sgd, adam = optim.SGD(learning_rate=1e-3), optim.Adam(learning_rate=1e-3)
    cases: list[tuple[optim.Optimizer, bool]]
    if options.quick:
        cases, counts, size = [(sgd, True)], QUICK_WORKERS, QUICK_SIZE
    else:
        cases, counts, size = [(sgd, True), (sgd, False), (adam, True), (adam, False)], WORKERS, SIZE
    with peers(max(counts)) as processes:
        return [
            result
            for optimizer, in_rounds in cases
            for result in _measure(optimizer, in_rounds, size, counts, processes, options)
        ]


def _measure(
    optimizer: optim.Optimizer,
    in_rounds: bool,
    size: int,
    counts: tuple[int, int],
    processes: list[Peer],
    options: Options,
) -> list[Result]:
    few, many = counts
    without_slots: dict[int, tuple[float, ...]] = {}
    results: list[Result] = []
    for workers in counts:
        consistency: Consistency = coproc.Bsp(workers=workers) if in_rounds else coproc.Asp()
        spec, samples = _sampled(optimizer, consistency, size, processes[:workers], options)
        slots_bytes = 4 * size * spec.slots * workers
        state_bytes = 4 * size * len(optimizer.state_rows)
        limit = spec.buffers * 4 * size + 2 * state_bytes + slots_bytes + REST_BYTES
        ratios = within(samples, limit, f"{limit / 1e6:,.0f} MB (K = {spec.buffers})", not options.quick)
        without_slots[workers] = tuple([sample - slots_bytes for sample in samples])
        if workers == many:
            pairs = zip(without_slots[many], without_slots[few], strict=True)
            in_slots = tuple([(more - fewer) / (4 * size) for more, fewer in pairs])
            at_most = None if options.quick else MORE_SLOTS_AT_MOST
            ratios += (Ratio(f"one slot more than with {few} workers", "size", in_slots, at_most=at_most),)
        case = f"{optimizer.name}, {size / 1e6:.3g} M, {consistency.name}"
        megabytes = tuple([sample / 1e6 for sample in samples])
        results.append(Result(NAME, case, f"{workers} workers", "MB", megabytes, ratios))
    return results


def _sampled(
    optimizer: optim.Optimizer, consistency: Consistency, size: int, processes: list[Peer], options: Options
) -> tuple[ModelSpec, list[float]]:
    """A model, and bytes: a sample each time that all workers have filled their slots and all is descended.

    On a server of its own: what one model leaves behind is not charged to the next.
    """
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        model = client.create_model(
            "memory", params={"w": np.zeros(size, np.float32)}, optimizer=optimizer, consistency=consistency
        )
        for number, process in enumerate(processes):
            process.call("join", address=cluster.address, model=model.name, worker=number)
        samples = []
        for _ in range(1 if options.quick else max(3, options.rounds // 3)):
            together(processes, "push_many", count=PUSHES * model.spec.slots)
            model.snapshot()
            samples.append(float(_taken_bytes(cluster.servers[0].pid, Path(model.spec.home).parents[2])))
        together(processes, "leave")
    return model.spec, samples


def _taken_bytes(pid: int, directory: Path) -> int:
    """Of a process and the files below `directory`: each page once, however many have it mapped."""
    # By number: a file that was made without a name keeps saying so to the kernel when it has got one.
    files: dict[tuple[int, int, int], int] = {}
    for path in directory.rglob("*"):
        if path.is_file():
            status = path.stat()
            files[os.major(status.st_dev), os.minor(status.st_dev), status.st_ino] = status.st_blocks * 512
    held_bytes = sum(files.values())
    counted = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        mapping = _MAPPING.match(line)
        if mapping is not None:
            counted = (int(mapping[1], 16), int(mapping[2], 16), int(mapping[3])) in files
        elif line.startswith("Pss:") and not counted:
            held_bytes += int(line.split()[1]) * 1024
    return held_bytes
