"""Compiling and running sweeps: what `apply` refuses, and where machine code is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from coproc import jit, optim
from coproc.optim import base, compiled
from coproc.optim.base import Row

SIZE = 100
ONE = np.float32(1)


def arguments(**changes: Any) -> dict[str, Any]:
    """What `apply` takes for one round of two members, with changes."""
    optimizer = optim.Momentum(learning_rate=0.1)
    row = optim.aligned_row
    good: dict[str, Any] = {
        "sweep": optim.compile_sweep(optimizer),
        "gradients": ((row(SIZE), row(SIZE)),),
        "weights": ((ONE, ONE),),
        "constants": (optimizer.constants(1, 0.1),),
        "front": (row(SIZE), row(SIZE)),
        "back": (row(SIZE), row(SIZE)),
        "scratch": np.empty(64, np.float32),
        "streamed": False,
    }
    return {**good, **changes}


def shifted(size: int) -> Row:
    """Four bytes after a multiple of 64."""
    return optim.aligned_row(size + 1)[1:]


def read_only(size: int) -> Row:
    row = optim.aligned_row(size)
    row.flags.writeable = False
    return row


row = optim.aligned_row


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"streamed": True, "back": (row(SIZE), shifted(SIZE))},
            "multiple of 64 bytes, and one starts 4 bytes",
        ),
        (
            {"gradients": ((row(SIZE), row(SIZE - 1)),)},
            r"shape \(100,\).* and one is float32 of shape \(99,\)",
        ),
        ({"back": (row(SIZE), row(SIZE - 1))}, r"shape \(99,\)"),
        ({"gradients": ((row(SIZE), np.zeros(SIZE)),)}, "one is float64"),
        ({"gradients": ((row(SIZE), row(2 * SIZE)[::2]),)}, "strides"),
        ({"gradients": ((row(SIZE), row(SIZE).reshape(10, 10)),)}, "shape"),
        ({"back": (row(SIZE), read_only(SIZE))}, "must be writable"),
        ({"back": (row(SIZE),)}, "front has 2 rows and back 1"),
        ({"front": (), "back": ()}, "needs a front"),
        ({"gradients": ()}, "at least one gradient"),
        ({"gradients": ((),)}, "at least one gradient"),
        ({"weights": ((ONE,),)}, r"gradients of \[2\] rows .* \[1\] weights"),
        ({"weights": (((ONE, ONE), ONE, ONE, (ONE, ONE)),)}, r"gradients of \[2\] rows .* \[4\] weights"),
        ({"weights": (((ONE,), ONE, ONE, (ONE, ONE)),)}, "each member of an update has a delay, or none has"),
        ({"weights": ((ONE, ONE), (ONE,))}, "weights"),
        ({"constants": ()}, "0 sets"),
        (
            {
                "gradients": ((row(SIZE),) * 5,) * 2,
                "weights": ((ONE,) * 5,) * 2,
                "constants": ((ONE,) * 4,) * 2,
            },
            "8 gradients together, not 10",
        ),
        (
            {
                "gradients": ((row(SIZE),) * 9,),
                "weights": ((ONE,) * 9,),
                "scratch": np.empty(31, np.float32),
            },
            "a round of 9 needs a contiguous float32 scratch of at least 32",
        ),
    ],
)
def test_what_would_be_a_crash_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        optim.apply(**arguments(**changes))


def test_a_read_only_front_and_read_only_gradients_are_fine() -> None:
    gradient = read_only(SIZE)
    call = arguments(gradients=((gradient, gradient),), front=(read_only(SIZE), read_only(SIZE)))
    optim.apply(**call)
    assert not call["back"][0].any()


def test_a_plain_sweep_needs_no_alignment() -> None:
    call = arguments(front=(shifted(SIZE), shifted(SIZE)), back=(shifted(SIZE), shifted(SIZE)))
    call["front"][0][:] = 3
    optim.apply(**call)
    assert (call["back"][0] == 3).all()


def test_a_number_that_is_not_float32_is_refused_when_compiled() -> None:
    def sweep_doubling(gradients: Any, weights: Any, constants: Any, front: Any, back: Any, how: Any) -> None:
        for line in range(base.lines(front[0], how)):
            base.put(back[0], line, base.get(front[0], line, how) * 2.0, how)

    sweep = compiled.compile_function(sweep_doubling)
    with pytest.raises(numba.TypingError, match="line_float32"):
        optim.apply(**arguments(sweep=sweep))


def sweep_clipping(gradients: Any, weights: Any, constants: Any, front: Any, back: Any, how: Any) -> None:
    for line in range(base.lines(front[0], how)):
        base.put(back[0], line, base.clip(base.get(front[0], line, how), weights[0][0]), how)


@pytest.mark.parametrize("limit", [0, 0.5, 1, np.inf])
def test_clip_keeps_what_is_within_and_what_is_not_a_number(limit: float) -> None:
    call = arguments(sweep=compiled.compile_function(sweep_clipping), weights=((np.float32(limit), ONE),))
    values = np.linspace(-2, 2, SIZE, dtype=np.float32)
    values[[3, 70, 80, 99]] = np.nan, np.inf, -np.inf, np.nan
    call["front"][0][:] = values
    optim.apply(**call)
    np.testing.assert_array_equal(call["back"][0], np.clip(values, -limit, limit))
    plain = row(SIZE)
    sweep_clipping((), call["weights"], (), (values,), (plain,), None)
    assert plain.tobytes() == call["back"][0].tobytes()


def test_warm_compiles_all_that_follows() -> None:
    optimizer = optim.SGD(learning_rate=0.1)
    sweep: Any = optim.compile_sweep(optimizer)
    optim.warm(optimizer, optim.synchronous_counts(30), False)
    optim.warm(optimizer, optim.ASYNCHRONOUS_COUNTS, False)
    ready = len(sweep.signatures)
    for members in range(1, 31):
        gradients = (tuple([row(SIZE) for _ in range(members)]),)
        optim.apply(
            sweep,
            gradients,
            ((ONE,) * members,),
            (optimizer.constants(1, 0.1),),
            (row(SIZE),),
            (row(SIZE),),
            np.empty(64, np.float32),
            False,
        )
    for updates in range(1, 9):
        optim.apply(
            sweep,
            ((row(SIZE),),) * updates,
            ((ONE,),) * updates,
            (optimizer.constants(1, 0.1),) * updates,
            (row(SIZE),),
            (row(SIZE),),
            np.empty(64, np.float32),
            False,
        )
    assert len(sweep.signatures) == ready


# ---- the cache

COMPILE = (
    "from coproc import jit, optim; from coproc.optim import compiled\n"
    "optimizer = optim.SGD(learning_rate=1.0)\n"
    "optim.warm(optimizer, [(1, 2)], True)\n"
    "stats = optim.compile_sweep(optimizer).stats\n"
    "print(jit.cache_directory(compiled.sources()), sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))"
)


def compile_in_a_process(**environment: str) -> tuple[str, int, int]:
    """(directory, found in it, not found in it) of a fresh interpreter."""
    kept = {key: value for key, value in os.environ.items() if key not in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**kept, **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    directory, hits, misses = run.stdout.split()
    return directory, int(hits), int(misses)


def test_the_second_process_finds_what_the_first_compiled(tmp_path: Path) -> None:
    first = compile_in_a_process(XDG_CACHE_HOME=str(tmp_path))
    assert first[1:] == (0, 2)  # whole lines, and the short one
    directory = Path(first[0])
    assert directory.parent == tmp_path / "coproc"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert compile_in_a_process(XDG_CACHE_HOME=str(tmp_path)) == (first[0], 2, 0)


def test_without_any_place_for_it_sweeps_are_compiled_each_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    places = {name: f"{blocked}/{name}" for name in ("XDG_CACHE_HOME", "HOME")}
    code = "import tempfile; tempfile.tempdir = " + repr(f"{blocked}/tmp") + "\n" + COMPILE
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **places},
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.stdout.split() == ["None", "0", "2"]


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The first and the second place for the cache."""
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("XDG_CACHE_HOME", str(first))
    monkeypatch.setenv("HOME", str(second))
    return first / "coproc", second / ".cache" / "coproc"


