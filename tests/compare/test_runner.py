"""All runs of a comparison: their order, their ends, and what stays of them.

Most of them run a program of a few lines in the place of a contestant: it tells what its point's label says.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coproc.compare.grid import Grid
from coproc.compare.runner import compare, order, run_child
from coproc.errors import ConfigError, CoprocError
from coproc.pools.base import python_path
from coproc.trials.base import Point
from coproc.trials.memory import processors
from coproc.trials.record import RESULTS, SUMMARY, Results, read, row_of

TIMEOUT_S = 60
NOWHERE = Path("/nowhere")

PLAYER = """
import json, os, subprocess, sys, time
request = json.loads(sys.stdin.readline())
point, words = request["point"], request["point"]["label"].split()
def tell(name, value):
    print(json.dumps({name: value}), flush=True)
def sleeper(**more):
    # Should nobody kill it, it ends long after the test has looked.
    child = subprocess.Popen([sys.executable, "-S", "-E", "-c", "import time; time.sleep(30)"], **more)
    tell("progress", {"phase": "waiting", "epoch": 0, "steps": 0, "loss": None, "moment_s": 0, "pid": child.pid})
    return child
what = words[0]
if what == "once" and os.path.exists(words[1]):
    what = "ok"
if what == "ok":
    now = time.monotonic()
    row = {"status": "ok", "error": None}
    row |= {"groups": [[0, 0, now - 0.1, now]], "samples": [[0, 0, now - 0.1, 0, 0.1, 0, 8, 1.0, 0]], "epochs": []}
    row |= {"memory": {"worker": 12345}, "costs": {}, "checksum": "abc", "cpu_idle": None, "began": ""}
    row |= {"wall_s": 1.0, "startup_s": 0.5, "parameters": 1, "commit": None}
    tell("row", row)
elif what == "once":
    open(words[1], "w").close()
    tell("error", "the first time it fails")
    sys.exit(1)
elif what == "die":
    print("its last words", file=sys.stderr)
    os.kill(os.getpid(), int(words[1]))
elif what == "exit":
    sys.exit(int(words[1]))
elif what == "hang":
    sleeper(start_new_session=True)
    sleeper().wait()
elif what == "leave":
    sleeper(start_new_session=True)
    tell("error", "it leaves somebody behind")
    os._exit(1)
"""


def player(label, **settings):
    return Point("coproc", workload="digits", pool="inline", label=label, **settings)


@pytest.fixture
def command(tmp_path):
    path = tmp_path / "player.py"
    path.write_text(PLAYER)
    return sys.executable, "-S", "-E", str(path)


def told(events):
    return [(event.kind, event.point.label, event.repeat) for event in events if event.kind != "progress"]


def gone(pid):
    """It ends, or has ended. A process that is killed is there until its memory is given back."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_contestants_take_turns():
    a, b, c = (player(name) for name in "abc")
    assert order([a, b, c], 2) == [(a, 0), (b, 0), (c, 0), (b, 1), (c, 1), (a, 1)]
    assert order([a], 3) == [(a, 0), (a, 1), (a, 2)]


def test_each_run_is_a_row_that_is_written_before_the_next_begins(tmp_path, command):
    output, events, lines = tmp_path / "out", [], []

    def on_event(event):
        events.append(event)
        if event.kind == "began":
            lines.append(len(read(output / RESULTS)))

    grid = Grid((player("ok 1"), player("exit 3"), player("ok 2")), "some", repeats=2)
    done = compare(grid, {}, NOWHERE, output, on_event=on_event, command=command)
    assert not done.interrupted
    assert lines == [0, 1, 2, 3, 4, 5]
    names = ["ok 1", "exit 3", "ok 2", "exit 3", "ok 2", "ok 1"]
    assert [row["point"]["label"] for row in read(output / RESULTS)] == names
    assert told(events)[:4] == [
        ("began", "ok 1", 0),
        ("ended", "ok 1", 0),
        ("began", "exit 3", 0),
        ("ended", "exit 3", 0),
    ]
    assert [row["status"] for row in done.rows] == ["ok", "failed", "ok", "failed", "ok", "ok"]
    assert "ended with exit code 3, without a result" in done.rows[1]["error"]
    assert (output / SUMMARY).read_text().count("\n") >= 7
    row = done.rows[0]
    assert row["memory"]["worker"] == 12345
    assert row["memory"]["driver"] > 0
    assert row["host"]["cores"] >= 1
    assert row["began"].startswith("20")


@pytest.mark.parametrize("label", [f"die {signal.SIGKILL.value}", f"die {signal.SIGSEGV.value}"])
def test_a_death_is_a_row_with_the_last_words(command, label):
    row = run_child(player(label), 0, NOWHERE, TIMEOUT_S, command=command)
    assert row["status"] == "failed"
    assert f"killed by {signal.Signals(int(label.split()[1])).name}" in row["error"]
    assert row["error"].endswith(": its last words")
    assert (row["samples"], row["checksum"]) == ([], "")


def test_a_run_that_hangs_is_killed_with_all_that_it_started(command):
    pids = []
    row = run_child(player("hang"), 0, NOWHERE, 1.5, lambda event: pids.append(event.progress["pid"]), command=command)
    assert row["status"] == "failed"
    assert "not through after 1.5 s" in row["error"]
    assert len(pids) == 2
    assert all(map(gone, pids))


