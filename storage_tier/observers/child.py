"""The process of one observer: `python -m storage_tier.observers.child WORK PRE RESOLVE`.

Three sockets, its lanes, and a thread for each: `work` (start, post_commit, stop), `pre` (pre_commit) and
`resolve` (list_virtual too). A lane carries one call at a time. While a hook runs, its thread may ask the server for
something on the same lane: that is the environment.

Nothing outlives the server: standard input is a pipe that the server holds and never writes, and when its end
closes the kernel kills this process, whatever it is doing (the owner of an asynchronous descriptor gets its
signal; no thread of ours has to run, and it is not bound to the thread that started us, as PR_SET_PDEATHSIG is).
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import functools
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NoReturn

from storage_tier import errors
from storage_tier.errors import InvalidRequest, ServerFailed, TierError
from storage_tier.headers import Metadata, clean_metadata
from storage_tier.observers.base import (
    CommittedFile,
    Context,
    FileInfo,
    Listing,
    Observer,
    OpenFile,
    Origin,
    ResolvedFile,
    Veto,
    describe,
    hooks_of,
)
from storage_tier.observers.frames import Ended, Header, close_all, receive, send
from storage_tier.observers.sealed import sealed_copy

Reply = tuple[Header, list[int]]

PAGE_COUNT = 256
MAX_TRACEBACK_CHARACTERS = 16_000
# A server is worth more than an observer when the kernel has to choose.
_OUT_OF_MEMORY_SCORE = 900


class Lane:
    """One socket and the call it carries now."""

    def __init__(self, descriptor: int) -> None:
        self.connection = socket.socket(fileno=descriptor)
        self.call = -1
        self.origin: Origin = ()

    def answer(self, header: Header, descriptors: tuple[int, ...] = ()) -> None:
        send(self.connection, {"call": self.call, **header}, descriptors)

    def ask(self, what: str, arguments: Header, descriptors: tuple[int, ...] = ()) -> Reply:
        """One question to the server.

        Raises:
            TierError: its answer.
        """
        self.answer({"ask": what, **arguments}, descriptors)
        reply, received = receive(self.connection)
        if "error" in reply:
            close_all(received)
            kind = getattr(errors, str(reply["error"]), None)
            if not (isinstance(kind, type) and issubclass(kind, TierError)):
                kind = ServerFailed
            raise kind(reply["sentence"])
        return reply, received


class AskedEnvironment:
    """The environment: every call is a question on the lane of the thread that asks."""

    def __init__(self, directory: str, facts: Mapping[str, Any], name: str) -> None:
        self.directory = directory
        self.facts = facts
        self.log = logging.getLogger(f"storage_tier.observer.{name}")
        self._lane = threading.local()

    def list(self, prefix: str) -> Listing:
        found: Listing = []
        while True:
            after = found[-1].path if found else ""
            page, _ = self._ask("list", {"prefix": prefix, "after_path": after, "limit_count": PAGE_COUNT})
            found += [FileInfo(**info) for info in page["files"]]
            if len(page["files"]) < PAGE_COUNT:
                return found

    def open(self, path: str, version: int | None = None) -> OpenFile:
        reply, (fd,) = self._ask("open", {"path": path, "version": version})
        return OpenFile(FileInfo(**reply["file"]), fd, reply["offset_bytes"])

    def write(self, path: str, data: Any, metadata: Metadata | None = None, if_version: int | None = None) -> FileInfo:
        fd = sealed_copy(data)
        try:
            question = {"path": path, "metadata": clean_metadata(metadata), "if_version": if_version}
            reply, _ = self._ask("write", question, (fd,))
        finally:
            os.close(fd)
        return FileInfo(**reply["file"])

    def copy(self, source: str, target: str) -> FileInfo:
        return FileInfo(**self._ask("copy", {"source": source, "target": target})[0]["file"])

    def delete(self, path: str, if_version: int | None = None) -> None:
        self._ask("delete", {"path": path, "if_version": if_version})

    def serve(self, lane: Lane) -> None:
        """This thread is the one of `lane` from now on."""
        self._lane.value = lane

    def _ask(self, what: str, arguments: Header, descriptors: tuple[int, ...] = ()) -> Reply:
        lane: Lane | None = getattr(self._lane, "value", None)
        if lane is None or lane.call < 0:
            raise InvalidRequest(
                f"an observer asked to {what} outside of its hooks: the environment is for the thread that runs a "
                "hook, while it runs"
            )
        return lane.ask(what, arguments, descriptors)


class ObserverProcess:
    """The observer and its lanes."""

    def __init__(self, work: Lane, pre: Lane, resolve: Lane) -> None:
        self._work = work
        self._others = (pre, resolve)
        self._observer: Observer
        self._env: AskedEnvironment
        self._hooks: dict[str, Callable[[Lane, Header, list[int]], None]] = {
            "pre_commit": self._pre_commit,
            "post_commit": self._post_commit,
            "resolve": self._resolve,
            "list_virtual": self._list_virtual,
            "stop": self._stop,
        }

    def run(self) -> NoReturn:
        """Make and start the observer, then answer calls until the server goes or says stop."""
        lane = self._work
        call, _ = receive(lane.connection)
        lane.call = call["call"]
        try:
            confine(call["memory_bytes"])
            self._observer = load(call["module"], call["attribute"]).from_parameters(call["parameters"])
            self._env = AskedEnvironment(call["directory"], call["facts"], call["name"])
            self._env.serve(lane)
            self._observer.start(self._env)
        except BaseException as error:
            lane.answer({"refused": str(error)} if isinstance(error, InvalidRequest) else failure(error))
            # Not sys.exit: it would wait for threads that the observer has started.
            os._exit(0)
        lane.answer({"hooks": hooks_of(self._observer), "on_failure": self._observer.on_failure})
        for other in self._others:
            threading.Thread(target=self._serve, args=(other,), daemon=True).start()
        self._serve(lane)

    def _serve(self, lane: Lane) -> NoReturn:
        self._env.serve(lane)
        try:
            while True:
                lane.call = -1
                call, descriptors = receive(lane.connection)
                lane.call, lane.origin = call["call"], tuple(call.get("origin", ()))
                try:
                    self._hooks[call["hook"]](lane, call, descriptors)
                except Ended:
                    raise
                except BaseException as error:
                    lane.answer(failure(error))
        except Ended:
            # Nobody listens any more; a thread of the observer's own must not keep this process.
            os._exit(0)

    def _context(self, lane: Lane, call: Header) -> Context:
        return Context(self._env, lane.origin, call.get("redelivered", False))

    def _pre_commit(self, lane: Lane, call: Header, descriptors: list[int]) -> None:
        with OpenFile(FileInfo(**call["file"]), descriptors[0], call["offset_bytes"]) as file:
            verdict = self._observer.pre_commit(self._context(lane, call), file)
        if verdict is not None and not isinstance(verdict, Veto):
            raise TypeError(f"pre_commit answered {verdict!r:.80}: it answers None or a Veto")
        lane.answer({"veto": None if verdict is None else str(verdict.sentence)})

    def _post_commit(self, lane: Lane, call: Header, descriptors: list[int]) -> None:
        batch = [CommittedFile(**{**file, "origin": lane.origin}) for file in call["batch"]]
        self._observer.post_commit(self._context(lane, call), batch)
        lane.answer({})

    def _resolve(self, lane: Lane, call: Header, descriptors: list[int]) -> None:
        found = self._observer.resolve(self._context(lane, call), call["path"])
        if found is None:
            lane.answer({"found": False})
            return
        if not isinstance(found, ResolvedFile):
            raise TypeError(f"resolve answered {found!r:.80}: it answers None or a ResolvedFile")
        fd = found.data if isinstance(found.data, int) else sealed_copy(found.data)
        try:
            header = {"found": True, "version": found.version, "metadata": clean_metadata(found.metadata)}
            lane.answer(header, (fd,))
        finally:
            os.close(fd)

    def _list_virtual(self, lane: Lane, call: Header, descriptors: list[int]) -> None:
        found = self._observer.list_virtual(self._context(lane, call), call["path"])
        lane.answer({"files": [describe(info) for info in found]})

    def _stop(self, lane: Lane, call: Header, descriptors: list[int]) -> NoReturn:
        try:
            self._observer.stop()
        except BaseException as error:
            lane.answer(failure(error))
            raise Ended from error
        lane.answer({})
        raise Ended


def load(module: str, attribute: str) -> type[Observer]:
    """The class behind an entry point.

    Raises:
        ServerFailed: it is no observer. Whatever its import raises.
    """
    found: object = functools.reduce(getattr, attribute.split("."), import_module(module))
    if not (isinstance(found, type) and issubclass(found, Observer)):
        raise ServerFailed(f"the entry point {module}:{attribute} is {found!r:.80}, and no Observer")
    return found


def failure(error: BaseException) -> Header:
    """What `status` shows of an exception."""
    text = "".join(traceback.format_exception(error))
    if len(text) > MAX_TRACEBACK_CHARACTERS:
        half = MAX_TRACEBACK_CHARACTERS // 2
        text = f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"
    return {"failed": f"{type(error).__name__}: {error}"[:1000], "traceback": text}


def die_with_the_server() -> None:
    """Let the kernel kill this process, and what it has started, when the server's end of standard input closes."""
    fcntl.fcntl(0, fcntl.F_SETOWN, -os.getpid())  # the group: it leads one of its own
    fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    poller = select.poll()
    poller.register(0, select.POLLIN)
    if poller.poll(0):  # it closed before there was anybody to kill
        os._exit(0)


def confine(memory_bytes: int) -> None:
    """Bound what this process can take.

    RLIMIT_DATA and not RLIMIT_AS: a map of a committed file is shared memory that is there anyway, and counts
    in the second one only. RLIMIT_FSIZE bounds what is written into memfds and files.
    """
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE):
        resource.setrlimit(kind, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(str(_OUT_OF_MEMORY_SCORE))


def main() -> NoReturn:
    """The process."""
    die_with_the_server()
    # Who is killed for its time gets SIGABRT first, and prints where it hangs.
    faulthandler.enable()
    # What a library prints is for the log.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    work, pre, resolve = (Lane(int(number)) for number in sys.argv[1:])
    ObserverProcess(work, pre, resolve).run()


if __name__ == "__main__":
    main()
