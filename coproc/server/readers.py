"""How a server itself reads its models: seats that it holds, each used by one call at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from coproc.errors import ModelNotFound
from coproc.near import NearModel
from coproc.server.sequencing import READER, SequencerLoop
from coproc.shared.seats import Seat
from coproc.spec import ModelSpec


class Readers:
    """The mapped model and the idle readers' seats of one model. Thread-safe."""

    def __init__(self, spec: ModelSpec, sequencer: SequencerLoop) -> None:
        self.model = NearModel(spec)
        self._spec = spec
        self._sequencer = sequencer
        self._idle: list[Seat] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def use(self) -> Iterator[Seat]:
        """A seat that nobody else uses meanwhile.

        Raises:
            ModelNotFound: the model was deleted.
        """
        seat = self._take()
        try:
            yield seat
        finally:
            with self._lock:
                if self._closed:
                    seat.close()
                else:
                    self._idle.append(seat)

    def _take(self) -> Seat:
        with self._lock:
            if self._closed:
                self.model.check()
                raise ModelNotFound(f"model {self._spec.name!r} was deleted")
            if self._idle:
                return self._idle.pop()
        number, generation, _ = self._sequencer.join(READER, 0)
        return Seat.take(self._spec.seat_path(number, generation), 0, 0)

    def close(self, reason: str) -> None:
        """Let calls at work end with `reason`, and give the seats back. The map goes with the last call. Idempotent."""
        with self._lock:
            self._closed = True
            self.model.ended = reason
            for seat in self._idle:
                seat.close()
            self._idle.clear()
