"""The experiments: points that can be run, and readings that say what is in the numbers."""

import xml.etree.ElementTree as ET

import pytest

from coproc.compare import costing, growing, learning
from coproc.compare.experiments import EXPERIMENTS
from coproc.compare.grid import is_mode, slots, train_config
from coproc.contestants import base as contestants
from coproc.modes import base as modes
from coproc.report import write
from coproc.report.contest import Trial, trials_of
from coproc.trials.base import Point
from coproc.trials.metrics import metrics_of
from coproc.trials.workloads import rows_wanted, workload

from . import made_rows

NAMES = [
    *("scaling", "speedup", "convergence", "partitions", "tau"),
    *("scheduling", "syncfraction", "independence", "memory", "precision"),
]
# Rows that lie in the files of each, and the seconds that a run takes whatever it does.
ROWS = {"mnist": 50_000, "higgs": 37_983, "molecular": 32_915}
RUN_S = 13


def trial(contestant, repeat=0, metrics=(), **fields):
    """A run of which only these metrics are known."""
    row = {"status": "ok", "repeat": repeat, "parameters": 1000, "epochs": [], "samples": [], "groups": []}
    return Trial(row, Point(contestant, **fields), dict(metrics))


def said(sentences, words):
    """The one sentence that begins with, or has, these words; spaces are spaces."""
    plain = [each.replace("\N{NARROW NO-BREAK SPACE}", " ") for each in sentences]
    (found,) = [each for each in plain if words in each]
    return found


def test_all_of_them_are_there():
    assert list(EXPERIMENTS) == NAMES
    assert all(each.name == name for name, each in EXPERIMENTS.items())


@pytest.mark.parametrize("name", NAMES)
def test_its_points_can_be_run_and_end_in_time(name):
    experiment = EXPERIMENTS[name]
    assert len({point.id for point in experiment.points}) == len(experiment.points)
    assert len(experiment.points) * experiment.repeats * RUN_S < 400
    for point in experiment.points:
        assert point.contestant in (*modes.names(), *contestants.names())
        wanted = rows_wanted(point) or ROWS[point.workload]
        assert point.workers <= wanted <= ROWS[point.workload]
        if is_mode(point):
            config = train_config(point)
            capabilities = modes.load(point.contestant).CAPABILITIES
            assert config.consistency in capabilities.consistencies
            assert config.compression is None or capabilities.compression
            if config.consistency == "bsp" and capabilities.waits_for_all != "never":
                count = slots(point)
                assert count is None or count >= point.workers


@pytest.mark.parametrize("name", NAMES)
def test_its_page_answers_before_it_tells_all(name, tmp_path):
    experiment = EXPERIMENTS[name]
    rows = made_rows.of_points(experiment.points, experiment.repeats)
    page = write(tmp_path, rows, title=experiment.title, experiment=experiment).read_text(encoding="utf-8")
    tree = ET.fromstring(page.removeprefix("<!doctype html>\n"))
    sections = [each.get("id") for each in tree.iter("section")]
    assert sections[:2] == ["figure-1", "verdict"]
    assert experiment.question in page.replace("&#x27;", "'")
    for figure in (each for each in tree.iter("section") if each.get("id").startswith("figure")):
        assert len(figure.findall("figure/details//tbody/tr")) > 1, figure.get("id")
    sentences = experiment.reading(trials_of(rows, metrics_of))
    assert len(sentences) >= 3
    assert not [each for each in sentences if "None" in each or "nan" in each or "too few" in each]


@pytest.mark.parametrize("name", NAMES)
def test_without_numbers_it_says_that_and_draws_nothing(name, tmp_path):
    experiment = EXPERIMENTS[name]
    rows = [made_rows.lost(point.contestant, "it failed", workload=point.workload) for point in experiment.points[:2]]
    for told in ([], trials_of(rows, metrics_of)):
        assert experiment.figures(told) == []
        (sentence,) = experiment.reading(told)
        assert "no numbers" in sentence or "too few" in sentence
    ET.fromstring(
        write(tmp_path, rows, title="x", experiment=experiment)
        .read_text(encoding="utf-8")
        .removeprefix("<!doctype html>\n")
    )


