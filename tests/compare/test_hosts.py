"""Emulated hosts: what each has for itself, how their links are shaped, and that nothing of them is left."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from coproc import hosts
from coproc.compare.runner import run_child
from coproc.errors import ConfigError, ServerError
from coproc.hosts import links, play
from coproc.hosts.base import VARIABLE, Among, Host, moved
from coproc.hosts.namespaces import PREFIX, Hosts
from coproc.hosts.stage import require_own_memory
from coproc.hosts.trial import Arrangement, require
from coproc.modes.base import Costs
from coproc.training import TrainConfig
from coproc.trials.base import Point

WAIT_S = 20.0


@pytest.fixture(scope="module")
def able():
    """Skips where hosts cannot be emulated."""
    try:
        links.require_tools()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def three(able):
    with Hosts(3, "200mbit") as up:
        yield up.among


def run(host, script, **options):
    done = subprocess.run(
        [*host.prefix(), "sh", "-c", script], capture_output=True, text=True, timeout=WAIT_S, check=True, **options
    )
    return done.stdout


# ---- what needs no root


def test_rates_and_queues_of_a_link():
    [line] = links.shaped("eth0", 125e6)
    assert line == "qdisc add dev eth0 root tbf rate 1000000000bit burst 250000 limit 3375000"
    delayed, behind = links.shaped("eth0", 125e6, 0.0002)
    assert delayed == "qdisc add dev eth0 root handle 1: netem delay 200us limit 1025"
    assert behind.startswith("qdisc add dev eth0 parent 1:1 tbf rate 1000000000bit")
    [slow] = links.shaped("eth0", 1000)
    assert "burst 131072 " in slow  # a packet of the kernel has to fit


def test_what_cannot_be_is_refused_before_anything_starts():
    for count, link, delay in [(0, "1gbit", None), (65, "1gbit", None), (2, "fast", None), (2, "1gbit", "soon")]:
        with pytest.raises(ConfigError):
            Hosts(count, link, delay)


def test_without_the_programs_or_without_root_there_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="need ip, tc, unshare, nsenter: install iproute2"):
        links.require_tools.__wrapped__()
    for name in ("ip", "tc", "nsenter", "unshare"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho 'Operation not permitted' >&2\nexit 1\n")
        program.chmod(0o755)
    with pytest.raises(ConfigError, match=r"need root.*Operation not permitted"):
        links.require_tools.__wrapped__()


def test_hosts_travel_as_json_and_bytes_are_told_by_host(monkeypatch):
    among = Among((Host(0, "10.0.0.1", 1, "/dev/shm/a"), Host(1, "10.0.0.2", 2, "/dev/shm/b")), "/tmp/shared", ("so",))
    assert Among.from_json(among.to_json()) == among
    monkeypatch.setenv(VARIABLE, among.to_json())
    assert Among.around() == among
    monkeypatch.setenv(VARIABLE, "{}")
    with pytest.raises(ConfigError, match=VARIABLE):
        Among.around()
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match="runs on no emulated host"):
        Among.around()
    before, after = [{"in_bytes": 1, "out_bytes": 2}] * 2, [{"in_bytes": 5, "out_bytes": 2}] * 2
    assert moved(before, after) == {"0": {"in_bytes": 4, "out_bytes": 0}, "1": {"in_bytes": 4, "out_bytes": 0}}


POINT = Point("coproc", hosts=2, link="1gbit", servers=2)


def test_what_a_run_is_started_by():
    words = hosts.command(Point("coproc", hosts=2, link="1gbit", delay="1ms"))
    assert words[1:] == ["-m", "coproc.hosts.play", "2", "1gbit", "1ms", "--"]
    with pytest.raises(ConfigError, match="--link"):
        hosts.command(Point("coproc", hosts=2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"link": None}, "a link each"),
        ({"link": "1"}, "1gbit"),
        ({"delay": "x"}, "0.2ms"),
        ({"servers": 3}, "1 to 2 servers"),
        ({"hosts": None}, "say how many"),
        ({"contestant": "broadcast", "servers": 1}, "inline or spark only"),
        ({"slow_host": 4.0}, "emulate_compute"),
    ],
)
def test_points_that_cannot_be_on_hosts_are_refused(changes, said):
    require(POINT)
    with pytest.raises(ConfigError, match=said):
        require(Point(**{**POINT.to_json_values(), **changes}))


def test_a_run_whose_bytes_did_not_go_by_the_links_is_refused():
    with Arrangement(Point("coproc", pool="inline"), TrainConfig(pool="inline")) as arranged:
        costs = Costs(worker_in_bytes=1000, worker_out_bytes=1000, local_bytes=400)
        arranged.check(costs)
        arranged.link = {"0": {"in_bytes": 0, "out_bytes": 300}, "1": {"in_bytes": 0, "out_bytes": 310}}
        arranged.check(costs)
        arranged.link["1"]["out_bytes"] = 200
        with pytest.raises(ServerError, match="by shared memory"):
            arranged.check(costs)


# ---- hosts


def test_each_host_has_its_own_network_memory_and_folder(three):
    seen = set()
    for host in three.hosts:
        run(host, "echo mine > /dev/shm/file; echo mine > $TMPDIR/file")
        listed = run(host, "ls /dev/shm /proc/self/ns -l; cat /proc/self/net/dev")
        assert "eth0" in listed
        seen.add(tuple(line for line in listed.splitlines() if "net:[" in line or "mnt:[" in line))
        assert run(host, "pwd").strip() == os.getcwd()
        run(host, "rm /dev/shm/file")
        assert "file" not in run(host, "ls /dev/shm")
    assert len(seen) == 3
    assert not Path("/dev/shm/file").exists()
    require_own_memory(three)
    with pytest.raises(ServerError, match="sees the shared memory"):
        require_own_memory(Among((three.hosts[0], three.hosts[0]), three.shared, ()))
    run(three.hosts[0], "rm -f /dev/shm/seen-*")


RECEIVE = """
import socket, sys
with socket.create_server((sys.argv[1], 5000)) as listening:
    print("up", flush=True)
    stream, _ = listening.accept()
    got = 0
    while part := stream.recv(1 << 20):
        got += len(part)
    stream.sendall(b".")
    stream.close()
