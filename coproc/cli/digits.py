"""The demonstration's data: scikit-learn's bundled handwritten digits, as Parquet files."""

from __future__ import annotations

from pathlib import Path

from coproc.errors import Unsupported

# Of 1,797 images; the same rows every time.
VALIDATION_ROWS = 360
SPLIT_SEED = 0
# The images' grey levels are 0..16.
SCALE = 16.0


def write_digits(directory: Path) -> tuple[Path, Path]:
    """Write the training and the validation file; returns their paths.

    Raises:
        Unsupported: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise Unsupported(
            "without DATA the handwritten digits of scikit-learn are trained, and it is not installed: "
            "pip install 'coproc[demo]', or name a Parquet file"
        ) from None
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    digits = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))
    paths = (directory / "digits_train.parquet", directory / "digits_validation.parquet")
    for path, rows in zip(paths, (order[VALIDATION_ROWS:], order[:VALIDATION_ROWS]), strict=True):
        pixels = pa.array(digits.data[rows].astype(np.uint8).reshape(-1))
        pq.write_table(
            pa.table(
                {
                    "features": pa.FixedSizeListArray.from_arrays(pixels, digits.data.shape[1]),
                    "label": pa.array(digits.target[rows].astype(np.uint8)),
                }
            ),
            path,
        )
    return paths
