"""What is compared, and what is refused before anything starts."""

import re
from pathlib import Path

import pytest

from coproc.compare.grid import changed, check, default_grid, plain_consistency, read_grid, slots, train_config
from coproc.errors import ConfigError
from coproc.modes.base import names
from coproc.trials.base import Point, labels

NOWHERE = Path("/nowhere")


def digits(contestant="coproc", **settings):
    return Point(contestant, **{"workload": "digits", "pool": "inline", **settings})


@pytest.fixture
def grid(tmp_path):
    def grid(text):
        path = tmp_path / "some.toml"
        path.write_text(text)
        return read_grid(path)

    return grid


def test_lists_are_multiplied(grid):
    told = grid(
        """
        repeats = 4
        timeout_s = 30
        data = "rows"
        [defaults]
        workload = "digits"
        hidden = [8]
        [[grid]]
        contestant = ["coproc", "http"]
        workers = [1, 2, 4]
        [[grid]]
        contestant = "localsgd"
        tau = [5, 10]
        hidden = [[8, 8], [4]]
        learning_rate = 1
        """
    )
    assert (told.title, told.repeats, told.timeout_s, told.data) == ("some", 4, 30.0, "rows")
    assert [(point.contestant, point.workers) for point in told.points[:6]] == [
        ("coproc", 1), ("coproc", 2), ("coproc", 4), ("http", 1), ("http", 2), ("http", 4),
    ]  # fmt: skip
    assert {point.hidden for point in told.points[:6]} == {(8,)}
    assert [(point.tau, point.hidden) for point in told.points[6:]] == [
        (5, (8, 8)),
        (5, (4,)),
        (10, (8, 8)),
        (10, (4,)),
    ]
    assert {point.workload for point in told.points} == {"digits"}
    assert told.points[-1].learning_rate == 1.0
    assert told.points[-1].id == Point("localsgd", workload="digits", tau=10, hidden=(4,), learning_rate=1.0).id


def test_a_point_that_comes_twice_is_run_once(grid):
    told = grid("[[grid]]\ncontestant = ['coproc', 'coproc']\n[[grid]]\ncontestant = 'coproc'\nworkers = 2\n")
    assert told.points == (Point("coproc"),)


@pytest.mark.parametrize("size", ["1", '"auto"'])
def test_a_setting_may_have_values_of_several_types(grid, size):
    (point,) = grid(f"[[grid]]\ncontestant = 'coproc'\ngroup_size = {size}\n").points
    assert point.group_size == (1 if size == "1" else "auto")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[grid]", "is not TOML"),
        ("repeats = 2", r"no \[\[grid\]\]"),
        ("[[grid]]\nworkers = 2", r"\[\[grid\]\] 1: it names no contestant"),
        ("repeats = 0\n[[grid]]\ncontestant = 'coproc'", "repeats is a whole number of at least 1, not 0"),
        ("timeout_s = 'long'\n[[grid]]\ncontestant = 'coproc'", "timeout_s is a number of seconds above 0"),
        ("title = 3\n[[grid]]\ncontestant = 'coproc'", "title is text, not 3"),
        ("speed = 3\n[[grid]]\ncontestant = 'coproc'", "there is no 'speed'; a grid has defaults, grid"),
        ("[[grid]]\ncontestant = 'coproc'\nmode = 'x'", "a point has no 'mode'; it has contestant, workload"),
        ("[[grid]]\ncontestant = 'coproc'\nworkers = '2'", "workers is a whole number, not '2'"),
        ("[[grid]]\ncontestant = 'coproc'\nworkers = true", "workers is a whole number, not True"),
        ("[[grid]]\ncontestant = 'coproc'\nworkers = []", "workers is an empty list"),
        ("[[grid]]\ncontestant = 'coproc'\ngroup_size = 'all'", "group_size is a whole number or 'auto', not 'all'"),
        ("[[grid]]\ncontestant = 'coproc'\nhidden = 'wide'", "hidden is a list of sizes, not 'wide'"),
        ("grid = 3", "one table, and"),
    ],
)
def test_a_file_that_is_no_grid_is_refused(grid, text, words):
    with pytest.raises(ConfigError, match=words):
        grid(text)


