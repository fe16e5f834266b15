"""The namespace under several processes, killed and stopped ones among them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine, text

from storage_tier.catalog import Catalog

from .catalog_tables import check_whole

pytest_plugins = ["tests.tier.postgres"]
PRELUDE = """
import itertools, os, random, sys
from storage_tier.catalog import Catalog
from storage_tier.catalog.errors import *
from storage_tier.errors import TierError
url, server_id = sys.argv[1:3]
catalog = Catalog(url, timeout_s=60.0)
catalog.members.register(server_id, "")
namespace = catalog.namespace
numbers = itertools.count()
def block():
    return f"{server_id}-{os.getpid()}-{next(numbers)}"
print("ready", flush=True)
sys.stdin.readline()
"""


@contextmanager
def processes(url: str, code: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Several servers that run `code`, all from the same moment."""
    command = [sys.executable, "-c", PRELUDE + code, url]
    started = [
        subprocess.Popen([*command, f"p{number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(count)
    ]
    try:
        for process in started:
            assert process.stdout.readline() == "ready\n"
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def outputs(started: list[subprocess.Popen[str]]) -> list[str]:
    answers = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started)
    return answers


def test_one_of_several_wins(catalog: Catalog, catalog_url: str) -> None:
    """Exclusive creation, compare and swap, and rename: each has one winner a time, and the losers know."""
    rounds = 15
    namespace = catalog.namespace
    namespace.commit("/counter", "c0", 1)
    for number in range(rounds):
        namespace.commit(f"/token-{number}", f"token-{number}", 1)
    code = f"""
for number in range({rounds}):
    won = []
    for name, attempt in {{
        "exclusive": lambda: namespace.commit(f"/x-{{number}}", block(), 1, exclusive=True),
        "directory": lambda: namespace.make_directory(f"/d-{{number}}"),
        "rename": lambda: namespace.rename(f"/token-{{number}}", f"/{{server_id}}-{{number}}"),
    }}.items():
        try:
            attempt()
            print(name, number)
        except (PathExists, PathNotFound):
            pass
    while True:
        found = namespace.stat("/counter")
        try:
            namespace.commit("/counter", block(), found.size_bytes + 1, expected_version=found.version)
            break
        except VersionConflict:
            pass
"""
    with processes(catalog_url, code, 3) as started:
        lines = [line for output in outputs(started) for line in output.splitlines()]
    wins = Counter(lines)
    expected = {f"{name} {number}" for name in ("exclusive", "directory", "rename") for number in range(rounds)}
    assert wins == dict.fromkeys(expected, 1)
    counter = namespace.stat("/counter")
    assert (counter.size_bytes, counter.version) == (1 + 3 * rounds, 1 + 3 * rounds), "an increment was lost"
    assert len([entry for entry in namespace.list("/") if entry.block_id and "token" in entry.block_id]) == rounds
    check_whole(catalog_url)


def test_directories_moved_under_each_other_never_make_a_circle(catalog: Catalog, catalog_url: str) -> None:
    namespace = catalog.namespace
    for name in "abcd":
        namespace.commit(f"/{name}/file", f"file-{name}", 1, parents=True)
    code = """
random.seed(server_id)
for _ in range(60):
    directories = ["", *(entry.path for entry in namespace.find("/") if entry.is_directory)]
    source, target = random.choice(directories[1:]), random.choice(directories)
    try:
        namespace.rename(source, f"{target}/{source[-1]}")
    except TierError:
        pass
"""
    with processes(catalog_url, code, 3) as started:
        outputs(started)
    check_whole(catalog_url)
    blocks = sorted(entry.block_id for entry in namespace.find("/") if entry.block_id)
    assert blocks == [f"file-{name}" for name in "abcd"]
    assert catalog.revision() > 20


# Each round makes /pairs/N/left and right together, moves the pair, replaces one, and removes an older pair.
WRITES = """
for number in itertools.count():
    with catalog.together():
        for side in ("left", "right"):
            namespace.commit(f"/{server_id}/{number}/{side}", block(), 1, parents=True, persisted="done")
    namespace.rename(f"/{server_id}/{number}", f"/{server_id}/moved-{number}")
    with catalog.together():
        for side in ("left", "right"):
            namespace.commit(f"/{server_id}/moved-{number}/{side}", block(), 2)
    if number > 5:
        namespace.remove_directory(f"/{server_id}/moved-{number - 5}", recursive=True)
    print(number, flush=True)
"""


def test_killed_in_the_middle_of_writes(catalog: Catalog, catalog_url: str) -> None:
    namespace = catalog.namespace
    for attempt in range(3):
        with processes(catalog_url, WRITES, 2) as started:
            acknowledged = 0
            while acknowledged < attempt * 2 + 1:
                acknowledged = int(started[0].stdout.readline())
            # Wherever each of them is now.
            for process in started:
                process.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *map(int, started[0].stdout.read().split())])
        check_whole(catalog_url)
        for number in range(max(0, acknowledged - 4), acknowledged + 1):
            assert namespace.stat(f"/p0/moved-{number}/left").size_bytes == 2, "an acknowledged write is lost"
        for server_id in ("p0", "p1"):
            if not namespace.exists(f"/{server_id}"):
                continue
            for pair in namespace.list(f"/{server_id}"):
                sides = namespace.list(pair.path)
                assert [side.path.split("/")[-1] for side in sides] == ["left", "right"]
                assert sides[0].size_bytes == sides[1].size_bytes, "half of what happens together"
            # The next start finds what was released and not dropped: nothing but what entries name stays.
            with Catalog(catalog_url) as restarted:
                restarted.members.register(server_id, "")
                named = {side.block_id for side in namespace.find(f"/{server_id}") if side.block_id}
                orphans = restarted.replicas.orphans(count=100_000)
                assert not named & set(orphans)
                restarted.replicas.drop(orphans)
                assert restarted.replicas.reconcile(named) == ((), ())
                restarted.namespace.remove_directory(f"/{server_id}", recursive=True)
                restarted.replicas.drop(restarted.replicas.orphans(count=100_000))
                assert restarted.replicas.locations(named) == dict.fromkeys(named, ())
    engine = create_engine(catalog_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM tier_replica")).scalar_one() == 0, "a replica leaked"
    engine.dispose()


def test_a_stopped_process_that_wakes_up_is_fenced(catalog: Catalog, catalog_url: str) -> None:
    """It was silent, was taken for dead, a newer one took its name: not one write of the old one gets through."""
    code = """
for number in itertools.count():
    try:
        namespace.commit("/log", block(), number)
        print(number, flush=True)
    except Fenced as error:
        print("fenced", error, flush=True)
        break
"""
    with processes(catalog_url, code, 1) as (old,):
        while int(old.stdout.readline()) < 5:
            pass
        with Catalog(catalog_url, timeout_s=60.0) as new:
            assert new.members.register("p0", "").epoch == 2
            found = new.namespace.stat("/log")
            new.namespace.commit("/log", "new", 1000, expected_version=found.version)
            rest = old.communicate(timeout=60)[0].splitlines()
            assert rest[-1].startswith("fenced the server p0 has epoch 2")
            assert new.namespace.stat("/log").block_id == "new"
            assert new.namespace.stat("/log").version == found.version + 1
