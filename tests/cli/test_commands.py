"""The commands as a user runs them: processes with their output, exit codes, and nothing but sentences."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

import coproc
from coproc.cli import main
from coproc.cli.base import PROGRAM, parse_size, size
from coproc.cli.serve import file_system, serve
from coproc.pools.base import python_path
from coproc.pools.session import require_java

TIMEOUT_S = 90


def environment(**changes):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COPROC_")}
    return {**plain, "PYTHONPATH": python_path(), "COLUMNS": "200", **changes}


def run(*arguments, cwd=None, **changes):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "coproc", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=cwd,
        env=environment(**changes),
        check=False,
    )


@pytest.fixture
def run_here(capsys, monkeypatch):
    """`run` within this process, for what ends before anything is started: an interpreter's start takes a second."""
    monkeypatch.setenv("COLUMNS", "200")

    def run_here(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments)])
        return subprocess.CompletedProcess(arguments, ended.value.code, *capsys.readouterr())

    return run_here


def fails(done, words, code=1):
    """It failed with one sentence on standard error, and no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(words, done.stderr), done.stderr
    last = done.stderr.strip().splitlines()[-1]
    if code == 1:
        assert last.startswith("error: ")


@pytest.fixture
def rows(tmp_path):
    """A Parquet file with two classes that are easy to tell apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    values = (rng.normal(size=(120, 3)) + 3 * labels[:, None]).astype(np.float32)
    columns = {f"x{i}": values[:, i] for i in range(3)}
    features = pa.array(list(values), pa.list_(pa.float32()))
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({**columns, "features": features, "label": labels}), path)
    return path


def test_says_its_version():
    assert run("--version").stdout == f"coproc {coproc.__version__}\n"


def test_help_names_every_command():
    words = run("--help").stdout
    for command in ("train", "serve", "status", "bench", "--debug", f"Usage: {PROGRAM} "):
        assert command in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--epochs", "many"], "--epochs"),
        (["train", "--hidden", "wide"], "--hidden is a list of sizes"),
        (["train", "--scale", "big"], "--scale is a number or auto"),
        (["train", "--validation", "x.parquet"], "belong to DATA"),
        (["train", "--loss", "hinge"], "--loss must be one of"),
        (["train", "--optimizer", "magic"], "--optimizer must be one of"),
        (["train", "--activation", "magic"], "--activation must be one of"),
        (["train", "--dropout", "1"], "--dropout is the share of"),
        (["train", "--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["train", "--hidden", "8,0"], "--hidden sizes must be at least 1, not 0"),
        (["train", "--bound", "3"], "--bound 3 goes with --consistency ssp"),
        (["train", "--n-fetch", "2"], "--n-fetch must equal --n-send, not 2 and 1"),
        (["train", "--compression", "gzip"], "no compression is called 'gzip'; there are none, bf16, fp16, int8, topk"),
        (["train", "--compression", "topk fraction=2"], "fraction of TopK must be a number greater than 0 and at most"),
        (["train", "--compression", "topk 0.1"], "a setting of --compression looks like NAME=VALUE, not '0.1'"),
        (["train", "--compression", "bf16 bits=3"], "compression bf16 has no setting bits; it has none"),
        (["train", "--address", "http://127.0.0.1"], "coproc://HOST:PORT"),
        (["status", "127.0.0.1:1"], "coproc://HOST:PORT"),
        (["serve", "--host", "0.0.0.0"], "give it a token"),
        (["bench", "nonsense"], "no measurement is called nonsense"),
        (["serve", "--memory", "lots"], "a size looks like 512m"),
    ],
)
def test_wrong_command_lines_exit_with_2(run_here, arguments, words):
    fails(run_here(*arguments), words, code=2)


def test_an_unknown_command_ends_the_process_with_2():
    fails(run("trian"), "trian", code=2)


