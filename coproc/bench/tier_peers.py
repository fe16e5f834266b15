"""Processes of the tier's measurements: clients that handle small files, and a plain sender of bytes.

``python -m coproc.bench.tier_peers ADDRESS NAME`` reads a count a line, creates, looks at and deletes so many files,
and answers with a line of JSON: the moments between, of the system-wide monotonic clock, in ns.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from coproc.bench import tier_raw

SMALL_BYTES = 1000


@contextlib.contextmanager
def sender(size_bytes: int) -> Iterator[int]:
    """A process that imports nothing of the project and sends so many bytes; its port."""
    command = [sys.executable, str(Path(tier_raw.__file__)), str(size_bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextlib.contextmanager
def operators(address: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """So many processes that handle small files, connected."""
    with contextlib.ExitStack() as stack:
        made = []
        for number in range(count):
            command = [sys.executable, "-m", "coproc.bench.tier_peers", address, str(number)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(_end, process)
            made.append(process)
        for process in made:
            _answer(process)
        yield made


def operate(processes: list[subprocess.Popen[str]], count: int) -> tuple[float, list[float]]:
    """All create, look at and delete `count` files each: operations a second, in all and of each kind.

    Those of a kind are counted from the first begin to the last end.
    """
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{count}\n")
        process.stdin.flush()
    moments = list(zip(*map(_answer, processes), strict=True))

    def rate(begins: tuple[int, ...], ends: tuple[int, ...], kinds: int = 1) -> float:
        return kinds * count * len(processes) / ((max(ends) - min(begins)) / 1e9)

    return rate(moments[0], moments[3], 3), [rate(moments[i], moments[i + 1]) for i in range(3)]


def _answer(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a client of the measurement ended with {process.wait(10)}")
    return [int(moment) for moment in json.loads(line)]


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(BrokenPipeError):
        process.communicate(timeout=30)  # closes its input, which ends it


def main(address: str, name: str) -> None:
    """Serve requests until the input ends."""
    from storage_tier.client import TierClient

    content = bytes(SMALL_BYTES)
    with TierClient(address) as client:
        client.make_directory(f"/operations/{name}")
        print("[]", flush=True)
        for line in sys.stdin:
            paths = [f"/operations/{name}/{number}" for number in range(int(line))]
            moments = [time.monotonic_ns()]
            for path in paths:
                client.put(path, content)
            moments.append(time.monotonic_ns())
            for path in paths:
                client.stat(path)
            moments.append(time.monotonic_ns())
            for path in paths:
                client.delete(path)
            moments.append(time.monotonic_ns())
            print(json.dumps(moments), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
