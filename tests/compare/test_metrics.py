"""The numbers of a row, where they can be said beforehand."""

import pytest

from coproc.trials.base import Point
from coproc.trials.metrics import Clock, Group, metrics_of, percentile
from coproc.trials.record import row_of


def row(groups, samples, *, epochs=(), costs=None, startup_s=None, **point):
    values = {"workers": 2, "batch_size": 10, "contestant": "coproc", **point}
    return row_of(Point(**values), 0) | {
        "groups": groups,
        "samples": samples,
        "epochs": list(epochs),
        "costs": costs or {},
        "startup_s": startup_s,
    }


def gradients(worker, began_s, count, *, step_s=1.0, examples=10, loss=1.0, staleness=0):
    """One after the other: a quarter of the time pulls, half computes, a quarter pushes."""
    return [
        [worker, n, began_s + n * step_s, step_s / 4, step_s / 2, step_s / 4, examples, loss, staleness]
        for n in range(count)
    ]


def two_workers(began_s, count, **more):
    return [*gradients(0, began_s, count, **more), *gradients(1, began_s, count, **more)]


def test_the_first_group_of_several_is_no_part_of_a_rate():
    slow, quick = two_workers(100, 10, step_s=9.0), two_workers(200, 20)
    found = metrics_of(row([[0, 0, 100, 190], [0, 1, 200, 220]], [*slow, *quick]))
    assert found["steps_per_s"] == pytest.approx(1.0)
    assert found["examples_per_s"] == pytest.approx(20.0)
    assert found["compute_s"] == pytest.approx(0.5)


def test_of_a_single_group_the_first_tenth_is_left_out():
    # 4 slow gradients, then 36 quick ones: the window begins where the slow ones have ended.
    slow, quick = two_workers(0, 2, step_s=50.0), two_workers(100, 18)
    found = metrics_of(row([[0, 0, 0, 118]], [*slow, *quick]))
    assert found["steps_per_s"] == pytest.approx(1.0)
    assert found["pull_s"] == found["push_s"] == pytest.approx(0.25)


def test_validation_between_epochs_takes_no_training_time():
    samples = [*two_workers(0, 10), *two_workers(1000, 10), *two_workers(5000, 10)]
    found = metrics_of(row([[0, 0, 0, 10], [1, 0, 1000, 1010], [2, 0, 5000, 5010]], samples))
    assert found["steps_per_s"] == pytest.approx(1.0)


def test_a_wait_between_groups_of_one_epoch_is_training_time():
    samples = [*two_workers(0, 1), *two_workers(2, 1), *two_workers(4, 1)]
    found = metrics_of(row([[0, 0, 0, 1], [0, 1, 2, 3], [0, 2, 4, 5]], samples))
    assert found["steps_per_s"] == pytest.approx(2 / 3)


def test_a_push_of_several_batches_is_several_steps():
    samples = two_workers(0, 20, examples=50)
    found = metrics_of(row([[0, 0, 0, 20]], samples, costs={"jobs_count": 4, "worker_out_bytes": 8000}))
    assert found["steps_per_s"] == pytest.approx(5.0)
    assert found["compute_s"] == pytest.approx(0.1)
    assert found["jobs_per_step"] == pytest.approx(4 / 100)
    assert found["worker_bytes_per_step"] == pytest.approx(8000 / 100 / 2)


def test_who_trains_alone_has_one_worker():
    assert metrics_of(row([[0, 0, 0, 20]], gradients(0, 0, 20), contestant="single"))["steps_per_s"] == pytest.approx(1)


def test_bytes_and_jobs_are_of_one_step():
    costs = {
        "jobs_count": 30,
        "driver_in_bytes": 100,
        "driver_out_bytes": 200,
        "worker_in_bytes": 4000,
        "worker_out_bytes": 2000,
        "server_in_bytes": 2000,
        "server_out_bytes": 4000,
        "update_s": 5.0,
    }
    found = metrics_of(row([[0, 0, 0, 10]], two_workers(0, 10), costs=costs, servers=3))
    assert found["jobs"] == 30
    assert found["jobs_per_step"] == pytest.approx(3)
    assert found["driver_bytes_per_step"] == pytest.approx(30)
    assert found["worker_bytes_per_step"] == pytest.approx(300)
    assert found["server_bytes_per_step"] == pytest.approx(200)
    assert found["update_s"] == pytest.approx(0.5)


