"""The model as a file: what is in the folder, what is read and written, other stores than the tier."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from coproc import optim
from coproc.errors import ConfigError, ModelExists, ServerError
from coproc.modes.base import ModeSettings
from coproc.modes.storage import AT_ONCE, StorageMode
from coproc.modes.vectors import Vectors, place_of, weighted_mean
from coproc.pools.inline import InlinePool
from coproc.testing.deaths import Deaths
from coproc.testing.works import Training, Work, one_process

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
UNEQUAL = Work((17, 2, 9))


def pushes(work):
    """Workers who give something in each step."""
    given = [
        sum(1 for rows in work.rows if place * work.batch_size < rows) for place in range(max(work.pushes_per_epoch))
    ]
    return given * work.epochs


def test_what_a_step_costs(ground):
    with Training("storage", ground, UNEQUAL) as training:
        found = training.run(InlinePool())
        np.testing.assert_allclose(found, one_process(UNEQUAL), **CLOSE)
        costs, size_bytes, given = training.mode.costs(), found.nbytes, pushes(UNEQUAL)
        assert costs.jobs_count == len(given)
        assert costs.worker_in_bytes == costs.worker_out_bytes == sum(given) * size_bytes
        assert costs.driver_in_bytes == sum(given) * size_bytes
        assert costs.driver_out_bytes == len(given) * size_bytes
        (left,) = training.files()
        assert left.endswith(f"/{len(given)}/model")
    assert training.files() == []


@pytest.mark.parametrize("workers", [AT_ONCE + 1, 70])
def test_many_gradients_are_reduced_in_a_tree(ground, workers):
    work = Work((3,) * (workers - 1) + (1,), epochs=2, rates=(0.1, 0.05))
    with Training("storage", ground, work) as training:
        found = training.run(InlinePool(slots=128))
        np.testing.assert_allclose(found, one_process(work), **CLOSE)
        costs, size_bytes, steps = training.mode.costs(), found.nbytes, work.epochs
        levels = [workers]
        while levels[-1] > AT_ONCE:
            levels.append(math.ceil(levels[-1] / AT_ONCE))
        assert costs.jobs_count == steps * len(levels)
        assert costs.worker_in_bytes == steps * (workers + sum(levels[:-1])) * size_bytes
        assert costs.worker_out_bytes == steps * sum(levels) * size_bytes
        assert costs.driver_in_bytes == steps * levels[-1] * size_bytes
        assert len(training.files()) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_worker_that_dies_writes_its_gradient_again(ground, tmp_path, when):
    deaths = Deaths(tmp_path, [(0, 1, when), (2, 2, when), (0, 6, when)])
    with ground.pool("inline", deaths) as pool, Training("storage", ground, UNEQUAL) as training:
        np.testing.assert_allclose(training.run(pool), one_process(UNEQUAL), **CLOSE)
        assert training.mode.status().examples_count == sum(UNEQUAL.rows) * UNEQUAL.epochs
        assert len(training.files()) == 1
    assert deaths.died == 3


@pytest.mark.parametrize("pool", ["inline", "processes"])
def test_a_disk_stands_in_for_the_tier(ground, tmp_path, pool):
    with (
        ground.pool(pool) as there,
        Training("storage", ground, UNEQUAL, storage_url=f"file://{tmp_path}/a") as training,
    ):
        np.testing.assert_allclose(training.run(there), one_process(UNEQUAL), **CLOSE)
        (left,) = _files(tmp_path)
        assert left.match(f"a/*/{len(pushes(UNEQUAL))}/model")
        assert training.files() == []
    assert _files(tmp_path) == []


def _files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_any_store_of_fsspec_does(ground):
    with Training("storage", ground, UNEQUAL, storage_url="memory://models") as training:
        np.testing.assert_allclose(training.run(InlinePool()), one_process(UNEQUAL), **CLOSE)


@pytest.mark.parametrize("optimizer", [optim.SGD(0.1, clip_norm=0.3), optim.LAMB(0.05)], ids=repr)
def test_rules_that_go_by_norms_of_the_whole_model(ground, optimizer):
    work = replace(UNEQUAL, optimizer=optimizer, rates=(optimizer.base_rate,) * 3)
    with Training("storage", ground, work) as training:
        np.testing.assert_allclose(training.run(InlinePool()), one_process(work), **CLOSE)


def settings(ground, **changes):
    given = {
        "address": ground.address,
        "token": ground.token,
        "model": "refused",
        "params": {"w": np.zeros(3, np.float32)},
        "optimizer": optim.SGD(0.1),
        "consistency": UNEQUAL.rule,
    }
    return ModeSettings(**{**given, **changes})


def test_what_cannot_be_is_refused(ground, tmp_path):
    many = Work((1,) * (AT_ONCE + 1)).rule
    with pytest.raises(ConfigError, match="means of the gradients of more than 8 workers, and average needs each"):
        StorageMode(settings(ground, consistency=many, optimizer=optim.Average()))
    mode = StorageMode(settings(ground))
    with pytest.raises(ModelExists, match="there is a folder /modes/refused already"):
        StorageMode(settings(ground))
    mode.close()
    mode.close()
    (tmp_path / "here").write_text("a file")
    with pytest.raises(ServerError, match=r"here/refused cannot be read or written"):
        StorageMode(settings(ground, storage_url=f"file://{tmp_path}/here"))


def test_a_vector_in_the_tier_is_its_memory(ground):
    with Vectors(place_of(settings(ground, model="near"))) as vectors:
        vectors.make()
        written = np.arange(100_003, dtype=np.float32)
        vectors.write("v", written)
        one, two = vectors.read("v"), vectors.read("v")
        vectors.write("v", written + 1)
        vectors.remove(["v", "never"])
        with pytest.raises(ServerError, match=r"/modes/near/v should be there"):
            vectors.read("v")
        vectors.remove_folder("never")
        vectors.remove_folder()
        vectors.remove_folder()
    np.testing.assert_array_equal(one, written)  # of a version that is gone
    assert not one.flags.writeable
    assert not one.flags.owndata
    assert _page_of(one) == _page_of(two)


def _page_of(vector):
    """The file, by number, that is mapped where a vector begins."""
    at = vector.ctypes.data
    with open("/proc/self/maps") as maps:
        for line in maps:
            where, _, _, _, inode, *_ = line.split()
            lo, hi = (int(each, 16) for each in where.split("-"))
            if lo <= at < hi:
                assert inode != "0", "memory of this process"
                return inode
    raise AssertionError("nothing is mapped there")


def test_a_weighted_mean_in_pieces():
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(100_003).astype(np.float32) for _ in range(3)]
    expected = sum(np.float64(weight) * row for weight, row in zip((1, 2, 5), rows, strict=True)) / 8
    np.testing.assert_allclose(weighted_mean(rows, [1, 2, 5]), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(weighted_mean(rows[:1], [7]), rows[0])
