"""What goes around any optimizer, on servers: schedules, decay, clipping, staleness, and norms over shards."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import coproc
from coproc import schedules
from coproc.testing.formulas import exact_update, lamb, lars

SHAPES: dict[str, tuple[int, ...]] = {"a": (700, 3), "b": (33,), "c": (50, 41)}
# Two shards of it are stored past the caches, and no tensor but the first begins at a whole line.
LARGE: dict[str, tuple[int, ...]] = {"a": (1200, 901), "b": (33,), "c": (500, 411)}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())


def tensors(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def flat(params: dict[str, Any]) -> Any:
    return np.concatenate([params[name].ravel() for name in sorted(params)]).astype(np.float64)


def run(
    client: Any, name: str, optimizer: Any, shards: int, rounds: int = 4, shapes: dict[str, tuple[int, ...]] = SHAPES
) -> Any:
    """Rounds of two unequal workers; the parameters after them."""
    model = client.create_model(
        name, params=tensors(0, shapes), optimizer=optimizer, consistency=coproc.Bsp(workers=2), shards=shards
    )
    with model.join(worker=0) as one, model.join(worker=1) as other:
        for step in range(rounds):
            one.push(tensors(10 + step, shapes), step=step, examples=3)
            other.push(tensors(20 + step, shapes), step=step, examples=1)
            found = one.pull(min_version=step + 1, timeout_s=30).params
            found = {key: np.array(value) for key, value in found.items()}
    model.delete()
    return flat(found)


def gradient(step: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Any:
    return 0.75 * flat(tensors(10 + step, shapes)) + 0.25 * flat(tensors(20 + step, shapes))


KINDS = ["SGD", "Momentum", "Adam", "AdamW", "Adagrad", "RMSprop", "Adadelta", "FTRL", "Lion"]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_clipping_by_the_norm_of_the_whole_model(client: Any, name: str, kind: str, shards: int) -> None:
    optimizer = getattr(coproc.optim, kind)(learning_rate=0.05, clip_norm=2.0, clip_value=0.03, weight_decay=0.1)
    found = run(client, name, optimizer, shards)
    exact: Any = (flat(tensors(0)), *(np.zeros(SIZE) for _ in optimizer.state_rows))
    for step in range(4):
        g = gradient(step)
        g *= min(1.0, 2.0 / np.linalg.norm(g))
        exact = exact_update(coproc.optim.from_config({**optimizer.to_config(), "clip_norm": None}), exact, g, step + 1)
    np.testing.assert_allclose(found, exact[0], rtol=1e-5, atol=1e-5)


def test_a_norm_below_the_limit_changes_no_bit(client: Any, name: str) -> None:
    plain = run(client, name, coproc.optim.Adam(0.05), 2)
    assert (run(client, name, coproc.optim.Adam(0.05, clip_norm=1e6), 2) == plain).all()


@pytest.mark.parametrize(("shapes", "shards"), [(SHAPES, 1), (SHAPES, 2), (SHAPES, 5), (LARGE, 1), (LARGE, 2)])
@pytest.mark.parametrize("kind", ["LARS", "LAMB"])
def test_layers_that_span_shards_are_measured_whole(
    client: Any, name: str, kind: str, shards: int, shapes: dict[str, tuple[int, ...]]
) -> None:
    optimizer = getattr(coproc.optim, kind)(learning_rate=0.5, weight_decay=0.1)
    found = run(client, name, optimizer, shards, 2, shapes)
    bounds = list(itertools.pairwise([0, *itertools.accumulate(int(np.prod(shape)) for shape in shapes.values())]))
    rows: list[Any] = [flat(tensors(0, shapes))]
    rows += [np.zeros(len(rows[0])) for _ in optimizer.state_rows]
    for step in range(2):
        g = gradient(step, shapes)
        for (start, stop), shape in zip(bounds, shapes.values(), strict=True):
            part = slice(start, stop)
            after = _layer(kind, rows[0][part], [row[part] for row in rows[1:]], g[part], step + 1, len(shape) == 1)
            for row, value in zip(rows, after, strict=True):
                row[part] = value
    # Of a million gradients some are so near to 0 that their rounding shows in Adam's quotient.
    np.testing.assert_allclose(found, rows[0], rtol=1e-5, atol=1e-5 if shapes is SHAPES else 1e-3)


def _layer(kind: str, p: Any, state: Any, g: Any, t: int, vector: bool) -> Any:
    """One tensor's update in float64: rate 0.5, decay 0.1."""
    formula: Any = lars if kind == "LARS" else lamb
    if vector:
        return formula(p, state, g, t, 0.5, weight_decay=0.0, **({"trust": 1.0} if kind == "LARS" else {}))
    step = g
    if kind == "LAMB":
        step = p - lamb(p, state, g, t, 1.0, weight_decay=0.1)[0]
    return formula(p, state, g, t, 0.5, weight_decay=0.1, norms=(np.linalg.norm(p), np.linalg.norm(step)))


