"""What a server tells of its load: who is behind and who waits for it, and what each model takes of the memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest

import coproc
from coproc.cli.status import as_text
from coproc.shared.control import Control
from coproc.shared.published import Published
from coproc.shared.seats import Seat
from storage_tier.budget import show_bytes
from storage_tier.regions import align, file_bytes

from .waiting import until

SIZE = 4000
SLOTS = 3


def make(client, name, size=SIZE, **settings):
    settings = {"optimizer": coproc.optim.SGD(learning_rate=1.0), "slots": SLOTS, **settings}
    return client.create_model(name, params={"w": np.zeros(size, np.float32)}, **settings)


def told(client):
    """The client's status, as the terminal has it. A server that is stopped answers nothing."""
    return as_text(client.status(timeout_s=0.5))


@contextmanager
def standing_still(server):
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


# ---- a server that is behind


def test_a_server_that_falls_behind_slows_its_pushers_and_is_named(cluster, client, far, name):
    """Of two shards one stands still: pushes fill their slots and wait, near and far, until it goes on."""
    model = make(client, name, shards=2)
    slow = cluster.servers[1].address
    calm = model.status()
    assert (calm.pending_count, calm.blocked_count, calm.behind_server) == (0, 0, "")
    done = [0, 0]

    def push(number, worker):
        for _ in range(3 * SLOTS):
            worker.push({"w": np.full(SIZE, number + 1, np.float32)}, timeout_s=60)
            done[number] += 1

    with model.join(0) as one, far.model(name).join(1) as other:
        with standing_still(cluster.servers[1]):
            first = in_thread(lambda: push(0, one))
            until(lambda: model.status().blocked_count == 1)
            assert done[0] == SLOTS
            found = model.status()
            assert (found.pending_count, found.behind_server) == (SLOTS, slow)
            assert f"\n  behind       {slow}; 1 attempt waits for a slot" in told(client)
            second = in_thread(lambda: push(1, other))
            until(lambda: model.status().blocked_count == 2)
            assert done == [SLOTS, SLOTS]
            assert model.status().pending_count == 2 * SLOTS
            said = told(client)
            assert f"\n  pending      {2 * SLOTS} gradients\n" in said
            assert f"\n  behind       {slow}; 2 attempts wait for a slot" in said
            assert f"\nserver {slow}\n  down  " in said
            # What is published is read all the while.
            assert client.model(name).status().version == 0
        for thread in (first, second):
            thread.join(60)
            assert not thread.is_alive()
        assert set(one.pull(min_version=6 * SLOTS).flat.tolist()) == {-9.0 * SLOTS}
    until(lambda: model.status().pending_count == 0)
    assert (model.status().blocked_count, model.status().behind_server) == (0, "")
    said = told(client)
    assert "\n  behind " not in said
    assert "\n  pending " not in said
    model.delete()


PUSH = """
import sys
import numpy as np
import coproc

with coproc.connect(sys.argv[1]) as client, client.model(sys.argv[2]).join(0) as worker:
    while True:
        worker.push({"w": np.ones(4000, np.float32)}, timeout_s=60)
"""


def test_who_waits_no_more_is_counted_no_more(cluster, client, name):
    """Its time is over, or it was killed within its wait; what it has committed is still to come."""
    model = make(client, name, shards=2)
    with standing_still(cluster.servers[1]):
        with model.join(1) as worker:
            for _ in range(SLOTS):
                worker.push({"w": np.ones(SIZE, np.float32)})
            with pytest.raises(coproc.Timeout, match="no slot of worker 1"):
                worker.push({"w": np.ones(SIZE, np.float32)}, timeout_s=0.05)
        assert (model.status().pending_count, model.status().blocked_count) == (SLOTS, 0)
        near_only = cluster.servers[0].address  # the other would not answer
        with subprocess.Popen([sys.executable, "-c", PUSH, f"coproc://{near_only}", name]) as process:
            until(lambda: model.status().blocked_count == 1)
            process.kill()
        until(lambda: model.status().blocked_count == 0)
        assert model.status().pending_count == 2 * SLOTS
    until(lambda: model.status().pending_count == 0)
    assert set(model.snapshot().flat.tolist()) == {-2.0 * SLOTS}
    model.delete()


