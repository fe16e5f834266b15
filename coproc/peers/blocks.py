"""All-reduce through files of the tier, which stand in for the blocks of Spark's BlockManager: two jobs a step.

The first is the worker loop: pull the slices of all owners, compute, put the gradient down in slices. In the second,
task n reads slice n of all gradients, sums them in the order of workers, descends, and puts down the next weights.

Both may be made again: a file is put down whole, and all of a worker's gradient in one transaction, so that what lies
there is of one attempt; nothing is read while somebody may write it; and what was read is removed by the driver when
the second job is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from coproc.layout import Flat
from coproc.peers.slices import Slices, Terms, coded, decode, translated, writable


def put_down(slices: Slices, worker: int, gradient: Flat) -> None:
    """Publish a worker's gradient (P,) in slices, for the version that the step begins from. All or none.

    Those of an earlier attempt make room.
    """
    codes, writers = coded(gradient, slices.terms.truncated), []
    with translated():
        slices.spent.went(codes.nbytes - codes[slices.bounds[worker]].nbytes, slices.tier.near)
        for owner, where in enumerate(slices.bounds):
            path = slices.path(slices.terms.begin, _name(worker, owner))
            writers.append(slices.tier.create(path, overwrite=True))
            writers[-1].write(codes[where])
        slices.tier.commit_all(writers)


def reduce(terms: Mapping[str, Any], owner: int, given: Sequence[tuple[int, int, float]]) -> dict[str, Any]:
    """The second job's task of one owner: sum its slice of all gradients, descend it, publish it.

    Args:
        terms: `Terms.to_settings`.
        given: (worker, examples, loss) of each gradient, in the order of workers.

    Returns:
        As `Slices.told`; and spent: `Spent` of this task.
    """
    with Slices(Terms(**terms)) as slices:
        slices_of, gradients = [], []  # the files stay mapped as long as these live
        with translated():
            for worker, _, _ in given:
                view = slices.tier.open(slices.path(slices.terms.begin, _name(worker, owner)))
                slices_of.append(slices.codes(view))
                slices.spent.came(view.size_bytes if worker != owner else 0, view.near)
        for codes in slices_of:
            if slices.terms.truncated:
                gradients.append(np.empty(codes.size, np.float32))
                decode(codes, gradients[-1])
            else:
                gradients.append(writable(codes))
        with slices.owned(owner) as descent:
            descent.step(gradients, [examples for _, examples, _ in given], [loss for _, _, loss in given])
            facts = slices.publish(owner, descent)
        return {**facts, "spent": asdict(replace(slices.spent, update_s=descent.busy_s))}


def _name(worker: int, owner: int) -> str:
    return f"gradients-{worker:05d}-{owner:05d}"
