"""The results file: only whole rows, and those for ever."""

import csv
import errno
import json
import os

import pytest

from coproc.errors import ConfigError, CoprocError
from coproc.trials.base import Point
from coproc.trials.record import RESULTS, Results, commit, host_facts, read, row_of, write_summary

POINT = Point("coproc", workload="digits", hidden=(8, 4))


def test_what_was_added_is_there_for_the_next_one(tmp_path):
    with Results(tmp_path) as results:
        results.add(row_of(POINT, 0))
        results.add(row_of(POINT, 1, "skipped", "no Java"))
    with Results(tmp_path) as results:
        assert [(row["repeat"], row["status"]) for row in results.rows] == [(0, "ok"), (1, "skipped")]
        assert Point(**results.rows[0]["point"]) == POINT


def test_only_what_came_to_an_end_is_done(tmp_path):
    with Results(tmp_path) as results:
        for repeat, status in enumerate(("ok", "skipped", "failed", "interrupted")):
            results.add(row_of(POINT, repeat, status))
        assert set(results.done()) == {(POINT.id, 0), (POINT.id, 1)}


def test_of_runs_that_were_run_again_the_last_counts(tmp_path):
    with Results(tmp_path) as results:
        for status in ("interrupted", "ok"):
            results.add(row_of(POINT, 0, status))
        assert [row["status"] for row in results.latest()] == ["ok"]


@pytest.mark.parametrize("torn", [b'{"id": "abc", "rep', b"{", b'{"id":1}'])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    with Results(tmp_path) as results:
        results.add(row_of(POINT, 0))
    with open(tmp_path / RESULTS, "ab") as file:
        file.write(torn)
    assert len(read(tmp_path / RESULTS)) == 1
    with Results(tmp_path) as results:
        assert len(results.rows) == 1
        results.add(row_of(POINT, 1))
    assert [row["repeat"] for row in read(tmp_path / RESULTS)] == [0, 1]


@pytest.mark.parametrize("line", ["nonsense\n", "{}\n", "[]\n", "3\n"])
def test_a_line_that_is_no_row_is_refused_and_stays(tmp_path, line):
    (tmp_path / RESULTS).write_text(line)
    with pytest.raises(ConfigError, match=r"line 1 of .* is not a result"):
        Results(tmp_path)
    assert (tmp_path / RESULTS).read_text() == line


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    written = os.write

    def half(file, data):
        if len(data) > 100:
            return written(file, data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Results(tmp_path) as results:
        results.add(row_of(POINT, 0))
        before = (tmp_path / RESULTS).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(CoprocError, match=r"No space left on device.*the 1 runs in it stay.*--resume"):
                results.add(row_of(POINT, 1))
        assert (tmp_path / RESULTS).read_bytes() == before
        results.add(row_of(POINT, 1))
    assert len(read(tmp_path / RESULTS)) == 2


def test_two_comparisons_do_not_write_into_one_file(tmp_path):
    with Results(tmp_path), pytest.raises(ConfigError, match="another comparison is writing"):
        Results(tmp_path)
    Results(tmp_path).close()


def test_a_directory_that_cannot_be_written_to_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output .* cannot be written to: "):
        Results(tmp_path / "file")


def test_a_number_that_json_has_not_is_refused(tmp_path):
    with Results(tmp_path) as results:
        with pytest.raises(ValueError, match="not JSON compliant"):
            results.add(row_of(POINT, 0) | {"wall_s": float("nan")})
        assert (tmp_path / RESULTS).read_bytes() == b""


def test_the_summary_has_a_line_a_run(tmp_path):
    samples = [[0, n, float(n), 0.0, 1.0, 0.0, 128, 0.5, 0] for n in range(10)]
    told = row_of(POINT, 0) | {"samples": samples, "groups": [[0, 0, 0.0, 10.0]], "memory": {"driver": 7}}
    path = write_summary(tmp_path, [told, row_of(POINT, 1, "failed", "it is, say,\nbroken")])
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["contestant"], first["hidden"], first["repeat"]) == ("coproc", "8 4", "0")
    assert float(first["steps_per_s"]) == pytest.approx(0.5)
    assert first["memory_driver_bytes"] == "7"
    assert (second["status"], second["error"], second["steps_per_s"]) == ("failed", "it is, say,\nbroken", "")
    assert os.listdir(tmp_path) == ["summary.csv"]


def test_rows_say_on_what_they_were_made():
    facts = host_facts()
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 1 << 20
    assert facts["kernel"].startswith("Linux")
    found = commit()
    assert found is None or len(found.rstrip("+")) == 12
    assert json.loads(json.dumps(row_of(POINT, 0)))["point"]["hidden"] == [8, 4]
