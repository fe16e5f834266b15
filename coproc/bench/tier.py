"""tier: files of the memory tier on one host: large ones near and far, small ones by their number, beside Ray's store.

- *local write*: `TierClient.put` of an array, against write(2) of the same bytes into a fresh file of /dev/shm.
- *local read*: opening a file; then an array over its bytes, which lie in the server's memory, looked up by address.
- *remote read*: `open` of a client that may not touch shared memory, against a plain TCP stream over loopback.
- *small files*: create, stat and delete, each counted, from one process and from eight, on SQLite.
- *Ray*: `put` and `get` of the same array, where ray is installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import coproc
from coproc.bench import tier_raw
from coproc.bench.base import Contestant, Options, Ratio, Result, speed_ratio, take_turns, time_ratio
from coproc.bench.limits import within
from coproc.bench.tier_peers import operate, operators, sender
from storage_tier.client import TierClient

NAME = "tier"

# The parameters of the talk's largest network: 57.2 MB.
SIZE = 14_305_295
QUICK_SIZE = 262_144
WRITE_AT_LEAST = 0.7
ARRAY_AT_MOST_S = 1e-3
REMOTE_AT_LEAST = 0.4
OPERATIONS_AT_LEAST = 1_000.0
CLIENTS = 8
OF_RAY_AT_LEAST = 1.0
WARM_UP = 2
# What was deleted is given back a moment later: room for it, in arrays.
SPARE = 10
# Ray frees objects in batches, one a second.
RAY_FREES_S = 2.0
RAY_LEAST_BYTES = 128 << 20

PUT, WRITE = "put", "write(2)"
OPEN, ARRAY = "open", "array over it, no copy"
FAR, TCP = "open", "TCP stream"
THEIR_PUT, THEIR_GET = "ray.put", "ray.get"

FILE = "/bench/large"


def run(options: Options) -> list[Result]:
    """All of them, one after the other, each with its contestants in turns; about two minutes."""
    array = np.random.default_rng(options.seed).random(QUICK_SIZE if options.quick else SIZE, dtype=np.float32)
    with coproc.LocalCluster(memory_bytes=(_rounds(options) + SPARE) * array.nbytes + (64 << 20)) as cluster:
        with TierClient(cluster.address, near=True) as client:
            results = [*_write(client, array, options), *_read(client, array, options)]
            results += _remote(cluster.address, client, array, options)
            results += _beside_ray(client, array, options)
        return results + _operations(cluster.address, options)


def _case(what: str, array: NDArray[np.float32]) -> str:
    return f"{what}, {array.nbytes / 1e6:.3g} MB"


def _rounds(options: Options) -> int:
    return 2 if options.quick else options.rounds


def _promised(options: Options, limit: float) -> float | None:
    return None if options.quick else limit


# ---- large files


def _write(client: TierClient, array: NDArray[np.float32], options: Options) -> list[Result]:
    path = f"/dev/shm/coproc-bench-{os.getpid()}"
    data = array.data.cast("B")
    contestants = [
        Contestant(PUT, lambda: client.put(FILE, array), prepare=lambda: client.delete_prefix(FILE)),
        Contestant(WRITE, lambda: tier_raw.write_fresh(path, data), prepare=lambda: _unlink(path)),
    ]
    try:
        taken = take_turns(contestants, _rounds(options), warm_up=WARM_UP)
    finally:
        _unlink(path)
    ratio = speed_ratio(taken[PUT], taken[WRITE], WRITE, at_least=_promised(options, WRITE_AT_LEAST))
    return [
        Result(NAME, _case("local write", array), PUT, "s", taken[PUT], (ratio,)),
        Result(NAME, _case("local write", array), WRITE, "s", taken[WRITE]),
    ]


def _read(client: TierClient, array: NDArray[np.float32], options: Options) -> list[Result]:
    """To an array that can be used, without a copy: its bytes are pages of the server's file, by their addresses."""
    opens: list[float] = []
    arrays: list[float] = []
    not_copied: list[float] = []
    for number in range(WARM_UP + _rounds(options)):
        begun = time.perf_counter()
        opened = client.open(FILE)
        between = time.perf_counter()
        seen = np.frombuffer(opened.data, np.float32)
        done = time.perf_counter()
        if number == 0 and not np.array_equal(seen, array):
            raise coproc.CoprocError(f"{FILE} does not have the bytes that were put")
        if number >= WARM_UP:
            opens.append(between - begun)
            arrays.append(done - between)
            not_copied.append(float(_lies_in_shared_file(seen)))
        del seen
        opened.close()
    where = Ratio("reads", "number", tuple(not_copied), at_least=1.0)
    promise = within(arrays, ARRAY_AT_MOST_S, "1 ms after open", not options.quick)
    summed = take_turns(
        [
            Contestant("sum, mapped", lambda: _sum_mapped(client)),
            Contestant("sum, own memory", lambda: array.sum()),
        ],
        _rounds(options),
    )
    mapped, own = summed["sum, mapped"], summed["sum, own memory"]
    case = _case("local read", array)
    return [
        Result(NAME, case, OPEN, "s", tuple(opens)),
        Result(NAME, case, ARRAY, "s", tuple(arrays), (*promise, where)),
        Result(NAME, case, "open and sum all of it", "s", mapped, (time_ratio(mapped, own, "sum of own memory"),)),
        Result(NAME, case, "sum of own memory", "s", own),
    ]


