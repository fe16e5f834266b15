"""The models of one server: creating, finding again after a restart, deleting; a directory each.

<directory>/models/NAME/spec.json    what it is; its presence makes the model exist on this server
                        control      on the sequencer
                        shard-0      a region for each shard of this server
                        sums         on the sequencer, where shards must know of each other's
                        seats/       on the sequencer
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coproc.errors import CoprocError, ModelExists, ModelNotFound, Unreachable, Unsupported
from coproc.server.engine import Engine
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared.control import Control, Row
from coproc.shared.published import Published
from coproc.shared.sums import Sums
from coproc.spec import ModelSpec, check_identity, check_name
from storage_tier.errors import RegionNotFound, TierError
from storage_tier.host import write_whole
from storage_tier.regions import file_bytes
from storage_tier.tier import Tier

log = logging.getLogger(__name__)

FIRST = "first"
"""Name of the file of first parameters, and of state if there is, while a model is being created."""


@dataclass(frozen=True)
class Beginning:
    """What a model begins with: its first parameters; of one that is restored, all that its checkpoint has."""

    rows: NDArray[np.float32]
    """(1, P): parameters, the state is zero; or (1 + rows of state, P)."""
    epoch: int
    """Of the model, at least."""
    learning_rate: float
    version: int = 0
    updates: int = 0
    ledger: tuple[Row, ...] = ()


class Models:
    """All models that this server has a shard of. Thread-safe."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._directory = tier.directory / "models"
        self._engines: dict[str, Engine] = {}
        self._creating: dict[str, ModelSpec] = {}
        self._damaged: dict[str, str] = {}
        self._torn: dict[str, ModelSpec] = {}
        """Models that are sequenced here and were found without some of their shards."""
        self._lock = threading.Lock()
        self.awaited: dict[str, str] | None = None
        """Models that went with this server's memory and are being restored: name -> how far that is. None: it has not
        been looked for such yet."""

    def recover(self) -> None:
        """Serve what earlier servers of this directory left, and remove what was half created or deleted.

        A model that cannot be served is left as it is and reported by `get`; the others are served.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for home in sorted(self._directory.iterdir()):
            description = home / "spec.json"
            if not description.exists():
                shutil.rmtree(home)
                continue
            try:
                spec = ModelSpec.from_json(description.read_text())
                for file in home.rglob("*"):
                    if file.is_file() and file != description:
                        self._tier.budget.adopt(str(file), file.stat().st_size)
                if not _is_alive(spec):
                    self._remove(home)
                    continue
                if Path(spec.home) == home and missing(spec):
                    self._torn[spec.name] = spec
                    continue
                self._cap(spec)
                self._remove_stray_seats(spec, home)
                self._engines[spec.name] = Engine(spec, self._mine(spec, home), self._tier.budget)
            except (CoprocError, TierError, OSError, ValueError, LookupError) as error:
                name = home.name.partition("~")[0]
                self._damaged[name] = f"model {name!r} at {home} cannot be served: {type(error).__name__}: {error}"
                log.exception("%s", self._damaged[name])

    def _remove_stray_seats(self, spec: ModelSpec, home: Path) -> None:
        """Regions of seats that were being given or taken back when the server was killed."""
        if Path(spec.home) != home:
            return
        control = Control.open(spec.control_path)
        known = set()
        for number in range(ctl.MAX_SEATS):
            state, _, generation, _ = control.seats.row(number * ctl.ROW, 4)
            if state == ctl.SEAT_OPEN:
                known.add(spec.seat_path(number, generation))
        for path in (home / "seats").glob("*"):
            if path not in known:
                path.unlink()
                self._tier.budget.release(str(path))
        control.region.close()

    def _home(self, spec: ModelSpec) -> Path:
        return self._directory / spec.folder

    def _cap(self, spec: ModelSpec) -> None:
        self._tier.budget.cap(f"{self._home(spec)}/", spec.memory_limit_bytes)

    @staticmethod
    def _mine(spec: ModelSpec, home: Path) -> list[int]:
        return [n for n, place in enumerate(spec.shards) if Path(place.path).parent == home]

    # -- creating --------------------------------------------------------------------------------------------

    def begin(self, spec: ModelSpec, beginning: Beginning) -> tuple[ModelSpec, Path]:
        """On the sequencer: make the model's directory, its control region, and a file of the first parameters.

        Returns:
            The spec with its identity (a new one, if it has none) and home, and the path of that file. `activate` or
            `abandon` must follow.

        Raises:
            ModelExists: the name is taken on this server.
            OutOfMemory: no room.
        """
        spec = replace(spec, identity=spec.identity or secrets.token_hex(8))
        spec = replace(spec, home=str(self._home(spec)))
        self._home(spec).mkdir(mode=0o700)
        self._cap(spec)
        try:
            self._take_name(spec)
            self._tier.budget.charge(str(spec.control_path), file_bytes(Control.size_bytes()))
            rate = ctl.float_to_word(beginning.learning_rate)
            Control.create(
                spec.control_path,
                max(self._tier.epoch, beginning.epoch),
                (beginning.version, beginning.updates, rate),
                beginning.ledger,
            ).region.close()
            if spec.sums_count and len(spec.shards) > 1:
                size_bytes = Sums.size_bytes(len(spec.shards), spec.sums_count)
                self._tier.budget.charge(str(spec.sums_path), file_bytes(size_bytes))
                Sums.create(spec.sums_path, len(spec.shards), spec.sums_count).region.close()
            first = self._home(spec) / FIRST
            beginning.rows.tofile(first)
        except BaseException:
            self.abandon(spec)
            raise
        return spec, first

    def _take_name(self, spec: ModelSpec) -> None:
        """Nobody else creates a model of this name meanwhile. Parts of one whose sequencer is gone are dropped."""
        with self._lock:
            other = self._creating.get(spec.name)
            engine = self._engines.get(spec.name)
            if other is not None and _is_alive(other):
                raise ModelExists(f"model {spec.name!r} is being created by somebody else")
            if engine is not None and _is_alive(engine.spec):
                raise ModelExists(
                    f"there is a model {spec.name!r} already; choose another name, or delete it (model.delete())"
                )
            self._creating[spec.name] = spec
        if other is not None:
            self.abandon(other)
        if engine is not None:
            self.drop(spec.name, engine.spec.identity)

    def make_shards(self, spec: ModelSpec, server: str, params_path: Path) -> ModelSpec:
        """Create the regions of the shards that are listed under `server`; the spec with their paths filled in.

        `activate` or `abandon` must follow.

        Raises:
            Unsupported: the sequencer's memory is not on this host.
            ModelExists: this server has another model of the name.
            OutOfMemory: no room.
        """
        home = self._home(spec)
        if not _is_sequencers(spec, params_path):
            raise Unsupported(
                f"server {server} cannot see the memory of model {spec.name!r} at {spec.home}: shards of one model on "
                "several hosts do not work; use servers of one host, or a model in parts (--parts)"
            )
        if home != Path(spec.home):
            self._take_name(spec)
            home.mkdir(mode=0o700)
            self._cap(spec)
        rows = len(spec.optimizer.state_rows)
        control = Control.open(spec.control_path)
        version, updates, rate = control.general.row(ctl.FIRST_VERSION, 3)
        control.region.close()
        row_bytes = 4 * spec.layout.size
        has_state = params_path.stat().st_size > row_bytes
        places = list(spec.shards)
        try:
            for number, place in enumerate(places):
                if place.server != server:
                    continue
                path = home / f"shard-{number}"
                params, *state = [
                    np.fromfile(params_path, np.float32, place.hi - place.lo, offset=n * row_bytes + place.lo * 4)
                    for n in range(1 + rows * has_state)
                ]
                size_bytes = Published.size_bytes(params.size, rows, spec.buffers)
                self._tier.budget.charge(str(path), file_bytes(size_bytes))
                Published.create(
                    path, params, rows, spec.buffers, rate, state=state, version=version, updates=updates
                ).close()
                places[number] = replace(place, path=str(path))
        except BaseException:
            if home != Path(spec.home):
                self.abandon(spec)
            raise
        return replace(spec, shards=tuple(places))

    def activate(self, spec: ModelSpec) -> Engine:
        """Begin to serve. From here on the model exists, also after a restart."""
        home = self._home(spec)
        (home / FIRST).unlink(missing_ok=True)
        write_whole(home / "spec.json", spec.to_json().encode())
        engine = Engine(spec, self._mine(spec, home), self._tier.budget)
        with self._lock:
            self._engines[spec.name] = engine
            self._creating.pop(spec.name, None)
        return engine

    def abandon(self, spec: ModelSpec) -> None:
        """Remove what `begin` or `make_shards` made, and free the name. Nothing if it is served, or not there."""
        self.abandon_part(spec.name, spec.identity)

    def abandon_part(self, name: str, identity: str) -> None:
        """`abandon`, for who knows no more of the model."""
        home = self._directory / f"{check_name(name)}~{check_identity(identity)}"
        with self._lock:
            engine = self._engines.get(name)
            if engine is not None and engine.spec.identity == identity:
                return
            if name in self._creating and self._creating[name].identity == identity:
                del self._creating[name]
            if name in self._torn and self._torn[name].identity == identity:
                del self._torn[name]
        self._remove(home)

    def _remove(self, home: Path) -> None:
        files = list(home.rglob("*"))
        (home / "spec.json").unlink(missing_ok=True)  # what is half removed is no model for the next server
        shutil.rmtree(home, ignore_errors=True)
        for file in files:
            self._tier.budget.release(str(file))
        self._tier.budget.cap(f"{home}/", None)

    # -- the rest of a life ----------------------------------------------------------------------------------

    def get(self, name: str, identity: str = "") -> Engine:
        """The engine of a model, and of no other one that has or had its name, if an identity is given.

        Raises:
            ModelNotFound: not on this server. Unreachable: not yet again.
        """
        engine = self._engines.get(name)
        if engine is None:
            awaited = self.awaited
            if awaited is None:
                raise Unreachable(f"this server has just started and looks for model {name!r}")
            if name in awaited:
                raise Unreachable(f"the memory of model {name!r} was lost, and it is being restored{awaited[name]}")
            names = sorted(self._engines)
            problem = self._damaged.get(name, f"there is no model {name!r} on this server")
            raise ModelNotFound(f"{problem}; there are {names if names else 'none'}")
        if identity and engine.spec.identity != identity:
            raise ModelNotFound(f"model {name!r} was deleted; another one has its name now")
        return engine

    def find(self, name: str) -> Engine | None:
        """The engine of a model that is served here; None for others."""
        return self._engines.get(name)

    def knows(self, name: str, identity: str) -> bool:
        """Whether a model is here, is being created here, or is here and cannot be served."""
        with self._lock:
            engine, creating = self._engines.get(name), self._creating.get(name)
            torn = self._torn.get(name)
        known = (creating, torn, None if engine is None else engine.spec)
        return name in self._damaged or any(spec is not None and spec.identity == identity for spec in known)

    def all(self) -> list[Engine]:
        """The engines of all models, by name."""
        with self._lock:
            return [self._engines[name] for name in sorted(self._engines)]

    def torn(self) -> list[tuple[ModelSpec, Engine | None]]:
        """Models that are sequenced here and have lost shards, those of other servers too; None: without an engine."""
        with self._lock:
            found: list[tuple[ModelSpec, Engine | None]] = [(spec, None) for spec in self._torn.values()]
            served = [engine for engine in self._engines.values() if engine.sequencer is not None]
        return found + [(engine.spec, engine) for engine in served if missing(engine.spec)]

    def give_up(self, spec: ModelSpec, reason: str) -> None:
        """A model that `torn` told of has nothing to go back to: it takes no gradients any more, and says why."""
        with self._lock:
            engine = self._engines.get(spec.name)
            if self._torn.pop(spec.name, None) is not None:
                self._damaged[spec.name] = reason
        if engine is not None and engine.spec.identity == spec.identity:
            engine.failure = reason
            engine.shards[0].words.store(pub.FAILED, 1)
            for shard in engine.shards:
                shard.words.ring(pub.BELL)

    def drop(self, name: str, identity: str, goes_back: bool = False) -> None:
        """Stop serving a model and give its memory back; who has it mapped sees that it is deleted.

        Nothing if it is not on this server, or if the name is another model's by now.

        Args:
            goes_back: it is not deleted, but to be created again from a checkpoint, which who has it mapped finds out.
        """
        with self._lock:
            engine = self._engines.get(name)
            if engine is None or engine.spec.identity != identity:
                return
            del self._engines[name]
        if engine.sequencer is not None:  # whose word it is
            if goes_back:
                engine.sequencer.end(Unreachable(f"model {name!r} goes back to a checkpoint"))
            else:
                engine.control.general.store(ctl.STATE, ctl.DELETED)
        engine.stop()
        if engine.sequencer is not None:
            engine.sequencer.close_all_seats()  # its thread has ended
        for shard in engine.shards:
            shard.words.ring(pub.BELL)
        engine.close()
        self._remove(self._home(engine.spec))

    def memory_bytes(self, engine: Engine) -> int:
        """What a model takes of this server's budget."""
        return self._tier.budget.charged_below(str(self._home(engine.spec)) + "/")

    def close(self) -> None:
        """Stop all engines; the models stay in memory for the next server."""
        for engine in self.all():
            engine.close()


def missing(spec: ModelSpec) -> list[str]:
    """The servers whose shards of a model are gone, as far as this host's memory tells."""
    return sorted({place.server for place in spec.shards if not Path(place.path).exists()})


def _is_sequencers(spec: ModelSpec, params_path: Path) -> bool:
    """Whether the sequencer's control region and file of first parameters are in reach, and are what they should be."""
    return params_path == Path(spec.home) / FIRST and params_path.is_file() and _is_alive(spec)


def _is_alive(spec: ModelSpec) -> bool:
    """Whether the model's control region is there and does not say that it is deleted.

    Raises:
        CorruptRegion: it is there, and damaged: whoever knows why may want the rest.
    """
    try:
        control = Control.open(spec.control_path)
    except RegionNotFound:
        return False
    deleted = control.deleted
    control.region.close()
    return not deleted
