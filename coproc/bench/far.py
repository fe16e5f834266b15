"""far: push and pull of a client on another host, played over loopback TCP, with each compression and without.

- *loopback*: one push, one pull, by the line and by gRPC alone, against a plain TCP stream of the same bytes; and what
  each compression takes. The processor is the wire there, so fewer bytes are not less time.
- *4 clients*: processes that push, or pull, at once: the bytes of all of them against those of one plain stream.
- *a small model*: 4 KB, where it is the calls that take time: push, then pull, against push_pull.
- *1 Gbit/s*: the same as on loopback through a relay that lets so many bytes through each way.

What a compression sends is told in MB: the pieces, without the frames of gRPC (0.1 %).
"""

from __future__ import annotations

import contextlib
import math
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import coproc
from coproc.bench import far_raw, tier_raw
from coproc.bench.base import Contestant, Options, Ratio, Result, speed_ratio, take_turns, time_ratio
from coproc.bench.peers import Peer, peers, together
from coproc.bench.tier_peers import sender
from coproc.compression import Compression, registered
from coproc.compression.base import pieces
from coproc.far import FarWorker, no_lines
from coproc.layout import Flat
from coproc.wire import service_stub
from storage_tier.line import Lines
from storage_tier.v1 import tier_pb2, tier_pb2_grpc
from storage_tier.wire import channel, parse_address

NAME = "far"

# The parameters of the talk's largest network: 57.2 MB.
SIZE = 14_305_295
QUICK_SIZE = 300_000
SMALL_SIZE = 1000
SMALL_CALLS, QUICK_SMALL_CALLS = 50, 3
CLIENTS = 4
LINK_BYTES_PER_S = 125e6
OF_TCP_AT_LEAST = 0.8
BY_GRPC_AT_LEAST = 0.45
IN_SUM_AT_LEAST = 0.7
OF_LINK_AT_LEAST = 0.9
BF16_AT_MOST = 0.55
BOTH_WAYS_AT_MOST = 1.15
FUSED_SMALL_AT_MOST = 0.8
# Of seats, replicas and buffers, each as large as the model.
VECTORS = 32
TIMEOUT_S = 60.0

TCP, PUSH, PULL, BOTH = "TCP stream", "push", "pull", "both at once"
THEN, FUSED = "push, then pull", "push_pull"
GRPC = ", gRPC"


class Server(NamedTuple):
    """Where it takes calls from here."""

    port: int
    line_port: int
    ticket: bytes

    @classmethod
    def at(cls, address: str) -> Server:
        """As it says itself."""
        [(host, port)] = parse_address(address)
        with channel(host, port) as connection:
            request = tier_pb2.HelloRequest(challenge=secrets.token_bytes(32))
            hello = tier_pb2_grpc.TierStub(connection).Hello(request, timeout=TIMEOUT_S)
        return cls(port, hello.line_port, hello.line_ticket)

    def new_lines(self) -> Lines:
        """For a `FarWorker`."""
        return Lines("the server", ("127.0.0.1", self.line_port), self.ticket, None)


class Kind(NamedTuple):
    """What a worker sends, and how."""

    line: bool
    compression: Compression | None = None

    @property
    def suffix(self) -> str:
        """Of its contestants."""
        if self.compression is not None:
            return f", {self.compression.name}"
        return "" if self.line else GRPC


LINE, BY_GRPC = Kind(True), Kind(False)


def run(options: Options) -> list[Result]:
    """Loopback, clients at once, the slow link; about three minutes."""
    size = QUICK_SIZE if options.quick else SIZE
    gradient = np.random.default_rng(options.seed).standard_normal(size, np.float32)
    with coproc.LocalCluster(memory_bytes=VECTORS * 4 * size + (64 << 20)) as cluster:
        server = Server.at(cluster.address)
        with coproc.connect(cluster.address) as client:
            model = client.create_model(
                "far",
                params={"w": gradient},
                optimizer=coproc.optim.SGD(learning_rate=1e-3),
            )
            results = _loopback(model, server, gradient, options)
            results += _crowd(model, cluster.address, gradient, options)
            small = client.create_model(
                "far-small",
                params={"w": gradient[:SMALL_SIZE]},
                optimizer=coproc.optim.SGD(learning_rate=1e-3),
            )
            results += _small(small, server, gradient[:SMALL_SIZE], options)
            with _relay(server.port) as slow, _relay(server.line_port) as slow_line:
                results += _link(model, Server(slow, slow_line, server.ticket), gradient, options)
    return results


