"""Words between threads that run without the interpreter lock, and lines against numpy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from storage_tier import intrinsics as shared_intrinsics
from storage_tier.intrinsics import fence, get_line, load_acquire, put_line, store_release, weighted_sum_line
from storage_tier.words import Words

intrinsics: Any = shared_intrinsics

jit = numba.njit(nogil=True, error_model="numpy")
PATIENCE = 1 << 33  # turns of a waiting loop before it gives up: seconds, not for ever
WORD, OTHER_WORD = 0, 64  # bytes; not in one cache line


@jit
def await_word(address: int, value: int) -> bool:
    for _ in range(PATIENCE):  # noqa: SIM110 (no generators in compiled code)
        if load_acquire(address) == value:
            return True
    return False


@jit
def send(words: int, payload: Any, times: int) -> bool:
    for n in range(1, times + 1):
        payload[0] = n
        payload[1] = -n
        store_release(words + WORD, n)
        if not await_word(words + OTHER_WORD, n):
            return False
    return True


@jit
def receive(words: int, payload: Any, times: int, torn: Any) -> bool:
    for n in range(1, times + 1):
        if not await_word(words + WORD, n):
            return False
        if payload[0] != n or payload[1] != -n:
            torn[0] += 1
        store_release(words + OTHER_WORD, n)
    return True


@jit
def cross(mine: int, theirs: int, my_turn: int, their_turn: int, times: int, seen: Any) -> bool:
    """Store mine, then look at theirs: what was seen, a round. Both start and end a round together."""
    for n in range(1, times + 1):
        # The other may be at the end of the round already, but never in the next one.
        store_release(my_turn, n)
        if not await_word(their_turn, n):
            return False
        store_release(mine, n)
        fence()
        seen[n - 1] = load_acquire(theirs)
        store_release(my_turn + 64, n)
        if not await_word(their_turn + 64, n):
            return False
    return True


def together(*calls: Callable[[], Any]) -> list[Any]:
    results: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        results[number] = calls[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    return results


def test_a_word_brings_with_it_what_was_written_before() -> None:
    words, payload, torn = np.zeros(16, np.int64), np.zeros(2, np.int64), np.zeros(1, np.int64)
    address = words.ctypes.data
    send(address, payload, 0)
    receive(address, payload, 0, torn)
    # A loop that hoisted its load would never see the other's store, and give up.
    assert together(lambda: send(address, payload, 500), lambda: receive(address, payload, 500, torn)) == [True, True]
    assert torn[0] == 0


def test_with_a_fence_one_of_two_sees_the_other() -> None:
    times = 500
    words = np.zeros(64, np.int64)
    first, second, one, other = (words.ctypes.data + 64 * line for line in (0, 1, 2, 5))
    seen = [np.zeros(times, np.int64) for _ in range(2)]
    cross(first, second, one, other, 0, seen[0])
    assert together(
        lambda: cross(first, second, one, other, times, seen[0]),
        lambda: cross(second, first, other, one, times, seen[1]),
    ) == [True, True]
    rounds = np.arange(1, times + 1)
    missed = (seen[0] < rounds) & (seen[1] < rounds)
    assert not missed.any()


@jit
def sleep(bell: int, seen: int, timeout_ns: int, pair: Any) -> int:
    begun = intrinsics.monotonic_ns(pair)
    intrinsics.wait(bell, seen, timeout_ns, pair)
    return intrinsics.monotonic_ns(pair) - begun  # type: ignore[no-any-return]


@jit
def ring_it(bell: int) -> None:
    intrinsics.ring(bell)


def test_a_bell_wakes_across_languages_and_a_wait_ends_by_itself() -> None:
    words = Words(np.zeros(64, np.uint8), 0, 8)
    pair = np.zeros(2, np.int64)
    assert sleep(words.address, 1, 10**12, pair) < 10**11  # it shows something else
    assert sleep(words.address, 0, 20_000_000, pair) >= 19_000_000
    woken = together(lambda: sleep(words.address, 0, 60 * 10**9, np.zeros(2, np.int64)), lambda: words.ring(0))
    assert woken[0] < 50 * 10**9
    before = words.load(0)
    ring_it(words.address)
    assert words.load(0) == before + 1
    assert abs(_now(pair) - time.monotonic_ns()) < 10**9


@jit
def _now(pair: Any) -> int:
    return intrinsics.monotonic_ns(pair)  # type: ignore[no-any-return]


@jit
def at_addresses(row: int, number: int, size: int) -> float:
    intrinsics.row_at(row, size)[1] = 5
    return intrinsics.load_float(number)  # type: ignore[no-any-return]


def test_rows_and_numbers_are_found_by_address() -> None:
    row, number = np.zeros(3, np.float32), np.array([0.1])
    assert at_addresses(row.ctypes.data, number.ctypes.data, 3) == 0.1
    assert row.tolist() == [0, 5, 0]


# ---- lines


@jit
def compute(a: Any, b: Any, number: Any, out: Any) -> None:
    for line in range((a.size + 15) // 16):
        x, y = get_line(a, line, None), get_line(b, line, None)
        put_line(out, line, (number - x) / (y * y + number) - np.sqrt(y * y) * x + (x - number), None)


@jit
def copy_lines(source: Any, target: Any, how: Any) -> None:
    for line in range((source.size + 15) // 16):
        put_line(target, line, get_line(source, line, how), how)


@jit
def add_lines(rows: Any, weights: Any, out: Any) -> None:
    for line in range((out.size + 15) // 16):
        put_line(out, line, weighted_sum_line(rows, weights, line, None), None)


def floats(size: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 100, 1000])
def test_arithmetic_is_that_of_numpy(size: int) -> None:
    a, b, number = floats(size, 1), floats(size, 2), np.float32(0.3)
    out = np.empty(size, np.float32)
    compute(a, b, number, out)
    expected = (number - a) / (b * b + number) - np.sqrt(b * b) * a + (a - number)
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(("how", "sizes"), [(None, range(1, 70)), (1, range(16, 65, 16))])
def test_nothing_beyond_the_row_is_touched(how: int | None, sizes: range) -> None:
    for size in sizes:
        room = np.full(64 + 128 + 64, 7, np.float32)
        start = -(room.ctypes.data // 4) % 16 + 16
        copy_lines(floats(size, size), room[start : start + size], how)
        np.testing.assert_array_equal(room[start : start + size], floats(size, size))
        assert (room[:start] == 7).all()
        assert (room[start + size :] == 7).all()


def test_lanes_that_do_not_exist_are_not_read(tmp_path: Any) -> None:
    import mmap

    # The row ends where its map ends: a whole load of the last line would be a fault.
    with mmap.mmap(-1, 2 * mmap.PAGESIZE) as pages:
        row = np.frombuffer(pages, np.float32, 19, 2 * mmap.PAGESIZE - 19 * 4)
        out = np.ones(19, np.float32)
        copy_lines(row, out, None)
        assert not out.any()
        del row


def test_a_weighted_sum_takes_as_many_weights_as_rows() -> None:
    rows = floats(20, 1), floats(20, 2)
    out = np.empty(20, np.float32)
    add_lines(rows, (np.float32(0.25), np.float32(0.5)), out)
    np.testing.assert_array_equal(out, np.float32(0.25) * rows[0] + np.float32(0.5) * rows[1])
    with pytest.raises(numba.TypingError):
        add_lines(rows, (np.float32(0.25),), out)


def test_a_row_that_is_not_writable_is_refused() -> None:
    row = np.zeros(16, np.float32)
    row.flags.writeable = False
    with pytest.raises(numba.TypingError):
        copy_lines(np.zeros(16, np.float32), row, None)