def test_trains_the_digits_without_java(tmp_path):
    done = run("train", "--pool", "processes", "--epochs", "8", cwd=tmp_path, PATH="/nowhere")
    assert done.returncode == 0, done.stderr
    found = re.search(r"([\d.]+) % of the validation rows are right", done.stdout)
    assert float(found.group(1)) >= 90
    assert f"  {PROGRAM} serve\n" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if not line.startswith("Saved ")) < 80
    path = re.search(r"Saved (\S+model\.safetensors)", done.stdout).group(1)
    assert load_file(tmp_path / path)["layers.0.weight"].shape == (64, 128)
    assert len(re.findall(r"^epoch ", done.stderr, re.MULTILINE)) == 8
    assert "examples/s" in done.stderr
    assert "staleness" in done.stderr


def test_trains_on_columns_of_a_file(rows, tmp_path):
    done = run(
        *("train", rows, "--validation", rows, "--features", "x0,x1", "--features", "x2", "--hidden", "none"),
        *("--pool", "processes", "--epochs", 10, "--learning-rate", 0.05, "--output", tmp_path / "out"),
        *("--consistency", "asp", "--n-send", 2, "--group-size", 3, "--servers", 2),
        *("--batch-size", 4, "--compression", "topk fraction=0.05"),
    )
    assert done.returncode == 0, done.stderr
    assert load_file(tmp_path / "out" / "model.safetensors")["layers.0.weight"].shape == (3, 2)
    history = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    assert history[-1]["accuracy"] > 0.9
    run_facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run_facts["config"]["features"] == ["x0", "x1", "x2"]
    assert run_facts["config"]["compression"] == {"name": "topk", "fraction": 0.05}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.parquet"], "there is no file or folder nowhere.parquet"),
        (["{rows}", "--features", "pixels"], "there is no column 'pixels'; the columns"),
        (["{rows}", "--workers", "121"], "120 rows for 121 workers: use at most --workers 120"),
        (["{rows}", "--address", "coproc://127.0.0.1:1"], "127.0.0.1:1"),
        (["{rows}", "--loss", "squared", "--learning-rate", "1e30", "--epochs", "9"], "training diverged"),
    ],
)
def test_failures_are_sentences(rows, tmp_path, arguments, words):
    given = [each.format(rows=rows) for each in arguments]
    done = run("train", *given, "--pool", "processes", "--output", tmp_path / "out", cwd=tmp_path)
    fails(done, re.escape(words))


@pytest.mark.parametrize("arguments", [["--debug", "train", "nowhere"], ["train", "nowhere", "--debug"]])
def test_debug_shows_the_traceback(tmp_path, arguments):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "DataError" in done.stderr


def test_ctrl_c_leaves_the_model(tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "coproc", "train", "--pool", "processes"),
            *("--epochs", "100000", "--output", str(tmp_path / "out")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    with process:
        for line in process.stderr:
            if line.startswith("epoch "):
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, errors
    assert "Stopped after" in output
    assert "Traceback" not in errors
    assert load_file(tmp_path / "out" / "model.safetensors")["layers.0.weight"].shape == (64, 128)


def test_serves_until_told_to_stop_and_shows_its_status(tmp_path):
    directory = f"/dev/shm/coproc-test-{os.getpid()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "coproc", "serve", "--dir", directory, "--memory", "64m"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(COPROC_TOKEN="secret"),
    )
    with process:
        address = re.fullmatch(r"ready (coproc://127\.0\.0\.1:\d+)\n", process.stdout.readline()).group(1)
        with coproc.connect(address, token="secret") as client:
            model = client.create_model(
                "shown", params={"w": np.zeros(1000)}, optimizer=coproc.optim.Adam(learning_rate=0.1)
            )
            with model.join(worker=0) as worker:
                worker.pull()
                worker.push({"w": np.ones(1000)}, step=0, examples=5)
            model.snapshot()
            shown = run("status", address, COPROC_TOKEN="secret")
            as_json = run("status", address, "--json", "--token", "secret")
            refused = run("status", address)
            model.delete()
            emptied = run("status", address, COPROC_TOKEN="secret")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
    *_, last = errors.splitlines()
    assert last.startswith(f"stopped; models and data stay in {directory}: `{PROGRAM} serve --dir {directory}`")
    assert "--wipe" in last
    assert "not on tmpfs" not in errors
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^model shown\n  version +1\n  parameters +1,000$", shown.stdout, re.MULTILINE), shown.stdout
    assert max(map(len, shown.stdout.splitlines())) < 80
    (server,), (status,) = json.loads(as_json.stdout)["servers"], json.loads(as_json.stdout)["models"]
    assert status["version"] == 1
    assert status["examples_count"] == 5
    assert 0 < server["memory_used_bytes"] < server["memory_limit_bytes"] == 64_000_000
    fails(refused, "token")
    assert "no models" in emptied.stdout
    fails(run("status", address), "can be reached|Unreachable|no server")
    shutil.rmtree(directory)


