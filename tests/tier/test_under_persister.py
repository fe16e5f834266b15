"""Persisting in the background: in order, as often as it takes, reported only when it is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_tier.errors import DeadlineExceeded, UnderFull, UnderRefused
from storage_tier.under.persister import LONGEST_DELAY_S, Persister, backoff_s
from storage_tier.under.queue import Action, PersistJob, PersistQueue
from storage_tier.under.store import UnderStore

LONG_S = 30.0


class FakeClock:
    """Stands still until a test moves it on."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        self._waiting: threading.Condition | None = None
        self.waits_s: list[float | None] = []

    def now_s(self) -> float:
        return self._now_s

    def now_ns(self) -> int:
        return int(self._now_s * 1e9)

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        self._waiting = condition
        self.waits_s.append(timeout_s)
        condition.notify_all()
        condition.wait()

    def settle(self, persister: Persister, seconds: float | None) -> None:
        """Until a worker waits for exactly this time."""
        with persister._changed:
            assert persister._changed.wait_for(
                lambda: bool(self.waits_s) and self.waits_s[-1] == pytest.approx(seconds), LONG_S
            ), self.waits_s

    def advance(self, persister: Persister, seconds: float) -> None:
        with persister._changed:
            self._now_s += seconds
            persister._changed.notify_all()


@dataclass
class Underneath:
    """An under-store of versions, and what the persister told about it."""

    content: dict[str, int] = field(default_factory=dict)
    attempts: list[PersistJob] = field(default_factory=list)
    persisted: list[tuple[str, int, str]] = field(default_factory=list)
    failed: list[tuple[str, int, str, int]] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)
    before: Callable[[PersistJob], None] = field(default=lambda job: None)
    unwanted: set[str] = field(default_factory=set)

    def persist(self, job: PersistJob) -> str | None:
        self.attempts.append(job)
        self.before(job)
        if job.path in self.errors:
            raise self.errors[job.path]
        if job.path in self.unwanted:
            return None
        if job.action is Action.REMOVE:
            self.content.pop(job.path, None)
            return ""
        self.content[job.path] = job.version
        return f"stamp {job.version}"

    def on_persisted(self, job: PersistJob, stamp: str) -> None:
        assert self.content.get(job.path) == (job.version if job.action is Action.PUBLISH else None)
        self.persisted.append((job.path, job.version, stamp))

    def on_failed(self, job: PersistJob, error: Exception, attempt_count: int) -> None:
        self.failed.append((job.path, job.version, str(error), attempt_count))


@pytest.fixture
def under() -> Underneath:
    return Underneath()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def start(under: Underneath, clock: FakeClock) -> Iterator[Callable[..., Persister]]:
    started: list[Persister] = []

    def make(**changes: object) -> Persister:
        arguments = {
            "on_persisted": under.on_persisted,
            "on_failed": under.on_failed,
            "clock": clock,
            "chance": lambda: 1.0,
            "worker_count": 1,
            **changes,
        }
        started.append(Persister(under.persist, **arguments))
        return started[-1]

    yield make
    for persister in started:
        persister.abort()
        persister.close(LONG_S)


