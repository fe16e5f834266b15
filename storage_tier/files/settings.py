"""What commits depend on beside their path: mounts and observers, as the catalog has them, without asking it each time.

The catalog counts whenever they may have changed. A commit says up to where it knows them, and the transaction refuses
it when there is more: a mount or an observer that was there before the commit is never missed, whichever server made
it. This server's own changes of the namespace are made one after the other, so that observers are told in their order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from storage_tier.catalog import Attached, Catalog, Mount
from storage_tier.errors import DeadlineExceeded

T = TypeVar("T")


def _held() -> threading.Lock:
    """A lock that is not free: of all ways to wait for another thread it costs the least."""
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(eq=False)
class _Change:
    """A change that waits for the turn."""

    do: Callable[[], Any]
    tell: Callable[[Any], None] | None
    result: Any = None
    error: BaseException | None = None
    leads: bool = False
    """Whether it makes the changes of all that wait."""
    woken: threading.Lock = field(default_factory=_held)
    """Free as soon as it is made, or is to lead."""


class Settings:
    """Mounts and observers of the catalog. Thread-safe."""

    def __init__(self, catalog: Catalog, on_observers: Callable[[list[Attached]], None], timeout_s: float) -> None:
        """`on_observers` is told of all attachments whenever they may have changed, with the turn held."""
        self._catalog = catalog
        self._on_observers = on_observers
        self._timeout_s = timeout_s
        self._turn = threading.RLock()
        self._waiting_lock = threading.Lock()
        self._waiting: list[_Change] = []
        self._led = False
        self._attached: list[Attached] = []
        self.known = -1
        """The catalog's `settings` as of the last look: who made a plan before makes another when it has grown."""
        # Replaced, never changed.
        self._mounts: tuple[Mount, ...] = ()

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """All mount points, as last seen."""
        return self._mounts

    def mount_of(self, path: str) -> Mount | None:
        """The innermost mount point that a path is or lies below."""
        found: Mount | None = None
        for mount in self._mounts:
            inside = path == mount.path or path.startswith(mount.path + "/")
            if inside and (found is None or len(mount.path) > len(found.path)):
                found = mount
        return found

    def below(self, path: str) -> list[Mount]:
        """Mount points that lie below a directory, itself not counted."""
        prefix = "" if path == "/" else path
        return [mount for mount in self._mounts if mount.path.startswith(prefix + "/")]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the one thread of this server that changes the namespace.

        Raises:
            DeadlineExceeded: others took too long.
        """
        if not self._turn.acquire(timeout=self._timeout_s):
            raise DeadlineExceeded(_took_too_long(self._timeout_s))
        try:
            yield
        finally:
            self._turn.release()

    def look(self) -> None:
        """Read mounts and observers if any may have changed, through whichever server. One short query if not."""
        if self._catalog.settings() == self.known:
            return
        with self.turn():
            known = self._catalog.settings()
            if known == self.known:
                return
            mounts, attached = tuple(self._catalog.mounts.list()), self._catalog.observers.list()
            self._mounts = mounts
            if attached != self._attached:
                self._attached = attached
                self._on_observers(attached)
            # Taken before the two were read: what came meanwhile is seen the next time.
            self.known = known

    def change(self, do: Callable[[], T], tell: Callable[[T], None] | None = None) -> T:
        """Change the namespace by `do`, atomically, then `tell` what came of it, in the order of commits.

        Whoever waits for the turn has its change made by the thread that gets it, all of them in one transaction:
        then a commit costs little more than its statements. One that is refused is refused alone.

        Args:
            do: calls the catalog, in whichever thread; it may be called twice, and then the first did not happen.
            tell: must not raise.

        Raises:
            whatever `do` raises; DeadlineExceeded, Unreachable: as the catalog.
        """
        mine = _Change(do, tell)
        with self._waiting_lock:
            self._waiting.append(mine)
            mine.leads = not self._led
            self._led = True
        if not mine.leads and not mine.woken.acquire(timeout=self._timeout_s):
            with self._waiting_lock:
                waits = mine in self._waiting and not mine.leads
                if waits:
                    self._waiting.remove(mine)
            if waits:
                raise DeadlineExceeded(_took_too_long(self._timeout_s))
            # It is being made right now, or is to lead.
            mine.woken.acquire()
        if mine.leads:
            self._lead(mine)
        if mine.error is not None:
            raise mine.error
        return cast(T, mine.result)

    def _lead(self, mine: _Change) -> None:
        """Make all changes that wait, and have the first of those that came meanwhile lead the next ones."""
        together: list[_Change] = []
        try:
            with self.turn():
                with self._waiting_lock:
                    together, self._waiting = self._waiting, []
                self._make(together)
        finally:
            with self._waiting_lock:
                if mine in self._waiting:
                    self._waiting.remove(mine)
                following = self._waiting[0] if self._waiting else None
                self._led = following is not None
                if following is not None:
                    following.leads = True
            for change in [*together, *([] if following is None else [following])]:
                if change is not mine:
                    change.woken.release()

    def _make(self, together: list[_Change]) -> None:
        if len(together) > 1 and not self._make_at_once(together):
            for change in together:
                self._make_alone(change)
        elif len(together) == 1:
            self._make_alone(together[0])
        for change in together:
            if change.error is None and change.tell is not None:
                change.tell(change.result)

    def _make_alone(self, change: _Change) -> None:
        try:
            change.result = change.do()
        except BaseException as error:
            change.error = error

    def _make_at_once(self, together: list[_Change]) -> bool:
        """All in one transaction; False when one was refused, and none was made."""
        refused = False
        try:
            with self._catalog.together(parts=False):
                try:
                    for change in together:
                        change.result = change.do()
                except BaseException:
                    refused = True
                    raise
        except BaseException as error:
            if refused:
                return False
            for change in together:
                change.error = error
        return True


def _took_too_long(timeout_s: float) -> str:
    return f"other changes of the namespace took {timeout_s:g} s: nothing was changed"
