"""What every optimizer must do: `OptimizerSuite`, to be inherited by a test class.

Run over one list of (name, settings), which must name each optimizer of the folder at least once. An
optimizer of one's own adds a case, and its formula to `coproc.testing.formulas`.

The suite compares bits wherever the project promises bits: it makes inputs with a fixed seed and calls
the compiled sweep through `apply`, and compares with numpy, with itself in another grouping, and with
PyTorch where that is installed.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coproc import optim
from coproc.optim import Optimizer
from coproc.optim.base import Row
from coproc.testing.formulas import FORMULAS, Exact, exact_compensated, exact_update

Rows = tuple[Row, ...]
"""(params, *state)."""

CASES: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"learning_rate": 0.5}),
    ("sgd", {"learning_rate": 0.1, "weight_decay": 0.01}),
    ("momentum", {"learning_rate": 0.1}),
    ("momentum", {"learning_rate": 0.1, "momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
    ("adam", {}),
    ("adam", {"learning_rate": 0.05, "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3, "weight_decay": 0.1}),
    ("adamw", {}),
    ("adamw", {"learning_rate": 0.05, "weight_decay": 0.3}),
    ("adagrad", {}),
    ("adagrad", {"learning_rate": 0.1, "initial_accumulator_value": 0.1, "epsilon": 1e-3}),
    ("rmsprop", {}),
    ("rmsprop", {"learning_rate": 0.05, "alpha": 0.9, "epsilon": 1e-3, "momentum": 0.5}),
    ("adadelta", {}),
    ("adadelta", {"learning_rate": 0.5, "rho": 0.5, "epsilon": 1e-3}),
    ("ftrl", {"learning_rate": 0.1}),
    ("ftrl", {"learning_rate": 0.5, "beta": 0.1, "l1": 1.0, "l2": 0.5}),
    ("lion", {}),
    ("average", {}),
    ("average", {"learning_rate": 0.25}),
    ("lars", {"learning_rate": 0.1}),
    ("lars", {"learning_rate": 0.1, "momentum": 0.5, "trust": 0.5, "weight_decay": 0.3}),
    ("lamb", {}),
    ("lamb", {"learning_rate": 0.05, "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3, "weight_decay": 0.3}),
    ("lion", {"learning_rate": 0.01, "beta1": 0.5, "beta2": 0.8, "weight_decay": 0.3}),
]
SIZE = 1000  # 62 lines and a half
STEPS = 6
# One line, its neighbours, several lines unrolled, and a tail of each kind.
TAILS = [1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 250, 1023]


# ---- inputs


def rows(optimizer: Optimizer, size: int = SIZE, seed: int = 1) -> Rows:
    """Parameters and state after two updates."""
    made = empty(optimizer, size)
    made[0][:] = np.random.default_rng(seed).standard_normal(size)
    return descend(optimizer, [(g,) for g in gradients(2, size, seed)], made)


def empty(optimizer: Optimizer, size: int = SIZE) -> Rows:
    return tuple([optim.aligned_row(size) for _ in range(1 + len(optimizer.state_rows))])


def gradients(count: int, size: int = SIZE, seed: int = 2) -> list[Row]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        row = optim.aligned_row(size)
        row[:] = random.standard_normal(size)
        made.append(row)
    return made


def shares(count: int) -> tuple[np.float32, ...]:
    """Weights of a round of unequal members; none is a power of two."""
    examples = np.arange(3, 3 + count)
    return tuple([np.float32(share) for share in examples / examples.sum()])


def descend(
    optimizer: Optimizer,
    updates: Sequence[Sequence[Row]],
    front: Rows,
    *,
    weights: Sequence[Sequence[float | np.float32]] | None = None,
    first_step: int = 1,
    learning_rate: float | None = None,
    streamed: bool = False,
    in_place: bool = False,
    scratch_floats: int = 64,
) -> Rows:
    """What one `apply` makes of the front; the learning rate is the optimizer's own, if none is given.

    `weights` are the members' shares, 1 each if none are given. Where delays are compensated, an update's gradients are
    followed by their bases.
    """
    size = front[0].size
    rate = optimizer.base_rate if learning_rate is None else learning_rate
    back = front if in_place else empty(optimizer, size)
    steps = range(first_step, first_step + len(updates))
    counts = [len(update) // (2 if optimizer.compensates else 1) for update in updates]
    optim.apply(
        optim.compile_sweep(optimizer),
        tuple([tuple(members) for members in updates]),
        tuple([optimizer.weights(each) for each in weights or [(1.0,) * count for count in counts]]),
        tuple([optimizer.constants(step, rate) for step in steps]),
        front,
        back,
        np.empty(scratch_floats, np.float32),
        streamed,
    )
    return back


def assert_same_bits(found: Rows, expected: Rows, what: str) -> None:
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        differ = np.flatnonzero(a.view(np.uint32) != b.view(np.uint32))
        assert not differ.size, (
            f"{what}: row {number} differs at {differ.size} of {a.size} places, first at {differ[0]}: "
            f"{a[differ[0]]!r} is not {b[differ[0]]!r}"
        )


def copy(front: Rows) -> Rows:
    copies = tuple([optim.aligned_row(row.size) for row in front])
    for source, target in zip(front, copies, strict=True):
        target[:] = source
    return copies


each_case = pytest.mark.parametrize(
    "optimizer",
    [optim.from_config({"name": name, **settings}) for name, settings in CASES],
    ids=[f"{name}-{number}" for number, (name, _) in enumerate(CASES)],
)


# One of each that goes by gradients.
each_kind = pytest.mark.parametrize(
    "optimizer",
    [
        optim.from_config({"name": name, **settings})
        for name, settings in dict(reversed(CASES)).items()
        if name != "average"
    ],
    ids=lambda optimizer: optimizer.name,
)


class OptimizerSuite:
    """Inherit it in a class whose name starts with Test."""

    def test_every_optimizer_has_a_case_and_a_formula(self) -> None:
        assert {name for name, _ in CASES} == set(optim.registered()) == set(FORMULAS), (
            "add the optimizer to CASES and its formula in float64 to FORMULAS"
        )

    @each_case
    def test_constants_that_do_not_count_updates_are_the_same_for_all(self, optimizer: Optimizer) -> None:
        same = all(optimizer.constants(n, 0.1) == optimizer.constants(1, 0.1) for n in (2, 3, 10, 1000))
        assert same or optimizer.varies

    # -- what it computes

    @each_case
    def test_follows_its_formula(self, optimizer: Optimizer) -> None:
        self._follow_the_formula(optimizer)

    @each_kind
    def test_clipping_by_value_and_weight_decay_go_around_any_optimizer(self, optimizer: Optimizer) -> None:
        optimizer = replace(optimizer, clip_value=0.3, weight_decay=0.1)
        self._follow_the_formula(optimizer)
        front, members, weights = rows(optimizer), gradients(11), optimizer.weights(shares(11))
        expected = empty(optimizer)
        optimizer.kernel()((tuple(members),), (weights,), (optimizer.constants(1, 0.1),), front, expected, None)
        for streamed in (False, True):
            found = descend(optimizer, [members], front, weights=[shares(11)], learning_rate=0.1, streamed=streamed)
            assert_same_bits(found, expected, "11 members, against numpy")

    @each_kind
    def test_delays_are_compensated_around_any_optimizer(self, optimizer: Optimizer) -> None:
        """Each member of a round by itself, before anything else is done with it."""
        optimizer = replace(optimizer, delay_compensation=0.25, clip_value=0.5)
        found = empty(optimizer)
        found[0][:] = np.random.default_rng(3).standard_normal(SIZE)
        exact: Exact = tuple([row.astype(np.float64) for row in found])
        weights = shares(2)
        for step in range(1, STEPS + 1):
            members, bases = gradients(2, seed=step), gradients(2, seed=100 + step)
            found = descend(optimizer, [(*members, *bases)], found, weights=[weights], first_step=step)
            parts = zip(weights, members, bases, strict=True)
            g = np.sum([float(w) * exact_compensated(optimizer, g, exact[0], base) for w, g, base in parts], axis=0)
            exact = exact_update(optimizer, exact, g, step)
        for a, b in zip(found, exact, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    @each_kind
    @pytest.mark.parametrize("count", [1, 4, 11])
    def test_compensated_rounds_are_the_same_bits_however_they_are_summed(
        self, optimizer: Optimizer, count: int
    ) -> None:
        front, members, bases = rows(optimizer), gradients(count), gradients(count, seed=9)
        optimizer = replace(optimizer, delay_compensation=0.25)
        weights = optimizer.weights(shares(count), based=[number != 1 for number in range(count)])
        constants = optimizer.constants(5, 0.1)
        expected = empty(optimizer)
        optimizer.kernel()(((*members, *bases),), (weights,), (constants,), front, expected, None)
        if count > 1:  # a base that is not known doesn't count
            bases[1] = gradients(1, seed=77)[0]
        for streamed in (False, True):
            found = empty(optimizer)
            optim.apply(
                optim.compile_sweep(optimizer), ((*members, *bases),), (weights,), (constants,), front, found,
                np.empty(64, np.float32), streamed,
            )  # fmt: skip
            assert_same_bits(found, expected, f"{count} members, against numpy")

    @each_kind
    def test_compensated_updates_in_one_pass_are_as_many_passes(self, optimizer: Optimizer) -> None:
        front = rows(optimizer)
        optimizer = replace(optimizer, delay_compensation=0.25)
        pairs = list(zip(gradients(4), gradients(4, seed=9), strict=True))
        expected = front
        for step, pair in enumerate(pairs, start=1):
            expected = descend(optimizer, [pair], expected, first_step=step)
        assert_same_bits(descend(optimizer, pairs, front), expected, "4 updates in one pass")

    @each_kind
    def test_no_delay_is_no_compensation(self, optimizer: Optimizer) -> None:
        """The base is what it is descended onto: the same bits, however large the gradient is."""
        front, (g,) = rows(optimizer), gradients(1)
        if optimizer.name == "sgd":
            g[::5] *= np.float32(1e30)
        expected = descend(optimizer, [(g,)], front)
        found = descend(replace(optimizer, delay_compensation=0.25), [(g, front[0])], front)
        assert_same_bits(found, expected, "without a delay")

    def _follow_the_formula(self, optimizer: Optimizer) -> None:
        found = empty(optimizer)
        found[0][:] = np.random.default_rng(3).standard_normal(SIZE)
        exact: Exact = tuple([row.astype(np.float64) for row in found])
        weights = shares(2)
        for step in range(1, STEPS + 1):
            members = gradients(2, seed=step)
            found = descend(optimizer, [members], found, weights=[weights], first_step=step)
            pairs = zip(weights, members, strict=True)
            g = np.sum([float(w) * member.astype(np.float64) for w, member in pairs], axis=0)
            exact = exact_update(optimizer, exact, g, step)
        for a, b in zip(found, exact, strict=True):
            # About sixty roundings of half a unit in 2^-24 each.
            np.testing.assert_allclose(a, b, rtol=4e-6, atol=4e-6)

    @each_case
    def test_compiled_gives_the_same_bits_as_numpy(self, optimizer: Optimizer) -> None:
        front, (a, b, c) = rows(optimizer), gradients(3)
        expected = empty(optimizer)
        constants = optimizer.constants(5, optimizer.base_rate)
        optimizer.kernel()(((a, b, c),), (optimizer.weights(shares(3)),), (constants,), front, expected, None)
        found = descend(optimizer, [(a, b, c)], front, weights=[shares(3)], first_step=5)
        assert_same_bits(found, expected, "compiled, against the same function in numpy")

    if importlib.util.find_spec("torch"):

        @each_case
        def test_same_as_torch(self, optimizer: Optimizer) -> None:
            """Rounds of two unequal members, over a model in two shards whose bound lies within a line."""
            import torch

            s = optimizer.to_config()
            lr = s["learning_rate"]
            eps = s.get("epsilon", 0)
            moments = {"betas": (s.get("beta1", 0), s.get("beta2", 0)), "eps": eps}
            make: dict[str, Callable[[Any], Any]] = {
                "sgd": lambda p: torch.optim.SGD(p, lr, weight_decay=optimizer.weight_decay),
                "momentum": lambda p: torch.optim.SGD(
                    p, lr, momentum=s["momentum"], nesterov=s["nesterov"], weight_decay=optimizer.weight_decay
                ),
                "adam": lambda p: torch.optim.Adam(p, lr, **moments, weight_decay=optimizer.weight_decay),
                "adamw": lambda p: torch.optim.AdamW(p, lr, **moments, weight_decay=optimizer.weight_decay),
                "adagrad": lambda p: torch.optim.Adagrad(
                    p, lr, initial_accumulator_value=s["initial_accumulator_value"], eps=eps
                ),
                "rmsprop": lambda p: torch.optim.RMSprop(p, lr, s["alpha"], eps, momentum=s["momentum"]),
                "adadelta": lambda p: torch.optim.Adadelta(p, lr, s["rho"], eps),
            }
            if optimizer.name not in make:
                return  # one that torch does not have
            params = np.random.default_rng(3).standard_normal(SIZE).astype(np.float32)
            theirs = torch.nn.Parameter(torch.from_numpy(params.copy()))
            torch_optimizer = make[optimizer.name]([theirs])
            parts = [slice(0, 333), slice(333, SIZE)]
            shards = [empty(optimizer, part.stop - part.start) for part in parts]
            for shard, part in zip(shards, parts, strict=True):
                shard[0][:] = params[part]
            weights = shares(2)
            for step in range(1, STEPS + 1):
                a, b = gradients(2, seed=step)
                shards = [
                    descend(optimizer, [(a[part], b[part])], shard, weights=[weights], first_step=step)
                    for shard, part in zip(shards, parts, strict=True)
                ]
                theirs.grad = torch.from_numpy(weights[0] * a + weights[1] * b)
                torch_optimizer.step()
            found = np.concatenate([shard[0] for shard in shards])
            np.testing.assert_allclose(found, theirs.detach().numpy(), rtol=4e-6, atol=4e-6)

    def test_a_round_is_summed_from_left_to_right(self) -> None:
        optimizer = optim.SGD(learning_rate=1.0)
        for count in range(1, 9):
            members, weights = gradients(count), shares(count)
            total = weights[0] * members[0]
            for weight, member in zip(weights[1:], members[1:], strict=True):
                total = total + weight * member
            found = descend(optimizer, [members], empty(optimizer), weights=[weights])
            assert_same_bits(found, (np.float32(0) - total,), f"{count} members")

    @pytest.mark.parametrize("count", [9, 15, 16, 17, 30])
    def test_a_round_of_many_is_summed_from_left_to_right(self, count: int) -> None:
        optimizer = optim.SGD(learning_rate=1.0)
        members, weights = gradients(count), shares(count)
        total = weights[0] * members[0]
        for weight, member in zip(weights[1:], members[1:], strict=True):
            total = total + weight * member
        # Two lines a range, so that there are many ranges and a short last one.
        found = descend(optimizer, [members], empty(optimizer), weights=[weights], scratch_floats=64)
        assert_same_bits(found, (np.float32(0) - total,), f"{count} members")

    @each_case
    def test_a_round_of_many_is_one_update_with_their_sum(self, optimizer: Optimizer) -> None:
        front, members, weights = rows(optimizer), gradients(11), shares(11)
        total = weights[0] * members[0]
        for weight, member in zip(weights[1:], members[1:], strict=True):
            total = total + weight * member
        expected = descend(optimizer, [(total,)], front)
        for streamed in (False, True):
            found = descend(optimizer, [members], front, weights=[weights], streamed=streamed)
            assert_same_bits(found, expected, "11 members")

    # -- the same bits, however it is done

    @each_case
    def test_waiting_updates_in_one_pass_are_as_many_passes(self, optimizer: Optimizer) -> None:
        front, waiting = rows(optimizer), gradients(8)
        expected = front
        for count in range(1, 9):
            expected = descend(optimizer, [(waiting[count - 1],)], expected, first_step=count)
            if count in (1, 2, 3, 8):  # each takes its time to compile
                found = descend(optimizer, [(g,) for g in waiting[:count]], front)
                assert_same_bits(found, expected, f"{count} updates in one pass")

    @each_case
    @pytest.mark.parametrize("streamed", [False, True])
    def test_it_does_not_matter_where_a_range_is_cut(self, optimizer: Optimizer, streamed: bool) -> None:
        front, members = rows(optimizer), gradients(2)
        expected = descend(optimizer, [members], front, weights=[shares(2)])
        back = empty(optimizer)
        cuts = [0, 16, 480, 512, SIZE] if streamed else [0, 1, 17, 500, 512, 999, SIZE]
        for start, stop in itertools.pairwise(cuts):
            optim.apply(
                optim.compile_sweep(optimizer),
                (tuple([g[start:stop] for g in members]),),
                (optimizer.weights(shares(2)),),
                (optimizer.constants(1, optimizer.base_rate),),
                tuple([row[start:stop] for row in front]),
                tuple([row[start:stop] for row in back]),
                np.empty(0, np.float32),
                streamed,
            )
        assert_same_bits(back, expected, f"cut at {cuts}")

    @each_case
    def test_streamed_is_the_same_for_every_tail(self, optimizer: Optimizer) -> None:
        for size in TAILS:
            front, members = rows(optimizer, size), gradients(2, size)
            plain = descend(optimizer, [members], front, weights=[shares(2)])
            streamed = descend(optimizer, [members], front, weights=[shares(2)], streamed=True)
            assert_same_bits(streamed, plain, f"streamed, of {size}")

    @each_case
    def test_in_place_is_the_same(self, optimizer: Optimizer) -> None:
        front, members = rows(optimizer), gradients(2)
        expected = descend(optimizer, [members], front)
        found = descend(optimizer, [members], copy(front), in_place=True)
        assert_same_bits(found, expected, "in place")

    # -- what it leaves alone

    @each_case
    @pytest.mark.parametrize("streamed", [False, True])
    def test_nothing_but_the_back_is_written(self, optimizer: Optimizer, streamed: bool) -> None:
        for size in TAILS:
            front, members = rows(optimizer, size), gradients(2, size)
            before = copy((*front, *members))
            room = [optim.aligned_row(size + 64) for _ in front]
            for row in room:
                row[:] = 7
            optim.apply(
                optim.compile_sweep(optimizer),
                (tuple(members),),
                (optimizer.weights(shares(2)),),
                (optimizer.constants(1, optimizer.base_rate),),
                front,
                tuple([row[16 : 16 + size] for row in room]),
                np.empty(0, np.float32),
                streamed,
            )
            assert_same_bits((*front, *members), before, "what was read")
            for row in room:
                assert (row[:16] == 7).all()
                assert (row[16 + size :] == 7).all()

    # -- what is not finite

    @each_case
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_stays_where_it_is_and_is_not_lost(self, optimizer: Optimizer, bad: float) -> None:
        front, (a, b) = rows(optimizer), gradients(2)
        expected = descend(optimizer, [(a, b)], front)
        places = [0, 17, SIZE - 1]  # in the tail too
        b[places] = bad
        found = descend(optimizer, [(a, b)], front)
        others = np.delete(np.arange(SIZE), places)
        for row, good in zip(found, expected, strict=True):
            assert not np.isfinite(row[places]).any()
            assert_same_bits((row[others],), (good[others],), f"beside {bad}")

    # -- its description

    @each_case
    def test_its_description_is_json_and_makes_it_again(self, optimizer: Optimizer) -> None:
        assert optim.from_config(json.loads(json.dumps(optimizer.to_config()))) == optimizer

    @each_kind
    def test_what_goes_around_it_is_in_its_description_where_it_is_set(self, optimizer: Optimizer) -> None:
        compensating = replace(optimizer, delay_compensation=0.25)
        config = json.loads(json.dumps(compensating.to_config()))
        assert config == {**optimizer.to_config(), "delay_compensation": 0.25}
        assert optim.from_config(config) == compensating

    @each_case
    def test_a_schedule_changes_only_the_learning_rate(self, optimizer: Optimizer) -> None:
        changed = optimizer.with_learning_rate(0.25)
        assert changed.to_config() == {**optimizer.to_config(), "learning_rate": 0.25}
        front, members = rows(optimizer), gradients(1)
        frozen = descend(optimizer, [members], front, learning_rate=0.0)
        # Not the same bits: parameters that are computed from the state are rounded once more.
        np.testing.assert_allclose(frozen[0], front[0], rtol=2e-7, atol=2e-7)
