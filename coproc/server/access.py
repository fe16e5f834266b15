"""Shared memory of a server's models, for those in the server that read and push: far clients, and directories."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from coproc.errors import Unsupported
from coproc.far import pull
from coproc.layout import Flat
from coproc.near import NearWorker
from coproc.server.engine import Engine
from coproc.server.models import Models
from coproc.server.readers import Readers
from coproc.server.sequencing import SequencerLoop
from coproc.shared.seats import Seat
from coproc.spec import ModelSpec
from coproc.v1 import coproc_pb2 as pb

# Gradients of one worker that are committed and not descended yet: the files behind them wait as files.
_FILE_SLOTS = 2


class Access:
    """Thread-safe. The `Source` of `coproc.observers`."""

    def __init__(self, models: Models, server_id: str, stub_of: Callable[[str], Any]) -> None:
        """`stub_of` gives the service of another server by its address; its errors are typed."""
        self._models = models
        self.server_id = server_id
        self._stub_of = stub_of
        self._readers: dict[str, Readers] = {}
        self._lock = threading.Lock()

    def sequencer(self, engine: Engine) -> SequencerLoop:
        """The sequencer of a model.

        Raises:
            Unsupported: it is another server's.
        """
        if engine.sequencer is None:
            raise Unsupported(
                f"the sequencer of model {engine.spec.name!r} is {engine.spec.shards[0].server}; ask that server"
            )
        return engine.sequencer

    def readers(self, engine: Engine) -> Readers:
        """The readers of a model that is sequenced here.

        Raises:
            Unsupported: it is not.
        """
        with self._lock:
            readers = self._readers.get(engine.spec.identity)
            if readers is None:
                readers = Readers(engine.spec, self.sequencer(engine))
                self._readers[engine.spec.identity] = readers
            return readers

    def forget(self, spec: ModelSpec, reason: str) -> None:
        """End what reads a model, with a reason."""
        with self._lock:
            readers = self._readers.pop(spec.identity, None)
        if readers is not None:
            readers.close(reason)

    def end_waits(self, reason: str) -> None:
        """Have all calls that wait end now."""
        with self._lock:
            for readers in self._readers.values():
                readers.close(reason)

    # ------------------------------------------------- for the directories of models

    def spec(self, name: str) -> ModelSpec | None:
        """Of a model that this server has a part of."""
        engine = self._models.find(name)
        return None if engine is None or engine.control.deleted else engine.spec

    def version(self, spec: ModelSpec) -> int:
        """The newest whole version of such a model; 0 if it is gone."""
        engine = self._models.find(spec.name)
        return 0 if engine is None else min(shard.version for shard in engine.shards)

    def sequenced(self) -> list[ModelSpec]:
        """The models whose pushes this server orders."""
        return [engine.spec for engine in self._models.all() if engine.sequencer is not None]

    def knows(self, name: str, identity: str) -> bool:
        """Whether a model is here, is being created here, or is here and cannot be served."""
        return self._models.knows(name, identity)

    def read(self, spec: ModelSpec, out: Flat, timeout_s: float) -> int:
        """Copy the newest whole version of any model into `out` (P,); its number.

        From its sequencer, if that is another server: one more copy, and a stream.
        """
        engine = self._models.find(spec.name)
        if engine is None or engine.sequencer is None or engine.spec.identity != spec.identity:
            server = spec.shards[0].server
            request = pb.PullRequest(name=spec.name, timeout_ms=int(timeout_s * 1000), identity=spec.identity)
            return pull(self._stub_of(server), server, request, out, timeout_s)
        readers = self.readers(engine)
        with readers.use() as seat:
            return readers.model.read_into(seat, out, timeout_s)

    def join(self, spec: ModelSpec, worker: int) -> tuple[NearWorker, Callable[[], None]]:
        """A seat for a worker of a model that is sequenced here, and what gives it back."""
        engine = self._models.get(spec.name, spec.identity)
        return self.join_here(engine, worker, min(spec.slots, _FILE_SLOTS))

    def join_here(self, engine: Engine, worker: int, depth: int) -> tuple[NearWorker, Callable[[], None]]:
        """A seat that this process holds, and what gives it back."""
        sequencer = self.sequencer(engine)
        number, generation, next_step = sequencer.join(worker, depth)
        held = Seat.take(engine.spec.seat_path(number, generation), depth, engine.spec.slot_floats)
        near = NearWorker(self.readers(engine).model, worker, held, next_step)
        return near, lambda: sequencer.submit(lambda: sequencer.close_seat(number, generation))

    def next_step(self, spec: ModelSpec, worker: int) -> int:
        """The first step of a worker of a model that is sequenced here which nobody has pushed."""
        control = self._models.get(spec.name, spec.identity).control
        return max(control.next_step(worker), control.claimed(worker) + 1)