def test_who_waits_for_other_workers_waits_for_no_server(client, name):
    model = make(client, name, consistency=coproc.Bsp(workers=2))
    with model.join(0) as one, model.join(1) as other:
        for _ in range(SLOTS):
            one.push({"w": np.ones(SIZE, np.float32)})
        thread = in_thread(lambda: one.push({"w": np.ones(SIZE, np.float32)}, timeout_s=60))
        until(lambda: model.status().blocked_count == 1)
        found = model.status()
        assert (found.pending_count, found.behind_server, found.waiting_for) == (SLOTS, "", (1,))
        assert "\n  behind " not in told(client)
        other.push({"w": np.ones(SIZE, np.float32)})
        thread.join(60)
        assert not thread.is_alive()
        assert model.status().blocked_count == 0
    model.delete()


# ---- memory


def memory(client):
    """(model, server) -> its memory there; and bytes in use on each server."""
    now = client.status()
    found = {(one.name, server.address): one for server in now.servers for one in server.models}
    return found, [server.memory_used_bytes for server in now.servers]


def test_each_models_memory_is_counted_on_each_server(cluster, client, name):
    _, empty = memory(client)
    here, there = (server.address for server in cluster.servers)
    small = make(client, f"{name}-small", 1000, shards=1)
    large = make(client, f"{name}-large", 100_000, shards=2, optimizer=coproc.optim.Adam(), consistency=coproc.Asp())
    found, used = memory(client)
    assert set(found) == {(small.name, here), (large.name, here), (large.name, there)}
    log_bytes = file_bytes(Control.size_bytes())
    for (model, server), one in found.items():
        buffers = client.model(model).spec.buffers
        shard = Published.size_bytes(*((1000, 0) if model == small.name else (50_000, 2)), buffers)
        assert one.shards_bytes == file_bytes(shard)
        assert one.memory_bytes == one.shards_bytes + (log_bytes if server == here else 0)
    by_server = [sum(one.memory_bytes for (_, at), one in found.items() if at == server) for server in (here, there)]
    # Besides, each model's spec.json is a file of the first server.
    for model in client.models():
        by_server[0] += file_bytes(align(len(client.tier.open(f"/models/{model}/spec.json").data), 4096))
    assert [now - before for now, before in zip(used, empty, strict=True)] == by_server
    # Live attempts are memory of their model, on its first server.
    with large.join(0):
        with_slots, _ = memory(client)
        grown = {key: with_slots[key].memory_bytes - found[key].memory_bytes for key in found}
        assert grown == {
            (small.name, here): 0,
            (large.name, here): file_bytes(Seat.size_bytes(SLOTS, 100_000)),
            (large.name, there): 0,
        }
        assert {key: one.shards_bytes for key, one in with_slots.items()} == {
            key: one.shards_bytes for key, one in found.items()
        }
    said = told(client)
    assert f" of 1.1 GB on {here} (" in said
    assert f" of 1.1 GB on {there} (" in said
    until(lambda: memory(client)[0] == found)
    for model in (small, large):
        model.delete()
    assert memory(client) == ({}, empty)