def test_what_a_run_leaves_behind_is_ended(command):
    pids = []
    row = run_child(
        player("leave"), 0, NOWHERE, TIMEOUT_S, lambda event: pids.append(event.progress["pid"]), command=command
    )
    assert row["error"] == "it leaves somebody behind"
    assert len(pids) == 1
    assert all(map(gone, pids))


def test_ctrl_c_keeps_what_is_done_and_resume_goes_on(tmp_path, command):
    output, flag = tmp_path / "out", tmp_path / "flag"
    # The second one hangs at first, and is through at once when it is run again.
    player_that_can = PLAYER.replace("what = words[0]", f"what = 'ok' if os.path.exists({str(flag)!r}) else words[0]")
    Path(command[-1]).write_text(player_that_can)
    grid = Grid((player("ok"), player("hang"), player("ok last")), "some", repeats=1)
    hanging, pids = grid.points[1], []

    def interrupt(event):
        if event.kind == "progress" and event.point == hanging:
            pids.append(event.progress["pid"])
            if len(pids) == 2:
                signal.raise_signal(signal.SIGINT)

    done = compare(grid, {}, NOWHERE, output, on_event=interrupt, command=command)
    assert done.interrupted
    assert [row["status"] for row in done.rows] == ["ok", "interrupted"]
    assert all(map(gone, pids))
    assert (output / SUMMARY).exists()
    flag.touch()
    events = []
    done = compare(grid, {}, NOWHERE, output, resume=True, on_event=events.append, command=command)
    assert not done.interrupted
    assert told(events) == [
        ("kept", "ok", 0),
        ("began", "hang", 0),
        ("ended", "hang", 0),
        ("began", "ok last", 0),
        ("ended", "ok last", 0),
    ]
    assert events[0].row["checksum"] == "abc"
    assert [row["status"] for row in done.rows] == ["ok", "ok", "ok"]


def test_resume_runs_again_what_had_failed_and_more_repeats(tmp_path, command):
    grid = Grid((player(f"once {tmp_path / 'flag'}"), player("ok")), "some", repeats=1)
    assert [row["status"] for row in compare(grid, {}, NOWHERE, tmp_path / "out", command=command).rows] == [
        "failed",
        "ok",
    ]
    more = Grid(grid.points, "some", repeats=2)
    events = []
    done = compare(more, {}, NOWHERE, tmp_path / "out", resume=True, on_event=events.append, command=command)
    assert [(row["status"], row["repeat"]) for row in done.rows] == [("ok", 0), ("ok", 0), ("ok", 1), ("ok", 1)]
    assert [event.kind for event in events if event.kind != "progress"].count("began") == 3


def test_results_are_not_mixed_with_others(tmp_path, command):
    output = tmp_path / "out"
    compare(Grid((player("ok"),), "some", repeats=1), {}, NOWHERE, output, command=command)
    with pytest.raises(ConfigError, match=r"there are results in .* already: go on with them by --resume"):
        compare(Grid((player("ok"),), "some"), {}, NOWHERE, output, command=command)
    with pytest.raises(ConfigError, match=r"results of points that this comparison does not have \(ok\): resume it"):
        compare(Grid((player("ok 2"),), "some"), {}, NOWHERE, output, resume=True, command=command)
    assert len(read(output / RESULTS)) == 1


def test_what_is_not_installed_is_a_row_and_not_run(tmp_path, command):
    point = player("exit 1")
    events = []
    skipped = {point.id: "it needs more: pip install 'coproc[more]'"}
    done = compare(
        Grid((point,), "some", repeats=1), skipped, NOWHERE, tmp_path, on_event=events.append, command=command
    )
    assert [(row["status"], row["error"]) for row in done.rows] == [
        ("skipped", "it needs more: pip install 'coproc[more]'")
    ]
    assert told(events) == [("ended", "exit 1", 0)]
    grid = Grid((point,), "some", repeats=1)
    assert compare(grid, skipped, NOWHERE, tmp_path, resume=True, command=command).rows == done.rows
    # Once it is installed, it is run.
    assert [row["status"] for row in compare(grid, {}, NOWHERE, tmp_path, resume=True, command=command).rows] == [
        "failed"
    ]


def test_a_full_disk_ends_it_with_a_sentence(tmp_path, command, monkeypatch):
    def add(self, row):
        raise CoprocError("no room")

    with Results(tmp_path) as results:
        results.add(row_of(player("ok"), 0))
    monkeypatch.setattr(Results, "add", add)
    with pytest.raises(CoprocError, match="no room"):
        compare(
            Grid((player("ok"), player("ok 2")), "some", repeats=1), {}, NOWHERE, tmp_path, resume=True, command=command
        )
    assert len(read(tmp_path / RESULTS)) == 1


def test_idle_is_told_of_the_time_of_training(command, monkeypatch):
    row = run_child(player("ok"), 0, NOWHERE, TIMEOUT_S, command=command)
    assert row["cpu_idle"] is None or 0 <= row["cpu_idle"] <= 1
    assert processors()[1] > 0


def test_a_real_run_ends_when_whoever_wanted_it_is_killed(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom coproc.compare.runner import run_child\n"
        "from coproc.trials.base import Point\n"
        "point = Point('coproc', workload='digits', pool='inline', epochs=10**6)\n"
        "run_child(point, 0, Path('.'), 60, lambda event: print(event.progress['epoch'], flush=True))\n"
    )
    environment = {**os.environ, "PYTHONPATH": python_path()}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        while process.stdout.readline() != b"1\n":
            assert process.poll() is None
        process.kill()
    # The leak check of the suite waits for the end of all that it had started.
