"""What becomes of a gradient that is not finite, near and far, on one shard and on two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import coproc

BAD = [np.nan, np.inf, -np.inf]


@pytest.fixture(params=["near", "far"])
def either(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("client" if request.param == "near" else "far")


def make(client: Any, name: str, shards: int, **how: Any) -> Any:
    sgd = coproc.optim.SGD(learning_rate=1.0)
    return client.create_model(name, params={"w": np.zeros(100, np.float32)}, optimizer=sgd, shards=shards, **how)


def gradient(value: float, at: int = 77) -> dict[str, Any]:
    made = np.ones(100, np.float32)
    made[at] = value
    return {"w": made}


@pytest.mark.parametrize("bad", BAD)
def test_it_is_refused_with_worker_step_and_place(either: Any, name: str, bad: float) -> None:
    model = make(either, name, 2)
    with model.join(worker=3) as worker:
        worker.push(gradient(1), step=0)
        with pytest.raises(coproc.PushRejected, match=r"worker 3 at step 1 is not finite: w\[77\] is"):
            worker.push(gradient(bad), step=1)
        assert not worker.push(gradient(1), step=1).duplicate
        assert set(worker.pull(min_version=2).flat.tolist()) == {-2.0}
    assert model.status().not_finite_count == 0
    model.delete()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("shards", [1, 2])
def test_it_is_skipped_and_counted(either: Any, name: str, bad: float, shards: int) -> None:
    model = make(either, name, shards, not_finite="skip")
    with model.join(worker=0) as worker:
        assert not worker.push(gradient(1), step=0).skipped
        assert worker.push(gradient(bad), step=1).skipped
        again = worker.push(gradient(bad), step=1)
        assert again.duplicate
        worker.skip(step=2)
        assert not worker.push(gradient(1), step=3).skipped
        assert set(worker.pull(min_version=2).flat.tolist()) == {-2.0}
        status = model.status()
    assert (status.version, status.pushes_count, status.not_finite_count) == (2, 4, 1)
    model.delete()


def test_a_round_goes_on_without_it(either: Any, name: str) -> None:
    model = make(either, name, 1, not_finite="skip", consistency=coproc.Bsp(workers=2))
    with model.join(worker=0) as one, model.join(worker=1) as other:
        one.push(gradient(2, 0), step=0, examples=5)
        assert other.push(gradient(np.nan), step=0, examples=3).skipped
        expected = -np.ones(100, np.float32)
        expected[0] = -2
        assert (one.pull(min_version=1).flat == expected).all()
    model.delete()


def test_another_policy_is_none(client: Any, name: str) -> None:
    with pytest.raises(coproc.ConfigError, match='not_finite must be "reject" or "skip"'):
        make(client, name, 1, not_finite="ignore")
