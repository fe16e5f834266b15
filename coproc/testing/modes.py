"""What every architecture has to hold, as tests to inherit.

    class TestEveryMode(ModeTests):
        modes = names()

        @pytest.fixture
        def ground(self, cluster, request):
            return Ground(cluster.address, spark=lambda: request.getfixturevalue("spark"))

What a mode's capabilities leave out is no test of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from coproc import optim
from coproc.errors import CoprocError, DataError
from coproc.layout import Flat
from coproc.modes.base import Capabilities, Costs, Mode, load
from coproc.tasks import WorkerReport
from coproc.testing.deaths import Deaths, run_twice
from coproc.testing.works import RULES, TIMEOUT_S, Ground, Training, Work, expected_move, moved, one_process

Test = TypeVar("Test", bound=Callable[..., None])
Choice = Callable[[Capabilities], Iterable[str]]

WORKS = {
    "one": Work((10,)),
    "three": Work((12, 12, 12)),
    "unequal": Work((17, 2, 9)),
    "first-empty": Work((0, 9)),
    "sends-of-two": Work((18, 7), n_send=2),
    "groups": Work((22, 11), group=2),
    "adam": Work((10, 0, 10), optimizer=optim.Adam(0.01), rates=(0.01, 0.005, 0.0025)),
}
CONSTANT = Work((7, 5), constant=True, optimizer=optim.SGD(0.25), rates=(0.25, 0.25, 0.25))
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "groups": {"rows": (7, 5), "group": 1},
    "sends-of-two": {"rows": (12, 0, 3), "n_send": 2},
}
DEATHS = ((0, 1, "before"), (1, 2, "after"), (0, 5, "after"))


def _peers(work: Work, size: int) -> int:
    """Bytes to the owners of slices and from them: of each gradient all but its worker's own, of each version all."""
    return (sum(work.given) + len(work.given) * work.workers) * size * (work.workers - 1) // work.workers


# What a work that nobody disturbs costs, of vectors of `size` bytes: SYSTEMS.md, section 1.
FORMULAS: Mapping[str, Callable[[Work, int], Costs]] = {
    "coproc": lambda work, size: Costs(
        jobs_count=len(work.groups),
        worker_in_bytes=sum(work.given) * size,
        worker_out_bytes=sum(work.given) * size,
        server_in_bytes=sum(work.given) * size,
        server_out_bytes=sum(work.given) * size,
        local_bytes=2 * sum(work.given) * size,
    ),
    "http": lambda work, size: Costs(
        jobs_count=len(work.groups),
        worker_in_bytes=sum(work.given) * size,
        worker_out_bytes=sum(work.given) * size,
        server_in_bytes=sum(work.given) * size,
        server_out_bytes=sum(work.given) * size,
    ),
    "hogwild": lambda work, size: Costs(
        jobs_count=len(work.groups),
        worker_in_bytes=sum(work.given) * size,
        worker_out_bytes=sum(work.given) * size,
        local_bytes=2 * sum(work.given) * size,
    ),
    # Of up to four tasks the tree is one of a single level.
    "broadcast": lambda work, size: Costs(
        jobs_count=len(work.given),
        driver_in_bytes=sum(work.given) * size,
        driver_out_bytes=len(work.given) * size,
        worker_in_bytes=sum(work.given) * size,
        worker_out_bytes=sum(work.given) * size,
    ),
    "storage": lambda work, size: Costs(
        jobs_count=len(work.given),
        driver_in_bytes=sum(work.given) * size,
        driver_out_bytes=len(work.given) * size,
        worker_in_bytes=sum(work.given) * size,
        worker_out_bytes=sum(work.given) * size,
        local_bytes=2 * sum(work.given) * size,
    ).through_files(),
    # The default tau is longer than any group here: a round is a group.
    "localsgd": lambda work, size: Costs(
        jobs_count=len(work.groups),
        driver_in_bytes=sum(work.groups) * size,
        driver_out_bytes=len(work.groups) * size,
        worker_in_bytes=sum(work.groups) * size,
        worker_out_bytes=sum(work.groups) * size,
        local_bytes=2 * sum(work.groups) * size,
    ).through_files(),
    # Groups of several steps, by streams; the versions that they begin and end with go through the tier.
    "allreduce": lambda work, size: Costs(
        jobs_count=len(work.groups),
        worker_in_bytes=_peers(work, size),
        worker_out_bytes=_peers(work, size),
        local_bytes=2 * len(work.groups) * size * (work.workers - 1),
    ),
}


def given(**choices: Choice) -> Callable[[Test], Test]:
    """Make a test of `ModeTests` one for each mode and each combination of what these choose by its capabilities."""

    def mark(test: Test) -> Test:
        test.choices = choices  # type: ignore[attr-defined]
        return test

    return mark


