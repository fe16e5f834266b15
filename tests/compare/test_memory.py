"""Who takes how much memory, and what the processors leave idle."""

import os
import subprocess
import sys
import time

import pytest

from coproc.trials.memory import Idle, Watching, idle_share, marked, processors, pss_bytes, role_of, tree

TIMEOUT_S = 30


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/usr/bin/python -m coproc.server.main --dir x", "server"),
        ("/usr/bin/python -m coproc.pools.processes", "worker"),
        ("/usr/bin/python -m pyspark.daemon", "worker"),
        ("/usr/lib/jvm/bin/java -cp x org.apache.spark.deploy.SparkSubmit pyspark-shell", "jvm"),
        ("sleep 10", "other"),
        ("", "other"),
    ],
)
def test_roles_by_command_line(command, role):
    assert role_of(command) == role


@pytest.fixture
def large():
    """A process with 64 MB, with a child that has nothing; it ends with its standard input."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen(['cat'], stdin=subprocess.PIPE)\n"
        "kept = bytearray(64 << 20)\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
        "child.stdin.close()\n"
        "child.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())


def test_a_process_and_its_descendants(large):
    process, child = large
    assert {each.pid for each in tree(process.pid)} == {process.pid, child}
    assert child in {each.pid for each in tree(os.getpid())}


def test_who_is_marked_is_found_when_its_parent_has_ended():
    mark = f"mark-{os.getpid()}"
    code = "import subprocess, sys; print(subprocess.Popen(['cat'], stdin=sys.stdin, start_new_session=True).pid)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "MARK": mark}
    ) as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())
        process.wait(TIMEOUT_S)
        assert {each.pid for each in marked("MARK", mark)} == {orphan}
        assert marked("MARK", "other") == set()
        assert process.stdin is not None
        process.stdin.close()
        while marked("MARK", mark):
            time.sleep(0.01)


def test_memory_is_that_of_the_process(large):
    process, _ = large
    assert 64 << 20 <= pss_bytes(process.pid) < 256 << 20
    assert pss_bytes(1 << 30) == 0


def test_what_two_have_in_common_is_counted_once():
    code = (
        "import os, sys\n"
        "kept = bytearray(64 << 20)\n"
        "other = os.fork()\n"
        "if other:\n"
        "    print(other, flush=True)\n"
        "os.read(0, 1)\n"
        "if other:\n"
        "    os.waitpid(other, 0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        other = int(process.stdout.readline())
        assert 64 << 20 <= pss_bytes(process.pid) + pss_bytes(other) < 100 << 20


def test_peaks_by_role(large):
    process, _ = large
    with Watching(process.pid) as watching:
        deadline = time.monotonic() + TIMEOUT_S
        while "other" not in watching.peaks and time.monotonic() < deadline:
            time.sleep(0.01)
    assert 64 << 20 <= watching.peaks["driver"] < 256 << 20
    assert 0 < watching.peaks["other"] < 64 << 20
    assert watching.idle[0].total > 0


def test_idle_share_of_a_span():
    samples = [Idle(0.0, 0, 0), Idle(1.0, 10, 100), Idle(2.0, 60, 200), Idle(3.0, 60, 300)]
    assert idle_share(samples, 1.0, 2.0) == 0.5
    assert idle_share(samples, 1.2, 1.9) == 0.5
    assert idle_share(samples, 0.0, 3.0) == 0.2
    assert idle_share(samples, -5.0, 99.0) == 0.2
    assert idle_share(samples[:1], 0.0, 1.0) is None
    assert idle_share([], 0.0, 1.0) is None


def test_the_clocks_of_the_processors_go_on():
    idle, total = processors()
    assert 0 < idle <= total
