"""Models whose memory is gone come back: at its start a server restores them from their newest whole checkpoint.

The catalog says which models a server at this address had; one that is not in its memory went with that. This needs a
catalog that outlives the memory, and checkpoints in an under-store. A model keeps its name and its identity and goes
back to one consistent cut, under a new epoch: workers on other hosts join again and continue at the steps it has.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from coproc.errors import CoprocError, CorruptCheckpoint
from coproc.observers.directory import ModelDirectory
from coproc.server.checkpoints import Checkpointing, beginning_of
from coproc.server.creating import Creation
from coproc.server.models import Models
from storage_tier.errors import BytesLost, TierError

log = logging.getLogger(__name__)

# How soon it is tried again: when an under-store, the catalog or another server of the model does not answer yet.
AGAIN_S = 1.0
OPEN_TIMEOUT_S = 60.0


class Restoring:
    """One a server, with one thread that ends when nothing is left to be restored."""

    def __init__(
        self, models: Models, directory: ModelDirectory, creation: Creation, checkpoints: Checkpointing
    ) -> None:
        self._models = models
        self._directory = directory
        self._creation = creation
        self._checkpoints = checkpoints
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="restoring", daemon=True)

    def start(self) -> None:
        """Begin, after the files have started."""
        self._thread.start()

    def close(self, timeout_s: float = 30.0) -> None:
        """Stop after the model at hand. Idempotent."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        left = self._look()
        while left and not self._closing.is_set():
            for name, identity in list(left.items()):
                if self._is_done(name, identity):
                    del left[name]
            self._models.awaited = {name: self._models.awaited[name] for name in left} if self._models.awaited else {}
            if left:
                self._closing.wait(AGAIN_S)

    def _look(self) -> dict[str, str]:
        while not self._closing.is_set():
            try:
                found = self._directory.lost()
            except (TierError, CoprocError) as error:
                log.warning("models that are to be restored are looked for again in %g s: %s", AGAIN_S, error)
                self._closing.wait(AGAIN_S)
                continue
            self._models.awaited = dict.fromkeys(found, "")
            return found
        return {}

    def _is_done(self, name: str, identity: str) -> bool:
        """Restore a model, from an older checkpoint if the newest is no good; False: it is to be tried again."""
        assert self._models.awaited is not None
        try:
            for entry in self._checkpoints.newest_first(name):
                try:
                    if self._restore(entry.path, identity):
                        return True
                except (CorruptCheckpoint, BytesLost) as error:
                    log.error("model %s is not restored from its newest checkpoint: %s", name, error)
        except (TierError, CoprocError) as error:
            self._models.awaited[name] = f"; so far: {error}"
            log.warning("model %s is restored in %g s again: %s", name, AGAIN_S, error)
            return False
        except Exception:
            log.exception("model %s cannot be restored", name)
            return True
        log.error("model %s went with the memory of its server, and has no checkpoint to be restored from", name)
        return True

    def _restore(self, path: str, identity: str) -> bool:
        with self._checkpoints.open(path, OPEN_TIMEOUT_S) as (spec, read):
            if spec.identity != identity:
                return False  # of an earlier model of its name
            servers = list(dict.fromkeys(place.server for place in spec.shards))
            placed = self._creation.place(replace(spec, home=""), servers, len(spec.shards))
            beginning = beginning_of(read)
            # One that no life before has had, however often it is restored from one file: who joined then must see it.
            beginning = replace(beginning, epoch=beginning.epoch + self._directory.announce(placed))
            engine = self._creation.create(placed, beginning, again=True)
        log.warning("model %s was restored from %s: version %d", spec.name, path, engine.control.first_version)
        return True
