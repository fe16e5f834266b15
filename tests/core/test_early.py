"""Pulls that are served while the server after a kill is not up yet, and what has to wait for all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import coproc
from coproc.far import pull
from coproc.server.early import EarlyPulls
from coproc.shared import control as ctl
from coproc.shared import published
from coproc.shared.control import Control
from coproc.shared.published import Published
from coproc.spec import ModelSpec
from coproc.v1 import coproc_pb2 as pb
from coproc.wire import service_stub
from storage_tier.wire import channel

TOKEN = "early"
# A server that says "held", and goes on to import the rest when it is told to.
HELD = """
import sys
from coproc.server import main
from coproc.server.early import EarlyPulls

end = EarlyPulls.end

def held(pulls):
    print("held", flush=True)
    sys.stdin.readline()
    end(pulls)

EarlyPulls.end = held
sys.exit(main.main(sys.argv[1:]))
"""


class Held:
    """A server process that stops where nothing but numpy, gRPC and shared memory is there."""

    def __init__(self, directory: Path, port: int = 0) -> None:
        self.directory = directory
        self._process = subprocess.Popen(
            [sys.executable, "-c", HELD, "--dir", str(directory), "--port", str(port), "--memory-bytes", "67108864"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "COPROC_TOKEN": TOKEN},
        )
        assert self._said() == "held"

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go_on(self) -> int:
        """Let it become a whole server; its port."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        ready = self._said()
        assert ready.startswith("ready ")
        return int(ready.rpartition(":")[2])

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=30)


@pytest.fixture
def directory():
    with tempfile.TemporaryDirectory(prefix=f"coproc-test-{os.getpid()}-early-", dir="/dev/shm") as name:
        yield Path(name)


def make(client, name, **settings):
    return client.create_model(
        name, params={"w": np.zeros(100, np.float32)}, optimizer=coproc.optim.SGD(1.0), **settings
    )


def far(port, token=TOKEN):
    return coproc.connect(f"coproc://127.0.0.1:{port}", token=token, near=False)


def test_versions_are_served_while_the_rest_is_not_there(directory):
    server = Held(directory)
    port = server.go_on()
    try:
        with far(port) as client, ThreadPoolExecutor(1) as threads:
            model, lockstep = make(client, "free"), make(client, "step", consistency=coproc.Bsp(workers=1), shards=2)
            worker, other = model.join(worker=0), lockstep.join(worker=0)
            worker.push({"w": np.arange(100)})
            other.push({"w": np.ones(100)})
            assert worker.pull(min_version=1).version == other.pull(min_version=1).version == 1

            server.kill()
            server = Held(directory, port)
            # By a lease of the server before, and without one; of two shards.
            assert (worker.pull(timeout_s=20).params["w"] == -np.arange(100)).all()
            with channel("127.0.0.1", port, token=TOKEN) as plain:
                stub, out = service_stub(plain), np.zeros(100, np.float32)
                request = pb.PullRequest(name="step", identity=lockstep.spec.identity, min_version=1)
                assert pull(stub, "the server", request, out, 20) == 1
                assert (out == -1).all()
                # A worker in step with others has to join first, so needs the whole server; as does what is not here.
                for request in (
                    pb.PullRequest(name="step", lease_id="0" * 32, timeout_ms=5000),
                    pb.PullRequest(name="free", min_version=2, timeout_ms=5000),
                    pb.PullRequest(name="free", identity="0" * 16, timeout_ms=5000),
                    pb.PullRequest(name="nothing", timeout_ms=5000),
                ):
                    with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
                        next(stub.Pull(request, timeout=0.3))
                with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
                    stub.ListModels(pb.ListModelsRequest(), timeout=0.3)

            waiting = threads.submit(other.pull, timeout_s=30)
            assert server.go_on() == port
            assert (waiting.result(30).params["w"] == -1).all()
            worker.push({"w": np.ones(100)})
            assert (worker.pull(min_version=2).params["w"] == -np.arange(100) - 1).all()
            worker.close()
            other.close()
    finally:
        server.kill()


def test_what_waits_is_answered_as_ever(directory):
    server = Held(directory)
    try:
        port = server.go_on()
        with far(port) as client:
            make(client, "gone").delete()
            kept = make(client, "kept")
        server.kill()
        server = Held(directory, port)
        with channel("127.0.0.1", port, token=TOKEN) as plain, ThreadPoolExecutor(4) as threads:
            stub, begun = service_stub(plain), threading.Barrier(5)

            def asked(call):
                begun.wait(20)
                try:
                    return call()
                except Exception as error:  # of gRPC; what it says is compared
                    return f"{error.code().name} {error.details()}"

            push = pb.PushRequest(begin=pb.PushBegin(name="kept", lease_id="0" * 32, examples=0, timeout_ms=1000))
            calls = [
                lambda: next(stub.Pull(pb.PullRequest(name="gone", timeout_ms=1000), timeout=30)),
                lambda: stub.GetModel(pb.GetModelRequest(name="kept"), timeout=30).spec_json,
                lambda: stub.Push(iter([push]), timeout=30),
                lambda: plain.unary_unary("/coproc.v1.Coprocessor/Nothing")(b"", timeout=30),
            ]
            answers = [threads.submit(asked, call) for call in calls]
            begun.wait(20)
            server.go_on()
            pulled, spec, pushed, nothing = [answer.result(30) for answer in answers]
            # The latter as long as it looks for models that went with the memory of a host.
            assert pulled.startswith(("NOT_FOUND", "UNAVAILABLE"))
            assert "model 'gone'" in pulled
            assert ModelSpec.from_json(spec).identity == kept.spec.identity
            assert pushed.startswith("FAILED_PRECONDITION")
            assert "join again" in pushed
            assert nothing == "UNIMPLEMENTED Method not found!"
    finally:
        server.kill()


