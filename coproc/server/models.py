"""The models of one server: creating, finding again after a restart, deleting; a directory each.

<directory>/models/NAME/spec.json    what it is; its presence makes the model exist on this server
                        control      on the sequencer
                        shard-0      a region for each shard of this server
                        seats/       on the sequencer
"""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np

from coproc.errors import ModelExists, ModelNotFound, Unsupported
from coproc.layout import Flat
from coproc.server.engine import Engine
from coproc.shared import control as ctl
from coproc.shared import published as pub
from coproc.shared.control import Control
from coproc.shared.published import Published
from coproc.spec import ModelSpec, check_name
from storage_tier.errors import TierError
from storage_tier.host import write_whole
from storage_tier.regions import file_bytes
from storage_tier.tier import Tier

log = logging.getLogger(__name__)

FIRST = "first"
"""Name of the file of first parameters, while a model is being created."""


class Models:
    """All models that this server has a shard of. Thread-safe."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._directory = tier.directory / "models"
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()

    def recover(self) -> None:
        """Serve what earlier servers of this directory left, and remove what was half created or deleted."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for home in sorted(self._directory.iterdir()):
            description = home / "spec.json"
            if not description.exists():
                shutil.rmtree(home)
                continue
            spec = ModelSpec.from_json(description.read_text())
            if spec.control_path.exists() and not _is_deleted(spec):
                for file in home.rglob("*"):
                    if file.is_file() and file != description:
                        self._tier.budget.adopt(str(file), file.stat().st_size)
                self._remove_stray_seats(spec, home)
                self._engines[spec.name] = Engine(spec, self._mine(spec, home), self._tier.budget)
            else:
                shutil.rmtree(home)

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

    def _home(self, name: str) -> Path:
        return self._directory / check_name(name)

    @staticmethod
    def _mine(spec: ModelSpec, home: Path) -> list[int]:
        return [n for n, place in enumerate(spec.shards) if Path(place.path).parent == home]

    # -- creating --------------------------------------------------------------------------------------------

    def begin(self, spec: ModelSpec, params: Flat) -> tuple[ModelSpec, Path]:
        """On the sequencer: make the model's directory, its control region, and a file of the first parameters.

        Returns:
            The spec with its home, and the path of that file. `activate` or `abandon` must follow.

        Raises:
            ModelExists: the name is taken on this server.
            OutOfMemory: no room.
        """
        home = self._home(spec.name)
        with self._lock:
            if spec.name in self._engines:
                raise ModelExists(
                    f"there is a model {spec.name!r} already; choose another name, or delete it (model.delete())"
                )
            try:
                home.mkdir(mode=0o700)
            except FileExistsError:
                raise ModelExists(f"model {spec.name!r} is being created or deleted by somebody else") from None
        spec = replace(spec, home=str(home))
        try:
            self._tier.budget.charge(str(spec.control_path), file_bytes(Control.size_bytes()))
            Control.create(spec.control_path, self._tier.epoch).region.close()
            first = home / FIRST
            params.tofile(first)
        except BaseException:
            self.abandon(spec.name)
            raise
        return spec, first

    def make_shards(self, spec: ModelSpec, server: str, params_path: Path) -> ModelSpec:
        """Create the regions of the shards that are listed under `server`; the spec with their paths filled in.

        Raises:
            Unsupported: the sequencer's memory is not on this host.
            OutOfMemory: no room.
        """
        home = self._home(spec.name)
        if not _is_sequencers(spec, params_path):
            raise Unsupported(
                f"server {server} cannot see the memory of model {spec.name!r} at {spec.home}: shards of one model on "
                "several hosts are not supported yet; use servers of one host"
            )
        if home != Path(spec.home):
            try:
                home.mkdir(mode=0o700)
            except FileExistsError:
                raise ModelExists(f"server {server} has a model {spec.name!r} already") from None
        rows = len(spec.optimizer.state_rows)
        rate = ctl.float_to_word(spec.optimizer.learning_rate)
        places = list(spec.shards)
        try:
            for number, place in enumerate(places):
                if place.server != server:
                    continue
                path = home / f"shard-{number}"
                params = np.fromfile(params_path, np.float32, place.hi - place.lo, offset=place.lo * 4)
                size_bytes = Published.size_bytes(params.size, rows, spec.buffers)
                self._tier.budget.charge(str(path), file_bytes(size_bytes))
                Published.create(path, params, rows, spec.buffers, rate).close()
                places[number] = replace(place, path=str(path))
        except BaseException:
            if home != Path(spec.home):
                self.abandon(spec.name)
            raise
        return replace(spec, shards=tuple(places))

    def activate(self, spec: ModelSpec) -> Engine:
        """Begin to serve. From here on the model exists, also after a restart."""
        home = self._home(spec.name)
        (home / FIRST).unlink(missing_ok=True)
        write_whole(home / "spec.json", spec.to_json().encode())
        engine = Engine(spec, self._mine(spec, home), self._tier.budget)
        with self._lock:
            self._engines[spec.name] = engine
        return engine

    def abandon(self, name: str) -> None:
        """Remove what `begin` or `make_shards` made. Nothing if there is nothing."""
        home = self._home(name)
        for file in home.rglob("*"):
            self._tier.budget.release(str(file))
        shutil.rmtree(home, ignore_errors=True)

    # -- the rest of a life ----------------------------------------------------------------------------------

    def get(self, name: str) -> Engine:
        """The engine of a model.

        Raises:
            ModelNotFound: not on this server.
        """
        engine = self._engines.get(name)
        if engine is None:
            names = sorted(self._engines)
            raise ModelNotFound(f"there is no model {name!r} on this server; there are {names if names else 'none'}")
        return engine

    def all(self) -> list[Engine]:
        """The engines of all models, by name."""
        with self._lock:
            return [self._engines[name] for name in sorted(self._engines)]

    def drop(self, name: str) -> None:
        """Stop serving a model and give its memory back; who has it mapped sees that it is deleted."""
        with self._lock:
            engine = self._engines.pop(name, None)
        if engine is None:
            return
        engine.control.general.store(ctl.STATE, ctl.DELETED)
        if engine.sequencer is not None:
            engine.sequencer.submit(engine.sequencer.close_all_seats)
        for shard in engine.shards:
            shard.words.ring(pub.BELL)
        engine.close()
        home = self._home(name)
        files = list(home.rglob("*"))
        shutil.rmtree(home, ignore_errors=True)
        for file in files:
            self._tier.budget.release(str(file))

    def memory_bytes(self, engine: Engine) -> int:
        """What a model takes of this server's budget."""
        home = self._home(engine.spec.name)
        return sum(file.stat().st_size for file in home.rglob("*") if file.is_file())

    def close(self) -> None:
        """Stop all engines; the models stay in memory for the next server."""
        for engine in self.all():
            engine.close()


def _is_sequencers(spec: ModelSpec, params_path: Path) -> bool:
    """Whether the sequencer's control region and file of first parameters are in reach, and are what they should be."""
    if params_path != Path(spec.home) / FIRST or not params_path.is_file():
        return False
    try:
        Control.open(spec.control_path).region.close()
    except TierError:
        return False
    return True


def _is_deleted(spec: ModelSpec) -> bool:
    control = Control.open(spec.control_path)
    deleted = control.deleted
    control.region.close()
    return deleted
