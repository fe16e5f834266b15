"""A server that is killed within a checkpoint: nothing waits for it, nothing is lost, doubled or left behind.

Gradients are constant vectors of integers and the rate is 1, as in `test_exactly_once`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import coproc
from coproc import checkpoint, probe

from . import working
from .waiting import until

POINTS = [point for point in probe.POINTS if point.startswith("checkpoint.")]
# Of the tier, whose commit it is.
TIER_POINTS = ["commit.seal.after", "commit.catalog.before", "commit.catalog.after"]


def checkpoints_of(client, name):
    return [info.path for info in client.tier.list(f"/models/{name}/checkpoints")]


def check_all_whole(client, name):
    """Each file is one cut, and is restored."""
    found = checkpoints_of(client, name)
    for path in found:
        with client.tier.open(path) as file:
            facts = checkpoint.read_facts(file.data, path)
        restored = client.restore(path, name="again")
        value = working.value_at(coproc.Asp(), facts.version, working.steps_of(facts))
        assert (restored.snapshot().flat == value).all()
        restored.delete()
        client.tier.remove(path)
    return found


def leftovers(model):
    """Files of blocks and of models on the model's first server."""
    root = Path(model.spec.home).parent.parent
    return [f for folder in ("blocks", "models") for f in (root / folder).rglob("*") if f.is_file()]


@pytest.mark.parametrize(
    ("variable", "point", "size"),
    [
        *(("COPROC_FAILPOINT", point, 300) for point in POINTS),
        ("COPROC_FAILPOINT", "checkpoint.cut.after", 50_000),  # whose passes are made in Python
        *(("TIER_FAILPOINT", point, 300) for point in TIER_POINTS),
    ],
)
def test_its_server_killed_at(name, variable, point, size):
    # Creating a model commits its description: the tier's points are hit there once before.
    with coproc.LocalCluster(environment={variable: f"{point}:3"}) as cluster:
        [server] = cluster.servers
        with coproc.connect(cluster.address) as client:
            model = working.create(client, name, size=size, shards=2)
            workers = working.Workers(model)
            working.checkpoint_until_it_dies(model, server)
            working.assert_killed(server, point)
            del server.environment[variable]
            server.restart()
            # Further than the cut that was being made, and without the next one, which would lift it.
            goal = model.version + 100
            until(lambda: model.version > goal or workers.failures)
            last = model.checkpoint()
            steps = workers.end()
            workers.join()
            snapshot = model.snapshot()
            assert (snapshot.flat == working.value_at(coproc.Asp(), snapshot.version, steps)).all()
            assert last in check_all_whole(client, name)
            model.delete()
            until(lambda: not leftovers(model))
            until(lambda: client.status().servers[0].memory_used_bytes == 0)


@pytest.mark.parametrize("point", ["publish.before", "sweep.before"])
def test_the_server_of_another_shard_killed_meanwhile(name, point):
    """The cut waits for it, or gives up: both end, and the shards go on."""
    with coproc.LocalCluster(servers=2) as cluster:
        server = cluster.servers[1]
        server.environment["COPROC_FAILPOINT"] = f"{point}:40"
        server.restart()
        with coproc.connect(cluster.address) as client:
            model = working.create(client, name, shards=2)
            workers = working.Workers(model)
            working.checkpoint_until_it_dies(model, server)
            working.assert_killed(server, point)
            with pytest.raises(coproc.Timeout, match="one of its servers down"):
                model.checkpoint(timeout_s=0.5)
            del server.environment["COPROC_FAILPOINT"]
            server.restart()
            last = model.checkpoint()
            steps = workers.end()
            workers.join()
            snapshot = model.snapshot()
            assert (snapshot.flat == working.value_at(coproc.Asp(), snapshot.version, steps)).all()
            assert last in check_all_whole(client, name)
