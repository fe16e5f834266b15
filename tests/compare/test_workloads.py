"""The rows and networks of the workloads."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coproc.errors import ConfigError, CoprocError, DataError
from coproc.trials.base import Point
from coproc.trials.teacher import BLOCK_ROWS, Teacher
from coproc.trials.workloads import WORKLOADS, prepare, provide, require_rows, workload

SMALL = Teacher("teacher-small", 12, 3, 0.25)
NUMBERS = Teacher("teacher-numbers", 5, 2)


def features(table):
    return table.column("features").combine_chunks().flatten().to_numpy().reshape(len(table), -1)


@pytest.fixture
def data(tmp_path):
    """A folder as the real data have it, with few rows."""
    rng = np.random.default_rng(0)

    def write(name, rows, values, labels):
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        table = pa.table({"features": column, "label": pa.array(labels), "more": ["x"] * rows})
        pq.write_table(table, tmp_path / name, row_group_size=10)

    for part, rows in (("train", 40), ("test", 20)):
        write(f"mnist_{part}.parquet", rows, rng.integers(0, 256, (rows, 784), np.uint8), np.arange(rows) % 10)
        write(f"mol_hiv_{part}.parquet", rows, np.tile(np.arange(256, dtype=np.uint8), (rows, 1)), np.zeros(rows))
    return tmp_path


def test_the_networks_are_those_of_the_talk():
    assert WORKLOADS["mnist"].parameters() == WORKLOADS["teacher-mnist"].parameters() == 1_863_690
    assert WORKLOADS["higgs"].parameters() == WORKLOADS["teacher-higgs"].parameters() == 8_454_145
    assert WORKLOADS["teacher-molecular"].parameters() == 14_305_295
    assert WORKLOADS["digits"].parameters((16,)) == 64 * 16 + 16 + 16 * 10 + 10


def test_an_unknown_workload_is_told_the_known_ones():
    with pytest.raises(ConfigError, match="no workload 'imagenet'; the workloads are digits, mnist, higgs"):
        workload("imagenet")


def test_digits_are_there_without_files(tmp_path):
    prepared = prepare(Point("coproc", workload="digits"), tmp_path)
    assert (len(prepared.train), len(prepared.test)) == (1437, 360)
    assert features(prepared.train).shape == (1437, 64)
    assert (prepared.hidden, prepared.loss, prepared.scale, prepared.inputs) == ((128,), "softmax", 16.0, 64)


def test_rows_are_cut_to_the_first_ones(data):
    whole = prepare(Point("coproc"), data)
    cut = prepare(Point("coproc", rows=17), data)
    each = prepare(Point("coproc", rows_per_worker=5, workers=3, hidden=(7,)), data)
    assert (len(whole.train), len(cut.train), len(each.train), len(each.test)) == (40, 17, 15, 20)
    assert (features(cut.train) == features(whole.train)[:17]).all()
    assert cut.train.column_names == ["features", "label"]
    assert each.hidden == (7,)
    assert "MNIST" in cut.origin
    assert "17 training rows, 20 test rows" in cut.origin


def test_counts_of_molecules_become_logarithms(data):
    prepared = prepare(Point("coproc", workload="molecular"), data)
    found = features(prepared.train)[0] / prepared.scale
    assert found == pytest.approx(np.log(1 + np.arange(256)), abs=0.025)
    assert prepared.loss == "logistic"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rows": 41}, "mnist has 40 training rows, not 41; teacher-mnist has rows of the same width without end"),
        ({"rows_per_worker": 21}, "has 40 training rows, not 42"),
        ({"rows": 10, "rows_per_worker": 5}, "two ways to say one thing"),
        ({"rows": 1}, "2 workers need a row each"),
        ({"workload": "teacher-mnist"}, "rows without end: say how many"),
        ({"workload": "digits", "rows": 1438}, "digits has 1,437 training rows, not 1,438"),
    ],
)
def test_rows_that_cannot_be_are_refused(data, settings, words):
    with pytest.raises(ConfigError, match=words):
        require_rows(Point("coproc", **settings), data)


def test_missing_files_are_named(data):
    with pytest.raises(DataError, match=r"higgs needs .*higgs_train.parquet.*--data"):
        require_rows(Point("coproc", workload="higgs"), data)
    (data / "mnist_test.parquet").write_text("no Parquet")
    with pytest.raises(DataError, match=r"mnist_test.parquet, which is not a Parquet file"):
        require_rows(Point("coproc"), data)


@pytest.mark.parametrize("teacher", [SMALL, NUMBERS], ids=lambda teacher: teacher.name)
def test_the_first_rows_of_a_teacher_are_the_same_in_every_file(tmp_path, teacher):
    one = pq.read_table(teacher.file(tmp_path / "a", 10))
    two = pq.read_table(teacher.file(tmp_path / "b", BLOCK_ROWS + 1))
    assert (len(one), len(two)) == (BLOCK_ROWS, 2 * BLOCK_ROWS)
    assert one.equals(two.slice(0, BLOCK_ROWS))
    assert not one.equals(two.slice(BLOCK_ROWS))
    assert not one.equals(pq.read_table(teacher.test_file(tmp_path)))


def test_a_teacher_writes_once(tmp_path):
    large = SMALL.file(tmp_path, 2 * BLOCK_ROWS)
    written_ns = large.stat().st_mtime_ns
    assert SMALL.file(tmp_path, 10) == SMALL.file(tmp_path, 2 * BLOCK_ROWS) == large
    assert large.stat().st_mtime_ns == written_ns
    assert SMALL.file(tmp_path, 2 * BLOCK_ROWS + 1) != large


def test_a_teacher_uses_all_its_classes_and_can_be_learned_from(tmp_path):
    table = pq.read_table(SMALL.file(tmp_path, BLOCK_ROWS))
    labels, rows = np.asarray(table["label"]), features(table).astype(np.float32) / 255
    shares = np.bincount(labels, minlength=3) / len(labels)
    assert (shares > 0.15).all()
    assert 0.2 < (rows > 0).mean() < 0.3
    # Even a linear model gets more of them right than by chance.
    inputs = np.c_[rows, np.ones(len(rows))]
    weights = np.linalg.lstsq(inputs, np.eye(3)[labels], rcond=None)[0]
    assert ((inputs @ weights).argmax(1) == labels).mean() > 0.6
    numbers = np.asarray(pq.read_table(NUMBERS.file(tmp_path, 1))["label"])
    assert set(numbers) == {0.0, 1.0}
    assert 0.45 < numbers.mean() < 0.55


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    made = Teacher._features

    def full(self, number):
        if number == 1:
            assert list(tmp_path.iterdir()) != []
            raise OSError(28, "No space left on device")
        return made(self, number)

    monkeypatch.setattr(Teacher, "_features", full)
    with pytest.raises(CoprocError, match=r"teacher-small could not be written .*No space left on device"):
        SMALL.file(tmp_path, 2 * BLOCK_ROWS)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_teacher_are_said_to_be_its(tmp_path):
    point = Point("coproc", workload="teacher-higgs", rows=100)
    provide(point, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["teacher-higgs-000008192.parquet", "teacher-higgs-test.parquet"]
    prepared = prepare(point, tmp_path, tmp_path)
    assert prepared.origin.startswith("a fixed random teacher network, as wide as HIGGS; 100 training rows")
    assert features(prepared.train).shape == (100, 28)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
