"""Hogwild: all workers of one host descend one vector in shared memory, in place, without locks.

Niu, Recht, Re, Wright, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient Descent" (NIPS 2011). A
worker computes its gradient on the vector while others change it, and takes its step right there, in compiled code and
without waiting for anybody. The paper takes the addition to one number for atomic; here as in the code that came after
it, it is a load and a store, so that of two steps that meet in a number one may be lost there. An optimizer's state is
shared in the same way (Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", ICML 2016, section 4.1).

A step counts when its worker's ledger says so, right after the descent: of a worker that is killed in the middle of
one, the next attempt takes that whole step once more. Two attempts of one worker never descend at the same time.

Nothing travels: of a model of K parameters a step reads 4K of the memory of the host and writes 4K.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from coproc import optim
from coproc.errors import ConfigError, Timeout, Unsupported
from coproc.exchange import Exchange, ExchangeSpec, Spent, Taken, Version
from coproc.layout import Flat, ParamLayout
from coproc.local import Descent
from coproc.modes.base import Capabilities, Mode, ModeSettings, ModeStatus
from coproc.modes.driver import Driver
from coproc.optim import Optimizer
from coproc.pools.base import Pool
from coproc.shared import racing
from coproc.shared.control import MAX_WORKERS, word_to_float
from coproc.shared.racing import Racing
from coproc.tasks import WorkerReport, WorkerTask
from coproc.wire import as_coproc
from storage_tier.errors import TierError

CAPABILITIES = Capabilities(
    consistencies=frozenset({"asp"}),
    exactly_once=False,
    whole_versions=False,
    elastic=True,
    waits_for_all="never",
    same_answer=False,
    survives_server=False,
    one_host=True,
)

# How often an attempt looks whether the one before it is over.
_LOOK_S = 0.02
# Multiples of it lie apart, modulo 1, however many there are.
_GOLDEN = (5**0.5 - 1) / 2


class HogwildMode(Driver):
    """Driver face: whoever has made the memory; it goes with this process."""

    capabilities = CAPABILITIES
    name = "hogwild"

    def __init__(self, settings: ModeSettings) -> None:
        """
        Raises:
            ConfigError: not asynchronous; an optimizer that needs to know how old a gradient is.
            OutOfMemory: shared memory has no room.
        """
        super().__init__()
        if settings.consistency.name not in CAPABILITIES.consistencies:
            raise ConfigError(
                f"the mode 'hogwild' waits for nobody: it goes with Asp, not with {settings.consistency!r}"
            )
        optimizer: Optimizer = settings.optimizer
        if optimizer.compensates or optimizer.staleness != "ignore":
            raise ConfigError(
                "the mode 'hogwild' knows of no gradient what it was computed on: leave out delay_compensation and "
                "staleness"
            )
        layout = ParamLayout.of(dict(settings.params))
        params = np.empty(layout.size, np.float32)
        layout.fill(params, dict(settings.params))
        _warm(optimizer)
        self._terms = {
            "optimizer": optimizer.to_config(),
            "shapes": {name: list(shape) for name, shape in layout.shapes.items()},
        }
        try:
            self._racing = Racing.create(params, 1 + len(optimizer.state_rows), optimizer.base_rate)
        except TierError as error:
            raise as_coproc(error) from None
        self._looked = time.monotonic(), 0

    def exchange_spec(self) -> ExchangeSpec:
        return ExchangeSpec("hogwild", {**self._terms, "place": self._racing.place})

    def group(self, pool: Pool, tasks: Sequence[WorkerTask], stop: Callable[[], bool]) -> list[WorkerReport]:
        """One job; its workers may be new."""
        count = max((task.worker + 1 for task in tasks), default=0)
        if count > MAX_WORKERS:
            raise ConfigError(f"workers of the mode 'hogwild' are numbered 0 to {MAX_WORKERS - 1}, not {count - 1}")
        self._racing.count = max(self._racing.count, count)
        return self.job(pool, tasks, stop)

    def snapshot(self, *, timeout_s: float) -> Version:
        """What is there; parts of several versions where workers are at work. A copy."""
        version = self._racing.version
        return Version(version, self._racing.rows[0].copy())

    def checkpoint(self, *, timeout_s: float) -> None:
        """There are none."""
        raise Unsupported("the mode 'hogwild' writes no checkpoints")

    def set_learning_rate(self, learning_rate: float) -> None:
        """Of each worker's next step on."""
        self._racing.learning_rate = learning_rate

    def status(self) -> ModeStatus:
        """What the workers have told; no round trip."""
        rows = [self._racing.told(worker) for worker in range(self._racing.count)]
        pushes = sum(row[racing.UPDATES] for row in rows)
        moment, (then, before) = time.monotonic(), self._looked
        self._looked = moment, pushes
        return ModeStatus(
            version=pushes,
            pushes_count=pushes,
            examples_count=sum(row[racing.EXAMPLES] for row in rows),
            loss_sum=sum(word_to_float(row[racing.LOSS]) for row in rows),
            loss_examples_count=sum(row[racing.LOSS_EXAMPLES] for row in rows),
            staleness_mean=sum(row[racing.STALENESS_SUM] for row in rows) / max(1, pushes),
            staleness_max=max((row[racing.STALENESS_MAX] for row in rows), default=0),
            pushes_per_s=(pushes - before) / max(1e-9, moment - then),
        )

    def close(self) -> None:
        """Give the memory back; workers that are left keep theirs until they end. Idempotent."""
        self._racing.close()