def _loopback(model: coproc.Model, server: Server, gradient: Flat, options: Options) -> list[Result]:
    into = memoryview(bytearray(gradient.nbytes))
    coded = [Kind(False, compression()) for compression in registered().values()]
    with sender(gradient.nbytes) as source, _workers(model, server, [LINE, BY_GRPC, *coded], gradient) as workers:
        calls = [call for kind, worker in workers.items() for call in _calls(kind, worker)]
        tcp = Contestant(TCP, lambda: tier_raw.receive(source, into))
        taken = take_turns([tcp, *calls, *_both_calls(BY_GRPC, workers[BY_GRPC])], _rounds(options))
    case = f"{gradient.nbytes / 1e6:.3g} MB, loopback"
    results = [Result(NAME, case, TCP, "s", taken[TCP])]
    for what in (PUSH, PULL):
        for kind, least in ((LINE, OF_TCP_AT_LEAST), (BY_GRPC, BY_GRPC_AT_LEAST)):
            times = taken[what + kind.suffix]
            ratio = speed_ratio(times, taken[TCP], TCP, at_least=None if options.quick else least)
            results.append(Result(NAME, case, what + kind.suffix, "s", times, (ratio,)))
        for kind in coded:
            times = taken[what + kind.suffix]
            ratio = time_ratio(times, taken[what + GRPC], what + GRPC)
            results.append(Result(NAME, case, what + kind.suffix, "s", times, (ratio,)))
    results += _fused(case, taken)
    return results + [
        Result(NAME, "sent", name, "MB", (_sent_bytes(kind.compression, gradient.size) / 1e6,))
        for name, kind in [("plain", LINE), *((kind.suffix[2:], kind) for kind in coded)]
    ]


def _crowd(model: coproc.Model, address: str, gradient: Flat, options: Options) -> list[Result]:
    """Several clients, each a process, at the same call at the same time."""
    into = memoryview(bytearray(gradient.nbytes))
    with sender(gradient.nbytes) as source, peers(CLIENTS) as processes:
        for number, process in enumerate(processes):
            for line in (True, False):
                process.call(
                    "join_far", address=address, model=model.name, worker=number + CLIENTS * (not line), line=line
                )
        tcp = Contestant(TCP, lambda: tier_raw.receive(source, into))
        calls = [
            Contestant(what + kind.suffix, lambda what=what, kind=kind: _all(processes, what, kind.line))  # type: ignore[misc]
            for what in (PUSH, PULL)
            for kind in (LINE, BY_GRPC)
        ]
        taken = take_turns([tcp, *calls], _rounds(options))
        together(processes, "leave")
    case = f"{CLIENTS} clients, {gradient.nbytes / 1e6:.3g} MB each"
    results = []
    for what in (PUSH, PULL):
        for kind in (LINE, BY_GRPC):
            name, least = what + kind.suffix, IN_SUM_AT_LEAST if kind.line and not options.quick else None
            each = tuple([taken_s / CLIENTS for taken_s in taken[name]])
            ratios = [speed_ratio(each, taken[TCP], TCP, at_least=least)]
            if kind.line:
                ratios.append(speed_ratio(taken[name], taken[what + GRPC], what + GRPC))
            results.append(Result(NAME, case, name, "s", taken[name], tuple(ratios)))
    return results


def _all(processes: list[Peer], what: str, line: bool) -> None:
    together(processes, f"{what}_far", line=line)


