"""A model in parts, one on each server of an address: for servers on several hosts, which share no memory.

Each part is a model of its own (`NAME.part-I`: a contiguous range of the flat vector), with its own log, slots and
ledger. Who works with all of them sees one vector:

- A push goes to all parts at the same time and is acknowledged when each has it. A part on the worker's own host has it
  through shared memory, so that with a server on each of N hosts a worker sends and gets P (N - 1) / N floats a step.
- In `Bsp` version n of each part is round n: a pull is one whole version, and training gives what one server gives.
- In `Asp` and `Ssp` each part orders the pushes by itself: what is pulled is one version of each part, and they may
  differ by the pushes that are under way. So it is in Downpour (Dean et al., NIPS 2012).
- Each part counts each step of a worker once. Of an attempt that was killed between the parts of a push, the next one
  gives that step to the parts that lack it; in `Bsp` its gradient may be computed on a vector of which some parts are
  that one round further.
- No checkpoints: where a part loses its memory, the training fails and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from coproc.client import Client, connect
from coproc.compression import Compression
from coproc.consistency import Consistency, Quorum
from coproc.errors import ConfigError, CoprocError, ModelNotFound, Timeout
from coproc.exchange import Spent, Taken, Version
from coproc.layout import Flat, ParamLayout, as_tensors
from coproc.model import CALL_TIMEOUT_S, Model, Worker
from coproc.optim import Layerwise, Optimizer
from coproc.status import ModelStatus
from storage_tier.errors import TierError
from storage_tier.wire import TlsClient, format_address, parse_address

S = TypeVar("S")
T = TypeVar("T")
# The one tensor of each part.
_VALUES = "values"
_AGAIN_S = 0.02


class Together:
    """Calls at the same time, one a part. Used by one thread."""

    def __init__(self, count: int) -> None:
        """Starts nothing yet; `count` calls at the most."""
        self._others = ThreadPoolExecutor(max(1, count - 1), "part")

    def do(self, call: Callable[[S], T], parts: Iterable[S]) -> list[T]:
        """What `call` returns for each of `parts`, in their order. Waits for all; the first one is this thread's.

        Raises:
            Exception: the first of what they raised; a Timeout only where nothing else was.
        """
        given = list(parts)
        if not given:
            return []
        first, *rest = given
        results: list[Callable[[], T]] = [partial(call, first)]
        results += [self._others.submit(call, part).result for part in rest]
        answers: list[T] = []
        problems: list[Exception] = []
        for result in results:
            try:
                answers.append(result())
            except Exception as error:
                problems.append(error)
        if problems:
            raise min(problems, key=lambda error: isinstance(error, Timeout))
        return answers

    def close(self) -> None:
        """End its threads. Idempotent."""
        self._others.shutdown()


def create(
    address: str,
    name: str,
    *,
    params: Mapping[str, NDArray[np.floating]],
    optimizer: Optimizer,
    consistency: Consistency,
    token: str | None = None,
    tls: TlsClient | None = None,
) -> PartedModel:
    """Store a new model, a part on each server of `address`. What was made is taken back where one fails.

    Raises:
        ConfigError: a rule or an optimizer that needs to see all parts at once, or fewer parameters than servers.
        ModelExists, OutOfMemory, Unreachable.
    """
    if isinstance(consistency, Quorum):
        raise ConfigError("a model in parts has no quorum: its parts could close a round with different workers")
    if isinstance(optimizer, Layerwise) or optimizer.clip_norm is not None:
        raise ConfigError(
            f"a model in parts cannot descend by norms over the whole gradient (clip_norm, lars, lamb), as {optimizer} "
            "does: use servers of one host, without parts"
        )
    arrays = as_tensors(params)
    layout = ParamLayout.of(arrays)
    flat = np.empty(layout.size, np.float32)
    layout.fill(flat, arrays)
    clients, together = _connected(address, token, tls)
    made: list[Model] = []
    try:
        if layout.size < len(clients):
            raise ConfigError(f"{layout.size} parameters cannot be cut into parts for {len(clients)} servers")
        bounds = [layout.size * number // len(clients) for number in range(len(clients) + 1)]
        for number, (client, (lo, hi)) in enumerate(zip(clients, pairwise(bounds), strict=True)):
            made.append(
                client.create_model(
                    _part(name, number), params={_VALUES: flat[lo:hi]}, optimizer=optimizer, consistency=consistency
                )
            )
    except BaseException:
        for model in made:
            with suppress(CoprocError):  # what is told is why it could not be made
                model.delete()
        _close(clients, together)
        raise
    return PartedModel(name, clients, made, together, layout)


def find(
    address: str,
    name: str,
    *,
    token: str | None = None,
    tls: TlsClient | None = None,
    timeout_s: float = CALL_TIMEOUT_S,
) -> PartedModel:
    """A model that `create` has made on the servers of the same address.

    Raises:
        ModelNotFound: a part of it is missing. Unreachable.
    """
    clients, together = _connected(address, token, tls)
    try:
        models = together.do(lambda part: part[1].model(_part(name, part[0]), timeout_s), list(enumerate(clients)))
    except BaseException:
        _close(clients, together)
        raise
    return PartedModel(name, clients, models, together)


def _part(name: str, number: int) -> str:
    return f"{name}.part-{number}"


def _connected(address: str, token: str | None, tls: TlsClient | None) -> tuple[list[Client], Together]:
    """A client of each server: whether it shares memory with this process is a matter of its own."""
    try:
        servers = [format_address([server]) for server in parse_address(address)]
    except TierError as error:
        raise ConfigError(str(error)) from None
    together = Together(len(servers))
    clients: list[Client] = []

    def open_one(server: str) -> Client:
        client = connect(server, token=token, tls=tls)
        clients.append(client)
        return client

    try:
        return together.do(open_one, servers), together
    except BaseException:
        _close(clients, together)
        raise


def _close(clients: Sequence[Client], together: Together) -> None:
    together.close()
    for client in clients:
        client.close()


class PartedModel:
    """All parts of a model. Made by `create` and `find`; to be closed. Used by one thread at a time."""

    def __init__(
        self,
        name: str,
        clients: Sequence[Client],
        models: Sequence[Model],
        together: Together,
        layout: ParamLayout | None = None,
    ) -> None:
        """Takes clients and `together` over. `layout` of the whole, where it is known; else it is one tensor."""
        self.name = name
        self._clients = clients
        self._models = models
        self._together = together
        self._near = [client.near for client in clients]
        self.layout = layout or ParamLayout({_VALUES: (sum(model.layout.size for model in models),)})

    @property
    def version(self) -> int:
        """The newest version that every part has."""
        return min(self._together.do(lambda model: model.version, self._models))

    @property
    def swept_s(self) -> float:
        """Seconds that all parts have spent in descent, added up."""
        return sum(self._together.do(lambda model: model.status().swept_s, self._models))

    def join(
        self,
        worker: int,
        *,
        compression: Compression | str | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
        to_its_end: bool = False,
    ) -> PartedWorker:
        """Become a live attempt of `worker` at all parts; as `Model.join`.

        Args:
            to_its_end: this model is closed with the attempt.
        """
        joined: list[Worker] = []

        def join_one(model: Model) -> Worker:
            attempt = model.join(worker, compression=compression, timeout_s=timeout_s)
            joined.append(attempt)
            return attempt

        try:
            attempts = self._together.do(join_one, self._models)
        except BaseException:
            for attempt in joined:
                attempt.close()
            raise
        return PartedWorker(self, attempts, self._near, self._together, to_its_end)

    def snapshot(self, timeout_s: float = 30.0) -> Version:
        """One version, the same of all parts, copied. While pushes are under way it waits until they meet.

        Raises:
            Timeout: they did not.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = self._together.do(lambda model: model.snapshot(deadline - time.monotonic()), self._models)
            versions = [each.version for each in found]
            if min(versions) == max(versions):
                flat = np.concatenate([each.flat for each in found])
                flat.flags.writeable = False
                return Version(versions[0], flat)
            if time.monotonic() >= deadline:
                raise Timeout(f"the parts of model {self.name!r} are at versions {versions} and did not meet in time")
            time.sleep(_AGAIN_S)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Of each part, from the next gradient that it admits on: between groups, when none is under way, of all."""
        self._together.do(lambda model: model.set_learning_rate(learning_rate), self._models)

    def status(self, timeout_s: float = 5.0) -> ModelStatus:
        """Counters of the first part, which gets each push as all do. One round trip."""
        first = self._models[0].status(timeout_s)
        return replace(first, name=self.name, parameters_count=self.layout.size, shards_count=len(self._models))

    def delete(self) -> None:
        """End all parts that are there, and give their memory back.

        Raises:
            CoprocError: a part could not be deleted; the others are.
        """
        problems: list[CoprocError] = []
        for model in self._models:
            try:
                model.status()  # a quick question first: to delete, it would wait long for a server that is down
                model.delete()
            except ModelNotFound:
                continue
            except CoprocError as error:
                problems.append(error)
        if problems:
            raise problems[0]

    def close(self) -> None:
        """Let go of all servers; the model lives on. Idempotent."""
        _close(self._clients, self._together)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class PartedWorker:
    """One live attempt of a worker at all parts: an `Exchange`. Made by `PartedModel.join`."""

    version = 0
    """Unknown: not worth a round trip to all parts at every push."""

    def __init__(
        self, model: PartedModel, attempts: Sequence[Worker], near: Sequence[bool], together: Together, to_its_end: bool
    ) -> None:
        """Takes the attempts over; makes two vectors of the model's size."""
        self.worker = attempts[0].worker
        self._model = model
        self._attempts = attempts
        self._near = near
        self._together = together
        self._to_its_end = to_its_end
        self._local = Spent()
        bounds = [0, *accumulate(attempt.model.layout.size for attempt in attempts)]
        self._ranges = [slice(lo, hi) for lo, hi in pairwise(bounds)]
        self._params = np.empty(bounds[-1], np.float32)
        self._gradient = np.zeros(bounds[-1], np.float32)
        # What is far is sent from here and received into here.
        for attempt, where in zip(attempts, self._ranges, strict=True):
            attempt.use_memory(self._params[where], self._gradient[where])
        self._read: dict[int, int] = {}
        """Of a pull that is not whole yet: the version of each part that is here."""
        self._read_version = -1

    @property
    def next_step(self) -> int:
        """The first step that some part lacks."""
        return min(attempt.next_step for attempt in self._attempts)

    @property
    def spent(self) -> Spent:
        """Bytes, as they travelled; those of the part on this host through its memory."""
        total = replace(self._local)
        for attempt in self._attempts:
            came, went = attempt.travelled_bytes
            total.came(came)
            total.went(went)
        return total

    def pull(self, *, timeout_s: float) -> Version:
        """As `Worker.pull`; a copy, valid until the next pull. After a Timeout the next call asks for what was late."""

        def pull_one(number: int) -> None:
            snapshot = self._attempts[number].pull(timeout_s=timeout_s)
            into = self._params[self._ranges[number]]
            if not np.may_share_memory(snapshot.flat, into):
                into[:] = snapshot.flat
            self._read[number] = snapshot.version

        late = [number for number in range(len(self._attempts)) if number not in self._read]
        self._together.do(pull_one, late)
        self._read_version = min(self._read.values())
        self._read.clear()
        self._local.came(self._local_bytes, local=True)
        params = self._params.view()
        params.flags.writeable = False
        return Version(self._read_version, params)

    @property
    def _local_bytes(self) -> int:
        near = [where for where, is_near in zip(self._ranges, self._near, strict=True) if is_near]
        return sum(4 * (where.stop - where.start) for where in near)

    def gradient(self, *, timeout_s: float) -> Flat:
        """The next gradient, (P,) float32; `push` waits for free slots."""
        return self._gradient

    def push(self, *, step: int, examples: int, loss: float, timeout_s: float, last: bool) -> Taken:
        """Give what is in `gradient()`, which is finite, to each part. When it returns, each has it.

        After an error some parts may have it: push the same step again, in this attempt or another.
        """
        self._read.clear()

        def push_one(part: tuple[Worker, slice]) -> bool:
            attempt, where = part
            if attempt.next_step > step:
                return True
            slot = attempt.gradient(timeout_s)
            mine = self._gradient[where]
            if not np.may_share_memory(slot, mine):
                slot[:] = mine
            receipt = attempt.push(
                step=step, examples=examples, loss=loss, timeout_s=timeout_s, finite=True, flush=last
            )
            return receipt.duplicate

        known = self._together.do(push_one, zip(self._attempts, self._ranges, strict=True))
        self._local.went(self._local_bytes, local=True)
        return Taken(step, self._read_version, all(known))

    def skip(self, *, step: int, timeout_s: float) -> None:
        """Commit a step without a gradient at each part."""
        self._read.clear()
        lacking = [attempt for attempt in self._attempts if attempt.next_step <= step]
        self._together.do(lambda attempt: attempt.skip(step, timeout_s), lacking)

    def leave(self) -> None:
        """This worker has no more data: no part waits for it any more."""
        self._together.do(Worker.leave, self._attempts)

    def close(self) -> None:
        """Give slots back; what was pushed stays, the worker stays a member. Idempotent."""
        try:
            for attempt in self._attempts:
                attempt.close()
        finally:
            if self._to_its_end:
                self._model.close()

    def abort(self) -> None:
        """As `close`; that a server is gone is no news then."""
        with suppress(CoprocError):
            self.close()
