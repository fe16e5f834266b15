"""A process that is an attempt of a worker, and is killed at any time: it pushes, and notes what it does.

Arguments: address, name, near or far, worker, number of the process, file of notes, file of limits. The limits are a
word for each worker, the step where it waits, and one that is not 0 when it ends there instead.
"""

from __future__ import annotations

import math
import os
import random
import select
import sys
import time

import numpy as np
from history import ACKNOWLEDGED, BEGAN, JOINED, NOTE, value_of

import coproc
from coproc.near import NearWorker

TIMEOUT_S = 60.0


def main(address, name, where, worker, number, notes, limits):
    worker, number = int(worker), int(number)
    dice = random.Random(number)
    limits = np.memmap(limits, np.int64, "r")
    fd = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(kind, step, value=0):
        os.write(fd, NOTE.pack(kind, step, value, time.monotonic_ns()))

    client = reached(lambda: coproc.connect(address, near=None if where == "near" else False))
    model = reached(lambda: client.model(name))
    assert (model._near is not None) == (where == "near")
    joined = 0
    while not limits[-1] or joined == 0:
        with reached(lambda: model.join(worker)) as attempt:
            note(JOINED, attempt.next_step)
            try:
                work(attempt, worker, 2 * number + joined % 2, limits, dice, note)
                break
            except coproc.LeaseExpired:  # the model was restored: again, as another attempt
                joined += 1
    client.close()


def work(attempt, worker, number, limits, dice, note):
    """Until the worker is at its limit, and that is its end."""
    newest = -1

    def look(snapshot):
        nonlocal newest
        assert (snapshot.flat == snapshot.flat[0]).all(), "parts of different versions"
        assert snapshot.version >= newest, f"version {snapshot.version} after {newest}"
        newest = snapshot.version

    while True:
        if (step := attempt.next_step) >= limits[worker]:
            if limits[-1]:
                attempt.leave()  # or in `Ssp` the others would wait for more
                return
            select.select([], [], [], 0.002)
            continue
        how = dice.random()
        if how < 0.5:
            look(attempt.pull(timeout_s=TIMEOUT_S))
        value = value_of(number, worker, step)
        attempt.gradient(timeout_s=TIMEOUT_S)[:] = value
        note(BEGAN, step, value)
        if how > 0.7:
            receipt, snapshot = attempt.push_pull(step=step, timeout_s=TIMEOUT_S)
        else:
            receipt = attempt.push(step=step, timeout_s=TIMEOUT_S)
        note(ACKNOWLEDGED, step, value)
        if how > 0.7:
            look(snapshot)
        if how > 0.8 and not receipt.duplicate:
            again(attempt, step, value + 1)


def again(attempt, step, value):
    """Push a step that is there, with a value that would be seen: as if the answer had been lost.

    A near attempt looks first whether the step is there. Here it does not, as two that look at the same moment; its own
    commit of the step is in the same seat, before this one.
    """
    attempt.gradient(timeout_s=TIMEOUT_S)[:] = value
    near = attempt._attempt
    if isinstance(near, NearWorker):
        assert near._commit(near._free_head(TIMEOUT_S), step, 1, math.nan).duplicate
    else:
        assert attempt.push(step=step, timeout_s=TIMEOUT_S).duplicate


def reached(call):
    """Servers come and go."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return call()
        except (coproc.Unreachable, coproc.ModelNotFound):  # one server restores it, and another has never had it
            if time.monotonic() > deadline:
                raise
            select.select([], [], [], 0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