def _small(model: coproc.Model, server: Server, gradient: Flat, options: Options) -> list[Result]:
    calls = QUICK_SMALL_CALLS if options.quick else SMALL_CALLS
    with _workers(model, server, [LINE, BY_GRPC], gradient) as workers:
        contestants = [call for kind in (LINE, BY_GRPC) for call in _both_calls(kind, workers[kind], calls)]
        taken = take_turns(contestants, _rounds(options))
    each = {name: tuple([taken_s / calls for taken_s in times]) for name, times in taken.items()}
    case = f"{gradient.nbytes / 1e3:.3g} KB, loopback"
    promised = None if options.quick else FUSED_SMALL_AT_MOST
    return [Result(NAME, case, name, "s", each[name]) for name in (THEN, FUSED)] + _fused(case, each, promised)


def _fused(case: str, taken: dict[str, tuple[float, ...]], at_most: float | None = None) -> list[Result]:
    then, fused = THEN + GRPC, FUSED + GRPC
    ratio = time_ratio(taken[fused], taken[then], then, at_most=at_most)
    return [Result(NAME, case, then, "s", taken[then]), Result(NAME, case, fused, "s", taken[fused], (ratio,))]


def _link(model: coproc.Model, server: Server, gradient: Flat, options: Options) -> list[Result]:
    bf16 = Kind(False, registered()["bf16"]())
    kinds = [LINE, BY_GRPC, bf16]
    with _workers(model, server, kinds, gradient) as workers, _workers(model, server, [LINE], gradient, 3) as others:
        calls = [call for kind, worker in workers.items() for call in _calls(kind, worker)]
        both = Contestant(BOTH, lambda: _at_once(workers[LINE], others[LINE]))
        taken = take_turns([*calls, both, *_both_calls(BY_GRPC, workers[BY_GRPC])], _rounds(options), warm_up=1)
    case = f"{gradient.nbytes / 1e6:.3g} MB, 1 Gbit/s"
    results = []
    for what in (PUSH, PULL):
        for kind in (LINE, BY_GRPC):
            times = taken[what + kind.suffix]
            link = tuple([gradient.nbytes / LINK_BYTES_PER_S / taken_s for taken_s in times])
            plain = Ratio("the link", "speed", link, at_least=None if options.quick else OF_LINK_AT_LEAST)
            results.append(Result(NAME, case, what + kind.suffix, "s", times, (plain,)))
        coded = taken[what + bf16.suffix]
        ratio = time_ratio(coded, taken[what], what, at_most=None if options.quick else BF16_AT_MOST)
        results.append(Result(NAME, case, what + bf16.suffix, "s", coded, (ratio,)))
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
    model: coproc.Model, server: Server, kinds: list[Kind], gradient: Flat, first: int = 0
) -> Iterator[dict[Kind, FarWorker]]:
    """Workers that reach the model's server by ports of this host, each with a gradient."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(channel("127.0.0.1", server.port))
        workers = {}
        for number, kind in enumerate(kinds, first):
            peer = f"127.0.0.1:{server.port}"
            stub, new_lines = service_stub(connection), server.new_lines if kind.line else no_lines
            worker = FarWorker(model.spec, stub, peer, number, 1, TIMEOUT_S, kind.compression, new_lines)
            stack.callback(worker.close)
            worker.slot(0)[:] = gradient
            workers[kind] = worker
        yield workers


def _push(worker: FarWorker) -> None:
    worker.commit(worker.next_step, 1, math.nan, TIMEOUT_S)


def _pull(worker: FarWorker) -> None:
    worker.pull(0, TIMEOUT_S)


def _calls(kind: Kind, worker: FarWorker) -> list[Contestant]:
    return [
        Contestant(PUSH + kind.suffix, lambda: _push(worker)),
        Contestant(PULL + kind.suffix, lambda: _pull(worker)),
    ]


def _push_then_pull(worker: FarWorker, times: int) -> None:
    for _ in range(times):
        _push(worker)
        _pull(worker)


def _push_pull(worker: FarWorker, times: int) -> None:
    for _ in range(times):
        worker.push_pull(worker.next_step, 1, math.nan, 0, TIMEOUT_S)


def _both_calls(kind: Kind, worker: FarWorker, times: int = 1) -> list[Contestant]:
    return [
        Contestant(THEN + kind.suffix, lambda: _push_then_pull(worker, times)),
        Contestant(FUSED + kind.suffix, lambda: _push_pull(worker, times)),
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
