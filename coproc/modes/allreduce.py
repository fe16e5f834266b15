"""BigDL's parameter manager: equal peers, each of which owns a slice of the model and its optimizer's state.

A step moves 2 * P * B * (N - 1) / N bytes into each of N peers and out of it (P parameters of B bytes), and nothing of
the model's size through the driver. A group of one step is two jobs, whose blocks lie in the tier; a longer one is a
single job whose tasks talk by streams, which needs a task slot for each of them at the same time. Streams have no TLS:
where the tier has it, every step is two jobs. Spark's speculation must be off, as for the original: a second attempt
beside the first ends a job with streams. Dai et al., "BigDL" (SoCC 2019), section 3.3.

A task of the two jobs that dies is made again alone; of a job with streams all tasks are, from the group's first step,
up to 4 times. Such a group that is stopped on the way leaves nothing. As compression there is BigDL's: of each float32
the upper 16 bits travel (bf16, cut off and not rounded), and an owner keeps all of its own.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from coproc.errors import ConfigError, ModelExists, ServerError, Timeout, Unreachable, WorkerLost
from coproc.exchange import Exchange, ExchangeSpec, Spent, Version
from coproc.layout import Flat
from coproc.modes.base import Capabilities, Mode, ModeSettings
from coproc.modes.lockstep import FromStep, Lockstep, shares
from coproc.peers.blocks import put_down
from coproc.peers.gang import GangExchange
from coproc.peers.slices import Slices, Terms, translated
from coproc.pools.base import ATTEMPT_LIMIT, Pool
from coproc.tasks import WorkerReport, WorkerTask
from storage_tier.errors import PathExists

CAPABILITIES = Capabilities(
    consistencies=frozenset({"bsp"}),
    exactly_once=True,
    whole_versions=True,
    elastic=False,
    waits_for_all="in groups",
    compression=True,
)

_ROOT = "/allreduce"
_REDUCE = "coproc.peers.blocks:reduce"


class AllReduceMode(Lockstep):
    """Driver face: starts the jobs, and knows which version is whole."""

    capabilities = CAPABILITIES
    name = "allreduce"

    def __init__(self, settings: ModeSettings) -> None:
        """Write the first version into the tier.

        Raises:
            ConfigError: an optimizer or a compression that does not go with slices; more workers than parameters.
            ModelExists: another run has this name. Unreachable, Unauthenticated, OutOfMemory: from the tier.
        """
        super().__init__(settings)
        peers, compression = settings.consistency.workers, settings.compression
        if not 1 <= peers <= self.layout.size:
            raise ConfigError(f"{self.layout.size} parameters are cut into slices for as many workers, not for {peers}")
        if compression is not None and compression.name != "bf16":
            raise ConfigError(
                f"the mode 'allreduce' sends all of float32 or the upper half of it, bf16, and not {compression.name}"
            )
        self._rate = settings.optimizer.base_rate
        self._updates = 0
        terms = Terms(
            address=settings.address,
            token=settings.token,
            tls_authority=settings.tls_authority,
            directory=f"{_ROOT}/{settings.model}",
            shapes={tensor: list(shape) for tensor, shape in self.layout.shapes.items()},
            optimizer=settings.optimizer.to_config(),
            peers=peers,
            truncated=compression is not None,
            end="0",
        )
        self._slices = Slices(terms)
        self._version = terms.end
        """The directory of what is whole."""
        self._remover = ThreadPoolExecutor(1, "allreduce-remover")
        self._leaving: Future[None] | None = None
        self._closed = False
        try:
            self._claim(terms.directory)
            try:
                self._slices.begin(self.initial())
            except BaseException:
                self._slices.remove()
                raise
        except BaseException:
            self._slices.close()
            raise

    def _claim(self, directory: str) -> None:
        try:
            with translated(PathExists):
                self._slices.tier.put(f"{directory}/run", b"")
        except PathExists:
            raise ModelExists(
                f"there are files in {directory} already, of another run that goes on or was left: choose another name "
                f"with --model, or remove them: coprocessor fs rm -r {directory}"
            ) from None

    @property
    def version(self) -> int:
        return self._updates

    def group(self, pool: Pool, tasks: Sequence[WorkerTask], stop: Callable[[], bool]) -> list[WorkerReport]:
        """One job, by streams, or two jobs a step; [] where it was stopped and nothing of it is in the model.

        Raises:
            WorkerLost: workers of the one job have died, and again at each attempt; as `Pool.run`.
        """
        until = max((task.until_step for task in tasks), default=0)
        gang = len(tasks) == self._slices.terms.peers and all(task.until_step == until for task in tasks)
        if gang and until > self.step + 1 and self._slices.terms.tls_authority is None:
            return self._together(pool, tasks, until, stop)
        return super().group(pool, tasks, stop)

    def _terms(self, end: str, until: int) -> Terms:
        return self._slices.at(
            begin=self._version,
            end=end,
            step=self.step,
            until=until,
            learning_rate=self._rate,
            secret=secrets.token_hex(16),
        )

    # ---- two jobs a step

    def task_settings(self, worker: int) -> dict[str, Any]:
        return {"terms": self._terms(str(self.step + 1), self.step + 1).to_settings()}

    def round(
        self, pool: Pool, tasks: Sequence[WorkerTask], stop: Callable[[], bool]
    ) -> tuple[list[WorkerReport], Callable[[], None]]:
        """The first job; what is left to do is the second."""
        reports = self.job(pool, tasks, stop)
        return reports, lambda: self._reduce(pool, reports)

    def _reduce(self, pool: Pool, reports: Sequence[WorkerReport]) -> None:
        given = {share.worker: (share.examples, share.loss) for share in shares(reports)}
        if not given:
            return  # everybody has skipped
        terms = self._terms(str(self.step + 1), self.step + 1)
        common = {"terms": terms.to_settings(), "given": [[worker, *given[worker]] for worker in given]}
        self.counted.jobs_count += 1
        told = pool.call(_REDUCE, [{**common, "owner": owner} for owner in range(terms.peers)])
        for each in told:
            self.counted.add(Spent(**each["spent"]))
        self._adopt(terms.end, told)

    # ---- one job

    def _together(
        self, pool: Pool, tasks: Sequence[WorkerTask], until: int, stop: Callable[[], bool]
    ) -> list[WorkerReport]:
        """A group by streams: again from its first step, where one of its tasks has died."""
        for attempt in range(1, ATTEMPT_LIMIT + 1):
            began = time.monotonic()
            terms = self._terms(f"{until}-{attempt}", until)
            spec = ExchangeSpec(self.name, {"from_step": self.step, "terms": terms.to_settings()})
            try:
                reports = self.job(pool, [replace(task, exchange=spec) for task in tasks], stop)
            except WorkerLost:
                self._slices.remove(terms.end)
                if stop():
                    return []
                if attempt == ATTEMPT_LIMIT:
                    raise
                continue
            if len(reports) < len(tasks) or any(report.next_step < until for report in reports):
                self._slices.remove(terms.end)
                return []
            self._adopt(terms.end, self._slices.told(terms.end))
            self.step = until
            self._count(reports, time.monotonic() - began)
            return reports
        raise AssertionError("the last attempt returns or raises")

    def _adopt(self, version: str, told: Sequence[Mapping[str, Any]]) -> None:
        """From now on the model is this version; each owner has told of its slice."""
        if len(told) != self._slices.terms.peers:
            raise ServerError(f"{len(told)} of {self._slices.terms.peers} slices of version {version} are there")
        old, self._version = self._version, version
        self._updates = int(told[0]["updates"])
        self._settle()
        self._leaving = self._remover.submit(self._slices.remove, old)

    def _settle(self) -> None:
        """Wait until the version before is removed: it is, while the next step computes."""
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            leaving.result()

    # ---- what a driver asks for

    def snapshot(self, *, timeout_s: float) -> Version:
        """The newest version, from all owners' files."""
        with Slices(self._terms("", self.step)) as slices:
            return Version(*slices.whole())

    def set_learning_rate(self, learning_rate: float) -> None:
        """Of the next step's, or group's, descents."""
        self._rate = learning_rate

    def close(self) -> None:
        """Remove the run's files, where the tier still answers, and let go of it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self._settle()
            self._slices.remove()
        except (Unreachable, Timeout):
            pass  # gone with its servers
        finally:
            self._remover.shutdown()
            self._slices.close()


class BlocksExchange(FromStep):
    """Worker face of the two jobs: the first one of a step."""

    def __init__(self, slices: Slices, worker: int) -> None:
        super().__init__(slices.terms.step, slices.layout.size)
        self._slices = slices
        self.spent = slices.spent
        self._worker = worker
        self._params: Flat | None = None

    def pull(self, *, timeout_s: float) -> Version:
        """The version of this step, a copy: a read from each owner."""
        if self._params is None:
            self._params, self.version = self._slices.pull(self._worker)
        return Version(self.version, self._params)

    def given(self, step: int, gradient: Flat, examples: int, loss: float, last: bool) -> None:
        """Put the slices of the gradient down, all or none."""
        put_down(self._slices, self._worker, gradient)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._slices.close()


def start(settings: ModeSettings) -> Mode:
    """Write the run's first version."""
    return AllReduceMode(settings)


def open_exchange(spec: ExchangeSpec, worker: int, *, timeout_s: float) -> Exchange:
    """Take part in a group: by streams where it has several steps, else by blocks. No round trip yet."""
    slices = Slices(Terms(**spec.settings["terms"]))
    if slices.terms.until - slices.terms.step > 1:
        return GangExchange(slices, worker)
    return BlocksExchange(slices, worker)
