"""All-reduce: what it moves, what a death does, who may meet, and what it refuses; for the rest see the conformance."""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import socket
import threading
import uuid
from dataclasses import replace

import numpy as np
import pytest

import coproc
from coproc import optim
from coproc.compression import from_config
from coproc.errors import ConfigError, DataError, ModelExists, Timeout, WorkerLost
from coproc.modes.allreduce import AllReduceMode
from coproc.modes.base import ModeSettings
from coproc.peers import slices
from coproc.peers.slices import bounds, coded, decode
from coproc.peers.streams import Meeting, Streams
from coproc.pools.base import ATTEMPT_LIMIT
from coproc.pools.inline import InlinePool
from coproc.pools.spark import SparkPool
from coproc.testing.deaths import Deaths
from coproc.testing.modes import WORKS, assert_close, trained
from coproc.testing.works import Training, Work, one_process
from coproc.worker import run_worker
from storage_tier import TierClient

WORK = Work((24, 24, 24))
BF16 = from_config({"name": "bf16"})
SECRET = "0" * 32


@pytest.fixture(params=[None, 1], ids=["streams", "two-jobs"])
def group(request):
    return request.param


@pytest.mark.parametrize("case", WORKS)
def test_two_jobs_a_step_are_one_process(ground, case):
    work = replace(WORKS[case], group=1)
    flat, _ = trained("allreduce", ground, work)
    assert_close(flat, one_process(work))


@pytest.mark.parametrize(("compression", "value_bytes"), [(None, 4), (BF16, 2)], ids=["float32", "bf16"])
def test_bytes_and_jobs_are_those_of_the_formula(ground, group, compression, value_bytes):
    work = replace(WORK, group=group)
    with ground.pool("inline") as pool, Training("allreduce", ground, work, compression=compression) as training:
        training.run(pool)
        costs, size = training.mode.costs(), work.initial().size
    steps = sum(work.pushes_per_epoch) // work.workers * work.epochs
    each = 2 * size * value_bytes * (work.workers - 1) / work.workers * steps
    assert costs.worker_in_bytes == costs.worker_out_bytes == each * work.workers
    assert costs.driver_in_bytes == costs.driver_out_bytes == 0
    assert costs.jobs_count == (work.epochs if group is None else 2 * steps)


def test_both_forms_give_the_same_bits(ground):
    flats = [trained("allreduce", ground, replace(WORK, group=group))[0] for group in (None, 1, 4)]
    assert flats[0].tobytes() == flats[1].tobytes() == flats[2].tobytes()


def test_far_from_the_tier(ground, group, monkeypatch):
    monkeypatch.setattr(slices, "TierClient", functools.partial(TierClient, near=False))
    work = Work((9, 0, 7), group=group)
    with ground.pool("inline") as pool, Training("allreduce", ground, work, compression=BF16) as training:
        truncated = training.run(pool)
    flat, _ = trained("allreduce", ground, work)
    assert_close(flat, one_process(work))
    np.testing.assert_allclose(truncated, flat, rtol=0.05, atol=0.02)


def test_what_travels_truncated_is_summed_and_kept_whole(ground, group):
    work = replace(WORK, group=group)
    with ground.pool("inline") as pool, Training("allreduce", ground, work, compression=BF16) as training:
        flat = training.run(pool)
    expected = one_process(work)
    np.testing.assert_allclose(flat, expected, rtol=0.05, atol=0.02)
    assert not np.array_equal(flat, expected)
    # Masters have all of their bits, although what travels has not.
    assert (flat.view(np.uint32) & 0xFFFF).any()


def test_truncation_is_the_upper_half():
    values = np.array([1.0, -1.0, 3.1415927, 1e-30, 0.0, 65504.0], np.float32)
    codes, out = coded(values, True), np.empty_like(values)
    decode(codes, out)
    assert codes.nbytes == values.nbytes // 2
    assert out.view(np.uint32).tolist() == (values.view(np.uint32) & 0xFFFF0000).tolist()
    assert (np.abs(out) <= np.abs(values)).all()
    assert coded(values, False) is values