def test_everything_that_is_wrong_with_a_file_is_said_at_once(grid):
    with pytest.raises(ConfigError, match=r"repeats .*; \[\[grid\]\] 1: .*workers.*; \[\[grid\]\] 2: .*'speed'"):
        grid("repeats = 0\n[[grid]]\ncontestant='a'\nworkers='b'\n[[grid]]\ncontestant='a'\nspeed=1\n")


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_grid(NOWHERE / "grid.toml")


def test_the_default_grid_has_every_contestant_on_mnist():
    told = default_grid()
    found = {point.contestant for point in told.points}
    assert {*names(), "single", "torchdist", "ray"} <= found
    assert {(point.workload, point.workers) for point in told.points} == {("mnist", 2)}


def test_on_several_hosts_only_those_are_compared_that_can_be():
    found = {point.contestant for point in default_grid(several_hosts=True).points}
    assert {"coproc", "allreduce", "http"} <= found
    assert not {"broadcast", "single", "ray", "torchdist"} & found


def test_points_that_an_option_makes_equal_are_run_once(grid):
    told = grid("[[grid]]\ncontestant = 'coproc'\nworkers = [1, 2]\n")
    assert [point.workers for point in changed(told, workers=4).points] == [4]


def test_options_change_every_point(grid):
    told = grid("[[grid]]\ncontestant = ['coproc', 'http', 'storage']\n[[grid]]\ncontestant='coproc'\nlabel='mine'")
    found = changed(told, only=["http", "mine"], repeats=7, hosts=4, link="1gbit", delay=None)
    assert [(point.contestant, point.hosts, point.link) for point in found.points] == [
        ("http", 4, "1gbit"),
        ("coproc", 4, "1gbit"),
    ]
    assert found.repeats == 7
    assert changed(told) == told
    with pytest.raises(ConfigError, match="no contestant of this comparison is called 'ftp'; there are coproc, http"):
        changed(told, only=["ftp"])


def test_what_can_be_run_is_not_refused():
    points = [digits(name, consistency=plain_consistency(name)) for name in names()]
    found = check(points, NOWHERE)
    assert found.impossible == ()
    assert found.skipped == {}


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (digits("ftp"), "no contestant 'ftp'; the contestants are allreduce, broadcast, coproc"),
        (digits(workload="imagenet"), "no workload 'imagenet'; the workloads are"),
        (digits(preset="sandblaster"), "--preset must be one of"),
        (digits(preset="hogwild"), "the preset 'hogwild' is another architecture: give contestant = 'hogwild'"),
        (digits(servers=0), "servers must be at least 1, not 0"),
        (digits(workers=0), "workers must be at least 1, not 0"),
        (digits(epochs=0), "epochs must be at least 1, not 0"),
        (digits(batch_size=-1), "batch_size must be at least 1"),
        (digits(tau=0), "tau must be at least 1"),
        (digits(rows=0), "rows must be at least 1"),
        (digits(workers=65), "needs all 65 workers to run at once, and the pool 'inline' has 64 slots"),
        (digits(workers=3, pool="spark", master="local[2]"), "needs all 3 workers .* the pool 'spark' has 2 slots"),
        (digits("allreduce", workers=3, pool="spark", master="local[2]"), "or group_size 1"),
        (digits(master="local[2]"), r"of the pool 'spark', not 'local\[2\]' of 'inline'"),
        (digits(pool="spark", master="yarn"), r"master is local\[SLOTS\]"),
        (digits("broadcast", pool="processes"), "runs on --pool inline or spark, not processes"),
        (digits("localsgd", consistency="asp"), "the mode 'localsgd' can be bsp, not asp"),
        (digits("broadcast", compression="bf16"), "has no compression"),
        (digits(tau=3), "--tau goes with --mode localsgd"),
        (digits(bound=3), "--bound 3 goes with --consistency ssp"),
        (digits(pool="moon"), "--pool must be one of"),
        (digits(rows=10**6), "digits has 1,437 training rows"),
        (Point("coproc"), "mnist needs /nowhere/mnist_train.parquet"),
        (digits("single", tau=3), "has no use for tau 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.contestant,
)
def test_what_cannot_be_run_is_refused(point, words):
    (sentence,) = check([digits(), point], NOWHERE).impossible
    assert labels([digits(), point])[point.id] in sentence
    assert re.search(words, sentence), sentence