def test_bench_lists_what_there_is():
    listed = run("bench", "--list")
    assert "kernel" in listed.stdout.split()


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /dev/shm rw,nosuid shared:2 master:3 - tmpfs tmpfs rw
24 22 0:22 / /a\\040disk rw - xfs /dev/sdb rw
25 22 0:23 / /twice rw - ext4 /dev/sdc rw
26 22 0:24 / /twice rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/dev/shm/x", "tmpfs"), ("/dev/shmx", "ext4"), ("/", "ext4"), ("/a disk/x", "xfs"), ("/twice/x/y", "tmpfs")],
)
def test_tells_the_file_system_of_a_path(tmp_path, path, kind):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system(Path(path), mounts) == kind
    assert file_system(Path(path), tmp_path / "none") is None


def test_serve_warns_about_a_disk(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("coproc.cli.serve.file_system", lambda path: "ext4")
    monkeypatch.setattr("coproc.server.main.serve", lambda config: None)
    serve(directory=tmp_path)
    warning, stopped = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {tmp_path} is on ext4, not on tmpfs")
    assert stopped.startswith("stopped")


# -- Java


def test_without_java_it_says_what_to_install(rows, tmp_path):
    done = run("train", rows, "--output", tmp_path / "out", PATH="/nowhere", JAVA_HOME="")
    fails(done, r"Spark needs Java.*apt-get install openjdk-17-jre-headless.*--pool processes")


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ('openjdk version "11.0.2" 2019-01-15', "needs Java 17 or newer, and .* is Java 11"),
        ('java version "1.8.0_292"', "needs Java 17 or newer, and .* is Java 8"),
        ("a teapot", "does not tell a version"),
    ],
)
def test_old_java_is_refused(monkeypatch, tmp_path, version, words):
    (tmp_path / "bin").mkdir()
    java = tmp_path / "bin" / "java"
    java.write_text(f"#!/bin/sh\necho '{version}' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(coproc.Unsupported, match=words):
        require_java()
    java.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(coproc.Unsupported, match="does not run"):
        require_java()


# -- sizes


def test_sizes_are_read_and_written():
    assert [parse_size(text) for text in ("512m", "4g", "1000", "1.5GB")] == [
        512_000_000,
        4_000_000_000,
        1000,
        1_500_000_000,
    ]
    assert [size(count) for count in (999, 57_200_000)] == ["999 B", "57.2 MB"]


def test_a_run_is_resumed(rows, tmp_path):
    """Interrupted by the terminal, and gone on with by its directory alone; what would change it is refused."""
    given = ("train", rows, "--features", "x0,x1,x2", "--hidden", "none", "--pool", "processes", "--output", "out")
    more = ("--epochs", "300", "--batch-size", "4", "--checkpoint-every", "20")
    command = [sys.executable, "-W", "error", "-m", "coproc", *map(str, given), *more]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + TIMEOUT_S
    while not list((tmp_path / "out" / "checkpoints").glob("0*")) and time.monotonic() < deadline:
        select.select([], [], [], 0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) == 130
    fails(run("train", "--resume", "out", "--epochs", "5", cwd=tmp_path), "--epochs cannot be given", code=2)
    refused = run("train", "--resume", "out", "--compression", "bf16", cwd=tmp_path)
    fails(refused, "--compression cannot be given", code=2)
    fails(run("train", "--resume", "nowhere", cwd=tmp_path), "no run in nowhere")
    done = run("train", "--resume", "out", "--pool", "inline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    history = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == list(range(1, 301))
