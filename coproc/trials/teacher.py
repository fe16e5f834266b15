"""Rows without end for the widths of the real data: random features, labelled by a fixed random network.

    h = tanh(z @ first)    scores = h @ second - offset    label = the class of the highest score, or scores > 0

with z the features, centred and scaled to variance 1; the offset makes the classes about equally frequent. Block b of a
file is a function of the width and of b alone, so that the first n rows are the same in every file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coproc.errors import CoprocError

if TYPE_CHECKING:
    import pyarrow as pa

# Rows that are made, written and read together; of the widest 24 MB.
BLOCK_ROWS = 8192
UNITS = 64
SEED = 20150219
# So far from the training blocks that no file reaches it.
_TEST_BLOCK = 1 << 40


@dataclass(frozen=True)
class Teacher:
    """A width, what its features look like, and the network that labels them."""

    name: str
    inputs: int
    classes: int
    """2: one score and labels 0 and 1 as numbers, for a logistic loss."""
    density: float | None = None
    """Features are bytes, and this share of them is not 0; None: normal numbers."""
    largest: int = 255
    """Of bytes: they are drawn from 1 to this."""

    def _features(self, number: int) -> NDArray[Any]:
        rng = np.random.default_rng([SEED, self.inputs, number])
        if self.density is None:
            return rng.standard_normal((BLOCK_ROWS, self.inputs), np.float32)
        there = rng.random((BLOCK_ROWS, self.inputs), np.float32) < self.density
        features = rng.integers(1, self.largest + 1, (BLOCK_ROWS, self.inputs), np.uint8)
        features *= there
        return features

    def _scores(self, features: NDArray[Any]) -> NDArray[np.float32]:
        rng = np.random.default_rng([SEED, self.inputs])
        first = rng.standard_normal((self.inputs, UNITS), np.float32) / np.float32(np.sqrt(self.inputs))
        second = rng.standard_normal((UNITS, 1 if self.classes == 2 else self.classes), np.float32)
        given = features.astype(np.float32)
        if self.density is not None:
            mean = self.density * (self.largest + 1) / 2
            square = self.density * (self.largest + 1) * (2 * self.largest + 1) / 6
            given -= np.float32(mean)
            given /= np.float32(np.sqrt(square - mean**2))
        scores: NDArray[np.float32] = np.tanh(given @ first) @ second
        return scores

    def _offset(self) -> NDArray[np.float32]:
        """(scores,) what the scores are on average, over the rows of the first block."""
        scores = self._scores(self._features(0))
        return np.median(scores, axis=0).astype(np.float32)

    def file(self, folder: Path, rows: int) -> Path:
        """A file with the first `rows` rows and perhaps more; written if there is none yet.

        Atomic: a reader finds a whole file or none. Streams: two blocks are in memory at the most.

        Raises:
            CoprocError: it cannot be written; nothing is left of it.
        """
        blocks = -(-rows // BLOCK_ROWS)
        return _existing(folder, self.name, blocks) or self._write(
            folder / f"{self.name}-{blocks * BLOCK_ROWS:09d}.parquet", range(blocks)
        )

    def test_file(self, folder: Path) -> Path:
        """As `file`, with a block of rows that are in no training file."""
        path = folder / f"{self.name}-test.parquet"
        return path if path.exists() else self._write(path, range(_TEST_BLOCK, _TEST_BLOCK + 1))

    def _write(self, path: Path, blocks: range) -> Path:
        import pyarrow.parquet as pq

        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tables = self._tables(blocks)
            first = next(tables)
            with pq.ParquetWriter(temporary, first.schema, compression="zstd", use_dictionary=False) as writer:
                writer.write_table(first, BLOCK_ROWS)
                for table in tables:
                    writer.write_table(table, BLOCK_ROWS)
            temporary.replace(path)
        except OSError as error:
            raise CoprocError(
                f"the rows of {self.name} could not be written to {path}: {error.strerror or error}; a folder with "
                "more room is named by XDG_CACHE_HOME"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def _tables(self, blocks: range) -> Iterator[pa.Table]:
        import pyarrow as pa

        offset = self._offset()
        for number in blocks:
            features = self._features(number)
            scores = self._scores(features) - offset
            labels = scores[:, 0] > 0 if self.classes == 2 else scores.argmax(1)
            yield pa.table(
                {
                    "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), self.inputs),
                    "label": pa.array(labels.astype(np.float32 if self.classes == 2 else np.uint8)),
                }
            )


def folder() -> Path:
    """Where the files are kept: below $XDG_CACHE_HOME, or ~/.cache."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(named) if os.path.isabs(named) else Path(os.path.expanduser("~")) / ".cache"
    return root / "coproc" / "teachers"


def _existing(folder: Path, name: str, blocks: int) -> Path | None:
    """The smallest file that has as many blocks."""
    for path in sorted(folder.glob(f"{name}-[0-9]*.parquet")):
        if int(path.stem.rsplit("-", 1)[1]) >= blocks * BLOCK_ROWS:
            return path
    return None