@pytest.mark.parametrize("where", [0, 1], ids=["first", "second"])
def test_a_model_that_does_not_fit_is_refused_with_the_numbers_and_leaves_nothing(name, where):
    """Of two servers one has no room; the models that are there go on."""
    with coproc.LocalCluster(servers=2, memory_bytes=16 << 20) as cluster:
        addresses = [server.address for server in cluster.servers]
        turned = "coproc://" + ",".join([addresses[where], addresses[1 - where]])
        with coproc.connect(cluster.address) as client, coproc.connect(turned) as other:
            there = make(other, f"{name}-there", 500_000, shards=1, buffers=2, slots=1)
            before, used = memory(client)
            folders = [sorted(os.listdir(path)) for path in cluster._directory.glob("server-?/models")]
            with pytest.raises(coproc.OutOfMemory) as refused:
                make(client, name, 1_120_000, shards=2, buffers=2, slots=1, optimizer=coproc.optim.Adam())
            need, said = Published.size_bytes(560_000, 2, 2), str(refused.value)
            if where == 0:
                assert f"needs {need:,} bytes on server {addresses[0]}" in said
                assert f"{(16 << 20) - used[0]:,} of its memory budget are free" in said
            else:
                assert (
                    f"asks for {show_bytes(need)}, and of the memory budget of 16.0 MiB {show_bytes(used[1])}" in said
                )
            assert memory(client) == (before, used)
            assert client.models() == [there.name]
            assert [sorted(os.listdir(path)) for path in cluster._directory.glob("server-?/models")] == folders
            with there.join(0) as worker:
                worker.push({"w": np.ones(500_000, np.float32)})
                assert set(worker.pull(min_version=1).flat.tolist()) == {-1.0}
            # The name is free.
            make(client, name, 1000).delete()


def test_an_attempt_whose_slots_do_not_fit_is_refused_with_the_numbers_and_leaves_nothing(name):
    with coproc.LocalCluster(memory_bytes=16 << 20) as cluster, coproc.connect(cluster.address) as client:
        model = make(client, name, 1_000_000, buffers=2, slots=1)
        before = memory(client)
        with pytest.raises(coproc.OutOfMemory, match=r"asks for 15\.3 MiB, and of the memory budget of 16\.0 MiB") as e:
            model.join(0, slots=4)
        assert "MiB are in use" in str(e.value)
        assert memory(client) == before
        with model.join(0) as worker:
            worker.push({"w": np.ones(1_000_000, np.float32)})
            assert set(worker.pull(min_version=1).flat.tolist()) == {-1.0}


def test_the_terminal_says_behind_only_of_a_server_that_is_waited_for(client, name):
    model = make(client, name)
    status = model.status()
    model.delete()

    def said(**changes):
        now = client.status()
        return as_text(dataclasses.replace(now, models=[dataclasses.replace(status, **changes)]))

    assert "\n  behind " not in said(pending_count=5, blocked_count=1)
    assert "\n  pending      5 gradients" in said(pending_count=5)
    assert "\n  behind       a:1; 1 attempt waits for a slot" in said(blocked_count=1, behind_server="a:1")


def test_a_model_with_a_limit_of_its_own_leaves_room_for_the_others(name):
    """Its third worker would take it beyond; a restart does not forget the limit, and another model is not touched."""
    size, limit_bytes = 100_000, 3 << 20
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        with pytest.raises(coproc.OutOfMemory, match=r"of the 65,536 bytes that .*/small~"):
            make(client, "small", size, memory_limit_bytes=1 << 16)
        assert client.models() == []
        model = make(client, name, size, buffers=2, slots=1, memory_limit_bytes=limit_bytes)
        other = make(client, f"{name}-other", size)
        for _ in range(2):
            with contextlib.ExitStack() as stack:
                workers = []
                with pytest.raises(coproc.OutOfMemory, match=r"of the 3\.0 MiB that .* MiB are in use"):
                    workers.extend(stack.enter_context(model.join(number)) for number in range(20))
                assert 1 <= len(workers) < 10
                assert limit_bytes - model.status().memory_bytes < 4 * size + 8192
                stack.enter_context(other.join(len(workers)))
            cluster.servers[0].restart()
        with model.join(0) as worker:
            worker.push({"w": np.ones(size, np.float32)})
            assert worker.pull(min_version=1).version == 1
        for value in (0, -1, 1.5, "3"):
            with pytest.raises(coproc.ConfigError, match="memory_limit_bytes"):
                make(client, "bad", 10, memory_limit_bytes=value)
