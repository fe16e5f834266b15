"""The counting test: servers and workers are killed at random all the while, and each step is in the model once.

Every attempt pushes constant vectors of integers of its own, and the rate is 1: at the end all elements of the model
are one number, minus the sum over (worker, step) of the value that won. Which values can have won is known from the
notes of the attempts (`history`), not from the model.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import coproc
from coproc import checkpoint, probe
from coproc.observers.paths import checkpoint_path
from coproc.shared.control import LOG_ENTRIES, Control, Kind
from storage_tier.errors import Unreachable

from . import history
from .waiting import until
from .working import COUNT as WORKERS
from .working import steps_of

TWINS = 2
SIZE = 1003
# Of a worker, from one kill to the next at the most.
STEPS = 60
STANDS_STILL_S = 60.0
CONSISTENCIES = [
    coproc.Bsp(workers=WORKERS),
    coproc.Quorum(workers=WORKERS, count=1, late="carry"),
    coproc.Asp(),
    coproc.Quorum(workers=WORKERS, count=1, late="drop"),
    coproc.Ssp(bound=3),
]
# Far attempts hit those of pushes in a server.
PUSH_POINTS = [point for point in probe.POINTS if point.startswith("push.")]


class Pusher:
    """A process of `pusher.py`."""

    def __init__(self, worker, where, notes, environment, address, name, number, limits):
        self.worker, self.where = worker, where
        self._said = notes.with_suffix(".said")
        arguments = map(str, (address, name, where, worker, number, notes, limits))
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("pusher.py")), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=environment,
            )

    def kill(self):
        self.process.kill()
        self.process.wait(timeout=30)

    def status(self):
        """None while it runs, 0 when it is done, else that it was killed."""
        status = self.process.poll()
        assert status in (None, 0, -signal.SIGKILL), f"an attempt of worker {self.worker}: {self._said.read_text()}"
        return status


class Life:
    """Of a model: from its making, or a restoration, to the next one."""

    def __init__(self, name, control, began_ns=0, before=None, next_steps=(0,) * WORKERS):
        self.name, self.control = name, control
        self.began_ns = began_ns
        """Before any attempt that is told of this life has joined."""
        self.next_steps = next_steps
        """Those of the cut with which it began."""
        # Who was in which round of a quorum is the server's to decide, and its log says it: version -> members.
        first, kept = control.first_version, before.rounds.items() if before is not None else ()
        self.rounds = {version: list(members) for version, members in kept if version <= first}
        self.dropped = {each for each in before.dropped if self.is_older(*each)} if before is not None else set()
        self._read = 0

    def steps_now(self):
        return [self.control.next_step(worker) for worker in range(WORKERS)]

    def is_older(self, worker, step):
        """Whether a step was pushed in a life before."""
        return step < self.next_steps[worker]

    def follow(self):
        """Read the log, which keeps its newest entries only."""
        head = self.control.head
        assert head - self._read < LOG_ENTRIES // 2, "the log was not looked at often enough"
        for entry in self.control.entries(self._read, head):
            if entry.kind == Kind.DESCEND and entry.examples:
                self.rounds.setdefault(entry.version, []).append((entry.worker, entry.step))
            elif entry.kind == Kind.DESCEND:
                self.dropped.add((entry.worker, entry.step))
        self._read = head


class Run:
    """A model under attack. What is killed, when and where is drawn from `seed`."""

    def __init__(self, directory, cluster, seed):
        self.directory, self.cluster = directory, cluster
        self.consistency = CONSISTENCIES[seed % len(CONSISTENCIES)]
        self.dice = random.Random(seed)
        self.kills = Counter()
        self.pushers, self.notes = [], {}
        # A word for each worker, the step where it waits; then one that is not 0 when it ends there instead.
        self.limits = np.memmap(directory / "limits", np.int64, "w+", shape=(WORKERS + 1,))
        self.client = coproc.connect(cluster.address)
        self._mount("m0")
        self.model = self.client.create_model(
            "m0",
            params={"w": np.zeros(SIZE, np.float32)},
            optimizer=coproc.optim.Momentum(1.0, momentum=0.0),
            consistency=self.consistency,
            shards=2,
            checkpoint=coproc.Checkpoints(every_versions=STEPS, keep=100_000),
        )
        self.lives = [Life("m0", Control.open(self.model.spec.control_path))]
        self.start_pushers()

    def close(self):
        for pusher in self.pushers:
            pusher.kill()
        for life in self.lives:
            life.control.region.close()
        self.client.close()

    @property
    def life(self):
        return self.lives[-1]

    def _mount(self, name):
        store = self.directory / name
        store.mkdir()
        self.client.tier.mount(f"/models/{name}/checkpoints", f"file://{store}", write_type="cache_through")

    # -- who is there

    def start_pushers(self):
        present = Counter(pusher.worker for pusher in self.pushers)
        for worker in range(WORKERS):
            for _ in range(TWINS - present[worker]):
                self._start_pusher(worker)

    def _start_pusher(self, worker):
        number = len(self.notes)
        notes = self.directory / f"{number}.notes"
        notes.touch()
        self.notes[notes] = worker
        where = self.dice.choice(["near", "far"])
        environment = dict(os.environ)
        if not self.limits[-1] and self.dice.random() < 0.3:
            environment["COPROC_FAILPOINT"] = f"{self.dice.choice(PUSH_POINTS)}:{self.dice.randint(1, STEPS)}"
        address, limits = self.cluster.address, self.directory / "limits"
        self.pushers.append(Pusher(worker, where, notes, environment, address, self.model.name, number, limits))

    def _start_server(self, server):
        if not self.limits[-1] and self.dice.random() < 0.5:
            point = self.dice.choice(probe.POINTS)
            most = 3 if point.startswith("checkpoint.") else STEPS // 2
            server.environment["COPROC_FAILPOINT"] = f"{point}:{self.dice.randint(1, most)}"
            try:
                server.restart()
                return
            except coproc.CoprocError:  # killed while it recovered
                self._count(server)
        server.restart()

    def _count(self, server):
        """It is dead: of a point, or of a signal."""
        self.kills[server.environment.pop("COPROC_FAILPOINT", "server:").partition(":")[0]] += 1

    def _kill(self, server):
        server.environment.pop("COPROC_FAILPOINT", None)
        server.kill()
        self._count(server)

    def tend(self):
        """Start again who has died; whether somebody had."""
        died = False
        for server in self.cluster.servers:
            with contextlib.suppress(coproc.Timeout):
                assert server.wait(timeout_s=0) == -signal.SIGKILL
                self._count(server)
                self._start_server(server)
                died = True
        for pusher in [each for each in self.pushers if each.status()]:
            self.pushers.remove(pusher)
            self.kills["attempt"] += 1
            self._start_pusher(pusher.worker)
            died = True
        return died

    # -- what happens

    def go_on(self, condition):
        """Have everybody work, and be replaced, until the condition holds."""
        at, since = self.life.steps_now(), time.monotonic()
        while not condition():
            died = self.tend()
            self.life.follow()
            now = self.life.steps_now()
            if died or now != at:
                at, since = now, time.monotonic()
            if not self.limits[-1]:
                self.limits[:WORKERS] = max(self.limits[0], min(now) + 2 * STEPS)
            assert time.monotonic() - since < STANDS_STILL_S, f"it stands still at steps {now}"
            select.select([], [], [], 0.001)

    def kill(self, count):
        """So many more, one after the other or two at once."""
        count += self.kills.total()
        while self.kills.total() < count:
            mark = min(self.life.steps_now()) + self.dice.randint(1, STEPS)
            self.go_on(lambda mark=mark: min(self.life.steps_now()) >= mark)
            select.select([], [], [], self.dice.uniform(0, 0.005))
            chosen = self.dice.choice(["attempt", "attempt", "attempt", "server", "server", "servers"])
            if chosen == "attempt":
                self.dice.choice(self.pushers).kill()
                self.tend()
                continue
            servers = self.cluster.servers if chosen == "servers" else [self.dice.choice(self.cluster.servers)]
            for server in servers:
                self._kill(server)
            for server in servers:
                self._start_server(server)

    def calm(self):
        """Kill the servers that would die by themselves."""
        armed = [server for server in self.cluster.servers if "COPROC_FAILPOINT" in server.environment]
        for server in armed:
            self._kill(server)
        for server in armed:
            server.restart()

    def finish(self):
        """Have all workers end at the same step."""
        self.limits[:WORKERS] = max(self.limits[0], max(self.life.steps_now()) + STEPS)
        self.limits[-1] = 1
        self.go_on(lambda: all(pusher.status() == 0 for pusher in self.pushers))
        self.calm()

    # -- going back

    def checkpoints(self):
        """Of the model; none while nobody answers."""
        with contextlib.suppress(Unreachable):
            return [info.path for info in self.client.tier.list(f"/models/{self.model.name}/checkpoints")]
        return []

    def lose_the_host(self):
        """All servers, their memory and all near attempts; the model comes back by itself, and far attempts go on."""
        self.go_on(self.checkpoints)
        for pusher in [each for each in self.pushers if each.where == "near"]:
            pusher.kill()
            self.pushers.remove(pusher)
        for server in self.cluster.servers:
            self._kill(server)
        self.life.follow()
        for root in {Path(place.path).parents[2] for place in self.model.spec.shards}:
            shutil.rmtree(root)
        self._begin_anew(self.model.name, lambda: [server.restart() for server in self.cluster.servers])

    def restore(self):
        """Into another model, on other shards."""
        self.go_on(self.checkpoints)
        self.calm()
        for pusher in self.pushers:
            pusher.kill()
        self.pushers = []
        path, name = max(until(self.checkpoints)), f"m{len(self.lives)}"
        self.model.delete()
        self.life.follow()
        self._mount(name)
        self._begin_anew(name, lambda: self.client.restore(path, name=name, shards=self.dice.randint(1, 4)))

    def _begin_anew(self, name, act):
        before, began_ns = self.model.name, time.monotonic_ns()
        self.limits[:WORKERS] = 0
        act()
        self.client.close()
        self.client = coproc.connect(self.cluster.address)
        self.model = until(lambda: found(self.client, name), 60)
        control = Control.open(self.model.spec.control_path)
        facts, _ = self._read_checkpoint(checkpoint_path(before, control.first_version))
        self.lives.append(Life(name, control, began_ns, self.life, steps_of(facts)))
        self.start_pushers()

    def _read_checkpoint(self, path):
        with self.client.tier.open(path) as file:
            read = checkpoint.read(file.data, self.model.layout, self.model.spec.optimizer.state_rows, path)
            return read.facts, one_number(read.rows[0])

    # -- what must have come of it

    def check(self):
        """The model, and all checkpoints that were ever taken."""
        self.life.follow()
        histories = history.read(self.notes, [life.began_ns for life in self.lives[1:]])
        snapshot, next_steps = self.model.snapshot(), self.life.steps_now()
        for worker, least in histories[-1].acknowledged().items():
            assert next_steps[worker] >= least, "a push that was acknowledged is lost"
        assert len(set(next_steps)) == 1
        self._check(histories, len(self.lives) - 1, snapshot.version, next_steps, one_number(snapshot.flat))
        lives = {(each.name, each.control.epoch): number for number, each in enumerate(self.lives)}
        found = 0
        for name in {life.name for life in self.lives}:
            for info in self.client.tier.list(f"/models/{name}/checkpoints"):
                facts, value = self._read_checkpoint(info.path)
                self._check(histories, lives[name, facts.epoch], facts.version, steps_of(facts), value)
                found += 1
        print(
            f"{self.consistency}: {dict(self.kills)}, {len(self.lives)} lives, {found} checkpoints, {next_steps} steps"
        )

    def _check(self, histories, number, version, next_steps, value):
        """That a model of this version and these steps may have this value, and no other steps are in it."""

        def candidates(worker, step):
            at = number
            while self.lives[at].is_older(worker, step):
                at -= 1
            found = histories[at].candidates(worker, step)
            assert found, f"nobody has pushed step {step} of worker {worker}"
            return found

        # Twice the weight of each step: of a round of two it is the half.
        steps = {(worker, step): 2 for worker in range(WORKERS) for step in range(next_steps[worker])}
        if isinstance(self.consistency, coproc.Quorum):
            rounds = [self.lives[number].rounds[each] for each in range(1, version + 1)]
            dropped = [each for each in self.lives[number].dropped if each[1] < next_steps[each[0]]]
            assert Counter(itertools.chain(*rounds, dropped)) == Counter(list(steps)), "not each step once"
            steps = {each: 2 // len(members) for members in rounds for each in members}
        elif isinstance(self.consistency, coproc.Bsp):
            assert next_steps == [version] * WORKERS
            steps = dict.fromkeys(steps, 1)
        else:
            assert version == sum(next_steps)
        parts = [(weight, candidates(*each)) for each, weight in steps.items()]
        assert value > -(1 << 23), "the halves of what is larger are no float32"
        assert history.can_be(int(-2 * value), parts), f"a step is lost or doubled at version {version}"


def one_number(flat):
    assert (flat == flat[0]).all(), "parts of different gradients"
    return float(flat[0])


def found(client, name):
    try:
        return client.model(name)
    except (coproc.Unreachable, coproc.ModelNotFound):  # one server restores it, and another has never had it
        return None


def attacked(directory, seed, kills):
    """Half of the kills before the model goes back to a checkpoint, half after it."""
    with coproc.LocalCluster(servers=2) as cluster, contextlib.closing(Run(directory, cluster, seed)) as run:
        run.kill(kills // 2)
        run.restore() if seed // len(CONSISTENCIES) % 2 else run.lose_the_host()
        run.kill(kills // 2)
        run.finish()
        run.check()


def test_each_step_counts_once_whatever_is_killed(tmp_path):
    attacked(tmp_path, seed=2, kills=6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2 * len(CONSISTENCIES)))
def test_each_step_counts_once_whatever_is_killed_for_long(tmp_path, seed):
    attacked(tmp_path, seed, kills=60)
