"""Settings that only some modes have: they reach their mode, others refuse them; presets, and what a mode needs."""

from __future__ import annotations

import dataclasses
import json
import threading

import numpy as np
import pyarrow as pa
import pytest

import coproc
from coproc.cli import main
from coproc.cli import train as command
from coproc.errors import ConfigError, OutOfMemory
from coproc.modes.base import Capabilities, ModeSettings, load
from coproc.pools.inline import InlinePool
from coproc.shared.published import Published
from coproc.training import TrainConfig, plan, train
from coproc.training.resume import config_of
from coproc.worker import run_worker

ROWS = 40


@pytest.fixture(scope="module")
def cluster():
    with coproc.LocalCluster(memory_bytes=256 << 20) as cluster:
        yield cluster


@pytest.fixture
def settings(cluster):
    return {
        "address": cluster.address,
        "hidden": (),
        "epochs": 1,
        "batch_size": 5,
        "optimizer": "sgd",
        "pool": "inline",
    }


@pytest.fixture
def table():
    rng = np.random.default_rng(7)
    labels = np.arange(ROWS) % 3
    features = (rng.normal(size=(ROWS, 4)) + 2 * np.eye(3, 4)[labels]).astype(np.float32)
    return pa.table({"features": pa.array(list(features), pa.list_(pa.float32())), "label": labels})


@pytest.fixture
def started(monkeypatch):
    """`started(mode, look)`: `look(settings, mode)` is called when a training has started that mode."""

    def watch(name, look):
        module = load(name)
        start = module.start

        def noted(settings):
            mode = start(settings)
            look(settings, mode)
            return mode

        monkeypatch.setattr(module, "start", noted)

    return watch


def weights(result):
    return np.concatenate([tensor.reshape(-1) for tensor in result.params.values()])


# ---- to their modes


def test_tau_is_the_steps_of_a_round(settings, table):
    # Two workers with four batches each.
    for tau, rounds in ((None, 1), (3, 2), (2, 2), (1, 4)):
        result = train(TrainConfig(**settings, mode="localsgd", tau=tau), table)
        assert result.version == rounds, tau


def test_the_best_is_not_the_mean(settings, table):
    mean, plain, best = (
        weights(train(TrainConfig(**settings, mode="localsgd", tau=2, combine=combine), table))
        for combine in ("mean", None, "best")
    )
    assert mean.tobytes() == plain.tobytes()
    assert np.abs(mean - best).max() > 1e-4


def test_storage_goes_where_its_url_says(settings, table, started, tmp_path):
    seen = []
    started("storage", lambda given, mode: seen.append([each.name for each in (tmp_path / "there").rglob("model")]))
    config = TrainConfig(**settings, mode="storage", storage_url=f"file://{tmp_path}/there")
    on_disk = weights(train(config, table))
    assert seen == [["model"]]
    assert list((tmp_path / "there").iterdir()) == []
    in_tier = weights(train(TrainConfig(**settings, mode="storage"), table))
    assert seen == [["model"], []]
    assert on_disk.tobytes() == in_tier.tobytes()


def test_a_url_that_nothing_opens_is_refused_before_anything_starts(settings, table, monkeypatch):
    monkeypatch.setattr("coproc.training.connect", lambda *given, **named: pytest.fail("it has started"))
    with pytest.raises(ConfigError, match=r"--storage-url 'carrier://pigeon/there' cannot be opened: "):
        train(TrainConfig(**settings, mode="storage", storage_url="carrier://pigeon/there"), table)


def test_the_http_server_is_where_the_driver_says(settings, table, started):
    where = []
    started("http", lambda given, mode: where.append(mode.exchange_spec().settings["address"]))
    result = train(TrainConfig(**settings, mode="http", driver_host="127.0.0.2"), table)
    assert "127.0.0.2:" in where[0]
    assert result.version == 4


def test_delays_are_compensated_if_asked_for(settings, table, started):
    given = []
    started("coproc", lambda told, mode: given.append(mode.model.spec.optimizer.delay_compensation))
    train(TrainConfig(**settings, consistency="asp", delay_compensation=0.04), table)
    train(TrainConfig(**settings, consistency="asp"), table)
    assert given == [0.04, 0.0]


