"""Sizes of groups: Drizzle's rule by numbers alone, and a training whose groups change."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import coproc
from coproc.errors import ConfigError
from coproc.tasks import EpochReport, WorkerReport
from coproc.training import TrainConfig, train
from coproc.training.groups import LOWER, UPPER, GroupSize


def report(steps, busy_s, worker=0, *, skips=0, duplicates=0):
    """Of a task of one epoch; a quarter of the time each in pulls and pushes."""
    part = EpochReport(
        0, steps - skips - duplicates, duplicates=duplicates, skips=skips,
        pull_s=busy_s / 4, compute_s=busy_s / 2, push_s=busy_s / 4,
    )  # fmt: skip
    return WorkerReport(worker, 0, steps, (part,), False, busy_s)


def test_above_the_bound_it_doubles_and_below_it_gives_one_back():
    size = GroupSize("auto", 100)
    assert (size.steps, size.overhead) == (1, None)
    size.ended(1.0, [report(1, 0.6)])
    assert (size.steps, size.overhead) == (2, pytest.approx(0.4))
    size.ended(1.0, [report(2, 0.88)])  # on the average 0.26
    assert (size.steps, size.overhead) == (4, pytest.approx(0.26))
    size.ended(1.0, [report(4, 1.0)])  # 0.13
    assert size.steps == 8
    size.ended(1.0, [report(8, 1.0)])  # 0.065, between the bounds
    assert size.steps == 8
    size.ended(1.0, [report(8, 1.0)])  # 0.0325
    assert size.steps == 7


def test_the_busiest_worker_counts_with_its_waits_duplicates_and_skips():
    size = GroupSize("auto", 100)
    size.ended(1.0, [report(1, 0.2, 0), report(1, 0.97, 1, skips=1), report(1, 0.1, 2, duplicates=1)])
    assert size.overhead == pytest.approx(0.03)
    assert size.steps == 1  # one is the least


def test_groups_that_were_cut_short_or_went_on_in_another_attempt_say_nothing():
    size = GroupSize("auto", 100)
    size.ended(1.0, [report(1, 0.5)])
    for steps in (1, 0):
        size.ended(1.0, [report(steps, 0.0)])
    size.ended(1.0, [])
    assert (size.steps, size.overhead) == (2, 0.5)


def test_an_epoch_is_the_most():
    size = GroupSize("auto", 5)
    for expected in (2, 4, 5, 5):
        size.ended(1.0, [report(size.steps, 0.1)])
        assert size.steps == expected
    assert GroupSize("auto", 0).steps == 1


@pytest.mark.parametrize(("given", "steps"), [(None, 7), (3, 3), (9, 7)])
def test_a_size_that_is_given_stays(given, steps):
    size = GroupSize(given, 7)
    size.ended(10.0, [report(steps, 0.1)])
    assert size.steps == steps


@pytest.mark.parametrize("job_s", [0.02, 0.15, 1.0])
@pytest.mark.parametrize("step_s", [0.002, 0.012])
def test_it_settles_between_the_bounds(job_s, step_s):
    """A job costs `job_s` besides its steps; then a faster scheduler comes."""
    size = GroupSize("auto", 1 << 20)
    grew = 0
    while size.overhead is None or size.overhead > UPPER:
        size.ended(job_s + size.steps * step_s, [report(size.steps, size.steps * step_s)])
        grew += 1
    assert grew < 20
    for _ in range(20000):
        size.ended(job_s / 2 + size.steps * step_s, [report(size.steps, size.steps * step_s)])
    assert LOWER * 0.9 < size.overhead < UPPER


# ---- trainings


@pytest.fixture(scope="module")
def cluster():
    with coproc.LocalCluster(memory_bytes=256 << 20) as cluster:
        yield cluster


def trained(cluster, **settings):
    """(parameters as bytes, groups, history) of 43 and 42 rows in batches of 4."""
    groups = []
    rng = np.random.default_rng(0)
    features = pa.array(list(rng.normal(size=(85, 4)).astype(np.float32)), pa.list_(pa.float32()))
    table = pa.table({"features": features, "label": np.arange(85) % 3})
    config = TrainConfig(address=cluster.address, hidden=(), epochs=3, batch_size=4, pool="inline", **settings)
    result = train(config, table, on_group=groups.append)
    return b"".join(tensor.tobytes() for tensor in result.params.values()), groups, result.history


@pytest.mark.parametrize("mode", ["coproc", "http"])
def test_whatever_the_sizes_the_model_is_the_same(cluster, mode):
    params, groups, history = trained(cluster, group_size="auto", mode=mode)
    assert params == trained(cluster, group_size=3, mode=mode)[0]
    # By the rule, from what was told of each; and an epoch ends a group.
    size, left = GroupSize("auto", 11), 11
    for group in groups:
        assert group.steps == min(size.steps, left)
        size.ended(group.ended_s - group.began_s, group.reports)
        left = left - group.steps or 11
    for epoch, row in enumerate(history):
        steps = [group.steps for group in groups if group.epoch == epoch]
        assert (sum(steps), max(steps)) == (11, row["group_size"])
        assert [group.group for group in groups if group.epoch == epoch] == list(range(len(steps)))
    assert [group.steps for group in groups][:2] == [1, 2]  # steps of microseconds: a job is nothing but overhead


def test_an_epoch_is_a_group_by_default(cluster):
    _, groups, history = trained(cluster)
    assert [(group.epoch, group.group, group.steps) for group in groups] == [(epoch, 0, 11) for epoch in range(3)]
    assert [row["group_size"] for row in history] == [11] * 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"group_size": "many"}, "--group-size is a number of pushes or auto, not 'many'"),
        ({"group_size": 0}, "--group-size must be at least 1, not 0"),
        (
            {"group_size": "auto", "mode": "storage"},
            "--group-size auto goes with --mode coproc or http or hogwild, not with storage",
        ),
    ],
    ids=str,
)
def test_others_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**given)
