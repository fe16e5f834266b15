"""Models whose memory is gone come back: their sequencer's server restores them from their newest whole checkpoint.

At its start it asks the catalog which models a server at this address had: one that is not in its memory went with
that. This needs a catalog that outlives the memory, and checkpoints in an under-store. Then it looks once a second
whether the shards that other servers have of its models are still there; where such a server says that it does not have
them any more, all of the model goes back, for the shards belong together.

A model keeps its name and its identity and goes back to one consistent cut, under a new epoch: workers join again and
continue at the steps it has. What is about to be dropped is said in the catalog to be lost before, so a server that is
killed in between finds it at its start.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from coproc import probe
from coproc.errors import CoprocError, CorruptCheckpoint
from coproc.observers.directory import ModelDirectory
from coproc.server.checkpoints import Checkpointing, beginning_of
from coproc.server.creating import Creation
from coproc.server.models import Models, missing
from coproc.spec import ModelSpec
from storage_tier.errors import BytesLost, TierError

log = logging.getLogger(__name__)

# How soon it is looked again, and tried again when an under-store, the catalog or another server does not answer yet.
AGAIN_S = 1.0
OPEN_TIMEOUT_S = 60.0


class Restoring:
    """One a server, with one thread."""

    def __init__(
        self,
        models: Models,
        directory: ModelDirectory,
        creation: Creation,
        checkpoints: Checkpointing,
        let_go: Callable[[ModelSpec, str], None],
    ) -> None:
        """`let_go` ends what reads or holds a model in this server, with a reason."""
        self._models = models
        self._directory = directory
        self._creation = creation
        self._checkpoints = checkpoints
        self._let_go = let_go
        self._hopeless: set[str] = set()
        """Identities of models with nothing to go back to."""
        self._served: set[str] = set()
        """Identities of models that are to go back and are served until then: somebody may delete them meanwhile."""
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
        while not self._closing.is_set():
            left |= self._look_at_parts()
            so_far = self._models.awaited or {}
            self._models.awaited = {name: so_far.get(name, "") for name in left}
            for name, identity in list(left.items()):
                if self._is_done(name, identity):
                    del left[name]
                    so_far = self._models.awaited
                    self._models.awaited = {each: so_far[each] for each in left}
            self._closing.wait(AGAIN_S)

    def _look(self) -> dict[str, str]:
        while not self._closing.is_set():
            try:
                return self._directory.lost() | {spec.name: spec.identity for spec, _ in self._models.torn()}
            except (TierError, CoprocError) as error:
                log.warning("models that are to be restored are looked for again in %g s: %s", AGAIN_S, error)
                self._closing.wait(AGAIN_S)
        return {}

    def _look_at_parts(self) -> dict[str, str]:
        """Name -> identity of models that are served here and whose shards elsewhere are gone for good."""
        found = {}
        for spec, engine in self._models.torn():
            if engine is not None and spec.identity not in self._hopeless and self._is_lost(spec):
                log.error("model %s has lost its shards on %s", spec.name, ", ".join(missing(spec)))
                found[spec.name] = spec.identity
                self._served.add(spec.identity)
        return found

    def _is_lost(self, spec: ModelSpec) -> bool:
        """Whether a server that has no files of its shards has none in memory either, and says so."""
        for server in missing(spec):
            try:
                if not self._creation.has_part(server, spec):
                    return True
            except CoprocError as error:
                log.warning("model %s waits for server %s, whose shards are gone: %s", spec.name, server, error)
        return False

    def _is_done(self, name: str, identity: str) -> bool:
        """Restore a model, from an older checkpoint if the newest is no good; False: it is to be tried again."""
        assert self._models.awaited is not None
        engine = self._models.find(name)
        if identity in self._served and (engine is None or engine.spec.identity != identity):
            self._served.discard(identity)
            return True  # it was deleted
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
        self._hopeless.add(identity)
        for spec in [spec for spec, _ in self._models.torn() if spec.identity == identity]:
            self._models.give_up(
                spec,
                f"model {name!r} has lost its shards on {', '.join(missing(spec))} with the memory there, and has no "
                "checkpoint to be restored from",
            )
        log.error("model %s went with the memory of its server, and has no checkpoint to be restored from", name)
        return True

    def _restore(self, path: str, identity: str) -> bool:
        with self._checkpoints.open(path, OPEN_TIMEOUT_S) as (spec, read):
            if spec.identity != identity:
                return False  # of an earlier model of its name
            beginning = beginning_of(read)
            # One that no life before has had, however often it is restored from one file: who joined then must see it.
            epoch = beginning.epoch + self._directory.announce(replace(spec, home=""))
            probe.hit("restore.announce.after")
            before = self._models.find(spec.name)
            if before is not None:
                epoch = max(epoch, before.control.epoch + 1)
                self._let_go(spec, "it goes back to a checkpoint")
            self._served.discard(identity)
            self._models.drop(spec.name, identity, goes_back=True)
            self._models.abandon(spec)  # what was found of it, and not served
            probe.hit("restore.drop.after")
            servers = list(dict.fromkeys(place.server for place in spec.shards))
            placed = self._creation.place(replace(spec, home=""), servers, len(spec.shards))
            engine = self._creation.create(placed, replace(beginning, epoch=epoch), again=True)
        log.warning("model %s was restored from %s: version %d", spec.name, path, engine.control.first_version)
        return True
