"""Trainings whose workers are on another host and send less: the same model, and nothing left out at a task's end."""

from __future__ import annotations

import functools
import json
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import coproc
import coproc.far
from coproc.compression import Int8, TopK
from coproc.data.batches import Minibatch
from coproc.errors import ConfigError
from coproc.modes.base import Capabilities, ModeSettings, load
from coproc.pools.processes import ProcessPool
from coproc.tasks import DataSpec, WorkerTask
from coproc.training import TrainConfig, train
from coproc.training.plan import require_mode
from coproc.training.resume import config_of
from coproc.worker import never, run_worker


@pytest.fixture(scope="module")
def cluster():
    with coproc.LocalCluster(memory_bytes=256 << 20) as cluster:
        yield cluster


@pytest.fixture
def far(monkeypatch):
    """Workers of this process never use shared memory, as on another host."""
    monkeypatch.setattr("coproc.modes.coproc.connect", functools.partial(coproc.connect, near=False))


@pytest.fixture
def sent(monkeypatch):
    """Of each gradient that travels, whether all of it does; by worker's thread."""
    sent = []

    class Noted(coproc.far.Sending):
        def __init__(self, residual, gradient, everything=False):
            sent.append((threading.get_ident(), everything))
            super().__init__(residual, gradient, everything)

    monkeypatch.setattr("coproc.far.Sending", Noted)
    return sent


# ---- nothing is left out


SIZE = 500
# Whole numbers of which bf16 keeps the first three digits: sums of them are exact in float32.
GRADIENT = np.random.default_rng(3).integers(1000, 30_000, SIZE).astype(np.float32)
STEPS = 8


@dataclass
class Constant:
    """A backend whose gradient is the same for any batch; notes the parameters that it is asked about."""

    gradient: np.ndarray
    seen: list

    def value_and_grad(self, params, batch, *, out, accumulate=False):
        self.seen.append(params.copy())
        out[:] = self.gradient
        return 0.5


@dataclass(frozen=True)
class Rows:
    """A partition of so many batches of one row."""

    steps_per_epoch: int

    def examples(self, first, stop):
        return stop - first

    def batch(self, epoch, k):
        return Minibatch(np.zeros((1, 1), np.float32), np.zeros(1, np.int32), (0, k))