print(got)
"""
SEND = """
import socket, sys, time
stream = socket.create_connection((sys.argv[1], 5000))
began = time.monotonic()
stream.sendall(bytes(int(sys.argv[2])))
stream.shutdown(socket.SHUT_WR)
stream.recv(1)
print(time.monotonic() - began)
"""


def test_a_link_carries_its_rate_and_counts_its_bytes(three):
    size, (one, other, third) = 10_000_000, three.hosts
    before = three.counters()
    command = [*other.prefix(), sys.executable, "-c", RECEIVE, other.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiving:
        assert receiving.stdout.readline() == "up\n"
        taken_s = float(
            subprocess.run(
                [*one.prefix(), sys.executable, "-c", SEND, other.address, str(size)],
                capture_output=True,
                text=True,
                check=True,
                timeout=WAIT_S,
            ).stdout
        )
        assert int(receiving.stdout.read()) == size
    # What the shaper lets through at once is not slowed down.
    assert taken_s > 0.9 * (size - 4e5) / 25e6
    links_now = moved(before, three.counters())
    assert size < links_now[str(one.number)]["out_bytes"] < 1.1 * size
    assert size < links_now[str(other.number)]["in_bytes"] < 1.1 * size
    assert links_now[str(third.number)]["in_bytes"] < 1e5


def test_a_delay_is_there_or_the_notes_say_that_it_is_not(able):
    with Hosts(1, "1gbit", "3ms") as up:
        told = " ".join(up.among.notes)
        assert ("3ms from one host to another" in told) == links.has_netem()
        assert ("no netem" in told) != links.has_netem()


def of_this_machine(pid=None):
    """What hosts of a process, this one by default, could leave here: links, mounts, folders."""
    shared = sorted(path.name for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}{pid or os.getpid()}-*"))
    return sorted(os.listdir("/sys/class/net")), Path("/proc/self/mounts").read_text(), shared


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids):
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([handle], [], [], WAIT_S)[0], pid
        finally:
            os.close(handle)


def test_nothing_is_left_at_the_end_or_after_a_failure(able, monkeypatch):
    before = of_this_machine()
    with Hosts(2, "1gbit") as up:
        holders = [host.holder for host in up.among.hosts]
        assert all(map(is_alive, holders))
        assert of_this_machine()[2]
        assert of_this_machine()[:2] == before[:2]
    assert not any(map(is_alive, holders))
    assert of_this_machine() == before
    with pytest.raises(ServerError, match="is gone"):
        up.among.counters()
    monkeypatch.setattr("coproc.hosts.namespaces.shaped", lambda *given: ["qdisc add dev nowhere root tbf"])
    with pytest.raises(ServerError, match="tc refuses"):
        Hosts(2, "1gbit")
    assert of_this_machine() == before


PLAYED = """
import os, signal
print(os.environ["COPROC_HOSTS"], flush=True)
print(os.getpid(), flush=True)
signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_runs_on_when_what_plays_the_hosts_is_killed(able, number):
    before = of_this_machine()
    command = [sys.executable, "-m", "coproc.hosts.play", "2", "1gbit", "--", sys.executable, "-c", PLAYED]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as playing:
        among = Among.from_json(playing.stdout.readline())
        pids = [int(playing.stdout.readline()), *(host.holder for host in among.hosts)]
        assert all(map(is_alive, pids))
        if number == signal.SIGINT:
            os.killpg(playing.pid, number)
        else:
            playing.send_signal(number)
        playing.wait(WAIT_S)
    wait_until_gone(pids)
    if number == signal.SIGKILL:
        with Hosts(1, "1gbit"):  # the next one removes what was left on disk
            pass
    assert of_this_machine(playing.pid) == (*before[:2], [])


