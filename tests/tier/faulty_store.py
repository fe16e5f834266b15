"""An under-store that fails and waits where a test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from storage_tier.under.store import UnderStore

# What a test waits for at most; none of them gets there.
LONG_S = 30.0
SHORT_S = 0.15
NO_RETRIES = {"config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 2}}


class Faulty(MemoryFileSystem):
    """Not atomic in anything: what is written is seen at once. `fault(verb, path)` may raise, or wait."""

    protocol = "faulty"
    cachable = False
    store: dict[str, object] = {}  # noqa: RUF012 - as fsspec has it
    pseudo_dirs = ["", "/root"]  # noqa: RUF012
    fault: Callable[[str, str], None] = staticmethod(lambda verb, path: None)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("faulty://"))

    def _open(self, path: str, mode: str = "rb", **kwargs: object) -> object:
        self.fault(f"open {mode}", path)
        if mode == "rb":
            return super()._open(path, mode)
        file = FaultyFile(self, path)
        file.commit()
        return file

    def info(self, path: str, **kwargs: object) -> dict[str, object]:
        Faulty.fault("info", path)
        return super().info(path)

    def cp_file(self, path1: str, path2: str, **kwargs: object) -> None:
        Faulty.fault("cp", path2)
        super().cp_file(path1, path2)

    def rm_file(self, path: str) -> None:
        Faulty.fault("rm", path)
        super().rm_file(path)


class FaultyFile(MemoryFile):
    def write(self, content: bytes) -> int:
        super().write(content[: len(content) // 2])
        Faulty.fault("write", self.path)
        return super().write(content[len(content) // 2 :])


fsspec.register_implementation("faulty", Faulty, clobber=True)


@pytest.fixture
def faulty() -> Iterator[UnderStore]:
    Faulty.store.clear()
    Faulty.pseudo_dirs[:] = ["", "/root"]
    store = UnderStore("faulty://root", timeout_s=LONG_S)
    yield store
    Faulty.fault = staticmethod(lambda verb, path: None)
    store.close()


class Gate:
    """Whoever passes tells `reached` and waits for `opened`."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(LONG_S)


def wait_until_idle(store: UnderStore) -> None:
    calls = store._calls
    with calls._changed:
        assert calls._changed.wait_for(lambda: not calls._running, LONG_S)


def visible() -> dict[str, bytes]:
    return {path: file.getvalue() for path, file in Faulty.store.items()}
