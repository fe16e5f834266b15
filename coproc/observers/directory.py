"""The observer that makes a model a directory: what may be written there, what is read there, when it comes and goes.

It is built into the server (no process of its own), because it reads and writes the memory of models.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from coproc.errors import CoprocError, ModelExists, ModelNotFound
from coproc.layout import Flat
from coproc.observers import model_file
from coproc.observers.gradients import Gradient, NotGradient, check_finite, read_gradient
from coproc.observers.paths import (
    CHECKPOINTS,
    GRADIENTS,
    MODEL,
    SPEC,
    TOP,
    gradients_path,
    home,
    model_path,
    spec_path,
    taken_apart,
)
from coproc.observers.pushing import Pusher
from coproc.observers.source import Source
from coproc.spec import ModelSpec
from storage_tier.catalog import Entry
from storage_tier.errors import (
    DirectoryNotEmpty,
    MountConflict,
    ObserverFailed,
    PathExists,
    PathNotDirectory,
    PathNotFound,
    RegionNotFound,
    TierError,
)
from storage_tier.files import CommitOptions, Files
from storage_tier.observers.base import CommittedFile, Context, FileInfo, Observer, OpenFile, ResolvedFile, Veto
from storage_tier.under.write_type import WriteType

log = logging.getLogger(__name__)

NAME = "model"
MARK = f"{NAME}@{TOP}"
READ_TIMEOUT_S = 30.0
# Between the look at a gradient and its commit: from then on the catalog knows its name.
_COMMIT_WITHIN_S = 10.0


class ModelDirectory(Observer):
    """One a server. Thread-safe."""

    def __init__(self, files: Files, source: Source, address: str) -> None:
        """Does nothing yet. `address` is where the servers of the tier reach this one."""
        self._files = files
        self._address = address
        self._source = source
        self._lock = threading.Lock()
        self._names: dict[str, tuple[tuple[int, int], float]] = {}
        """Path -> (worker and step, until when) of gradients between the look and the commit."""
        self._specs: dict[str, tuple[int, int, ModelSpec]] = {}
        """Of models of other servers: name -> (version and time of their description, what it says)."""
        self.pusher = Pusher(files, source, self._recover)

    def build_in(self) -> None:
        """Have the server's files ask it. Before they start."""
        self._files.build_in(TOP, NAME, self)

    # -------------------------------------------------------------- come and go

    def appear(self, spec: ModelSpec, again: bool = False) -> None:
        """A model is created: take its name among all servers of the tier, and make its directory.

        Args:
            again: it had lost its memory, and what there is of its directory stays.

        Raises:
            ModelExists: another server has a model of this name. TierError.
        """
        if not again:
            self._take_name(spec.name)
        try:
            self._write_spec(spec, exclusive=not again)
        except PathExists:
            raise ModelExists(f"model {spec.name!r} is being created by somebody else") from None
        self._make_directories(spec.name)

    def disappear(self, name: str, identity: str) -> None:
        """A model is deleted: its description and its gradients go, and its directory unless users have files there.

        Nothing if the directory is another model's by now.

        Raises:
            TierError.
        """
        entry = self._described(name)
        if entry is None or entry.metadata.get("identity") != identity:
            return
        self._remove_directory(gradients_path(name), recursive=True)
        self._remove_directory(f"{home(name)}/{CHECKPOINTS}")
        with suppress(PathNotFound):
            self._files.remove(entry.path, entry.version)
        self._remove_directory(gradients_path(name), recursive=True)  # what came meanwhile
        self._remove_directory(home(name))
        self.pusher.wake()

    def lost(self) -> dict[str, str]:
        """Name -> identity of the models that a server at this address had, and that went with its memory.

        Raises:
            TierError.
        """
        found = {}
        for name in self._homes():
            entry = self._described(name)
            if entry is None or entry.metadata.get("server_id") == self._source.server_id:
                continue
            identity = str(entry.metadata.get("identity"))
            if entry.metadata.get("address") != self._address:
                continue
            spec = self._source.spec(name)
            if spec is not None and spec.identity == identity:
                self._write_spec(spec, exclusive=False)  # it was restored, and the server killed before it said so
            elif not self._source.knows(name, identity):
                found[name] = identity
        return found

    def announce(self, spec: ModelSpec) -> int:
        """A model that is lost is about to come back; how often it has been described so far, this time included.

        Raises:
            TierError.
        """
        return self._write_spec(spec, exclusive=False, server_id="")

    def _recover(self) -> None:
        """After a start: what was being created or deleted when the server before was killed."""
        for spec in self._source.sequenced():
            entry = self._described(spec.name)
            if entry is None or entry.metadata.get("identity") == spec.identity:
                if entry is None:
                    self._write_spec(spec, exclusive=False)
                self._make_directories(spec.name)
                if not self._source.knows(spec.name, spec.identity):
                    self.disappear(spec.name, spec.identity)  # it was deleted at this very moment
            else:
                log.error("%s describes another model than the one of this server", spec_path(spec.name))
        for name in self._homes():
            entry = self._described(name)
            if entry is not None and self._is_stale(name, entry):
                self.disappear(name, str(entry.metadata.get("identity")))

    def _homes(self) -> list[str]:
        """Names of all directories that may be models'."""
        try:
            return [taken_apart(one.path)[0] for one in self._files.list(TOP) if one.kind == "directory"]
        except PathNotFound:
            return []

    def _take_name(self, name: str) -> None:
        entry = self._described(name)
        if entry is not None:
            if not self._is_stale(name, entry):
                raise ModelExists(
                    f"the server {entry.metadata.get('server')} of this tier has a model {name!r} already; choose "
                    f"another name, or delete it there. If that server is gone for good, remove {entry.path}"
                )
            self.disappear(name, str(entry.metadata.get("identity")))
        self._remove_directory(gradients_path(name), recursive=True)

    def _is_stale(self, name: str, entry: Entry) -> bool:
        """Whether a description is this server's, of a model that it does not have any more."""
        mine = entry.metadata.get("server_id") == self._source.server_id
        return mine and not self._source.knows(name, str(entry.metadata.get("identity")))

    def _described(self, name: str) -> Entry | None:
        try:
            return self._files.stat(spec_path(name))
        except (PathNotFound, PathNotDirectory):
            return None

    def _write_spec(self, spec: ModelSpec, exclusive: bool, server_id: str | None = None) -> int:
        text = spec.to_json().encode()
        metadata = {
            "identity": spec.identity,
            "server": spec.shards[0].server,
            "server_id": self._source.server_id if server_id is None else server_id,
            "address": self._address,
        }
        options = CommitOptions(
            exclusive=exclusive, pinned=True, metadata=metadata, write_type=WriteType.MUST_CACHE, origin=(MARK,)
        )
        return self._files.put(spec_path(spec.name), len(text), [text], options).version

    def _make_directories(self, name: str) -> None:
        self._files.make_directory(gradients_path(name))
        self._files.make_directory(f"{home(name)}/{CHECKPOINTS}")

    def _remove_directory(self, path: str, recursive: bool = False) -> None:
        # A mount point is its user's, who has put checkpoints where they outlive the model.
        with suppress(PathNotFound, PathNotDirectory, DirectoryNotEmpty, MountConflict):
            self._files.remove_directory(path, recursive)

    # ------------------------------------------------------------------ writing

    def pre_commit(self, context: Context, file: OpenFile) -> Veto | None:
        model, rest = taken_apart(file.path)
        if rest in (SPEC, MODEL):
            return Veto(f"{file.path} is made by the coprocessor: nobody else can write it")
        folder, _, name = rest.partition("/")
        if folder != GRADIENTS or not name:
            return None
        if "/" in name:
            return Veto(f"{file.path} is not directly in {gradients_path(model)}, where gradients are committed")
        spec = self._spec(model)
        if spec is None:
            return Veto(f"{file.path} cannot be a push: there is no model {model!r} in this tier")
        try:
            gradient = read_gradient(file.data, spec)
            check_finite(gradient, file.data)
        except NotGradient as error:
            return Veto(f"{file.path} is not a gradient of model {model!r}: it {error}")
        return self._take_file_name(file.path, spec, gradient)

    def pre_remove(self, context: Context, path: str) -> Veto | None:
        top, rest = taken_apart(path)
        if rest not in ("", SPEC, MODEL, GRADIENTS):
            return None
        for model in [top] if top else self._homes():
            entry = self._described(model)
            if entry is None or self._is_stale(model, entry):
                continue
            mine = entry.metadata.get("server_id") == self._source.server_id
            # What describes a model of a server that is gone for good is removed by hand.
            if mine or rest != SPEC:
                return Veto(
                    f"{path or '/'} cannot be removed or renamed: there is a model {model!r}. Delete the model, and "
                    "what is the coprocessor's goes with it"
                )
        return None

    def _take_file_name(self, path: str, spec: ModelSpec, gradient: Gradient) -> Veto | None:
        """A gradient must not take the place of another one that is not applied yet: that one would be lost."""
        now_s = time.monotonic()
        mine = (gradient.turn, now_s + _COMMIT_WITHIN_S)
        with self._lock:
            self._names = {one: held for one, held in self._names.items() if held[1] > now_s}
            turn, _ = self._names.setdefault(path, mine)
        state = "being committed by somebody else"
        if turn == gradient.turn:
            try:
                with self._files.open(path) as block:
                    turn, state = read_gradient(block.data, spec).turn, "not applied yet"
            except (PathNotFound, NotGradient):
                return None
            if turn == gradient.turn:
                return None
            with self._lock:
                if self._names.get(path) == mine:
                    del self._names[path]
        return Veto(
            f"{path} is step {turn[1]} of worker {turn[0]} and is {state}, so it cannot become step {gradient.step} "
            f"of worker {gradient.worker}: give each gradient a name of its own, or write it later"
        )

    def post_commit(self, context: Context, batch: Sequence[CommittedFile]) -> None:
        for file in batch:
            if taken_apart(file.path)[1].startswith(GRADIENTS + "/"):
                with self._lock:
                    self._names.pop(file.path, None)
                self.pusher.wake()

    # ------------------------------------------------------------------ reading

    def resolve(self, context: Context, path: str) -> ResolvedFile | None:
        model, rest = taken_apart(path)
        spec = self._spec(model) if rest == MODEL else None
        if spec is None:
            return None

        def read(flat: Flat) -> int:
            return self._source.read(spec, flat, READ_TIMEOUT_S)

        try:
            fd, version = model_file.write(spec.layout, {"model": model}, read)
        except (ModelNotFound, RegionNotFound):
            return None
        except CoprocError as error:
            raise ObserverFailed(f"{path} cannot be read: {error}") from None
        # Its identity tells it from the same version of a later model of its name.
        return ResolvedFile(fd, version, {"version": version, "model": model, "identity": spec.identity})

    def list_virtual(self, context: Context, directory: str) -> Sequence[FileInfo]:
        model, rest = taken_apart(directory)
        spec = self._spec(model) if model and not rest else None
        if spec is None:
            return ()
        size_bytes = model_file.size_bytes(spec.layout, {"model": model})
        return (FileInfo(model_path(model), self._source.version(spec), size_bytes),)

    def _spec(self, model: str) -> ModelSpec | None:
        """Of a model of this server, or of any other that has said so in the catalog."""
        spec = self._source.spec(model)
        if spec is not None or not model:
            return spec
        entry = self._described(model)
        if entry is None or entry.metadata.get("server_id") == self._source.server_id:
            return None
        known = self._specs.get(model)
        if known is None or known[:2] != (entry.version, entry.modified_ns):
            try:
                with self._files.open(entry.path, entry.version) as block:
                    spec = ModelSpec.from_json(bytes(block.data).decode())
            except (CoprocError, ValueError, TierError) as error:
                raise ObserverFailed(f"the description of model {model!r} cannot be read: {error}") from None
            known = self._specs[model] = (entry.version, entry.modified_ns, spec)
        return known[2]
