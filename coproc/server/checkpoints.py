"""Checkpoints of the models that are sequenced here: taken when asked for or when it is time, old ones removed.

The file's block is made beforehand at its full size, with its pages there; then the shards stand still at a cut for as
long as one copy from memory to memory takes; checksum and commit come after it. The file is committed as any other, so
it is there whole or not at all, and goes to the under-store if it is below a mount. A server that is killed anywhere in
between leaves nothing behind: the block has no name until then.
"""

from __future__ import annotations

import errno
import logging
import math
import mmap
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from coproc import checkpoint, probe
from coproc.checkpoint import Checkpoint, Facts, Value
from coproc.errors import CoprocError, CorruptCheckpoint, ModelNotFound, OutOfMemory, Timeout
from coproc.observers.paths import checkpoint_path, checkpoints_path
from coproc.server import copying
from coproc.server.copying import copy_all
from coproc.server.engine import Engine
from coproc.server.models import Beginning, Models
from coproc.spec import ModelSpec
from coproc.wire import as_coproc
from storage_tier.catalog import Entry
from storage_tier.errors import OutOfMemory as TierOutOfMemory
from storage_tier.errors import PathNotFound, TierError, VersionConflict
from storage_tier.files import CommitOptions, Files
from storage_tier.headers import payload_offset_bytes
from storage_tier.tier import Tier
from storage_tier.writer import BlockWriter

log = logging.getLogger(__name__)

# How often it is looked whether it is time; without a model that asks for it, how often for such a model.
LOOK_S, REST_S = 0.05, 0.5
# How soon what failed is tried again.
AGAIN_S = 5.0
TAKE_TIMEOUT_S = 60.0
# A checkpoint that replaces older ones has this long to get to the under-store; meanwhile those stay.
PERSIST_TIMEOUT_S = 60.0

_NAME = re.compile(r"[0-9]{12,19}\.safetensors")
_PAGE_FLOATS = mmap.PAGESIZE // 4


@dataclass
class _Watched:
    """A model whose checkpoints are taken by themselves."""

    version: int
    """Of the last one, or the first version."""
    taken_s: float
    """When; monotonic."""
    failure: str = ""
    again_s: float = 0.0
    """Not before; monotonic."""
    crowded: bool = True
    """There may be older ones than are to be kept."""


