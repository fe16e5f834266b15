"""One observer on one directory: its process, its restarts, and the delivery of commits to it.

A thread of its own, the keeper, starts the process, gives it its batches, and sees it end. A failure of any
kind ends the process; then

- the files that wait for it go on at once, by `on_failure`,
- it is started again after 1, 4 and 16 s,
- after the last of them it is *quarantined* until somebody says `resume`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from traceback import format_exception
from typing import Any

from storage_tier.errors import DeadlineExceeded, InvalidRequest, TierError
from storage_tier.headers import is_below
from storage_tier.observers.answers import clean_text
from storage_tier.observers.base import (
    CommittedFile,
    FileInfo,
    ObserverFailed,
    OnFailure,
    Origin,
    Vetoed,
)
from storage_tier.observers.calls import STOP_LIMIT_S, Calls
from storage_tier.observers.delivery import Delivery, Replay
from storage_tier.observers.files import OpenedFile, PendingFile
from storage_tier.observers.frames import Header
from storage_tier.observers.options import AttachmentState, ObserverOptions, State
from storage_tier.observers.process import Answer, Broken, ChildProcess
from storage_tier.observers.restarts import Restarts

LOG = logging.getLogger(__name__)

REPLAY_PAUSE_S = 1.0


class Attachment:
    """Thread-safe. `begin` starts the keeper; `end` is final."""

    def __init__(
        self,
        attachment_id: str,
        directory: str,
        name: str,
        parameters: Mapping[str, Any],
        options: ObserverOptions,
        *,
        facts: Mapping[str, Any],
        answer: Answer,
        replay: Replay | None,
        record: Callable[[str, int], None],
        since: int | None,
    ) -> None:
        """Does nothing yet. `directory` is a clean prefix: '' for the whole tier."""
        self.id = attachment_id
        self.directory = directory
        self.mark = f"{name}@{directory or '/'}"
        """In the origin of all that it writes. The same after it is attached anew, so that what it wrote before
        does not trigger it when it is replayed."""
        self._title = f"{name} of {directory or '/'}"
        self._name = name
        self._parameters = parameters
        self._options = options
        self._facts = facts
        self._answer = answer
        self._changed = threading.Condition()
        self._delivery = Delivery(
            self._title,
            directory,
            options.queue_count,
            options.batch_count,
            lambda file: self.mark not in file.origin,
            replay,
            lambda cursor: record(attachment_id, cursor),
            since,
        )
        self._process: ChildProcess | None = None
        """The last one."""
        self._child: ChildProcess | None = None
        """The one that works; None when there is none."""
        self._state: State = "starting"
        self._hooks: tuple[str, ...] = ()
        self._on_failure: OnFailure = options.on_failure or "open"
        self._failure = ("", "")
        self._refused: TierError | None = None
        self._restarts = Restarts(options.restart_delays_s)
        self._delay_s: float | None = None  # until the next start; None when nobody starts it
        self._counts = dict.fromkeys(("checked", "vetoed", "delivered", "resolved", "failure"), 0)
        self._ending = False
        self._resumed = False
        self._redeliver = since is not None
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._keeper = threading.Thread(target=self._keep, name=f"observer {self.mark}", daemon=True)

    def begin(self) -> None:
        """Start the keeper, which starts the process. Does not block."""
        self._keeper.start()

    def await_start(self) -> None:
        """Wait until the observer runs; its limits end this.

        Raises:
            InvalidRequest: it refused its parameters or its directory. ObserverFailed: it failed to start.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._state != "starting")
            if self._state != "running":
                raise self._refused or ObserverFailed("\n".join(self._failure).strip())

    def concerns(self, path: str, origin: Origin, hook: str) -> bool:
        """Whether a hook has to see a file. Before the first start every hook may be there."""
        return (
            (hook in self._hooks or (not self._hooks and self._state != "running"))
            and self.mark not in origin
            and is_below(path, self.directory)
        )

    # ------------------------------------------------------------------ calls

    def pre_commit(self, file: PendingFile, deadline_s: float) -> None:
        """Ask about a file before it is committed.

        Raises:
            Vetoed: it is refused. ObserverFailed: the observer failed, and is 'closed'.
            DeadlineExceeded: others kept it busy until `deadline_s`.
        """
        child = self._working(deadline_s if self._on_failure == "closed" else 0.0)
        if child is None:
            return self._without("pre_commit", file.info.path)
        try:
            sentence = self._calls(child).pre_commit(file, deadline_s)
        except Broken:
            return self._without("pre_commit", file.info.path, child)
        self._count("checked")
        if sentence is not None:
            self._count("vetoed")
            raise Vetoed(sentence or f"{self._title} refuses {file.info.path} and does not say why")
        return None

    def resolve(self, path: str, origin: Origin, deadline_s: float) -> OpenedFile | None:
        """Ask for a virtual file; the descriptor is the caller's. None when it is not this observer's.

        Raises:
            ObserverFailed: it failed just now, or it is quarantined and 'closed'. DeadlineExceeded.
        """
        child = self._working(deadline_s)
        if child is None:
            self._without("resolve", path)
            return None
        try:
            file = self._calls(child).resolve(path, origin, deadline_s)
        except Broken:
            raise ObserverFailed(f"{path} cannot be made: {child.cause[0]}") from None
        if file is not None:
            self._count("resolved")
        return file

    def list_virtual(self, directory: str, origin: Origin, deadline_s: float) -> list[FileInfo]:
        """Ask for the virtual files in a directory. A listing does not fail or wait for one that does not work."""
        child = self._working(0.0)
        if child is None:
            return []
        try:
            return self._calls(child).list_virtual(directory, origin, deadline_s)
        except (Broken, DeadlineExceeded):
            return []

    def _calls(self, child: ChildProcess) -> Calls:
        return Calls(child, self._title, self._options)

    def _working(self, deadline_s: float) -> ChildProcess | None:
        """The process, when the observer works; one that is about to is waited for until `deadline_s`."""
        child = self._child
        if child is not None and not child.failed:
            return child
        with self._changed:
            left_s = max(0.0, deadline_s - time.monotonic())
            self._changed.wait_for(lambda: self._down or (self._child is not None and not self._child.failed), left_s)
            return self._child

    @property
    def _down(self) -> bool:
        """Whether it does not work, and nobody starts it now."""
        return self._state in ("restarting", "quarantined", "detached") and not self._resumed

    def _without(self, hook: str, path: str, child: ChildProcess | None = None) -> None:
        """What becomes of a call that the observer does not answer.

        Raises:
            ObserverFailed: 'closed'.
        """
        if self._on_failure == "open" or self._ending:
            return
        with self._changed:
            cause = self._failure[0] or "it is being started"
        raise ObserverFailed(
            f"{hook} of {path} is refused, because {self._title} does not work and nothing passes without it "
            f"(on_failure is 'closed'): {child.cause[0] if child else cause}. Resume or detach it"
        )

    # ---------------------------------------------------------------- commits

    def told(self, file: CommittedFile) -> None:
        """A file was committed. Does not block."""
        if self._delivery.told(file, self._state in ("starting", "running")):
            self._wake()

    def await_delivery(self, deadline_s: float) -> bool:
        """Wait until all is acknowledged; whether it is. Not for one that is quarantined."""
        return self._delivery.await_done(deadline_s, lambda: self._down and self._state != "restarting")

    def _post_commit(self, child: ChildProcess, batch: Sequence[CommittedFile]) -> None:
        self._calls(child).post_commit(batch, self._redeliver)
        self._redeliver = False
        self._count("delivered", len(batch))

    # ----------------------------------------------------------------- keeper

    def _keep(self) -> None:
        while not self._ending:
            child = None
            try:
                child = self._started()
                self._serve(child)
            except Broken:
                pass
            except InvalidRequest as error:
                self._note_failure(str(error), "", refused=error)
            except Exception as error:
                sentence, traceback = f"{self._title} cannot be run: {error}", "".join(format_exception(error))
                if child is None:
                    self._note_failure(sentence, traceback)
                else:
                    child.fail(sentence, traceback)
            finally:
                if child is not None:
                    with self._changed:
                        self._child = None
                    if not self._ending:
                        self._note_failure(*child.cause)
                    child.close()
            self._pause()
        with self._changed:
            self._state = "detached"
            fd, self._wake_fd = self._wake_fd, -1
            os.close(fd)
            self._changed.notify_all()

    def _started(self) -> ChildProcess:
        """Start the process and the observer in it.

        Raises:
            Broken: it failed, which is noted. InvalidRequest: it refused. OSError: there is no process.
        """
        child = ChildProcess(self._title, self._answer_own)
        self._process = child
        try:
            hooks, on_failure = self._calls(child).start(self._name, self._parameters, self.directory, self._facts)
        except Broken:
            cause = child.cause
            child.close()
            self._note_failure(*cause)
            raise
        except BaseException:
            child.close()
            raise
        with self._changed:
            self._hooks = hooks
            self._on_failure = self._options.on_failure or on_failure
            self._child = child
            self._state = "running"
            self._changed.notify_all()
        return child

    def _serve(self, child: ChildProcess) -> None:
        """Deliver and listen until it fails (`Broken`) or is to end."""
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        poller.register(child.ended_fd, select.POLLIN)
        if "post_commit" not in self._hooks:
            self._delivery.forget()
        while True:
            if "post_commit" in self._hooks:
                self._delivery.deliver(lambda batch: self._post_commit(child, batch), lambda: self._ending)
            if self._ending:
                return self._stop(child)
            output_fd = child.output_fd
            if output_fd is not None:
                poller.register(output_fd, select.POLLIN)
            ready = [fd for fd, _ in poller.poll(REPLAY_PAUSE_S * 1000 if self._delivery.behind else None)]
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            if child.ended_fd in ready:
                child.note_end()
                raise Broken
            if output_fd is not None:
                child.drain()
                poller.unregister(output_fd)

    def _stop(self, child: ChildProcess) -> None:
        with contextlib.suppress(Broken):
            self._calls(child).stop()

    def _note_failure(self, sentence: str, traceback: str, refused: TierError | None = None) -> None:
        self._delivery.interrupted()
        with self._changed:
            self._failure = (clean_text(sentence), clean_text(traceback))
            self._refused = refused
            self._counts["failure"] += 1
            self._redeliver = True
            # One that refuses what it was given will do so the next time too.
            self._delay_s = self._restarts.failed(time.monotonic()) if refused is None else None
            self._state = "quarantined" if self._delay_s is None else "restarting"
            self._changed.notify_all()
            state, delay_s = self._state, self._delay_s
        # The state and what follows from it, in the words of `status`.
        next_act = "until it is resumed" if delay_s is None else f"it is started again in {delay_s:g} s"
        LOG.warning("%s; %s: %s", sentence, state, next_act)

    def _pause(self) -> None:
        """Wait until it is to start again, or to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ending or self._resumed, self._delay_s)
            self._resumed = False
            self._state = "starting"

    def _answer_own(
        self, question: Header, descriptors: Sequence[int], origin: Origin, read_only: bool
    ) -> tuple[Header, list[int]]:
        return self._answer(question, descriptors, (*origin, self.mark), read_only)

    # -------------------------------------------------------------- from outside

    def resume(self) -> None:
        """Start a failed one now, with all its restarts. Does nothing while it works or starts."""
        with self._changed:
            # It may have failed so lately that its keeper does not know yet.
            if self._state != "starting" and (self._child is None or self._child.failed):
                self._resumed = True
                self._restarts.forgive()
                self._changed.notify_all()

    def end(self) -> None:
        """Ask it to stop. Does not block; what is queued is left."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            self._wake()

    def join(self, deadline_s: float) -> None:
        """After `end`: wait for the keeper, and kill the process when the time is up."""
        self._keeper.join(max(0.0, deadline_s - time.monotonic()))
        if self._keeper.is_alive() and self._process is not None:
            self._process.fail(f"{self._title} did not stop in time")
            self._keeper.join(STOP_LIMIT_S)

    def state(self) -> AttachmentState:
        """As of now."""
        child = self._child
        with self._changed:
            return AttachmentState(
                id=self.id,
                directory=self.directory or "/",
                name=self._name,
                parameters=self._parameters,
                state=self._state,
                hooks=self._hooks,
                on_failure=self._on_failure,
                pid=child.pid if child is not None else None,
                queued_count=self._delivery.queued_count,
                behind=self._delivery.behind,
                cursor=self._delivery.cursor,
                checked_count=self._counts["checked"],
                vetoed_count=self._counts["vetoed"],
                delivered_count=self._counts["delivered"],
                resolved_count=self._counts["resolved"],
                missed_count=self._delivery.missed_count,
                failure_count=self._counts["failure"],
                failure=self._failure[0],
                traceback=self._failure[1],
                output=clean_text(child.output) if child is not None else "",
            )

    def _count(self, what: str, number: int = 1) -> None:
        with self._changed:
            self._counts[what] += number

    def _wake(self) -> None:
        with self._changed:  # which is held too when it is closed, for its number may be another's then
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)
