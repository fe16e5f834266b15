"""The pieces of work: rows that are there, the network of the talk for them, and what they are measured by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coproc.errors import ConfigError, DataError, Unsupported
from coproc.trials import teacher
from coproc.trials.base import Point
from coproc.trials.teacher import Teacher

if TYPE_CHECKING:
    import pyarrow as pa

# More of them take longer to measure than an epoch takes, and tell nothing new.
MOST_TEST_ROWS = 10_000
TEACHER_TEST_ROWS = 4_096

# Of the 1,797 images of scikit-learn; the same rows every time.
DIGITS_ROWS = 1_797
DIGITS_TEST_ROWS = 360
DIGITS_SEED = 0

# Counts of molecules become log(1 + count), in steps that a byte has room for: log2(256) = 8.
LOG_STEPS = 32


@dataclass(frozen=True)
class Workload:
    """Rows, and the network that is trained on them."""

    name: str
    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    loss: str
    """softmax: classes; logistic: 0 or 1, measured by auc and accuracy."""
    scale: float
    """Features are divided by it."""
    origin: str
    """Where the rows come from, for a reader of a report."""
    train: str = ""
    """A file of the data folder; "": the rows come from elsewhere."""
    test: str = ""
    teacher: Teacher | None = None
    """Who makes the rows."""
    logarithms: bool = False
    """Features are counts that become log(1 + count)."""

    def parameters(self, hidden: tuple[int, ...] | None = None) -> int:
        """Parameters of the network, with other hidden layers if they are given."""
        sizes = (self.inputs, *(self.hidden if hidden is None else hidden), self.outputs)
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(sizes))


WORKLOADS: Mapping[str, Workload] = {
    each.name: each
    for each in (
        Workload("digits", 64, (128,), 10, "softmax", 16.0, "scikit-learn's bundled handwritten digits"),
        Workload(
            "mnist", 784, (1024, 1024), 10, "softmax", 255.0, "MNIST: LeCun, Cortes, Burges (1998)",
            "mnist_train.parquet", "mnist_test.parquet",
        ),
        Workload(
            "higgs", 28, (2048, 2048, 2048), 1, "logistic", 1.0, "HIGGS: Whiteson, UCI (2014)",
            "higgs_train.parquet", "higgs_test.parquet",
        ),
        Workload(
            "molecular", 2871, (2048, 2048, 2048), 1, "logistic", LOG_STEPS / np.log(2.0).item(),
            "MoleculeNet HIV, atom pairs: Wu et al. (2018)", "mol_hiv_train.parquet", "mol_hiv_test.parquet",
            logarithms=True,
        ),
        Workload(
            "teacher-mnist", 784, (1024, 1024), 10, "softmax", 255.0,
            "a fixed random teacher network, as wide as MNIST", teacher=Teacher("teacher-mnist", 784, 10, 0.19),
        ),
        Workload(
            "teacher-higgs", 28, (2048, 2048, 2048), 1, "logistic", 1.0,
            "a fixed random teacher network, as wide as HIGGS", teacher=Teacher("teacher-higgs", 28, 2),
        ),
        Workload(
            "teacher-molecular", 2871, (2048, 2048, 2048), 15, "softmax", 8.0,
            "a fixed random teacher network, as wide as the talk's molecules, 15 classes",
            teacher=Teacher("teacher-molecular", 2871, 15, 0.04, 32),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """What a contestant trains on."""

    train: pa.Table
    """Columns `features` (lists of one length, bytes or float32) and `label`."""
    test: pa.Table | None
    """Measured after each epoch."""
    features: str
    label: str
    loss: str
    hidden: tuple[int, ...]
    inputs: int
    outputs: int
    scale: float
    origin: str


def workload(name: str) -> Workload:
    """The workload called `name`.

    Raises:
        ConfigError: there is none.
    """
    found = WORKLOADS.get(name)
    if found is None:
        raise ConfigError(f"there is no workload {name!r}; the workloads are {', '.join(WORKLOADS)}")
    return found


def rows_wanted(point: Point) -> int | None:
    """Training rows that a point asks for; None: all.

    Raises:
        ConfigError: a number of rows that cannot be.
    """
    if point.rows is not None and point.rows_per_worker is not None:
        raise ConfigError("rows and rows_per_worker are two ways to say one thing: give one of them")
    wanted = point.rows if point.rows_per_worker is None else point.workers * point.rows_per_worker
    if wanted is not None and wanted < point.workers:
        raise ConfigError(f"{point.workers} workers need a row each at least, not {wanted} in all")
    return wanted


def require_rows(point: Point, data: Path) -> None:
    """Refuse a point whose rows are not there. Reads the headers of files only.

    Raises:
        ConfigError: an unknown workload, or more rows than it has. DataError: its files are missing.
        Unsupported: the digits without scikit-learn.
    """
    wanted, work = rows_wanted(point), workload(point.workload)
    if work.teacher is not None:
        if wanted is None:
            raise ConfigError(f"{work.name} has rows without end: say how many with rows, or rows_per_worker")
        return
    if not work.train:
        _require_sklearn()
        there = DIGITS_ROWS - DIGITS_TEST_ROWS
    else:
        there, _ = (_rows_in(data / file, work) for file in (work.train, work.test))
    if wanted is not None and wanted > there:
        other = f"teacher-{work.name}"
        more = f"; {other} has rows of the same width without end" if other in WORKLOADS else ""
        raise ConfigError(f"{work.name} has {there:,} training rows, not {wanted:,}{more}")


def provide(point: Point, folder: Path | None = None) -> None:
    """Have the rows that a teacher must make ready on disk, once for all runs; nothing for other workloads.

    Raises:
        CoprocError: they cannot be written.
    """
    work = workload(point.workload)
    if work.teacher is not None:
        folder = folder or teacher.folder()
        work.teacher.file(folder, rows_wanted(point) or 0)
        work.teacher.test_file(folder)


def prepare(point: Point, data: Path, folder: Path | None = None) -> Prepared:
    """The rows of a point, in memory.

    Args:
        data: the folder with the files of real data.
        folder: of the teachers' files; None: the cache of this user.

    Raises:
        As `require_rows` and `provide`.
    """
    require_rows(point, data)
    work, wanted = workload(point.workload), rows_wanted(point)
    if work.teacher is not None:
        provide(point, folder)
        folder = folder or teacher.folder()
        train = _read(work.teacher.file(folder, wanted or 0), wanted)
        test = _read(work.teacher.test_file(folder), TEACHER_TEST_ROWS)
    elif work.train:
        train, test = _read(data / work.train, wanted), _read(data / work.test, MOST_TEST_ROWS)
    else:
        train, test = digits()
        train = train if wanted is None else train.slice(0, wanted)
    if work.logarithms:
        train, test = _logarithms(train), _logarithms(test)
    return Prepared(
        train=train,
        test=test,
        features="features",
        label="label",
        loss=work.loss,
        hidden=work.hidden if point.hidden is None else point.hidden,
        inputs=work.inputs,
        outputs=work.outputs,
        scale=work.scale,
        origin=f"{work.origin}; {len(train):,} training rows, {len(test):,} test rows",
    )


def digits() -> tuple[pa.Table, pa.Table]:
    """(training rows, test rows) of scikit-learn's bundled images; grey levels are 0..16.

    Raises:
        Unsupported: scikit-learn is not installed.
    """
    _require_sklearn()
    import pyarrow as pa
    from sklearn.datasets import load_digits

    images = load_digits()
    order = np.random.default_rng(DIGITS_SEED).permutation(len(images.target))

    def table(rows: np.ndarray) -> pa.Table:
        pixels = pa.array(images.data[rows].astype(np.uint8).reshape(-1))
        return pa.table(
            {
                "features": pa.FixedSizeListArray.from_arrays(pixels, images.data.shape[1]),
                "label": pa.array(images.target[rows].astype(np.uint8)),
            }
        )

    return table(order[DIGITS_TEST_ROWS:]), table(order[:DIGITS_TEST_ROWS])


def _require_sklearn() -> None:
    from importlib.util import find_spec

    if find_spec("sklearn") is None:
        raise Unsupported(
            "the handwritten digits are those of scikit-learn, and it is not installed: pip install 'coproc[demo]', "
            "or use other data"
        )


def _rows_in(path: Path, work: Workload) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        count: int = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{work.name} needs {path}, which is not a Parquet file that can be read ({str(error).splitlines()[0]}): "
            "name the folder that has it with --data, or use digits or a teacher"
        ) from None
    return count


def _read(path: Path, rows: int | None) -> pa.Table:
    """The first rows of a file; the row groups behind them are not read."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        groups, there = 0, 0
        while groups < file.num_row_groups and (rows is None or there < rows):
            there += file.metadata.row_group(groups).num_rows
            groups += 1
        table = file.read_row_groups(range(groups), columns=["features", "label"])
    return table if rows is None else table.slice(0, rows)


def _logarithms(table: pa.Table) -> pa.Table:
    """Counts c of bytes as log2(1 + c) in steps of 1 / LOG_STEPS."""
    import pyarrow as pa

    steps = np.minimum(np.round(np.log2(1.0 + np.arange(256)) * LOG_STEPS), 255).astype(np.uint8)
    column = table.column("features").combine_chunks()
    values = pa.array(steps[column.flatten().to_numpy()])
    lists = pa.FixedSizeListArray.from_arrays(values, column.type.list_size)
    return table.set_column(table.column_names.index("features"), "features", lists)
