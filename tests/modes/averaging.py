"""Local descent and averaging by hand, in one process."""

from __future__ import annotations

import numpy as np

from coproc import grads
from coproc.data.batches import Batches
from coproc.local import Descent
from coproc.testing.works import SEED


def by_hand(work, tau, combine):
    """(the parameters, how many gave something in each round) of workers that are averaged every tau steps."""
    backend = grads.create(work.spec)
    average = work.initial()
    sources = [Batches(work.partition(worker), work.batch_size, SEED, worker) for worker in range(work.workers)]
    own = [Descent(work.optimizer, backend.layout, average) for _ in sources]
    rounds = []
    out = np.empty_like(average)
    for epoch, rate in enumerate(work.rates):
        length = max(work.pushes_per_epoch)
        for begin in range(0, length, tau):
            results = []
            for source, descent in zip(sources, own, strict=True):
                descent.params[:] = average
                descent.learning_rate = rate
                rows, losses = 0, 0.0
                for k in range(begin, min(begin + tau, length, source.steps_per_epoch)):
                    features, labels, key = source.batch(epoch, k)
                    batch = grads.Batch(features, labels, len(labels), key)
                    loss = backend.value_and_grad(descent.params, batch, out=out)
                    descent.step([out], [len(labels)])
                    rows, losses = rows + len(labels), losses + loss * len(labels)
                if rows:
                    results.append((losses / rows, rows, descent.params.copy()))
            if combine == "best":
                average = min(results, key=lambda each: each[0])[2]
            else:
                total = sum(rows for _, rows, _ in results)
                average = sum(np.float64(rows / total) * params for _, rows, params in results).astype(np.float32)
            rounds.append(len(results))
    for descent in own:
        descent.close()
    return average, rounds
