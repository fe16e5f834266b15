"""How long this machine takes for a gradient, on one thread: measured once, and kept.

What is measured is what a worker does: a process of its own, one thread for matrix products, the batch in its cache as
far as it goes. The fastest batch counts: what slows the others down is other work of the machine. The numbers are kept
in the user's cache folder, so that all runs of a comparison wait the same time; without that file it is measured again.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coproc import grads
from coproc.errors import ServerError
from coproc.pools.base import ONE_THREAD, python_path

BATCHES = 15
TIMEOUT_S = 120.0
SEED = 0


def emulated(spec: Mapping[str, Any], rows: int, slow: tuple[int, ...] = (), factor: float = 1.0) -> dict[str, Any]:
    """The spec of a backend that waits in place of the one that `spec` describes. Takes some seconds the first time.

    Args:
        rows: of a batch.
        slow: partitions that are to take `factor` times as long.

    Raises:
        ServerError: it could not be measured.
    """
    told = {"backend": "emulated", "of": dict(spec), "seconds": seconds_of(spec, rows), "rows": rows}
    return told | ({"slow": list(slow), "factor": factor} if slow else {})


def seconds_of(spec: Mapping[str, Any], rows: int) -> float:
    """Seconds of a gradient of `rows` rows."""
    path = cache_file()
    key = json.dumps([dict(spec), rows, np.__version__, _processor()], sort_keys=True)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or not whole
        return float(json.loads(path.read_text())[key])
    command = [sys.executable, "-m", "coproc.trials.calibration", json.dumps(dict(spec)), str(rows)]
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": python_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise ServerError(f"how long a gradient takes could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    seconds = float(done.stdout)
    known: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(json.dumps({**known, key: seconds}))
    new.rename(path)
    return seconds


def cache_file() -> Path:
    """Where the numbers are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coproc" / "least-seconds.json"


def measure(spec: Mapping[str, Any], rows: int, batches: int = BATCHES) -> float:
    """Seconds of the fastest gradient, in this process; the first one, which makes buffers, is left out."""
    backend = grads.create(spec)
    random = np.random.default_rng(SEED)
    features = random.standard_normal((rows, backend.inputs), np.float32)
    shape = (rows,) if backend.outputs == 1 or backend.loss.name == "softmax" else (rows, backend.outputs)
    labels = random.integers(0, max(2, backend.outputs) if backend.loss.name == "softmax" else 2, shape, np.int32)
    given = labels.astype(np.float32) if backend.loss.name == "squared" else labels
    params, out = backend.init(SEED), np.empty(backend.layout.size, np.float32)
    taken = []
    for number in range(1 + batches):
        batch = grads.Batch(features, given, key=(SEED, 0, 0, number))
        began = time.perf_counter()
        backend.value_and_grad(params, batch, out=out)
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""


if __name__ == "__main__":
    print(measure(json.loads(sys.argv[1]), int(sys.argv[2])))
