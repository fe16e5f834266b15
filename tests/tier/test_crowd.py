"""A hundred clients at once, of two servers with one catalog: each sees its own folder as a dict would have it.

What they share has closed forms: a counter raised by compare-and-swap ends at the number of times it was raised, names
that are given once are given once, and a file that all of them rename is there once, whole.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from storage_tier.client import TierClient

PROCESSES = 4
CLIENTS = 25
TURNS = 30

CROWD = """
import collections, json, random, sys, threading
from storage_tier.client import TierClient
from storage_tier.errors import PathExists, PathNotFound, VersionConflict

address, process, clients_count, turns = sys.argv[1], *map(int, sys.argv[2:])
done, wrong = collections.Counter(), []

def client(number):
    rng = random.Random(number)
    home, model = f"/own/{number}", {}
    with TierClient(address, server_index=number % 2, near=number % 3 > 0) as tier:
        tier.make_directory(home)
        for turn in range(turns):
            path, other = (f"{home}/{rng.randrange(4)}" for _ in range(2))
            act = rng.choice(["put", "read", "rename", "remove", "list", "raise", "name", "move"])
            try:
                if act == "put":
                    data = b"%d.%d." % (number, turn) * rng.choice([1, 9000])
                    tier.put(path, data, overwrite=True)
                    model[path] = data
                elif act == "read":
                    with tier.open(path) as file:
                        same = bytes(file.data) == model[path]
                    assert same, path
                elif act == "rename" and path != other:
                    tier.rename(path, other, overwrite=True)
                    model[other] = model.pop(path)
                elif act == "remove":
                    tier.remove(path)
                    del model[path]
                elif act == "list":
                    seen = {info.path: info.size_bytes for info in tier.list(home)}
                    assert seen == {name: len(data) for name, data in model.items()}, (seen, home)
                elif act == "raise":
                    with tier.open("/shared/counter") as file:
                        version, count = file.info.version, int(bytes(file.data))
                    tier.put("/shared/counter", b"%d" % (count + 1), expected_version=version)
                elif act == "name":
                    tier.put(f"/shared/names/{rng.randrange(30)}", b"x")
                elif act == "move":
                    tier.rename(f"/shared/ball-{rng.randrange(3)}", f"/shared/ball-{rng.randrange(3)}")
                done[act] += 1
            except PathNotFound:
                if act in ("read", "rename", "remove"):
                    assert path not in model, (act, path)
                elif act != "move":
                    raise
            except PathExists:
                assert act in ("name", "move"), act
            except VersionConflict:
                assert act == "raise", act

def watched(number):
    try:
        client(number)
    except BaseException as error:
        wrong.append(f"client {number}: {error!r}")

threads = [threading.Thread(target=watched, args=(process * clients_count + i,)) for i in range(clients_count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps([done, wrong]))
"""


def test_a_hundred_clients_keep_one_namespace(serve: Callable[..., object]) -> None:
    root = Path(tempfile.mkdtemp(prefix=f"coproc-test-{os.getpid()}-", dir="/dev/shm"))
    servers = [serve(directory=root / name, catalog=f"sqlite:///{root}/catalog.sqlite") for name in ("one", "two")]
    address = "coproc://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)
    with TierClient(address, server_index=0) as tier:
        tier.put("/shared/counter", b"0")
        tier.put("/shared/ball-0", b"ball")
        tier.make_directory("/shared/names")
        started = [
            subprocess.Popen(
                [sys.executable, "-c", CROWD, address, str(number), str(CLIENTS), str(TURNS)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(PROCESSES)
        ]
        done: Counter[str] = Counter()
        try:
            said = [json.loads(process.communicate(timeout=100)[0]) for process in started]
        finally:
            for process in started:
                process.kill()
                process.communicate()
        for counted, wrong in said:
            assert wrong == []
            done.update(counted)
        with tier.open("/shared/counter") as file:
            assert int(bytes(file.data)) == done["raise"] > 0
        assert len(tier.list("/shared/names")) == done["name"] > 0
        (ball,) = (info.path for info in tier.list("/shared") if "ball" in info.path)
        with tier.open(ball) as file:
            assert bytes(file.data) == b"ball"
    for server in servers:
        assert server.stop() == 0
    shutil.rmtree(root)