def test_scaling_tells_the_efficiency_and_whether_it_is_linear():
    speeds = {1: 100.0, 8: 720.0}
    trials = [
        trial("coproc", metrics={"examples_per_s": speed}, workers=n, rows_per_worker=10) for n, speed in speeds.items()
    ]
    assert "each keeps 90 % of its speed." in said(growing.scaling_reading(trials), "coproc:")
    trials[1].metrics["examples_per_s"] = 400.0
    assert "each keeps 50 % of its speed, which is not linear" in said(growing.scaling_reading(trials), "coproc:")


def test_scaling_pairs_repeats():
    trials = [trial("coproc", n, {"examples_per_s": slow}, workers=1) for n, slow in enumerate((100.0, 10.0, 100.0))]
    trials += [trial("coproc", n, {"examples_per_s": slow}, workers=2) for n, slow in enumerate((180.0, 18.0, 20.0))]
    assert "each keeps 90 %" in said(growing.scaling_reading(trials), "coproc:")


def test_real_computing_and_waits_are_told_apart():
    trials = [trial("coproc", metrics={"examples_per_s": 100.0 * n}, workers=n) for n in (1, 2)]
    trials += [trial("coproc", metrics={"examples_per_s": 10.0 * n}, workers=n, emulate_compute=True) for n in (1, 4)]
    told = growing.scaling_reading(trials)
    assert "from 1 to 4 workers" in said(told, "computing a wait:")
    assert "from 1 to 2 workers" in said(told, "coproc:")


def test_speedup_tells_the_time_to_the_loss_of_real_gradients_only():
    metrics = {
        1: {"examples_per_s": 100.0, "seconds_to_loss": 9.0},
        2: {"examples_per_s": 190.0, "seconds_to_loss": 6.0},
    }
    real = [trial("coproc", metrics=metrics[n], workers=n, target_loss=0.2) for n in (1, 2)]
    assert "takes 9 s with 1 worker and 6 s with 2: 1.5" in said(growing.speedup_reading(real), "To a loss of 0.2")
    waits = [trial("coproc", metrics=metrics[n], workers=n, emulate_compute=True) for n in (1, 2)]
    assert not [each for each in growing.speedup_reading(waits) if "To a loss" in each]


def test_independence_finds_where_more_workers_bring_no_more():
    def made(servers, workers, rate, update_s):
        fields = {"servers": servers, "workers": workers, "emulate_compute": True, "consistency": "asp"}
        return trial("coproc", metrics={"steps_per_s": rate / workers, "update_s": update_s * workers}, **fields)

    trials = [made(1, 1, 10.0, 0.04), made(1, 2, 20.0, 0.04), made(1, 4, 24.0, 0.04)]
    trials += [made(2, 1, 10.0, 0.04), made(2, 2, 20.0, 0.04), made(2, 4, 40.0, 0.04)]
    told = growing.independence_reading(trials)
    one, two = said(told, "With 1 server"), said(told, "With 2 servers")
    assert "the limit up to 2; 4 bring 2.4" in one
    assert "descent fills 96 % of their time" in one
    assert "the limit up to 4 of them" in two
    assert "descent fills 80 % of their time" in two


def test_partitions_find_the_fastest():
    speeds = {2: 100.0, 8: 200.0, 32: 50.0}
    fields = {"consistency": "asp", "master": "local[2]", "batch_size": 10}
    trials = [
        trial("coproc", metrics={"examples_per_s": speed, "compute_s": 0.5}, workers=n, **fields)
        for n, speed in speeds.items()
    ]
    told = growing.partitions_reading(trials)
    assert told[0].startswith("Fastest are 8 partitions (200 examples/s); 32 of the same rows have 0.25")
    assert growing._computing(growing.entries_of(trials)[0]) == pytest.approx(100.0 / 10 * 0.5 / 2)


