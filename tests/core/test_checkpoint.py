"""A checkpoint is one consistent cut, and what is restored from it goes on to the same bits."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from safetensors.numpy import load

import coproc
from coproc import checkpoint, optim
from coproc.layout import ParamLayout
from coproc.optim import SGD, Adam, Momentum
from storage_tier.errors import PathNotFound

from .waiting import until

TENSORS = {"w": (100, 9), "b": (9,), "scalar": ()}


def facts_of(client, path):
    with client.tier.open(path) as file:
        return checkpoint.read_facts(file.data, path)


def tensors_of(client, path):
    with client.tier.open(path) as file:
        return load(bytes(file.data))


def create(client, name, shapes=TENSORS, **settings):
    settings.setdefault("optimizer", SGD(learning_rate=1.0))
    return client.create_model(name, params={k: np.zeros(s, np.float32) for k, s in shapes.items()}, **settings)


def push_all(worker, gradients, stop):
    """The gradient of each step is a function of the step, as in training."""
    while worker.next_step < stop:
        worker.pull(timeout_s=30)
        worker.gradient()[:] = gradients[worker.next_step % len(gradients)]
        worker.push()


def names(client, name):
    return sorted(info.path.rpartition("/")[2] for info in client.tier.list(f"/models/{name}/checkpoints"))


@pytest.mark.parametrize("shards", [(1, 3), (4, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("optimizer", [SGD(0.1), Momentum(0.05), Adam(0.01)], ids=lambda o: o.name)
@pytest.mark.parametrize("size", [1000, 40_000, 600_001])
def test_restored_and_gone_on_is_the_same_bits(client, name, optimizer, shards, size):
    """Run to step 7, checkpoint, go on to 15; restore at 7 on other shards, go on to 15."""
    gradients = np.random.default_rng(5).standard_normal((4, size)).astype(np.float32)
    first, again = shards
    model = create(client, name, {"w": (size,)}, optimizer=optimizer, shards=first)
    with model.join(worker=3) as worker:
        push_all(worker, gradients, 5)
        model.set_learning_rate(0.02)
        push_all(worker, gradients, 7)
        path = model.checkpoint({"loss": 0.25})
        model.set_learning_rate(0.03)
        push_all(worker, gradients, 15)
    restored = client.restore(path, name=f"{name}-again", shards=again)
    assert (restored.version, len(restored.spec.shards)) == (7, again)
    assert restored.spec.identity != model.spec.identity
    with restored.join(worker=3) as worker:
        assert worker.next_step == 7
        restored.set_learning_rate(0.03)
        push_all(worker, gradients, 15)
    np.testing.assert_array_equal(restored.snapshot().flat, model.snapshot().flat)
    later = [tensors_of(client, each.checkpoint()) for each in (model, restored)]
    for tensor in later[0]:  # the optimizer's state as well
        np.testing.assert_array_equal(later[0][tensor], later[1][tensor])
    assert set(later[0]) == {"w", *(f"optimizer/{row}/w" for row in optimizer.state_rows)}
    for each in (model, restored):
        each.delete()


def test_a_synchronous_run_goes_on_as_if_nothing_had_been(client, name):
    """Two workers in rounds, one of which had left; the open round's gradient is given again."""
    size = 500
    gradients = np.random.default_rng(6).standard_normal((5, size)).astype(np.float32)
    model = create(client, name, {"w": (size,)}, optimizer=Adam(0.01), consistency=coproc.Bsp(workers=3))

    with model.join(worker=2) as idle:
        idle.leave()
    rounds = [model.join(worker=number) for number in range(2)]
    path = None
    for step in range(12):
        for worker in rounds:
            worker.gradient()[:] = gradients[(step + worker.worker) % 5]
            worker.push(step=step, examples=worker.worker + 1)
            if step == 6 and worker.worker == 0:
                path = model.checkpoint()
        rounds[0].pull(timeout_s=30)
    assert facts_of(client, path).version == 6
    assert facts_of(client, path).ledger == ((0, 1, 6, 0), (1, 1, 6, 0), (2, 2, 0, 0))
    restored = client.restore(path, name=f"{name}-again", shards=3)
    again = [restored.join(worker=number) for number in range(2)]
    assert [worker.next_step for worker in again] == [6, 6]
    for step in range(6, 12):
        for worker in again:
            worker.gradient()[:] = gradients[(step + worker.worker) % 5]
            worker.push(step=step, examples=worker.worker + 1)
        again[0].pull(timeout_s=30)
    assert restored.version == model.version == 12
    np.testing.assert_array_equal(restored.snapshot().flat, model.snapshot().flat)
    for worker in (*rounds, *again):
        worker.close()
    for each in (model, restored):
        each.delete()


