"""One update through a `Kernel`, as the compiled loop calls it, gives the bits of the optimizer's own sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coproc import jit, optim
from coproc.optim import Optimizer, aligned_row, registered
from coproc.server import kernels, passes
from coproc.server.kernels import kernel_of

OPTIMIZERS = [*(kind(learning_rate=0.1) for kind in registered().values()), optim.RMSprop(momentum=0.5)]


def each_in_turn(kernel: Any, gradients: Any, constants: Any, front: Any, back: Any, size: int) -> None:
    for i in range(len(gradients)):
        kernels.descend(kernel, gradients[i], constants[i], front, back, size)
        front = back


# Kept on disk, as the server's loops are.
descend_each = jit.compiled(each_in_turn, lambda: [Path(__file__), *passes.sources()])


def addresses(rows: Any) -> Any:
    return np.array([row.ctypes.data for row in rows], np.int64)


@pytest.mark.parametrize("size", [1, 16, 100])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: each.name)
def test_updates_by_address_are_those_of_the_sweep(optimizer: Optimizer, size: int) -> None:
    random = np.random.default_rng(size)
    gradients = [random.standard_normal(size).astype(np.float32) for _ in range(3)]
    front = [aligned_row(size) for _ in range(1 + len(optimizer.state_rows))]
    front[0][:] = random.standard_normal(size)
    before = [row.copy() for row in front]
    back, expected = ([aligned_row(size) for _ in front] for _ in range(2))
    constants = tuple(optimizer.constants(step, 0.1) for step in (1, 2, 3))

    optim.apply(
        optim.compile_sweep(optimizer),
        tuple((g,) for g in gradients),
        ((np.float32(1),),) * 3,
        constants,
        tuple(front),
        tuple(expected),
        aligned_row(64),
        False,
    )
    descend_each(
        kernel_of(optimizer), addresses(gradients), np.array(constants, np.float32), addresses(front),
        addresses(back), size,
    )  # fmt: skip
    for found, wanted, now, then in zip(back, expected, front, before, strict=True):
        assert found.tobytes() == wanted.tobytes()
        assert now.tobytes() == then.tobytes()
