"""Gradient files become pushes: by the server that orders the model's pushes, whoever committed the files.

The files themselves are the queue. One is pushed when its step is its worker's next, and removed once the push is
committed in the model's own memory, which survives a kill. A kill before that leaves the file, and it is pushed
then; a kill after it leaves the file too, and its step says that it is there already. So each (worker, step) counts
once, whatever files there are of it and whoever dies; what is too early waits for its turn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from coproc.errors import CoprocError
from coproc.near import NearWorker
from coproc.observers.gradients import Gradient, NotGradient, fill, read_gradient
from coproc.observers.paths import gradients_path
from coproc.observers.source import Source
from coproc.spec import ModelSpec
from storage_tier.catalog import Entry
from storage_tier.errors import BlockNotFound, PathNotFound, TierError, VersionConflict
from storage_tier.files import Files

log = logging.getLogger(__name__)

# How soon a file that was committed through another server is seen: one small query as often.
POLL_S = 0.1
# How soon it is tried again when all of a worker's slots wait for the descent, or for other workers of its round.
BUSY_S = 0.01
# How long one file may take to come from the server that has it; meanwhile all others wait.
OPEN_TIMEOUT_S = 5.0
# How soon what failed is tried again.
AGAIN_S = 1.0
# A worker without a file for so long gives its seat back. From then on it counts as any worker that is gone.
IDLE_S = 60.0


@dataclass
class _Seat:
    worker: NearWorker
    give_back: Callable[[], None]
    used_s: float


@dataclass
class _Folder:
    """The gradients of one model."""

    spec: ModelSpec
    files: dict[tuple[str, int], tuple[Entry, Gradient | str]] = field(default_factory=dict)
    """By path and version: the gradient, or why it is none."""
    seats: dict[int, _Seat] = field(default_factory=dict)
    stale: bool = True
    """The directory has to be listed."""
    note: str = ""
    busy: bool = False
    failed: bool = False


class Pusher:
    """One thread. `wake` and the questions are thread-safe."""

    def __init__(self, files: Files, source: Source, begin: Callable[[], None]) -> None:
        """`begin` is called first, on the thread; when it fails it is tried again."""
        self._files = files
        self._source = source
        self._begin: Callable[[], None] | None = begin
        self._wake = threading.Event()
        self._closing = False
        self._folders: dict[str, _Folder] = {}
        self._revision = -1
        self._thread = threading.Thread(target=self._run, name="gradient files", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Something was committed, or a model came or went. Does not block."""
        self._wake.set()

    def waiting(self, spec: ModelSpec) -> tuple[int, str]:
        """How many files of a model are not pushed yet, and why the first of them waits."""
        folder = self._folders.get(spec.identity)
        return (len(folder.files), folder.note) if folder is not None else (0, "")

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop after the push at hand. Files stay. Idempotent."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # ------------------------------------------------------------------ thread

    def _run(self) -> None:
        pause_s = 0.0
        while not self._closing:
            woken = self._wake.wait(pause_s)
            self._wake.clear()
            try:
                if self._begin is not None:
                    self._begin()
                    self._begin = None
                self._look(woken)
                failed = any(folder.failed for folder in self._folders.values())
                busy = any(folder.busy for folder in self._folders.values())
                pause_s = BUSY_S if busy else POLL_S
                if failed and not busy:
                    pause_s = AGAIN_S
            except (TierError, CoprocError) as error:
                log.warning("gradient files are looked at again in %g s: %s", AGAIN_S, error)
                pause_s = AGAIN_S
            except Exception:
                log.exception("gradient files are looked at again in %g s", AGAIN_S)
                pause_s = AGAIN_S
        for folder in self._folders.values():
            self._leave(folder, give_back=True)

    def _look(self, woken: bool) -> None:
        specs = {spec.identity: spec for spec in self._source.sequenced()}
        for identity in self._folders.keys() - specs.keys():
            self._leave(self._folders.pop(identity), give_back=False)
        if not specs:
            return
        revision = self._files.revision()
        changed, self._revision = woken or revision != self._revision, revision
        for identity, spec in specs.items():
            folder = self._folders.setdefault(identity, _Folder(spec))
            folder.stale |= changed
            if folder.stale or folder.busy or folder.failed:
                self._serve(folder)
            self._rest(folder)

    def _serve(self, folder: _Folder) -> None:
        notes: list[str] = []
        folder.busy = folder.failed = False
        if folder.stale:
            folder.stale = False
            folder.failed = not self._list(folder, notes)
        queues: dict[int, list[tuple[Entry, Gradient]]] = {}
        for entry, found in folder.files.values():
            if isinstance(found, str):
                notes.append(found)
            else:
                queues.setdefault(found.worker, []).append((entry, found))
        for worker, queue in sorted(queues.items()):
            queue.sort(key=lambda one: (one[1].step, one[0].modified_ns))
            try:
                self._push_all(folder, worker, queue, notes)
            except (TierError, CoprocError) as error:
                folder.failed = True
                notes.append(f"the gradients of worker {worker} wait: {error}")
                self._close(folder, worker)
        folder.note = notes[0] + (f" (and {len(notes) - 1:,} more)" if len(notes) > 1 else "") if notes else ""

    def _list(self, folder: _Folder, notes: list[str]) -> bool:
        """Bring `files` up to the directory; False if one could not be read."""
        try:
            entries = self._files.list(gradients_path(folder.spec.name))
        except PathNotFound:
            entries = []
        there = {(entry.path, entry.version): entry for entry in entries if entry.kind == "file"}
        for key in folder.files.keys() - there.keys():
            del folder.files[key]
        whole = True
        for key, entry in there.items():
            if key in folder.files:
                continue
            try:
                with self._files.open(entry.path, entry.version, timeout_s=OPEN_TIMEOUT_S) as block:
                    folder.files[key] = (entry, read_gradient(block.data, folder.spec))
            except NotGradient as error:
                folder.files[key] = (entry, f"{entry.path} is not applied, for it {error}: remove it")
            except (PathNotFound, VersionConflict, BlockNotFound):
                folder.stale = True  # removed or replaced meanwhile
            except TierError as error:
                whole, folder.stale = False, True
                notes.append(f"{entry.path} waits, for it cannot be read: {error}")
        return whole

    def _push_all(self, folder: _Folder, worker: int, queue: list[tuple[Entry, Gradient]], notes: list[str]) -> None:
        """Push what has its turn.

        Raises:
            TierError, CoprocError: it is to be tried again.
        """
        for entry, gradient in queue:
            due = self._source.next_step(folder.spec, worker)
            if gradient.step > due:
                gap = f"step {due} is" if gradient.step == due + 1 else f"steps {due} to {gradient.step - 1} are"
                notes.append(f"{entry.path} waits: it is step {gradient.step} of worker {worker}, and {gap} missing")
                return
            if gradient.step == due:
                seat = self._seat(folder, worker)
                if seat.worker.seat.free_slots <= 0:
                    folder.busy = True
                    notes.append(f"{entry.path} waits for the gradients of worker {worker} before it to be descended")
                    return
                if not self._push(folder, seat.worker, entry, gradient, notes):
                    return
            self._remove(folder, entry)

    def _push(self, folder: _Folder, worker: NearWorker, entry: Entry, gradient: Gradient, notes: list[str]) -> bool:
        """One push; False if the file has changed, or is none after all."""
        try:
            with self._files.open(entry.path, entry.version, timeout_s=OPEN_TIMEOUT_S) as block:
                finite = fill(gradient, block.data, folder.spec.layout, worker.slot(AGAIN_S))
        except (PathNotFound, VersionConflict, BlockNotFound):
            folder.stale = True
            return False
        if not finite:
            folder.files[entry.path, entry.version] = (entry, f"{entry.path} is not applied, for it is not finite")
            notes.append(f"{entry.path} is not applied, for it is not finite: remove it")
            return False
        worker.read_version = min(gradient.version, worker.model.version())
        worker.commit(gradient.step, gradient.examples, gradient.loss, finite=True)
        return True

    def _remove(self, folder: _Folder, entry: Entry) -> None:
        try:
            self._files.remove(entry.path, entry.version)
        except (PathNotFound, VersionConflict):
            folder.stale = True
        folder.files.pop((entry.path, entry.version), None)

    # ------------------------------------------------------------------- seats

    def _seat(self, folder: _Folder, worker: int) -> _Seat:
        seat = folder.seats.get(worker)
        if seat is not None and seat.worker.seat.closed:
            self._close(folder, worker)
            seat = None
        if seat is None:
            seat = folder.seats[worker] = _Seat(*self._source.join(folder.spec, worker), 0.0)
        seat.used_s = time.monotonic()
        return seat

    def _rest(self, folder: _Folder) -> None:
        """Give back the seats of workers that have been silent for long."""
        limit_s = time.monotonic() - IDLE_S
        for worker in [worker for worker, seat in folder.seats.items() if seat.used_s < limit_s]:
            self._close(folder, worker)

    def _leave(self, folder: _Folder, give_back: bool) -> None:
        for worker in list(folder.seats):
            self._close(folder, worker, give_back)

    def _close(self, folder: _Folder, worker: int, give_back: bool = True) -> None:
        seat = folder.seats.pop(worker, None)
        if seat is None:
            return
        seat.worker.close()
        if give_back:
            try:
                seat.give_back()
            except CoprocError as error:
                log.info("the seat of worker %d of model %s was gone: %s", worker, folder.spec.name, error)