@pytest.mark.parametrize("size", [500, 60_000])
@pytest.mark.parametrize("optimizer", [SGD(1.0), Momentum(1.0, momentum=0.0)], ids=lambda o: o.name)
def test_under_load_it_is_one_cut(client, name, size, optimizer):
    """All elements are one number: minus the sum over the ledger of what each step gave, and pushes go on."""
    model = create(client, name, {"w": (size,), "v": (7, 3)}, optimizer=optimizer, shards=3)
    stop, failures = threading.Event(), []

    def work(number):
        try:
            with model.join(worker=number) as worker:
                while not stop.is_set():
                    worker.gradient(timeout_s=30)[:] = number + 1
                    worker.push(timeout_s=30)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    paths = []
    try:
        for _ in range(6):
            before = model.version
            until(lambda before=before: model.version > before or failures)
            paths.append(model.checkpoint())
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not failures, failures
    assert len(set(paths)) == 6, "nothing was pushed between two checkpoints"
    for path in paths:
        facts = facts_of(client, path)
        steps = {worker: next_step for worker, _, next_step, _ in facts.ledger}
        assert facts.version == facts.updates == sum(steps.values())
        expected = -sum((worker + 1) * count for worker, count in steps.items())
        for tensor, values in tensors_of(client, path).items():
            if not tensor.startswith("optimizer/"):
                assert (values == expected).all(), (path, tensor)
        restored = client.restore(path, name=f"{name}-{facts.version}")
        assert (restored.snapshot().flat == expected).all()
        restored.delete()
    model.delete()


def test_what_a_file_says(client, far, name):
    model = create(client, name, optimizer=Adam(0.5))
    with model.join(worker=2) as worker:
        push_all(worker, np.ones((1, model.layout.size), np.float32), 3)
        model.set_learning_rate(0.25)
        path = far.model(name).checkpoint({"accuracy": 0.5, "note": "good", "best": True, "none": None})
    assert path == f"/models/{name}/checkpoints/000000000003.safetensors"
    with client.tier.open(path) as file:
        entry, data = file.info.metadata, bytes(file.data)
    assert (entry["version"], entry["accuracy"], entry["identity"]) == (3, 0.5, model.spec.identity)
    facts = checkpoint.read_facts(memoryview(data), path)
    assert (facts.version, facts.updates, facts.learning_rate) == (3, 3, 0.25)
    assert facts.ledger == ((2, 1, 3, 0),)
    assert facts.metadata == {"accuracy": 0.5, "note": "good", "best": True, "none": None}
    assert set(load(data)) == {*TENSORS, *(f"optimizer/{r}/{t}" for r in Adam(1).state_rows for t in TENSORS)}
    assert model.status().checkpoint_version == 3
    assert model.checkpoint() == path, "of this version already: it is replaced"
    assert facts_of(client, path).metadata == {}
    for bad in ({"x": [1]}, {"x": {}}, {"x": float("nan")}, {"x": object()}):
        with pytest.raises(coproc.ConfigError, match="metadata"):
            model.checkpoint(bad)
    with pytest.raises(coproc.ModelExists):
        client.restore(path)
    model.delete()
    restored = client.restore(path)  # under its own name
    assert (restored.name, restored.version) == (name, 3)
    assert restored.status().epoch > facts.epoch
    restored.delete()
    client.tier.remove(path)


def test_checkpoints_by_themselves_and_kept(client, name):
    rule = coproc.Checkpoints(every_versions=4, keep=2)
    model = create(client, name, checkpoint=rule)
    assert model.spec.checkpoints == rule
    client.tier.put(f"/models/{name}/checkpoints/mine.safetensors", b"x")
    gradients = np.ones((1, model.layout.size), np.float32)
    taken = []
    with model.join(worker=0) as worker:
        for count in range(1, 6):
            push_all(worker, gradients, 4 * count)
            taken.append(until(lambda count=count: (v := model.status().checkpoint_version) >= 4 * count and v))
    assert taken == [4, 8, 12, 16, 20]
    kept = ["000000000016.safetensors", "000000000020.safetensors", "mine.safetensors"]
    until(lambda: names(client, name) == kept)
    assert model.status().checkpoint_failure == ""
    restored = client.restore(f"/models/{name}/checkpoints/000000000020.safetensors", name=f"{name}-again")
    assert restored.spec.checkpoints == rule
    assert (restored.snapshot().flat == -20).all()
    restored.delete()
    model.delete()


def test_checkpoints_by_time_only_of_what_is_new(client, name):
    model = create(client, name, checkpoint=coproc.Checkpoints(every_s=0.01, keep=1))
    with model.join(worker=0) as worker:
        push_all(worker, np.ones((1, model.layout.size), np.float32), 3)
        until(lambda: names(client, name) == ["000000000003.safetensors"])
        before = client.tier.stat(f"/models/{name}/checkpoints/000000000003.safetensors")
        threading.Event().wait(0.3)  # time enough for several more, if it took them
        assert client.tier.stat(before.path).version == before.version
        push_all(worker, np.ones((1, model.layout.size), np.float32), 4)
        until(lambda: names(client, name) == ["000000000004.safetensors"])
    model.delete()