def _sum_mapped(client: TierClient) -> None:
    with client.open(FILE) as opened:
        np.frombuffer(opened.data, np.float32).sum()


def _lies_in_shared_file(array: NDArray[Any]) -> bool:
    """Whether all of an array's memory is one shared mapping of a file of /dev/shm, as the kernel tells it."""
    first = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, rights, _, _, _, *name = line.split(maxsplit=5)
            begin, end = (int(address, 16) for address in span.split("-"))
            if begin <= first < end:
                in_file = bool(name) and name[0].startswith("/dev/shm/")
                return in_file and rights == "r--s" and first + array.nbytes <= end
    return False


def _remote(address: str, client: TierClient, array: NDArray[np.float32], options: Options) -> list[Result]:
    into = memoryview(bytearray(array.nbytes))
    with sender(array.nbytes) as port, TierClient(address, near=False) as far:
        with far.open(FILE) as opened:
            if opened.data != array.data.cast("B"):
                raise coproc.CoprocError(f"{FILE} does not have the bytes that were put")
        contestants = [
            Contestant(FAR, lambda: far.open(FILE).close()),
            Contestant(TCP, lambda: tier_raw.receive(port, into)),
        ]
        taken = take_turns(contestants, _rounds(options))
    ratio = speed_ratio(taken[FAR], taken[TCP], TCP, at_least=_promised(options, REMOTE_AT_LEAST))
    return [
        Result(NAME, _case("remote read", array), FAR, "s", taken[FAR], (ratio,)),
        Result(NAME, _case("remote read", array), TCP, "s", taken[TCP]),
    ]


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


# ---- small files