def test_what_is_not_given_is_the_modes_own():
    assert TrainConfig(mode="localsgd").mode_settings() == {}
    fields = {each.name for each in dataclasses.fields(ModeSettings)}
    full = {"tau": 3, "combine": "best"}, {"storage_url": "/x"}, {"driver_host": "h"}
    for mode, given in zip(("localsgd", "storage", "http"), full, strict=True):
        told = TrainConfig(mode=mode, **given).mode_settings()
        assert sorted(told.values(), key=str) == sorted(given.values(), key=str)
        assert told.keys() <= fields


REFUSED = [
    ({"tau": 3}, "--tau goes with --mode localsgd, not with coproc"),
    ({"tau": 3, "mode": "storage"}, "--tau goes with --mode localsgd, not with storage"),
    ({"tau": 0, "mode": "localsgd"}, "--tau must be at least 1, not 0"),
    ({"combine": "mean"}, "--combine goes with --mode localsgd, not with coproc"),
    ({"combine": "worst", "mode": "localsgd"}, "--combine must be one of mean, best, not 'worst'"),
    ({"storage_url": "/x", "mode": "localsgd"}, "--storage-url goes with --mode storage, not with localsgd"),
    ({"driver_host": "h", "mode": "allreduce"}, "--driver-host goes with --mode http, not with allreduce"),
    ({"delay_compensation": 0.1}, "--delay-compensation goes with --consistency quorum, ssp or asp: bsp has no delays"),
    (
        {"delay_compensation": 0.1, "mode": "http", "consistency": "asp"},
        "--delay-compensation goes with --mode coproc, not with http",
    ),
    ({"delay_compensation": -1.0, "consistency": "asp"}, "delay_compensation"),
    ({"preset": "sandblaster"}, "--preset must be one of downpour, ssp, bsp, hogwild, not 'sandblaster'"),
    ({"n_send": 0}, "--n-send must be at least 1, not 0"),
    ({"preset": "ssp", "bound": 2, "consistency": "asp"}, "--bound 2 goes with --consistency ssp, not with asp"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=str)
def test_others_refuse_them(given, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**given)


# ---- presets


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("bsp", None, 1, 1)),
        ({"preset": "bsp"}, ("bsp", None, 1, 1)),
        ({"preset": "ssp"}, ("ssp", 3, 1, 1)),
        ({"preset": "downpour"}, ("asp", None, 5, 5)),
        ({"preset": "ssp", "bound": 0}, ("ssp", 0, 1, 1)),
        ({"preset": "ssp", "consistency": "ssp", "n_fetch": 2}, ("ssp", 3, 1, 2)),
        ({"preset": "ssp", "consistency": "bsp"}, ("bsp", None, 1, 1)),
        ({"preset": "downpour", "n_send": 1}, ("asp", None, 1, 1)),
        ({"preset": "downpour", "n_fetch": 3}, ("asp", None, 5, 3)),
        ({"preset": "downpour", "consistency": "bsp"}, ("bsp", None, 5, 5)),
        ({"preset": "hogwild"}, ("asp", None, 1, 1)),
    ],
    ids=str,
)
def test_a_preset_fills_in_what_is_not_given(given, expected):
    config = TrainConfig(**given)
    assert (config.consistency, config.bound, config.n_send, config.batches_per_fetch) == expected
    config.consistency_rule()
    # What is written, read again and changed has the values, and not the defaults of another preset.
    assert dataclasses.replace(config, seed=4) == dataclasses.replace(TrainConfig(**given), seed=4)
    assert TrainConfig(**{**dataclasses.asdict(config), "seed": 0}) == config


def test_a_preset_may_choose_the_mode():
    assert [TrainConfig(**given).mode for given in ({}, {"preset": "ssp"}, {"preset": "hogwild"})] == [
        *("coproc", "coproc", "hogwild")
    ]
    assert TrainConfig(preset="hogwild", mode="http").mode == "http"


def test_a_run_with_a_preset_is_what_it_says(settings, table, tmp_path):
    result = train(TrainConfig(**settings, preset="downpour"), table, output=tmp_path)
    # 20 rows a worker are four batches, which go into one push.
    assert (result.history[-1]["pushes"], result.version) == (2, 2)
    written = json.loads((tmp_path / "run.json").read_text())["config"]
    assert (written["consistency"], written["n_send"], written["preset"]) == ("asp", 5, "downpour")
    assert config_of(tmp_path, {}).consistency == "asp"


