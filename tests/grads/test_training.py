"""A real network on real images, descended by Adam in plain numpy, learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from coproc.data.base import Rows
from coproc.data.batches import Batches
from coproc.data.partition import Partition, encode
from coproc.data.rows import plan_columns, read
from coproc.grads import Batch, create

SHARED = Path(__file__).parents[3] / "shared" / "data"


def _images(part: str, count: int) -> Rows:
    """Handwritten digits; where they are not at hand, ten noisy patterns that are as easy."""
    path = SHARED / f"mnist_{part}.parquet"
    if path.exists():
        table = pq.read_table(path).slice(0, count)
        return read(table.to_batches(), plan_columns(table.schema, "features", "label"), path.name)
    random = np.random.default_rng(7)
    patterns = random.integers(0, 256, (10, 784))
    random = np.random.default_rng([7, len(part)])
    labels = random.integers(0, 10, count, dtype=np.int32)
    noisy = patterns[labels] + random.normal(0, 120, (count, 784))
    return Rows(np.clip(noisy, 0, 255).astype(np.uint8), labels)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_few_hundred_steps_of_adam_recognise_digits(dropout: float) -> None:
    train, test = _images("train", 30_000), _images("test", 10_000)
    assert train.features.dtype == np.uint8
    buffers, metadata = encode(train.features, train.labels)
    partition = Partition.open(b"".join(buffers), metadata)
    batches = Batches(partition, batch_size=128, seed=3, partition_index=0, scale=255)
    backend = create({"backend": "mlp", "inputs": 784, "hidden": [128], "outputs": 10, "dropout": dropout})
    params = backend.init(0)
    out, mean, square = np.empty_like(params), np.zeros_like(params), np.zeros_like(params)
    losses = []
    for step in range(600):
        rows = batches.batch(*divmod(step, batches.steps_per_epoch))
        batch = Batch(rows.features, rows.labels, key=rows.key)
        losses.append(backend.value_and_grad(params, batch, out=out))
        mean += np.float32(0.1) * (out - mean)
        square += np.float32(0.001) * (out * out - square)
        rate = np.float32(2e-3 * (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1)))
        params -= rate * mean / (np.sqrt(square) + np.float32(1e-8))
    assert np.mean(losses[:5]) > 1.5
    assert np.mean(losses[-50:]) < 0.3
    measured = backend.evaluate(params, test.features, test.labels, scale=255)
    assert measured["accuracy"] > 0.95
    assert params.dtype == np.float32
