"""Observers on files: vetoes, batches over a restart, virtual files, and what they write themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_tier.errors import InvalidRequest, PathExists, PathNotFound
from storage_tier.files import Files
from storage_tier.observers import ObserverFailed, Vetoed

from . import files_servers
from .files_servers import LONG_S, Cluster, block_files, eventually, put, read

cluster = files_servers.cluster
files = files_servers.files

# Registered as another package would.
EXAMPLES = """
from storage_tier.errors import InvalidRequest
from storage_tier.observers import Observer, ResolvedFile, Veto
from storage_tier.observers.base import FileInfo

class Base(Observer):
    @classmethod
    def from_parameters(cls, parameters):
        if parameters:
            raise InvalidRequest("it takes no parameters")
        return cls()

class Guard(Base):
    def pre_commit(self, context, file):
        found = bytes(file.data[:4])
        return None if found == b"good" else Veto(f"{file.path} must begin with 'good', and it begins with {found!r}")

class Journal(Base):
    def post_commit(self, context, batch):
        for file in batch:
            name = file.path.strip("/").replace("/", "-")
            with context.env.open(file.path) as found:
                context.env.write(f"{context.env.directory}/journal/{name}", bytes(found.data), {"of": file.version})

class Shout(Base):
    def resolve(self, context, path):
        if not path.endswith(".upper"):
            return None
        with context.env.open(path.removesuffix(".upper")) as file:
            return ResolvedFile(bytes(file.data).upper(), file.info.version, {"made": 1})

    def list_virtual(self, context, directory):
        found = context.env.list(directory)
        return [FileInfo(f"{file.path}.upper", file.version, file.size_bytes, {"of": file.path}) for file in found]

class Record(Observer):
    def __init__(self, file):
        self.file = file

    @classmethod
    def from_parameters(cls, parameters):
        return cls(parameters["file"])

    def post_commit(self, context, batch):
        with open(self.file, "a") as file:
            for one in batch:
                file.write(f"{one.path} {one.version} {one.sequence} {context.redelivered}\\n")

class Broken(Base):
    def start(self, env):
        raise RuntimeError("it does not start")
