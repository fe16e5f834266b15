"""The observers of one server: attached to directories, called before and after commits, shown by status.

It knows no catalog and no server: these give it their files (`TierFiles`) and their past commits (`Replay`), and
call it at the right moments:

    host.before_commit(PendingFile(info, fd, offset, origin))        # raises Vetoed: publish nothing
    ... the transaction that commits, and gives the file its version and its sequence ...
    host.after_commit(CommittedFile(path, version, size, metadata, sequence, origin))
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Self

from storage_tier.errors import InvalidRequest
from storage_tier.headers import clean_prefix
from storage_tier.observers.attachment import Attachment
from storage_tier.observers.base import CommittedFile, FileInfo, Observer, ObserverNotFound, Origin
from storage_tier.observers.builtin import BuiltIn
from storage_tier.observers.delivery import Replay
from storage_tier.observers.files import OpenedFile, PendingFile, TierFiles, answer
from storage_tier.observers.options import AttachmentState, ObserverOptions
from storage_tier.observers.registry import find

MAX_PARAMETERS_BYTES = 64 << 10
DEFAULT_TIMEOUT_S = 30.0


class ObserverHost:
    """Thread-safe. Where nothing is attached, its calls cost well under a microsecond.

    Every process and descriptor is its own, close-on-exec, and ends with `close`, or with this process however
    that ends.
    """

    def __init__(
        self,
        files: TierFiles,
        replay: Replay | None = None,
        record: Callable[[str, int], None] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            files: the tier, for what observers ask of it.
            replay: past commits. Without it an observer is told of what is committed while it works, as far as
                its queue holds it.
            record: told (attachment id, cursor) after each batch: keep the last one, and give it to `attach` as
                `since` after a restart.
            facts: what observers find in `env.facts`: the server's address, say. Stays on this host.
        """
        self._files = files
        self._replay = replay
        self._record = record or (lambda attachment_id, cursor: None)
        self._facts = dict(facts or {})
        self._changing = threading.Lock()
        self._closed = False
        # Replaced and never changed: who calls an observer takes no lock for it.
        self._attached: tuple[Attachment, ...] = ()
        self._built_in: tuple[BuiltIn, ...] = ()

    # ----------------------------------------------------------------- attach

    def build_in(self, directory: str, name: str, observer: Observer) -> None:
        """Have an observer of this program called, in this process (see `BuiltIn`), before all that are attached.

        It stays as long as this host. Its `name` is what `built_in` shows, and its mark, 'NAME@DIRECTORY', is in the
        origin of files for which it is not to be called.
        """
        with self._changing:
            self._built_in = (*self._built_in, BuiltIn(name, clean_prefix(directory), observer))

    def attach(
        self,
        directory: str,
        name: str,
        parameters: Mapping[str, Any] | None = None,
        options: ObserverOptions | None = None,
        *,
        attachment_id: str | None = None,
        since: int | None = None,
        wait: bool = True,
    ) -> str:
        """Hang an observer on a directory and all below it; returns the attachment's id.

        Blocks until it has started: a tenth of a second and its imports.

        Args:
            directory: '/runs/a'; '/' for the whole tier.
            name: as it is registered where this server runs.
            parameters: a JSON object, for the observer.
            attachment_id: to give it the id that it had before a restart.
            since: deliver what was committed after this sequence too; None begins now.
            wait: False attaches it however that goes, and does not wait; for a server that starts and has to be
                there for others: what fails is seen in `attachments`. Name `options.on_failure` then, as
                `attachments` showed it before: the observer cannot say it before it has started.

        Raises:
            InvalidRequest: unknown name, parameters that the observer or JSON refuses, an id that is taken.
            InvalidPath. ObserverFailed: it failed to start; its traceback is in the message. Nothing is attached.
        """
        given = _json_object(parameters)
        prefix = clean_prefix(directory)
        if wait:
            find(name)
        with self._changing:
            if self._closed:
                raise InvalidRequest("this server ends: nothing can be attached")
            taken_id = attachment_id or uuid.uuid4().hex[:12]
            if any(other.id == taken_id for other in self._attached):
                raise InvalidRequest(f"there is an attachment {taken_id!r:.60} already: detach it first")
            attachment = Attachment(
                taken_id,
                prefix,
                name,
                given,
                options or ObserverOptions(),
                facts=self._facts,
                answer=lambda *question: answer(self._files, *question),
                replay=self._replay,
                record=self._record,
                since=since,
            )
            # Before it starts, so that no commit is between what is replayed and what is told.
            self._attached = (*self._attached, attachment)
            attachment.begin()
        if wait:
            try:
                attachment.await_start()
            except BaseException:
                self.detach(taken_id)
                raise
        return taken_id

    def detach(self, attachment_id: str, timeout_s: float = 10.0) -> None:
        """Take an observer off: it is asked to stop, and killed after `timeout_s`. What is queued is dropped.

        Raises:
            ObserverNotFound.
        """
        with self._changing:
            attachment = self._find(attachment_id)
            self._attached = tuple(other for other in self._attached if other is not attachment)
        attachment.end()
        attachment.join(time.monotonic() + timeout_s)

    def resume(self, attachment_id: str) -> None:
        """Start an observer that has failed anew, now. It goes on after its cursor. Does not wait for it.

        Raises:
            ObserverNotFound.
        """
        self._find(attachment_id).resume()

    def attachments(self) -> list[AttachmentState]:
        """All attachments in the order they were attached."""
        return [attachment.state() for attachment in self._attached]

    def built_in(self) -> list[AttachmentState]:
        """Those of `build_in`."""
        return [one.state() for one in self._built_in]

    # ---------------------------------------------------------------- commits

    @property
    def any(self) -> bool:
        """Whether there is any observer."""
        return bool(self._attached or self._built_in)

    def asks(self, path: str, origin: Origin = ()) -> bool:
        """Whether `before_commit` of a file would ask anybody."""
        every: tuple[BuiltIn | Attachment, ...] = (*self._built_in, *self._attached)
        return any(one.concerns(path, origin, "pre_commit") for one in every)

    def before_remove(self, path: str) -> None:
        """Ask the observers of the server program before something is removed or renamed: path '' is the root.

        Raises:
            Vetoed: one refuses it; its sentence. ObserverFailed: one does not work.
        """
        for one in self._built_in:
            one.pre_remove(path)

    def before_commit(self, file: PendingFile, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Ask the observers of a file's directory and those above, in the order they were attached.

        Blocks at most `timeout_s` and one observer's limit. Without an observer that wants to know it does nothing.

        Raises:
            Vetoed: one refuses it; its sentence. ObserverFailed: one does not work, and is 'closed'.
            DeadlineExceeded: they were busy with other files.
        """
        for one in self._built_in:
            if one.concerns(file.info.path, file.origin, "pre_commit"):
                one.pre_commit(file)
        deadline_s = 0.0
        for attachment in self._attached:
            if attachment.concerns(file.info.path, file.origin, "pre_commit"):
                deadline_s = deadline_s or time.monotonic() + timeout_s
                attachment.pre_commit(file, deadline_s)

    def after_commit(self, file: CommittedFile) -> None:
        """Tell the observers of a file's directory and those above. Never blocks.

        Each is told at least once, as far as `replay` tells what is lost when this process ends. Call it in the
        order of sequences: hold one lock over it and the transaction that gives them, or read them from the catalog.
        """
        every: tuple[BuiltIn | Attachment, ...] = (*self._built_in, *self._attached)
        for one in every:
            if one.concerns(file.path, file.origin, "post_commit"):
                one.told(file)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was told is acknowledged; False when it is not, by the time or by a quarantine."""
        deadline_s = time.monotonic() + timeout_s
        return all(attachment.await_delivery(deadline_s) for attachment in self._attached)

    def resolve(self, path: str, origin: Origin = (), timeout_s: float = DEFAULT_TIMEOUT_S) -> OpenedFile | None:
        """Ask for a virtual file where there is no other; the first observer that knows it gives it.

        The descriptor is a sealed memfd: it may be mapped, and is the caller's to close.

        Raises:
            ObserverFailed: the one that was asked failed. DeadlineExceeded: it was busy.
        """
        deadline_s = time.monotonic() + timeout_s
        for one in self._built_in:
            if one.concerns(path, origin, "resolve") and (found := one.resolve(path, origin)) is not None:
                return found
        for attachment in self._attached:
            if attachment.concerns(path, origin, "resolve"):
                found = attachment.resolve(path, origin, deadline_s)
                if found is not None:
                    return found
        return None

    def list_virtual(self, directory: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[FileInfo]:
        """The virtual files directly in a directory ('/' is the root), as far as they are told, by name.

        One that fails, or is busy for longer than that, costs its names and nothing else.
        """
        deadline_s = time.monotonic() + timeout_s
        found: dict[str, FileInfo] = {}
        inside = clean_prefix(directory)
        for attachment in reversed(self._attached):
            if attachment.concerns(inside, (), "list_virtual"):
                found.update((info.path, info) for info in attachment.list_virtual(directory, (), deadline_s))
        for one in self._built_in:
            if one.concerns(inside, (), "list_virtual"):
                found.update((info.path, info) for info in one.list_virtual(directory, ()))
        return [found[path] for path in sorted(found, key=str.encode)]

    # -------------------------------------------------------------------- end

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop all observers at once; kill those that take longer. Idempotent.

        The batch that is out is waited for within the time; what is queued comes out of the replay the next time:
        `flush` first to have it worked off.
        """
        with self._changing:
            self._closed = True
            attached, self._attached = self._attached, ()
        deadline_s = time.monotonic() + timeout_s
        for attachment in attached:
            attachment.end()
        for attachment in attached:
            attachment.join(deadline_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _find(self, attachment_id: str) -> Attachment:
        for attachment in self._attached:
            if attachment.id == attachment_id:
                return attachment
        raise ObserverNotFound(f"no observer is attached as {attachment_id!r:.60}: `attachments` lists those that are")


def _json_object(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of parameters as an observer will get them.

    Raises:
        InvalidRequest: not a JSON object, or more than 64 KiB.
    """
    if parameters is None:
        return {}
    if not isinstance(parameters, Mapping):
        raise InvalidRequest(f"parameters are an object of names and values, and {parameters!r:.80} was given")
    try:
        text = json.dumps(dict(parameters), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"these parameters cannot be written as JSON: {error}") from None
    if len(text) > MAX_PARAMETERS_BYTES:
        raise InvalidRequest(f"parameters of {len(text):,} bytes: at most {MAX_PARAMETERS_BYTES:,} are kept")
    copied: dict[str, Any] = json.loads(text)
    return copied
