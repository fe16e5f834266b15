"""Parameters that come while the last gradient is computed and pushed: for asynchronous training over slow links.

In Downpour (Dean et al., "Large Scale Distributed Deep Networks", NIPS 2012) fetches and pushes have threads of their
own. Here two attempts of one worker share its task: one pulls in a thread, the other one pushes, and only a push
counts. The price is age: parameters were asked for before the worker's own last push, so they may lack that one
too; and since who pushes has not read them, servers count no staleness. Between processes of one host a pull moves
nothing, and there is nothing to win.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np

from coproc.errors import Timeout
from coproc.exchange import Exchange, Pulled, Pushed, Spent, Version, open_exchange
from coproc.layout import Flat
from coproc.tasks import WorkerTask


def join(task: WorkerTask) -> Exchange:
    """Join the task's run as the task's worker; twice where it fetches ahead. Raises as `open_exchange`."""
    exchange = open_exchange(task.exchange, task.worker, timeout_s=task.timeout_s)
    if not task.prefetch:
        return exchange
    try:
        pulling = open_exchange(task.exchange, task.worker, timeout_s=task.timeout_s)
    except BaseException:
        exchange.abort()
        raise
    return Prefetched(exchange, pulling, task.until_step)


class Prefetched:
    """An `Exchange` of two others, which it takes over. Used by one thread, and has one."""

    def __init__(self, pushing: Exchange, pulling: Exchange, until_step: int) -> None:
        """Asks for nothing yet.

        Args:
            until_step: where the task ends: for its last step nothing is fetched ahead.
        """
        self._pushing = pushing
        self._pulling = pulling
        self._until_step = until_step
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._coming: Future[Pulled] | None = None
        self._params: Flat | None = None

    @property
    def next_step(self) -> int:
        return self._pushing.next_step

    @property
    def version(self) -> int:
        return self._pushing.version

    @property
    def spent(self) -> Spent:
        total = replace(self._pushing.spent)
        total.add(self._pulling.spent)
        return total

    def pull(self, *, timeout_s: float) -> Version:
        """What was asked for by the last pull, copied; the next one is asked for."""
        if self._coming is None:
            self._coming = self._asked(timeout_s)
        if not wait([self._coming], timeout_s).done:
            raise Timeout(f"the parameters that were asked for did not come within {timeout_s:.1f} s")
        coming, self._coming = self._coming, None
        pulled = coming.result()
        # The next pull takes the memory of this one back.
        if self._params is None:
            self._params = np.empty_like(pulled.flat)
        self._params[:] = pulled.flat
        version = pulled.version
        if self.next_step + 1 < self._until_step:
            self._coming = self._asked(timeout_s)
        params = self._params.view()
        params.flags.writeable = False
        return Version(version, params)

    def _asked(self, timeout_s: float) -> Future[Pulled]:
        return self._thread.submit(self._pulling.pull, timeout_s=timeout_s)

    def gradient(self, *, timeout_s: float) -> Flat:
        return self._pushing.gradient(timeout_s=timeout_s)

    def push(self, *, step: int, examples: int, loss: float, timeout_s: float, last: bool) -> Pushed:
        return self._pushing.push(step=step, examples=examples, loss=loss, timeout_s=timeout_s, last=last)

    def skip(self, *, step: int, timeout_s: float) -> None:
        self._pushing.skip(step=step, timeout_s=timeout_s)

    def leave(self) -> None:
        self._pushing.leave()

    def close(self) -> None:
        """Wait for what is still coming, then close both. Idempotent."""
        self._settle()
        try:
            self._pulling.close()
        finally:
            self._pushing.close()

    def abort(self) -> None:
        """As `close`, without a promise."""
        self._settle()
        self._pulling.abort()
        self._pushing.abort()

    def _settle(self) -> None:
        self._coming = None  # whatever becomes of it, nobody asks for it any more
        self._thread.shutdown()
