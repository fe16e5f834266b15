"""Rows as a comparison leaves them, made up: plausible, never measured, the same for the same arguments."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

from coproc.trials.base import Point

# Of a made-up machine, milliseconds of a step with two workers: pull, compute, push, update, scheduling.
COSTS_MS = {
    "coproc": (1.0, 11.0, 1.2, 1.5, 0.4),
    "allreduce": (2.0, 11.2, 3.5, 1.5, 0.5),
    "http": (9.0, 11.5, 9.0, 6.0, 1.0),
    "storage": (12.0, 11.5, 12.0, 5.0, 45.0),
    "broadcast": (24.0, 12.0, 20.0, 5.0, 70.0),
    "localsgd": (0.5, 11.0, 0.5, 0.4, 6.0),
    "torchdist": (0.0, 15.5, 8.5, 2.0, 0.8),
    "hogwild": (0.0, 11.0, 3.0, 3.0, 0.4),
    "ray": (13.0, 11.5, 14.0, 6.0, 0.5),
    "single": (0.0, 10.4, 0.0, 0.9, 0.0),
}
ON_DRIVER = {"broadcast", "storage"}
PARAMETERS = {"mnist": 1_863_690, "higgs": 8_454_145, "molecular": 14_276_609, "digits": 9_610}
HOST = {"cores": 2, "memory_bytes": 25_200_000_000, "kernel": "6.1.0"}
VERSIONS = {"python": "3.11.7", "numpy": "2.3.1", "pyspark": "4.0.1", "numba": "0.62.0"}


FEWER_BYTES = {None: 1.0, "bf16": 0.5, "fp16": 0.5, "int8": 0.26, "topk": 0.04}


def costs_of(point: Point, steps: int) -> tuple[float, ...]:
    """As COSTS_MS, for other workers, networks, groups, formats."""
    pull, compute, push, update, over = COSTS_MS[point.contestant]
    size = PARAMETERS.get(point.workload.removeprefix("teacher-"), 1_000_000) / PARAMETERS["mnist"]
    crowd = {"coproc": 0.02, "allreduce": 0.08, "http": 0.3, "broadcast": 0.35}.get(point.contestant, 0.1)
    far = 4.0 if point.hosts else 1.0
    way = size * far * FEWER_BYTES[point.compression] * (1 + crowd * point.workers)
    if point.consistency == "asp":
        # Gradients of all workers are descended one after the other.
        way *= max(1.0, point.workers * update * size / point.servers / 40)
    job = 40.0 + 4 * point.workers
    group = steps if point.group_size in (None, "auto") else int(point.group_size)
    over = over if point.contestant in ON_DRIVER else job / min(group, steps)
    if point.tau:
        pull, push, over = pull / point.tau, push / point.tau, job / point.tau
    return pull * way, compute * size * point.batch_size / 128, push * way, update * size, over


def row(
    contestant: str,
    repeat: int = 0,
    *,
    steps: int = 60,
    slower: float = 1.0,
    idle: float = 0.35,
    **fields: Any,
) -> dict[str, Any]:
    """A run that came to its end, of `steps` steps an epoch."""
    point = Point(contestant, **fields)
    draw = random.Random(f"{point.id} {repeat}")
    wander = slower * draw.uniform(0.97, 1.04)
    pull, compute, push, update, over = (each * wander / 1e3 for each in costs_of(point, steps))
    began = now = 1000.0 + 50 * repeat
    groups, samples, epochs = [], [], []
    trained = 0.0
    for epoch in range(point.epochs):
        start = now
        losses = []
        for step in range(steps):
            done = epoch * steps + step
            for worker in range(1 if contestant == "single" else point.workers):
                loss = 2.3 * math.exp(-done / (0.45 * steps)) + 0.06 + draw.uniform(0, 0.06)
                losses.append(loss)
                spent = [each * draw.uniform(0.9, 1.1) for each in (pull, compute, push)]
                samples.append([worker, done, now, *spent, point.batch_size, loss, 0])
            now += pull + compute + push + over + (update if contestant in ON_DRIVER else 0.0)
        groups.append([epoch, 0, start, now])
        trained += now - start
        accuracy = 0.985 - 0.12 * math.exp(-(epoch + draw.uniform(0, 0.2)))
        mean = sum(losses) / len(losses)
        told = {"epoch": epoch + 1, "train_s": trained, "train_loss": mean, "loss": mean * 1.1, "accuracy": accuracy}
        epochs.append(told)
        now += 0.8
    made = len(samples)
    whole = 4 * PARAMETERS.get(point.workload.removeprefix("teacher-"), 1_000_000)
    driver = {"broadcast": 2 * whole, "storage": whole}.get(contestant, 0) * made // point.workers
    jobs = {"broadcast": 1, "storage": 1}.get(contestant, 0) * made // point.workers or point.epochs
    none = contestant == "single"
    jobs = made // point.workers if point.group_size == 1 else jobs
    sent = int(made * whole * FEWER_BYTES[point.compression] / (point.tau or 1))
    return {
        "id": point.id,
        "repeat": repeat,
        "point": point.to_json_values(),
        "status": "ok",
        "error": None,
        "began": f"2026-11-21T03:{10 + repeat:02d}:07+0000",
        "wall_s": now - began + 9.0,
        "startup_s": 8.6 * wander if not none else 1.4,
        "groups": groups,
        "samples": samples,
        "epochs": epochs,
        "costs": {
            "jobs_count": 0 if none else jobs,
            "driver_in_bytes": driver // 2,
            "driver_out_bytes": driver // 2,
            "worker_in_bytes": 0 if none else sent,
            "worker_out_bytes": 0 if none else sent,
            "server_in_bytes": 0 if none else sent,
            "server_out_bytes": 0 if none else sent,
            "local_bytes": 0,
            "update_s": update * made / point.workers,
        },
        "memory": {
            "driver": 410_000_000,
            "worker": 0 if none else point.workers * (110_000_000 + 3 * whole),
            "server": 0 if none else 90_000_000 + 7 * whole,
        },
        "cpu_idle": idle,
        "parameters": whole // 4,
        "version": made,
        "checksum": f"{draw.getrandbits(64):016x}",
        "versions": VERSIONS,
        "commit": "65a87ae630dd6945e66952e85da0bad949821706",
        "seed": point.seed,
        "host": HOST,
        "notes": ["trains with torch's own Adam"] if contestant == "torchdist" else [],
        "link": None,
        "origin": "MNIST: LeCun, Cortes, Burges (1998)",
    }


def lost(contestant: str, error: str, status: str = "failed", repeat: int = 0, **fields: Any) -> dict[str, Any]:
    """A run without numbers."""
    empty = {"groups": [], "samples": [], "epochs": [], "costs": {}, "memory": {}, "cpu_idle": None, "checksum": ""}
    more = {"status": status, "error": error, "startup_s": None, "wall_s": 3.0, "notes": [], "versions": {}}
    return {**row(contestant, repeat, steps=1, **fields), **empty, **more}


def comparison(repeats: int = 3, **fields: Any) -> list[dict[str, Any]]:
    """What `coproc compare` leaves without a grid: everybody on one piece of work; one fails, one is skipped."""
    fields = {"epochs": 4, "target_accuracy": 0.975, **fields}
    rows = []
    for repeat in range(repeats):
        rows += [
            row(name, repeat, idle=0.12 if name == "http" else 0.35, **fields) for name in COSTS_MS if name != "ray"
        ]
        rows.append(row("coproc", repeat, slower=0.93, preset="downpour", **fields))
    rows.append(lost("ray", "the contestant 'ray' needs ray: pip install 'coproc[bench]'", "skipped", **fields))
    failed = "Timeout: worker 1 did not push step 40 in 330 s\n  it was in `pull`, waiting for version 40"
    rows.append(lost("coproc", failed, preset="ssp", **fields))
    return rows


def of_points(points: Iterable[Point], repeats: int) -> list[dict[str, Any]]:
    """A row of each point and repeat, of few steps."""
    rows = []
    for repeat in range(repeats):
        for point in points:
            fields = {name: value for name, value in point.to_json_values().items() if name != "contestant"}
            loads = (point.rows or 50_000) // point.workers if point.rows_per_worker is None else point.rows_per_worker
            steps = min(40, max(1, loads // point.batch_size))
            rows.append(row(point.contestant, repeat, steps=steps, **fields))
    return rows