# ---- the command


@pytest.fixture
def asked(monkeypatch):
    """`asked(*arguments)`: the settings that `coprocessor train` makes of them."""

    def asked(*arguments):
        found = []
        monkeypatch.setattr(command, "train_and_tell", lambda config, *given, **named: found.append(config))
        with pytest.raises(SystemExit) as ended:
            main(["train", "rows.parquet", *arguments])
        assert ended.value.code in (None, 0)
        return found[0]

    return asked


def test_the_command_has_them(asked):
    config = asked("--mode", "localsgd", "--tau", "3", "--combine", "best")
    assert (config.mode, config.tau, config.combine) == ("localsgd", 3, "best")
    assert asked("--mode", "storage", "--storage-url", "/x").storage_url == "/x"
    assert asked("--mode", "http", "--driver-host", "10.0.0.1").driver_host == "10.0.0.1"
    assert asked("--consistency", "asp", "--delay-compensation", "0.04").delay_compensation == 0.04
    assert asked("--preset", "downpour", "--n-send", "2").n_send == 2
    assert asked("--preset", "hogwild").mode == "hogwild"
    assert [asked("--group-size", size).group_size for size in ("auto", "7")] == ["auto", 7]
    config = asked("--preset", "downpour")
    assert (config.consistency, config.n_send) == ("asp", 5)
    assert (asked().consistency, asked().n_send, asked().mode) == ("bsp", 1, "coproc")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tau", "3"], "--tau goes with --mode localsgd, not with coproc"),
        (["--mode", "http", "--combine", "best"], "--combine goes with --mode localsgd, not with http"),
        (["--storage-url", "/x"], "--storage-url goes with --mode storage, not with coproc"),
        (["--driver-host", "h"], "--driver-host goes with --mode http, not with coproc"),
        (["--group-size", "some"], "--group-size is a number of pushes or auto, not 'some'"),
        (["--preset", "sandblaster"], "--preset must be one of downpour, ssp, bsp, hogwild, not 'sandblaster'"),
        (["--mode", "storage", "--storage-url", "no://where"], "--storage-url 'no://where' cannot be opened"),
        (["--mode", "broadcast", "--preset", "downpour"], "the mode 'broadcast' can be bsp, not asp"),
        (["--resume", "out", "--preset", "ssp"], "--preset cannot be given with --resume"),
        (["--resume", "out", "--tau", "2"], "--tau cannot be given with --resume"),
    ],
    ids=str,
)
def test_the_command_refuses_in_a_sentence(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["train", "rows.parquet", *arguments])
    told = capsys.readouterr()
    assert ended.value.code in (1, 2)
    assert words in " ".join((told.out + told.err).split())
    assert list(tmp_path.iterdir()) == []


# ---- memory

P = 1 << 18
VECTOR = 4 * P
FAR = {"address": "coproc://somewhere:1"}


@pytest.mark.parametrize(
    ("given", "vectors"),
    [
        # On top of the driver's four. adam has two rows of state beside the parameters, momentum one, sgd none.
        ({"mode": "broadcast", "optimizer": "adam"}, 3 + 2),
        ({"mode": "broadcast", "optimizer": "adam", **FAR}, 3 + 2),
        ({"mode": "storage", "optimizer": "sgd", "workers": 3}, 1 + 2 + 3),
        ({"mode": "storage", "optimizer": "sgd", "workers": 16}, 1 + 2 + 16 + 2),
        ({"mode": "storage", "optimizer": "adam", "workers": 3, "storage_url": "/x"}, 3 + 3),
        ({"mode": "storage", "optimizer": "adam", "workers": 30, **FAR}, 3 + 8),
        ({"mode": "localsgd", "optimizer": "momentum", "workers": 4}, 2 + 2 + 4 * 3),
        ({"mode": "localsgd", "optimizer": "momentum", "workers": 4, **FAR}, 2 + 4),
        ({"mode": "localsgd", "optimizer": "momentum", "workers": 4, "combine": "best", **FAR}, 2 + 1),
        ({"mode": "http", "optimizer": "momentum", "workers": 4, **FAR}, 2 + 1 + 4),
        ({"mode": "allreduce", "optimizer": "adam", "workers": 4}, 2 * 3 + 4),
        ({"mode": "allreduce", "optimizer": "adam", "workers": 4, "compression": "bf16"}, 2 * 3.5 + 2),
        ({"mode": "allreduce", "optimizer": "adam", "workers": 4, **FAR}, 0),
        ({"mode": "coproc", "workers": 4, **FAR}, 0),
        ({"preset": "hogwild", "workers": 4, "optimizer": "momentum"}, 2 + 4),
    ],
    ids=str,
)
def test_each_mode_counts_what_it_holds(given, vectors, monkeypatch, tmp_path):
    just_fits(TrainConfig(**given), int((4 + vectors) * VECTOR), monkeypatch, tmp_path)


