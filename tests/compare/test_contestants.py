"""The comparison's own contestants: what the modes compute, computed elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from coproc import grads, optim
from coproc.contestants import base, course, single, torchdist, work
from coproc.data.base import Rows
from coproc.errors import ConfigError, DataError, Diverged
from coproc.layout import Flat
from coproc.pools.base import ONE_THREAD, failure_in, python_path
from coproc.testing import works
from coproc.training.output import checksum
from coproc.trials.base import Point, Run, silent
from coproc.trials.workloads import Prepared

HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_RAY = importlib.util.find_spec("ray") is not None

POINT = Point("single", batch_size=4, epochs=3, optimizer="momentum", learning_rate=0.1, seed=works.SEED)
OPTIMIZERS = {
    "sgd": optim.SGD(0.1),
    "momentum": optim.Momentum(0.1),
    "adam": optim.Adam(0.1),
    "adamw": optim.AdamW(0.1),
}


def rows_of(count: int, seed: int) -> Rows:
    random = np.random.default_rng(seed)
    features = random.standard_normal((count, 5)).astype(np.float32)
    return Rows(features, (features.sum(axis=1) > 0).astype(np.int32))


def table_of(rows: Rows) -> pa.Table:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.features.reshape(-1)), rows.features.shape[1])
    return pa.table({"features": lists, "label": pa.array(rows.labels)})


def prepared(count: int = 41) -> Prepared:
    """The network of `coproc.testing.works.Work`, on so many rows; 30 more to measure."""
    return Prepared(
        train=table_of(rows_of(count, 1)),
        test=table_of(rows_of(30, 2)),
        features="features",
        label="label",
        loss="softmax",
        hidden=(8,),
        inputs=5,
        outputs=2,
        scale=1.0,
        origin="the test",
    )


@dataclass(frozen=True)
class Dealt(works.Work):
    """The reference of the modes, on the rows that a contestant dealt."""

    parts: tuple[Rows, ...] = ()

    def partition(self, worker: int) -> Rows:
        return self.parts[worker]


def expected(point: Point, data: Prepared, workers: int) -> Flat:
    """The parameters that one process gets from the batches of so many workers."""
    with work.opened(work.config_of(point, data, workers), point, data) as job:
        kept = [job.batches(worker).rows for worker in range(workers)]
        parts = tuple([Rows(each.features.copy(), each.labels.copy()) for each in kept])
    assert point.learning_rate is not None
    return works.one_process(
        Dealt(
            rows=tuple([len(part) for part in parts]),
            epochs=point.epochs,
            batch_size=point.batch_size,
            optimizer=OPTIMIZERS[point.optimizer],
            rates=(point.learning_rate,) * point.epochs,
            parts=parts,
        )
    )


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert not list(Path("/dev/shm").glob(f"coproc-contestant-{os.getpid()}-*"))


def check_run(run: Run, point: Point, flat: Flat, data: Prepared, workers: int) -> None:
    """What each run has, whoever made it."""
    assert run.parameters == len(flat)
    assert [each["epoch"] for each in run.epochs] == list(range(1, point.epochs + 1))
    assert [each[:2] for each in run.groups] == [(epoch, 0) for epoch in range(point.epochs)]
    assert sum(sample[6] for sample in run.samples) == point.epochs * len(data.train)
    assert {sample[0] for sample in run.samples} == set(range(workers))
    # Each sample lies within a group, and no worker does two things at a time.
    for worker in range(workers):
        own = sorted((each for each in run.samples if each[0] == worker), key=lambda each: each[1])
        spans = [(began, began + sum(parts)) for _, _, began, *parts, _, _, _ in own]
        for (_, ended), (began, _) in pairwise(spans):
            assert began >= ended - 1e-6
        for began, ended in spans:
            assert any(first <= began and ended <= last + 1e-6 for _, _, first, last in run.groups)
    trained = [ended - began for _, _, began, ended in run.groups]
    np.testing.assert_allclose([each["train_s"] for each in run.epochs], np.cumsum(trained))
    backend = grads.create({"backend": "mlp", "inputs": 5, "hidden": [8], "outputs": 2})
    test = rows_of(30, 2)
    measured = backend.evaluate(flat, test.features, test.labels)
    assert run.epochs[-1]["accuracy"] == measured["accuracy"]
    np.testing.assert_allclose(run.epochs[-1]["loss"], measured["loss"], rtol=1e-3)
    for epoch, told in enumerate(run.epochs):
        steps = -(-len(data.train) // (workers * point.batch_size))
        own = [each for each in run.samples if each[1] // steps == epoch]
        mean = sum(each[6] * each[7] for each in own) / len(data.train)
        np.testing.assert_allclose(told["train_loss"], mean)


# ---- the folder


def test_a_contestant_is_a_file_with_this_face() -> None:
    assert base.names() == ["ray", "single", "torchdist"]
    for name in base.names():
        module = base.load(name)
        assert all(callable(each) for each in (module.run, module.check))
        assert module.SUMMARY
        assert module.EXTRA
        assert isinstance(module.NEEDS, tuple)


def test_an_unknown_contestant_is_refused_with_the_names() -> None:
    with pytest.raises(ConfigError, match=r"no contestant 'mpi'; the contestants are ray, single, torchdist"):
        base.load("mpi")


@pytest.mark.parametrize(
    ("name", "package", "line"),
    [
        ("ray", "ray", r"pip install 'coproc\[bench\]'"),
        ("torchdist", "torch", r"pip install 'coproc\[spark,torch\]'"),
        ("single", "numba", r"pip install 'coproc\[server\]'"),
    ],
)
def test_a_package_that_is_missing_is_said_with_the_install_line(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, line: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == package else found("json"))
    with pytest.raises(ConfigError, match=f"the contestant '{name}' needs {package}: {line}"):
        base.load(name).run(replace(POINT, contestant=name), prepared(), silent)


@pytest.mark.parametrize("name", ["ray", "single", "torchdist"])
def test_settings_of_modes_are_refused_all_at_once(name: str) -> None:
    point = replace(POINT, contestant=name, tau=5, servers=3, compression="bf16")
    with pytest.raises(ConfigError, match="has no use for servers 3, tau 5, compression bf16"):
        base.load(name).check(point)


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("torchdist", {"optimizer": "lion"}, "has the optimizers sgd, momentum, adam, adamw, not lion"),
        ("torchdist", {"consistency": "asp"}, "no use for consistency asp"),
        ("torchdist", {"pool": "processes"}, "runs on the pool 'spark', not 'processes'"),
        ("ray", {"consistency": "ssp"}, "can be bsp or asp, not ssp"),
    ],
)
def test_what_a_contestant_cannot_do_is_refused(name: str, changes: Mapping[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        base.load(name).check(replace(POINT, contestant=name, **changes))


def test_every_row_is_dealt_once_in_the_parts_of_the_ingest() -> None:
    data = prepared(41)
    with work.opened(work.config_of(POINT, data, 3), POINT, data) as job:
        assert work.Work.from_json(job.to_json()) == job
        assert job.rows == [14, 14, 13]
        assert job.steps_per_epoch == 4
        assert [job.examples(step) for step in range(4)] == [[4, 4, 4], [4, 4, 4], [4, 4, 4], [2, 2, 1]]
        dealt = np.concatenate([job.batches(worker).rows.features for worker in range(3)])
    np.testing.assert_array_equal(np.sort(dealt, axis=0), np.sort(rows_of(41, 1).features, axis=0))
    # The deal is a function of the seed and of the number of rows, as documented of the ingest.
    words = np.random.Philox(np.random.SeedSequence((POINT.seed, 41))).random_raw(41)
    np.testing.assert_array_equal(dealt, rows_of(41, 1).features[np.argsort(words, kind="stable")])


def test_without_test_rows_the_training_rows_are_measured() -> None:
    data = replace(prepared(9), test=None)
    with work.opened(work.config_of(POINT, data), POINT, data) as job:
        backend = job.backend_made()
        flat = backend.init(0)
        fullest = job.batches(0).rows
        assert job.evaluator(backend)(flat) == backend.evaluate(flat, fullest.features, fullest.labels)


def test_rows_that_cannot_be_trained_on_leave_nothing() -> None:
    data = replace(prepared(), train=table_of(Rows(rows_of(9, 1).features, np.zeros(9, np.int32))))
    with (
        pytest.raises(DataError, match="needs at least two classes"),
        work.opened(work.config_of(POINT, data), POINT, data),
    ):
        pass


# ---- single


def test_single_is_the_training_of_one_process() -> None:
    data, told = prepared(41), []
    run = single.run(POINT, data, lambda phase, **more: told.append(phase))
    flat = expected(POINT, data, workers=1)
    assert run.checksum == checksum(flat)
    assert run.version == 3 * 11
    check_run(run, POINT, flat, data, workers=1)
    costs = dict(run.costs)
    assert costs.pop("update_s") > 0
    assert set(costs.values()) == {0}
    assert told[:2] == ["dealing the rows", "starting a process"]


def test_single_ends_at_its_target() -> None:
    point = replace(POINT, target_accuracy=0.5, epochs=50)
    run = single.run(point, prepared(), silent)
    assert [each["accuracy"] >= 0.5 for each in run.epochs] == [False] * (len(run.epochs) - 1) + [True]
    assert len(run.epochs) < 50
    assert f"ended after epoch {len(run.epochs)} of 50: its target was reached" in run.notes


def test_single_says_that_it_diverged() -> None:
    with pytest.raises(Diverged, match="learning rate ten times smaller"):
        single.run(replace(POINT, optimizer="sgd", learning_rate=1e30), prepared(), silent)


# ---- torchdist

RANKS = """
import gc, json, sys
from datetime import timedelta
import torch, torch.distributed as dist
from coproc.contestants.torchdist import Rank, flat_of
from coproc.contestants.work import Work
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
for work in json.loads(sys.argv[1]):
    rank = Rank(torch, dist, Work.from_json(work))
    told = rank.train()
    if told is not None:
        print(json.dumps([told, flat_of(rank._network).tolist()]))
    del rank