"""
ENTRY_POINTS = """
[storage_tier.observers]
guard = file_examples:Guard
journal = file_examples:Journal
shout = file_examples:Shout
broken = file_examples:Broken
record = file_examples:Record
"""


@pytest.fixture(scope="module", autouse=True)
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("packages")
    (folder / "file_examples.py").write_text(EXAMPLES)
    info = folder / "file_examples-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: file_examples\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        yield
    sys.modules.pop("file_examples", None)


def test_a_guard_refuses_with_its_sentence_and_nothing_is_left(files: Files) -> None:
    files.make_directory("/guarded")
    attached = files.attach("/guarded", "guard")
    assert (attached.name, attached.observer) == ("guard", "guard")
    with pytest.raises(Vetoed, match="must begin with 'good'"):
        put(files, "/guarded/a", b"bad")
    assert block_files(files) == []
    assert not files.exists("/guarded/a")
    put(files, "/guarded/a", b"good one")
    put(files, "/outside", b"bad")
    for move in (files.rename, files.copy):
        with pytest.raises(Vetoed):
            move("/outside", "/guarded/b")
    put(files, "/fine", b"good too")
    files.rename("/fine", "/guarded/b")
    assert read(files, "/guarded/b") == b"good too"
    files.detach("/guarded", "guard")
    put(files, "/guarded/a", b"bad")
    assert len(files.attachments()) == 0


def test_attaching_is_refused_with_sentences(files: Files) -> None:
    files.make_directory("/d")
    with pytest.raises(InvalidRequest, match="there is no observer 'nobody'"):
        files.attach("/d", "nobody")
    with pytest.raises(InvalidRequest, match="no parameters"):
        files.attach("/d", "guard", {"x": 1})
    with pytest.raises(ObserverFailed, match="it does not start"):
        files.attach("/d", "broken")
    with pytest.raises(PathNotFound):
        files.attach("/none", "guard")
    assert files.attachments() == []
    files.attach("/d", "guard", name="first")
    with pytest.raises(PathExists):
        files.attach("/d", "guard", name="first")
    files.attach("/d", "guard", name="second")
    with pytest.raises(PathNotFound):
        files.detach("/d", "third")
    assert [one["called"] for one in files.status().attachments] == ["first", "second"]


def test_a_journal_is_told_of_each_commit_once_and_of_its_own_never(files: Files) -> None:
    put(files, "/d/before")
    files.attach("/d", "journal")
    assert files._parts.observing.flush(LONG_S), "nothing is replayed: of that only the newest is told"
    put(files, "/d/a", b"1")
    put(files, "/d/a", b"2")
    put(files, "/d/e/b", b"b")
    put(files, "/other", b"moved")
    files.rename("/other", "/d/c")
    files.copy("/d/e/b", "/d/f")
    put(files, "/outside")
    assert files._parts.observing.flush(LONG_S)
    assert [entry.path for entry in files.list("/d/journal")] == [
        "/d/journal/d-a",
        "/d/journal/d-c",
        "/d/journal/d-e-b",
        "/d/journal/d-f",
    ]
    entry = files.stat("/d/journal/d-a")
    assert (read(files, "/d/journal/d-a"), dict(entry.metadata)) == (b"2", {"of": 2})
    assert files.status().attachments[0]["delivered_count"] == 5


def test_what_was_committed_before_a_restart_is_told_after_it(cluster: Cluster) -> None:
    files = cluster.start()
    put(files, "/d/old")
    files.attach("/d", "journal")
    put(files, "/d/a")
    assert files._parts.observing.flush(LONG_S)
    # As if it was killed between the catalog and the observer.
    files._parts.observing.after_commit = lambda entry: None
    put(files, "/d/b", b"only the catalog knows")
    cluster.stop()
    files = cluster.start()
    eventually(lambda: files.exists("/d/journal/d-b"), "it is told")
    assert read(files, "/d/journal/d-b") == b"only the catalog knows"
    assert files._parts.observing.flush(LONG_S)
    assert [entry.path for entry in files.list("/d/journal")] == ["/d/journal/d-a", "/d/journal/d-b"]
    assert files.status().attachments[0]["delivered_count"] == 1


def test_an_attachment_goes_along_when_its_directory_is_renamed(files: Files) -> None:
    files.make_directory("/a/b")
    files.attach("/a/b", "guard")
    files.rename("/a", "/z")
    put(files, "/a/b/c", b"bad")
    with pytest.raises(Vetoed):
        put(files, "/z/b/c", b"bad")
    files.remove_directory("/z", recursive=True)
    put(files, "/z/b/c", b"bad")


def test_a_guard_attached_through_another_server_counts_at_once(cluster: Cluster) -> None:
    one, two = cluster.start("one"), cluster.start("two")
    one.make_directory("/d")
    put(two, "/d/a", b"bad")
    one.attach("/d", "guard")
    with pytest.raises(Vetoed):
        put(two, "/d/a", b"bad")
    assert read(two, "/d/a") == b"bad"
    one.detach("/d", "guard")
    put(two, "/d/b", b"bad")


def test_virtual_files(files: Files) -> None:
    put(files, "/d/word", b"quiet")
    put(files, "/d/word", b"loud")
    files.attach("/d", "shout")
    entry = files.stat("/d/word.upper")
    assert (entry.version, entry.size_bytes, dict(entry.metadata)) == (2, 4, {"made": 1})
    with files.open("/d/word.upper") as block:
        assert bytes(block.data) == b"LOUD"
        put(files, "/d/word", b"louder")
        files._parts.virtual.drop_idle(0.0)
        assert read(files, "/d/word.upper") == b"LOUDER"
        assert bytes(block.data) == b"LOUD", "who has it open keeps one whole version"
    assert read(files, "/d/word.upper") == b"LOUDER"
    with pytest.raises(PathNotFound):
        files.stat("/d/word.lower")
    assert files.explain("/d/word.upper").route == "virtual"
    files.copy("/d/word.upper", "/d/kept")
    assert read(files, "/d/kept") == b"LOUDER"
    names = ["/d/kept", "/d/kept.upper", "/d/word", "/d/word.upper"]
    assert [entry.path for entry in files.list("/d")] == [entry.path for entry in files.find("/d")] == names
    assert [entry.path for entry in files.list("/d", after="kept", count=2)] == names[1:3]
    assert [entry.path for entry in files.find("/")] == ["/d", *names]
    told = files.list("/d")[-1]
    assert (told.version, told.size_bytes, dict(told.metadata)) == (3, 6, {"of": "/d/word"})
    put(files, "/d/word.upper", b"a file comes before a virtual one")
    assert [entry.path for entry in files.list("/d")] == [*names, "/d/word.upper.upper"]
    assert files.list("/d")[3].block_id is not None
    files.remove("/d/word.upper")
    files._parts.virtual.drop_idle(0.0)
    assert len(block_files(files)) == 2


KILLED = """
import sys
from pathlib import Path
from storage_tier.catalog import Catalog
from storage_tier.files import Files, FilesOptions
from storage_tier.tier import Tier