@pytest.mark.parametrize(("size", "peers"), [(10, 3), (12, 4), (7, 7), (1_863_690, 48), (5, 1)])
def test_slices_are_those_of_bigdl(size, peers):
    parts = bounds(size, peers)
    assert [part.start for part in parts] == [sum(p.stop - p.start for p in parts[:n]) for n in range(peers)]
    assert parts[-1].stop == size
    lengths = [part.stop - part.start for part in parts]
    assert lengths == [size // peers + 1] * (size % peers) + [size // peers] * (peers - size % peers)


@pytest.mark.parametrize("pool", ["inline", "processes"])
def test_a_death_in_the_first_job_is_made_good_by_that_task_alone(ground, tmp_path, pool):
    work = replace(WORK, group=1, epochs=1, rates=(0.1,))
    deaths = Deaths(tmp_path, [(1, 1, "before"), (2, 3, "after")])
    with ground.pool(pool, deaths) as there, Training("allreduce", ground, work) as training:
        flat = training.run(there)
        assert training.mode.costs().jobs_count == 2 * max(work.pushes_per_epoch)
    assert deaths.died == 2
    assert_close(flat, one_process(work))
    assert sum(part.examples for report in training.reports for part in report.epochs) == sum(work.rows)


def test_a_death_among_streams_ends_the_group_which_is_run_again(ground, tmp_path):
    deaths = Deaths(tmp_path, [(1, 3, "before")])
    with ground.pool("processes", deaths) as there, Training("allreduce", ground, WORK) as training:
        flat = training.run(there)
        assert training.mode.costs().jobs_count == WORK.epochs + 1
    assert deaths.died == 1
    assert_close(flat, one_process(WORK))
    assert sum(part.examples for report in training.reports for part in report.epochs) == sum(WORK.rows) * WORK.epochs


def test_a_group_whose_workers_always_die_ends_with_a_sentence(ground, tmp_path):
    runs = []

    def mortal(task, *, stop):
        if task.worker == 1 and len(runs) < 100:
            runs.append(task.worker)
            folder = tmp_path / str(len(runs))
            folder.mkdir()
            return Deaths(folder, [(1, 2, "before")]).run_task(task, stop=stop)
        return run_worker(task, stop=stop)

    with Training("allreduce", ground, WORK) as training:
        with pytest.raises(WorkerLost, match=r"lost worker 1|attempt of worker 1 died"):
            training.run(InlinePool(run_task=mortal))
        assert len(runs) == ATTEMPT_LIMIT == training.mode.costs().jobs_count
        # Nothing of it is in the model.
        assert training.mode.snapshot(timeout_s=10).version == 0
        np.testing.assert_array_equal(training.mode.snapshot(timeout_s=10).flat, WORK.initial())


def test_what_one_worker_fails_with_all_of_them_tell(ground, tmp_path):
    deaths, told = Deaths(tmp_path, [(1, 2, "refuse")]), threading.Event()

    def one(task, *, stop):
        try:
            return deaths.run_task(task, stop=stop)
        except DataError:
            # The driver hears of those first who have only lost a peer.
            assert task.worker != 1 or told.wait(30)
            told.set()
            raise

    with Training("allreduce", ground, WORK) as training:
        with pytest.raises(DataError, match="worker 1 refuses step 2"):
            training.run(InlinePool(run_task=one))
        assert training.mode.costs().jobs_count == 1


def test_a_stop_leaves_the_version_before_the_group(ground):
    with ground.pool("inline") as pool, Training("allreduce", ground, WORK) as training:
        asked = []

        def stop():
            asked.append(True)
            return len(asked) > 8

        assert training.mode.run(pool, training.tasks(0, 6), stop=stop) == []
        assert training.mode.snapshot(timeout_s=10).version == 0
        # And the training can go on from there.
        assert_close(training.run(pool), one_process(WORK))


# ---- who meets


@pytest.fixture
def tier(cluster):
    with coproc.connect(cluster.address, token="secret") as client:
        yield client.tier


@pytest.fixture
def meet(tier, cluster, request):
    made = []

    def make(peer, peers=2, secret=SECRET, directory="one"):
        folder = f"/meet-{request.node.name}/{directory}"
        made.append(Meeting(tier, cluster.address, folder, secret, peer, peers))
        return made[-1]

    yield make
    for each in made:
        each.close()
    tier.delete_prefix(f"/meet-{request.node.name}")


def join_all(meetings):
    threads = [threading.Thread(target=each.join, args=(30.0,)) for each in meetings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(each.sockets) == len(meetings) - 1 for each in meetings)


def test_whoever_does_not_know_the_secret_is_a_stranger(tier, meet):
    first, second = meet(0), meet(1, secret="1" * 32)
    with pytest.raises(Timeout, match=r"worker 0 waits .* worker 1"):
        first.join(0.1)
    second_joins = threading.Thread(target=second.join, args=(30.0,))
    second_joins.start()
    second_joins.join()  # it has connected, and is told nothing
    with pytest.raises(Timeout, match=r"worker 0 waits .* worker 1"):
        first.join(0.5)
    assert first.sockets == {}
    facts = next(file.metadata for file in tier.list(first._directory) if file.path.endswith("00000"))
    with socket.create_connection((facts["host"], facts["port"])) as noise:
        noise.sendall(b"GET / HTTP/1.1\r\n" + b"x" * 100)
        with pytest.raises(Timeout):
            first.join(0.5)


def test_a_second_attempt_of_a_peer_ends_the_meeting_for_all(meet):
    first, second, again = meet(0, 3), meet(1, 3), meet(1, 3)
    for each in (first, second):
        with pytest.raises(Timeout):
            each.join(0.05)
    with pytest.raises(WorkerLost, match="an attempt of worker 1 died among its peers"):
        again.join(1.0)
    with pytest.raises(WorkerLost, match="an attempt of worker 1 died among its peers"):
        first.join(10.0)


def test_a_peer_that_is_gone_while_it_is_greeted_leaves_no_socket(meet, monkeypatch):
    class Gone(socket.socket):
        def sendall(self, data):
            raise ConnectionResetError("gone")

    ends = socket.socketpair()
    gone = Gone(fileno=ends[0].detach())
    first, second = meet(0), meet(1)
    with pytest.raises(Timeout):
        first.join(0.05)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: gone)
    with ends[1], pytest.raises(WorkerLost, match=r"worker 1 lost worker 0: it does not answer .*\(gone\)"):
        second.join(10.0)
    assert gone.fileno() == -1


