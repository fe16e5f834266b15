"""Worker processes of a measurement: real processes that do what they are told, a JSON line at a time.

``python -m coproc.bench.peers`` reads a request a line, calls the method of that name, and answers with a line.
Times are of the system-wide monotonic clock, so that those of several processes can be compared.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np

_ANSWER_TIMEOUT_S = 300.0


class Peer:
    """One worker process, from outside. A context manager."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in a Spark task
        self._process = subprocess.Popen(
            [sys.executable, "-m", "coproc.bench.peers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, method: str, **arguments: Any) -> None:
        """Send a request; `answer` gets what it returns."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the answer to the oldest request.

        Raises:
            RuntimeError: the process failed; its traceback is on stderr.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker process of the measurement ended with {self._process.wait(10)}")
        return json.loads(line)

    def call(self, method: str, **arguments: Any) -> Any:
        """`ask` and `answer`."""
        self.ask(method, **arguments)
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(timeout=30)  # closes its input, which ends it


@contextlib.contextmanager
def peers(count: int) -> Iterator[list[Peer]]:
    """`count` worker processes."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Peer()) for _ in range(count)]


def together(processes: list[Peer], method: str, **arguments: Any) -> list[Any]:
    """The same request to all at once; their answers in order."""
    for process in processes:
        process.ask(method, **arguments)
    return [process.answer() for process in processes]


class _Inside:
    """What a worker process can do."""

    def __init__(self) -> None:
        self.committed_ns = 0
        self.worker: Any = None
        self.client: Any = None
        self.far: dict[bool, Any] = {}
        self.exit = contextlib.ExitStack()
        self.ahead = 0
        self.gradient = np.zeros(0, np.float32)

    def join(self, address: str, model: str, worker: int, slots: int | None = None, near: bool | None = None) -> int:
        """Become a worker of a model, as one on another host if `near` is False; the step to continue from."""
        import coproc

        self.leave()
        self.client = coproc.connect(address, near=near)
        self.worker = self.client.model(model).join(worker, slots=slots)
        self.worker.pull()
        return int(self.worker.next_step)

    def join_far(self, address: str, model: str, worker: int, line: bool) -> None:
        """Become a worker from another host, by the line or by gRPC alone; a second one, perhaps."""
        import coproc
        from coproc.far import FarWorker, no_lines
        from coproc.wire import service_stub
        from storage_tier.wire import channel, parse_address

        [(host, port)] = parse_address(address)
        client = self.exit.enter_context(coproc.connect(address, near=False))
        connection = self.exit.enter_context(channel(host, port))
        spec = client.model(model).spec
        server = spec.shards[0].server
        new_lines = (lambda: client.new_lines(server)) if line else no_lines
        far = FarWorker(spec, service_stub(connection), server, worker, 1, _ANSWER_TIMEOUT_S, None, new_lines)
        self.exit.callback(far.close)
        far.slot(0)[:] = 1e-3
        self.far[line] = far

    def push_far(self, line: bool) -> None:
        """Push what is in the buffer of one of these."""
        far = self.far[line]
        far.commit(far.next_step, 1, math.nan, _ANSWER_TIMEOUT_S)

    def pull_far(self, line: bool) -> None:
        """Pull the newest version."""
        self.far[line].pull(0, _ANSWER_TIMEOUT_S)

    @contextlib.contextmanager
    def _stamped(self) -> Iterator[None]:
        """Keep `committed_ns` meanwhile; not always, for it is a tenth of a small push."""
        from coproc import probe

        def stamp() -> None:
            self.committed_ns = time.monotonic_ns()

        probe.watch("push.commit.before", stamp)
        try:
            yield
        finally:
            probe.watch("push.commit.before", None)

    def leave(self) -> None:
        """Close the worker and its connection, and those from another host."""
        self.far.clear()
        self.exit.close()
        if self.client is not None:
            self.worker.close()
            self.client.close()
            self.client = None

    def fill(self) -> None:
        """Let a gradient be born in the next slot."""
        self.worker.gradient()[:] = 1e-3

    def round(self) -> list[int]:
        """Push what is in the slot and wait for its version: (committed, awake) in ns."""
        step = self.worker.next_step
        with self._stamped():
            self.worker.push(step=step)
        self.worker.pull(min_version=step + 1)
        return [self.committed_ns, time.monotonic_ns()]

    def make(self, size: int) -> None:
        """A gradient (size,) in memory of this process."""
        self.gradient = np.full(size, 1e-3, np.float32)

    def round_with_copy(self) -> list[int]:
        """Copy a gradient into the slot, push, wait for the version: (begun, awake) in ns."""
        begun = time.monotonic_ns()
        step = self.worker.next_step
        self.worker.push({"w": self.gradient}, step=step)
        self.worker.pull(min_version=step + 1)
        return [begun, time.monotonic_ns()]

    def join_gloo(self, port: int, rank: int) -> None:
        """Make the process group of PyTorch's gloo over loopback."""
        import torch.distributed as dist

        store = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)

    def all_reduce(self) -> list[int]:
        """Sum the gradient over both processes: (begun, done) in ns."""
        import torch
        import torch.distributed as dist

        tensor = torch.from_numpy(self.gradient)
        dist.barrier()
        begun = time.monotonic_ns()
        dist.all_reduce(tensor)
        return [begun, time.monotonic_ns()]

    def leave_gloo(self) -> None:
        """End the process group."""
        import torch.distributed as dist

        dist.destroy_process_group()

    def push_many(self, count: int) -> float:
        """Push `count` gradients as fast as slots get free; seconds."""
        worker, begun = self.worker, time.monotonic_ns()
        for _ in range(count):
            worker.gradient()[:] = 1e-3
            worker.push()
        return (time.monotonic_ns() - begun) / 1e9

    def push_until(self, until_ns: int) -> list[list[int]]:
        """Push what is in the slot again and again until a moment: (begun, acknowledged) in ns, of each push."""
        spans: list[list[int]] = []
        while not spans or spans[-1][1] < until_ns:
            begun = time.monotonic_ns()
            self.worker.gradient()
            self.worker.push()
            spans.append([begun, time.monotonic_ns()])
        return spans

    def pull(self) -> list[int]:
        """Pull the newest version: (begun, there) in ns."""
        begun = time.monotonic_ns()
        self.worker.pull()
        return [begun, time.monotonic_ns()]

    def level(self, version: int) -> None:
        """Remember how far the model's version is ahead of this worker's steps."""
        self.ahead = version - self.worker.next_step

    def push_and_see(self, count: int) -> list[int]:
        """Push and wait for the version, `count` times: ns from the commit to seeing it."""
        worker, taken = self.worker, []
        with self._stamped():
            for _ in range(count):
                step = worker.next_step
                worker.gradient()[:] = 1e-3
                worker.push(step=step)
                worker.pull(min_version=step + 1 + self.ahead)
                taken.append(time.monotonic_ns() - self.committed_ns)
        return taken

    def push_on_schedule(self, count: int, per_s: float, start_ns: int) -> None:
        """Push number i at `start_ns` + i / `per_s`, or as soon after it as possible."""
        worker = self.worker
        for i in range(count):
            due_ns = start_ns + int(i * 1e9 / per_s)
            wait_ns = due_ns - time.monotonic_ns()
            if wait_ns > 150_000:
                time.sleep((wait_ns - 100_000) / 1e9)
            while time.monotonic_ns() < due_ns:
                pass
            worker.gradient()[:] = 1e-3
            worker.push()

    def watch_versions(self, first: int, last: int) -> list[list[int]]:
        """Wait for each version from `first` to `last`: [version seen, ns] whenever there is a newer one."""
        seen, version = [], first - 1
        while version < last:
            version = self.worker.pull(min_version=version + 1, timeout_s=60).version
            seen.append([version, time.monotonic_ns()])
        return seen


def main() -> None:
    """Serve requests until the input ends."""
    inside = _Inside()
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(json.dumps(getattr(inside, method)(**arguments)), flush=True)
    inside.leave()


if __name__ == "__main__":
    main()