directory, record, turn = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
tier = Tier(directory / "one", 4 << 20)
options = FilesOptions(watch_s=0.01)
files = Files(tier, Catalog(directory / "catalog.sqlite"), address="coproc://one:1", options=options)
files.start()
files.make_directory("/d")
if not files.attachments():
    files.attach("/d", "record", {"file": record})
for number in range(200):
    files.put(f"/d/{turn}-{number}", 1, [b"x"])
    files.put("/d/often", 1, [b"x"])
"""


def test_a_killed_server_tells_each_commit_at_least_once(cluster: Cluster, tmp_path: Path) -> None:
    record = tmp_path / "record"
    for turn, count in enumerate((1, 41, 200)):
        environment = {**os.environ, "TIER_FAILPOINT": f"commit.catalog.after:{count}"}
        command = [sys.executable, "-c", KILLED, str(cluster.directory), str(record), str(turn)]
        assert subprocess.run(command, env=environment, timeout=LONG_S).returncode == -signal.SIGKILL
    files = cluster.start()
    assert files._parts.observing.flush(LONG_S)
    eventually(lambda: files.status().attachments[0]["state"] == "running", "it runs")
    assert files._parts.observing.flush(LONG_S)
    told = [line.split() for line in record.read_text().splitlines()]
    by_file: dict[tuple[str, int], set[int]] = {}
    for path, version, sequence, _ in told:
        by_file.setdefault((path, int(version)), set()).add(int(sequence))
    entries = files.list("/d")
    assert len(entries) > 100
    for entry in entries:
        assert by_file.pop((entry.path, entry.version)) == {entry.sequence}, "and what is told again has its sequence"
    assert {path for path, _ in by_file} <= {"/d/often"}, "of what was replaced older versions may be told, too"
    assert all(len(sequences) == 1 for sequences in by_file.values())
    again = [line for line in told if line[3] == "True"]
    assert len(again) < len(told), "not all is told again: the cursor is kept"
    # What was told is not told again after an orderly end.
    cluster.stop()
    files = cluster.start()
    eventually(lambda: files.status().attachments[0]["state"] == "running", "it runs")
    assert files._parts.observing.flush(LONG_S)
    assert len(record.read_text().splitlines()) == len(told)


def test_virtual_files_of_a_restarted_server_are_gone(cluster: Cluster) -> None:
    files = cluster.start()
    put(files, "/d/word")
    files.attach("/d", "shout")
    assert read(files, "/d/word.upper") == b"CONTENT"
    assert len(block_files(files)) == 2
    cluster.stop()
    files = cluster.start()
    assert len(block_files(files)) == 1
    assert read(files, "/d/word.upper") == b"CONTENT"
