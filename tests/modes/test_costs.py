"""What training costs is counted alike in every mode: by tasks, by the driver, by servers that know nothing of them."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

import coproc
from coproc import optim
from coproc.errors import ConfigError
from coproc.exchange import Spent
from coproc.modes.base import Costs, load, names
from coproc.modes.lockstep import joined
from coproc.pools.inline import InlinePool
from coproc.tasks import WorkerReport
from coproc.testing.modes import own_rule
from coproc.testing.works import Training, Work

WORK = Work((17, 2, 9))


def costs(ground, work, **settings):
    """(of all of it, bytes of a vector)"""
    with Training("coproc", ground, work, **settings) as training:
        flat = training.run(InlinePool())
        return training.mode.costs(), flat.nbytes


@pytest.fixture
def from_afar(monkeypatch):
    """All workers are on another host."""
    monkeypatch.setattr("coproc.modes.coproc.connect", functools.partial(coproc.connect, near=False))


@pytest.mark.parametrize("shards", [1, 2])
def test_from_afar_servers_count_what_workers_do(ground, from_afar, shards):
    found, size_bytes = costs(ground, WORK, shards=shards)
    moved = sum(WORK.given) * size_bytes
    assert (found.worker_in_bytes, found.worker_out_bytes, found.local_bytes) == (moved, moved, 0)
    assert (found.server_in_bytes, found.server_out_bytes) == (moved, moved)


def test_with_a_compression_what_travelled_is_counted(ground, from_afar):
    work = Work((40, 40), epochs=1, rates=(0.1,))
    found, size_bytes = costs(ground, work, compression=coproc.compression.as_compression("bf16"))
    # All but the first pull of a task and its last push are coded, in half of the bytes.
    pushes = sum(work.given)
    moved = (pushes - work.workers) * size_bytes // 2 + work.workers * size_bytes
    assert (found.worker_in_bytes, found.worker_out_bytes) == (moved, moved)
    assert (found.server_in_bytes, found.server_out_bytes) == (moved, moved)


@pytest.mark.parametrize("consistency", ["bsp", "asp"])
def test_the_time_of_descents_is_that_of_all_shards(ground, consistency):
    """Of one shard and asynchronous, passes are made in the compiled loop; else in Python."""
    work = replace(WORK, consistency=consistency)
    with Training("coproc", ground, work) as training:
        assert training.mode.costs().update_s == 0
        training.run(InlinePool())
        some = training.mode.costs().update_s
        assert 0 < some < sum(report.wall_s for report in training.reports)
        assert training.mode.costs().update_s == some  # nothing is descended now


def test_a_restart_of_the_server_forgets_no_descent():
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        model = client.create_model("costs", params={"w": np.zeros(8, np.float32)}, optimizer=optim.SGD(1.0))
        with model.join(0) as worker:
            worker.push({"w": np.ones(8, np.float32)})
            worker.pull(min_version=1)
        before = model.status().swept_s
        assert before > 0
        cluster.servers[0].restart()
        assert model.status(timeout_s=30.0).swept_s >= before


@pytest.mark.parametrize("mode", names())
def test_on_a_pool_that_a_mode_does_not_know_it_refuses(ground, mode):
    pool = InlinePool()
    pool.name = "elsewhere"
    refused = pytest.raises(ConfigError, match=rf"the mode '{mode}' runs on the pools inline.*, not on 'elsewhere'")
    work = replace(WORK, consistency=own_rule(load(mode).CAPABILITIES))
    with Training(mode, ground, work) as training, refused:
        training.run(pool)


def test_costs_are_a_copy(ground):
    with Training("localsgd", ground, WORK) as training:
        first = training.mode.costs()
        assert first == Costs()
        training.run(InlinePool())
        assert first == Costs()


def test_what_several_attempts_have_spent_adds_up():
    spent = Spent(1, 2, 3, 0.5)
    report = WorkerReport(0, 0, 1, (), False, 0.1, spent=spent)
    assert joined(report, report).spent == Spent(2, 4, 6, 1.0)
    assert spent == Spent(1, 2, 3, 0.5)