gc.collect()
dist.destroy_process_group()
"""


def in_ranks(workers: int, works: list[str]) -> list[tuple[dict[str, Any], Flat]]:
    """Train each of the works in so many processes, as torchrun would start them; what rank 0 tells, and the model."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, json.dumps(works)],
            env={**os.environ, **ONE_THREAD, **world, "RANK": str(rank), "PYTHONPATH": python_path()},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(workers)
    ]
    try:
        outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait(10)
    assert [rank.returncode for rank in ranks] == [0] * workers
    assert outputs[1:] == [""] * (workers - 1)
    lines = [json.loads(line) for line in outputs[0].splitlines()]
    return [(told, np.array(flat, np.float32)) for told, flat in lines]


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_torch_computes_what_one_process_does_whatever_the_optimizer_and_the_rows() -> None:
    workers, works = 2, []
    # 11 rows: parts of 6 and 5, so that the last round has 2 and 1; 9: parts of 5 and 4, the last of 1 and none.
    points = [(replace(POINT, optimizer=name), prepared(rows)) for name in OPTIMIZERS for rows in (9, 11)]
    too_fast = (replace(POINT, optimizer="sgd", learning_rate=1e30), prepared(9))
    opened = []
    for point, data in [*points, too_fast]:
        context = work.opened(work.config_of(point, data, workers), point, data)
        works.append(context.__enter__().to_json())
        opened.append(context)
    try:
        answers = in_ranks(workers, works)
    finally:
        for context in opened:
            context.__exit__(None, None, None)
    diverged, _ = answers.pop()
    assert isinstance(failure_in(diverged["failure"]), Diverged)
    assert len(answers) == len(points)
    for (point, data), (told, flat) in zip(points, answers, strict=True):
        np.testing.assert_allclose(flat, expected(point, data, workers), rtol=1e-4, atol=1e-6)
        run = course.run_of(told)
        assert run.checksum == checksum(flat)
        assert run.version == 3 * 2
        assert run.costs["worker_out_bytes"] == run.costs["worker_in_bytes"] == 6 * 2 * 4 * len(flat)
        check_run(run, point, flat, data, workers)


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
@pytest.mark.parametrize("name", ["softmax", "logistic", "squared"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_torch_has_the_same_losses_and_gradients(name: str, activation: str) -> None:
    import torch

    spec = {"inputs": 5, "hidden": [7, 6], "outputs": 3 if name == "softmax" else 1}
    backend: Any = grads.create({"backend": "mlp", **spec, "activation": activation, "loss": name})
    rows = rows_of(20, 3)
    flat = backend.init(3)
    out = np.empty_like(flat)
    loss = backend.value_and_grad(flat, grads.Batch(rows.features, rows.labels), out=out)
    network = torchdist.network(torch, backend, flat)
    assert torchdist.flat_of(network).tobytes() == flat.tobytes()
    summed = torchdist.loss_of(torch, name)(network(torch.from_numpy(rows.features)), torch.from_numpy(rows.labels))
    (summed / 20).backward()
    np.testing.assert_allclose(summed.item() / 20, loss, rtol=1e-5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.grad)
    np.testing.assert_allclose(torchdist.flat_of(network), out, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_torchdist_on_spark() -> None:
    point, data = replace(POINT, contestant="torchdist"), prepared(21)
    run = torchdist.run(point, data, silent)
    flat = expected(point, data, workers=2)
    check_run(run, point, flat, data, workers=2)
    assert run.version == 3 * 3
    assert run.costs["jobs_count"] == 1
    assert run.memory["worker"] > 1 << 20


# ---- ray


def by_ray(point: Point) -> Run:
    """A run in a process of its own, as a comparison has it: Ray leaves open what it once opened."""
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(point.to_json_values())],
        env={**os.environ, "PYTHONPATH": python_path()},
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
        check=True,
    )
    return course.run_of(json.loads(done.stdout))


@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed")
@pytest.mark.parametrize("consistency", ["bsp", "asp"])
def test_ray(consistency: str) -> None:
    point = replace(POINT, contestant="ray", consistency=consistency)
    run = by_ray(point)
    pushes = 3 * (6 + 5)
    assert len(run.samples) == pushes
    assert run.costs["worker_in_bytes"] == run.costs["server_out_bytes"] == pushes * 4 * run.parameters
    assert run.costs["local_bytes"] == 2 * run.costs["worker_in_bytes"]
    staleness = [sample[8] for sample in run.samples]
    if consistency == "bsp":
        flat = expected(point, prepared(RAY_ROWS), workers=2)
        assert run.checksum == checksum(flat)
        assert run.version == 3 * 6
        assert set(staleness) == {0}
        check_run(run, point, flat, prepared(RAY_ROWS), workers=2)
    else:
        assert run.version == pushes
        assert run.epochs[-1]["train_loss"] < run.epochs[0]["train_loss"]
        # Two that take turns are one version apart; who is alone at the end of an epoch, none.
        assert max(staleness) >= 1


# Parts of 21 and 20: six batches, the last of one row, and five.
RAY_ROWS = 41

if __name__ == "__main__":
    asked = Point(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(base.load("ray").run(asked, prepared(RAY_ROWS), silent))))
