"""What every driver face does alike: jobs on a pool that the mode runs on, and counting what they cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

from coproc.errors import ConfigError
from coproc.modes.base import Capabilities, Costs
from coproc.pools.base import Pool
from coproc.tasks import WorkerReport, WorkerTask
from coproc.worker import never


class Driver(ABC):
    """Driver face, but for what a group is. Used by one thread."""

    capabilities: ClassVar[Capabilities]
    name: ClassVar[str]
    """Of the mode."""

    def __init__(self) -> None:
        self.counted = Costs()
        """What is known here without asking anybody."""

    def run(self, pool: Pool, tasks: Sequence[WorkerTask], *, stop: Callable[[], bool] = never) -> list[WorkerReport]:
        """Train one group.

        Raises:
            ConfigError: the pool is none for this mode; as `Pool.run`.
        """
        if pool.name not in self.capabilities.pools:
            raise ConfigError(
                f"the mode {self.name!r} runs on the pools {', '.join(sorted(self.capabilities.pools))}, not on "
                f"{pool.name!r}"
            )
        return self.group(pool, tasks, stop)

    @abstractmethod
    def group(self, pool: Pool, tasks: Sequence[WorkerTask], stop: Callable[[], bool]) -> list[WorkerReport]:
        """As `run`, on a pool that the mode runs on."""

    def job(self, pool: Pool, tasks: Sequence[WorkerTask], stop: Callable[[], bool]) -> list[WorkerReport]:
        """One job of these tasks; it is counted."""
        self.counted.jobs_count += 1
        reports = pool.run(tasks, stop=stop)
        self.take(reports)
        return reports

    def take(self, reports: Sequence[WorkerReport]) -> None:
        """Count what the tasks of a job have spent."""
        for report in reports:
            self.counted.add(report.spent)

    def costs(self) -> Costs:
        """A copy."""
        return replace(self.counted)