def test_a_played_command_has_its_streams_and_its_status(able, capfd):
    assert play.main(["1", "1gbit", "--", "sh", "-c", "echo out; exit 3"]) == 3
    assert capfd.readouterr().out == "out\n"
    assert play.main(["1", "1gbit", "--", "sh", "-c", "kill -9 $$"]) == 128 + 9
    assert play.main(["1", "what", "--", "true"]) == 1
    assert "1gbit" in capfd.readouterr().err
    for wrong in ([], ["1", "1gbit"], ["x", "1gbit", "--", "true"], ["1", "1gbit", "--"]):
        assert play.main(wrong) == 2


# ---- trainings


TRAIN = """
import json, sys
import numpy as np
import pyarrow as pa
from coproc.hosts.stage import Stage
from coproc.training import TrainConfig, train
from coproc.training.output import checksum

rng = np.random.default_rng(7)
labels = np.arange(96) % 3
features = (rng.normal(size=(96, 40)) + np.eye(3, 40)[labels]).astype(np.float32)
table = pa.table({"features": pa.array(list(features), pa.list_(pa.float32())), "label": labels})
settings = {"hidden": (512, 64), "epochs": 1, "batch_size": 8, "workers": 3}


def flat(result):
    return checksum(np.concatenate([each.reshape(-1) for each in result.params.values()]))


told = {"alone": flat(train(TrainConfig(**settings, pool="inline"), table))}
with Stage(3, 3, memory_bytes=1 << 28) as stage:
    given = {"address": stage.address, "token": stage.token, "pool": "processes"}
    for mode, own in (("coproc", {"parts": True}), ("allreduce", {})):
        stage.pool.counted = None
        links, costs = [], []
        config = TrainConfig(mode=mode, **settings, **given, **own)
        result = train(
            config, table, pool=stage.pool, on_group=lambda group: links.append(stage.link()), on_end=costs.append
        )
        size = result.backend.layout.size
        told[mode] = {"flat": flat(result), "link": links[0], "costs": vars(costs[0]), "size": size}
print(json.dumps(told))
"""


def test_trainings_on_hosts_give_the_bits_of_one_without_and_move_what_they_must(three):
    done = subprocess.run(
        [*three.hosts[0].prefix(), sys.executable, "-c", TRAIN],
        env={**os.environ, VARIABLE: three.to_json()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for mode in ("coproc", "allreduce"):
        assert told[mode]["flat"] == told["alone"]
    found, steps = told["coproc"], 4
    least = 2 * 4 * found["size"] * 2 / 3 * steps
    for each in found["link"].values():
        for way in ("in_bytes", "out_bytes"):
            # Headers, rows of two partitions, and the driver's last look at the model.
            assert 0.99 * least < each[way] < 1.1 * least + 4 * found["size"]
    costs = found["costs"]
    assert costs["local_bytes"] == pytest.approx((costs["worker_in_bytes"] + costs["worker_out_bytes"]) / 3, rel=0.01)


def test_a_run_of_a_comparison_on_hosts(able, tmp_path):
    point = Point(
        "coproc", "digits", workers=2, servers=2, hosts=2, link="500mbit", delay="1ms", rows=64, batch_size=8,
        hidden=(1024, 512), emulate_compute=True, slow_host=4.0,
    )  # fmt: skip
    row = run_child(point, 0, tmp_path, 120.0)
    assert row["status"] == "ok", row["error"]
    assert set(row["link"]) == {"0", "1"}
    told = " ".join(row["notes"])
    for words in ("2 hosts are emulated", "in parts", "Compute is emulated", "first host wait 4 times as long"):
        assert words in told
    slow_s, other_s = (min(each[4] for each in row["samples"] if each[0] == worker) for worker in range(2))
    assert slow_s > 3 * other_s
    json.dumps(row)