def test_a_network_that_does_not_fit_is_refused():
    (sentence,) = check([digits(hidden=(200_000, 200_000))], NOWHERE).impossible
    assert "of memory available" in sentence


def test_all_impossible_points_are_told_at_once():
    found = check([digits(servers=0), digits(), digits("ftp"), digits(epochs=0)], NOWHERE)
    assert len(found.impossible) == 3


def test_what_is_not_installed_is_skipped_with_the_install_line(monkeypatch):
    def find_spec(name):
        return None if name in ("uvicorn", "torch") else object()

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    points = [digits("http"), digits("torchdist"), digits("coproc")]
    found = check(points, NOWHERE)
    assert found.impossible == ()
    assert "pip install 'coproc[http]'" in found.skipped[points[0].id]
    assert "pip install 'coproc[" in found.skipped[points[1].id]
    assert points[2].id not in found.skipped


def test_a_spark_without_java_is_skipped(monkeypatch):
    from coproc.compare import grid
    from coproc.pools import session

    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    grid._require_spark.cache_clear()
    point = digits(pool="spark")
    assert "Java" in check([point], NOWHERE).skipped[point.id]
    grid._require_spark.cache_clear()
    assert session.INSTALL_JAVA.split(",", 1)[0] in check([point], NOWHERE).skipped[point.id]
    grid._require_spark.cache_clear()


def test_settings_of_a_point_are_those_of_the_training():
    config = train_config(digits(workers=3, batch_size=7, servers=2, epochs=4, seed=9, group_size=5, optimizer="sgd"))
    assert (config.mode, config.workers, config.batch_size, config.servers) == ("coproc", 3, 7, 2)
    assert (config.epochs, config.seed, config.group_size, config.optimizer) == (4, 9, 5, "sgd")
    assert (config.hidden, config.loss, config.scale) == ((128,), "softmax", 16.0)
    assert train_config(digits(hidden=())).hidden == ()


def test_a_preset_sets_what_a_point_does_not():
    config = train_config(digits(preset="downpour"))
    assert (config.consistency, config.n_send) == ("asp", 5)
    assert train_config(digits("hogwild", preset="hogwild")).mode == "hogwild"
    assert train_config(digits("http", preset="downpour")).mode == "http"
    config = train_config(digits(preset="downpour", n_send=3, consistency="ssp"))
    assert (config.consistency, config.n_send) == ("ssp", 3)


def test_slots_of_a_spark():
    assert slots(digits()) is None
    assert slots(digits(pool="spark", master="local[3]")) == 3
    assert slots(digits(pool="spark", master="local-cluster[3,2,1024]")) == 6


def test_points_are_called_by_what_tells_them_apart():
    points = [digits(), digits("http"), digits("localsgd", tau=5), digits("localsgd", tau=7, label="mine")]
    assert list(labels(points).values()) == ["coproc", "http", "localsgd tau=5", "mine"]
    several = [digits(workers=n, hidden=(n, n)) for n in (1, 2)]
    assert list(labels(several).values()) == ["coproc workers=1 hidden=1,1", "coproc workers=2 hidden=2,2"]
    assert list(labels([digits(), Point("coproc", workload="mnist", pool="inline")]).values()) == [
        "coproc workload=digits",
        "coproc workload=mnist",
    ]
