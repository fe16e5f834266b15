"""What `import coproc` costs: it happens in each new Python worker of Spark."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    *("numba", "llvmlite", "pyspark", "pandas", "sklearn", "torch", "matplotlib"),
    *("starlette", "uvicorn", "typer", "rich"),
}
# CPU time: the question is what the import needs, not what else the machine does meanwhile.
TIMED = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
NEEDED = "numpy, grpc, google.protobuf.descriptor_pool, google.protobuf.reflection"
LOADED = "import sys, coproc; {use}; print(*{{name.split('.')[0] for name in sys.modules}})"


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    # As in a Spark task; numpy would start a thread a core, whose time would be counted.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60, env=environment
    ).stdout


def heavy(use: str) -> set[str]:
    return HEAVY.intersection(python(LOADED.format(use=use)).split())


def test_importing_takes_little_more_than_what_it_must_import() -> None:
    # 0.18 s where numpy and gRPC take 0.11; seconds alone would tell of the machine and not of the import.
    seen = [[float(python(TIMED.format(names))) for names in ("coproc", NEEDED)] for _ in range(5)]
    ours, needed = (min(times) for times in zip(*seen, strict=True))
    assert ours <= 2.5 * needed, seen


def test_importing_pulls_in_nothing_heavy() -> None:
    assert heavy("pass") == set()


def test_what_a_task_uses_pulls_in_nothing_heavy() -> None:
    # A name that its first use loads counts as well.
    assert heavy("[getattr(coproc, name) for name in coproc.__all__]; coproc.optim.SGD") == set()
