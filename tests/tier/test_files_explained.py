"""What `explain` says of each kind of path: the sentences are what it is for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from storage_tier.errors import UnderUnreachable
from storage_tier.files import Files
from storage_tier.observers import Observer, ObserverOptions
from storage_tier.observers.base import Context, FileInfo, ResolvedFile
from storage_tier.under.store import UnderStore

from . import files_servers
from .files_servers import eventually, put

cluster = files_servers.cluster
files = files_servers.files

# Registered as another package would.
FRAGILE = """
from storage_tier.observers import Observer

class Fragile(Observer):
    @classmethod
    def from_parameters(cls, parameters):
        return cls()

    def resolve(self, context, path):
        if path.endswith("/bad"):
            raise RuntimeError("it cannot do that one")
"""


class Model(Observer):
    """As the coprocessor's: it lists one file and makes another that it does not list."""

    made = 0

    def resolve(self, context: Context, path: str) -> ResolvedFile | None:
        Model.made += 1
        return ResolvedFile(b"12345", 7) if path == "/models/hidden" else None

    def list_virtual(self, context: Context, directory: str) -> Sequence[FileInfo]:
        return [FileInfo("/models/line/model.safetensors", 3, 1_234)] if directory == "/models/line" else []


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    made = tmp_path / "lake"
    (made / "d").mkdir(parents=True)
    (made / "d" / "a").write_bytes(b"12345")
    return made


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("packages")
    (folder / "fragile_example.py").write_text(FRAGILE)
    info = folder / "fragile_example-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile_example\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[storage_tier.observers]\nfragile = fragile_example:Fragile\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        yield
    sys.modules.pop("fragile_example", None)


def told(files: Files, path: str) -> tuple[str, tuple[str, ...]]:
    found = files.explain(path)
    return found.route, found.sentences


def test_where_nothing_is(files: Files, lake: Path) -> None:
    files.build_in("/models", "model", Model())
    put(files, "/f")
    Model.made = 0
    assert told(files, "/none") == ("nowhere", ("There is nothing at /none.",))
    assert told(files, "/modelsx") == ("nowhere", ("There is nothing at /modelsx.",))
    assert told(files, "/f/x") == ("nowhere", ("/f is a file, so /f/x cannot exist.",))
    assert Model.made == 0, "nobody is asked about what cannot be its"
    files.mount("/lake", f"file://{lake}")
    said = f"There is nothing at /lake/none. file://{lake} was asked, and has nothing there either."
    assert told(files, "/lake/none") == ("nowhere", (said,))


def test_directories_have_no_bytes(files: Files, lake: Path) -> None:
    files.make_directory("/d")
    files.mount("/lake", f"file://{lake}")
    own = "it has no bytes of its own, the files in it have."
    assert told(files, "/d") == ("nowhere", (f"/d is a directory: {own}",))
    assert told(files, "/lake") == ("nowhere", (f"/lake is a mount point of file://{lake}: {own}",))
    assert told(files, "/lake/d") == ("nowhere", (f"/lake/d is a directory that only file://{lake} has: {own}",))


def test_what_is_below_a_mount_only(files: Files, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.mount("/lake", f"file://{lake}")
    route, (first, second) = told(files, "/lake/d/a")
    assert route == "under-store"
    assert first == f"Only file://{lake} has it, 5 bytes: it is in no server's memory, and has no version yet."
    assert second.startswith("A read loads it from there")

    def down(store: UnderStore, path: str) -> None:
        raise UnderUnreachable(f"{store.url}: looking at {path} was not answered")

    monkeypatch.setattr(UnderStore, "info", down)
    route, (only,) = told(files, "/lake/d/a")
    assert route == "nowhere"
    assert only.startswith(f"The tier has nothing at /lake/d/a, and whether file://{lake} has something there is not")
    assert "looking at /d/a was not answered" in only


def test_virtual_files(files: Files) -> None:
    files.build_in("/models", "model", Model())
    Model.made = 0
    route, (first, second) = told(files, "/models/line/model.safetensors")
    assert route == "virtual"
    assert first == (
        "It is a virtual file: the observer model of /models makes it when it is opened, now version 3, 1,234 bytes."
    )
    assert second.startswith("Nothing of it is stored.")
    assert Model.made == 0, "what is listed is not made only to tell of it"
    route, (first, _) = told(files, "/models/hidden")
    assert (route, "version 7, 5 bytes" in first) == ("virtual", True)
    route, (first, second) = told(files, "/models/line/other")
    assert (route, first) == ("nowhere", "There is nothing at /models/line/other.")
    assert second == ("No virtual file is there either: the observer model of /models was asked, and does not make it.")


def test_an_observer_that_does_not_work(files: Files) -> None:
    files.make_directory("/d")
    files.attach("/d", "fragile", options=ObserverOptions(restart_delays_s=(1000.0,)))
    route, (first, second) = told(files, "/d/bad")
    assert (route, first) == ("nowhere", "There is nothing at /d/bad.")
    assert second.startswith("Whether the observer fragile of /d makes it when it is opened is not known: ")
    assert "it cannot do that one" in second
    eventually(lambda: files.status().attachments[0]["state"] == "restarting", "it failed")
    said = told(files, "/d/good")[1]
    assert said[-1].startswith("The observer fragile of /d does not work now (restarting): ")
    assert "it cannot do that one" in said[-1]