class Hold:
    """The first to come waits until it is let go."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, job: PersistJob) -> None:
        if not self.reached.is_set():
            self.reached.set()
            assert self.opened.wait(LONG_S)


# ---- the queue


def test_versions_of_a_path_keep_their_order() -> None:
    queue = PersistQueue()
    assert queue.submit(PersistJob("/a", 1))
    assert queue.submit(PersistJob("/b", 1))
    assert queue.submit(PersistJob("/a", 3))
    assert not queue.submit(PersistJob("/a", 3)), "the catalog submits again what it does not know to be done"
    assert not queue.submit(PersistJob("/a", 2))
    first, second = queue.take(0.0), queue.take(0.0)
    assert (first, second) == (PersistJob("/a", 3), PersistJob("/b", 1))
    assert queue.take(0.0) is None
    assert not queue.submit(PersistJob("/a", 3))
    assert queue.submit(PersistJob("/a", 4, Action.REMOVE))
    assert queue.take(0.0) is None, "one at a time of a path"
    queue.done(first)
    assert queue.take(0.0) == PersistJob("/a", 4, Action.REMOVE)
    queue.done(PersistJob("/a", 4, Action.REMOVE))
    queue.done(second)
    assert len(queue) == 0
    assert queue.submit(PersistJob("/a", 4)), "done is forgotten: publishing twice does no harm"


def test_what_failed_waits_for_its_time() -> None:
    queue = PersistQueue()
    for number in range(3):
        queue.submit(PersistJob(f"/{number}", 1))
    for job, due_s in zip([queue.take(0.0) for _ in range(3)], [30.0, 10.0, 10.0], strict=True):
        queue.failed(job, "full", 7, due_s)
    assert queue.take(9.9) is None
    assert queue.due_s() == 10.0
    assert queue.submit(PersistJob("/1", 2)), "a newer version does not come earlier"
    assert queue.take(9.9) is None
    assert [queue.take(10.0), queue.take(10.0), queue.take(10.0)] == [PersistJob("/1", 2), PersistJob("/2", 1), None]
    queue.failed(PersistJob("/1", 2), "still full", 8, 40.0)
    failure = queue.failure("/1")
    assert (failure.version, failure.attempt_count, failure.since_ns, failure.reason) == (2, 2, 7, "still full")
    assert queue.take(40.0) == PersistJob("/0", 1)
    assert queue.submit(PersistJob("/0", 2))
    queue.failed(PersistJob("/0", 1), "full", 9, 50.0)
    assert queue.pending() == [PersistJob("/0", 2), PersistJob("/1", 2), PersistJob("/2", 1)]
    queue.hurry()
    assert [queue.take(0.0), queue.take(0.0)] == [PersistJob("/1", 2), PersistJob("/0", 2)]


@given(st.lists(st.tuples(st.sampled_from("strfx"), st.integers(0, 1), st.integers(0, 5)), max_size=60))
def test_the_last_version_is_the_one_that_stays(acts: list[tuple[str, int, int]]) -> None:
    """Against a model: whatever is submitted, done and failed, in the end each path has its last version."""
    queue, now_s, versions = PersistQueue(), 0.0, dict.fromkeys("0123", 0)
    last: dict[str, int] = {}
    running: dict[str, PersistJob] = {}
    underneath: dict[str, int] = {}

    def take() -> bool:
        job = queue.take(now_s)
        if job is not None:
            assert job.path not in running
            assert job.version >= underneath.get(job.path, 0)
            running[job.path] = job
        return job is not None

    def finish(path: str, succeeds: bool, delay_s: float) -> None:
        job = running.pop(path)
        if succeeds:
            underneath[path] = job.version
            queue.done(job)
        else:
            queue.failed(job, "failed", 1, now_s + delay_s)

    for act, number, amount in acts:
        path = str(number)
        if act == "s":
            versions[path] += 1
            last[path] = versions[path]
            assert queue.submit(PersistJob(path, versions[path]))
        elif act == "t":
            now_s += amount
            take()
        elif act == "r" and path in last:
            expected = path not in queue
            assert queue.submit(PersistJob(path, last[path])) == expected
        elif path in running:
            finish(path, act == "f", float(amount))
        assert len(queue) == len(queue.pending())
        assert queue.running_count == len(running)
    now_s = 1e9
    while running or take():
        for path in list(running):
            finish(path, True, 0.0)
    assert underneath == last
    assert len(queue) == 0


def test_backoff() -> None:
    assert [backoff_s(count, 1.0) for count in (1, 2, 3, 7, 8, 9)] == [0.5, 1.0, 2.0, 32.0, 60.0, 60.0]
    assert backoff_s(3, 0.0) == 1.0
    assert backoff_s(10**9, 1.0) == LONGEST_DELAY_S


# ---- the threads


def test_what_is_submitted_is_persisted_and_told(under: Underneath, start: Callable[..., Persister]) -> None:
    persister = start(worker_count=3)
    for number in range(50):
        assert persister.submit(f"/{number}", 1)
    persister.wait(None, LONG_S)
    assert sorted(under.persisted) == sorted((f"/{number}", 1, "stamp 1") for number in range(50))
    persister.submit("/7", 2, Action.REMOVE)
    persister.wait("/7", LONG_S)
    assert "/7" not in under.content
    assert under.persisted[-1] == ("/7", 2, "")
    assert persister.pending() == []


def test_a_newer_version_takes_the_place_of_one_that_waits(under: Underneath, start: Callable[..., Persister]) -> None:
    under.before = hold = Hold()
    persister = start(worker_count=2)
    persister.submit("/a", 1)
    assert hold.reached.wait(LONG_S)
    for version in range(2, 10):
        persister.submit("/a", version)
    assert persister.pending() == [PersistJob("/a", 9)]
    assert persister.status().running_count == 1
    assert under.persisted == [], "never told before it is there"
    hold.opened.set()
    persister.wait("/a", LONG_S)
    assert under.persisted == [("/a", 1, "stamp 1"), ("/a", 9, "stamp 9")]


def test_what_fails_is_tried_again_later_and_later(
    under: Underneath, start: Callable[..., Persister], clock: FakeClock
) -> None:
    under.errors["/a"] = UnderFull("no room.")
    persister = start()
    persister.submit("/a", 1)
    for attempt, delay_s in enumerate([0.5, 1.0, 2.0, 4.0], 1):
        clock.settle(persister, delay_s)
        (failing,) = persister.status().failing
        assert (failing.attempt_count, failing.since_ns, failing.reason) == (attempt, 10**12, "no room.")
        clock.advance(persister, delay_s * 0.99)
        clock.settle(persister, delay_s * 0.01)
        assert len(under.attempts) == attempt
        if attempt == 4:
            under.errors.clear()
        clock.advance(persister, delay_s * 0.02)
    persister.wait("/a", LONG_S)
    assert under.persisted == [("/a", 1, "stamp 1")]
    assert under.failed == [("/a", 1, "no room.", attempt) for attempt in range(1, 5)]
    assert persister.status().failing == ()


def test_what_would_fail_again_is_asked_for_slowly(
    under: Underneath, start: Callable[..., Persister], clock: FakeClock
) -> None:
    under.errors["/a"] = UnderRefused("credentials.")
    persister = start()
    persister.submit("/a", 1)
    clock.settle(persister, LONGEST_DELAY_S)
    under.errors.clear()  # somebody corrected them
    clock.advance(persister, LONGEST_DELAY_S)
    persister.wait("/a", LONG_S)


def test_one_that_fails_holds_up_no_other(under: Underneath, start: Callable[..., Persister], clock: FakeClock) -> None:
    under.errors["/a"] = OSError("x")
    persister = start()
    persister.submit("/a", 1)
    clock.settle(persister, 0.5)
    persister.submit("/b", 1)
    persister.wait("/b", LONG_S)
    with pytest.raises(DeadlineExceeded, match=r"/a could not be persisted in 0 s: 1 attempts failed, .* x It will"):
        persister.wait("/a", 0)
    with pytest.raises(DeadlineExceeded, match="1 paths"):
        persister.wait(None, 0)


def test_a_catalog_that_cannot_be_told(under: Underneath, start: Callable[..., Persister], clock: FakeClock) -> None:
    """It is persisted again and told again: the catalog must not miss it, and the second time does no harm."""
    told = []

    def on_persisted(job: PersistJob, stamp: str) -> None:
        told.append(stamp)
        if len(told) == 1:
            raise ConnectionError("catalog")

    def on_failed(job: PersistJob, error: Exception, attempt_count: int) -> None:
        raise RuntimeError("catalog, too")

    persister = start(on_persisted=on_persisted, on_failed=on_failed)
    persister.submit("/a", 1)
    clock.settle(persister, 0.5)
    assert persister.status().failing[0].reason == "catalog"
    assert persister.status().callback_error == "catalog, too"
    clock.advance(persister, 0.5)
    persister.wait("/a", LONG_S)
    assert told == ["stamp 1", "stamp 1"]
    assert len(under.attempts) == 2


def test_what_is_wanted_no_more_is_dropped(under: Underneath, start: Callable[..., Persister]) -> None:
    under.unwanted.add("/a")
    persister = start()
    persister.submit("/a", 1)
    persister.wait("/a", LONG_S)
    assert under.persisted == []
    assert persister.pending() == []


def test_close_gives_each_one_more_try(under: Underneath, start: Callable[..., Persister], clock: FakeClock) -> None:
    under.errors = {"/a": OSError("x"), "/b": OSError("x")}
    persister = start()
    persister.submit("/a", 1)
    persister.submit("/b", 1)
    with persister._changed:
        assert persister._changed.wait_for(lambda: persister._queue.due_s() and len(under.attempts) == 2, LONG_S)
    clock.settle(persister, 0.5)
    del under.errors["/a"]
    assert persister.close(LONG_S) == [PersistJob("/b", 1)]
    assert under.persisted == [("/a", 1, "stamp 1")]
    assert len(under.attempts) == 4
    assert not persister.submit("/c", 1)
    assert persister.close(LONG_S) == [PersistJob("/b", 1)]


def test_who_waits_for_a_path_that_was_refused_has_it_tried_at_once(
    under: Underneath, start: Callable[..., Persister]
) -> None:
    """Somebody has seen to the credentials, and asks; the next try would be in a minute."""
    under.errors = {path: UnderRefused("no credentials") for path in ("/a", "/b")}
    clock = FakeClock()
    persister = start(clock=clock, worker_count=1, chance=lambda: 0.0)
    persister.submit("/a", 1)
    persister.submit("/b", 1)
    clock.settle(persister, LONGEST_DELAY_S / 2)
    under.errors.clear()
    persister.wait("/a", LONG_S)
    assert [(path, version) for path, version, _ in under.persisted] == [("/a", 1)]
    assert [job.path for job in persister.pending()] == ["/b"], "nobody has asked for it"


def test_a_try_that_had_begun_before_somebody_waits_is_not_the_last(
    under: Underneath, start: Callable[..., Persister]
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def refuse_once(job: PersistJob) -> None:
        if len(under.attempts) == 1:
            begun.set()
            assert go_on.wait(LONG_S)
            raise UnderRefused("no credentials")

    under.before = refuse_once
    persister = start(clock=FakeClock(), worker_count=1)
    persister.submit("/a", 1)
    assert begun.wait(LONG_S)
    waiting = threading.Thread(target=persister.wait, args=("/a", LONG_S))
    waiting.start()
    with persister._changed:
        assert persister._changed.wait_for(lambda: persister._queue._entries["/a"].again, LONG_S)
    go_on.set()
    waiting.join(LONG_S)
    assert [(path, version) for path, version, _ in under.persisted] == [("/a", 1)]


def test_close_does_not_wait_for_ever(under: Underneath, start: Callable[..., Persister]) -> None:
    under.before = hold = Hold()
    persister = start()
    persister.submit("/a", 1)
    persister.submit("/b", 1)
    assert hold.reached.wait(LONG_S)
    assert persister.close(0.1) == [PersistJob("/a", 1), PersistJob("/b", 1)]
    hold.opened.set()
    for thread in persister._threads:
        thread.join(LONG_S)
    assert [job.path for job in under.attempts] == ["/a"], "nothing more was started"


def test_after_a_restart_the_catalog_submits_again(directory: Path) -> None:
    """Onto a real directory: twice the same version, and the newest of several."""
    store, done = UnderStore(f"file://{directory}"), []
    contents = {("/a", 1): b"one", ("/a", 2): b"two", ("/b", 1): b"b"}

    def persist(job: PersistJob) -> str:
        return store.publish(job.path, contents[job.path, job.version]).stamp

    for _ in range(2):
        persister = Persister(persist, on_persisted=lambda job, stamp: done.append((job, stamp)))
        for path, version in contents:
            persister.submit(path, version)
        assert persister.close(LONG_S) == []
    assert (directory / "a").read_bytes() == b"two"
    assert (directory / "b").read_bytes() == b"b"
    assert done[-1][1] in {info.stamp for info in store.list()}
    assert [path.name for path in directory.iterdir() if not path.is_dir()]
    store.close()


def test_many_at_once(under: Underneath, start: Callable[..., Persister]) -> None:
    """Submitters of many versions and failing attempts: what stays is the last version of each path."""
    lock, counts = threading.Lock(), {"failures": 0}

    def sometimes(job: PersistJob) -> None:
        with lock:
            counts["failures"] += 1
            if counts["failures"] % 7 == 0:
                raise OSError("sometimes")

    under.before = sometimes
    persister = start(worker_count=4, chance=lambda: 0.0, clock=None)
    threads = [
        threading.Thread(
            target=lambda number=number: [persister.submit(f"/{number}", version) for version in range(1, 200)]
        )
        for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    persister.wait(None, LONG_S)
    assert under.content == {f"/{number}": 199 for number in range(6)}
    for number in range(6):
        told = [version for path, version, _ in under.persisted if path == f"/{number}"]
        assert told == sorted(set(told))
