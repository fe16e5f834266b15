"""Settings of the whole suite, and the leak check that runs after every test.

What a test opens it closes: file descriptors, child processes (grandchildren and orphans too), threads, names
in /dev/shm, variables of the environment. The check looks before and after, and names what is left.

Who owns what. A test owns what appeared while it ran. A fixture of a wider scope (module, class, package,
session) owns what appeared while that fixture was set up, and later what its processes start and what comes
into its folders in /dev/shm; it is asked for these when it is torn down. So a module may share a cluster or a
Spark session, and a test that lets something of its own lie still fails.

How it looks. Ending takes time (a killed process, a closing channel), so what is left is waited for,
`SETTLE_S` at most: processes by pidfd, threads by join, the rest by looking again. No number of leaks is
tolerated; what is excepted is listed here with its reason:

- gRPC holds an event poll and an event descriptor of its own for as long as it likes, under changing numbers.
  Descriptors without a name (anonymous inodes) are therefore counted by kind, and gRPC is woken before the
  first look.
- Python's resource tracker: one process for the whole interpreter, started by its first user.
- An entry of /dev/shm in which a process outside this family has something open, or whose name carries the
  pid of such a process, is somebody else's, with all that lies in it: machines are shared, and the suite runs
  in several processes. So what a test puts there is named after its process, as the product's entries are.
- Threads of native libraries (BLAS, Arrow, OpenMP pools) are not Python threads and stay by design.
- A test that failed is not checked: its traceback keeps its objects alive, and its failure is the news.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import select
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import numpy  # noqa: F401  (its BLAS is there when `pytest_configure` limits it)
import pytest
import threadpoolctl

from storage_tier import wire

SETTLE_S = 5.0
SHM = Path("/dev/shm")
OWN_VARIABLES = ("COPROC_", "STORAGE_TIER_")
PR_SET_CHILD_SUBREAPER = 36
PROCESSES = 2
LONG = [
    *(
        "test_exactly_once.py",
        "test_contestants.py",
        "test_on_spark_modes.py",
        "test_on_spark.py",
        "test_conformance.py",
        "test_chaos.py",
        "test_lifetimes.py",
        "test_commands.py",
        "test_measurements.py",
    ),
    *("test_train.py", "test_child.py", "test_compare.py", "test_runner.py", "test_hosts.py", "test_in_parts.py"),
    "test_filesystem_abstract.py",
]
"""Files, in the order in which they begin."""
PID = re.compile(r"(?<!\w)[1-9][0-9]{0,7}(?!\w)")
"""In a name: a whole number that no letter, digit or underscore adjoins."""

pytest_plugins = ["pytester"]

hypothesis.settings.register_profile(
    "coproc", derandomize=True, deadline=None, database=None, print_blob=True, max_examples=60
)
hypothesis.settings.register_profile("slow", deadline=None, database=None, print_blob=True, max_examples=1000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long proofs too, with random examples")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("slow" if config.getoption("--slow") else "coproc")
    for name in [name for name in os.environ if name.startswith(OWN_VARIABLES)]:
        del os.environ[name]  # a failpoint or an address of the caller's shell is no part of the suite
    if hasattr(config, "workerinput"):  # one of several: threads of BLAS that spin would take the others' core
        threadpoolctl.threadpool_limits(1, "blas")
    # Orphans of a killed server become children of this process, so that the check sees them.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Open as long as the suite runs: gRPC's descriptors exist before the first look.
    config.stash[AWAKE] = wire.channel("127.0.0.1", 1)
    config.add_cleanup(config.stash[AWAKE].close)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes of the suite: none besides this one for a single file, where a start would cost more than it gives."""
    single = len(config.args) == 1 and not Path(config.args[0].split("::")[0]).is_dir()
    return 0 if single else min(PROCESSES, len(os.sched_getaffinity(0)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The long files first, or the other processes would wait for the one that gets them last.
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


# ---- what exists


@dataclass(frozen=True)
class Resource:
    """One thing that can leak. `kind` and `key` tell it from all others; `text` is what the report says."""

    kind: str
    key: tuple[object, ...]
    text: str = field(compare=False)
    pid: int = field(compare=False, default=0)
    """Of a process."""


def everything() -> set[Resource]:
    """All that this process and its descendants hold now."""
    return {*descriptors(), *processes(), *threads(), *shared_names(), *variables()}


def descriptors() -> Iterator[Resource]:
    anonymous: Counter[str] = Counter()
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:  # the one that listed the directory
            continue
        if target.startswith("anon_inode:"):
            anonymous[target] += 1
            number = anonymous[target]
            yield Resource("descriptor", (target, number), f"descriptor {target} (number {number} of its kind)")
        else:
            yield Resource("descriptor", (int(entry), target), f"descriptor {entry} -> {target}")


def stat_fields(pid: int) -> tuple[str, int, str] | None:
    """(state, parent, start time) of a process; None when it is gone."""
    try:  # without Path and file objects, which take three times as long: this runs for each process, twice a test
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        text = os.read(fd, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    fields = text[text.rindex(b")") + 2 :].decode().split(maxsplit=20)
    return fields[0], int(fields[1]), fields[19]


def family() -> dict[int, tuple[int, str]]:
    """pid -> (parent, start time) of each living descendant; the dead among our own children are reaped."""
    table = {int(name): found for name in os.listdir("/proc") if name.isdigit() and (found := stat_fields(int(name)))}
    children: dict[int, list[int]] = {}
    for pid, (_, parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    living: dict[int, tuple[int, str]] = {}
    queue = [os.getpid()]
    while queue:
        for pid in children.get(queue.pop(), []):
            state, parent, started = table[pid]
            queue.append(pid)
            if state != "Z":
                living[pid] = (parent, started)
    return living


def processes() -> Iterator[Resource]:
    for pid, (parent, started) in family().items():
        command = command_line(pid)
        if "multiprocessing.resource_tracker" not in command:
            yield Resource("process", (pid, started), f"process {pid} (child of {parent}): {command[:200]}", pid)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def threads() -> Iterator[Resource]:
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            yield Resource("thread", (id(thread), thread.name), f"thread {thread.name!r} ({type(thread).__name__})")


def shared_names() -> Iterator[Resource]:
    for folder, folders, files in os.walk(SHM):
        for name in sorted([*folders, *files]):
            path = os.path.join(folder, name)
            # Names are bytes to the system; the report must be text whatever a test puts there.
            yield Resource("name", (path,), path.encode(errors="backslashreplace").decode())


def variables() -> Iterator[Resource]:
    for name, value in os.environ.items():
        if name.startswith(OWN_VARIABLES):
            yield Resource("variable", (name, value), f"variable {name}={value}")


def path_of(name: Resource) -> str:
    return str(name.key[0])


def entry_of(path: str) -> str:
    """The entry of /dev/shm that a path is or lies in."""
    return "/".join(path.split("/")[:4])


def named_outside(names: Iterable[str]) -> set[str]:
    """Those names of entries of /dev/shm that carry the pid of a living process outside the family."""
    pids = {name: {int(number) for number in PID.findall(name)} for name in names}
    living = {pid for found in pids.values() for pid in found if stat_fields(pid)}
    strangers = living - {1, os.getpid(), *family()} if living else living
    return {name for name, found in pids.items() if found & strangers}


def held_outside(_: Iterable[str]) -> set[str]:
    """Entries of /dev/shm in which a process outside the family has something open or mapped."""
    ours = {os.getpid(), *family()}
    held: set[str] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in ours:
            continue
        try:
            held.update(os.readlink(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd"))
            held.update(line.split(maxsplit=5)[-1] for line in Path(f"/proc/{name}/maps").read_text().splitlines())
        except OSError:  # gone meanwhile, or of another user: then its names can't be told
            continue
    return {entry_of(path) for path in held if path.startswith(f"{SHM}/")}


# ---- who owns it

AWAKE = pytest.StashKey[Any]()  # the channel that keeps gRPC up
PASSED = pytest.StashKey[bool]()
HELD = pytest.StashKey[dict[str, set[Resource]]]()
"""Of the session: what fixtures of wider scope hold, by fixture."""


def left_over(before: set[Resource], held: Iterable[set[Resource]]) -> list[Resource]:
    """What is there now, was not before, and is nobody else's. Only suspects cost a longer look."""
    booked: set[Resource] = set().union(*held)
    suspects = everything() - before - booked
    if any(found.kind == "process" for found in suspects):
        living = family()
        owners = {found.pid for found in before | booked}
        suspects = {found for found in suspects if found.kind != "process" or not is_below(found.pid, owners, living)}
    if any(found.kind == "name" for found in suspects):
        folders = tuple(f"{path_of(found)}/" for found in booked if found.kind == "name")
        suspects = {found for found in suspects if found.kind != "name" or not path_of(found).startswith(folders)}
        for foreign in (named_outside, held_outside):  # the cheap look first
            entries = {entry_of(path_of(found)) for found in suspects if found.kind == "name"}
            theirs = foreign(entries) if entries else entries
            suspects = {found for found in suspects if found.kind != "name" or entry_of(path_of(found)) not in theirs}
    return sorted(suspects, key=lambda found: (found.kind, found.text))


def is_below(pid: int, owners: set[int], living: dict[int, tuple[int, str]]) -> bool:
    """Whether a process descends from one of the owners."""
    while pid in living:
        pid = living[pid][0]
        if pid in owners:
            return True
    return False


def settle(before: set[Resource], held: Iterable[set[Resource]]) -> list[Resource]:
    """Wait until nothing is left over, `SETTLE_S` at most; return what is."""
    held = list(held)
    left = left_over(before, held)
    if not left:
        return left
    gc.collect()  # an object in a cycle closes what it holds only now
    deadline = time.monotonic() + SETTLE_S
    pause_s = 0.002
    while left := left_over(before, held):
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            return left
        wait_for(left[0], min(pause_s, remaining_s))
        pause_s = min(pause_s * 2, 0.1)
    return left


def wait_for(left: Resource, limit_s: float) -> None:
    """Wait for the end of one left thing, or for `limit_s`."""
    if left.kind == "process":
        try:
            pidfd = os.pidfd_open(left.pid)
        except ProcessLookupError:
            return
        try:
            select.select([pidfd], [], [], limit_s)
        finally:
            os.close(pidfd)
    elif left.kind == "thread":
        for thread in threading.enumerate():
            if id(thread) == left.key[0]:
                thread.join(limit_s)
    else:
        threading.Event().wait(limit_s)


def report(left: list[Resource], who: str) -> str:
    return f"{who} left {len(left)} behind:\n" + "\n".join(f"  {found.text}" for found in left)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Book what a fixture of wider scope takes at set-up, and ask for it after its teardown."""
    if fixturedef.scope == "function" or request.config.getoption("--setup-plan"):
        return (yield)
    all_held = request.session.stash.setdefault(HELD, {})
    who = f"fixture {fixturedef.argname} of {fixturedef.baseid or 'the suite'}"
    before = everything()

    def check() -> None:
        all_held.pop(who, None)
        left = settle(before, all_held.values())
        if left and not request.session.testsfailed:
            pytest.fail(report(left, who), pytrace=False)

    fixturedef.addfinalizer(check)  # added first, so called last: after the fixture's own teardown
    result = yield
    all_held[who] = everything() - before
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    outcome = yield
    if outcome.when != "teardown":
        item.stash[PASSED] = item.stash.get(PASSED, True) and outcome.passed
    return outcome


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves something behind. Set up before its other fixtures, torn down after them."""
    before = everything()
    yield
    if not request.node.stash.get(PASSED, True):
        return
    left = settle(before, request.session.stash.get(HELD, {}).values())
    if left:
        pytest.fail(report(left, "this test"), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """What a process of the suite sends to the one that prints: half a surrogate pair in it would end the run."""
    return sendable((yield))


def sendable(data: Any) -> Any:
    if isinstance(data, str):
        return data.encode(errors="backslashreplace").decode()
    if isinstance(data, dict):
        return {sendable(key): sendable(value) for key, value in data.items()}
    return type(data)(map(sendable, data)) if isinstance(data, list | tuple) else data


def pytest_report_header() -> list[str]:
    free = os.statvfs(SHM)
    free_gib = free.f_bavail * free.f_frsize / 2**30
    return [f"coproc: {len(os.sched_getaffinity(0))} cores, {free_gib:.1f} GiB free in {SHM}"]