def own_rule(able: Capabilities) -> str:
    """A rule that the mode knows, the synchronous one if it does."""
    return next(name for name in RULES if name in able.consistencies)


def rules(*names: str) -> Choice:
    """Those of these rules that a mode knows and whose outcome is that of one process, or of each gradient once."""
    return lambda able: [name for name in names if name in able.consistencies and (able.same_answer or name != "bsp")]


def pools(*names: str) -> Choice:
    """Those of these pools that a mode runs on."""
    return lambda able: [name for name in names if name in able.pools]


def ahead(able: Capabilities) -> Iterable[str]:
    """The pools on which workers of the mode can fetch ahead."""
    return pools("inline", "processes")(able) if "asp" in able.consistencies and not able.one_host else []


def other_pools(able: Capabilities) -> list[str]:
    """The pools with processes on which no test has a task die."""
    lives = [] if rules("bsp", "asp")(able) else ["processes"]
    return list(pools(*lives, "spark")(able))


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Two ways to add the same float32 numbers differ by less, and a gradient left out by much more."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def assert_moved(work: Work, flat: Flat) -> None:
    """That each gradient of a `constant` work is in the model once."""
    np.testing.assert_allclose(moved(work, flat), np.full(5, expected_move(work)), rtol=1e-5)


def quickest_pool(mode: str) -> str:
    """The name of the pool that starts soonest of those the mode runs on."""
    able: Capabilities = load(mode).CAPABILITIES
    return next(name for name in ("inline", "processes", "spark") if name in able.pools)


def trained(
    mode: str, ground: Ground, work: Work, pool: str | None = None, deaths: Deaths | None = None
) -> tuple[Flat, list[WorkerReport]]:
    """(parameters, reports) of a whole training, after which nothing of it is in the tier."""
    with ground.pool(pool or quickest_pool(mode), deaths) as there:
        with Training(mode, ground, work) as training:
            flat = training.run(there)
        assert training.files() == []
    return flat, training.reports