def test_scheduling_is_what_a_group_takes_beyond_its_busiest_worker():
    samples = [*gradients(0, 1, 10), *gradients(1, 1, 10, step_s=0.5)]
    assert metrics_of(row([[0, 0, 0, 14]], samples))["scheduling_s"] == pytest.approx(0.4)


def test_updates_of_the_driver_are_no_scheduling_and_those_of_servers_no_part_of_it():
    samples, costs = two_workers(1, 10), {"update_s": 2.0}
    told = {
        name: metrics_of(row([[0, 0, 0, 14]], samples, costs=costs, contestant=name))["scheduling_s"]
        for name in ("broadcast", "coproc")
    }
    assert told == {"broadcast": pytest.approx(0.2), "coproc": pytest.approx(0.4)}


def test_a_driver_that_waits_at_each_step_waits_for_the_slowest_of_it():
    # Two steps of 4 s; one worker is slow in the first, the other in the second.
    samples = [
        *(gradients(0, 0, 1, step_s=3.0) + gradients(1, 0, 1, step_s=1.0)),
        *([0, 1, 4.0, 0.0, 1.0, 0.0, 10, 1.0, 0], [1, 1, 4.0, 0.0, 3.0, 0.0, 10, 1.0, 0]),
    ]
    told = {
        name: metrics_of(row([[0, 0, 0, 8]], samples, contestant=name))["scheduling_s"] for name in ("storage", "http")
    }
    assert told == {"storage": pytest.approx(1.0), "http": pytest.approx(2.0)}


def test_many_groups_take_no_more_time_than_their_gradients():
    count = 20_000
    groups = [[0, n, n, n + 0.9] for n in range(count)]
    samples = [[0, n, float(n), 0.1, 0.2, 0.1, 10, 1.0, 0] for n in range(count)]
    assert metrics_of(row(groups, samples, workers=1))["scheduling_s"] == pytest.approx(0.5)


def test_staleness_as_shares_of_the_gradients():
    samples = [each for n in range(100) for each in gradients(0, n, 1, staleness=n)]
    found = metrics_of(row([[0, 0, 0, 100]], samples, workers=1))
    assert (found["staleness_p50"], found["staleness_p99"]) == (49, 98)


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.99, 4), (1.0, 4)])
def test_percentile_is_one_of_the_values(share, value):
    assert percentile([1, 2, 3, 4], share) == value


EPOCHS = (
    {"epoch": 1, "train_s": 10.0, "train_loss": 0.1, "loss": 0.5, "accuracy": 0.8},
    {"epoch": 2, "train_s": 20.0, "train_loss": 0.1, "loss": 0.3, "accuracy": 0.9},
    {"epoch": 3, "train_s": 30.0, "train_loss": 0.1, "loss": 0.4, "accuracy": 0.95},
)


def test_seconds_to_a_target_are_those_of_the_first_version_as_good():
    found = metrics_of(row([], [], epochs=EPOCHS, startup_s=5.0, target_loss=0.45, target_accuracy=0.95))
    assert found["seconds_to_loss"] == 20.0
    assert found["seconds_to_loss_with_startup"] == 25.0
    assert found["seconds_to_accuracy"] == 30.0
    assert found["seconds_to_accuracy_with_startup"] == 35.0
    assert (found["final_loss"], found["final_accuracy"]) == (0.4, 0.95)


def test_a_target_that_was_not_reached_or_not_asked_for_has_no_seconds():
    found = metrics_of(row([], [], epochs=EPOCHS, startup_s=5.0, target_accuracy=0.99))
    assert not [name for name in found if name.startswith("seconds")]


def test_a_run_without_samples_has_no_rates():
    assert metrics_of(row([], [])) == {"checksum": ""}


@pytest.mark.parametrize(("idle", "bound"), [(0.19, True), (0.2, False)])
def test_who_leaves_little_idle_is_bound_by_the_processors(idle, bound):
    assert metrics_of(row([], []) | {"cpu_idle": idle})["cpu_bound"] is bound


def test_the_clock_of_training_stands_still_between_epochs():
    clock = Clock([Group(0, 0, 10, 12), Group(0, 1, 13, 15), Group(1, 0, 100, 105)])
    assert [clock.at(moment) for moment in (0, 10, 12.5, 15, 50, 100, 102, 105, 900)] == [0, 0, 2.5, 5, 5, 5, 7, 10, 10]