class HogwildExchange:
    """Worker face: one attempt."""

    def __init__(self, shared: Racing, optimizer: Optimizer, layout: ParamLayout, worker: int) -> None:
        self.spent = Spent()
        self._shared = shared
        self._worker = worker
        self._held = False
        # A worker is one unit of parallelism. Two that sweep the same places at the same time take each other's cache
        # lines away, take several times as long for it, and so meet again: each begins somewhere else.
        begin = worker * _GOLDEN % 1
        self._descent = Descent(optimizer, layout, shared.rows[0], threads=1, rows=shared.rows, begin=begin)
        self._params = shared.rows[0].view()
        self._params.flags.writeable = False
        self._gradient = np.empty(layout.size, np.float32)
        self._read = 0

    @property
    def next_step(self) -> int:
        return self._shared.next_step(self._worker)

    @property
    def version(self) -> int:
        return self._shared.version

    def pull(self, *, timeout_s: float) -> Version:
        """The memory itself, which others change meanwhile."""
        self._read = self._shared.version
        self.spent.came(self._params.nbytes, local=True)
        return Version(self._read, self._params)

    def gradient(self, *, timeout_s: float) -> Flat:
        """Memory of this attempt. Waits for another one of the same worker to end.

        Raises:
            Timeout: it has not.
        """
        self._hold(timeout_s)
        return self._gradient

    def push(self, *, step: int, examples: int, loss: float, timeout_s: float, last: bool) -> Taken:
        """Take the step. A duplicate if the attempt before has taken it meanwhile."""
        self._hold(timeout_s)
        shared, descent = self._shared, self._descent
        if step < self.next_step:
            return Taken(step, self._read, duplicate=True)
        version = shared.version
        descent.learning_rate, descent.updates = shared.learning_rate, version
        descent.step([self._gradient], [examples], [loss])
        shared.tell(self._worker, step, examples, loss, max(0, version - self._read))
        self.spent.went(self._gradient.nbytes, local=True)
        self.spent.update_s = descent.busy_s
        return Taken(step, self._read)

    def skip(self, *, step: int, timeout_s: float) -> None:
        self._hold(timeout_s)
        if step == self.next_step:
            self._shared.tell(self._worker, step, 0, 0.0, 0)

    def _hold(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._held:
            self._held = self._shared.hold(self._worker)
            if self._held:
                return
            if time.monotonic() >= deadline:
                raise Timeout(f"another attempt of worker {self._worker} is at work: this one waits for its end")
            time.sleep(_LOOK_S)

    def leave(self) -> None:
        """Nobody waits for anybody."""

    def close(self) -> None:
        """Let another attempt go on. Idempotent."""
        self._descent.close()
        self._shared.close()

    abort = close


def _warm(optimizer: Optimizer) -> None:
    """Compile ahead what workers then find on disk."""
    layout = ParamLayout.of({"w": (5, 5), "b": (5,)})
    with Descent(optimizer, layout, np.zeros(layout.size, np.float32), threads=1) as tiny:
        tiny.warm(1)


def start(settings: ModeSettings) -> Mode:
    """Make the memory."""
    return HogwildMode(settings)


def open_exchange(spec: ExchangeSpec, worker: int, *, timeout_s: float) -> Exchange:
    """Map the run's memory.

    Raises:
        ConfigError: this is another host than the driver's.
    """
    given: Mapping[str, Any] = spec.settings
    layout = ParamLayout({name: tuple(shape) for name, shape in given["shapes"].items()})
    shared = Racing.open(given["place"])
    try:
        return HogwildExchange(shared, optim.from_config(given["optimizer"]), layout, worker)
    except BaseException:
        shared.close()
        raise