def test_the_door_is_as_narrow_as_later(directory):
    server = Held(directory)
    try:
        port = server.go_on()
        with far(port) as client:
            make(client, "guarded")
        server.kill()
        server = Held(directory, port)
        for token in (None, "other"):
            with channel("127.0.0.1", port, token=token) as plain, pytest.raises(Exception, match="UNAUTHENTICATED"):
                next(service_stub(plain).Pull(pb.PullRequest(name="guarded"), timeout=20))
        second = subprocess.run(
            [sys.executable, "-m", "coproc.server.main", "--dir", str(directory), "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 1
        assert "another live server owns" in second.stderr or "in use" in second.stderr
    finally:
        server.kill()


@pytest.fixture(scope="module")
def all_left():
    """Models of two shards that a killed server has left, one a test."""
    with tempfile.TemporaryDirectory(prefix=f"coproc-test-{os.getpid()}-early-", dir="/dev/shm") as name:
        server = Held(Path(name))
        try:
            with far(server.go_on()) as client:
                models = [make(client, f"left-{number}", shards=2) for number in range(8)]
                for model in models:
                    with model.join(worker=0) as worker:
                        worker.push({"w": np.ones(100)})
                        worker.pull(min_version=1, timeout_s=20)
        finally:
            server.kill()
        yield EarlyPulls(Path(name) / "models"), [model.spec for model in models]


@pytest.fixture
def left(all_left):
    pulls, specs = all_left
    return pulls, specs.pop()


def served(pulls, name):
    return pulls.pull(pb.PullRequest(name=name).SerializeToString()) is not None


def test_what_is_whole_is_read(left):
    _, spec = left
    pulls = EarlyPulls(Path(spec.home).parent)
    header, *chunks = map(pb.PullResponse.FromString, pulls.pull(pb.PullRequest(name=spec.name).SerializeToString()))
    assert header.header.version == 1
    assert (np.frombuffer(b"".join(part.chunk for part in chunks), np.float32) == -1).all()
    assert not served(pulls, "no such")
    assert not served(pulls, "*")
    assert pulls.pull(b"\xff") is None
    pulls.end()
    assert not served(pulls, spec.name)


def test_what_is_deleted_is_not_read(left):
    pulls, spec = left
    assert served(pulls, spec.name)
    control = Control.open(spec.control_path)
    control.general.store(ctl.STATE, ctl.DELETED)
    control.region.close()
    assert not served(pulls, spec.name)


def test_shards_that_have_to_catch_up_are_not_read(left):
    pulls, spec = left
    assert served(pulls, spec.name)
    place = spec.shards[1]
    shard = Published.open(Path(place.path), place.hi - place.lo, 0, spec.buffers)
    shard.words.store(published.PUB, shard.words.load(published.PUB) + (1 << 8))
    shard.close()
    assert not served(pulls, spec.name)


@pytest.mark.parametrize("part", ["spec.json", "control", "shard-1"])
def test_what_is_half_there_is_not_read(left, part):
    pulls, spec = left
    assert served(pulls, spec.name)
    (Path(spec.home) / part).unlink()
    assert not served(pulls, spec.name)


def test_of_two_parts_of_a_name_none_is_read(left):
    pulls, spec = left
    assert served(pulls, spec.name)
    home, aside = Path(spec.home), Path(spec.home).with_name("aside")
    home.with_name(f"{spec.name}~00").mkdir()
    assert not served(pulls, spec.name)
    # Now it is listed in the other order.
    home.rename(aside)
    aside.rename(home)
    assert not served(pulls, spec.name)


def test_shards_elsewhere_are_not_read(left):
    pulls, spec = left
    assert served(pulls, spec.name)
    other = Path(spec.home).with_name("elsewhere")
    other.mkdir()
    moved = (Path(spec.home) / "spec.json").read_text().replace(f"{spec.home}/shard-1", f"{other}/shard-1")
    (Path(spec.home) / "shard-1").rename(other / "shard-1")
    (Path(spec.home) / "spec.json").write_text(moved)
    assert not served(pulls, spec.name)
