"""A parameter server over HTTP, in one process beside the driver: what the field's Flask servers would be today.

The workers pull and push the whole model over connections that they keep. The server counts each step of a worker once,
however often it is sent; but its memory is all there is of the model, and when its process ends the training fails.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from coproc.consistency import Asp, Bsp, Quorum
from coproc.errors import ConfigError, CoprocError
from coproc.exchange import Exchange, ExchangeSpec, Spent, Taken, Version
from coproc.http.client import Connection, Served
from coproc.layout import Flat, ParamLayout
from coproc.modes.base import Capabilities, Costs, Mode, ModeSettings, ModeStatus, require_packages
from coproc.modes.driver import Driver
from coproc.tasks import WorkerReport, WorkerTask
from storage_tier.wire import parse_address

if TYPE_CHECKING:
    from coproc.pools.base import Pool

CAPABILITIES = Capabilities(
    consistencies=frozenset({"bsp", "quorum", "asp"}),
    exactly_once=True,
    whole_versions=True,
    elastic=True,
    survives_server=False,
    needs=("starlette", "uvicorn"),
)


class HttpMode(Driver):
    """Driver face: a server's process."""

    capabilities = CAPABILITIES
    name = "http"

    def __init__(self, settings: ModeSettings) -> None:
        """Start it.

        Raises:
            ConfigError: a rule of consistency that it does not know; TLS, which it has not; packages that are missing.
            ServerError: it did not start.
        """
        super().__init__()
        self.settings = settings
        workers, least, most = _updates(settings.consistency)
        if settings.tls_authority is not None:
            raise ConfigError("the cluster speaks TLS, and the mode 'http' would send gradients for all to read")
        require_packages("http", CAPABILITIES)
        layout = ParamLayout.of(settings.params)
        params = np.empty(layout.size, np.float32)
        layout.fill(params, settings.params)
        host = settings.host or way_to(settings.address)
        self._layout = layout
        self._served: Served | None = Served(
            layout, params, settings.optimizer, workers=workers, min_updates=least, max_updates=most, host=host
        )
        self.pid = self._served.pid
        self._token = self._served.token
        self._address = self._served.address
        self._connection = Connection(self._address, self._token)
        # The progress is asked for by another thread than the training.
        self._calling = threading.Lock()
        self._counted = time.monotonic(), 0

    def exchange_spec(self) -> ExchangeSpec:
        return ExchangeSpec("http", {"address": self._address, "token": self._token, "size": self._layout.size})

    def group(self, pool: Pool, tasks: Sequence[WorkerTask], stop: Callable[[], bool]) -> list[WorkerReport]:
        """One job: the workers find the server by themselves."""
        return self.job(pool, tasks, stop)

    def snapshot(self, *, timeout_s: float) -> Version:
        flat = np.empty(self._layout.size, np.float32)
        with self._calling:
            version = self._connection.pull(flat, -1, timeout_s)
        return Version(version, flat)

    def checkpoint(self, *, timeout_s: float) -> None:
        """Raises ConfigError: it writes none."""
        raise ConfigError("the mode 'http' writes no checkpoints")

    def set_learning_rate(self, learning_rate: float) -> None:
        with self._calling:
            self._connection.set_learning_rate(learning_rate)

    def status(self) -> ModeStatus:
        """The server's counters. One round trip."""
        with self._calling:
            now = self._connection.status()
            moment, pushes = time.monotonic(), now["pushes_count"]
            then, before = self._counted
            self._counted = moment, pushes
        return ModeStatus(
            version=now["version"],
            pushes_count=pushes,
            examples_count=now["examples_count"],
            loss_sum=now["loss_sum"],
            loss_examples_count=now["loss_examples_count"],
            staleness_mean=now["staleness_sum"] / max(1, pushes),
            staleness_max=now["staleness_max"],
            pushes_per_s=(pushes - before) / max(1e-9, moment - then),
        )

    def costs(self) -> Costs:
        """One round trip."""
        with self._calling:
            now = self._connection.status()
        return replace(
            self.counted,
            server_in_bytes=now["bytes_in"],
            server_out_bytes=now["bytes_out"],
            update_s=now["update_s"],
        )

    def close(self) -> None:
        """End the server, and with it the model. Idempotent."""
        served, self._served = self._served, None
        if served is not None:
            self._connection.close()
            served.close()


