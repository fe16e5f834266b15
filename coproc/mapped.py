"""A model's memory, as a process on its host has it mapped: through all lives of the model.

A model that goes back to a checkpoint keeps name and identity, and gets other files and an epoch of its own. Who has
the old ones mapped sees that they are gone (`NearModel.is_lost`), and asks the model's server what it means.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from coproc.errors import LeaseExpired, ModelNotFound, Timeout, Unreachable
from coproc.near import NearModel
from coproc.shared.seats import Seat
from coproc.spec import ModelSpec
from coproc.wire import as_coproc
from storage_tier.errors import RegionNotFound, TierError

# How long a wait for memory that is gone asks what became of the model; it asks again, too.
ASK_TIMEOUT_S = 1.0
PATIENCE_S = 30.0
# How long the files of a model that its server knows may be missing: it looks after other servers' once a second.
FOUND_WITHIN_S = 5.0


class Mapped:
    """One a model and client. Thread-safe."""

    def __init__(self, spec: ModelSpec, get_model: Callable[[float, bool], Any]) -> None:
        """`get_model(timeout_s, again)` asks the sequencer for the model; `again`: until it answers."""
        self.spec = spec
        """As it is now."""
        self._get_model = get_model
        self._lock = threading.Lock()
        self._near: NearModel | None = None
        self._reader: Seat | None = None

    @property
    def near(self) -> NearModel:
        """The model as it is now.

        Raises:
            ModelNotFound; Unreachable, Timeout: it went back to a checkpoint, and its server does not answer.
        """
        near = self._near
        return near if near is not None and (near.control.deleted or not near.is_lost()) else self._map(near)

    def at(self, epoch: int) -> NearModel:
        """As `near`, of the life that a server has just told of."""
        near = self.near
        return near if near.control.epoch == epoch else self._map(near)

    def _map(self, old: NearModel | None) -> NearModel:
        """Map what takes the place of `old`, which stays mapped as long as somebody uses it."""
        give_up = time.monotonic() + FOUND_WITHIN_S
        anew = old is not None
        with self._lock:
            while self._near is None or self._near is old:
                if anew:
                    answer = self._get_model(PATIENCE_S, True)
                    if old is not None and answer.header.epoch == old.control.epoch:
                        return old  # its server has it mapped as well, and goes on
                    self.spec = self._same(answer)
                    self._drop_reader()
                anew = True
                try:
                    self._near = NearModel(self.spec, self._look_after)
                except RegionNotFound as error:
                    if time.monotonic() >= give_up:
                        raise as_coproc(error) from None
                    time.sleep(0.1)
                except TierError as error:
                    raise as_coproc(error) from None
            return self._near

    def _look_after(self, near: NearModel) -> None:
        """The files that `near` has mapped are gone: raise what became of the model; nothing while nobody knows.

        Raises:
            LeaseExpired: it is there again, from a checkpoint. ModelNotFound: it is not.
        """
        try:
            answer = self._get_model(ASK_TIMEOUT_S, False)
        except (Unreachable, Timeout):
            return
        self._same(answer)
        self.check(near.control.epoch, answer)

    def _same(self, answer: Any) -> ModelSpec:
        spec = ModelSpec.from_json(answer.spec_json)
        if spec.identity != self.spec.identity:
            raise ModelNotFound(f"model {spec.name!r} was deleted; another one has its name now")
        return spec

    def check(self, epoch: int, answer: Any) -> None:
        """Raises LeaseExpired if an answer's header is of another life of the model than the one of `epoch`."""
        if answer.header.epoch != epoch:
            raise LeaseExpired(
                f"model {self.spec.name!r} lost its memory and was restored from a checkpoint: join again and continue "
                "at next_step"
            )

    def read_into(self, near: NearModel, out: Any, join: Callable[[], Any], deadline: float) -> int:
        """Copy the newest whole version into `out` (P,); its number. `join` gives a seat, of which one is kept.

        Raises:
            LeaseExpired: `near` is not the model as it is now. Timeout; as `join`.
        """
        with self._lock:
            if self._near is not near:
                raise LeaseExpired(f"model {self.spec.name!r} was mapped anew")
            if self._reader is None:
                answer = join()
                self.check(near.control.epoch, answer)
                self._reader = Seat.take(self.spec.seat_path(answer.seat, answer.generation), 0, 0)
            return near.read_into(self._reader, out, max(0.0, deadline - time.monotonic()))

    def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def release(self) -> None:
        """Unmap, and give the reader's seat back. Idempotent."""
        self._drop_reader()
        near, self._near = self._near, None
        if near is not None:
            near.close()