def test_a_peer_that_says_nothing_is_lost_in_time(meet):
    meetings = [meet(0), meet(1)]
    join_all(meetings)
    streams = Streams(meetings[0])
    with pytest.raises(WorkerLost, match="worker 0 lost worker 1: nothing came or went for 0 s"):
        streams.move({1: iter([memoryview(bytearray(1))])}, 0.2)
    meetings[1].close()
    with pytest.raises(WorkerLost, match="worker 0 lost worker 1: its stream broke"):
        streams.move({1: iter([memoryview(bytearray(1))])}, 10.0)
    streams.close()


def test_both_ways_at_once_more_than_sockets_hold(meet):
    meetings = [meet(peer, 3) for peer in range(3)]
    join_all(meetings)
    size = 1 << 24
    got = {}

    def one(peer):
        streams = Streams(meetings[peer])
        into = {other: bytearray(size) for other in range(3) if other != peer}
        for other in into:
            streams.send(other, bytes([peer]) * size)
        streams.move({other: iter([memoryview(b"").cast("B"), memoryview(view)]) for other, view in into.items()}, 30.0)
        got[peer] = {other: set(view) for other, view in into.items()}
        streams.close()

    threads = [threading.Thread(target=one, args=(peer,)) for peer in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {peer: {other: {other} for other in range(3) if other != peer} for peer in range(3)}


# ---- what is refused


def settings(ground, **changes):
    given = {
        "address": ground.address,
        "token": ground.token,
        "model": "refused",
        "params": {"w": np.zeros((3, 2), np.float32)},
        "optimizer": optim.SGD(0.1),
        "consistency": coproc.Bsp(workers=2),
    }
    return ModeSettings(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optimizer": optim.LAMB(0.1)}, "goes by norms over the whole model"),
        ({"optimizer": optim.SGD(0.1, clip_norm=1.0)}, "goes by norms over the whole model"),
        ({"consistency": coproc.Bsp(workers=7)}, "6 parameters are cut into slices"),
        ({"consistency": coproc.Asp()}, "it goes with Bsp"),
        ({"compression": from_config({"name": "int8"})}, "upper half of it, bf16, and not int8"),
    ],
    ids=["lamb", "clip-norm", "workers", "asp", "int8"],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(ground, tier, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        AllReduceMode(settings(ground, **changes))
    assert not tier.exists("/allreduce/refused")


def test_one_peer_knows_all_norms(ground):
    work = Work((12,), optimizer=optim.LAMB(0.1), rates=(0.1, 0.1, 0.1))
    for group in (None, 1):
        flat, _ = trained("allreduce", ground, replace(work, group=group))
        assert_close(flat, one_process(work))


def test_two_runs_of_one_name_are_refused(ground, tier):
    first = AllReduceMode(settings(ground))
    try:
        with pytest.raises(ModelExists, match="coprocessor fs rm -r /allreduce/refused"):
            AllReduceMode(settings(ground))
        assert tier.exists("/allreduce/refused/run")
    finally:
        first.close()
        first.close()
    assert not tier.exists("/allreduce/refused")


def test_steps_leave_no_files_behind(ground, tier):
    work = replace(WORK, group=1, epochs=1, rates=(0.1,))
    with ground.pool("inline") as pool, Training("allreduce", ground, work) as training:
        counts = set()
        for last in range(1, 5):
            training.mode.run(pool, [replace(task, until_step=last) for task in training.tasks(0, 6)])
            training.mode._settle()
            counts.add(len(training.files()))
        # The run's mark, and of each of three peers its weights and its state.
        assert counts == {7}


# ---- Spark


class Killing(SparkPool):
    """Kills the Python worker of the second task: after what it does, in each job; or once, in its second step."""

    def __init__(self, session, folder, by_streams):
        super().__init__(session)
        self.folder, self.by_streams = str(folder), by_streams

    def each(self, count, body, **more):
        folder, by_streams = self.folder, self.by_streams

        def killing(number):
            from pyspark import TaskContext

            from coproc.peers.gang import GangExchange

            def die():
                pathlib.Path(folder, uuid.uuid4().hex).touch()
                os.kill(os.getpid(), signal.SIGKILL)

            context, push = TaskContext.get(), GangExchange.push

            def in_the_second(self, **told):
                if told["step"] == 1:
                    die()
                return push(self, **told)

            mortal = context.attemptNumber() == 0 and context.partitionId() == 1
            if by_streams and mortal and not os.listdir(folder):
                GangExchange.push = in_the_second
            answer = body(number)
            if mortal and not by_streams:
                die()
            return answer

        return super().each(count, killing, **more)


def test_on_spark_a_killed_task_counts_once(spark, ground, group, tmp_path):
    work = Work((8, 5), epochs=1, rates=(0.1,), group=group)
    with Training("allreduce", ground, work) as training:
        flat = training.run(Killing(spark, tmp_path, by_streams=group is None))
        # Two jobs for each of two steps, a death in each; or the one job, and the one that took its place.
        assert training.mode.costs().jobs_count == (2 if group is None else 4)
    assert len(list(tmp_path.iterdir())) == (1 if group is None else 4)
    assert_close(flat, one_process(work))