def test_tau_tells_what_it_saves_and_costs():
    def made(tau, speed, loss):
        metrics = {"examples_per_s": speed, "final_loss": loss, "worker_bytes_per_step": 8000 / tau}
        return trial("localsgd", metrics=metrics, workers=2, tau=tau)

    told = learning.tau_reading([made(1, 100.0, 0.2), made(50, 300.0, 0.3)])
    found = said(told, "averaging every 50 steps")
    assert "3\N{MULTIPLICATION SIGN} the speed and 50\N{MULTIPLICATION SIGN} fewer bytes" in found
    assert "the loss at the end is 0.3 instead of 0.2" in found
    assert "are 1 times 8 K / tau" in said(told, "SparkNet's formula")


def test_precision_is_against_float32_of_the_same_contestant():
    def made(contestant, compression, size, speed, loss, **on_link):
        metrics = {"worker_bytes_per_step": size, "steps_per_s": speed, "final_loss": loss, **on_link}
        return trial(contestant, metrics=metrics, compression=compression)

    trials = [
        made("allreduce", None, 1.0, 1.0, 9.0),
        made("coproc", None, 100.0, 10.0, 0.1),
        made("coproc", "int8", 25.0, 12.0, 0.11),
    ]
    told = said(learning.precision_reading(trials), "coproc with int8")
    assert "25 % of the bytes, 1.2\N{MULTIPLICATION SIGN} the speed and a loss of 0.11 instead of 0.1" in told
    # Between hosts, where a worker beside a server sends nothing of what it gives.
    between = [
        made("coproc", None, 100.0, 1.0, 0.1, link_bytes_per_step=60.0),
        made("coproc", "bf16", 75.0, 2.0, 0.1, link_bytes_per_step=30.0),
    ]
    assert "50 % of the bytes on the busiest link" in said(learning.precision_reading(between), "coproc with bf16")


def test_convergence_begins_with_who_is_first_at_the_target():
    rows = [made_rows.row(name, epochs=4, steps=20, target_accuracy=0.975) for name in ("coproc", "broadcast")]
    told = learning.convergence_reading(trials_of(rows, metrics_of))
    assert told[0].startswith("First at 97.5")
    assert "is coproc after" in told[0]
    assert sum("ran once" in each for each in told) == 1


def test_scheduling_tells_how_long_a_group_has_to_be():
    job, grouped = {"scheduling_s": 0.060, "compute_s": 0.010}, {"scheduling_s": 0.001, "compute_s": 0.010}
    trials = [
        trial("coproc", metrics=job, workers=8, group_size=1),
        trial("coproc", metrics=grouped, workers=8, group_size=60),
    ]
    told = costing.scheduling_reading(trials)
    assert "60 ms with 8 tasks: 600 % of computing" in said(told, "A job a step costs")
    assert "With groups of 60: 10 % to 10 %" in said(told, "With groups of")
    assert "groups of about 500 steps" in said(told, "A step computes for 10 ms")


def test_synchronising_counts_the_update_where_it_is_waited_for():
    parts = {"compute_s": 1.0, "pull_s": 0.1, "push_s": 0.2, "update_s": 0.5, "scheduling_s": 0.05}
    trials = [trial("coproc", metrics=parts), trial("broadcast", metrics=parts)]
    told = said(costing.sync_reading(trials), "mnist:")
    assert "35 % of computing with coproc, 85 % with broadcast" in told


def test_memory_compares_the_rule_with_what_was_measured():
    point = {"workload": "mnist", "workers": 2, "batch_size": 128}
    units = 1024 + 1024 + 10
    rule = (1_863_690 + 128 * units) * 3 * 4 * 1.5 * 2
    trials = [trial("coproc", metrics={"memory_worker_bytes": rule, "memory_server_bytes": rule}, **point)]
    (entry,) = costing.entries_of(trials)
    assert costing.rule_bytes(entry) == rule
    assert "too little in 1 of 1 cases: measured is 2 to 2 times the rule" in costing.memory_reading(trials)[0]
    bigger = {"memory_worker_bytes": 2 * rule + 10.0 * (workload("higgs").parameters() - 1_863_690)}
    trials.append(trial("coproc", metrics=bigger, **{**point, "workload": "higgs"}))
    assert "each costs 10 bytes (the rule: 36)" in said(costing.memory_reading(trials), "With 2 workers")
    assert costing.rule_bytes(costing.entries_of([trial("coproc", workload="unknown")])[0]) is None
