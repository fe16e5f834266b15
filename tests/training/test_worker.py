"""The worker loop against a model in memory: positions in the data, accumulation, fetches, ends, failures."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from coproc import grads
from coproc.data.base import Rows
from coproc.data.batches import Batches
from coproc.errors import ConfigError, Diverged, LeaseExpired, PushRejected, Timeout
from coproc.exchange import ExchangeSpec, Spent
from coproc.tasks import DataSpec, EpochReport, WorkerReport, WorkerTask
from coproc.worker import run_worker


def backend():
    return grads.create({"backend": "mlp", "inputs": 3, "hidden": [4], "outputs": 2})


def rows(count, seed=1):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 3)).astype(np.float32)
    return Rows(features, (features.sum(axis=1) > 0).astype(np.int32))


def task(**changes):
    plain = WorkerTask(
        run="r",
        worker=0,
        exchange=ExchangeSpec("fake", {}),
        backend={"backend": "mlp"},
        data=DataSpec("none", "/runs/r/data/00000", batch_size=4),
        pushes_per_epoch=3,
        until_step=3,
        end_step=6,
        timeout_s=10.0,
    )
    return replace(plain, **changes)


def work(model, partition, wanted, **parts):
    exchanges = []

    def open_exchange(each):
        exchanges.append(model.join(each.worker))
        return exchanges[-1]

    report = run_worker(
        wanted,
        open_exchange=parts.pop("open_exchange", open_exchange),
        open_source=lambda each: Batches(partition, each.data.batch_size, 7, each.worker),
        open_backend=parts.pop("open_backend", lambda each: backend()),
        **parts,
    )
    return report, exchanges


def start():
    return backend().init(3)


def descend_by_hand(partition, pushes, n_send=1, learning_rate=0.1, epoch_batches=3):
    """The same training without any of the code under test: one gradient a push, rows taken by hand."""
    net, params = backend(), start().copy()
    source = Batches(partition, 4, 7, 0)
    pushes_per_epoch = -(-epoch_batches // n_send)
    for step in range(pushes):
        epoch, place = divmod(step, pushes_per_epoch)
        chosen = source.order(epoch)[place * n_send * 4 : (place + 1) * n_send * 4]
        gradient = np.empty_like(params)
        net.value_and_grad(params, grads.Batch(partition.features[chosen], partition.labels[chosen]), out=gradient)
        params -= np.float32(learning_rate) * gradient
    return params


def test_one_worker_descends_as_by_hand(fake_model):
    partition = rows(10)
    model = fake_model(start())
    report, exchanges = work(model, partition, task(until_step=6))
    np.testing.assert_allclose(model.params, descend_by_hand(partition, 6), rtol=1e-5, atol=1e-7)
    assert [each.pushes for each in report.epochs] == [3, 3]
    assert [each.examples for each in report.epochs] == [10, 10]
    assert (report.first_step, report.next_step, report.stopped) == (0, 6, False)
    assert model.left == {0}
    assert exchanges[0].closed
    assert not exchanges[0].aborted
    assert 0.2 < report.epochs[0].loss_sum / 10 < 2


def test_a_task_ends_at_its_group_and_the_next_continues(fake_model):
    partition = rows(10)
    model = fake_model(start())
    for until in (2, 4, 6):
        report, _ = work(model, partition, task(until_step=until))
        assert report.next_step == until
        assert model.left == ({0} if until == 6 else set())
    np.testing.assert_allclose(model.params, descend_by_hand(partition, 6), rtol=1e-5, atol=1e-7)
    report, _ = work(model, partition, task(until_step=4))
    assert report.epochs == ()


@pytest.mark.parametrize("n_send", [2, 3, 5])
def test_accumulated_batches_weigh_each_example_once(n_send, fake_model):
    # 10 rows in batches of 4, 4, 2: a plain mean of the batches' means would be another gradient.
    partition = rows(10)
    model = fake_model(start())
    pushes = -(-3 // n_send)
    report, _ = work(model, partition, task(n_send=n_send, n_fetch=n_send, pushes_per_epoch=pushes, until_step=pushes))
    np.testing.assert_allclose(model.params, descend_by_hand(partition, pushes, n_send), rtol=1e-5, atol=1e-7)
    assert report.epochs[0].pushes == pushes
    assert report.epochs[0].examples == 10


def test_fetches_every_n_fetch_batches_and_keeps_a_copy_in_between(fake_model):
    partition = rows(40)  # 10 batches
    model = fake_model(start())
    work(model, partition, task(n_fetch=4, pushes_per_epoch=10, until_step=10, end_step=10))
    pulls = [read for _, what, read in model.calls if what == "pull"]
    assert pulls == [0, 4, 8]
    assert np.isfinite(model.params).all()  # a view kept over a push is NaN in this fake


def test_fetches_between_the_batches_of_a_push(fake_model):
    model = fake_model(start())
    wanted = task(n_send=4, n_fetch=2, pushes_per_epoch=3, until_step=3)
    work(model, rows(40), wanted)
    pulls = [read for _, what, read in model.calls if what == "pull"]
    assert pulls == [0, 0, 1, 1, 2]  # 4 + 4 + 2 batches
    assert np.isfinite(model.params).all()


@pytest.mark.parametrize("counts", [(10, 10), (9, 2), (5, 0), (0, 3)])
def test_synchronous_workers_equal_one_process_with_unequal_partitions(counts, fake_model):
    partitions = [rows(count, seed) for seed, count in enumerate(counts)]
    model = fake_model(start(), bsp_workers=2)
    pushes = max(-(-count // 4) for count in counts)
    threads = []
    reports = {}
    for worker, partition in enumerate(partitions):
        wanted = task(worker=worker, pushes_per_epoch=pushes, until_step=2 * pushes, end_step=2 * pushes)

        def run(worker=worker, partition=partition, wanted=wanted):
            reports[worker] = work(model, partition, wanted)[0]

        threads.append(threading.Thread(target=run))
        threads[-1].start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()

    net, params = backend(), start().copy()
    for step in range(2 * pushes):
        epoch, place = divmod(step, pushes)
        features, labels = [], []
        for worker, partition in enumerate(partitions):
            chosen = Batches(partition, 4, 7, worker).order(epoch)[place * 4 : place * 4 + 4]
            features.append(partition.features[chosen])
            labels.append(partition.labels[chosen])
        gradient = np.empty_like(params)
        batch = grads.Batch(np.concatenate(features), np.concatenate(labels))
        net.value_and_grad(params, batch, out=gradient)
        params -= np.float32(0.1) * gradient
    np.testing.assert_allclose(model.params, params, rtol=1e-4, atol=1e-6)
    for worker, count in enumerate(counts):
        assert sum(each.examples for each in reports[worker].epochs) == 2 * count
        assert sum(each.skips for each in reports[worker].epochs) == 2 * (pushes - -(-count // 4))


def test_a_duplicate_counts_for_nobody_and_the_loop_goes_on_after_its_twin(fake_model):
    partition = rows(10)
    model = fake_model(start())
    twin_at = {1}

    def open_exchange(each):
        exchange = model.join(each.worker)
        push = exchange.push

        def late(*, step, examples, loss, timeout_s, last):
            if step in twin_at:  # the twin was faster, by two steps
                twin_at.clear()
                for taken in (step, step + 1):
                    model.commit(0, taken, examples, np.zeros_like(model.params))
            return push(step=step, examples=examples, loss=loss, timeout_s=timeout_s, last=last)

        exchange.push = late
        return exchange

    report, _ = work(model, partition, task(until_step=6), open_exchange=open_exchange)
    assert sum(each.duplicates for each in report.epochs) == 1
    assert sum(each.pushes for each in report.epochs) == 4
    assert report.epochs[0].examples in (4 + 0, 4 + 4)  # step 0 only: 1 was the twin's, 2 too
    assert report.next_step == 6


def test_joins_again_when_its_lease_is_lost(fake_model):
    partition = rows(10)
    model = fake_model(start())
    opened = []

    def open_exchange(each):
        exchange = model.join(each.worker)
        exchange.expire_at = 2 if not opened else None
        opened.append(exchange)
        return exchange

    report, _ = work(model, partition, task(until_step=6), open_exchange=open_exchange)
    assert len(opened) == 2
    assert opened[0].aborted
    np.testing.assert_allclose(model.params, descend_by_hand(partition, 6), rtol=1e-5, atol=1e-7)
    assert sum(each.pushes for each in report.epochs) == 6
    # Two pushes and three pulls of the first, four of each of the second.
    assert [each.spent.in_bytes for each in opened] == [3 * model.params.nbytes, 4 * model.params.nbytes]
    assert report.spent == Spent(7 * model.params.nbytes, 6 * model.params.nbytes, 7 * model.params.nbytes)


def test_gives_up_when_the_lease_is_lost_again_and_again(fake_model):
    model = fake_model(start())

    def open_exchange(each):
        exchange = model.join(each.worker)
        exchange.expire_at = 1
        return exchange

    with pytest.raises(LeaseExpired):
        work(model, rows(10), task(), open_exchange=open_exchange)


class Broken:
    """A backend whose loss goes wrong at the given call."""

    def __init__(self, at, loss):
        self.calls, self.at, self.loss = 0, at, loss

    def value_and_grad(self, params, batch, *, out, accumulate=False):
        self.calls += 1
        out.fill(0)
        return self.loss if self.calls == self.at else 0.5


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Broken(5, loss=float("nan")), "the loss is nan"),
        (Broken(5, loss=float("inf")), "the loss is inf"),
    ],
)
def test_says_where_it_diverged(broken, words, fake_model):
    model = fake_model(start())
    with pytest.raises(Diverged) as caught:
        work(model, rows(10), task(worker=2, until_step=6), open_backend=lambda each: broken)
    message = str(caught.value)
    assert words in message
    assert "worker 2" in message
    assert "step 4 (epoch 2)" in message
    assert "learning rate" in message
    assert model.next_step[2] == 4
    assert 2 not in model.left


def test_other_rejections_stay_what_they_are(fake_model):
    model = fake_model(start())

    def open_exchange(each):
        exchange = model.join(each.worker)

        def refuse(**_):
            raise PushRejected("step out of turn")

        exchange.push = refuse
        return exchange

    with pytest.raises(PushRejected, match="out of turn"):
        work(model, rows(10), task(), open_exchange=open_exchange)


def test_stops_after_a_push_that_knows_to_be_the_last(fake_model):
    model = fake_model(start())
    report, exchanges = work(model, rows(10), task(until_step=6), stop=lambda: model.version >= 2)
    assert report.stopped
    assert report.next_step == 3
    assert model.lasts == [False, False, True]
    assert not model.left
    assert exchanges[0].closed


def test_stops_at_once_before_the_first_push(fake_model):
    model = fake_model(start())
    report, exchanges = work(model, rows(10), task(until_step=6), stop=lambda: True)
    assert (report.stopped, report.next_step, model.calls) == (True, 0, [])
    assert exchanges[0].closed


def test_who_has_done_all_steps_was_not_stopped(fake_model):
    model = fake_model(start())
    report, _ = work(model, rows(10), task(until_step=6), stop=lambda: model.version >= 5)
    assert (report.stopped, report.next_step) == (False, 6)
    assert model.left == {0}


@pytest.mark.parametrize(
    ("count", "changes", "lasts"),
    [
        (10, {"until_step": 1}, [True]),
        (10, {"until_step": 3}, [False, False, True]),
        (10, {"until_step": 4}, [False, False, False, True]),  # into the next epoch
        (4, {"until_step": 3}, [True]),  # two steps are skipped after it
        (8, {"until_step": 6}, [False, False, False, True]),
        (0, {"until_step": 6}, []),
        (40, {"until_step": 3, "n_send": 4, "n_fetch": 4}, [False, False, True]),
        (20, {"until_step": 3, "n_send": 4, "n_fetch": 4}, [False, True]),
    ],
)
def test_the_last_push_of_a_task_is_the_last_that_has_a_gradient(count, changes, lasts, fake_model):
    model = fake_model(start(), bsp_workers=1)
    work(model, rows(count), task(**changes))
    assert model.lasts == lasts


def test_stops_while_it_waits_for_others(fake_model):
    model = fake_model(start(), bsp_workers=2)
    report, _ = work(model, rows(10), task(until_step=6, timeout_s=60), stop=lambda: bool(model.next_step))
    assert report.stopped
    assert report.next_step == 1


def test_a_wait_ends_with_a_sentence(fake_model):
    model = fake_model(start(), bsp_workers=2)
    with pytest.raises(Timeout, match=r"worker 0 waited 0 s at step 1: version 1 is not there"):
        work(model, rows(10), task(until_step=6, timeout_s=0.2))


def test_staleness_is_counted_from_the_version_read(fake_model):
    model = fake_model(start())

    def open_exchange(each):
        exchange = model.join(each.worker)
        pull = exchange.pull

        def overtaken(*, timeout_s):
            pulled = pull(timeout_s=timeout_s)
            model.commit(9, model.next_step.get(9, 0), 1, np.zeros_like(model.params))
            return pulled

        exchange.pull = overtaken
        return exchange

    report, _ = work(model, rows(10), task(), open_exchange=open_exchange)
    assert report.epochs[0].staleness_sum == 3
    assert report.epochs[0].staleness_max == 1


def test_leaves_after_each_task_where_it_is_asked_to(fake_model):
    model = fake_model(start())
    work(model, rows(10), task(until_step=2, leave_after_task=True))
    assert model.left == {0}


def test_tasks_and_reports_travel_as_json():
    wanted = task(backend={"backend": "mlp", "hidden": [4]}, worker=3)
    assert WorkerTask.from_json(wanted.to_json()) == wanted
    report = WorkerReport(1, 0, 4, (EpochReport(0, 4, 16, 2.5),), False, 0.25, spent=Spent(8, 4, 12, 0.5))
    assert WorkerReport.from_json(report.to_json()) == report
    with pytest.raises(ConfigError, match="another version"):
        WorkerTask.from_json('{"run": "r", "surprise": 1}')
    with pytest.raises(ConfigError, match="another version"):
        WorkerTask.from_json('{"run": "r"}')


@pytest.mark.parametrize("name", ["n_send", "n_fetch", "pushes_per_epoch"])
def test_refuses_impossible_tasks(name):
    with pytest.raises(ConfigError, match=name):
        task(**{name: 0})


def test_reports_add_up():
    mine, theirs = EpochReport(1, 2, 8, 3.0, staleness_max=2), EpochReport(1, 1, 4, 1.0, staleness_max=5)
    mine.add(theirs)
    assert mine == EpochReport(1, 3, 12, 4.0, staleness_max=5)