@pytest.mark.parametrize(("given", "slots"), [({}, 2), ({"delay_compensation": 0.1}, 4)])
def test_slots_are_twice_as_large_where_delays_are_compensated(given, slots, monkeypatch, tmp_path):
    config = TrainConfig(workers=3, consistency="asp", optimizer="adam", **given)
    servers = Published.size_bytes(P, 2, config.consistency_rule().buffers)
    just_fits(config, (4 + 3 * slots) * VECTOR + servers, monkeypatch, tmp_path)


def just_fits(config, needed_bytes, monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "MEMINFO", tmp_path / "meminfo")
    assert needed_bytes % 1024 == 0
    (tmp_path / "meminfo").write_text(f"MemAvailable: {needed_bytes // 1024} kB\n")
    plan.require_memory(config, P)
    (tmp_path / "meminfo").write_text(f"MemAvailable: {needed_bytes // 1024 - 1} kB\n")
    with pytest.raises(OutOfMemory) as refused:
        plan.require_memory(config, P)
    # Another host's memory helps only where the tier has some of it.
    in_tier = (
        config.address is None and config.mode not in ("broadcast", "http", "hogwild") and config.storage_url is None
    )
    assert ("--address" in str(refused.value)) == in_tier


# ---- slots


@pytest.mark.parametrize(
    ("waits", "given", "expected"),
    [
        ("always", {}, True),
        ("always", {"group_size": 1}, True),
        ("always", {"consistency": "asp"}, False),
        ("in groups", {}, True),
        ("in groups", {"group_size": 2}, True),
        ("in groups", {"group_size": 1}, False),
        ("in groups", {"group_size": "auto"}, True),
        ("never", {}, False),
        ("never", {"group_size": 5}, False),
    ],
    ids=str,
)
def test_who_waits_for_all_needs_all_slots(waits, given, expected):
    able = Capabilities(frozenset({"bsp"}), exactly_once=True, whole_versions=True, elastic=True, waits_for_all=waits)
    assert plan.waits_for_all(TrainConfig(**given), able) is expected


def test_a_mode_that_does_not_say_so_waits():
    able = Capabilities(frozenset({"bsp"}), exactly_once=True, whole_versions=True, elastic=True)
    assert plan.waits_for_all(TrainConfig(), able)


@pytest.fixture
def one_slot(monkeypatch):
    """All trainings run on a pool that does one task after the other."""
    turn = threading.Lock()

    def run_task(task, *, stop):
        with turn:
            return run_worker(task, stop=stop)

    monkeypatch.setattr("coproc.training.open_pool", lambda *given: InlinePool(1, run_task))


@pytest.mark.parametrize(
    ("mode", "group_size"), [("broadcast", None), ("storage", None), ("localsgd", None), ("allreduce", 1)]
)
def test_modes_that_wait_for_nobody_train_one_after_the_other(settings, table, one_slot, mode, group_size):
    result = train(TrainConfig(**settings, mode=mode, group_size=group_size, workers=3), table)
    assert result.history[-1]["examples"] == ROWS


@pytest.mark.parametrize(
    ("mode", "otherwise"),
    [("coproc", "--consistency asp"), ("http", "--consistency asp"), ("allreduce", "--group-size 1")],
)
def test_modes_that_wait_are_refused_with_what_helps(settings, table, one_slot, mode, otherwise):
    with pytest.raises(ConfigError, match=f"all 3 workers .* 1 slot: .* --workers 1, more slots, or {otherwise}"):
        train(TrainConfig(**settings, mode=mode, workers=3), table)