def _operations(address: str, options: Options) -> list[Result]:
    """One client and eight in turns, the same number of files in all."""
    rounds = 2 if options.quick else max(3, options.rounds // 3)
    count = 2 * CLIENTS if options.quick else 50 * CLIENTS
    alone: list[float] = []
    together: list[float] = []
    kinds: list[list[float]] = []
    with operators(address, CLIENTS) as clients:
        for number in range(rounds + 1):
            one, each = operate(clients[:1], count)
            all_of_them, _ = operate(clients, count // CLIENTS)
            if number:  # the first is thrown away
                alone.append(one)
                together.append(all_of_them)
                kinds.append(each)
    shares = tuple(eight / one for eight, one in zip(together, alone, strict=True))
    shown = f"{OPERATIONS_AT_LEAST:,.0f}/s"
    promise = within(alone, OPERATIONS_AT_LEAST, shown, not options.quick, least=True)
    more = Ratio("1 client", "rate", shares, at_least=_promised(options, 1.0))
    case = "small files: create, stat, delete"
    return [
        Result(NAME, case, "1 client", "1/s", tuple(alone), promise),
        Result(NAME, case, f"{CLIENTS} clients", "1/s", tuple(together), (more,)),
        *(
            Result(NAME, "small files, 1 client", name, "1/s", tuple(each[number] for each in kinds))
            for number, name in enumerate(("create", "stat", "delete"))
        ),
    ]


# ---- Ray


def _beside_ray(client: TierClient, array: NDArray[np.float32], options: Options) -> list[Result]:
    """`put` and `get` of an array, of the tier and of Ray's object store, on this host.

    First all is kept, so that both fill memory nobody had before. Then one is put after the other: now Ray writes over
    what it had before, for it never gives memory back, and the tier does.
    """
    rounds = _rounds(options)
    fresh = (f"{FILE}-{number}" for number in itertools.count())
    kept: list[Any] = []
    refs: list[Any] = []
    arrays: list[Any] = []
    with _ray((rounds + SPARE) * array.nbytes) as ray:

        def contestants(ours: Contestant, theirs: Contestant) -> list[Contestant]:
            return [ours] if ray is None else [ours, theirs]

        def put_theirs() -> None:
            refs.append(ray.put(array))

        def get_theirs() -> None:
            arrays.append(ray.get(refs[0]))

        def get() -> None:
            with client.open(FILE) as opened:
                arrays.append(np.frombuffer(opened.data, np.float32))

        first = take_turns(
            contestants(
                Contestant(PUT, lambda: client.put(next(fresh), array)),
                Contestant(THEIR_PUT, lambda: kept.append(ray.put(array))),
            ),
            rounds,
            warm_up=WARM_UP,
        )
        for number in range(rounds + WARM_UP):
            client.delete(f"{FILE}-{number}")
        kept.clear()
        if ray is not None:
            time.sleep(RAY_FREES_S)
        again = take_turns(
            contestants(
                Contestant(PUT, lambda: client.put(FILE, array), prepare=lambda: client.delete_prefix(FILE)),
                Contestant(THEIR_PUT, put_theirs, prepare=refs.clear),
            ),
            rounds,
            warm_up=WARM_UP,
        )
        read = take_turns(
            contestants(
                Contestant("open and array", get, prepare=arrays.clear),
                Contestant(THEIR_GET, get_theirs, prepare=arrays.clear),
            ),
            rounds,
            warm_up=WARM_UP,
        )
        arrays.clear()
        refs.clear()
    where = "beside Ray" if ray is not None else "beside Ray, which is not installed"
    return [
        *_pair(_case(f"{where}: all kept", array), first, options),
        *_pair(_case(f"{where}: one at a time", array), again, options),
        *_pair(_case(f"{where}: to an array", array), read, options),
    ]


def _pair(case: str, taken: dict[str, tuple[float, ...]], options: Options) -> list[Result]:
    ours, *others = taken
    ratios = [
        speed_ratio(taken[ours], taken[other], other, at_least=_promised(options, OF_RAY_AT_LEAST)) for other in others
    ]
    return [
        Result(NAME, case, ours, "s", taken[ours], tuple(ratios)),
        *(Result(NAME, case, other, "s", taken[other]) for other in others),
    ]


@contextlib.contextmanager
def _ray(room_bytes: int) -> Iterator[Any]:
    """Ray with an object store of this size; None where it is not installed."""
    if importlib.util.find_spec("ray") is None:
        yield None
        return
    import ray

    ray.init(
        num_cpus=1,
        object_store_memory=max(room_bytes, RAY_LEAST_BYTES),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield ray
    finally:
        ray.shutdown()