@dataclass
class Training:
    """A model, and workers that push constants into it, a task a group as in a pool."""

    mode: object
    address: str
    gradients: list
    batches: list

    def __post_init__(self):
        self.seen = [[] for _ in self.gradients]

    def group(self, until, stop=never):
        """A task a worker, in threads, each with a connection of its own; their reports."""
        reports = {}

        def run(worker):
            task = WorkerTask(
                run="r", worker=worker, exchange=self.mode.exchange_spec(), backend={},
                data=DataSpec(self.address, "none"), pushes_per_epoch=STEPS, until_step=until, end_step=STEPS,
                timeout_s=30.0,
            )  # fmt: skip
            reports[worker] = run_worker(
                WorkerTask.from_json(task.to_json()),
                stop=stop,
                open_source=lambda task: Rows(self.batches[worker]),
                open_backend=lambda task: Constant(self.gradients[worker], self.seen[worker]),
            )

        threads = [threading.Thread(target=run, args=(worker,)) for worker in range(len(self.gradients))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(reports) == len(threads)
        return [reports[worker] for worker in sorted(reports)]

    @property
    def params(self):
        return self.mode.snapshot(timeout_s=30).flat


@pytest.fixture
def training(cluster, far):
    started = []

    def start(consistency, compression, gradients, batches=None):
        settings = ModeSettings(
            cluster.address, None, "constants", {"w": np.zeros(SIZE, np.float32)},
            coproc.optim.SGD(learning_rate=1.0), consistency, compression=compression,
        )  # fmt: skip
        started.append(load("coproc").start(settings))
        return Training(started[-1], cluster.address, gradients, batches or [STEPS] * len(gradients))

    yield start
    for mode in started:
        mode.close()


TINY = TopK(fraction=1e-9)  # one value of these


@pytest.mark.parametrize("compression", [TINY, coproc.compression.BF16()], ids=["topk", "bf16"])
@pytest.mark.parametrize("consistency", [coproc.Bsp(workers=2), coproc.Ssp(bound=2), coproc.Asp()], ids=str)
@pytest.mark.parametrize("groups", [[1, 2, 3], [3, 4, STEPS]], ids=str)
def test_after_each_group_the_model_has_all_of_all_gradients(training, compression, consistency, groups):
    one = training(consistency, compression, [GRADIENT, 3 * GRADIENT[::-1]])
    # A round descends the mean, which is exact for two.
    update = sum(one.gradients) / (2 if isinstance(consistency, coproc.Bsp) else 1)
    for until in groups:
        one.group(until)
        np.testing.assert_array_equal(one.params, -until * update)
    if groups[0] > 1 and isinstance(consistency, coproc.Bsp):  # else nobody was seen to leave anything out
        assert (one.seen[0][1] != -update).any()


def test_who_has_fewer_batches_sends_all_with_the_last_one(training):
    one = training(coproc.Asp(), TINY, [GRADIENT, GRADIENT[::-1]], [STEPS, 3])
    one.group(STEPS)
    np.testing.assert_array_equal(one.params, -(STEPS * GRADIENT + 3 * GRADIENT[::-1]))


def test_who_is_asked_to_stop_sends_all_with_the_push_that_was_due(training):
    one = training(coproc.Asp(), TINY, [GRADIENT])
    [report] = one.group(STEPS, stop=lambda: len(one.seen[0]) >= 3)
    assert (report.stopped, report.next_step) == (True, 3)
    np.testing.assert_array_equal(one.params, -3 * GRADIENT)
    [report] = one.group(STEPS)
    assert (report.stopped, report.first_step) == (False, 3)
    np.testing.assert_array_equal(one.params, -STEPS * GRADIENT)


# ---- whole trainings


def blobs(count=300, seed=0):
    """Three classes that overlap a little."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    features = (rng.normal(size=(count, 4)) + 2 * np.eye(3, 4)[labels]).astype(np.float32)
    return pa.table({"features": pa.array(list(features), pa.list_(pa.float32())), "label": labels})


@pytest.fixture
def settings(cluster):
    return {
        "address": cluster.address,
        "hidden": (16,),
        "epochs": 6,
        "batch_size": 8,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "pool": "inline",
    }


@pytest.mark.parametrize(
    ("compression", "group_size", "consistency"),
    [
        ("bf16", None, "bsp"),
        ("fp16", None, "bsp"),
        ("int8", None, "bsp"),
        (TopK(fraction=0.2), None, "bsp"),
        (TopK(fraction=0.2), 5, "bsp"),
        (TopK(fraction=0.2), 5, "asp"),
    ],
    ids=str,
)
def test_learns_as_without(settings, far, sent, compression, group_size, consistency):
    settings |= {"consistency": consistency, "group_size": group_size}
    plain = train(TrainConfig(**settings), blobs())
    assert not sent
    result = train(TrainConfig(**settings, compression=compression), blobs())
    # 19 pushes a worker and epoch, of which the last of each task is whole.
    groups = 1 if group_size is None else 4
    assert sorted(everything for _, everything in sent) == [False] * 12 * (19 - groups) + [True] * 12 * groups
    assert plain.history[-1]["loss"] < 0.7 * plain.history[0]["loss"]
    assert result.version == plain.version
    if consistency == "asp":  # no two runs have one order of pushes
        assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
        return
    for before, after in zip(plain.history, result.history, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=0.1)


def test_the_same_training_twice_has_the_same_bits(settings, far):
    one, two = (train(TrainConfig(**settings, compression=Int8()), blobs()) for _ in range(2))
    for name, tensor in one.params.items():
        np.testing.assert_array_equal(tensor, two.params[name])


def test_in_shared_memory_it_changes_nothing(settings, sent):
    plain, result = (train(TrainConfig(**settings, compression=each), blobs()) for each in (None, "topk"))
    assert not sent
    for name, tensor in plain.params.items():
        np.testing.assert_array_equal(tensor, result.params[name])


FAR_CHILD = """
import functools
import coproc.modes.coproc as mode
from coproc.pools import processes
mode.connect = functools.partial(mode.connect, near=False)
processes.main()
"""


def test_in_processes_it_gives_the_bits_that_threads_give(settings, far, monkeypatch):
    """What a worker sends depends on nothing but its steps: the process of a task goes on with none of the last."""
    config = TrainConfig(**settings, compression="topk", group_size=5)
    threads = train(config, blobs())
    start = functools.partialmethod(ProcessPool.__init__, command=[sys.executable, "-c", FAR_CHILD])
    monkeypatch.setattr(ProcessPool, "__init__", start)
    processes = train(TrainConfig(**{**settings, "pool": "processes"}, compression="topk", group_size=5), blobs())
    plain = train(TrainConfig(**{**settings, "pool": "processes"}, group_size=5), blobs())
    for name, tensor in threads.params.items():
        np.testing.assert_array_equal(tensor, processes.params[name])
        assert (tensor != plain.params[name]).any()


def test_a_run_is_resumed_with_its_compression(settings, far, tmp_path):
    pq.write_table(blobs(), tmp_path / "rows.parquet")
    data, output = str(tmp_path / "rows.parquet"), tmp_path / "out"
    config = TrainConfig(**{**settings, "address": None}, compression=TopK(fraction=0.2), checkpoint_every=7)
    whole = train(config, data, output=tmp_path / "whole")
    first = train(config, data, output=output, stop=lambda: bool(list(output.glob("checkpoints/0*"))))
    assert first.interrupted
    told = json.loads((output / "run.json").read_text())["config"]["compression"]
    assert told == {"name": "topk", "fraction": 0.2}
    again = config_of(output, {})
    assert again.compression_rule() == TopK(fraction=0.2)
    with pytest.raises(ConfigError, match=r"compression was \{'name': 'topk', 'fraction': 0.2\}, not None"):
        train(config_of(output, {"compression": None}), data, output=output, resume=True)
    result = train(again, data, output=output, resume=True)
    assert result.version == whole.version
    assert result.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=0.05)


# ---- what is refused


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("gzip", "--compression: no compression is called 'gzip'; there are none, bf16, fp16, int8, topk"),
        ({"name": "gzip"}, "--compression: no compression is called 'gzip'; there are none, bf16"),
        ({"name": "topk", "fraction": 2}, "--compression: fraction of TopK must be a number greater than 0"),
        ({"name": "bf16", "bits": 3}, "--compression: compression bf16 has no setting bits"),
        (7, "--compression: compression must be a name or one of coproc.compression, not 7"),
    ],
    ids=str,
)
def test_what_is_no_compression_is_refused_before_anything_starts(given, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig(compression=given)


@pytest.mark.parametrize("given", [None, "none"])
def test_none_is_none(given):
    config = TrainConfig(compression=given)
    assert config.compression_rule() is None
    assert config.to_json_values()["compression"] is None


def test_a_mode_that_has_none_is_told_so():
    able = Capabilities(frozenset({"bsp"}), exactly_once=True, whole_versions=True, elastic=True)
    require_mode(TrainConfig(), able)
    with pytest.raises(ConfigError, match="the mode 'coproc' has no compression: leave out --compression"):
        require_mode(TrainConfig(compression="bf16"), able)
