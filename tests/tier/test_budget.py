"""The budget refuses before memory is used up, in a sentence, and never loses count."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import storage_tier.errors
from storage_tier.budget import Budget, check_shared_memory, default_limit_bytes, free_shared_memory_bytes
from storage_tier.errors import InvalidRequest, OutOfMemory, TierError

SHM = Path("/dev/shm")


def test_charge_refuses_what_does_not_fit_and_says_how_much() -> None:
    budget = Budget(100)
    budget.charge("a", 60)
    with pytest.raises(OutOfMemory, match=r"b asks for 41 bytes.*of 100 bytes 60 bytes are in use.*larger"):
        budget.charge("b", 41)
    assert budget.used_bytes == 60
    budget.charge("b", 40)
    assert (budget.used_bytes, budget.free_bytes) == (100, 0)
    assert budget.release("a") == 60
    assert budget.release("a") == 0
    assert budget.used_bytes == 40


def test_charging_again_changes_the_charge() -> None:
    budget = Budget(100)
    budget.charge("a", 60)
    budget.charge("a", 90)
    assert budget.used_bytes == 90
    with pytest.raises(OutOfMemory):
        budget.charge("a", 101)
    assert budget.charged_bytes("a") == 90
    budget.charge("a", 10)
    assert budget.used_bytes == 10


def test_a_transfer_leaves_no_moment_for_somebody_else() -> None:
    budget = Budget(100)
    budget.charge("writing", 100)
    budget.transfer("writing", "stored", 100)
    assert budget.used_bytes == 100
    assert budget.charged_bytes("writing") == 0
    with pytest.raises(OutOfMemory):
        budget.transfer("stored", "larger", 101)
    assert budget.charged_bytes("stored") == 100
    budget.transfer("stored", "stored", 7)
    assert budget.used_bytes == 7


def test_what_exists_is_counted_even_above_the_limit_and_can_shrink_there() -> None:
    budget = Budget(100)
    budget.adopt("found", 300)
    assert (budget.used_bytes, budget.free_bytes) == (300, 0)
    with pytest.raises(OutOfMemory):
        budget.charge("new", 1)
    budget.charge("found", 200)
    assert budget.used_bytes == 200


@pytest.mark.parametrize("size_bytes", [-1, -(1 << 40)])
def test_a_negative_size_is_refused(size_bytes: int) -> None:
    budget = Budget(100)
    with pytest.raises(InvalidRequest, match="negative"):
        budget.charge("a", size_bytes)
    with pytest.raises(InvalidRequest, match="positive"):
        Budget(size_bytes)


def test_threads_together_never_get_more_than_the_limit() -> None:
    budget = Budget(1000)

    def work(worker: int) -> int:
        refused = 0
        for turn in range(500):
            try:
                budget.charge(f"{worker}", 300 + turn % 7)
            except OutOfMemory:
                refused += 1
            else:
                assert budget.used_bytes <= 1000
                budget.release(f"{worker}")
        return refused

    with ThreadPoolExecutor(8) as pool:
        assert all(refused < 500 for refused in pool.map(work, range(8)))
    assert budget.used_bytes == 0


Operation = st.tuples(
    st.sampled_from(["charge", "adopt", "release", "transfer"]),
    st.sampled_from("abc"),
    st.sampled_from("abc"),
    st.integers(0, 60),
)


@given(st.lists(Operation))
def test_the_sum_is_that_of_a_dict(operations: list[tuple[str, str, str, int]]) -> None:
    budget, model = Budget(100), dict.fromkeys("abc", 0)
    for verb, key, other, size_bytes in operations:
        before = dict(model)
        try:
            if verb == "transfer":
                budget.transfer(other, key, size_bytes)
                model[other] = 0
            elif verb == "release":
                budget.release(key)
                size_bytes = 0
            else:
                getattr(budget, verb)(key, size_bytes)
            model[key] = size_bytes
        except OutOfMemory:
            wanted = sum(before.values()) - before[key] + size_bytes
            assert wanted - (before[other] if verb == "transfer" and other != key else 0) > 100
        assert {key: budget.charged_bytes(key) for key in "abc"} == model
        assert budget.used_bytes == sum(model.values())


def test_too_small_shared_memory_is_refused_with_sizes_and_the_fix() -> None:
    check_shared_memory(SHM, 1)
    with pytest.raises(OutOfMemory, match=r"1048576\.0 GiB of shared memory are needed.*are free.*--shm-size"):
        check_shared_memory(SHM, 1 << 50)


def test_the_default_is_most_of_what_is_free_and_what_is_held() -> None:
    free_bytes = free_shared_memory_bytes(SHM)
    assert 0.7 * free_bytes < default_limit_bytes(SHM) < 0.9 * free_bytes
    more_bytes = default_limit_bytes(SHM, held_bytes=1 << 40) - default_limit_bytes(SHM)
    assert more_bytes == pytest.approx(0.8 * (1 << 40), rel=0.01)


def test_every_error_survives_a_pickle() -> None:
    kinds = [
        kind for kind in vars(storage_tier.errors).values() if isinstance(kind, type) and issubclass(kind, TierError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        again = pickle.loads(pickle.dumps(kind("a sentence")))
        assert type(again) is kind
        assert str(again) == "a sentence"


def test_a_cap_holds_for_the_keys_below_it_alone() -> None:
    budget = Budget(100)
    budget.charge("/a/1", 30)
    budget.cap("/a/", 40)
    with pytest.raises(OutOfMemory, match="of the 40 bytes that /a/ may have 30 bytes are in use"):
        budget.charge("/a/2", 11)
    budget.charge("/b/1", 50)
    budget.charge("/a/2", 10)
    budget.transfer("/a/2", "/a/3", 10)
    budget.charge("/a/1", 20)  # smaller
    with pytest.raises(OutOfMemory):
        budget.transfer("/a/3", "/a/2", 21)
    budget.adopt("/a/4", 20)  # what is there is counted
    budget.charge("/a/1", 15)
    budget.cap("/a/", None)
    budget.charge("/a/1", 20)
    assert budget.used_bytes == 100