class ModeTests:
    """Inherit, say which `modes`, and give the fixture `ground`, a `Ground`."""

    modes: ClassVar[Sequence[str]] = ()

    training: ClassVar[Callable[..., Training]] = Training
    """`training(mode, ground, work)` begins one."""

    @classmethod
    def able(cls, mode: str) -> Capabilities:
        """What a mode promises."""
        found: Capabilities = load(mode).CAPABILITIES
        return found

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Nothing is collected of what a mode cannot."""
        choices: Mapping[str, Choice] | None = getattr(metafunc.function, "choices", None)
        if choices is not None:
            found = [
                (mode, *chosen)
                for mode in self.modes
                for chosen in itertools.product(*(choose(self.able(mode)) for choose in choices.values()))
            ]
            metafunc.parametrize(["mode", *choices], found, ids=["-".join(each) for each in found])

    def trained(
        self, mode: str, ground: Ground, work: Work, pool: str, deaths: Deaths | None = None, **given: Any
    ) -> Flat:
        """The parameters after a whole training. Where steps that meet may be lost, none meet: one task at a time."""
        slots = 3 if self.able(mode).exactly_once else 1
        with (
            ground.pool(pool, deaths, slots=slots, **given) as there,
            type(self).training(mode, ground, work) as training,
        ):
            return training.run(there)

    @given(case=lambda able: WORKS)
    def test_undisturbed(self, mode: str, ground: Ground, case: str) -> None:
        """It is what one process gives, costs what the formula says, and leaves nothing."""
        able = self.able(mode)
        work = replace(WORKS[case], consistency=own_rule(able))
        with ground.pool(quickest_pool(mode)) as pool:
            with type(self).training(mode, ground, work) as training:
                flat = training.run(pool)
                costs = training.mode.costs()
            assert training.files() == []
        if able.same_answer:
            assert_close(flat, one_process(work))
        assert sum(part.examples for report in training.reports for part in report.epochs) == sum(work.rows) * 3
        assert costs.update_s > 0
        assert replace(costs, update_s=0.0) == FORMULAS[mode](work, flat.nbytes)

    @given(pool=other_pools)
    def test_on_every_pool(self, mode: str, ground: Ground, pool: str) -> None:
        able = self.able(mode)
        work = replace(WORKS["unequal"], consistency=own_rule(able))
        with ground.pool(pool) as there, type(self).training(mode, ground, work) as training:
            flat = training.run(there)
        if able.same_answer:
            assert_close(flat, one_process(work))
        assert sum(part.examples for report in training.reports for part in report.epochs) == sum(work.rows) * 3

    @given(consistency=rules(*RULES), changes=lambda able: CHANGES)
    def test_each_gradient_counts_once(self, mode: str, ground: Ground, consistency: str, changes: str) -> None:
        work = replace(CONSTANT, consistency=consistency, **CHANGES[changes])
        assert_moved(work, self.trained(mode, ground, work, quickest_pool(mode)))

    @given(consistency=rules("bsp", "asp"), pool=pools("inline", "processes"))
    def test_a_task_that_dies_is_tried_again_and_counts_once(
        self, mode: str, ground: Ground, tmp_path: Path, consistency: str, pool: str
    ) -> None:
        """Between steps: a mode without exactly once need not know where within one it died."""
        # A process that takes the place of another costs half a second.
        deaths = Deaths(tmp_path, DEATHS if pool == "inline" else DEATHS[:2])
        work = replace(CONSTANT, rows=(16, 12), consistency=consistency)
        assert_moved(work, self.trained(mode, ground, work, pool, deaths))
        assert deaths.died == len(deaths.at)

    @given(consistency=rules("bsp", "asp"), pool=pools("inline"))
    def test_a_task_that_runs_twice_at_once_counts_once(
        self, mode: str, ground: Ground, consistency: str, pool: str
    ) -> None:
        work = replace(CONSTANT, rows=(32, 24), consistency=consistency)
        try:
            flat = self.trained(mode, ground, work, pool, run_task=run_twice)
        except CoprocError:
            assert not self.able(mode).elastic  # a gang may refuse it
        else:
            assert_moved(work, flat)

    @given(pool=ahead)
    def test_what_is_fetched_ahead_loses_nothing_and_costs_no_more(
        self, mode: str, ground: Ground, tmp_path: Path, pool: str
    ) -> None:
        work = replace(CONSTANT, rows=(16, 12), consistency="asp", prefetch=True)
        deaths = Deaths(tmp_path / "deaths", DEATHS[:2])
        deaths.folder.mkdir()
        assert_moved(work, self.trained(mode, ground, work, pool, deaths))
        assert deaths.died == len(deaths.at)
        with ground.pool(pool) as there, type(self).training(mode, ground, work) as training:
            flat = training.run(there)
            costs, status = training.mode.costs(), training.mode.status()
        assert status is not None
        assert (status.staleness_max, status.examples_count) == (0, sum(work.rows) * work.epochs)
        expected = FORMULAS[mode](work, flat.nbytes)
        assert costs.worker_out_bytes == expected.worker_out_bytes
        assert costs.worker_in_bytes <= expected.worker_in_bytes  # less where nothing new is nothing to send

    @given(pool=pools("inline"))
    def test_one_worker_that_fails_ends_all(self, mode: str, ground: Ground, tmp_path: Path, pool: str) -> None:
        work = replace(CONSTANT, consistency=own_rule(self.able(mode)))
        with pytest.raises(DataError, match="worker 1 refuses step 2"):
            self.trained(mode, ground, work, pool, Deaths(tmp_path, [(1, 2, "refuse")]))

    @given()
    def test_a_stop_leaves_a_model_that_can_be_read(self, mode: str, ground: Ground) -> None:
        work = replace(CONSTANT, consistency=own_rule(self.able(mode)))
        with ground.pool(quickest_pool(mode)) as pool, type(self).training(mode, ground, work) as training:
            tasks = training.tasks(0, 2)
            reports = training.mode.run(pool, tasks, stop=lambda: True)
            assert len(reports) < len(tasks) or any(report.stopped for report in reports)
            assert np.isfinite(training.mode.snapshot(timeout_s=TIMEOUT_S).flat).all()

    @given()
    def test_what_the_driver_sees(self, mode: str, ground: Ground) -> None:
        able = self.able(mode)
        work = replace(WORKS["unequal"], consistency=own_rule(able))
        with ground.pool(quickest_pool(mode)) as pool, type(self).training(mode, ground, work) as training:
            driver = training.mode
            assert isinstance(driver, Mode)
            assert driver.capabilities == able
            before = driver.snapshot(timeout_s=TIMEOUT_S)
            flat = training.run(pool)
            after = driver.snapshot(timeout_s=TIMEOUT_S)
            assert after.version > before.version
            assert after.flat.tobytes() == flat.tobytes()
            assert before.flat.tobytes() == work.initial().tobytes()  # a copy, that nothing changed
            status = driver.status()
            if status is not None:
                epochs = [each for report in training.reports for each in report.epochs]
                assert status.version == after.version
                assert status.examples_count == sum(work.rows) * work.epochs
                assert status.loss_examples_count == status.examples_count
                np.testing.assert_allclose(status.loss_sum, sum(each.loss_sum for each in epochs), rtol=1e-6)
                assert status.staleness_max == max(each.staleness_max for each in epochs)
            driver.close()
            driver.close()