@pytest.mark.parametrize(
    "settings", [{}, {"every_s": 0}, {"every_s": "1"}, {"every_versions": 0}, {"every_versions": 1, "keep": 0}], ids=str
)
def test_rules_that_cannot_be(settings):
    with pytest.raises(coproc.ConfigError):
        coproc.Checkpoints(**settings)


# ------------------------------------------------------------------------------------------------ files that are none


@pytest.fixture(scope="module")
def whole_file(cluster):
    with coproc.connect(cluster.address) as client:
        model = create(client, "whole-file", optimizer=Adam(0.5))
        with model.join(worker=0) as worker:
            push_all(worker, np.ones((1, model.layout.size), np.float32), 2)
        with client.tier.open(model.checkpoint()) as file:
            data = bytes(file.data)
        model.delete()
    return data


def altered(data, **texts):
    """The file with other metadata."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"].update(texts)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


BROKEN = {
    "empty": (lambda d: b"", "has 0 bytes"),
    "cut in its header": (lambda d: d[:100], "its header has"),
    "cut by a byte": (lambda d: d[:-1], "follow it"),
    "cut in half": (lambda d: d[: len(d) // 2], "follow it"),
    "one bit of a parameter": (lambda d: flip(d, len(d) - 1), "checksum of its tensors should be"),
    "one bit of the first tensor": (lambda d: flip(d, int.from_bytes(d[:8], "little") + 8), "checksum"),
    "another format": (lambda d: altered(d, format="x"), "should say the format"),
    "a version below zero": (lambda d: altered(d, version="-1"), "metadata cannot be"),
    "no number": (lambda d: altered(d, updates="many"), "metadata cannot be"),
    "another checksum": (lambda d: altered(d, crc32="00000000"), "should be '00000000'"),
    "another layout": (lambda d: altered(d, layout="0" * 16), "should have the layout"),
    "a ledger of words": (lambda d: altered(d, ledger='[["a",1,1,1]]'), "metadata cannot be"),
    "no model": (lambda d: altered(d, model="{}"), "says of its model cannot be"),
    "another optimizer": (lambda d: altered(d, model=of_sgd(d)), "which is not the model's"),
}  # fmt: skip


def of_sgd(data):
    """The description in the file, with an optimizer that keeps no state."""
    optimizer = {"name": "sgd", "learning_rate": 1.0}
    return json.dumps({**json.loads(metadata(data)["model"]), "optimizer": optimizer})


def metadata(data):
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_was_cut_or_altered(client, whole_file, how):
    make, sentence = BROKEN[how]
    client.tier.put("/broken.safetensors", make(whole_file))
    with pytest.raises(coproc.CorruptCheckpoint, match=sentence) as caught:
        client.restore("/broken.safetensors", name="broken")
    assert "/broken.safetensors" in str(caught.value)
    assert "broken" not in client.models()
    client.tier.remove("/broken.safetensors")
    with pytest.raises(PathNotFound):
        client.tier.stat("/models/broken")


def test_what_is_no_checkpoint_or_is_not_there(client, name):
    model = create(client, name)
    with pytest.raises(coproc.CorruptCheckpoint, match="no checkpoint"):
        client.restore(f"/models/{name}/model.safetensors", name="other")
    with pytest.raises(coproc.CoprocError, match="nowhere"):
        client.restore("/nowhere", name="other")
    model.delete()


def test_a_header_has_room_for_all_workers_or_says_so():
    layout = ParamLayout({"w": (5,)})
    facts = checkpoint.Facts("{}", 0, 0, 0.0, 1, (), {})
    room = checkpoint.header_bytes(layout, (), facts)
    room += -room % 64
    most = 1 << 52
    ledger = tuple((4095, 2, most, -most) for _ in range(checkpoint.SPARE_WORKERS))
    full = checkpoint.Facts("{}", most, most, 1.0000000000000002e-300, most, ledger, {})
    assert len(checkpoint.header(layout, (), full, (1 << 32) - 1, room)) == room
    more = checkpoint.Facts("{}", most, most, 0.1, most, ledger * 3, {})
    with pytest.raises(ValueError, match="does not fit"):
        checkpoint.header(layout, (), more, 0, room)


def test_every_optimizer_is_restored(client, name):
    """Whatever rows it keeps: all that are registered, with their defaults."""
    gradients = np.random.default_rng(8).standard_normal((3, 40_000)).astype(np.float32)
    for kind in sorted(optim.registered()):
        optimizer = optim.from_config({"name": kind, "learning_rate": 0.01})
        model = create(client, f"{name}-{kind}", {"w": (200, 200)}, optimizer=optimizer, shards=2)
        with model.join(worker=0) as worker:
            push_all(worker, gradients, 3)
            path = model.checkpoint()
            push_all(worker, gradients, 6)
        restored = client.restore(path, name=f"{name}-{kind}-again", shards=2)
        with restored.join(worker=0) as worker:
            push_all(worker, gradients, 6)
        np.testing.assert_array_equal(restored.snapshot().flat, model.snapshot().flat, err_msg=kind)
        model.delete()
        restored.delete()
