"""Observers on the files of this server: kept as the catalog says, asked before a commit, told after it.

Each server runs every attachment for the files that are committed through it. The order of commits is their sequence
in the catalog, which also keeps how far each attachment has come: a restart goes on there, so a commit is told at least
once by the server that made it, and one that is told again has the same sequence.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from storage_tier.catalog import Attached, Catalog, Entry
from storage_tier.errors import InvalidRequest, PathNotDirectory, PathNotFound
from storage_tier.files.base import LocalBlock, Located
from storage_tier.headers import Metadata, clean_prefix, is_below
from storage_tier.observers.base import CommittedFile, FileInfo, Observer, Origin
from storage_tier.observers.files import OpenedFile, PendingFile
from storage_tier.observers.host import ObserverHost
from storage_tier.observers.options import AttachmentState, ObserverOptions
from storage_tier.observers.registry import find

LOG = logging.getLogger(__name__)
PAGE_COUNT = 1000
# An observer starts in a tenth of a second and its imports. Who takes longer is one that does not work, for a while.
START_WAIT_S = 10.0


class FilesForObservers(Protocol):
    """What observers need of the file layer; origins are never empty here."""

    def find_stored(self, path: str, after: str | None = None, count: int = PAGE_COUNT) -> list[Entry]: ...

    def stat(self, path: str) -> Entry: ...

    def ensure_local(self, path: str, version: int | None = None) -> Located: ...

    def write_observed(
        self, path: str, fd: int, size_bytes: int, metadata: Metadata, origin: Origin, if_version: int | None
    ) -> Entry: ...

    def copy_observed(self, source: str, target: str, origin: Origin) -> Entry: ...

    def remove(self, path: str, expected_version: int | None = None) -> None: ...


class Observing:
    """The observers of this server. Thread-safe; where nothing is attached, its calls cost next to nothing."""

    def __init__(self, catalog: Catalog, files: FilesForObservers, facts: Mapping[str, Any]) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._cursors: dict[str, int] = {}
        self._changed: set[str] = set()
        self._attached: dict[str, Attached] = {}
        self._starting = False
        self._host = ObserverHost(_Answers(files), self._replay, self._record, facts)

    # ---------------------------------------------------------------- commits

    def build_in(self, directory: str, name: str, observer: Observer) -> None:
        """As `ObserverHost.build_in`."""
        self._host.build_in(directory, name, observer)

    @property
    def any(self) -> bool:
        """Whether there is any observer."""
        return self._host.any

    def asks(self, path: str, origin: Origin = ()) -> bool:
        """Whether somebody wants to look at a file before it is committed there."""
        return self._host.asks(path, origin)

    def lists(self, path: str) -> bool:
        """Whether an observer may tell of virtual files at or below a path."""
        if not self._host.any:
            return False
        found = [one for one in (*self._host.built_in(), *self._host.attachments()) if "list_virtual" in one.hooks]
        return any(
            is_below(one.directory, clean_prefix(path)) or is_below(path, clean_prefix(one.directory)) for one in found
        )

    def list_virtual(self, directory: str) -> list[FileInfo]:
        """As `ObserverHost.list_virtual`."""
        return self._host.list_virtual(directory) if self._host.any else []

    def start(self) -> None:
        """How far each attachment has come, as the catalog has it. Before the first `sync`."""
        self._cursors = self._catalog.observers.cursors()

    def before_commit(
        self, path: str, size_bytes: int, metadata: Mapping[str, Any], block: LocalBlock | None, origin: Origin
    ) -> None:
        """Ask them; as `ObserverHost.before_commit`."""
        if self._starting:
            self._settle()
        if not self._host.asks(path, origin):
            return
        if block is None:
            fd, offset_bytes = os.memfd_create("empty", os.MFD_CLOEXEC), 0
        else:
            fd, offset_bytes = os.open(block.file, os.O_RDONLY | os.O_CLOEXEC), block.info.offset_bytes
        try:
            info = FileInfo(path, 0, size_bytes, _metadata(metadata))
            self._host.before_commit(PendingFile(info, fd, offset_bytes, origin))
        finally:
            os.close(fd)

    def before_remove(self, path: str) -> None:
        """Ask them; as `ObserverHost.before_remove`."""
        self._host.before_remove(clean_prefix(path))

    def after_commit(self, entry: Entry) -> None:
        """Tell them. With the turn held, so that they are told in the order of commits. Never blocks."""
        if self._host.any:
            self._host.after_commit(_committed(entry))

    def resolve(self, path: str, timeout_s: float) -> OpenedFile | None:
        """As `ObserverHost.resolve`."""
        return self._host.resolve(path, timeout_s=timeout_s) if self._host.any else None

    # ---------------------------------------------------------------- attach

    def attach(
        self,
        directory: str,
        name: str,
        observer: str,
        parameters: Mapping[str, Any] | None,
        options: ObserverOptions | None,
    ) -> Attached:
        """Record it for all servers, and start it here; taken back when it does not start. Not with the turn held.

        Raises:
            as `Files.attach`.
        """
        find(observer)
        given = (
            None if options is None else {name: value for name, value in asdict(options).items() if value is not None}
        )
        attached = self._catalog.observers.attach(directory, name, observer, parameters, given)
        attachment_id = attached.id
        self._attached[attachment_id] = attached
        try:
            self._host.attach(
                directory, observer, parameters, options, attachment_id=attachment_id, since=attached.sequence
            )
        except BaseException:
            del self._attached[attachment_id]
            self._catalog.observers.detach(directory, name)
            self._forget(attachment_id)
            raise
        return attached

    def sync(self, wanted: list[Attached]) -> None:
        """Run exactly these. Does not wait for them to start. With the turn held."""
        now = {attached.id: attached for attached in wanted}
        for attachment_id, old in list(self._attached.items()):
            new = now.get(attachment_id)
            if new is None or new.directory != old.directory:
                del self._attached[attachment_id]
                self._host.detach(attachment_id, timeout_s=1.0)
            if new is None:
                self._forget(attachment_id)
        for attachment_id, attached in now.items():
            if attachment_id not in self._attached:
                try:
                    self._host.attach(
                        attached.directory,
                        attached.observer,
                        attached.parameters,
                        ObserverOptions.from_mapping(attached.options),
                        attachment_id=attachment_id,
                        since=self._cursors.get(attachment_id, attached.sequence),
                        wait=False,
                    )
                except InvalidRequest as error:
                    # This server ends.
                    LOG.error("%s cannot be attached to %s: %s", attached.observer, attached.directory, error)
                    continue
                self._attached[attachment_id] = attached
                self._starting = True

    def _settle(self) -> None:
        """Give observers that were attached through another server the time to start: a guard may be among them."""
        deadline_s = time.monotonic() + START_WAIT_S
        while any(state.state == "starting" for state in self._host.attachments()):
            if time.monotonic() > deadline_s:
                return
            time.sleep(0.005)
        self._starting = False

    def states(self) -> list[tuple[Attached, AttachmentState]]:
        """How each does here."""
        states = {state.id: state for state in self._host.attachments()}
        built_in = [(Attached(one.directory, one.name, one.name, {}, 0, None), one) for one in self._host.built_in()]
        return built_in + [(attached, states[one]) for one, attached in dict(self._attached).items() if one in states]

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was told is acknowledged; whether it is."""
        return self._host.flush(timeout_s)

    def close(self, timeout_s: float) -> None:
        """End them. Idempotent."""
        self._host.close(timeout_s)
        self._attached = {}

    # ---------------------------------------------------------------- cursors

    def _replay(self, directory: str, since: int, limit_count: int) -> list[CommittedFile]:
        found: list[CommittedFile] = []
        while True:
            page = self._catalog.namespace.committed(since, PAGE_COUNT)
            found += [_committed(entry) for entry in page if is_below(entry.path, directory)]
            if len(page) < PAGE_COUNT or len(found) >= limit_count:
                return found[:limit_count]
            since = page[-1].sequence

    def _record(self, attachment_id: str, cursor: int) -> None:
        """Note how far one has come; `record` brings it to the catalog."""
        with self._lock:
            self._cursors[attachment_id] = max(cursor, self._cursors.get(attachment_id, 0))
            self._changed.add(attachment_id)

    def _forget(self, attachment_id: str) -> None:
        with self._lock:
            if self._cursors.pop(attachment_id, None) is not None:
                self._changed.add(attachment_id)

    def record(self) -> None:
        """Keep in the catalog how far each attachment has come: after a kill it goes on there.

        Raises:
            as the catalog.
        """
        with self._lock:
            changed, self._changed = self._changed, set()
            cursors = {one: self._cursors.get(one) for one in changed}
        if not cursors:
            return
        try:
            self._catalog.observers.set_cursors(cursors)
        except BaseException:
            with self._lock:
                self._changed |= changed
            raise


