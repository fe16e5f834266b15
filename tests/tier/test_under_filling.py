"""Directories below a mount that something comes into while they are removed: they stay, and it is said why."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_tier.errors import DirectoryNotEmpty
from storage_tier.files import Files
from storage_tier.under.store import UnderStore

from . import files_servers

cluster = files_servers.cluster
files = files_servers.files


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    made = tmp_path / "lake"
    (made / "d" / "e").mkdir(parents=True)
    return made


def fills(patch: pytest.MonkeyPatch, verb: str, fill: Callable[[], object]) -> None:
    """Have a file come between the look and the removal."""
    act = getattr(UnderStore, verb)

    def filled(store: UnderStore, path: str) -> None:
        fill()
        act(store, path)

    patch.setattr(UnderStore, verb, filled)


def test_an_empty_directory_fills(files: Files, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.mount("/lake", f"file://{lake}")
    fills(monkeypatch, "remove_directory", lambda: (lake / "d" / "e" / "new").write_bytes(b"new"))
    with pytest.raises(DirectoryNotEmpty, match=f"^/lake/d/e is not empty any more: .* in file://{lake}") as caught:
        files.remove_directory("/lake/d/e")
    assert caught.value.errno == errno.ENOTEMPTY
    assert (lake / "d" / "e" / "new").read_bytes() == b"new"


def test_a_tree_fills(files: Files, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.mount("/lake", f"file://{lake}")
    rmdir = Path.rmdir

    def filled(directory: Path) -> None:
        if directory.name == "e":
            (directory / "new").write_bytes(b"new")
        rmdir(directory)

    monkeypatch.setattr(Path, "rmdir", filled)
    with pytest.raises(DirectoryNotEmpty, match=r"^/lake/d is not empty any more"):
        files.remove_directory("/lake/d", recursive=True)
    assert (lake / "d" / "e" / "new").read_bytes() == b"new"


@pytest.mark.parametrize("tells", [True, False])
def test_a_filesystem_that_only_says_that_it_failed(tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    store = UnderStore("memory://filling")
    store.make_directory("/d")
    store.publish("/d/a", b"a")

    def rmdir(fs: MemoryFileSystem, path: str) -> None:
        raise OSError(errno.ENOTEMPTY, "it is not empty") if tells else OSError("Failure")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "rmdir", rmdir)
        with pytest.raises(DirectoryNotEmpty, match=r"^/d cannot be removed"):
            store.remove_directory("/d")
    store.remove_tree("/d")
    store.close()