class Checkpointing:
    """One a server, with one thread. Thread-safe."""

    def __init__(self, tier: Tier, files: Files, models: Models) -> None:
        self._tier = tier
        self._files = files
        self._models = models
        self._watched: dict[str, _Watched] = {}
        self._last: dict[str, int] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def start(self) -> None:
        """Begin to take what models ask for. After the files have started."""
        copying.warm()
        self._thread.start()

    def close(self, timeout_s: float = 30.0) -> None:
        """Stop after the one at hand. Idempotent."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def told(self, spec: ModelSpec) -> tuple[int, str]:
        """(version of the last checkpoint since this server started, or -1; why the newest attempt failed, or '')."""
        watched = self._watched.get(spec.identity)
        return self._last.get(spec.identity, -1), watched.failure if watched is not None else ""

    def forget(self, spec: ModelSpec) -> None:
        """A model is deleted."""
        self._watched.pop(spec.identity, None)
        self._last.pop(spec.identity, None)

    # ------------------------------------------------------------------ taking

    def take(self, engine: Engine, metadata: Mapping[str, Value], timeout_s: float) -> tuple[str, int]:
        """Write the newest version as a file; (its path, its version). Blocks; descent stops for one copy.

        One that is there of this version is replaced.

        Raises:
            Timeout, ModelNotFound, ServerError, OutOfMemory; what the tier refuses.
        """
        deadline = time.monotonic() + timeout_s
        spec, rows = engine.spec, engine.spec.optimizer.state_rows
        facts = _facts(engine, metadata)
        head_bytes = checkpoint.header_bytes(spec.layout, rows, facts)
        head_bytes += -head_bytes % 64
        size_bytes = head_bytes + 4 * (1 + len(rows)) * spec.layout.size
        with self._blank(size_bytes, spec) as blank:
            flat = blank.rows(head_bytes, 1 + len(rows), spec.layout.size)
            with engine.cut(max(0.0, deadline - time.monotonic())) as cut:
                copy_all(
                    (target[lo:hi], source)
                    for lo, hi, front in cut.fronts
                    for target, source in zip(flat, front, strict=True)
                )
            probe.hit("checkpoint.copy.after")
            facts = replace(
                facts, version=cut.version, updates=cut.updates, learning_rate=cut.learning_rate, ledger=cut.ledger
            )
            crc32 = checkpoint.checksum(flat.reshape(-1).data.cast("B"))
            try:
                blank.begin(checkpoint.header(spec.layout, rows, facts, crc32, head_bytes))
            except ValueError as error:
                raise Timeout(f"the checkpoint of model {spec.name!r} is to be taken again: {error}") from None
            del flat
            if engine.control.deleted:
                raise ModelNotFound(f"model {spec.name!r} was deleted")
            path = checkpoint_path(spec.name, facts.version)
            known: dict[str, Value] = {"version": facts.version, "model": spec.name, "identity": spec.identity}
            blank.commit(path, CommitOptions(metadata={**metadata, **known}))
        probe.hit("checkpoint.commit.after")
        self._last[spec.identity] = facts.version
        return path, facts.version

    @contextmanager
    def _blank(self, size_bytes: int, spec: ModelSpec) -> Iterator[_Blank]:
        try:
            blank = _Blank(self._tier, self._files, size_bytes)
        except TierOutOfMemory as error:
            raise OutOfMemory(f"a checkpoint of model {spec.name!r} has {size_bytes:,} bytes: {error}") from None
        try:
            yield blank
        finally:
            blank.close()

    # ----------------------------------------------------------------- reading

    @contextmanager
    def open(self, path: str, timeout_s: float) -> Iterator[tuple[ModelSpec, Checkpoint]]:
        """A checkpoint of any model, looked through; its rows are valid inside.

        Raises:
            CorruptCheckpoint: cut, altered, or none. TierError: not there, or out of reach.
        """
        with self._files.open(path, timeout_s=timeout_s) as block:
            facts = checkpoint.read_facts(block.data, path)
            try:
                spec = ModelSpec.from_json(facts.model)
            except CoprocError as error:
                raise CorruptCheckpoint(f"{path} was altered: what it says of its model cannot be: {error}") from None
            yield spec, checkpoint.read(block.data, spec.layout, spec.optimizer.state_rows, path)

    def newest_first(self, model: str) -> list[Entry]:
        """The checkpoints of a model of this name, the one that was committed last first."""
        try:
            entries = self._files.list(checkpoints_path(model))
        except PathNotFound:
            return []
        found = [entry for entry in entries if entry.kind == "file" and _NAME.fullmatch(entry.path.rpartition("/")[2])]
        return sorted(found, key=lambda entry: (entry.modified_ns, entry.path), reverse=True)

    # ------------------------------------------------------------------ thread

    def _run(self) -> None:
        pause_s = LOOK_S
        while not self._closing.wait(pause_s):
            engines = [e for e in self._models.all() if e.sequencer is not None and e.spec.checkpoints is not None]
            pause_s = LOOK_S if engines else REST_S
            for engine in engines:
                self._look(engine)

    def _look(self, engine: Engine) -> None:
        spec = engine.spec
        watched = self._watched.get(spec.identity)
        if watched is not None and time.monotonic() < watched.again_s:
            return
        try:
            if watched is None:
                watched = self._watched[spec.identity] = self._first_look(engine)
            if _is_time(engine, watched):
                _, watched.version = self.take(engine, {}, TAKE_TIMEOUT_S)
                watched.taken_s, watched.crowded = time.monotonic(), True
            if watched.crowded:
                self._remove_old(spec)
                watched.crowded = False
            watched.failure = ""
        except ModelNotFound:
            self.forget(spec)
        except Exception as error:
            known = as_coproc(error) if isinstance(error, TierError) else error
            if watched is not None:
                watched.failure, watched.again_s = str(known), time.monotonic() + AGAIN_S
            log.log(
                logging.WARNING, "checkpoints of model %s are tried again in %g s: %s", spec.name, AGAIN_S, known,
                exc_info=None if isinstance(known, CoprocError) else error,
            )  # fmt: skip

    def _first_look(self, engine: Engine) -> _Watched:
        """Where a server before this one has left off."""
        for entry in self.newest_first(engine.spec.name):
            if entry.metadata.get("identity") == engine.spec.identity:
                age_s = max(0.0, time.time() - entry.modified_ns / 1e9)
                return _Watched(int(str(entry.metadata["version"])), time.monotonic() - age_s)
        return _Watched(engine.control.first_version, time.monotonic())

    def _remove_old(self, spec: ModelSpec) -> None:
        """Beyond those that are to be kept; only once the newest is where it would survive as they do."""
        assert spec.checkpoints is not None
        entries = self.newest_first(spec.name)
        old = entries[spec.checkpoints.keep :]
        if old and entries[0].persisted == "waiting":
            self._files.persist(entries[0].path, PERSIST_TIMEOUT_S)
        for entry in old:
            with suppress(PathNotFound, VersionConflict):
                self._files.remove(entry.path, entry.version or None)


def beginning_of(read: Checkpoint) -> Beginning:
    """How a model goes on from a checkpoint: under an epoch of its own."""
    facts = read.facts
    return Beginning(read.rows, facts.epoch + 1, facts.learning_rate, facts.version, facts.updates, facts.ledger)


def _is_time(engine: Engine, watched: _Watched) -> bool:
    policy = engine.spec.checkpoints
    assert policy is not None
    version = min(shard.version for shard in engine.shards)
    if version == watched.version:
        return False
    by_version = policy.every_versions is not None and version - watched.version >= policy.every_versions
    return by_version or (policy.every_s is not None and time.monotonic() - watched.taken_s >= policy.every_s)


def _facts(engine: Engine, metadata: Mapping[str, Value]) -> Facts:
    """As they are now, for the length of the header; the places of the model's memory are nobody's business."""
    spec = replace(engine.spec, home="", shards=tuple(replace(place, path="") for place in engine.spec.shards))
    return Facts(spec.to_json(), 0, 0, 0.0, engine.control.epoch, engine.control.rows(), metadata)


class _Blank:
    """A block without a name yet, mapped at its full size."""

    def __init__(self, tier: Tier, files: Files, size_bytes: int) -> None:
        self._tier, self._files, self._size_bytes = tier, files, size_bytes
        # Its file's name has the version, which the cut decides: until then the memory is set aside under another one.
        name = f"/checkpoint-{uuid4().hex}"
        self._offset_bytes = payload_offset_bytes(name, {})
        self._file_bytes = self._offset_bytes + size_bytes
        self._held = tier.reserve(name, self._file_bytes, math.inf)
        self._writer: BlockWriter | None = None
        self._map: mmap.mmap | None = None
        try:
            self._writer = BlockWriter(tier.blocks_directory, name)
            try:
                os.posix_fallocate(self._writer.fd, 0, self._file_bytes)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise TierOutOfMemory(f"they do not fit under {tier.blocks_directory}") from None
            self._map = mmap.mmap(self._writer.fd, self._file_bytes)
        except BaseException:
            self.close()
            raise

    def rows(self, begin_bytes: int, count: int, size: int) -> NDArray[np.float32]:
        """(count, size) of the payload from `begin_bytes` on, to its end; to be forgotten before `commit`."""
        assert self._map is not None
        flat = np.frombuffer(self._map, np.float32, count * size, self._offset_bytes + begin_bytes)
        flat[::_PAGE_FLOATS] = 0  # the first touch of a page costs more than its copy
        return flat.reshape(count, size)

    def begin(self, header: bytes) -> None:
        """Write the first bytes of the payload."""
        assert self._map is not None
        self._map[self._offset_bytes : self._offset_bytes + len(header)] = header

    def commit(self, path: str, options: CommitOptions) -> None:
        """Make it a file. As `Files.commit`."""
        assert self._writer is not None
        self._unmap()
        self._tier.abort(self._held.id)
        reservation = self._files.create(path, self._file_bytes, options)
        try:
            self._writer.path = reservation.block_path
            self._writer.filled(self._size_bytes)
            self._writer.commit()
            self._files.commit(reservation.id, options)
        finally:
            self._files.abort(reservation.id)

    def _unmap(self) -> None:
        mapped, self._map = self._map, None
        if mapped is not None:
            with suppress(BufferError):  # a view is still alive; the map goes with it
                mapped.close()

    def close(self) -> None:
        """Give back what was not committed. Idempotent."""
        self._unmap()
        if self._writer is not None:
            self._writer.abort()
        self._tier.abort(self._held.id)
