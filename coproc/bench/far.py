"""far: push and pull of a client on another host, played over loopback TCP, with each compression and without.

- *loopback*: one push, one pull, against a plain TCP stream of the same bytes; and what each compression takes. The
  processor is the wire there, so fewer bytes are not less time.
- *a small model*: 4 KB, where it is the calls that take time: push, then pull, against push_pull.
- *1 Gbit/s*: the same as on loopback through a relay that lets so many bytes through each way.

What a compression sends is told in MB: the pieces, without the frames of gRPC (0.1 %).
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import coproc
from coproc.bench import far_raw, tier_raw
from coproc.bench.base import Contestant, Options, Ratio, Result, speed_ratio, take_turns, time_ratio
from coproc.bench.tier_peers import sender
from coproc.compression import Compression, registered
from coproc.compression.base import pieces
from coproc.far import FarWorker
from coproc.layout import Flat
from coproc.wire import service_stub
from storage_tier.wire import channel, parse_address

NAME = "far"

# The parameters of the talk's largest network: 57.2 MB.
SIZE = 14_305_295
QUICK_SIZE = 300_000
SMALL_SIZE = 1000
SMALL_CALLS, QUICK_SMALL_CALLS = 50, 3
LINK_BYTES_PER_S = 125e6
OF_TCP_AT_LEAST = 0.45
OF_LINK_AT_LEAST = 0.9
BF16_AT_MOST = 0.55
BOTH_WAYS_AT_MOST = 1.15
FUSED_SMALL_AT_MOST = 0.8
# Of seats, replicas and buffers, each as large as the model.
VECTORS = 20
TIMEOUT_S = 60.0

TCP, PUSH, PULL, BOTH = "TCP stream", "push", "pull", "both at once"
THEN, FUSED = "push, then pull", "push_pull"


def run(options: Options) -> list[Result]:
    """Loopback, then the slow link; about two minutes."""
    size = QUICK_SIZE if options.quick else SIZE
    gradient = np.random.default_rng(options.seed).standard_normal(size, np.float32)
    with coproc.LocalCluster(memory_bytes=VECTORS * 4 * size + (64 << 20)) as cluster:
        [(_, port)] = parse_address(cluster.address)
        with coproc.connect(cluster.address) as client:
            model = client.create_model(
                "far",
                params={"w": gradient},
                optimizer=coproc.optim.SGD(learning_rate=1e-3),
            )
            results = _loopback(model, port, gradient, options)
            small = client.create_model(
                "far-small",
                params={"w": gradient[:SMALL_SIZE]},
                optimizer=coproc.optim.SGD(learning_rate=1e-3),
            )
            results += _small(small, port, gradient[:SMALL_SIZE], options)
            with _relay(port) as slow:
                results += _link(model, slow, gradient, options)
    return results


def _loopback(model: coproc.Model, port: int, gradient: Flat, options: Options) -> list[Result]:
    into = memoryview(bytearray(gradient.nbytes))
    kinds = [None, *(kind() for kind in registered().values())]
    with sender(gradient.nbytes) as source, _workers(model, port, kinds, gradient) as workers:
        calls = [call for worker in workers for call in _calls(worker)]
        tcp = Contestant(TCP, lambda: tier_raw.receive(source, into))
        taken = take_turns([tcp, *calls, *_both_calls(workers[0])], _rounds(options))
    case = f"{gradient.nbytes / 1e6:.3g} MB, loopback"
    promised = None if options.quick else OF_TCP_AT_LEAST
    results = [Result(NAME, case, TCP, "s", taken[TCP])]
    for what in (PUSH, PULL):
        ratio = speed_ratio(taken[what], taken[TCP], TCP, at_least=promised)
        results.append(Result(NAME, case, what, "s", taken[what], (ratio,)))
        results += [
            Result(NAME, case, f"{what}, {kind.name}", "s", times, (time_ratio(times, taken[what], what),))
            for kind in kinds
            if kind is not None
            for times in [taken[f"{what}, {kind.name}"]]
        ]
    results += _fused(case, taken)
    return results + [
        Result(NAME, "sent", "plain" if kind is None else kind.name, "MB", (_sent_bytes(kind, gradient.size) / 1e6,))
        for kind in kinds
    ]


def _small(model: coproc.Model, port: int, gradient: Flat, options: Options) -> list[Result]:
    calls = QUICK_SMALL_CALLS if options.quick else SMALL_CALLS
    with _workers(model, port, [None], gradient) as [worker]:
        taken = take_turns(_both_calls(worker, calls), _rounds(options))
    each = {name: tuple([taken_s / calls for taken_s in times]) for name, times in taken.items()}
    promised = None if options.quick else FUSED_SMALL_AT_MOST
    return _fused(f"{gradient.nbytes / 1e3:.3g} KB, loopback", each, promised)


def _fused(case: str, taken: dict[str, tuple[float, ...]], at_most: float | None = None) -> list[Result]:
    ratio = time_ratio(taken[FUSED], taken[THEN], THEN, at_most=at_most)
    return [Result(NAME, case, THEN, "s", taken[THEN]), Result(NAME, case, FUSED, "s", taken[FUSED], (ratio,))]


def _link(model: coproc.Model, port: int, gradient: Flat, options: Options) -> list[Result]:
    kinds = [None, registered()["bf16"]()]
    with _workers(model, port, kinds, gradient) as workers, _workers(model, port, [None], gradient, 2) as [other]:
        calls = [call for worker in workers for call in _calls(worker)]
        both = Contestant(BOTH, lambda: _at_once(workers[0], other))
        taken = take_turns([*calls, both, *_both_calls(workers[0])], _rounds(options), warm_up=1)
    case = f"{gradient.nbytes / 1e6:.3g} MB, 1 Gbit/s"
    results = []
    for what in (PUSH, PULL):
        link = tuple([gradient.nbytes / LINK_BYTES_PER_S / taken_s for taken_s in taken[what]])
        plain = Ratio("the link", "speed", link, at_least=None if options.quick else OF_LINK_AT_LEAST)
        coded = taken[f"{what}, bf16"]
        ratio = time_ratio(coded, taken[what], what, at_most=None if options.quick else BF16_AT_MOST)
        results.append(Result(NAME, case, what, "s", taken[what], (plain,)))
        results.append(Result(NAME, case, f"{what}, bf16", "s", coded, (ratio,)))
    slower = tuple(map(max, taken[PUSH], taken[PULL]))
    ratio = time_ratio(taken[BOTH], slower, "the slower", at_most=None if options.quick else BOTH_WAYS_AT_MOST)
    return [*results, Result(NAME, case, BOTH, "s", taken[BOTH], (ratio,)), *_fused(case, taken)]


def _rounds(options: Options) -> int:
    return 2 if options.quick else options.rounds


def _sent_bytes(kind: Compression | None, size: int) -> int:
    if kind is None:
        return 4 * size
    return sum(kind.encoded_bytes(at.stop - at.start) for at in pieces(size))


@contextlib.contextmanager
def _workers(
    model: coproc.Model, port: int, kinds: list[Compression | None], gradient: Flat, first: int = 0
) -> Iterator[list[FarWorker]]:
    """Workers that reach the model's server by a port of this host, each with its compression and a gradient."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(channel("127.0.0.1", port))
        workers = []
        for number, kind in enumerate(kinds, first):
            peer = f"127.0.0.1:{port}"
            worker = FarWorker(model.spec, service_stub(connection), peer, number, 1, TIMEOUT_S, kind)
            stack.callback(worker.close)
            worker.slot(0)[:] = gradient
            workers.append(worker)
        yield workers


