"""Taking turns, ratios, tables, and the kernel measurement on a tiny size."""

from __future__ import annotations

import json

import numpy as np
import pytest

from coproc import bench, optim
from coproc.bench import base, kernel, streams
from coproc.bench.__main__ import main
from coproc.bench.base import Contestant, Options, Ratio, Result
from coproc.errors import ConfigError


def test_contestants_take_turns_and_warm_up_is_thrown_away() -> None:
    calls: list[str] = []
    ticks = iter(range(1000))
    contestants = [
        Contestant("a", lambda: calls.append("a"), prepare=lambda: calls.append("before a")),
        Contestant("b", lambda: calls.append("b")),
    ]
    taken = base.take_turns(contestants, 2, warm_up=1, clock=lambda: float(next(ticks)))
    assert taken == {"a": (1.0, 1.0), "b": (1.0, 1.0)}
    turns = "".join(calls).replace("before aa", "a")
    assert "before" not in turns
    assert {turns[0:2], turns[2:4], turns[4:6]} <= {"ab", "ba"}


def test_nobody_always_follows_the_same_neighbour() -> None:
    calls: list[str] = []
    base.take_turns([Contestant(name, lambda name=name: calls.append(name)) for name in "abc"], 30)
    rounds = {"".join(calls[at : at + 3]) for at in range(0, len(calls), 3)}
    assert rounds == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    speed = base.speed_ratio([1.0, 1.0, 10.0], [0.9, 0.7, 0.8], "loop", at_least=0.8)
    assert speed.median == pytest.approx(0.7)
    assert speed.kept is False
    assert base.time_ratio([2.0], [1.0], "loop", at_most=2.0).kept is True
    assert Ratio("loop", "time", (1.0,)).kept is None


def test_the_table_says_what_was_promised() -> None:
    ratios = (
        Ratio("loop", "speed", (0.9,), at_least=0.8),
        Ratio("torch", "time", (2.0,), at_most=1.5),
    )
    results = [
        Result("kernel", "sgd, 1 M", "sweep", "s", (0.002, 0.001, 0.003), ratios),
        Result("kernel", "sgd, 1 M", "loop", "s", (25e-6,)),
        Result("push", "4 KB", "push", "1/s", (70_000.0,)),
    ]
    assert base.as_rows(results) == [
        (
            "sgd, 1 M",
            "sweep",
            "2.00",
            "1.20",
            "2.80",
            "ms",
            "0.90",
            "of the speed of loop",
            "at least 0.8 kept",
        ),
        ("", "", "", "", "", "", "2.00", "of the time of torch", "at most 1.5 MISSED"),
        ("", "loop", "25.00", "25.00", "25.00", "us", "", "", ""),
        ("4 KB", "push", "70000.00", "70000.00", "70000.00", "1/s", "", "", ""),
    ]
    lines = base.as_text(results).splitlines()
    assert len(lines) == 5
    assert lines[1].index("ms") == lines[3].index("us")


@pytest.mark.parametrize("size", [1, 16, 17, 100])
def test_the_loops_move_every_float(size: int) -> None:
    a, b, c, g, h = streams.rows(5, size)
    for number, row in enumerate((a, b, g, h)):
        row[:] = np.arange(size) + number
    two = np.float32(2)
    for loop in (streams.out_of_place, streams.out_of_place_streamed):
        c[:] = -1
        loop((a,), (g, h), two, (c,))
        np.testing.assert_array_equal(c, a + 2 * (g + h))
    expected = a + 2 * g, b + 2 * g
    streams.in_place((a, b), (g,), two)
    np.testing.assert_array_equal((a, b), expected)


def test_kernel_runs_every_contestant() -> None:
    results = kernel.run(Options(quick=True))
    cases = {(result.case.split(",")[0], result.case.split(",")[-1].strip()) for result in results}
    assert cases == {(name, way) for name in optim.registered() for way in ("in place", "crash-safe")}
    again = kernel.run(Options(quick=True))
    sums = [result.checksum for result in results if result.contestant == kernel.SWEEP]
    assert sums == [result.checksum for result in again if result.contestant == kernel.SWEEP]
    # In place and crash-safe, each optimizer has made as many updates.
    assert sums[::2] == sums[1::2]
    assert len(set(sums)) == len(optim.registered())


def test_the_json_has_the_raw_samples(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    result = Result("kernel", "case", "sweep", "s", (1.0, 3.0), (Ratio("loop", "speed", (0.5,), at_least=0.8),))
    monkeypatch.setattr(kernel, "run", lambda options: [result])
    assert main(["kernel", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (found,) = document["results"]
    assert found["samples"] == [1.0, 3.0]
    assert found["median"] == 2.0
    assert found["ratios"][0]["kept"] is False
    assert document["environment"]["versions"]["numpy"] == np.__version__
    assert document["options"]["quick"] is False


def test_an_unknown_measurement_gets_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels"]) == 2
    assert "no measurement is called kernels; there are" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        bench.run(["kernels"], Options())


def test_every_measurement_is_found_by_its_file() -> None:
    assert bench.benches()["kernel"] is kernel
    assert "base" not in bench.benches()
