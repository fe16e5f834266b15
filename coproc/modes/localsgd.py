"""Local descent and averaging: each worker descends by itself for tau steps, then the parameters are averaged.

Each round is a job, in which a worker begins with the average, does tau steps with an optimizer of its own, and writes
its parameters; the driver averages them, weighted by the rows of the round, or takes the ones of the smallest loss
(Moritz, Nishihara, Stoica, Jordan, "SparkNet: Training Deep Networks in Spark", ICLR 2016). The optimizer's state is
never averaged: it is the worker's, and lies in the tier between rounds, for processes of executors come and go.

Bytes a round of a model of K parameters and N workers: 4K in and out a worker, 4K out of the driver and N * 4K in (4K
for the best ones). The state, which is read and written on top of that, is not counted: it goes to no other role.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coproc import optim
from coproc.errors import ConfigError, whole
from coproc.exchange import Exchange, ExchangeSpec, Version
from coproc.layout import Flat, ParamLayout
from coproc.local import Descent
from coproc.modes.base import Capabilities, Costs, Mode, ModeSettings
from coproc.modes.lockstep import FromStep, Lockstep, Share, shares
from coproc.modes.vectors import Vectors, place_of, weighted_mean
from coproc.pools.base import Pool
from coproc.tasks import WorkerReport, WorkerTask

CAPABILITIES = Capabilities(
    consistencies=frozenset({"bsp"}),
    exactly_once=True,
    whole_versions=True,
    elastic=True,
    waits_for_all="never",
    survives_server=False,
    same_answer=False,
)


class LocalMode(Lockstep):
    """Driver face: the average, as a file; versions are rounds."""

    capabilities = CAPABILITIES
    name = "localsgd"

    def __init__(self, settings: ModeSettings) -> None:
        """
        Raises:
            ConfigError: not synchronous; no such tau or rule. ModelExists: another run has this name. As the tier.
        """
        super().__init__(settings)
        self.steps_per_round = whole("tau", settings.tau, 1, 1 << 40)
        if settings.combine not in ("mean", "best"):
            raise ConfigError(f'combine must be "mean" or "best", not {settings.combine!r:.100}')
        self._flat = self.initial()
        self._rounds = 0
        self._learning_rate = settings.optimizer.base_rate
        self._updates: dict[int, int] = {}
        """Of each worker, so far."""
        self._state_rounds: dict[int, int] = {}
        """The round at whose end the state of a worker was written."""
        self._place = place_of(settings)
        self._vectors = Vectors(self._place)
        self._closed = False
        try:
            self._vectors.make()
            self._vectors.write(_average(0), self._flat)
        except BaseException:
            self._vectors.close()
            raise

    @property
    def version(self) -> int:
        return self._rounds

    def task_settings(self, worker: int) -> dict[str, Any]:
        return {
            "place": self._place,
            "round": self._rounds,
            "state_round": self._state_rounds.get(worker),
            "updates": self._updates.get(worker, 0),
            "learning_rate": self._learning_rate,
            "optimizer": self.settings.optimizer.to_config(),
            "shapes": {name: list(shape) for name, shape in self.layout.shapes.items()},
        }

    def round(
        self, pool: Pool, tasks: Sequence[WorkerTask], stop: Callable[[], bool]
    ) -> tuple[list[WorkerReport], Callable[[], None]]:
        reports = self.job(pool, tasks, stop)
        return reports, lambda: self._advance(shares(reports))

    def _advance(self, given: Sequence[Share]) -> None:
        if not given:
            return
        taken = [min(given, key=lambda each: each.loss)] if self.settings.combine == "best" else given
        rows = [self._vectors.read(_params(self._rounds, each.worker)) for each in taken]
        began = time.perf_counter()
        self._flat = weighted_mean(rows, [each.examples for each in taken])
        self.counted.update_s += time.perf_counter() - began
        self._vectors.write(_average(self._rounds + 1), self._flat)
        self.counted.driver_in_bytes += len(rows) * self._flat.nbytes
        self.counted.driver_out_bytes += self._flat.nbytes
        before = [each.worker for each in given if each.worker in self._state_rounds]
        if self.settings.optimizer.state_rows:
            self._vectors.remove(_state(self._state_rounds[worker], worker) for worker in before)
        self._vectors.remove_folder(str(self._rounds))
        for each in given:
            self._state_rounds[each.worker] = self._rounds
            self._updates[each.worker] = self._updates.get(each.worker, 0) + each.pushes
        self._rounds += 1

    def snapshot(self, *, timeout_s: float) -> Version:
        """The average."""
        return Version(self._rounds, self._flat.copy())

    def set_learning_rate(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate

    def costs(self) -> Costs:
        """Averaging is an update too."""
        return self.counted.through_files()

    def close(self) -> None:
        """Remove all files. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self._vectors.remove_folder()
        finally:
            self._vectors.close()


class LocalExchange(FromStep):
    """Worker face: a model of its own for the round. What a round leaves is written with its last push.

    Who has no rows left reads nothing.
    """

    def __init__(self, settings: Mapping[str, Any], worker: int) -> None:
        self._settings = settings
        self._layout = ParamLayout.of({name: tuple(shape) for name, shape in settings["shapes"].items()})
        super().__init__(settings["from_step"], self._layout.size)
        self.version, self._worker = settings["round"], worker
        self._vectors = Vectors(settings["place"])
        self._descent: Descent | None = None

    def _begun(self) -> Descent:
        if self._descent is not None:
            return self._descent
        settings, average = self._settings, self._vectors.read(_average(self.version))
        self.spent.came(average.nbytes, self._vectors.near)
        # A worker is one unit of parallelism.
        self._descent = Descent(optim.from_config(settings["optimizer"]), self._layout, average, threads=1)
        self._descent.learning_rate = settings["learning_rate"]
        self._descent.updates = settings["updates"]
        state = self._descent.rows[1:]
        if state and settings["state_round"] is not None:
            found = self._vectors.read(_state(settings["state_round"], self._worker)).reshape(len(state), -1)
            for row, there in zip(state, found, strict=True):
                row[:] = there
        return self._descent

    def pull(self, *, timeout_s: float) -> Version:
        return Version(self.version, self._begun().params)

    def given(self, step: int, gradient: Flat, examples: int, loss: float, last: bool) -> None:
        descent = self._begun()
        descent.step([gradient], [examples], [loss])
        self.spent.update_s = descent.busy_s
        if last:
            params, *state = descent.rows
            if state:
                self._vectors.write(_state(self.version, self._worker), *state)
            self._vectors.write(_params(self.version, self._worker), params)
            self.spent.went(params.nbytes, self._vectors.near)

    def close(self) -> None:
        if self._descent is not None:
            self._descent.close()
        self._vectors.close()


def _average(round_number: int) -> str:
    """In the folder of the round that begins with it."""
    return f"{round_number}/average"


def _params(round_number: int, worker: int) -> str:
    return f"{round_number}/params-{worker}"


def _state(round_number: int, worker: int) -> str:
    """All rows, as a worker left them in a round. Not in its folder: who has no data in the next one keeps it."""
    return f"state/{round_number}-{worker}"


def start(settings: ModeSettings) -> Mode:
    """Write the first average."""
    return LocalMode(settings)


def open_exchange(spec: ExchangeSpec, worker: int, *, timeout_s: float) -> Exchange:
    """The average, and the worker's state."""
    return LocalExchange(spec.settings, worker)
