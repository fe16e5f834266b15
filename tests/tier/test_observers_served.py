"""Observers of real servers, by a client: attached by name, shown by `status`, quarantined, killed, taken off."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from safetensors.numpy import load, save

import coproc
from coproc.cli.status import as_text
from storage_tier.client import TierClient
from storage_tier.errors import InvalidRequest, PathNotFound, Vetoed

# Registered as another package would.
EXAMPLES = """
from storage_tier.observers import FileInfo, Observer, ResolvedFile

class Base(Observer):
    @classmethod
    def from_parameters(cls, parameters):
        return cls()

class Broken(Base):
    def post_commit(self, context, batch):
        raise RuntimeError(f"it does not like {batch[0].path}")

class Endless(Base):
    def pre_commit(self, context, file):
        while True:
            pass

class Echo(Base):
    def post_commit(self, context, batch):
        for file in batch:
            context.env.copy(file.path, file.path + ".echo")

class Views(Base):
    def resolve(self, context, path):
        return ResolvedFile(b"seen", 3, {"of": "views"}) if path == "/views/now" else None

    def list_virtual(self, context, directory):
        return [FileInfo("/views/now", 3, 4)]
"""
ENTRY_POINTS = """
[storage_tier.observers]
broken = served_examples:Broken
endless = served_examples:Endless
echo = served_examples:Echo
views = served_examples:Views
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[coproc.LocalCluster]:
    folder = tmp_path_factory.mktemp("packages")
    (folder / "served_examples.py").write_text(EXAMPLES)
    info = folder / "served_examples-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: served_examples\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    with coproc.LocalCluster(memory_bytes=256 << 20, environment={"PYTHONPATH": path}) as cluster:
        yield cluster


@pytest.fixture
def tier(cluster: coproc.LocalCluster) -> Iterator[TierClient]:
    with TierClient(cluster.address) as tier:
        yield tier


def until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never happened"
        select.select([], [], [], 0.01)


def status_text(cluster: coproc.LocalCluster) -> str:
    with coproc.connect(cluster.address) as client:
        return as_text(client.status())


def names(tier: TierClient, directory: str) -> list[str]:
    return [info.path.rpartition("/")[2] for info in tier.list(directory)]


def constant(value: float, name: str = "w") -> bytes:
    data: bytes = save({name: np.full(100, value, np.float32)})
    return data


def test_an_unregistered_name_is_refused_with_those_that_are(tier: TierClient) -> None:
    tier.make_directory("/nothing")
    known = "average, broken, echo, endless, keep_best, validate, views"
    with pytest.raises(InvalidRequest, match=f"no observer 'nobody' on this server: it knows {known}"):
        tier.attach("/nothing", "nobody")
    with pytest.raises(InvalidRequest, match="no observer 'model'"):
        tier.attach("/nothing", "model")
    with pytest.raises(InvalidRequest, match="decay of average is a number"):
        tier.attach("/nothing", "average", {"decay": 2})
    assert tier.attachments() == []


def test_the_shipped_ones_work_while_they_are_attached(tier: TierClient) -> None:
    """A guard, an average, and one that keeps the best: all three on one directory, then taken off one by one."""
    directory = "/runs/a"
    tier.make_directory(directory)
    tier.attach(directory, "validate", {"tensors": {"w": {"dtype": "F32", "shape": [100]}}, "files": "*.safetensors"})
    tier.attach(directory, "average", {"decay": 0.5, "target": "/runs/mean"}, name="mean")
    for step in range(4):
        tier.put(f"{directory}/{step}.safetensors", constant(step), {"accuracy": [0.1, 0.9, 0.5, 0.7][step]})
    until(lambda: tier.exists("/runs/mean") and tier.stat("/runs/mean").metadata["count"] == 4)
    # Not before: what it deletes cannot be averaged.
    tier.attach(directory, "keep_best", {"metric": "accuracy", "best": "best"})
    assert [one.name for one in tier.attachments()] == ["keep_best", "mean", "validate"]
    tier.put(f"{directory}/go", b"")
    with pytest.raises(Vetoed, match="is not a safetensors file as /runs/a takes them: it lacks the tensor 'w'"):
        tier.put(f"{directory}/odd.safetensors", constant(1, "v"))
    until(lambda: names(tier, directory) == ["1.safetensors", "best", "go"])
    with tier.open("/runs/mean") as mean, tier.open(f"{directory}/best") as best:
        assert (load(bytes(mean.data))["w"] == 2.125).all()
        assert (load(bytes(best.data))["w"] == 1).all()
    for name in ("validate", "keep_best", "mean"):
        tier.detach(directory, name)
    assert tier.attachments() == []
    tier.put(f"{directory}/odd.safetensors", constant(1, "v"), {"accuracy": 1.0})
    with pytest.raises(PathNotFound):
        tier.detach(directory, "validate")


def test_its_own_writes_do_not_call_it(tier: TierClient) -> None:
    tier.make_directory("/echo")
    tier.attach("/echo", "echo")
    for number in range(3):
        tier.put(f"/echo/{number}", b"x")
    until(lambda: len(names(tier, "/echo")) == 6)
    [state] = tier.attachments()
    until(lambda: tier.attachments()[0].delivered_count == 3)
    assert (state.state, state.failure) == ("running", "")
    tier.detach("/echo", "echo")
    assert len(names(tier, "/echo")) == 6


def test_a_virtual_file_is_listed_and_opened(tier: TierClient) -> None:
    tier.make_directory("/views")
    tier.attach("/views", "views")
    assert [(info.path, info.version, info.size_bytes) for info in tier.list("/views")] == [("/views/now", 3, 4)]
    with tier.open("/views/now") as file:
        assert (bytes(file.data), file.info.version, file.info.metadata) == (b"seen", 3, {"of": "views"})
    tier.detach("/views", "views")
    assert tier.list("/views") == []


def test_what_fails_is_quarantined_and_shown_and_nobody_else_is_the_worse_for_it(
    cluster: coproc.LocalCluster, tier: TierClient
) -> None:
    """One raises, one never ends: files are committed all the same, and `status` says what became of the two."""
    tier.make_directory("/bad")
    tier.attach("/bad", "broken")
    tier.attach("/bad", "endless")
    start_s = time.monotonic()
    tier.put("/bad/a", b"x")
    assert 4.0 < time.monotonic() - start_s < 30.0, "it is killed after the five seconds that a writer waits"
    tier.put("/bad/b", b"x")
    states = {one.name: one for one in tier.attachments()}
    until(lambda: next(one for one in tier.attachments() if one.name == "broken").failure)
    assert states["endless"].state in ("restarting", "starting", "quarantined")
    shown = status_text(cluster)
    for text in (
        "observer model of /models on",
        "observer broken of /bad on",
        "observer endless of /bad on",
        "RuntimeError: it does not like /bad/a",
        'served_examples.py", line',
        "in post_commit",
        "in pre_commit",
    ):
        assert text in shown, shown
    for name in ("broken", "endless"):
        tier.detach("/bad", name)
    assert "observer broken" not in status_text(cluster)