def test_the_first_place_is_taken(roots: tuple[Path, Path]) -> None:
    found = jit.cache_directory(compiled.sources())
    assert found is not None
    assert found.parent == roots[0]


def others_may_write(root: Path) -> None:
    root.mkdir(parents=True)
    root.chmod(0o777)


def link_elsewhere(root: Path) -> None:
    root.parent.mkdir(parents=True)
    (root.parent / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(root.parent / "elsewhere")


def a_file(root: Path) -> None:
    root.parent.mkdir(parents=True)
    root.touch()


@pytest.mark.parametrize("spoil", [others_may_write, link_elsewhere, a_file])
def test_a_place_that_is_not_ours_alone_is_not_used(roots: tuple[Path, Path], spoil: Callable[[Path], None]) -> None:
    spoil(roots[0])
    found = jit.cache_directory(compiled.sources())
    assert found is not None
    assert found.parent == roots[1]


def test_a_place_of_another_user_is_not_used(
    roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for root in roots:
        root.mkdir(mode=0o700, parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert jit.cache_directory(compiled.sources()) is None


def test_changed_sources_have_another_directory(
    roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = jit.cache_directory(compiled.sources())
    changed = tmp_path / "lion.py"
    changed.write_text("# one optimizer more\n")
    monkeypatch.setattr(base, "sources", lambda: [*Path(base.__file__).parent.glob("*.py"), changed])
    after = jit.cache_directory(compiled.sources())
    assert before is not None
    assert after is not None
    assert before != after


def test_other_functions_of_the_process_keep_their_cache() -> None:
    config: Any = numba.config
    before = config.CACHE_DIR
    optim.compile_sweep(optim.Adam())
    assert before == config.CACHE_DIR
