"""Each measurement runs as a user runs it, on tiny sizes: real processes, its contestants in turns, ratios in JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def measure(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "coproc", "bench", name, "--quick", "--json"],
        capture_output=True, text=True, timeout=240, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("round", {("round", "stream loop")}),
        ("latency", set()),
        ("restart", set()),
        ("memory", {("3 workers", "one slot more than with 2 workers")}),
        ("shards", {("server 1 of 2: busy", "one server"), ("server 2 of 2: swept", "one server")}),
        ("tier", {("put", "write(2)"), ("open", "TCP stream"), ("8 clients", "1 client")}),
        ("train", {("coproc", "gradients only")}),
        (
            "far",
            {
                *[("push", "TCP stream"), ("pull", "TCP stream"), ("push, bf16", "push")],
                *[("both at once", "the slower"), ("push_pull, gRPC", "push, then pull, gRPC")],
            },
        ),
    ],
)
def test_runs(name, pairs, tmp_path):
    document = measure(name, tmp_path)
    assert {"commit", "versions", "cores_count"} <= document["environment"].keys()
    results = document["results"]
    assert {result["bench"] for result in results} == {name}
    assert all(sample >= 0 for result in results for sample in result["samples"])
    found = {(result["contestant"], ratio["against"]) for result in results for ratio in result["ratios"]}
    assert pairs <= found
