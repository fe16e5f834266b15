"""Local descent and averaging, against the same thing done by hand in one process."""

from __future__ import annotations

import numpy as np
import pytest

from coproc import optim
from coproc.consistency import Asp
from coproc.errors import ConfigError, ModelExists
from coproc.modes.base import ModeSettings, load
from coproc.pools.inline import InlinePool
from coproc.testing.deaths import Deaths
from coproc.testing.works import Training, Work

from .averaging import by_hand

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
UNEQUAL = Work((17, 2, 9), rates=(0.1, 0.1, 0.05))
ADAM = Work((22, 0, 11), optimizer=optim.Adam(0.01), rates=(0.01, 0.005, 0.005))


@pytest.mark.parametrize("combine", ["mean", "best"])
@pytest.mark.parametrize("tau", [1, 2, 100])
@pytest.mark.parametrize("work", [UNEQUAL, ADAM], ids=["momentum", "adam"])
def test_it_is_averaging_by_hand(ground, work, tau, combine):
    with Training("localsgd", ground, work, tau=tau, combine=combine) as training:
        found = training.run(InlinePool())
        expected, rounds = by_hand(work, tau, combine)
        np.testing.assert_allclose(found, expected, **CLOSE)

        costs, size_bytes = training.mode.costs(), found.nbytes
        assert costs.jobs_count == len(rounds)
        assert costs.worker_in_bytes == costs.worker_out_bytes == sum(rounds) * size_bytes
        assert costs.driver_out_bytes == len(rounds) * size_bytes
        assert costs.driver_in_bytes == (len(rounds) if combine == "best" else sum(rounds)) * size_bytes
        status = training.mode.status()
        assert status.version == len(rounds)
        assert status.examples_count == sum(work.rows) * work.epochs
        assert status.pushes_count == sum(-(-rows // work.batch_size) for rows in work.rows) * work.epochs
        # The average, and of each worker who has rows its state.
        assert len(training.files()) == 1 + sum(1 for count in work.rows if count)
    assert training.files() == []


@pytest.mark.parametrize(("pool", "when"), [("inline", "before"), ("inline", "after"), ("processes", "after")])
def test_a_worker_that_dies_does_its_round_again(ground, tmp_path, pool, when):
    deaths = Deaths(tmp_path, [(0, 1, when), (2, 2, when), (0, 4, when)])
    with ground.pool(pool, deaths) as pool, Training("localsgd", ground, UNEQUAL, tau=2) as training:
        np.testing.assert_allclose(training.run(pool), by_hand(UNEQUAL, 2, "mean")[0], **CLOSE)
        assert training.mode.status().examples_count == sum(UNEQUAL.rows) * UNEQUAL.epochs
    assert deaths.died == 3


def test_a_round_that_is_stopped_counts_as_never_begun(ground):
    with Training("localsgd", ground, UNEQUAL, tau=3) as training:
        asked = []

        def stop():
            asked.append(None)
            return len(asked) > 8

        reports = training.mode.run(InlinePool(), training.tasks(0, 5), stop=stop)
        assert all(report.stopped for report in reports)
        reached = training.mode.step
        assert reached in (0, 3)
        assert training.mode.status().examples_count == sum(e.examples for r in reports for e in r.epochs)
        np.testing.assert_allclose(training.run(InlinePool()), by_hand(UNEQUAL, 3, "mean")[0], **CLOSE)


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


def test_what_cannot_be_is_refused(ground):
    start = load("localsgd").start
    with pytest.raises(ConfigError, match=r"tau must be a whole number from 1"):
        start(settings(ground, tau=0))
    with pytest.raises(ConfigError, match='combine must be "mean" or "best", not \'worst\''):
        start(settings(ground, combine="worst"))
    with pytest.raises(ConfigError, match=r"the mode 'localsgd' is synchronous: it goes with Bsp, not with Asp"):
        start(settings(ground, consistency=Asp()))
    mode = start(settings(ground))
    with pytest.raises(ModelExists, match="there is a folder /modes/refused already"):
        start(settings(ground))
    mode.close()
    mode.close()
