"""The mode `http`: what it refuses, where its server is, and what becomes of a training whose server dies."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
from dataclasses import replace

import numpy as np
import pytest

import coproc
from coproc import optim
from coproc.errors import ConfigError, Timeout, Unreachable
from coproc.modes import base, http
from coproc.modes.base import Capabilities, ModeSettings
from coproc.testing.modes import WORKS, assert_close
from coproc.testing.works import TIMEOUT_S, Training, one_process
from coproc.training import TrainConfig, train
from coproc.training.plan import require_mode

NOWHERE = "coproc://127.0.0.1:1"


def settings(**changes):
    plain = ModeSettings(
        address=NOWHERE,
        token=None,
        model="m",
        params={"w": np.zeros(4, np.float32)},
        optimizer=optim.SGD(1.0),
        consistency=coproc.Bsp(workers=2),
    )
    return replace(plain, **changes)


def test_a_training_whose_server_dies_fails_with_a_sentence(ground):
    work = replace(WORKS["three"], rows=(400, 400))
    with ground.pool("inline") as pool, Training("http", ground, work) as training:
        run, killed = pool.run, []

        def kill_on_the_way(tasks, *, stop):
            def look():
                if not killed and training.mode.status().pushes_count > 10:
                    killed.append(training.mode.pid)
                    os.kill(training.mode.pid, signal.SIGKILL)
                return stop()

            return run(tasks, stop=look)

        pool.run = kill_on_the_way
        with pytest.raises(Unreachable, match=r"the parameter server at .* what it had learned is lost"):
            training.run(pool)
        assert killed
        for call in (lambda: training.mode.snapshot(timeout_s=TIMEOUT_S), training.mode.status):
            with pytest.raises(Unreachable):
                call()


def test_a_whole_training_by_its_name(cluster, tmp_path):
    import pyarrow as pa

    random = np.random.default_rng(0)
    rows = random.standard_normal((90, 4)).astype(np.float32)
    table = pa.table({"features": list(rows), "label": (rows.sum(axis=1) > 0).astype(np.int64)})
    for consistency, version in (("bsp", 24), ("asp", 48)):
        config = TrainConfig(
            hidden=(8,), epochs=2, batch_size=4, workers=2, pool="inline", mode="http", consistency=consistency,
            address=cluster.address, token="secret",
        )  # fmt: skip
        result = train(config, table, output=tmp_path / consistency)
        assert [row["examples"] for row in result.history] == [90, 90]
        assert result.version == version


def test_what_arrived_in_part_is_not_taken_for_a_version():
    class Half:
        """A connection that breaks in the middle of the second pull."""

        def __init__(self):
            self.held = []

        def pull(self, out, held, timeout_s, worker):
            self.held.append(held)
            out[:2] = len(self.held)
            if len(self.held) == 2:
                raise Timeout("in the middle")
            out[:] = len(self.held)
            return len(self.held)

    connection = Half()
    exchange = http.HttpExchange(connection, 0, 4, 0)
    assert exchange.pull(timeout_s=1.0).flat.tolist() == [1, 1, 1, 1]
    with pytest.raises(Timeout):
        exchange.pull(timeout_s=1.0)
    pulled = exchange.pull(timeout_s=1.0)
    assert (pulled.version, pulled.flat.tolist()) == (3, [3, 3, 3, 3])
    assert connection.held == [-1, 1, -1]
    with pytest.raises(ValueError, match="read-only"):
        pulled.flat[:] = 0


@pytest.mark.parametrize(("host", "told"), [("127.0.0.7", "127.0.0.7:"), ("::1", "[::1]:")])
def test_another_address_of_the_host(ground, host, told):
    """One that nothing but this server listens at: the workers were told."""
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")
    with ground.pool("inline") as pool, Training("http", ground, WORKS["three"]) as training:
        training.mode.close()
        training.mode = http.start(replace(training.mode.settings, host=host))
        assert training.mode.exchange_spec().settings["address"].startswith(told)
        assert_close(training.run(pool), one_process(training.work))


def test_the_address_of_the_host_is_the_one_on_the_way_to_the_tier():
    assert http.way_to("coproc://127.0.0.1:7000,203.0.113.9:7000") == "127.0.0.1"
    assert http.way_to("coproc://localhost:7000") == "127.0.0.1"
    with pytest.raises(ConfigError, match=r"no way from here to coproc://no\.such\.host\.invalid:1"):
        http.way_to("coproc://no.such.host.invalid:1")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (coproc.Ssp(bound=1), "can be asp, bsp, quorum, not Ssp"),
        (coproc.Quorum(workers=2, count=1), "--late carry"),
        (coproc.Quorum(workers=2, count=1, late="carry", grace_s=1.0), "waits for nobody else"),
        (coproc.Bsp(workers=2, on_loss="close"), "cannot tell a lost worker"),
    ],
    ids=str,
)
def test_rules_that_it_does_not_know(rule, words):
    with pytest.raises(ConfigError, match=words):
        http.start(settings(consistency=rule))


def test_a_cluster_with_tls_is_refused():
    with pytest.raises(ConfigError, match="for all to read"):
        http.start(settings(tls_authority="authority.pem"))


def test_without_its_packages_the_install_line(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    sentence = r"the mode 'http' needs uvicorn: pip install 'coproc\[http\]'"
    with pytest.raises(ConfigError, match=sentence):
        http.start(settings())
    with pytest.raises(ConfigError, match=sentence):
        train(TrainConfig(mode="http"), "nowhere.parquet")


def test_a_pool_that_a_mode_does_not_run_on_is_refused():
    able = Capabilities(frozenset({"bsp"}), True, True, True, pools=frozenset({"spark"}))
    require_mode(TrainConfig(pool="spark"), able)
    with pytest.raises(ConfigError, match="the mode 'coproc' runs on --pool spark, not inline"):
        require_mode(TrainConfig(pool="inline"), able)


def test_the_modes_are_the_files():
    assert {"coproc", "http"} <= set(base.names())
    for name in base.names():
        assert isinstance(base.load(name).CAPABILITIES, Capabilities)