@pytest.mark.parametrize("size", [100, 40_000])
def test_a_schedule_goes_by_the_updates_of_every_shard(client: Any, name: str, size: int) -> None:
    course = schedules.WarmUp(schedules.Step(1.0, every=10, gamma=0.5), updates=3)
    model = client.create_model(name, params={"w": np.zeros(size, np.float32)}, optimizer=coproc.optim.SGD(course))
    expected = np.float32(0)
    with model.join(worker=0) as worker:
        for step in range(70):  # past one table of constants
            worker.push({"w": np.ones(size, np.float32)}, step=step)
            expected -= np.float32(course.factor(step + 1))
        assert set(worker.pull(min_version=70).flat.tolist()) == {expected}
        model.set_learning_rate(2.0)  # the course goes on
        worker.push({"w": np.ones(size, np.float32)}, step=70)
        expected -= np.float32(2 * course.factor(71))
        assert set(worker.pull(min_version=71).flat.tolist()) == {expected}
    model.delete()


def test_a_stale_gradient_is_descended_at_a_smaller_rate(client: Any, name: str) -> None:
    optimizer = coproc.optim.SGD(learning_rate=12.0, staleness="inverse")
    model = client.create_model(name, params={"w": np.zeros(40, np.float32)}, optimizer=optimizer)
    one = np.ones(40, np.float32)
    with model.join(worker=0) as slow, model.join(worker=1) as quick:
        slow.pull()
        for step in range(4):
            quick.pull(min_version=step)
            quick.push({"w": one}, step=step)  # fresh each time
        assert set(quick.pull(min_version=4).flat.tolist()) == {-48.0}
        slow.push({"w": one}, step=0)  # four versions old
        assert set(quick.pull(min_version=5).flat.tolist()) == {-51.0}
        slow.pull(min_version=5)
        quick.push({"w": one}, step=4)  # of version 5: fresh
        slow.push({"w": one}, step=1)
        assert slow.pull(min_version=7).flat[0] == -75.0
    model.delete()


def test_unknown_settings_are_refused(client: Any) -> None:
    with pytest.raises(coproc.ConfigError, match="staleness of SGD"):
        coproc.optim.SGD(0.1, staleness="twice")
    with pytest.raises(coproc.ConfigError, match="clip_norm of Adam must be a number greater than 0"):
        coproc.optim.Adam(clip_norm=0.0)
    with pytest.raises(coproc.ConfigError, match="no schedule is called"):
        coproc.optim.from_config({"name": "sgd", "learning_rate": {"name": "steps"}})


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("point", ["sweep.before:3", "publish.before:3", "publish.after:3"])
def test_norms_are_those_of_the_same_update_also_after_a_kill(point: str, killed: int, name: str) -> None:
    """One shard is an update ahead of the other, or both, when a server dies; all is as without it."""
    optimizer = coproc.optim.SGD(learning_rate=1.0, clip_norm=1.0)
    with coproc.LocalCluster(servers=2, memory_bytes=256 << 20) as cluster:
        cluster.servers[killed].environment["COPROC_FAILPOINT"] = point
        cluster.servers[killed].restart()
        with coproc.connect(cluster.address) as client:
            model = client.create_model(name, params={"w": np.zeros(64, np.float32)}, optimizer=optimizer)
            with model.join(worker=0) as worker:
                for step in range(4):
                    worker.push({"w": np.full(64, 1.0 + step, np.float32)}, step=step)
                cluster.servers[killed].wait(30)
                del cluster.servers[killed].environment["COPROC_FAILPOINT"]
                cluster.servers[killed].restart()
                for step in range(4, 6):
                    worker.push({"w": np.full(64, 1.0 + step, np.float32)}, step=step)
                found = worker.pull(min_version=6, timeout_s=30).flat
                # Each gradient is brought to the norm 1: an eighth in each of 64 elements.
                np.testing.assert_allclose(found, np.full(64, -6 / 8), rtol=1e-5)


@pytest.mark.parametrize("shards", [1, 2])
def test_parameters_are_averaged_or_the_best_are_taken(client: Any, name: str, shards: int) -> None:
    values, examples, losses = [8.0, 6.0, -4.0], [1, 2, 1], [0.5, 0.25, 0.75]
    seen = {}
    for combine, told in (("mean", losses), ("best", losses), ("best", [np.nan] * 3), ("best", [np.nan, 0.9, 0.8])):
        optimizer = coproc.optim.Average(0.5, combine=combine)
        model = client.create_model(
            name, params={"w": np.zeros(40, np.float32)}, optimizer=optimizer, consistency=coproc.Bsp(3), shards=shards
        )
        workers = [model.join(worker=n) for n in range(3)]
        for worker, value, count, loss in zip(workers, values, examples, told, strict=True):
            worker.push({"w": np.full(40, value, np.float32)}, step=0, examples=count, loss=loss)
        (found,) = set(workers[0].pull(min_version=1).flat.tolist())
        seen[combine, str(told)] = found
        for worker in workers:
            worker.close()
        model.delete()
    # Half of the way: to the mean 4, to the second's 6, to the mean, to the third's -4.
    assert list(seen.values()) == [2.0, 3.0, 2.0, -2.0]


def test_parameters_are_neither_clipped_nor_decayed() -> None:
    for wrong in ({"weight_decay": 0.1}, {"clip_norm": 1.0}, {"clip_value": 1.0}, {"learning_rate": 1.5}):
        with pytest.raises(coproc.ConfigError):
            coproc.optim.Average(**wrong)
