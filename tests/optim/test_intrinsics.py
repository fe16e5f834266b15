"""Words between threads that run without the interpreter lock, and lines against numpy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from storage_tier.intrinsics import (
    atomic_add,
    compare_and_swap,
    fence,
    get_line,
    load_acquire,
    put_line,
    store_release,
    weighted_sum_line,
)

jit = numba.njit(nogil=True, error_model="numpy")
PATIENCE = 1 << 33  # turns of a waiting loop before it gives up: seconds, not for ever
WORD, OTHER_WORD = 0, 8  # not in one cache line


@jit
def add_many(words: Any, times: int) -> None:
    for _ in range(times):
        atomic_add(words, WORD, 1)


@jit
def swap_many(words: Any, times: int) -> None:
    for _ in range(times):
        while True:
            found = load_acquire(words, WORD)
            if compare_and_swap(words, WORD, found, found + 1) == found:
                break


@jit
def await_word(words: Any, index: int, value: int) -> bool:
    for _ in range(PATIENCE):  # noqa: SIM110 (no generators in compiled code)
        if load_acquire(words, index) == value:
            return True
    return False


@jit
def send(words: Any, payload: Any, times: int) -> bool:
    for n in range(1, times + 1):
        payload[0] = n
        payload[1] = -n
        store_release(words, WORD, n)
        if not await_word(words, OTHER_WORD, n):
            return False
    return True


@jit
def receive(words: Any, payload: Any, times: int, torn: Any) -> bool:
    for n in range(1, times + 1):
        if not await_word(words, WORD, n):
            return False
        if payload[0] != n or payload[1] != -n:
            torn[0] += 1
        store_release(words, OTHER_WORD, n)
    return True


@jit
def cross(words: Any, mine: int, theirs: int, meet: int, times: int, seen: Any) -> bool:
    """Store mine, then look at theirs: what was seen, a round. Both start and end a round together."""
    for n in range(1, times + 1):
        atomic_add(words, meet, 1)
        if not await_word(words, meet, 2 * n):
            return False
        store_release(words, mine, n)
        fence()
        seen[n - 1] = load_acquire(words, theirs)
        atomic_add(words, meet + 8, 1)
        if not await_word(words, meet + 8, 2 * n):
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


@pytest.mark.parametrize("many", [add_many, swap_many])
def test_no_addition_is_lost(many: Callable[[Any, int], None]) -> None:
    words = np.zeros(16, np.int64)
    many(words, 0)  # compiled before the race
    together(*[lambda: many(words, 200_000)] * 3)
    assert words[WORD] == 600_000


def test_what_was_found_is_returned() -> None:
    @jit
    def run(words: Any) -> tuple[int, int, int]:
        return atomic_add(words, 0, 5), compare_and_swap(words, 0, 7, 9), compare_and_swap(words, 0, 8, 10)

    words = np.array([2], np.int64)
    assert run(words) == (2, 7, 9)
    assert words[0] == 9


def test_a_word_brings_with_it_what_was_written_before() -> None:
    words, payload, torn = np.zeros(16, np.int64), np.zeros(2, np.int64), np.zeros(1, np.int64)
    send(words, payload, 0)
    receive(words, payload, 0, torn)
    # A loop that hoisted its load would never see the other's store, and give up.
    assert together(lambda: send(words, payload, 500), lambda: receive(words, payload, 500, torn)) == [
        True,
        True,
    ]
    assert torn[0] == 0


def test_with_a_fence_one_of_two_sees_the_other() -> None:
    times = 500
    words = np.zeros(40, np.int64)
    seen = [np.zeros(times, np.int64) for _ in range(2)]
    cross(words, 0, 8, 16, 0, seen[0])
    assert together(lambda: cross(words, 0, 8, 16, times, seen[0]), lambda: cross(words, 8, 0, 16, times, seen[1])) == [
        True,
        True,
    ]
    rounds = np.arange(1, times + 1)
    missed = (seen[0] < rounds) & (seen[1] < rounds)
    assert not missed.any()


def test_words_of_another_type_are_refused() -> None:
    @jit
    def run(words: Any) -> int:
        return load_acquire(words, 0)  # type: ignore[no-any-return]

    with pytest.raises(numba.TypingError):
        run(np.zeros(1, np.float64))


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
