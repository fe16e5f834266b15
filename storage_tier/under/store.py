"""An under-store: a root in another filesystem, given by an fsspec URL, behind deadlines and typed errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from storage_tier.errors import InvalidRequest, TierError, UnderFailed
from storage_tier.under.base import (
    TEMPORARY_NAME,
    Backend,
    Infos,
    Sink,
    Source,
    Traits,
    UnderInfo,
    clean_relative,
    new_temporary_name,
    opened,
)
from storage_tier.under.calls import Call, Calls
from storage_tier.under.failures import translate
from storage_tier.under.opening import open_backend, protocol_of
from storage_tier.under.redact import Redactor, safe_url

T = TypeVar("T")

# A request of an object store takes 0.1 s, a busy one some seconds; its own library tries several times.
TIMEOUT_S = 60.0
# Two transfers fill a network; the others are for looks at names while those run, and for some that hang.
CALL_COUNT = 8
# No upload takes a day; until then one that is not complete may be another server's that lives.
CLEAN_AFTER_S = 86_400.0


@dataclass(frozen=True)
class UnderStatus:
    """What an under-store is doing at one moment."""

    url: str
    """Without user, password and query."""
    traits: Traits | None
    """None until it was first used."""
    running_count: int
    """Calls at work, those given up included."""
    abandoned_count: int
    """Calls that were given up and whose threads still hang."""
    left_out_count: int
    """Names in the last listing that no path of the tier can be; they are not shown."""
    last_error: str
    """The sentence of the last call that failed; '' when the last one did not."""


class UnderStore:
    """What lies below a mount. Thread-safe. Paths are relative to its root: '/a/b'; '' is the root.

    Every call blocks, at most `timeout_s` without progress; a call that hangs is given up, and while it still
    hangs nothing else can change the same path: what it does late undoes nothing. Only whole objects are
    published. No password is in any sentence of it.
    """

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        call_count: int = CALL_COUNT,
    ) -> None:
        """Opens nothing yet: `check` does, or the first call.

        Args:
            url: 'file:///data', 's3://bucket/prefix', 'memory://x', or any other that fsspec knows.
            options: as fsspec takes them, such as endpoint_url, key and secret; taken for secrets.
            timeout_s: the default for each call: the longest time without progress.
            call_count: how many calls may run at a time.

        Raises:
            InvalidRequest: not a URL, or one that cannot be a root.
        """
        self._options = dict(options or {})
        self._redactor = Redactor(url, self._options)
        self.url = safe_url(url)
        self.timeout_s = timeout_s
        self.protocol = protocol_of(url, self.url)
        self._url = url
        self._calls = Calls(call_count)
        self._opening = threading.Lock()
        self._backend: Backend | None = None
        self._closed = False
        self._left_out_count = 0
        self._last_error = ""

    def __repr__(self) -> str:
        return f"UnderStore({self.url!r}, options={sorted(self._options)})"

    @property
    def traits(self) -> Traits:
        """What this filesystem can promise. Opens it, as a rule without a request.

        Raises:
            InvalidRequest, Unsupported: as `check`.
        """
        return self._run("opening it", lambda backend, call: backend.traits, None)

    def check(self, *, writable: bool = False, timeout_s: float | None = None) -> None:
        """A real look, at mount time: it answers, the root is there, the credentials are good.

        Args:
            writable: publish a small object in the root's .tier-tmp too, and remove it.

        Raises:
            InvalidRequest: an unknown protocol, or options it does not take. Unsupported: a package is missing.
            UnderNotFound, UnderRefused, UnderUnreachable, UnderFull, UnderFailed.
        """

        def work(backend: Backend, call: Call) -> None:
            backend.check()
            if writable:
                call.moved()
                probe = f"/{TEMPORARY_NAME}/{new_temporary_name()}"
                with opened(b"a mount was tried") as source:
                    backend.publish(probe, source, call)
                backend.remove(probe)

        self._run("opening it", work, timeout_s, ("",))

    def info(self, path: str, *, timeout_s: float | None = None) -> UnderInfo:
        """What is at a path, now.

        Raises:
            InvalidPath; UnderNotFound, UnderRefused, UnderUnreachable, UnderFailed.
        """
        path = clean_relative(path)
        return self._run(f"looking at {path or '/'}", lambda backend, call: backend.info(path), timeout_s)

    def list(self, path: str = "", *, timeout_s: float | None = None) -> list[UnderInfo]:
        """What lies directly below a directory, now, by name. The tier's half-written objects are not shown.

        Raises:
            InvalidPath; UnderNotFound, UnderRefused, UnderUnreachable; UnderFailed: it is a file.
        """
        path = clean_relative(path)
        found, self._left_out_count = self._run(
            f"listing {path or '/'}", lambda backend, call: backend.list(path), timeout_s
        )
        return sorted(found, key=lambda info: info.path)

    def find(self, path: str = "", *, limit: int = 1000, timeout_s: float | None = None) -> Infos | None:
        """All that lies below a directory, however deep, now, in the order of its names; [] where nothing is.

        None: it is more than `limit`, or this filesystem cannot tell it in one request: then `list` one directory after
        the other.

        Raises:
            InvalidPath; UnderRefused, UnderUnreachable, UnderFailed.
        """
        path = clean_relative(path)
        found = self._run(f"finding in {path or '/'}", lambda backend, call: backend.find(path, limit), timeout_s)
        return None if found is None else sorted(found, key=lambda info: info.path.encode().split(b"/"))

    def read_into(
        self,
        path: str,
        target: memoryview | int,
        *,
        offset_bytes: int = 0,
        start: int = 0,
        stop: int | None = None,
        stamp: str | None = None,
        timeout_s: float | None = None,
    ) -> UnderInfo:
        """Read an object, or bytes `start` to `stop` of it, into memory or a file. Returns what was read.

        A local file goes to a descriptor inside the kernel; else one copy, in steps of 8 MiB. What was read is
        one state of the object. After an error the target's content is undefined; after UnderUnreachable no
        byte is written to memory any more, but a file must be dropped: the thread that hangs has it open too.

        Args:
            target: memory large enough, or a descriptor of a regular file; its position is undefined afterwards.
            offset_bytes: where in the target the bytes go.
            stamp: what `info` said; another object is not read.

        Raises:
            UnderChanged: it is not the object of `stamp`, or changed meanwhile. InvalidPath; InvalidRequest: a
            target that is too small or can't be written; UnderNotFound, UnderRefused, UnderUnreachable, UnderFailed.
        """
        path = clean_relative(path)
        if min(start, offset_bytes) < 0 or (stop is not None and stop < start):
            raise InvalidRequest(f"{path}: no bytes are from {start:,} to {stop}, put at {offset_bytes:,}")
        sink = Sink(target, offset_bytes)

        def work(backend: Backend, call: Call) -> UnderInfo:
            try:
                return backend.read(path, start, stop, stamp, sink, call)
            finally:
                sink.close()

        return self._run(f"reading {path}", work, timeout_s)

    def read_range(
        self, path: str, start: int, stop: int, *, stamp: str | None = None, timeout_s: float | None = None
    ) -> bytes:
        """Bytes `start` to `stop` of an object, fewer where it ends before. For looks into headers.

        Raises:
            as `read_into`.
        """
        content = bytearray(max(stop - start, 0))
        info = self.read_into(path, memoryview(content), start=start, stop=stop, stamp=stamp, timeout_s=timeout_s)
        return bytes(content[: max(info.size_bytes - start, 0)])

    def publish(self, path: str, source: Source, *, timeout_s: float | None = None) -> UnderInfo:
        """Make `source` the object at a path, in place of what is there. Directories above are made. Idempotent.

        Whole or not at all, as far as `traits` says. When this returns, the object is there; after UnderUnreachable
        it may be or not. Metadata is not passed on: no two stores keep it alike, and the catalog has it.

        Returns:
            what is there now; its stamp tells whether somebody else changes it later.

        Raises:
            InvalidPath; InvalidRequest: not contiguous; UnderFull, UnderRefused, UnderUnreachable; UnderChanged:
            somebody else wrote there at the same time; UnderFailed, also when the source is shorter than it says.
        """
        path = _an_object(path)

        def work(backend: Backend, call: Call) -> UnderInfo:
            with opened(source) as reader:
                return backend.publish(path, reader, call)

        return self._run(f"publishing {path}", work, timeout_s, (path,))

    def remove(self, path: str, *, timeout_s: float | None = None) -> None:
        """Afterwards there is no object at this path; it is no error if there was none before."""
        path = _an_object(path)
        self._run(f"removing {path}", lambda backend, call: backend.remove(path), timeout_s, (path,))

    def rename(self, source: str, target: str, *, timeout_s: float | None = None) -> None:
        """Give an object or directory another path, in place of an object there. One act only if `traits` says so.

        Raises:
            UnderNotFound: there is no `source`. InvalidRequest: `target` lies in `source`. DirectoryNotEmpty: `target`
            is a directory with something in it. Others as `publish`.
        """
        source, target = _an_object(source), _an_object(target)
        if target.startswith(source + "/"):
            raise InvalidRequest(f"{source} cannot become {target}, which lies in it")
        if source == target:
            self.info(source, timeout_s=timeout_s)
            return
        self._run(
            f"renaming {source} to {target}",
            lambda backend, call: backend.rename(source, target, call),
            timeout_s,
            (source, target),
        )

    def make_directory(self, path: str, *, timeout_s: float | None = None) -> None:
        """Make a directory and those above it; where there are none (`traits`), nothing. Idempotent."""
        path = _an_object(path)
        self._run(f"making {path}", lambda backend, call: backend.make_directory(path), timeout_s, (path,))

    def remove_directory(self, path: str, *, timeout_s: float | None = None) -> None:
        """Afterwards there is no directory at this path.

        Raises:
            DirectoryNotEmpty: something is in it. InvalidPath; UnderRefused, UnderUnreachable, UnderFailed.
        """
        path = _an_object(path)
        self._run(f"removing {path}", lambda backend, call: backend.remove_directory(path), timeout_s, (path,))

    def remove_tree(self, path: str, *, timeout_s: float | None = None) -> None:
        """Afterwards there is nothing at and below this directory. Not atomic. Links are removed, not followed.

        Raises:
            DirectoryNotEmpty: something came while it was removed. InvalidPath; UnderRefused, UnderUnreachable,
            UnderFailed.
        """
        path = _an_object(path)
        self._run(f"removing {path}", lambda backend, call: backend.remove_tree(path, call), timeout_s, (path,))

    def clean(self, *, older_than_s: float = CLEAN_AFTER_S, timeout_s: float | None = None) -> int:
        """Remove half-written objects of writers that died; returns how many. Call it when a server starts.

        A local file tells by its lock whether its writer lives; elsewhere `older_than_s` must have passed.
        """
        return self._run("cleaning up", lambda backend, call: backend.clean(older_than_s), timeout_s)

    def status(self) -> UnderStatus:
        """Never blocks."""
        backend = self._backend
        return UnderStatus(
            url=self.url,
            traits=None if backend is None else backend.traits,
            running_count=self._calls.running_count,
            abandoned_count=self._calls.abandoned_count,
            left_out_count=self._left_out_count,
            last_error=self._last_error,
        )

    def close(self) -> None:
        """Let connections go. Idempotent. Calls that hang are left to themselves."""
        self._closed = True
        backend, self._backend = self._backend, None
        if backend is not None:
            self._calls.run(f"{self.url}: closing", lambda call: backend.close(), self.timeout_s)

    # ---------------------------------------------------------------- inside

    def _run(
        self,
        doing: str,
        work: Callable[[Backend, Call], T],
        timeout_s: float | None,
        keys: tuple[str, ...] = (),
    ) -> T:
        what = f"{self.url}: {doing}"

        def translated(call: Call) -> T:
            try:
                return work(self._open(), call)
            except Exception as error:
                failure = translate(error, what, self._redactor)
            # Outside of `except`: the original may carry secrets, and loggers show what an error came from.
            failure.__cause__ = failure.__context__ = None
            raise failure

        limit_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            result = self._calls.run(what, translated, limit_s, frozenset(keys))
        except TierError as error:
            self._last_error = str(error)
            raise
        self._last_error = ""
        return result

    def _open(self) -> Backend:
        """Runs in a call's thread: some libraries connect when they are made."""
        backend = self._backend
        if backend is None:
            with self._opening:
                self._refuse_closed()
                backend = self._backend or open_backend(self._url, self._options, self.protocol, self._redactor)
                try:
                    self._refuse_closed()  # closed while it was opened
                except UnderFailed:
                    backend.close()
                    raise
                self._backend = backend
        return backend

    def _refuse_closed(self) -> None:
        if self._closed:
            raise UnderFailed("the mount was closed")


def _an_object(path: str) -> str:
    path = clean_relative(path)
    if not path:
        raise InvalidRequest("the root of a mount can be listed, but not written, renamed or removed")
    return path
