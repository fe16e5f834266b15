"""kernel: each optimizer's sweep against a loop that only moves the same bytes, and against PyTorch's Adam.

One gradient, one thread and its own processor time, memory like a tier's (shared, pages of 4 KiB). Two ways:

- *in place*: the back is the front, stores are plain. Shows what the arithmetic costs beyond the traffic, and
  is what PyTorch does. A server never does it: a sweep that is killed half-way could not be done again.
- *crash-safe*: parameters and state into other buffers, stored past the caches. What a server does.

The denominators are `streams` of as many rows: in place, and into other memory past the caches, which is the faster
kind; plain stores into other memory are shown beside it. So is the sweep itself in place: what crash-safety costs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Callable

import numpy as np

from coproc import optim
from coproc.bench import streams
from coproc.bench.base import Contestant, Options, Ratio, Result, speed_ratio, take_turns, time_ratio
from coproc.optim import Optimizer

NAME = "kernel"

# A network for 28 x 28 images with two hidden layers of 1024, and one beyond all caches.
SIZES = (1_863_690, 14_305_295)
QUICK_SIZES = (optim.STREAM_FROM,)
IN_PLACE_OF_STREAM_AT_LEAST = 0.8
CRASH_SAFE_OF_STREAM_AT_LEAST = 0.9
OF_UNSAFE_AT_MOST = 1.1  # of the largest size: rows of a smaller one lie in the cache when they are swept in place
OF_TORCH_AT_LEAST = 0.9

# Sweep and loops share their memory, since where its pages happen to lie counts. So the loops add nothing.
NOTHING = np.float32(0)

SWEEP, STREAM, PLAIN_STREAM = "sweep", "stream loop", "stream loop, plain stores"
UNSAFE, TORCH = "sweep in place, unsafe", "torch fused"


def run(options: Options) -> list[Result]:
    """Both ways, each optimizer of the folder, each size; about half a minute."""
    results: list[Result] = []
    for size in QUICK_SIZES if options.quick else SIZES:
        for kind in optim.registered().values():
            optimizer = kind(learning_rate=1e-3)
            results += _in_place(optimizer, size, options)
            results += _crash_safe(optimizer, size, options)
    return results


def _in_place(optimizer: Optimizer, size: int, options: Options) -> list[Result]:
    front, gradient = _rows(optimizer, size, options.seed)
    contestants = [
        Contestant(SWEEP, _sweep(optimizer, gradient, front, front, streamed=False)),
        Contestant(STREAM, lambda: streams.in_place(front, (gradient,), NOTHING)),
    ]
    if optimizer.name == "adam" and importlib.util.find_spec("torch"):
        contestants.append(Contestant(TORCH, _torch_fused_adam(size, options.seed)))
    promises = {STREAM: IN_PLACE_OF_STREAM_AT_LEAST, TORCH: OF_TORCH_AT_LEAST}
    return _results(f"{optimizer.name}, {_millions(size)}, in place", contestants, promises, front[0], options)


def _crash_safe(optimizer: Optimizer, size: int, options: Options) -> list[Result]:
    front, gradient = _rows(optimizer, size, options.seed)
    back = tuple(streams.rows(len(front), size))
    contestants = [
        Contestant(SWEEP, _sweep(optimizer, gradient, front, back, streamed=size >= optim.STREAM_FROM)),
        Contestant(STREAM, lambda: streams.out_of_place_streamed(front, (gradient,), NOTHING, back)),
        Contestant(PLAIN_STREAM, lambda: streams.out_of_place(front, (gradient,), NOTHING, back)),
        Contestant(UNSAFE, _sweep(optimizer, gradient, front, front, streamed=False)),
    ]
    promises = {STREAM: CRASH_SAFE_OF_STREAM_AT_LEAST}
    if size == SIZES[-1]:
        promises[UNSAFE] = OF_UNSAFE_AT_MOST
    return _results(f"{optimizer.name}, {_millions(size)}, crash-safe", contestants, promises, back[0], options)


def _results(
    case: str,
    contestants: list[Contestant],
    promises: dict[str, float],
    params: optim.Row,
    options: Options,
) -> list[Result]:
    """Take turns; the sweep's speed is compared with everybody else's, its time with that of the unsafe one."""
    taken = take_turns(contestants, 3 if options.quick else options.rounds, clock=time.thread_time)
    ratios = tuple(
        [_ratio(taken, name, None if options.quick else promises.get(name)) for name in taken if name != SWEEP]
    )
    contestants[0].call()  # the loops have written there too
    checksum = hashlib.sha256(params.tobytes()).hexdigest()[:16]
    return [
        Result(NAME, case, name, "s", times, *((ratios, checksum) if name == SWEEP else ()))
        for name, times in taken.items()
    ]


def _ratio(taken: dict[str, tuple[float, ...]], name: str, promised: float | None) -> Ratio:
    if name == UNSAFE:
        return time_ratio(taken[SWEEP], taken[name], name, at_most=promised)
    return speed_ratio(taken[SWEEP], taken[name], name, at_least=promised)


def _rows(optimizer: Optimizer, size: int, seed: int) -> tuple[tuple[optim.Row, ...], optim.Row]:
    """(params and state, gradient): parameters and gradient normal, state as at the start."""
    gradient, params, *state = streams.rows(2 + len(optimizer.state_rows), size)
    random = np.random.default_rng(seed)
    random.standard_normal(dtype=np.float32, out=params)
    random.standard_normal(dtype=np.float32, out=gradient)
    return (params, *state), gradient


def _sweep(
    optimizer: Optimizer,
    gradient: optim.Row,
    front: tuple[optim.Row, ...],
    back: tuple[optim.Row, ...],
    *,
    streamed: bool,
) -> Callable[[], None]:
    """One update by the function that a server calls, its checks included."""
    sweep = optim.compile_sweep(optimizer)
    scratch = np.empty(0, np.float32)
    weights, step = ((np.float32(1),),), 0

    def call() -> None:
        nonlocal step
        step += 1
        constants = (optimizer.constants(step, optimizer.base_rate),)
        optim.apply(sweep, ((gradient,),), weights, constants, front, back, scratch, streamed)

    return call


def _torch_fused_adam(size: int, seed: int) -> Callable[[], None]:
    """PyTorch's fused Adam on memory of the same kind, on one thread as the sweep."""
    import torch

    torch.set_num_threads(1)
    (params, *_), gradient = _rows(optim.Adam(), size, seed)
    theirs = torch.nn.Parameter(torch.from_numpy(params))
    theirs.grad = torch.from_numpy(gradient)
    optimizer = torch.optim.Adam([theirs], lr=1e-3, fused=True)

    def call() -> None:
        optimizer.step()

    return call


def _millions(size: int) -> str:
    return f"{size / 1e6:.3g} M"