class HttpExchange:
    """Worker face: one attempt, with a connection of its own and two vectors of the model's size."""

    def __init__(self, connection: Connection, worker: int, size: int, next_step: int) -> None:
        self.spent = Spent()
        self.next_step = next_step
        self.version = 0
        """The newest that an answer told of: another round trip would only be for the counters, and the server's are
        right."""
        self._connection = connection
        self._worker = worker
        self._params = np.empty(size, np.float32)
        self._gradient = np.empty(size, np.float32)
        self._held = -1
        """The version in `_params`; -1: none, or parts of one."""

    def pull(self, *, timeout_s: float) -> Version:
        held, self._held = self._held, -1  # for where it fails when parts have arrived
        self.version = self._held = self._connection.pull(self._params, held, timeout_s, self._worker)
        self.spent.came(self._params.nbytes if self._held != held else 0)
        view = self._params.view()
        view.flags.writeable = False
        return Version(self._held, view)

    def gradient(self, *, timeout_s: float) -> Flat:
        """It was sent when `push` returned: always free."""
        return self._gradient

    def push(self, *, step: int, examples: int, loss: float, timeout_s: float, last: bool) -> Taken:
        return self._push(step, examples, loss, self._gradient, timeout_s)

    def skip(self, *, step: int, timeout_s: float) -> None:
        self._push(step, 0, float("nan"), None, timeout_s)

    def _push(self, step: int, examples: int, loss: float, gradient: Flat | None, timeout_s: float) -> Taken:
        answer = self._connection.push(self._worker, step, examples, loss, self._held, gradient, timeout_s)
        self.spent.went(0 if gradient is None else gradient.nbytes)
        self.next_step, self.version = answer["next_step"], answer["version"]
        return Taken(step, self._held, answer["duplicate"])

    def leave(self) -> None:
        self._connection.leave(self._worker)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()

    abort = close


def start(settings: ModeSettings) -> Mode:
    """Start the run's server."""
    return HttpMode(settings)


def open_exchange(spec: ExchangeSpec, worker: int, *, timeout_s: float) -> Exchange:
    """Join the run's server. One round trip."""
    given = spec.settings
    connection = Connection(given["address"], given["token"])
    try:
        return HttpExchange(connection, worker, given["size"], connection.join(worker, timeout_s))
    except CoprocError:
        connection.close()
        raise


def _updates(rule: Any) -> tuple[int | None, int, int]:
    """(workers in lockstep, least and most gradients of a descent) of a rule of consistency."""
    if isinstance(rule, Bsp) and rule.on_loss != "wait":
        raise ConfigError("the server of the mode 'http' cannot tell a lost worker from a slow one: it waits for it")
    if isinstance(rule, Quorum) and (rule.grace_s or rule.late != "carry"):
        raise ConfigError(
            "a quorum of the mode 'http' waits for nobody else, and what comes late is part of the next round: use it "
            "with --late carry, without --grace"
        )
    if isinstance(rule, Bsp):
        return rule.workers, rule.needed, rule.workers
    if isinstance(rule, Asp):
        return None, 1, 1
    raise ConfigError(f"the mode 'http' can be {', '.join(sorted(CAPABILITIES.consistencies))}, not {rule!r:.100}")


def way_to(address: str) -> str:
    """The address of this host that the servers at `address` see: who reaches them from afar most likely reaches it."""
    host, port = parse_address(address)[0]
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)  # a datagram socket chooses a way, and sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(f"no way from here to {address} ({error}): name an address of this host") from None
