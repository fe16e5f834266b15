"""Training from Spark: a DataFrame in, a trained model out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from coproc.training import Result

__all__ = ["train"]


def train(
    df: DataFrame,
    *,
    features: str | Sequence[str],
    label: str,
    validation: DataFrame | None = None,
    output: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Result:
    """Train a network on a DataFrame with its own Spark session; blocks until it is trained.

        result = coproc.spark.train(df, features="features", label="label", hidden=(128,), epochs=10)
        result.params["layers.0.weight"], result.history[-1]["accuracy"], result.predict(array)

    The rows go into the memory tier in one job; the jobs after it carry partition numbers only. The
    executors need coproc installed, and reach the cluster at `address`; without one it is embedded in this
    process, which is for Spark on this host.

    Args:
        features: one column of arrays, vectors or bytes, or several columns of numbers.
        settings: any field of `coproc.training.TrainConfig`: hidden, epochs, workers, batch_size, optimizer,
            learning_rate, consistency, …

    Returns:
        A result with `.params` (tensors by name), `.history` (a dict an epoch) and `.predict`.

    Raises:
        ConfigError, DataError, Diverged, and any other `CoprocError`; each in a sentence.
    """
    from coproc.errors import ConfigError
    from coproc.training import TrainConfig
    from coproc.training import train as train_on

    names = features if isinstance(features, str) else tuple(features)
    try:
        config = TrainConfig(features=names, label=label, pool="spark", **settings)
    except TypeError as error:
        raise ConfigError(f"coproc.spark.train: {error}; the settings are those of TrainConfig") from None
    return train_on(config, df, validation=validation, output=output)
