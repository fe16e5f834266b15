"""The demonstration's data: scikit-learn's bundled handwritten digits, as Parquet files."""

from __future__ import annotations

from pathlib import Path

from coproc.trials.workloads import WORKLOADS, digits

SCALE = WORKLOADS["digits"].scale


def write_digits(directory: Path) -> tuple[Path, Path]:
    """Write the training and the validation file; returns their paths.

    Raises:
        Unsupported: scikit-learn is not installed.
    """
    import pyarrow.parquet as pq

    paths = (directory / "digits_train.parquet", directory / "digits_validation.parquet")
    for path, table in zip(paths, digits(), strict=True):
        pq.write_table(table, path)
    return paths