class _Answers:
    """The tier, as the processes of observers may ask for it: `TierFiles`."""

    def __init__(self, files: FilesForObservers) -> None:
        self._files = files

    def list(self, prefix: str, after_path: str, limit_count: int) -> Sequence[FileInfo]:
        top = prefix or "/"
        try:
            entry = self._files.stat(top)
        except (PathNotFound, PathNotDirectory):
            return []
        if entry.kind == "file":
            return [] if after_path >= top and after_path else [_info(entry)]
        # A tree comes directory by directory, which is not the order of paths: '/a/b' is before '/a-b'.
        found: list[FileInfo] = []
        after: str | None = None
        while True:
            page = self._files.find_stored(top, after, PAGE_COUNT)
            found += [_info(one) for one in page if one.kind == "file" and one.path > after_path]
            if len(page) < PAGE_COUNT:
                return sorted(found, key=lambda info: info.path)[:limit_count]
            after = page[-1].path

    def open(self, path: str, version: int | None) -> OpenedFile:
        located = self._files.ensure_local(path, version)
        if located.file is None:
            return OpenedFile(_info(located.entry), os.memfd_create("empty", os.MFD_CLOEXEC))
        try:
            fd = os.open(located.file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise PathNotFound(f"{path} was replaced while it was opened: open it again") from None
        return OpenedFile(_info(located.entry), fd, located.offset_bytes)

    def write(
        self, path: str, fd: int, size_bytes: int, metadata: Metadata, origin: Origin, if_version: int | None
    ) -> FileInfo:
        return _info(self._files.write_observed(path, fd, size_bytes, metadata, origin, if_version))

    def copy(self, source: str, target: str, origin: Origin) -> FileInfo:
        return _info(self._files.copy_observed(source, target, origin))

    def delete(self, path: str, if_version: int | None, origin: Origin) -> None:
        self._files.remove(path, if_version)


def _info(entry: Entry) -> FileInfo:
    return FileInfo(entry.path, entry.version, entry.size_bytes, _metadata(entry.metadata))


def _committed(entry: Entry) -> CommittedFile:
    return CommittedFile(
        entry.path,
        entry.version,
        entry.size_bytes,
        _metadata(entry.metadata),
        sequence=entry.sequence,
        origin=entry.origin,
    )


def _metadata(metadata: Mapping[str, Any]) -> Metadata:
    """Observers know strings and integers."""
    return {
        name: value if isinstance(value, str | int) and not isinstance(value, bool) else json.dumps(value)
        for name, value in metadata.items()
    }
