"""Memory outlives processes on purpose, so somebody owns it: seats of the dead, servers of the dead, restarts."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import coproc
from coproc import cluster as local


def make(client, name, **settings):
    return client.create_model(
        name, params={"w": np.zeros(100, np.float32)}, optimizer=coproc.optim.SGD(1.0), **settings
    )


def until(condition, timeout_s=20.0):
    """Look again and again; the condition is somebody else's act."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        select.select([], [], [], 0.01)


def child(code, *arguments):
    """A Python process that says one line when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def finish(process):
    process.wait(timeout=60)
    process.stdin.close()
    process.stdout.close()


HOLDER = """
import sys, numpy as np, coproc
client = coproc.connect(sys.argv[1])
worker = client.model(sys.argv[2]).join(0)
worker.pull()
worker.push({"w": np.ones(100)})
print("pushed", flush=True)
sys.stdin.read()
"""


def test_the_seat_of_a_killed_worker_is_given_back_after_its_pushes_are_taken(client, cluster, name):
    model = make(client, name)
    process, said = child(HOLDER, cluster.address, name)
    assert said == "pushed"
    assert model.status().seats_count == 1
    process.kill()
    finish(process)
    until(lambda: model.status().seats_count == 0)
    assert model.snapshot().version == 1
    with model.join(worker=0) as worker:
        assert worker.next_step == 1
    model.delete()


def test_the_memory_of_slots_is_given_back(client, name):
    model = make(client, name)
    used = client.status().servers[0].memory_used_bytes
    for _ in range(3):
        with model.join(worker=0) as worker:
            worker.push({"w": np.ones(100)})
    until(lambda: client.status().servers[0].memory_used_bytes == used)
    model.delete()


def test_bsp_waits_for_a_lost_worker_and_then_fails_with_its_name(client, name):
    model = make(client, name, consistency=coproc.Bsp(workers=2, patience_s=0.3))
    with model.join(worker=0) as worker, model.join(worker=1):
        pass
    with model.join(worker=0) as worker:
        worker.push({"w": np.ones(100)})
        with pytest.raises(coproc.WorkerLost, match="worker 1"):
            worker.pull(timeout_s=20)
        with model.join(worker=1) as back:
            back.push({"w": np.full(100, 3.0)})
            assert worker.pull(timeout_s=20).params["w"][0] == -2
    model.delete()


def test_bsp_may_let_a_lost_worker_go(client, name):
    model = make(client, name, consistency=coproc.Bsp(workers=2, on_loss="close", patience_s=0.3))
    with model.join(worker=0) as worker:
        worker.push({"w": np.ones(100)})
        assert worker.pull(timeout_s=20).params["w"][0] == -1
        with model.join(worker=1) as late:
            worker.push({"w": np.ones(100)})
            late.push({"w": np.full(100, 3.0)})
            assert worker.pull(timeout_s=20).params["w"][0] == -3
    model.delete()


def test_a_far_lease_ends_when_it_is_silent(far, name, monkeypatch):
    model = make(far, name)
    worker = model.join(worker=0)
    worker.push({"w": np.ones(100)})
    assert model.status().seats_count == 1
    worker.close()
    until(lambda: model.status().seats_count == 0)
    model.delete()


def test_servers_restart_with_everything(name):
    with coproc.LocalCluster(servers=2) as cluster, coproc.connect(cluster.address) as client:
        model = make(client, name, shards=2)
        with model.join(worker=0) as worker:
            worker.push({"w": np.ones(100)})
            assert model.snapshot().version == 1
            address, used = cluster.address, client.status().servers[0].memory_used_bytes
            for server in cluster.servers:
                server.kill()
            # Acknowledged while no server lives.
            worker.push({"w": np.ones(100)})
            for server in cluster.servers:
                server.restart()
            assert cluster.address == address
            assert model.snapshot().params["w"][99] == -2
            worker.push({"w": np.ones(100)})
            assert worker.pull(min_version=3).params["w"][99] == -3
            assert client.status().servers[0].memory_used_bytes == used
        with coproc.connect(cluster.address, near=False) as far:
            assert far.model(name).snapshot().version == 3


def test_a_far_worker_lives_through_a_restart(name):
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address, near=False) as far:
        model = make(far, name)
        with model.join(worker=0) as worker:
            worker.push({"w": np.ones(100)})
            cluster.servers[0].kill()
            cluster.servers[0].restart()
            worker.push({"w": np.ones(100)})
            assert worker.pull(min_version=2).params["w"][0] == -2


def test_a_model_deleted_while_a_server_is_down_is_gone_when_it_is_back(name):
    with coproc.LocalCluster(servers=2) as cluster, coproc.connect(cluster.address) as client:
        model = make(client, name, shards=2)
        cluster.servers[1].kill()
        model.delete()
        cluster.servers[1].restart()
        assert client.models() == []
        make(client, name, shards=2).delete()


def test_a_failed_creation_leaves_nothing(name):
    with coproc.LocalCluster(servers=2, memory_bytes=1 << 26) as cluster, coproc.connect(cluster.address) as client:
        before = [server.memory_used_bytes for server in client.status().servers]
        cluster.servers[1].kill()
        with pytest.raises(coproc.Unreachable):
            make(client, name, shards=2)
        cluster.servers[1].restart()
        assert client.models() == []
        assert [server.memory_used_bytes for server in client.status().servers] == before
        make(client, name, shards=2).delete()


OWNER = """
import sys, coproc
cluster = coproc.LocalCluster(servers=2)
print(cluster.address, *(server.pid for server in cluster.servers), cluster._directory, flush=True)
sys.stdin.read()
"""


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # Orphans of the killed owner are children of the test run: reap them.
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def test_servers_end_with_their_owner_and_give_the_memory_back():
    process, said = child(OWNER)
    _, *pids, directory = said.split()
    process.kill()
    finish(process)
    until(lambda: all(gone(int(pid)) for pid in pids))
    local.remove_abandoned()
    assert not Path(directory).exists()


def test_what_a_machine_wide_kill_leaves_is_removed_by_the_next_cluster():
    process, said = child(OWNER)
    _, *pids, directory = said.split()
    for pid in pids:
        os.kill(int(pid), signal.SIGSTOP)  # or it would see its owner end
    process.kill()
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    finish(process)
    until(lambda: all(gone(int(pid)) for pid in pids))
    assert (Path(directory) / "server-0").exists()
    with coproc.LocalCluster():
        assert not Path(directory).exists()


def serve(directory, *options):
    process = subprocess.Popen(
        [sys.executable, "-m", "coproc.server.main", "--dir", str(directory), *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, process.stdout.readline().strip()


@pytest.fixture
def directory(tmp_path):
    import shutil

    path = Path(f"/dev/shm/coproc-test-serve-{os.getpid()}")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def stop(process):
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    return said


def test_serve_says_ready_keeps_its_directory_and_wipes_on_request(directory):
    process, said = serve(directory)
    assert said.startswith("ready coproc://127.0.0.1:")
    with coproc.connect(said.split()[1]) as client:
        make(client, "kept")
    stop(process)
    process, said = serve(directory)
    with coproc.connect(said.split()[1]) as client:
        assert client.models() == ["kept"]
    second, nothing = serve(directory)
    assert nothing == ""
    assert "in use" in second.communicate(timeout=30)[1] or second.returncode == 1
    stop(process)
    process, said = serve(directory, "--wipe")
    with coproc.connect(said.split()[1]) as client:
        assert client.models() == []
    stop(process)


def test_serve_refuses_what_cannot_work(directory):
    process, _ = serve(directory, "--host", "0.0.0.0")
    assert "give it a token" in process.communicate(timeout=30)[1]
    assert process.returncode == 1
    process, _ = serve(directory, "--memory-bytes", str(1 << 50))
    assert "shared memory" in process.communicate(timeout=30)[1]
    assert process.returncode == 1


def test_a_name_that_is_used_again_is_another_model(client, far, name):
    for face in (client, far):
        old = make(face, name)
        assert client.model(name) is client.model(name)
        with old.join(worker=0) as worker:
            worker.push({"w": np.ones(100)})
            client.model(name).delete()
            new = make(client, name)
            with pytest.raises(coproc.ModelNotFound):
                worker.push({"w": np.ones(100)})
            with pytest.raises(coproc.ModelNotFound, match=r"another one|deleted"):
                old.snapshot()
        with pytest.raises(coproc.ModelNotFound, match=r"another one|deleted"):
            old.delete()
        assert new.snapshot().version == 0
        new.delete()


def test_a_refused_creation_touches_no_other_model(cluster, client, name):
    [one, other] = cluster.servers
    model = make(client, name)
    with coproc.connect(f"coproc://{other.address},{one.address}") as turned, pytest.raises(coproc.ModelExists):
        make(turned, name, shards=2)
    assert model.snapshot().version == 0
    model.delete()


def test_a_far_lease_does_not_outlive_its_model(client, far, name):
    model = make(far, name)
    worker = model.join(worker=0)
    worker.push({"w": np.ones(100)})
    client.model(name).delete()
    with pytest.raises(coproc.ModelNotFound):
        worker.push({"w": np.ones(100)})
    worker.close()
    make(client, name).delete()


def test_what_a_leaving_worker_has_pushed_is_descended(name):
    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        model = make(client, name, consistency=coproc.Bsp(workers=2))
        with model.join(worker=0) as stays, model.join(worker=1) as leaves:
            leaves.push({"w": np.full(100, 10.0)})
            leaves.push({"w": np.full(100, 20.0)})
            leaves.leave()
            leaves.close()
            cluster.servers[0].kill()
            cluster.servers[0].restart()
            stays.push({"w": np.full(100, 2.0)})
            assert stays.pull().params["w"][0] == -6
            stays.push({"w": np.full(100, 4.0)})
            assert stays.pull().params["w"][0] == -18
            stays.push({"w": np.full(100, 1.0)})
            assert stays.pull().params["w"][0] == -19
        until(lambda: model.status().seats_count == 0)


def test_a_twin_that_holds_an_old_view_stops_nobody(client, name):
    model = make(client, name, consistency=coproc.Bsp(workers=2))
    with model.join(worker=0) as one, model.join(worker=1) as other, model.join(worker=1) as twin:
        view = twin.pull()
        for _ in range(10):
            one.push({"w": np.ones(100)})
            other.push({"w": np.ones(100)})
            assert one.pull(timeout_s=10).version == other.pull(timeout_s=10).version
        assert (view.flat == 0).all()
    model.delete()


@pytest.mark.parametrize("buffers", [2, 3, 4])
def test_views_never_take_the_last_buffer(client, name, buffers):
    model = make(client, name, buffers=buffers)
    with model.join(worker=0) as writer, model.join(worker=1) as first, model.join(worker=2) as second:
        views = [first.pull(), second.pull()]
        for version in range(1, 20):
            writer.push({"w": np.ones(100)})
            assert writer.pull(min_version=version, timeout_s=10).version == version
        assert all((view.flat == 0).all() for view in views)
    model.delete()


def test_a_server_that_was_down_drops_its_part_of_a_name_that_is_used_again(name):
    with coproc.LocalCluster(servers=2) as cluster, coproc.connect(cluster.address) as client:
        make(client, name, shards=2)
        cluster.servers[1].kill()
        client.model(name).delete()
        model = make(client, name, shards=1)
        cluster.servers[1].restart()
        assert model.snapshot().version == 0
        model.delete()
        make(client, name, shards=2).delete()


def test_a_stopping_server_waits_for_no_pull(name):
    import threading

    with coproc.LocalCluster() as cluster, coproc.connect(cluster.address, near=False) as far:
        model = make(far, name)
        worker = model.join(worker=0)
        begun, ended = threading.Event(), []

        def pull():
            begun.set()
            try:
                worker.pull(min_version=5, timeout_s=5)
            except coproc.CoprocError as error:
                ended.append(error)

        thread = threading.Thread(target=pull)
        thread.start()
        assert begun.wait(10)
        server = cluster.servers[0]
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait(timeout_s=4) == 0
        thread.join(30)
        worker.close()
        assert len(ended) == 1


def test_what_is_closed_says_so(cluster, name):
    client = coproc.connect(cluster.address)
    model = make(client, name)
    worker = model.join(worker=0)
    worker.close()
    for call in (worker.pull, worker.gradient, worker.skip, lambda: worker.push({"w": np.ones(100)})):
        with pytest.raises(coproc.LeaseExpired, match="was closed; join again"):
            call()
    model.delete()
    client.close()
    for call in (client.models, client.status, lambda: client.model(name), lambda: make(client, "x"), model.snapshot):
        with pytest.raises(coproc.ConfigError, match=r"client of .* was closed"):
            call()