def _push(worker: FarWorker) -> None:
    worker.commit(worker.next_step, 1, math.nan, TIMEOUT_S)


def _pull(worker: FarWorker) -> None:
    worker.pull(0, TIMEOUT_S)


def _calls(worker: FarWorker) -> list[Contestant]:
    kind = "" if worker.compression is None else f", {worker.compression.name}"
    return [
        Contestant(PUSH + kind, lambda: _push(worker)),
        Contestant(PULL + kind, lambda: _pull(worker)),
    ]


def _push_then_pull(worker: FarWorker, times: int) -> None:
    for _ in range(times):
        _push(worker)
        _pull(worker)


def _push_pull(worker: FarWorker, times: int) -> None:
    for _ in range(times):
        worker.push_pull(worker.next_step, 1, math.nan, 0, TIMEOUT_S)


def _both_calls(worker: FarWorker, times: int = 1) -> list[Contestant]:
    return [
        Contestant(THEN, lambda: _push_then_pull(worker, times)),
        Contestant(FUSED, lambda: _push_pull(worker, times)),
    ]


def _at_once(pushing: FarWorker, pulling: FarWorker) -> None:
    pull = threading.Thread(target=_pull, args=(pulling,))
    pull.start()
    _push(pushing)
    pull.join(TIMEOUT_S)


@contextlib.contextmanager
def _relay(port: int) -> Iterator[int]:
    """A process that is the slow link; the port of its other end."""
    command = [sys.executable, str(Path(far_raw.__file__)), str(port), str(LINK_BYTES_PER_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()
