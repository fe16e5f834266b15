"""What `import coproc` costs: it happens in each new Python worker of Spark."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    *("numba", "llvmlite", "pyspark", "pandas", "sklearn", "torch", "matplotlib"),
    *("starlette", "uvicorn", "typer", "rich", "grpc_tools"),
}
TIMED = "import time; start = time.perf_counter(); import coproc; print(time.perf_counter() - start)"
LOADED = "import sys, coproc; {use}; print(*{{name.split('.')[0] for name in sys.modules}})"


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_importing_takes_a_quarter_of_a_second_at_most() -> None:
    # The least of several: the question is what the import needs, not what else the machine does meanwhile.
    assert min(float(python(TIMED)) for _ in range(5)) <= 0.25


def test_importing_pulls_in_nothing_heavy() -> None:
    assert not HEAVY & set(python(LOADED.format(use="pass")).split())


def test_what_a_task_uses_pulls_in_nothing_heavy() -> None:
    # The names behind the lazy face, which a worker's first step loads.
    use = "coproc.connect; coproc.Bsp; coproc.Ssp; coproc.Asp; coproc.optim.SGD; coproc.CoprocError"
    assert not HEAVY & set(python(LOADED.format(use=use)).split())
