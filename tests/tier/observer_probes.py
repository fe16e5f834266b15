"""Observers that do what the files of a test say, installed for its processes, and what a test sees of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_tier.observers import AttachmentState, ObserverOptions
from storage_tier.testing.memory import MemoryTier

TIMEOUT_S = 60.0
# Registered as another package would. What a probe does is said by the files: the content of a file for pre_commit,
# its metadata for post_commit, the path for resolve.
EXAMPLES = '''
import ctypes, fcntl, json, os, re, signal, sys, threading, time
from storage_tier.errors import InvalidRequest
from storage_tier.observers import Observer, ResolvedFile, Veto

def endless():
    while True:
        pass

def endless_in_c():
    re.match(r"(a+)+$", "a" * 64 + "b")  # does not give the interpreter lock back

def lanes():
    import socket
    return [socket.socket(fileno=os.dup(int(number))) for number in sys.argv[1:]]

def act(what):
    name, _, rest = what.partition(" ")
    if name == "raise":
        raise ValueError(rest or "it said so")
    if name == "endless":
        endless()
    if name == "endless_in_c":
        endless_in_c()
    if name == "memory":
        kept = []
        while True:
            kept.append(bytearray(8 << 20))
    if name == "child":
        import subprocess
        child = subprocess.Popen(["sleep", "1000"])
        print("child", child.pid, flush=True)
        endless()
    if name == "exit":
        os._exit(int(rest))
    if name == "crash":
        ctypes.string_at(1)
    if name == "recurse":
        act(what)
    if name == "print":
        for _ in range(100_000):
            print("x" * 80)
        print("the end", rest, flush=True)
    if name == "garbage":
        for lane in lanes():
            lane.send(bytes.fromhex(rest))
        endless()
    if name == "closed":
        lanes()
        for number in sys.argv[1:]:
            os.close(int(number))
        time.sleep(1000)
    if name == "wait":
        os.read(os.open(rest, os.O_RDONLY), 1)

class Probe(Observer):
    @classmethod
    def from_parameters(cls, parameters):
        unknown = set(parameters) - {"log", "start", "tag", "writes", "stop"}
        if unknown:
            raise InvalidRequest(f"a probe does not know {sorted(unknown)[0]!r}")
        if parameters.get("start") == "bad":
            raise InvalidRequest("a probe cannot start badly: give something else")
        if parameters.get("start") == "raise":
            raise RuntimeError("in from_parameters")
        return cls(parameters)

    def __init__(self, parameters):
        self.parameters = parameters

    def note(self, **what):
        if "log" in self.parameters:
            line = "\\n" + json.dumps({"tag": self.parameters.get("tag"), **what}) + "\\n"
            with open(self.parameters["log"], "a") as log:
                log.write(line)

    def start(self, env):
        self.env = env
        act(self.parameters.get("start", ""))
        env.log.info("a probe on %s with %s", env.directory, dict(env.facts))
        self.note(started=os.getpid())

    def stop(self):
        self.note(stopped=os.getpid())
        act(self.parameters.get("stop", ""))

    def pre_commit(self, context, file):
        access = fcntl.fcntl(file._fd, fcntl.F_GETFL) & os.O_ACCMODE
        assert access == os.O_RDONLY, "it could change what is being committed"
        what = bytes(file.data[:200]).decode(errors="replace")
        self.note(pre=file.path, size=file.size_bytes, metadata=dict(file.metadata))
        if what.startswith("veto"):
            return Veto(what[5:])
        if what == "answer nonsense":
            return 17
        if what == "write":
            context.env.write("/anywhere", b"")
        if what.startswith("read "):
            with context.env.open(what[5:]) as other:
                return Veto(bytes(other.data).decode())
        act(what)

    def post_commit(self, context, batch):
        self.note(
            post=[(file.path, file.version, file.sequence) for file in batch],
            origin=context.origin, again=context.redelivered,
        )
        for file in batch:
            act(file.metadata.get("post", ""))
        for target in self.parameters.get("writes", []):
            context.env.write(target, b"written", {"by": self.parameters.get("tag", "")})

    def resolve(self, context, path):
        kind = path.rpartition("/")[2]
        if kind == "bytes":
            return ResolvedFile(b"seven", 7, {"a": 1})
        if kind == "large":
            return ResolvedFile(bytes(range(256)) * 40_000, 8)
        if kind == "memfd":
            fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
            os.write(fd, b"nine")
            return ResolvedFile(fd, 9)
        if kind == "file":
            return ResolvedFile(os.open("/proc/self/exe", os.O_RDONLY), 10)
        if kind == "nonsense":
            return "nonsense"
        act(kind.replace("-", " "))
        return None

class Closed(Probe):
    on_failure = "closed"

class Quiet(Observer):
    """Only looks, and says nothing."""
    @classmethod
    def from_parameters(cls, parameters):
        return cls()

    def pre_commit(self, context, file):
        return None

class Background(Probe):
    """Writes from a thread of its own, which it must not."""
    def start(self, env):
        def run():
            try:
                env.write("/x", b"")
            except InvalidRequest as error:
                env.log.info("refused: %s", error)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

not_an_observer = {"a": 1}
'''
ENTRY_POINTS = """
[storage_tier.observers]
probe = observer_examples:Probe
closed = observer_examples:Closed
quiet = observer_examples:Quiet
background = observer_examples:Background
thing = observer_examples:not_an_observer
lost = observer_examples:NotThere
twice = observer_examples:Probe
"""
NEVER = ObserverOptions(restart_delays_s=())


@pytest.fixture(scope="module", autouse=True)
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package with observers, installed for this process and its children."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "observer_examples.py").write_text(EXAMPLES)
    for name, points in (("observer_examples", ENTRY_POINTS), ("other", "[storage_tier.observers]\ntwice = a:B\n")):
        info = folder / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        yield folder


@pytest.fixture
def tier() -> Iterator[MemoryTier]:
    with MemoryTier(facts={"address": "here"}) as made:
        yield made


class Journal:
    """What the probes have noted."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def notes(self, key: str, tag: str | None = None) -> list[dict[str, Any]]:
        try:
            lines = Path(self.path).read_text().splitlines()
        except FileNotFoundError:
            return []
        found = [note for line in lines if (note := self._note(line))]
        return [note for note in found if key in note and tag in (None, note["tag"])]

    @staticmethod
    def _note(line: str) -> dict[str, Any] | None:
        """None of a line of which a kill has cut off the end, or that only ends such a one."""
        try:
            return dict(json.loads(line))
        except json.JSONDecodeError:
            return None

    def batches(self, tag: str | None = None) -> list[list[str]]:
        return [[path for path, _, _ in note["post"]] for note in self.notes("post", tag)]

    def delivered(self, tag: str | None = None) -> list[str]:
        return [path for batch in self.batches(tag) for path in batch]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A FIFO that a probe waits on; calling the fixture lets one wait end."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)  # opening it waits for nobody, and what is written stays in it
    yield lambda: (os.write(fd, b"."), None)[1]
    os.close(fd)


def state_of(tier: MemoryTier, attached: str) -> AttachmentState:
    (found,) = [state for state in tier.host.attachments() if state.id == attached]
    return found


def until(condition: Callable[[], Any], what: str = "it did not happen") -> Any:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, what
        time.sleep(0.005)
    return found


def quarantined(tier: MemoryTier, attached: str) -> AttachmentState:
    until(lambda: state_of(tier, attached).state == "quarantined", "it was not quarantined")
    return state_of(tier, attached)


def stat_of(pid: int) -> list[str]:
    """The state, the parent and more of a process; the state 'X' when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X", "0"]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped has ended too."""
    return stat_of(pid)[0] in "XZ"
