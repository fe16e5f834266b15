"""The pool of processes: answers, sentences, deaths, stops, and that nothing outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from coproc.errors import ConfigError, DataError, ServerError
from coproc.exchange import ExchangeSpec
from coproc.pools.base import failure_in, failure_text, python_path, require_slots
from coproc.pools.inline import InlinePool
from coproc.pools.processes import ProcessPool
from coproc.tasks import DataSpec, WorkerReport, WorkerTask
from storage_tier.errors import Unreachable


def task(worker=0, path="/runs/r/data/00000", address="coproc://127.0.0.1:1"):
    return WorkerTask(
        run="r",
        worker=worker,
        exchange=ExchangeSpec("coproc", {"address": address, "token": None, "model": "m"}),
        backend={"backend": "mlp", "inputs": 3, "hidden": [], "outputs": 2},
        data=DataSpec(address, path),
        pushes_per_epoch=1,
        until_step=1,
        end_step=1,
        timeout_s=0.5,
    )


def report(worker):
    return WorkerReport(worker, 0, 1, (), False, 0.0)


@pytest.fixture
def pool():
    pool = ProcessPool(2)
    yield pool
    pool.close()


def test_a_failure_in_a_child_is_a_sentence_here(pool):
    with pytest.raises(Exception, match=r"127\.0\.0\.1:1") as caught:
        pool.run([task()])
    assert type(caught.value).__name__ == "Unreachable"


def test_children_are_kept_from_task_to_task(pool):
    for _ in range(2):
        with pytest.raises(Exception, match=r"127\.0\.0\.1:1"):
            pool.run([task()])
    assert pool._idle[0].qsize() == 1


ANSWER = (
    "import json,os,signal,sys\n"
    "for line in sys.stdin:\n"
    "    if line.startswith('stop'): continue\n"
    "    task = json.loads(line)\n"
)


@pytest.fixture
def puppets():
    made = []

    def make(program):
        """A pool whose children run this program instead of the worker loop."""
        made.append(ProcessPool(2, [sys.executable, "-c", program]))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def test_a_child_that_dies_is_started_again(puppets, tmp_path):
    pool = puppets(
        f"{ANSWER}    deaths = {str(tmp_path / 'deaths')!r}\n"
        "    count = os.path.getsize(deaths) if os.path.exists(deaths) else 0\n"
        "    if count < 3:\n"
        "        open(deaths, 'a').write('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"    print({report(7).to_json()!r}, flush=True)\n"
    )
    assert pool.run([task(7)]) == [report(7)]
    assert (tmp_path / "deaths").read_text() == "xxx"


def test_a_child_that_always_dies_is_named(puppets):
    pool = puppets(ANSWER + "    sys.stderr.write('the last words'); sys.stderr.flush(); os.kill(os.getpid(), 9)\n")
    with pytest.raises(ServerError, match=r"worker 3 died 4 times \(SIGKILL: the last words\)"):
        pool.run([task(3)])


def test_reports_come_in_the_order_of_the_tasks(puppets):
    pool = puppets(
        ANSWER + "    print(json.dumps({'worker': task['worker'], 'first_step': 0, 'next_step': 1, 'epochs': [],"
        " 'stopped': False, 'wall_s': 0.0}), flush=True)\n"
    )
    assert [each.worker for each in pool.run([task(worker) for worker in (5, 1, 4, 2)])] == [5, 1, 4, 2]


STOPPABLE = (
    "import json,sys\n"
    "task = json.loads(sys.stdin.readline())\n"
    "if task['worker'] == 9:\n"
    "    wrong = json.dumps({'kind': 'DataError', 'message': 'nine is wrong'})\n"
    "    print('coproc-failure ' + wrong, flush=True)\n"
    "assert sys.stdin.readline() == 'stop 1\\n'\n"
    "print(json.dumps({'worker': task['worker'], 'first_step': 0, 'next_step': 0, 'epochs': [],"
    " 'stopped': True, 'wall_s': 0.0}), flush=True)\n"
    "sys.stdin.readline()\n"
)


def test_a_stop_reaches_every_child(puppets):
    pool = puppets(STOPPABLE)
    reports = pool.run([task(1), task(2)], stop=lambda: len(pool.pids) == 2)
    assert [(each.worker, each.stopped) for each in reports] == [(1, True), (2, True)]


def test_one_failure_stops_the_others(puppets):
    pool = puppets(STOPPABLE)
    with pytest.raises(DataError, match="nine is wrong"):
        pool.run([task(1), task(9)])
    assert pool.pids == []


def test_children_end_with_their_parent_however_it_ends(tmp_path):
    program = (
        "import os, sys\n"
        "from coproc.pools.processes import Child\n"
        "child = Child()\n"
        "print(child.process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": python_path()},
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while _alive(pid):
        assert time.monotonic() < deadline, "the child outlived its parent"
        threading.Event().wait(0.01)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_has_one_thread_for_its_matrix_products(puppets):
    pool = puppets(
        "import json,os,sys\n"
        "sys.stdin.readline()\n"
        "threads = int(os.environ['OMP_NUM_THREADS']) + int(os.environ['OPENBLAS_NUM_THREADS'])\n"
        "print(json.dumps({'worker': threads, 'first_step': 0, 'next_step': 1, 'epochs': [],"
        " 'stopped': False, 'wall_s': 0.0}), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    assert pool.run([task()])[0].worker == 2


def test_impossible_plans_are_refused_with_the_numbers(pool):
    require_slots(pool, 2)
    with pytest.raises(ConfigError, match=r"all 3 workers .* 2 slots.* --workers 2"):
        require_slots(pool, 3)


def test_failures_travel_as_one_line():
    error = failure_in("wall of text\n" + failure_text(DataError('row 3: "x"\n{}')) + "\n\tat java")
    assert type(error) is DataError
    assert str(error) == 'row 3: "x"\n{}'
    assert type(failure_in(failure_text(Unreachable("nobody")))).__name__ == "Unreachable"
    assert str(failure_in(failure_text(KeyError("k")))) == "KeyError: 'k'"
    assert failure_in("nothing") is None
    assert type(failure_in('coproc-failure {"kind": "annotations", "message": "m"}')) is ServerError
    assert failure_in("coproc-failure {broken}") is None


def test_inline_runs_all_tasks_at_once_and_raises_the_first_failure():
    meeting = threading.Barrier(2)

    def meet(each, stop):
        meeting.wait(10)
        if each.worker == 1:
            raise DataError("one is wrong")
        while not stop():
            threading.Event().wait(0.01)
        return replace(report(each.worker), stopped=True)

    pool = InlinePool(run_task=meet)
    with pytest.raises(DataError, match="one is wrong"):
        pool.run([task(0), task(1)])


def test_json_of_a_task_is_small():
    assert len(json.dumps(task().to_json())) < 1000


def test_a_worker_is_always_at_its_place():
    pool = ProcessPool(3, places=(("env", "PLACE=0"), ("env", "PLACE=1")))
    try:
        for _ in range(2):
            assert len(pool.call("coproc.pools.base:python_path", [{}] * 3)) == 3
        assert [idle.qsize() for idle in pool._idle] == [2, 1]
        for place, idle in enumerate(pool._idle):
            child = idle.get_nowait()
            assert child.process.args[:2] == ("env", f"PLACE={place}")
            idle.put(child)
    finally:
        pool.close()
